#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# qemu-storage-daemon's vhost-user-blk export serves a ring that is disabled as any other one: it acknowledges SET_VRING_ENABLE 0, and writes to the
# disk what comes after it. A disk is not held still by disabling its rings.
#
#   software   qemu-storage-daemon 7.2 (Debian 1:7.2+dfsg-7+deb12u18+b3)
#   input      valid: VHOST_USER_F_PROTOCOL_FEATURES and REPLY_ACK negotiated; a write in a ring that is started and was never enabled, one after
#              SET_VRING_ENABLE 1, one after SET_VRING_ENABLE 0, each message acknowledged before
#   expected   with that feature a ring starts disabled, and one that is started and disabled has no side effects (vhost-user, "Ring states"):
#              the disk stays as it is, and the requests wait until the ring is enabled
#   seen       all three are on the disk, and returned with status OK
#   and        GET_VRING_BASE does stop the ring: a write after it is not done
#
# The library under the export (libvhost-user) keeps the state and leaves it to the device to ask for it; this one does not ask. With QEMU as the
# front-end it never shows, as SET_VRING_ENABLE 0 and GET_VRING_BASE come together there. virtiofsd does hold such a ring
# (findings/virtiofsd-kick-while-disabled-lost.sh). The daemon of QEMU 10.0.13 (Debian 13), tried by hand, does as 7.2.
# Why it matters to vhost-pci: who stands between a driver VM and such a disk cannot pause it with SET_VRING_ENABLE for a snapshot or a change of
# daemons. Only GET_VRING_BASE or the end of the connection stops its rings, and even then what is under way is still done
# (findings/qsd-get-vring-base-in-flight.sh).
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

MEM, GPA = 1 << 17, 1 << 30
AVAIL, USED, HEAD, DATA, STATUS = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
sock, disk = sys.argv[1:]
fd = os.memfd_create('ram')
os.ftruncate(fd, MEM)
m = mmap.mmap(fd, MEM)
s = socket.socket(socket.AF_UNIX)
s.connect(sock)


def send(req, body=b'', fds=(), flags=1):
    anc = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))] if fds else []
    s.sendmsg([struct.pack('<III', req, flags, len(body)) + body], anc)


def ask(req, body=b''):
    send(req, body)
    return s.recv(struct.unpack('<III', s.recv(12, socket.MSG_WAITALL))[2], socket.MSG_WAITALL)


def must(req, body, fds=()):
    send(req, body, fds, 9)
    assert s.recv(20, socket.MSG_WAITALL)[12:] == bytes(8), 'message %d is refused' % req


made = 0


def write(what, sector):
    """One sector, alone in the ring; what has become of it when there is an answer, or none in 3 s."""
    global made
    m[HEAD:HEAD + 16] = struct.pack('<IIQ', 1, 0, sector)
    m[DATA:DATA + 512] = b'x' * 512
    m[STATUS] = 0xff
    m[0:48] = struct.pack('<QIHHQIHHQIHH', GPA + HEAD, 16, 1, 1, GPA + DATA, 512, 1, 2, GPA + STATUS, 1, 2, 0)
    m[AVAIL + 4 + 2 * made:AVAIL + 6 + 2 * made] = bytes(2)
    made += 1
    m[AVAIL + 2:AVAIL + 4] = struct.pack('<H', made)
    os.eventfd_write(kick, 1)
    end = time.monotonic() + 3
    while struct.unpack('<H', m[USED + 2:USED + 4])[0] != made and time.monotonic() < end:	# the daemon signals at other times, too
        time.sleep(0.1)
    with open(disk, 'rb') as f:
        f.seek(512 * sector)
        there = f.read(1) == b'x'
    used, = struct.unpack('<H', m[USED + 2:USED + 4])
    print('%s: the write is %s, %s' % (what, 'on the disk' if there else 'not on the disk',
                                       'returned with status %d' % m[STATUS] if used == made else 'not returned'))


assert struct.unpack('<Q', ask(1))[0] >> 30 & 5 == 5					# protocol features, VERSION_1
send(3)
assert struct.unpack('<Q', ask(15))[0] >> 3 & 1
send(16, struct.pack('<Q', 1 << 3))							# REPLY_ACK
must(2, struct.pack('<Q', 1 << 32 | 1 << 30))
must(5, struct.pack('<IIQQQQ', 1, 0, GPA, MEM, GPA, 0), [fd])
kick, call = os.eventfd(0), os.eventfd(0)
must(8, struct.pack('<II', 0, 16))
must(10, struct.pack('<II', 0, 0))
must(9, struct.pack('<IIQQQQ', 0, 0, GPA, GPA + USED, GPA + AVAIL, 0))
must(13, struct.pack('<Q', 0), [call])
must(12, struct.pack('<Q', 0), [kick])
write('started, not enabled yet', 1)
must(18, struct.pack('<II', 0, 1))
write('enabled', 2)
must(18, struct.pack('<II', 0, 0))
write('disabled', 3)
ask(11, struct.pack('<II', 0, 0))
write('stopped by GET_VRING_BASE', 4)
END

# ---- run -------------------------------------------------------------------------------------------------------------
truncate -s 1M "$tmp/disk"
"$ld" --library-path "$libs" "$root/usr/bin/qemu-storage-daemon" --pidfile "$tmp/pid" \
	--blockdev driver=file,node-name=d,filename="$tmp/disk" \
	--export vhost-user-blk,id=x,node-name=d,addr.type=unix,addr.path="$tmp/sock",writable=on >"$tmp/out" 2>&1 &
daemon=$!
n=0
until [ -s "$tmp/pid" ]; do
	n=$((n + 1))
	[ $n -lt 100 ] || { cat "$tmp/out"; exit 1; }
	sleep 0.2
done
PYTHONHOME=$root/usr timeout 120 "$ld" --library-path "$libs" "$root/usr/bin/python3.11" -B "$tmp/client.py" "$tmp/sock" "$tmp/disk" >"$tmp/seen" 2>&1 || true

cat >"$tmp/want" <<'END'
started, not enabled yet: the write is on the disk, returned with status 0
enabled: the write is on the disk, returned with status 0
disabled: the write is on the disk, returned with status 0
stopped by GET_VRING_BASE: the write is not on the disk, not returned
END
echo "qemu-storage-daemon ${QEMU#*:} (Debian):"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	cat "$tmp/out"
	exit 1
fi
echo "AS DESCRIBED: a ring that is disabled is served, and what is written in it is on the disk"
