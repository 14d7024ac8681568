#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# A Linux guest on a disk of qemu-storage-daemon (vhost-user-blk) never flushes: fsync() succeeds, and the daemon is not asked for it.
# The daemon's config space says "write-through" (wce = 0) from the start, while its export caches writes (writethrough=off, the
# default); Linux negotiates VIRTIO_BLK_F_CONFIG_WCE, believes the field and leaves flushes out.
#
#   software   qemu-storage-daemon and QEMU 7.2 (Debian 1:7.2+dfsg-7+deb12u18+b3), Linux 6.1.192-3 (Debian), emulated
#   input      valid: an export with nothing but writable=on, `-device vhost-user-blk-pci`, a guest that writes and calls fsync
#   expected   wce is 1 while writes are cached, so that fsync becomes a flush; or wce is 0 and each write is made stable before it
#              completes: virtio 1.2, 5.2.6.2, "a write becomes stable", cases 2 and 3
#   seen       neither, until the guest has *written* the field: then "write through", the value that stood there all the time, makes
#              the daemon sync each write itself, and "write back" makes fsync a flush. QEMU's own virtio-blk says "write back"
#
# What reached the disk is read from the daemon's system calls (strace).
#
# The daemon of QEMU 10.0.13 and 11.1.3 (Debian), tried by hand with a scripted front-end, says 0 and caches, too.
# Why it matters to vhost-pci: a device VM that serves a disk with this daemon looks right in every test that loses no page cache.
# The remedy is seen here, too: without VIRTIO_BLK_F_CONFIG_WCE (config-wce=off) Linux goes by VIRTIO_BLK_F_FLUSH.
#
# Needs apt with Debian 12's lists, 1 GB of space in TMPDIR and about two minutes. Installs nothing on this machine.
set -eu

KERNEL=linux-image-6.1.0-57-amd64
QEMU=1:7.2+dfsg-7+deb12u18+b3
PINNED="$KERNEL=6.1.192-3 qemu-system-x86=$QEMU qemu-system-common=$QEMU busybox-static=1:1.35.0-4+deb12u1+b1 strace=6.1-0.1"

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
rm -rf "$tmp/apt/archives"

ld=$root/lib64/ld-linux-x86-64.so.2
libs=$root/$lib:$root/lib/x86_64-linux-gnu:$root/$lib/pulseaudio

# ---- a guest: busybox and the virtio modules -------------------------------------------------------------------------
g=$tmp/guest
mkdir -p "$g/bin" "$g/proc" "$g/sys" "$g/dev" "$g/m"
cp "$root/bin/busybox" "$g/bin/"
for p in sh mount insmod dd cat; do
	ln -s busybox "$g/bin/$p"
done
for m in virtio/virtio virtio/virtio_ring virtio/virtio_pci_modern_dev virtio/virtio_pci_legacy_dev virtio/virtio_pci block/virtio_blk; do
	cp "$root"/lib/modules/*/kernel/drivers/"$m.ko" "$g/m/"
done
cat >"$g/init" <<'END'
#!/bin/sh
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
for m in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do insmod /m/$m.ko; done
disk()	# of the PCI device
{
	set -- /sys/bus/pci/devices/0000:00:$1.0/virtio*/block/*
	echo "${1##*/}"
}
put()	# a page, and call fsync
{
	dd if=/dev/zero of=/dev/$d bs=4096 count=1 seek=$1 oflag=direct conv=fsync 2>/dev/null && echo "FACT page $1 is written and fsync succeeds"
}
echo "FACT QEMU's own virtio-blk: $(cat /sys/block/"$(disk 1b)"/cache_type)"
d=$(disk 1c)
echo "FACT vhost-user-blk of the daemon: $(cat /sys/block/$d/cache_type)"
put 1
mode()
{
	echo "$1" >/sys/block/$d/cache_type
	echo "FACT the guest sets: $(cat /sys/block/$d/cache_type)"
}
mode 'write back'
mode 'write through'
put 2
mode 'write back'
put 3
put 4
d=$(disk 1d)
echo "FACT vhost-user-blk of the daemon, config-wce=off: $(cat /sys/block/$d/cache_type)"
put 5
put 6
busybox poweroff -f
END
chmod 755 "$g/init"
(cd "$g" && find . | "$root/bin/busybox" cpio -o -H newc 2>/dev/null | gzip -1) >"$tmp/initrd"

# ---- run -------------------------------------------------------------------------------------------------------------
truncate -s 1M "$tmp/disk.a" "$tmp/disk.b"
"$ld" --library-path "$libs" "$root/usr/bin/strace" -f -y -o "$tmp/calls" -e trace=pwrite64,pwritev,fdatasync,fsync \
	"$ld" --library-path "$libs" "$root/usr/bin/qemu-storage-daemon" \
	--pidfile "$tmp/pid" --blockdev driver=file,node-name=a,filename="$tmp/disk.a" \
	--blockdev driver=file,node-name=b,filename="$tmp/disk.b" \
	--export vhost-user-blk,id=xa,node-name=a,addr.type=unix,addr.path="$tmp/sock.a",writable=on \
	--export vhost-user-blk,id=xb,node-name=b,addr.type=unix,addr.path="$tmp/sock.b",writable=on >"$tmp/out.daemon" 2>&1 &
tracer=$!
n=0
until [ -s "$tmp/pid" ]; do
	n=$((n + 1))
	[ $n -lt 100 ] || { cat "$tmp/out.daemon"; exit 1; }
	sleep 0.2
done
daemon=$(cat "$tmp/pid")

QEMU_MODULE_DIR=$root/$lib/qemu timeout 300 "$ld" --library-path "$libs" "$root/usr/bin/qemu-system-x86_64" \
	-L "$root/usr/share/seabios" -L "$root/usr/share/qemu" -M q35,memory-backend=ram -accel tcg -cpu max -m 256 \
	-object memory-backend-memfd,id=ram,size=256M,share=on -nodefaults -no-user-config -display none -no-reboot -serial stdio \
	-kernel "$root/boot/vmlinuz-${KERNEL#linux-image-}" -initrd "$tmp/initrd" -append 'console=ttyS0 quiet panic=-1' \
	-chardev socket,id=a,path="$tmp/sock.a" -device vhost-user-blk-pci,chardev=a,num-queues=1,vectors=0,addr=1c.0 \
	-chardev socket,id=b,path="$tmp/sock.b" -device vhost-user-blk-pci,chardev=b,num-queues=1,vectors=0,addr=1d.0,config-wce=off \
	-blockdev driver=null-co,node-name=null -device virtio-blk-pci,drive=null,vectors=0,addr=1b.0 >"$tmp/out" 2>&1 </dev/null || true

# Each page in the order in which it was written, and what followed before the next; the last page of a disk is no evidence, as the
# end of a session may flush.
tr -d '\r' <"$tmp/out" | sed -n 's/.*FACT //p' >"$tmp/seen"
for d in a b; do
	grep "<$tmp/disk.$d>" "$tmp/calls" | awk -v disk=$d '
		function tell() { if (page) printf "disk %s, page %d: %s\n", disk, page, synced ? "fdatasync" : "nothing makes it stable" }
		/ f(data)?sync\(/ { synced = 1; next }
		{ tell(); sub(/\) *= .*/, ""); sub(/.*, /, ""); page = $0 / 4096; synced = 0 }' >>"$tmp/seen"
done

cat >"$tmp/want" <<'END'
QEMU's own virtio-blk: write back
vhost-user-blk of the daemon: write through
page 1 is written and fsync succeeds
the guest sets: write back
the guest sets: write through
page 2 is written and fsync succeeds
the guest sets: write back
page 3 is written and fsync succeeds
page 4 is written and fsync succeeds
vhost-user-blk of the daemon, config-wce=off: write back
page 5 is written and fsync succeeds
page 6 is written and fsync succeeds
disk a, page 1: nothing makes it stable
disk a, page 2: fdatasync
disk a, page 3: fdatasync
disk b, page 5: fdatasync
END
echo "qemu-storage-daemon and QEMU ${QEMU#*:} (Debian), Linux 6.1.192-3 (Debian):"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	tail -n 20 "$tmp/out"
	exit 1
fi
echo "AS DESCRIBED: the guest is told write-through, the daemon caches, and fsync makes nothing stable until the guest has set the mode"
