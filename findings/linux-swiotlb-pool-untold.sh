#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Linux on x86-64 with swiotlb=force has a pool through which it copies what devices read and write. If no memory can lie above 4 GiB it
# does not say where that pool is: not in its log, nor anywhere else.
#
#   software   Linux 6.1.192-3 (Debian's linux-image-6.1.0-57-amd64), under Debian 12's QEMU, emulated. Seen with 6.12.118 and 7.3.4, too
#   input      valid: swiotlb=force on the command line of a VM of 384 MiB; once with -m 384M, once with -m 384M,slots=1,maxmem=4G and
#              nothing plugged in
#   expected   "software IO TLB: mapped [mem 0x…-0x…] (64MB)" in the log, both times
#   seen       debugfs tells of 32768 slots both times; the line is there only with maxmem=4G
#
# Why it matters to vhost-pci: docs/howto.md, "Grant mode: the driver VM". guest/grant/pool.c reads that line.
#
# Needs apt with Debian 12's lists, 1 GB of space in TMPDIR and about a minute. Installs nothing on this machine.
set -eu

KERNEL=linux-image-6.1.0-57-amd64
PINNED="$KERNEL=6.1.192-3 qemu-system-x86=1:7.2+dfsg-7+deb12u18+b3 busybox-static=1:1.35.0-4+deb12u1+b1"

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

# ---- a guest that says what its kernel says -----------------------------------------------------------------------------
g=$tmp/guest
mkdir -p "$g/bin" "$g/proc" "$g/sys" "$g/dev"
cp "$root/bin/busybox" "$g/bin/"
ln -s busybox "$g/bin/sh"
cat >"$g/init" <<'END'
#!/bin/sh
busybox mount -t proc none /proc; busybox mount -t sysfs none /sys; busybox mount -t debugfs none /sys/kernel/debug
echo "FACT slots: $(busybox cat /sys/kernel/debug/swiotlb/io_tlb_nslabs)"
busybox dmesg | busybox sed -n 's/.*\(software IO TLB: mapped.*\)/FACT \1/p'
busybox poweroff -f
END
chmod 755 "$g/init"
(cd "$g" && find . | "$root/bin/busybox" cpio -o -H newc 2>/dev/null | gzip -1) >"$tmp/initrd"

# ---- run -------------------------------------------------------------------------------------------------------------
boot() { # MEMORY
	echo "-m $1"
	QEMU_MODULE_DIR=$root/$lib/qemu timeout 300 "$root/lib64/ld-linux-x86-64.so.2" --library-path "$root/$lib:$root/lib/x86_64-linux-gnu:$root/$lib/pulseaudio" \
		"$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/seabios" -L "$root/usr/share/qemu" -M q35 -accel tcg -cpu max -m "$1" \
		-nodefaults -no-user-config -display none -no-reboot -serial stdio -kernel "$root/boot/vmlinuz-${KERNEL#linux-image-}" -initrd "$tmp/initrd" \
		-append 'console=ttyS0 quiet panic=-1 swiotlb=force' >"$tmp/out" 2>&1 </dev/null || true
	tr -d '\r' <"$tmp/out" | sed -n 's/.*FACT /  /p'
}
{ boot 384M; boot 384M,slots=1,maxmem=4G; } >"$tmp/seen"
cat >"$tmp/want" <<'END'
-m 384M
  slots: 32768
-m 384M,slots=1,maxmem=4G
  slots: 32768
  software IO TLB: mapped [mem 0x…-0x…] (64MB)
END
echo "Linux 6.1.192-3 (Debian), swiotlb=force:"
sed 's/^/  /' "$tmp/seen"
sed 's/0x[0-9a-f]*/0x…/g' "$tmp/seen" >"$tmp/plain"
if ! cmp -s "$tmp/want" "$tmp/plain"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/plain" || true
	tail -n 20 "$tmp/out"
	exit 1
fi
echo "AS DESCRIBED: there is a pool both times, and its place is told only where memory can lie above 4 GiB"
