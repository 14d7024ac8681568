#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# All disks that qemu-storage-daemon exports by vhost-user-blk have one and the same serial number, "vhost_user_blk", whatever the node, the
# export and the daemon are called; and nothing can give them another one. A guest with two of them cannot tell them apart by /dev/disk/by-id.
#
#   software   qemu-storage-daemon and QEMU 7.2 (Debian 1:7.2+dfsg-7+deb12u18+b3)
#   input      valid: VIRTIO_BLK_T_GET_ID to two exports of one daemon and one of another, each with a name, node and file of its own
#   expected   an identifier that tells the disks apart (the export's or the node's name; virtio-blk-pci takes serial=), or none: an empty
#              answer, or VIRTIO_BLK_S_UNSUPP, makes Linux give such a disk no name by serial number
#   seen       "vhost_user_blk" from all three, each with status OK. The export has no option serial, which vhost-user-blk-pci has not either
#   and        QEMU's own disk has the option, and so has the daemon's other way to guests, vduse-blk ("serial" is known there)
#
# udev makes one link by-id/virtio-vhost_user_blk of all of them (read in its rules, 60-persistent-storage.rules): the disk that came last has
# it. What takes equal serial numbers for two ways to one disk, as multipath tools do, may join two that are not. The daemon of QEMU 11.1.3
# (Debian), tried by hand, answers the same.
# Why it matters to vhost-pci: a driver VM that has two such disks from its device VM has to name them by their place on the bus, or by what is
# on them (docs/howto.md).
#
# Needs apt with Debian 12's lists, 1 GB of space in TMPDIR and about half a minute. Installs nothing on this machine.
set -eu

QEMU=1:7.2+dfsg-7+deb12u18+b3
PINNED="qemu-system-x86=$QEMU qemu-system-common=$QEMU python3.11=3.11.2-6+deb12u9"

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT INT TERM
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
libs=$root/$lib:$root/lib/x86_64-linux-gnu:$root/$lib/pulseaudio

# ---- a front-end ------------------------------------------------------------------------------------------------------
cat >"$tmp/both.py" <<'END'
import array, mmap, os, select, socket, struct, subprocess, sys, time

TMP, DAEMON, SYSTEM = sys.argv[1], sys.argv[2].split('|'), sys.argv[3].split('|')
GPA, MEM = 1 << 30, 1 << 16
AVAIL, USED, HEAD, STATUS, DATA = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000


def export(name, more=''):
    return ['--blockdev', 'driver=null-co,node-name=node-%s,size=1048576' % name, '--export',
            'vhost-user-blk,id=export-%s,node-name=node-%s,addr.type=unix,addr.path=%s%s' % (name, name, os.path.join(TMP, name), more)]


def serial(name):
    """What the driver of that export gets, and the status."""
    end = time.monotonic() + 30
    while True:
        s = socket.socket(socket.AF_UNIX)
        try:
            s.connect(os.path.join(TMP, name))
            break
        except OSError:
            assert time.monotonic() < end, 'no daemon'
            time.sleep(0.1)

    def send(req, body=b'', fds=()):
        s.sendmsg([struct.pack('<III', req, 1, len(body)) + body], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))] if fds else [])

    send(1)
    s.recv(struct.unpack('<III', s.recv(12, socket.MSG_WAITALL))[2], socket.MSG_WAITALL)
    fd = os.memfd_create('ram')
    os.ftruncate(fd, MEM)
    m = mmap.mmap(fd, MEM)
    kick, call = os.eventfd(0), os.eventfd(0)
    m[HEAD:HEAD + 16] = struct.pack('<IIQ', 8, 0, 0)			# VIRTIO_BLK_T_GET_ID
    m[STATUS] = 0xff
    for i, (at, length, flags) in enumerate(((HEAD, 16, 1), (DATA, 20, 3), (STATUS, 1, 2))):
        m[16 * i:16 * i + 16] = struct.pack('<QIHH', GPA + at, length, flags, i + 1)
    m[AVAIL:AVAIL + 6] = struct.pack('<HHH', 0, 1, 0)
    send(3)
    send(2, struct.pack('<Q', 1 << 32))
    send(5, struct.pack('<IIQQQQ', 1, 0, GPA, MEM, GPA, 0), [fd])
    send(8, struct.pack('<II', 0, 16))
    send(10, struct.pack('<II', 0, 0))
    send(9, struct.pack('<IIQQQQ', 0, 0, GPA, GPA + USED, GPA + AVAIL, 0))
    send(13, struct.pack('<Q', 0), [call])
    send(12, struct.pack('<Q', 0), [kick])
    os.eventfd_write(kick, 1)
    end = time.monotonic() + 20
    while struct.unpack('<H', m[USED + 2:USED + 4])[0] != 1:
        assert time.monotonic() < end, 'no answer'
        select.select([call], [], [], 0.1)
    return '"%s", status %d' % (m[DATA:DATA + 20].rstrip(b'\0').decode(), m[STATUS])


daemons = [subprocess.Popen(DAEMON + export('a') + export('b')), subprocess.Popen(DAEMON + export('c'))]
try:
    for name in 'abc':
        print('node-%s, export-%s, daemon %d: %s' % (name, name, name > 'b', serial(name)))
finally:
    for d in daemons:
        d.kill()
        d.wait()


def says(argv):
    try:
        r = subprocess.run(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return 'runs'
    return r.stderr.strip().rpartition(': ')[2]


print('export with serial=abc: %s' % says(DAEMON + export('d', ',serial=abc')))
for device in 'vhost-user-blk-pci', 'virtio-blk-pci':
    help = subprocess.run(SYSTEM + ['-device', device + ',help'], stdout=subprocess.PIPE, text=True).stdout
    print('%s: serial= is %s' % (device, 'an option' if '  serial=' in help else 'no option'))
print('vduse-blk with serial=abc and no such node: %s' % says(DAEMON + ['--export', 'vduse-blk,id=e,name=e,node-name=none,serial=abc']))
END

# ---- run -------------------------------------------------------------------------------------------------------------
export QEMU_MODULE_DIR="$root/$lib/qemu"
PYTHONHOME=$root/usr timeout 120 "$ld" --library-path "$libs" "$root/usr/bin/python3.11" -B "$tmp/both.py" "$tmp" \
	"$ld|--library-path|$libs|$root/usr/bin/qemu-storage-daemon" \
	"$ld|--library-path|$libs|$root/usr/bin/qemu-system-x86_64|-L|$root/usr/share/seabios|-L|$root/usr/share/qemu" \
	>"$tmp/seen" 2>"$tmp/out" || true

cat >"$tmp/want" <<'END'
node-a, export-a, daemon 0: "vhost_user_blk", status 0
node-b, export-b, daemon 0: "vhost_user_blk", status 0
node-c, export-c, daemon 1: "vhost_user_blk", status 0
export with serial=abc: Parameter 'serial' is unexpected
vhost-user-blk-pci: serial= is no option
virtio-blk-pci: serial= is an option
vduse-blk with serial=abc and no such node: Cannot find device='' nor node-name='none'
END
echo "QEMU ${QEMU#*:} (Debian):"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	tail -n 20 "$tmp/out"
	exit 1
fi
echo "AS DESCRIBED: each disk is called vhost_user_blk"
