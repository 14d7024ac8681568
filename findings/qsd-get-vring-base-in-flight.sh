#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# qemu-storage-daemon's vhost-user-blk export answers GET_VRING_BASE while it has requests under way, and returns them later: in the ring
# that the front-end has set up since then, whosever requests are there.
#
#   software   qemu-storage-daemon 7.2 (Debian 1:7.2+dfsg-7+deb12u18+b3)
#   input      valid: three writes on a slow disk (null-co, 2 s each), GET_VRING_BASE, a new ring in other memory of the same table
#   expected   the ring stops when GET_VRING_BASE is answered (vhost-user, "Starting and stopping rings"): either the answer waits for
#              the three, or they are not returned any more. The new ring, in which nothing was made available, stays as it is
#   seen       the answer comes at once and counts three requests as taken; none is in the used ring then. Two seconds later the new
#              ring, which is empty, has three used entries
#   and        with the connection ended instead, and a new one: the daemon finishes the three first, and only then answers on the new
#              connection. But it returns one of them only, in the old ring: it has closed the eventfd that it wants to signal for it
#
# A driver that was given the new ring takes those entries for its own requests, by number. And a write of the old driver may be done
# after one of the new driver. A driver that goes on with the old ring where GET_VRING_BASE says waits for two of three for good. Why it matters to vhost-pci: a device VM or the host serves disks with this daemon, and drivers come and
# go; a back-end that stops like this is connected to anew (daemon/link/copy.c, guest/agent/dp_vhostuser.c).
#
# Needs apt with Debian 12's lists, 400 MB of space in TMPDIR and about half a minute. Installs nothing on this machine.
set -eu

QEMU=1:7.2+dfsg-7+deb12u18+b3
PINNED="qemu-system-common=$QEMU python3.11=3.11.2-6+deb12u9"

tmp=$(mktemp -d)
daemon=''
# shellcheck disable=SC2086
trap 'kill $daemon 2>/dev/null || true; wait; rm -rf "$tmp"' EXIT INT TERM
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

ld=$root/lib64/ld-linux-x86-64.so.2
libs=$root/$lib:$root/lib/x86_64-linux-gnu:$root/$lib/pulseaudio

# ---- a front-end ------------------------------------------------------------------------------------------------------
cat >"$tmp/client.py" <<'END'
import array, mmap, os, socket, struct, sys, time

MEM, GPA, OLD, NEW = 1 << 17, 1 << 30, 0, 0x10000
AVAIL, USED, HEAD, STATUS, DATA = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
SLOW = 2.0	# each request takes so long


class Front:
    def __init__(self, path, fd):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.connect(path)
        self.send(1)
        feats, = struct.unpack('<Q', self.answer())
        assert feats >> 32 & 1 and feats >> 30 & 1
        self.send(3)
        self.send(15)
        self.answer()
        self.send(16, struct.pack('<Q', 0))
        self.send(2, struct.pack('<Q', 1 << 32 | 1 << 30))
        self.send(5, struct.pack('<IIQQQQ', 1, 0, GPA, MEM, GPA, 0), [fd])

    def send(self, req, body=b'', fds=()):
        anc = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))] if fds else []
        self.s.sendmsg([struct.pack('<III', req, 1, len(body)) + body], anc)

    def answer(self):
        return self.s.recv(struct.unpack('<III', self.s.recv(12, socket.MSG_WAITALL))[2], socket.MSG_WAITALL)

    def start(self, at):
        """Ring 0, 16 entries, there."""
        self.kick = os.eventfd(0)
        self.send(8, struct.pack('<II', 0, 16))
        self.send(10, struct.pack('<II', 0, 0))
        self.send(9, struct.pack('<IIQQQQ', 0, 0, GPA + at, GPA + at + USED, GPA + at + AVAIL, 0))
        self.send(13, struct.pack('<Q', 0), [os.eventfd(0)])
        self.send(12, struct.pack('<Q', 0), [self.kick])
        self.send(18, struct.pack('<II', 0, 1))

    def writes(self):
        """Three, of a sector each: heads 0, 3 and 6."""
        for i in range(3):
            m[HEAD + 16 * i:HEAD + 16 * i + 16] = struct.pack('<IIQ', 1, 0, i)
            m[STATUS + i] = 0xff
            for n, (at, size, flags) in enumerate(((HEAD + 16 * i, 16, 1), (DATA, 512, 1), (STATUS + i, 1, 2))):
                m[16 * (3 * i + n):16 * (3 * i + n) + 16] = struct.pack('<QIHH', GPA + at, size, flags, (3 * i + n + 1) * (flags & 1))
            m[AVAIL + 4 + 2 * i:AVAIL + 6 + 2 * i] = struct.pack('<H', 3 * i)
        m[AVAIL + 2:AVAIL + 4] = struct.pack('<H', 3)
        os.eventfd_write(self.kick, 1)

    def stop(self):
        """How many requests it says that it has taken."""
        self.send(11, struct.pack('<II', 0, 0))
        return struct.unpack('<II', self.answer())[1]


def used(at):
    return struct.unpack('<H', m[at + USED + 2:at + USED + 4])[0]


def took(since):
    """Did that take as long as a request does, or nothing like it?"""
    t = time.monotonic() - since
    return 'at once' if t < SLOW / 2 else 'when they are done'


fd = os.memfd_create('ram')
os.ftruncate(fd, MEM)
m = mmap.mmap(fd, MEM)

for way in 'ring', 'connection':
    m[:] = bytes(MEM)
    f = Front(sys.argv[1], fd)
    f.start(OLD)
    f.writes()
    begun = time.monotonic()
    time.sleep(SLOW / 8)	# it takes them
    base = f.stop()
    print('with a new %s:' % way)
    print('  GET_VRING_BASE is answered %s: %d taken, %d in the used ring' % (took(begun), base, used(OLD)))
    if way == 'connection':
        f.s.close()
        f = Front(sys.argv[1], fd)
        print('  a new connection is served %s, with %d in the old used ring' % (took(begun), used(OLD)))
    f.start(NEW)
    time.sleep(2 * SLOW)
    print('  nothing is made available in the new ring; its used ring has %d, the old one %d' % (used(NEW), used(OLD)))
    f.stop()
    f.s.close()
END

# ---- run -------------------------------------------------------------------------------------------------------------
"$ld" --library-path "$libs" "$root/usr/bin/qemu-storage-daemon" --pidfile "$tmp/pid" \
	--blockdev driver=null-co,node-name=slow,size=1048576,latency-ns=2000000000 \
	--export vhost-user-blk,id=x,node-name=slow,addr.type=unix,addr.path="$tmp/sock",writable=on >"$tmp/out" 2>&1 &
daemon=$!
n=0
until [ -s "$tmp/pid" ]; do
	n=$((n + 1))
	[ $n -lt 100 ] || { cat "$tmp/out"; exit 1; }
	sleep 0.2
done
PYTHONHOME=$root/usr timeout 120 "$ld" --library-path "$libs" "$root/usr/bin/python3.11" -B "$tmp/client.py" "$tmp/sock" >"$tmp/seen" 2>&1 || true

cat >"$tmp/want" <<'END'
with a new ring:
  GET_VRING_BASE is answered at once: 3 taken, 0 in the used ring
  nothing is made available in the new ring; its used ring has 3, the old one 0
with a new connection:
  GET_VRING_BASE is answered at once: 3 taken, 0 in the used ring
  a new connection is served when they are done, with 1 in the old used ring
  nothing is made available in the new ring; its used ring has 0, the old one 1
END
echo "qemu-storage-daemon ${QEMU#*:} (Debian), three writes of 2 s under way:"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	cat "$tmp/out"
	exit 1
fi
echo "AS DESCRIBED: requests that GET_VRING_BASE left under way are returned in the next ring, which did not ask for them"
