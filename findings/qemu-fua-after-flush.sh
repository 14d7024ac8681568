#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# QEMU's block layer leaves a write that must be stable (FUA, write-through) in the host's page cache when a flush came just before
# it, with driver=file as the exported node. It makes up for FUA by a flush after the write, and that flush is left out when nothing
# was written since the last one; the write itself is counted only after that.
#
#   software   qemu-storage-daemon 7.2 (Debian 1:7.2+dfsg-7+deb12u18+b3): its NBD and its vhost-user-blk export
#   input      valid: NBD_CMD_WRITE with NBD_CMD_FLAG_FUA, NBD_CMD_FLUSH; virtio-blk writes and flushes on writethrough=on
#   expected   fdatasync between each such write and its answer: so the NBD protocol says of FUA, and QEMU's manual of writethrough=on
#              (caches are flushed after every write request, before its completion is signalled)
#   seen       the first write of all and each first write after a flush are answered without fdatasync; every other write has one.
#              With driver=raw on top of the file, which should change nothing, each write has one
#
# A flush and then a write with FUA is how a journal commits (Linux: PREFLUSH | FUA on the commit record), so it is not a rare order.
# QEMU 10.0.13 and 11.1.3 (Debian), tried by hand, do the same, there with `raw` on top, too, as it now hands FUA to the file.
# Why it matters to vhost-pci: a disk that a device VM serves is not made safe by writethrough=on: the driver VM has to flush.
#
# Needs apt with Debian 12's lists, 400 MB of space in TMPDIR and about half a minute. Installs nothing on this machine.
set -eu

QEMU=1:7.2+dfsg-7+deb12u18+b3
PINNED="qemu-system-common=$QEMU python3.11=3.11.2-6+deb12u9 strace=6.1-0.1"

tmp=$(mktemp -d)
daemon='' tracer=''
# shellcheck disable=SC2086
trap 'kill $daemon $tracer 2>/dev/null || true; wait; rm -rf "$tmp"' EXIT INT TERM
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

# ---- a client of each kind: write 1, write 2, flush, write 3, write 4, flush, write 5, write 6 ---------------------------
cat >"$tmp/client.py" <<'END'
import array, mmap, os, select, socket, struct, sys

PAGE, MEM, GPA = 4096, 1 << 16, 1 << 30
DESC, AVAIL, USED, HEAD, STATUS, DATA = 0, 0x1000, 0x2000, 0x3000, 0x4000, 0x5000


class Nbd:
    """Writes with FUA."""
    def __init__(self, path):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.connect(path)
        assert self.get(18)[:16] == b'NBDMAGICIHAVEOPT'
        self.s.sendall(struct.pack('>I', 3) + b'IHAVEOPT' + struct.pack('>II', 1, 4) + b'disk')
        size, flags = struct.unpack('>QH', self.get(10))
        assert flags & 1 << 3, 'no FUA'

    def get(self, n):
        return self.s.recv(n, socket.MSG_WAITALL)

    def command(self, flags, kind, offset, data):
        self.s.sendall(struct.pack('>IHHQQI', 0x25609513, flags, kind, 1, offset, len(data)) + data)
        assert struct.unpack('>IIQ', self.get(16)) == (0x67446698, 0, 1)

    def write(self, page):
        self.command(1, 1, page * PAGE, b'x' * PAGE)

    def flush(self):
        self.command(0, 3, 0, b'')


class Blk:
    """A vhost-user front-end and its driver, on a disk that is write-through; one split virtqueue of 16."""
    def __init__(self, path):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.connect(path)
        self.send(1)
        feats, = struct.unpack('<Q', self.answer())
        assert feats & 1 << 9, 'no VIRTIO_BLK_F_FLUSH'
        self.send(3)
        self.send(2, struct.pack('<Q', 1 << 32 | 1 << 9))
        fd = os.memfd_create('ram')
        os.ftruncate(fd, MEM)
        self.m = mmap.mmap(fd, MEM)
        self.send(5, struct.pack('<IIQQQQ', 1, 0, GPA, MEM, GPA, 0), [fd])
        self.kick, self.call, self.n = os.eventfd(0), os.eventfd(0), 0
        self.send(8, struct.pack('<II', 0, 16))
        self.send(10, struct.pack('<II', 0, 0))
        self.send(9, struct.pack('<IIQQQQ', 0, 0, GPA + DESC, GPA + USED, GPA + AVAIL, 0))
        self.send(13, struct.pack('<Q', 0), [self.call])
        self.send(12, struct.pack('<Q', 0), [self.kick])

    def send(self, req, body=b'', fds=()):
        anc = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))] if fds else []
        self.s.sendmsg([struct.pack('<III', req, 1, len(body)) + body], anc)

    def answer(self):
        return self.s.recv(struct.unpack('<III', self.s.recv(12, socket.MSG_WAITALL))[2], socket.MSG_WAITALL)

    def request(self, kind, sector, size):
        m = self.m
        m[HEAD:HEAD + 16] = struct.pack('<IIQ', kind, 0, sector)
        m[STATUS] = 0xff
        bufs = [(HEAD, 16, 0)] + [(DATA, size, 0)] * (size > 0) + [(STATUS, 1, 2)]
        for i, (at, length, flags) in enumerate(bufs):
            more = i + 1 < len(bufs)
            m[DESC + 16 * i:DESC + 16 * i + 16] = struct.pack('<QIHH', GPA + at, length, flags | more, (i + 1) * more)
        slot = AVAIL + 4 + 2 * (self.n % 16)
        m[slot:slot + 2] = b'\0\0'
        self.n += 1
        m[AVAIL + 2:AVAIL + 4] = struct.pack('<H', self.n)
        os.eventfd_write(self.kick, 1)
        while struct.unpack('<H', m[USED + 2:USED + 4])[0] != self.n:
            assert select.select([self.call], [], [], 20)[0], 'no answer'
            os.eventfd_read(self.call)
        assert m[STATUS] == 0

    def write(self, page):
        self.request(1, page * 8, PAGE)

    def flush(self):
        self.request(4, 0, 0)


c = {'nbd': Nbd, 'vhost-user-blk': Blk}[sys.argv[1]](sys.argv[2])
calls, steps = sys.argv[3], 'w1 w2 f w3 w4 f w5 w6'.split()


def syncs():
    with open(calls) as f:
        return sum('sync(' in line for line in f)


before = syncs()
for s in steps:
    if s == 'f':
        c.flush()
        before = syncs()
        continue
    c.write(int(s[1]))
    now = syncs()
    print('  write %s is answered, %s' % (s[1], 'stable' if now > before else 'NOT stable'))
    before = now
END

# ---- run -------------------------------------------------------------------------------------------------------------
one()	# export, node
{
	rm -f "$tmp/pid" "$tmp/sock"
	: >"$tmp/calls"
	truncate -s 1M "$tmp/disk"
	case $1 in
	nbd) set -- "$1" "$2" --nbd-server "addr.type=unix,addr.path=$tmp/sock" --export "nbd,id=x,name=disk,node-name=$2,writable=on" ;;
	*) set -- "$1" "$2" --export "$1,id=x,node-name=$2,addr.type=unix,addr.path=$tmp/sock,writable=on,writethrough=on" ;;
	esac
	export=$1 node=$2
	shift 2
	"$ld" --library-path "$libs" "$root/usr/bin/strace" -f -o "$tmp/calls" -e trace=fdatasync,fsync \
		"$ld" --library-path "$libs" "$root/usr/bin/qemu-storage-daemon" --pidfile "$tmp/pid" \
		--blockdev driver=file,node-name=file,filename="$tmp/disk" --blockdev driver=raw,node-name=raw,file=file "$@" >"$tmp/out" 2>&1 &
	tracer=$!
	n=0
	until [ -s "$tmp/pid" ]; do
		n=$((n + 1))
		[ $n -lt 100 ] || { cat "$tmp/out"; return 1; }
		sleep 0.2
	done
	daemon=$(cat "$tmp/pid")
	echo "$export, driver=$node:"
	PYTHONHOME=$root/usr timeout 60 "$ld" --library-path "$libs" "$root/usr/bin/python3.11" -B "$tmp/client.py" \
		"$export" "$tmp/sock" "$tmp/calls" || true
	kill "$daemon"
	wait $tracer || true
	daemon='' tracer=''
}
for export in nbd vhost-user-blk; do
	for node in file raw; do
		one "$export" "$node"
	done
done >"$tmp/seen" 2>&1

: >"$tmp/want"
for export in nbd vhost-user-blk; do
	cat >>"$tmp/want" <<END
$export, driver=file:
  write 1 is answered, NOT stable
  write 2 is answered, stable
  write 3 is answered, NOT stable
  write 4 is answered, stable
  write 5 is answered, NOT stable
  write 6 is answered, stable
$export, driver=raw:
END
	for n in 1 2 3 4 5 6; do
		echo "  write $n is answered, stable" >>"$tmp/want"
	done
done
echo "qemu-storage-daemon ${QEMU#*:} (Debian), a flush between 2 and 3 and between 4 and 5:"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	exit 1
fi
echo "AS DESCRIBED: on driver=file a stable write is not made stable when nothing was written since the last flush"
