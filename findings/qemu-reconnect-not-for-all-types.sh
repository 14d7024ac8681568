#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# QEMU ends at its start when the chardev of a vhost-user-fs, -vsock or -scsi device has `reconnect=`, though the back-end listens and
# accepts. With vhost-user-blk and -net the same chardev works, and without `reconnect=` all of them do.
#
#   software   QEMU 7.2 (Debian 1:7.2+dfsg-7+deb12u18+b3), machine q35, emulated, CPUs stopped (-S)
#   input      valid: `-chardev socket,id=c,path=…,reconnect=1 -device vhost-user-fs-pci,chardev=c,tag=t` and its like, memory shared; a
#              process that listens on the socket, accepts, and takes its time to answer
#   expected   QEMU waits for the answer, as it does without `reconnect=`, and as its blk device does
#   seen       "Failed to set msg fds.", "vhost_backend_init failed: Protocol error" (fs, vsock, scsi), and QEMU has ended
#
# A chardev with `reconnect=` connects behind the machine's start, not in it. The blk and net devices wait for that; the others write
# their first message to a socket that is not connected yet. So these VMs cannot outlive a restart of their back-end by `reconnect=`, and
# who adds it for that has a VM that does not start. Tried by hand with QEMU 11.1.3 and `reconnect-ms=`: fs and vsock end, scsi waits.
# Why it matters to vhost-pci: cli/generate_qemu.c gives `reconnect` to the devices that take it only.
#
# Needs apt with Debian 12's lists, 1 GB of space in TMPDIR and about half a minute. Installs nothing on this machine.
set -eu

QEMU=1:7.2+dfsg-7+deb12u18+b3
PINNED="qemu-system-x86=$QEMU python3.11=3.11.2-6+deb12u9"

tmp=$(mktemp -d)
listener=''
# shellcheck disable=SC2086
trap 'kill $listener 2>/dev/null || true; wait; rm -rf "$tmp"' EXIT INT TERM
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
export QEMU_MODULE_DIR="$root/$lib/qemu"

# ---- a back-end that is there and has not answered yet ----------------------------------------------------------------
cat >"$tmp/listen.py" <<'END'
import socket, sys

s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen(8)
there = []
while True:
    there.append(s.accept()[0])
END
PYTHONHOME=$root/usr "$ld" --library-path "$libs" "$root/usr/bin/python3.11" -B "$tmp/listen.py" "$tmp/sock" &
listener=$!
n=0
until [ -S "$tmp/sock" ]; do
	n=$((n + 1))
	[ $n -lt 100 ] || exit 1
	sleep 0.1
done

# ---- run -----------------------------------------------------------------------------------------------------------
# A device, what the chardev has besides: what QEMU does in ten seconds.
try() {
	r=0
	timeout 10 "$ld" --library-path "$libs" "$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" \
		-machine q35,memory-backend=m -accel tcg -m 64M -object memory-backend-memfd,id=m,size=64M,share=on -display none -nodefaults \
		-net none -S -chardev "socket,id=c,path=$tmp/sock$2" -device "$1,chardev=c" >"$tmp/vm" 2>&1 || r=$?
	case $r in
	124) echo "waits" ;;
	*) echo "ends: $(sed -n 's/.*\(Failed to set msg fds\).*/\1/p' "$tmp/vm" | head -n 1)" ;;
	esac
}
for d in vhost-user-blk-pci vhost-user-fs-pci,tag=t vhost-user-vsock-pci vhost-user-scsi-pci; do
	for c in '' ',reconnect=1'; do
		echo "$d, chardev socket$c: $(try "$d" "$c")"
	done
done >"$tmp/seen"

cat >"$tmp/want" <<'END'
vhost-user-blk-pci, chardev socket: waits
vhost-user-blk-pci, chardev socket,reconnect=1: waits
vhost-user-fs-pci,tag=t, chardev socket: waits
vhost-user-fs-pci,tag=t, chardev socket,reconnect=1: ends: Failed to set msg fds
vhost-user-vsock-pci, chardev socket: waits
vhost-user-vsock-pci, chardev socket,reconnect=1: ends: Failed to set msg fds
vhost-user-scsi-pci, chardev socket: waits
vhost-user-scsi-pci, chardev socket,reconnect=1: ends: Failed to set msg fds
END
echo "QEMU $QEMU (Debian):"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	cat "$tmp/vm"
	exit 1
fi
echo "AS DESCRIBED: with reconnect= QEMU's fs, vsock and scsi devices end it"
