#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# With DPDK's vhost port a ring that a front-end stops (GET_VRING_BASE) takes all others with it, for good: they are not served again when the
# ring is back, though nothing was said to or about them, until each of them is disabled and enabled once.
#
#   software   dpdk-testpmd 22.11 (Debian 22.11.11-0+deb12u1) with a net_vhost port of two queue pairs that swaps addresses and sends back
#   input      valid: a front-end with MQ and REPLY_ACK, four rings, a frame there and back in each pair; GET_VRING_BASE of ring 3, which is
#              pair 1's to transmit; the same ring set up again where it stood; then SET_VRING_ENABLE 0 and 1 of the other three
#   expected   rings start and stop one by one (vhost-user, "Starting and stopping rings"): pair 0 goes on all the time, pair 1 when its ring is
#              back
#   seen       pair 0's frame stays in its ring from then on, also when ring 3 is back and each message is acknowledged. Pair 1's frame is taken
#              then, and its echo is lost, as ring 2 is not served either. SET_VRING_ENABLE 0 and 1 of rings 0, 1 and 2 brings all back
#
# Two parts do not meet: at GET_VRING_BASE the library reports the whole device as gone, and at once as new, since two rings are enough for it;
# the port forgets then which rings are enabled, and would have to be told of each again. But the library tells of changes only, and of those
# rings nothing has changed. QEMU stops all rings of a device together, so it never shows there.
# Why it matters to vhost-pci: the agent stops and starts each queue by itself (guest/agent/dp_vhostuser.c). With such a port behind it a queue
# that ends alone takes the link's others with it, until the driver VM's driver starts all of them anew.
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

MEM, GPA, RING = 1 << 21, 1 << 30, 0x4000				# ring i lies at i * RING, and what it leads to behind all of them
AVAIL, USED, BUFS, FRAMES = 0x1000, 0x2000, 0x20000, 0x80000
HDR = 12


class Front:
    def __init__(self, path):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.connect(path)
        self.s.settimeout(20)
        self.send(1)
        feats, = struct.unpack('<Q', self.answer())
        assert feats >> 32 & 1 and feats >> 30 & 1 and feats >> 22 & 1
        self.send(3)
        self.send(15)
        assert struct.unpack('<Q', self.answer())[0] & 9 == 9
        self.send(16, struct.pack('<Q', 1 << 3 | 1))			# REPLY_ACK, MQ
        self.send(2, struct.pack('<Q', 1 << 32 | 1 << 30 | 1 << 22))
        fd = os.memfd_create('ram')
        os.ftruncate(fd, MEM)
        m = self.m = mmap.mmap(fd, MEM)
        for pair in 0, 1:
            rx, tx = 2 * pair * RING, (2 * pair + 1) * RING
            for i in range(8):
                m[rx + 16 * i:rx + 16 * i + 16] = struct.pack('<QIHH', GPA + BUFS + (8 * pair + i) * 4096, 2048, 2, 0)
                m[rx + AVAIL + 4 + 2 * i:rx + AVAIL + 6 + 2 * i] = struct.pack('<H', i)
            m[rx + AVAIL + 2:rx + AVAIL + 4] = struct.pack('<H', 8)
            frame = FRAMES + 4096 * pair
            m[tx:tx + 16] = struct.pack('<QIHH', GPA + frame, HDR + 100, 0, 0)
            m[frame + HDR:frame + HDR + 14] = bytes.fromhex('02000000000102000000000288b5')
        self.must(5, struct.pack('<IIQQQQ', 1, 0, GPA, MEM, GPA, 0), [fd])

    def send(self, req, body=b'', fds=(), flags=1):
        anc = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))] if fds else []
        self.s.sendmsg([struct.pack('<III', req, flags, len(body)) + body], anc)

    def answer(self):
        return self.s.recv(struct.unpack('<III', self.s.recv(12, socket.MSG_WAITALL))[2], socket.MSG_WAITALL)

    def must(self, req, body, fds=()):
        self.send(req, body, fds, 9)
        assert self.answer() == bytes(8), 'message %d is refused' % req

    def start(self, i, base=0):
        at = GPA + i * RING
        self.must(8, struct.pack('<II', i, 16))
        self.must(10, struct.pack('<II', i, base))
        self.must(9, struct.pack('<IIQQQQ', i, 0, at, at + USED, at + AVAIL, 0))
        self.must(13, struct.pack('<Q', i), [os.eventfd(0)])
        self.must(12, struct.pack('<Q', i), [os.eventfd(0)])
        self.must(18, struct.pack('<II', i, 1))

    def stop(self, i):
        self.send(11, struct.pack('<II', i, 0))
        return struct.unpack('<II', self.answer())[1]

    def used(self, i):
        return struct.unpack('<H', self.m[i * RING + USED + 2:i * RING + USED + 4])[0]

    def frame(self, pair, seconds=20):
        """One more to transmit: what becomes of it? Those that stayed before it come back with it."""
        rx, tx = 2 * pair, 2 * pair + 1
        back, at = self.used(rx), tx * RING + AVAIL + 2
        n = struct.unpack('<H', self.m[at:at + 2])[0] + 1
        self.m[at:at + 2] = struct.pack('<H', n)
        end = time.monotonic() + seconds
        while time.monotonic() < end and (self.used(tx) != n or self.used(rx) == back):
            time.sleep(0.05)
        return 'stays' if self.used(tx) != n else 'is taken and does not come back' if self.used(rx) == back else 'comes back'

    def frames(self, what, *seconds):
        print('%s: a frame in pair 0 %s, in pair 1 %s' % (what, self.frame(0, seconds[0]), self.frame(1, seconds[1])))


f = Front(sys.argv[1])
for i in range(4):
    f.start(i)
# testpmd begins to forward some time after the rings run: the first frame may take long.
f.frames('all four rings run', 20, 20)
base = f.stop(3)
print('ring 3 stopped at %d: a frame in pair 0 %s' % (base, f.frame(0, 5)))
f.start(3, base)
f.frames('ring 3 set up again', 5, 5)
for i in range(3):
    for enable in 0, 1:
        f.must(18, struct.pack('<II', i, enable))
f.frames('rings 0, 1 and 2 disabled and enabled', 20, 20)
END

# ---- run -------------------------------------------------------------------------------------------------------------
# It would load the drivers of this machine as well, if there are any: its copy looks for them in a folder that is not there.
sed -i 's|/dpdk/pmds-23\.0|/dpdk/pmds-none|' "$(readlink -f "$root/$lib/librte_eal.so.23")"
mkdir "$tmp/run"
XDG_RUNTIME_DIR=$tmp/run timeout 120 "$ld" --library-path "$libs" "$root/usr/bin/dpdk-testpmd" -d librte_bus_vdev.so.23 -d librte_mempool_ring.so.23 \
	-d librte_net_vhost.so.23 -l 0,1 --no-pci --no-huge -m 128 --no-telemetry --no-shconf \
	--vdev "net_vhost0,iface=$tmp/sock,queues=2" -- --rxq=2 --txq=2 --forward-mode=macswap --auto-start --nb-cores=1 --port-topology=loop \
	--total-num-mbufs=4096 --stats-period=600 >"$tmp/out" 2>&1 </dev/null &
testpmd=$!
n=0
until [ -S "$tmp/sock" ]; do
	n=$((n + 1))
	[ $n -lt 100 ] || { cat "$tmp/out"; exit 1; }
	sleep 0.2
done
PYTHONHOME=$root/usr timeout 100 "$ld" --library-path "$libs" "$root/usr/bin/python3.11" -B "$tmp/client.py" "$tmp/sock" >"$tmp/seen" 2>&1 || true

cat >"$tmp/want" <<'END'
all four rings run: a frame in pair 0 comes back, in pair 1 comes back
ring 3 stopped at 1: a frame in pair 0 stays
ring 3 set up again: a frame in pair 0 stays, in pair 1 is taken and does not come back
rings 0, 1 and 2 disabled and enabled: a frame in pair 0 comes back, in pair 1 comes back
END
echo "dpdk-testpmd $DPDK (Debian):"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	tail -n 20 "$tmp/out"
	exit 1
fi
echo "AS DESCRIBED: one ring that stops takes the others with it"
