#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# OVMF cannot read a disk of qemu-storage-daemon (vhost-user-blk) with QEMU's default device: it drives the device as a legacy one, and
# the daemon's library refuses those and ends the connection. SeaBIOS and Linux read the same disk.
#
#   software   QEMU and qemu-storage-daemon 7.2 (Debian 1:7.2+dfsg-7+deb12u18+b3), machine q35, emulated; OVMF 2022.11
#              (Debian 2022.11-6+deb12u2); SeaBIOS 1.16.2 (Debian 1.16.2-1)
#   input      valid: `-device vhost-user-blk-pci,chardev=…` as QEMU's documentation has it; on the disk a FAT file system with startup.nsh
#   expected   OVMF finds the file system, and its shell runs startup.nsh, which switches the machine off
#   seen       "virtio legacy devices aren't supported by libvhost-user" from the daemon; OVMF has no disk, and waits
#   and        with disable-legacy=on the file is run. With the default device SeaBIOS gets an answer and no complaint: it takes the modern
#              interface of the same device
#
# On the root bus of q35 QEMU makes a device that has both interfaces (the PCI ID 1af4:1001). OVMF has a driver for each, and the one for
# the old ID takes it. Behind a pcie-root-port the device is a modern one by default, so whether the firmware sees its disk hangs on the
# slot. Why it matters to vhost-pci: docs/howto.md says disable-legacy=on for disks that a VM boots from by OVMF; the agent and the daemon
# have the same back-ends behind them.
#
# Needs apt with Debian 12's lists, 1 GB of space in TMPDIR and one to three minutes. Installs nothing on this machine.
set -eu

QEMU=1:7.2+dfsg-7+deb12u18+b3
PINNED="qemu-system-x86=$QEMU qemu-system-common=$QEMU qemu-system-data=1:7.2+dfsg-7+deb12u18 ovmf=2022.11-6+deb12u2 seabios=1.16.2-1"

tmp=$(mktemp -d)
daemon='' vm=''
# shellcheck disable=SC2086
trap 'kill $daemon $vm 2>/dev/null || true; wait; rm -rf "$tmp"' EXIT INT TERM
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

# ---- a disk whose file system has one file ---------------------------------------------------------------------------
mkdir "$tmp/files"
printf 'reset -s\r\n' >"$tmp/files/startup.nsh"

# firmware, properties of the device: does the machine switch itself off, and what does the daemon say?
try() {
	rm -f "$tmp/sock" "$tmp/pid"
	"$ld" --library-path "$libs" "$root/usr/bin/qemu-storage-daemon" --pidfile "$tmp/pid" \
		--blockdev driver=vvfat,node-name=disk,dir="$tmp/files",read-only=on \
		--export vhost-user-blk,id=x,node-name=disk,addr.type=unix,addr.path="$tmp/sock",writable=off >"$tmp/said" 2>&1 &
	daemon=$!
	n=0
	until [ -S "$tmp/sock" ]; do
		n=$((n + 1))
		[ $n -lt 100 ] || { cat "$tmp/said"; exit 1; }
		sleep 0.2
	done
	set -- "$1" "$2" "$root/usr/share"
	case $1 in
	OVMF)
		cp "$3/OVMF/OVMF_VARS_4M.fd" "$tmp/vars"
		firmware="-drive if=pflash,format=raw,readonly=on,file=$3/OVMF/OVMF_CODE_4M.fd -drive if=pflash,format=raw,file=$tmp/vars" ;;
	SeaBIOS)
		firmware="-bios $3/seabios/bios-256k.bin" ;;
	esac
	# shellcheck disable=SC2086
	QEMU_MODULE_DIR=$root/$lib/qemu "$ld" --library-path "$libs" "$root/usr/bin/qemu-system-x86_64" -L "$3/qemu" -L "$3/seabios" -machine q35,memory-backend=m -accel tcg \
		-m 256M -object memory-backend-memfd,id=m,size=256M,share=on -display none -nodefaults -net none -no-reboot $firmware \
		-chardev "socket,id=c,path=$tmp/sock" -device "vhost-user-blk-pci,chardev=c,bootindex=1$2" >"$tmp/vm" 2>&1 &
	vm=$!
	n=0
	while [ $n -lt 600 ] && kill -0 $vm 2>/dev/null && ! { [ "$1" = SeaBIOS ] && [ $n -gt 60 ]; } &&
		! { grep -q legacy "$tmp/said" && [ $n -gt 300 ]; }; do
		n=$((n + 1))
		sleep 0.2
	done
	if kill -0 $vm 2>/dev/null; then
		off='waits'
		kill $vm
		wait $vm 2>/dev/null || true
	elif wait $vm; then
		off='has switched itself off, as startup.nsh on the disk says'
	else
		off='has failed'
	fi
	vm=''
	kill $daemon 2>/dev/null || true
	wait $daemon 2>/dev/null || true
	daemon=''
	legacy=$(grep -c "legacy devices aren't supported" "$tmp/said" || true)
	echo "$1, vhost-user-blk-pci$2:"
	echo "  the machine $off"
	echo "  the daemon says that legacy devices are not supported: $([ "$legacy" = 0 ] && echo no || echo yes)"
}
{
	try OVMF ''
	try OVMF ',disable-legacy=on'
	try SeaBIOS ''
} >"$tmp/seen"

cat >"$tmp/want" <<'END'
OVMF, vhost-user-blk-pci:
  the machine waits
  the daemon says that legacy devices are not supported: yes
OVMF, vhost-user-blk-pci,disable-legacy=on:
  the machine has switched itself off, as startup.nsh on the disk says
  the daemon says that legacy devices are not supported: no
SeaBIOS, vhost-user-blk-pci:
  the machine waits
  the daemon says that legacy devices are not supported: no
END
echo "OVMF 2022.11, QEMU $QEMU (Debian):"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	cat "$tmp/said" "$tmp/vm"
	exit 1
fi
echo "AS DESCRIBED: with OVMF such a disk needs disable-legacy=on"
