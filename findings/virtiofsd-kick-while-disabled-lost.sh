#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# virtiofsd reads and drops a kick of a ring that is started and not enabled yet, and does not look into the ring when it is enabled: a
# request that was made available before then waits until somebody kicks once more.
#
#   software   virtiofsd 1.13.2 (Debian 1.13.2-1+deb13u1), which is built on the vhost-user-backend crate
#   input      valid: one request (FUSE_INIT) in a ring, SET_VRING_KICK, the kick, SET_VRING_ENABLE 1. Each message is acknowledged
#   expected   the ring is started by the kick and enabled by the message (vhost-user, "Ring states"), so the request is answered. A
#              back-end that does not process a ring that is disabled leaves the kick's count in the eventfd, or looks at the ring later
#   seen       the eventfd's count is taken; nothing is answered after SET_VRING_ENABLE. The next kick brings the answer
#   and        with the kick behind SET_VRING_ENABLE the answer comes at once
#
# A guest has no reason to kick again: it has one request out and waits for it. QEMU sends SET_VRING_KICK and SET_VRING_ENABLE one
# behind the other while the guest may already write to its doorbell, so a mount hangs once in a while. Why it matters to vhost-pci: a
# daemon that stands between a VM and such a back-end kicks each ring itself when it has enabled it (daemon/attach/hostdev.c,
# guest/agent/agent.c).
#
# Needs apt that knows a Debian mirror, 100 MB of space in TMPDIR and about half a minute. Installs nothing on this machine.
set -eu

PINNED=virtiofsd=1.13.2-1+deb13u1
SUITE=trixie

tmp=$(mktemp -d)
daemon=''
# shellcheck disable=SC2086
trap 'kill $daemon 2>/dev/null || true; wait; rm -rf "$tmp"' EXIT INT TERM
root=$tmp/root
lib=usr/lib/x86_64-linux-gnu

# ---- the package, with all that it needs, into a folder of its own -------------------------------------------------
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 'Origin: Debian' | grep -v security | head -n 1)
[ -n "$mirror" ] || { echo "apt knows no Debian mirror: run apt-get update"; exit 1; }
mkdir -p "$tmp/apt/archives/partial" "$tmp/apt/state/lists/partial" "$root" "$tmp/share"
: >"$tmp/apt/status"
echo "deb $mirror $SUITE main" >"$tmp/sources.list"
cat >"$tmp/apt.conf" <<END
Dir::Etc::SourceList "$tmp/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State "$tmp/apt/state";
Dir::State::status "$tmp/apt/status";
Dir::Cache "$tmp/apt";
APT::Install-Recommends "0";
APT::Sandbox::User "";
Acquire::Languages "none";
END
export APT_CONFIG="$tmp/apt.conf"
{ apt-get update -qq && apt-get install -qq -y --download-only $PINNED; } >"$tmp/apt.log" 2>&1 || { cat "$tmp/apt.log"; exit 1; }
for p in "$tmp"/apt/archives/*.deb; do
	dpkg-deb -x "$p" "$root"
done
for ld in "$root/usr/lib64/ld-linux-x86-64.so.2" "$root/$lib/ld-linux-x86-64.so.2"; do
	[ -e "$ld" ] && break
done

# ---- a front-end ---------------------------------------------------------------------------------------------------
cat >"$tmp/client.py" <<'END'
import array, mmap, os, select, socket, struct, sys

MEM, GPA, RING = 1 << 17, 1 << 30, 1			# ring 0 is for requests that overtake
AVAIL, USED, REQUEST, ANSWER = 0x1000, 0x2000, 0x3000, 0x4000
fd = os.memfd_create('ram')
os.ftruncate(fd, MEM)
m = mmap.mmap(fd, MEM)


class Front:
    def __init__(self, path):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.connect(path)
        self.ask(1)
        self.send(3)
        self.ask(15)
        self.send(16, struct.pack('<Q', 1 << 3))	# REPLY_ACK
        self.must(2, struct.pack('<Q', 1 << 32 | 1 << 30))
        self.must(5, struct.pack('<IIQQQQ', 1, 0, GPA, MEM, GPA, 0), [fd])

    def send(self, req, body=b'', fds=(), flags=1):
        anc = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))] if fds else []
        self.s.sendmsg([struct.pack('<III', req, flags, len(body)) + body], anc)

    def answer(self):
        return self.s.recv(struct.unpack('<III', self.s.recv(12, socket.MSG_WAITALL))[2], socket.MSG_WAITALL)

    def ask(self, req):
        self.send(req)
        return struct.unpack('<Q', self.answer())[0]

    def must(self, req, body, fds=()):
        self.send(req, body, fds, 9)
        assert self.answer() == bytes(8), 'message %d is refused' % req


def answered(seconds):
    """Wait for the back-end's signal, so long at most: is the request in the used ring?"""
    if select.select([call], [], [], seconds)[0]:
        os.eventfd_read(call)
    return 'answered' if struct.unpack('<H', m[USED + 2:USED + 4])[0] else 'not answered'


f = Front(sys.argv[1])
kick, call = os.eventfd(0), os.eventfd(0)
f.must(8, struct.pack('<II', RING, 16))
f.must(10, struct.pack('<II', RING, 0))
f.must(9, struct.pack('<IIQQQQ', RING, 0, GPA, GPA + USED, GPA + AVAIL, 0))
f.must(13, struct.pack('<Q', RING), [call])

# FUSE_INIT of version 7.31: 40 bytes of header, 16 and 48 of its own
m[REQUEST:REQUEST + 56] = struct.pack('<IIQQIIIIIIII', 104, 26, 1, 0, 0, 0, 0, 0, 7, 31, 0, 0)
m[0:32] = struct.pack('<QIHHQIHH', GPA + REQUEST, 104, 1, 1, GPA + ANSWER, 256, 2, 0)
m[AVAIL:AVAIL + 6] = struct.pack('<HHH', 0, 1, 0)

f.must(12, struct.pack('<Q', RING), [kick])
if sys.argv[2] == 'before':
    os.eventfd_write(kick, 1)
    for _ in range(100):				# until it is taken, 10 s at most
        if not select.select([kick], [], [], 0)[0]:
            break
        select.select([], [], [], 0.1)
    print('the kick: %s' % ('left in the eventfd' if select.select([kick], [], [], 0)[0] else 'taken while the ring is disabled'))
f.must(18, struct.pack('<II', RING, 1))
if sys.argv[2] == 'behind':
    os.eventfd_write(kick, 1)
print('enabled: %s' % answered(5))
if sys.argv[2] == 'before':
    os.eventfd_write(kick, 1)
    print('kicked once more: %s' % answered(5))
END

# ---- run -----------------------------------------------------------------------------------------------------------
run() {
	rm -f "$tmp/sock"
	"$ld" --library-path "$root/$lib:$root/lib/x86_64-linux-gnu" "$root/usr/libexec/virtiofsd" --socket-path="$tmp/sock" \
		--shared-dir="$tmp/share" --sandbox=none --seccomp=none >"$tmp/out" 2>&1 &
	daemon=$!
	n=0
	while [ ! -S "$tmp/sock" ]; do
		n=$((n + 1))
		if [ $n -gt 100 ] || ! kill -0 $daemon 2>/dev/null; then cat "$tmp/out"; exit 1; fi
		sleep 0.1
	done
	echo "kick $1 SET_VRING_ENABLE:"
	timeout 60 python3 "$tmp/client.py" "$tmp/sock" "$1" | sed 's/^/  /'
	wait $daemon || true
	daemon=''
}
{ run before; run behind; } >"$tmp/seen" || { cat "$tmp/seen"; exit 1; }
cat "$tmp/seen"
cat >"$tmp/wanted" <<'END'
kick before SET_VRING_ENABLE:
  the kick: taken while the ring is disabled
  enabled: not answered
  kicked once more: answered
kick behind SET_VRING_ENABLE:
  enabled: answered
END
cmp -s "$tmp/seen" "$tmp/wanted" || { echo "the behaviour has changed"; exit 1; }
