#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# DPDK's vhost library ignores a SET_MEM_TABLE whose regions have the addresses and sizes of those that it has, and other file
# descriptors: it acknowledges the message ("memory regions not changed"), closes the descriptors and goes on in the old memory.
#
#   software   dpdk-testpmd 22.11 (Debian 22.11.11-0+deb12u1) with a net_vhost port that swaps addresses and sends back
#   input      valid: SET_MEM_TABLE, rings, a frame there and back; GET_VRING_BASE of all rings; SET_MEM_TABLE with another memfd at the
#              same addresses, acknowledged; the rings anew at the same addresses; a frame
#   expected   the rings are read and written in the memory that was sent last: vhost-user has the descriptors in the message for that
#   seen       the frame in the new memory stays where it is. One that is put into the old memory, which the front-end took away, is
#              transmitted, and its echo is written there
#   and        with another user address in the message, all else alike, the new memory is taken
#
# The library cannot tell descriptors apart by their numbers, but could by fstat(). Why it matters to vhost-pci: it gives back-ends
# memory of one driver VM after that of another over one connection; its agent never uses a user address twice (guest/agent/memmap.h).
#
# Needs apt with Debian 12's lists, 1 GB of space in TMPDIR and about a minute. Installs nothing on this machine.
set -eu

DPDK=22.11.11-0+deb12u1
PINNED="dpdk-dev=$DPDK librte-net-vhost23=$DPDK librte-vhost23=$DPDK librte-bus-vdev23=$DPDK librte-mempool-ring23=$DPDK
python3.11=3.11.2-6+deb12u9"

tmp=$(mktemp -d)
testpmd=''
# shellcheck disable=SC2086
trap 'kill $testpmd 2>/dev/null || true; wait; rm -rf "$tmp"' EXIT INT TERM
root=$tmp/root
lib=usr/lib/x86_64-linux-gnu

# ---- the packages, with all that they need, into a folder of their own ---------------------------------------------
mkdir -p "$tmp/apt/archives/partial" "$tmp/apt/state" "$root"
: >"$tmp/apt/status"
cat >"$tmp/apt.conf" <<END
Dir::State "$tmp/apt/state";
Dir::State::status "$tmp/apt/status";
Dir::State::Lists "$(eval "$(apt-config shell D Dir::State::Lists/d)"; echo "$D")";
Dir::Cache "$tmp/apt";
APT::Install-Recommends "0";
APT::Sandbox::User "";
END
# shellcheck disable=SC2086
APT_CONFIG=$tmp/apt.conf apt-get install -qq -y --download-only $PINNED >"$tmp/apt.log" 2>&1 || { cat "$tmp/apt.log"; exit 1; }
for p in "$tmp"/apt/archives/*.deb; do
	dpkg-deb -x "$p" "$root"
done
rm -rf "$tmp/apt/archives"

ld=$root/lib64/ld-linux-x86-64.so.2
libs=$root/$lib:$root/lib/x86_64-linux-gnu

# ---- a front-end ------------------------------------------------------------------------------------------------------
cat >"$tmp/client.py" <<'END'
import array, mmap, os, socket, struct, sys, time

MEM, GPA = 1 << 21, 1 << 30
RX, TX, AVAIL, USED, BUFS, FRAME = 0, 0x4000, 0x1000, 0x2000, 0x10000, 0x20000
HDR = 12


class Front:
    def __init__(self, path):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.connect(path)
        self.s.settimeout(20)
        self.send(1)
        feats, = struct.unpack('<Q', self.answer())
        assert feats >> 32 & 1 and feats >> 30 & 1
        self.send(3)
        self.send(15)
        assert struct.unpack('<Q', self.answer())[0] >> 3 & 1
        self.send(16, struct.pack('<Q', 1 << 3))	# REPLY_ACK
        self.send(2, struct.pack('<Q', 1 << 32 | 1 << 30))

    def send(self, req, body=b'', fds=(), flags=1):
        anc = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))] if fds else []
        self.s.sendmsg([struct.pack('<III', req, flags, len(body)) + body], anc)

    def answer(self):
        return self.s.recv(struct.unpack('<III', self.s.recv(12, socket.MSG_WAITALL))[2], socket.MSG_WAITALL)

    def start(self, mem, user):
        """Its table, which is to be acknowledged, and both rings from their beginning."""
        self.send(5, struct.pack('<IIQQQQ', 1, 0, GPA, MEM, user, 0), [mem.fd], 1 | 1 << 3)
        assert struct.unpack('<Q', self.answer()) == (0,)
        for i, at in enumerate((RX, TX)):
            self.send(8, struct.pack('<II', i, 16))
            self.send(10, struct.pack('<II', i, 0))
            self.send(9, struct.pack('<IIQQQQ', i, 0, user + at, user + at + USED, user + at + AVAIL, 0))
            self.send(13, struct.pack('<Q', i), [os.eventfd(0)])
            self.send(12, struct.pack('<Q', i), [os.eventfd(0)])
            self.send(18, struct.pack('<II', i, 1))

    def stop(self):
        for i in range(2):
            self.send(11, struct.pack('<II', i, 0))
            self.answer()


class Memory:
    """Two rings of 16 entries: eight buffers to receive into, and frames to transmit, all of them the same one."""
    def __init__(self, name):
        self.fd = os.memfd_create(name)
        os.ftruncate(self.fd, MEM)
        m = self.m = mmap.mmap(self.fd, MEM)
        for i in range(8):
            m[16 * i:16 * i + 16] = struct.pack('<QIHH', GPA + BUFS + 4096 * i, 2048, 2, 0)
            m[AVAIL + 4 + 2 * i:AVAIL + 6 + 2 * i] = struct.pack('<H', i)
        m[AVAIL + 2:AVAIL + 4] = struct.pack('<H', 8)
        m[TX:TX + 16] = struct.pack('<QIHH', GPA + FRAME, HDR + 100, 0, 0)
        m[FRAME + HDR:FRAME + HDR + 14] = bytes.fromhex('02000000000102000000000288b5')

    def used(self):
        """Of (transmitted, received)."""
        return tuple(struct.unpack('<H', self.m[at + USED + 2:at + USED + 4])[0] for at in (TX, RX))

    def transmit(self):
        n, = struct.unpack('<H', self.m[TX + AVAIL + 2:TX + AVAIL + 4])
        self.m[TX + AVAIL + 2:TX + AVAIL + 4] = struct.pack('<H', n + 1)

    def echoes(self, seconds):
        """Has a frame more come back?"""
        before, end = self.used(), time.monotonic() + seconds
        self.transmit()
        while time.monotonic() < end:
            if self.used() == (before[0] + 1, before[1] + 1):
                return 'transmitted, and its echo is there'
            time.sleep(0.05)
        return 'as it was' if self.used() == before else 'half done'


f, user = Front(sys.argv[1]), GPA
mems = []
for what, user in ('first memory', GPA), ('other memory, the same addresses', GPA), ('other memory, another user address', 2 * GPA):
    if mems:
        f.stop()
    mems.append(Memory('ram'))
    f.start(mems[-1], user)
    print('%s:' % what)
    # testpmd begins to forward some time after the rings run: the first frame may take long.
    print('  a frame in it:', mems[-1].echoes(5 if len(mems) == 2 else 20))
    if len(mems) > 1:
        print('  a frame in the first memory:', mems[0].echoes(10 if len(mems) == 2 else 3))
END

# ---- run -------------------------------------------------------------------------------------------------------------
# It would load the drivers of this machine as well, if there are any: its copy looks for them in a folder that is not there.
sed -i 's|/dpdk/pmds-23\.0|/dpdk/pmds-none|' "$(readlink -f "$root/$lib/librte_eal.so.23")"
mkdir "$tmp/run"
XDG_RUNTIME_DIR=$tmp/run timeout 120 "$ld" --library-path "$libs" "$root/usr/bin/dpdk-testpmd" -d librte_bus_vdev.so.23 -d librte_mempool_ring.so.23 \
	-d librte_net_vhost.so.23 -l 0,1 --no-pci --no-huge -m 128 --no-telemetry --no-shconf \
	--vdev "net_vhost0,iface=$tmp/sock,queues=1" -- --forward-mode=macswap --auto-start --nb-cores=1 --port-topology=loop \
	--total-num-mbufs=4096 --stats-period=600 >"$tmp/out" 2>&1 </dev/null &
testpmd=$!
n=0
until [ -S "$tmp/sock" ]; do
	n=$((n + 1))
	[ $n -lt 100 ] || { cat "$tmp/out"; exit 1; }
	sleep 0.2
done
PYTHONHOME=$root/usr timeout 100 "$ld" --library-path "$libs" "$root/usr/bin/python3.11" -B "$tmp/client.py" "$tmp/sock" >"$tmp/seen" 2>&1 || true
echo "testpmd says $(grep -c 'memory regions not changed' "$tmp/out") time(s): memory regions not changed" >>"$tmp/seen"

cat >"$tmp/want" <<'END'
first memory:
  a frame in it: transmitted, and its echo is there
other memory, the same addresses:
  a frame in it: as it was
  a frame in the first memory: transmitted, and its echo is there
other memory, another user address:
  a frame in it: transmitted, and its echo is there
  a frame in the first memory: as it was
testpmd says 1 time(s): memory regions not changed
END
echo "dpdk-testpmd $DPDK (Debian):"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	tail -n 20 "$tmp/out"
	exit 1
fi
echo "AS DESCRIBED: memory that is sent at the addresses of the last is not taken, and the last one's goes on being used"
