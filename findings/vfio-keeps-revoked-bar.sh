#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Linux's VFIO (vfio_iommu_type1) maps the BAR of a device that a program has mmapped into the IOMMU, and keeps that mapping when the
# BAR is taken from the program again: it has no notifier for memory without struct pages (VM_PFNMAP).
#
#   software   Linux 6.1.192-3 (Debian's linux-image-6.1.0-57-amd64), under Debian 12's QEMU, emulated
#   input      valid: two devices in one container; VFIO_IOMMU_MAP_DMA of the mmapped BAR of the second; the second's memory
#              decoding is switched off in its command register
#   expected   what is taken from the program is taken from the device that the program drives: an IOMMU fault, as for any address
#              that is not mapped
#   seen       the program's access is refused (EFAULT, SIGBUS), the device's is not: the IOMMU lets it through to the address where
#              the BAR was, until VFIO_IOMMU_UNMAP_DMA
#
# Nothing lies at that address here, so nothing is touched. Why it matters to vhost-pci: docs/threat-model.md, "Known limits".
#
# Needs apt with Debian 12's lists, 1 GB of space in TMPDIR and about two minutes. Installs nothing on this machine.
set -eu

KERNEL=linux-image-6.1.0-57-amd64
PINNED="$KERNEL=6.1.192-3 qemu-system-x86=1:7.2+dfsg-7+deb12u18+b3 busybox-static=1:1.35.0-4+deb12u1+b1 python3.11=3.11.2-6+deb12u9"

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

# ---- a guest: busybox, Python and the VFIO modules ------------------------------------------------------------------
g=$tmp/guest
mkdir -p "$g/bin" "$g/proc" "$g/sys" "$g/dev" "$g/lib64" "$g/$lib" "$g/lib/x86_64-linux-gnu" "$g/usr/lib" "$g/usr/bin" "$g/m"
cp "$root/bin/busybox" "$g/bin/"
for p in sh mount insmod; do
	ln -s busybox "$g/bin/$p"
done
cp -L "$root/lib64/ld-linux-x86-64.so.2" "$g/lib64/"
for p in libc.so.6 libm.so.6; do
	cp -L "$root/lib/x86_64-linux-gnu/$p" "$g/lib/x86_64-linux-gnu/"
done
cp -L "$root/$lib"/libffi.so.8 "$g/$lib/"
for p in libz.so.1 libexpat.so.1; do
	cp -L "$(find "$root/lib" "$root/usr/lib" -name $p | head -n 1)" "$g/$lib/"
done
cp "$root/usr/bin/python3.11" "$g/usr/bin/"
cp -r "$root/usr/lib/python3.11" "$g/usr/lib/"
for m in virt/lib/irqbypass drivers/vfio/vfio drivers/vfio/vfio_virqfd drivers/vfio/vfio_iommu_type1 drivers/vfio/pci/vfio-pci-core \
	 drivers/vfio/pci/vfio-pci; do
	cp "$root"/lib/modules/*/kernel/"$m.ko" "$g/m/"
done
cat >"$g/init" <<'END'
#!/bin/sh
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
for m in irqbypass vfio vfio_virqfd; do insmod /m/$m.ko; done
insmod /m/vfio_iommu_type1.ko allow_unsafe_interrupts=1
insmod /m/vfio-pci-core.ko; insmod /m/vfio-pci.ko
/usr/bin/python3.11 /main.py
echo end
busybox poweroff -f
END
chmod 755 "$g/init"
cat >"$g/main.py" <<'END'
import ctypes, fcntl, mmap, os, struct, time

PCI = '/sys/bus/pci/devices/'
SET_IOMMU, SET_CONTAINER, GET_DEVICE, GET_REGION, MAP, UNMAP = (0x3b00 + n for n in (102, 104, 106, 108, 113, 114))
IOVA, SIZE, MEMORY, EDU = 0x1000000, 4 << 20, 0x100000, 0x40000


def find(ident):
    return [d for d in os.listdir(PCI) if open(PCI + d + '/device').read().strip() == ident][0]


def put(path, text):
    with open(path, 'w') as f:
        f.write(text)


container = os.open('/dev/vfio/vfio', os.O_RDWR)


def region(device, index):
    b = bytearray(struct.pack('IIIIQQ', 32, 0, index, 0, 0, 0))
    fcntl.ioctl(device, GET_REGION, b, True)
    return struct.unpack('IIIIQQ', b)[5]


def take(ident, first):
    """The device by VFIO."""
    dev = find(ident)
    put(PCI + dev + '/driver_override', 'vfio-pci')
    put('/sys/bus/pci/drivers_probe', dev)
    group = os.open('/dev/vfio/' + os.path.basename(os.readlink(PCI + dev + '/iommu_group')), os.O_RDWR)
    fcntl.ioctl(group, SET_CONTAINER, bytearray(struct.pack('i', container)), True)
    if first:
        fcntl.ioctl(container, SET_IOMMU, 3)
    return fcntl.ioctl(group, GET_DEVICE, bytearray(dev.encode() + b'\0'), True)


def command(device, value):
    os.pwrite(device, struct.pack('<H', value), region(device, 7) + 4)


edu, shm = take('0x11e8', True), take('0x1110', False)
command(edu, 6)
command(shm, 2)
regs = mmap.mmap(edu, 4096, offset=region(edu, 0))
src, dst, count, start = (ctypes.c_uint64.from_buffer(regs, o) for o in (0x80, 0x88, 0x90, 0x98))


def faults():
    fd, n = os.open('/dev/kmsg', os.O_RDONLY | os.O_NONBLOCK), 0
    try:
        while True:
            n += b'fault addr' in os.read(fd, 8192)
    except BlockingIOError:
        os.close(fd)
        return n


def dma(a, b, way):
    """64 bytes from a to b, by the device. How many IOMMU faults that made; more than one counts as one."""
    before = faults()
    src.value, dst.value, count.value, start.value = a, b, 64, way | 1
    while start.value & 1:
        time.sleep(0.01)
    time.sleep(1)
    return min(1, faults() - before)


def give(m, iova, size):
    addr = ctypes.addressof(ctypes.c_char.from_buffer(m))
    fcntl.ioctl(container, MAP, bytearray(struct.pack('IIQQQ', 32, 3, addr, iova, size)), True)


def program():
    try:
        os.write(pipe, view[4096:4104])
        return 'may read the BAR'
    except OSError as e:
        return 'may not read the BAR: ' + os.strerror(e.errno)


mem = mmap.mmap(-1, 4096)
mem[:8] = b'a packet'
give(mem, MEMORY, 4096)
bar = mmap.mmap(shm, SIZE, offset=region(shm, 2))
view, pipe = memoryview(bar), os.pipe()[1]
give(bar, IOVA, SIZE)
dma(MEMORY, EDU, 0)
print('FACT the BAR is there: the program %s, the device: %d faults' % (program(), dma(EDU, IOVA + 4096, 2)))
print('FACT the device wrote there: %r' % bytes(bar[4096:4104]))
command(shm, 0)
print('FACT the BAR is switched off: the program %s, the device: %d faults' % (program(), dma(EDU, IOVA + 4096, 2)))
fcntl.ioctl(container, UNMAP, bytearray(struct.pack('IIQQ', 24, 0, IOVA, SIZE)), True)
print('FACT it is unmapped from the IOMMU: the device: %d faults' % dma(EDU, IOVA + 4096, 2))
os._exit(0)
END
(cd "$g" && find . | "$root/bin/busybox" cpio -o -H newc 2>/dev/null | gzip -1) >"$tmp/initrd"

# ---- run -------------------------------------------------------------------------------------------------------------
QEMU_MODULE_DIR=$root/$lib/qemu timeout 300 "$root/lib64/ld-linux-x86-64.so.2" --library-path "$root/$lib:$root/lib/x86_64-linux-gnu:$root/$lib/pulseaudio" \
	"$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/seabios" -L "$root/usr/share/qemu" -M q35 -accel tcg -cpu max -m 768 \
	-nodefaults -no-user-config -display none -no-reboot -serial stdio -kernel "$root/boot/vmlinuz-${KERNEL#linux-image-}" -initrd "$tmp/initrd" \
	-append 'console=ttyS0 quiet intel_iommu=on panic=-1' -device intel-iommu,intremap=off -device edu,addr=1c.0 \
	-object memory-backend-ram,id=m,size=4M,share=on -device ivshmem-plain,memdev=m,addr=1b.0 \
	>"$tmp/out" 2>&1 </dev/null || true

tr -d '\r' <"$tmp/out" | sed -n 's/.*FACT //p' >"$tmp/seen"
cat >"$tmp/want" <<'END'
the BAR is there: the program may read the BAR, the device: 0 faults
the device wrote there: b'a packet'
the BAR is switched off: the program may not read the BAR: Bad address, the device: 0 faults
it is unmapped from the IOMMU: the device: 1 faults
END
echo "Linux 6.1.192-3 (Debian), vfio_iommu_type1:"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	tail -n 20 "$tmp/out"
	exit 1
fi
echo "AS DESCRIBED: the IOMMU lets a device through to a BAR that was taken from the program, until VFIO_IOMMU_UNMAP_DMA"
