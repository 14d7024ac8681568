#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# vhost-net on memory with a protection key (pkey_mprotect): whether it works hangs on what the thread that called VHOST_SET_OWNER was
# allowed at that moment. A program that opens its memory later finds vhost-net dead, for as long as the device lives. On Linux 6.1 it never works.
#
#   software   Linux 6.1.192-3 (Debian's linux-image-6.1.0-57-amd64) and 6.12.118-1 (linux-image-6.12.118+deb13-amd64), under Debian 12's
#              QEMU, emulated
#   input      valid: a transmit ring and a frame in memory of a key, vhost-net with a tap. The one thread that there is has access to the
#              key (pkey_set), or has none just at VHOST_SET_OWNER, an ioctl that has nothing to do with memory
#   expected   one of these: the kernel's worker is not bound by a user's keys, as a device is not; or it is bound by those of the thread for
#              which it works, which are what they are now, as in read() and write()
#   seen       6.12: not served if there was no access at SET_OWNER, although there is ever since. 6.1: not served at all. The signal of
#              VHOST_SET_VRING_ERR is the only word of it: no ioctl fails
#   and        without a key all are served, on both
#
# Up to 6.3 the worker is a kernel thread, with the rights that each program starts with (access to key 0 only); since 6.4 it is a thread
# like those that clone() makes of the caller, and has its PKRU register from it, once. pkeys(7) speaks of neither.
# Why it matters to vhost-pci: a device VM's program keeps the driver VM's memory behind such a key (lib/vhostpci/gate.c); what works for it
# in the kernel has to be made inside the gate, or cannot be used.
#
# Needs apt with Debian 12's lists, 2 GB of space in TMPDIR and about two minutes. Installs nothing on this machine.
set -eu

KERNEL=linux-image-6.1.0-57-amd64
PINNED="$KERNEL=6.1.192-3 qemu-system-x86=1:7.2+dfsg-7+deb12u18+b3 busybox-static=1:1.35.0-4+deb12u1+b1 python3.11=3.11.2-6+deb12u9"
NEWER=linux-image-6.12.118+deb13-amd64
NEWER_PINNED=$NEWER=6.12.118-1
SUITE=trixie-security

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT INT TERM
root=$tmp/root
newer=$tmp/newer
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

# ---- the newer kernel, and nothing that it needs --------------------------------------------------------------------
# shellcheck disable=SC2016
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 'Origin: Debian' | grep security | head -n 1)
[ -n "$mirror" ] || { echo "apt knows no mirror of Debian's security updates: run apt-get update"; exit 1; }
mkdir -p "$tmp/apt/archives/partial" "$tmp/apt/lists/partial" "$newer"
echo "deb $mirror $SUITE main" >"$tmp/sources.list"
cat >"$tmp/newer.conf" <<END
Dir::Etc::SourceList "$tmp/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State "$tmp/apt/state";
Dir::State::status "$tmp/apt/status";
Dir::State::Lists "$tmp/apt/lists";
Dir::Cache "$tmp/apt";
APT::Sandbox::User "";
Acquire::Languages "none";
END
(export APT_CONFIG="$tmp/newer.conf"; cd "$tmp" && apt-get update -qq && apt-get download -qq "$NEWER_PINNED") >"$tmp/apt.log" 2>&1 ||
	{ cat "$tmp/apt.log"; exit 1; }
dpkg-deb -x "$tmp"/linux-image-*.deb "$newer"

# ---- a guest: busybox, Python and vhost-net ---------------------------------------------------------------------------
g=$tmp/guest
mkdir -p "$g/bin" "$g/proc" "$g/sys" "$g/dev" "$g/lib64" "$g/$lib" "$g/lib/x86_64-linux-gnu" "$g/usr/lib" "$g/usr/bin" "$g/m"
cp "$root/bin/busybox" "$g/bin/"
for p in sh mount insmod ip; do
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
cat >"$g/init" <<'END'
#!/bin/sh
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
for m in tun tap vhost_iotlb vhost vhost_net; do insmod /m/$m.ko; done
/usr/bin/python3.11 /main.py
busybox poweroff -f
END
chmod 755 "$g/init"
cat >"$g/main.py" <<'END'
import ctypes, fcntl, mmap, os, struct, time

libc = ctypes.CDLL(None)
SIZE, AVAIL, USED, FRAME = 1 << 16, 0x1000, 0x2000, 0x3000
ACCESS, NONE = 0, 1			# NONE: PKEY_DISABLE_ACCESS
KEY = libc.pkey_alloc(0, ACCESS)
assert KEY > 0


def ioctl(fd, nr, fmt='', *values):
    """One of vhost's, which all write."""
    arg = struct.pack('<' + fmt, *values)
    fcntl.ioctl(fd, (1 << 30 | (40 if nr == 0x11 else min(len(arg), 8)) << 16 if arg else 0) | 0xaf << 8 | nr, arg if arg else 0)


def served(key, at_owner):
    m = mmap.mmap(-1, SIZE)
    at = ctypes.addressof(ctypes.c_char.from_buffer(m))
    m[0:16] = struct.pack('<QIHH', at + FRAME, 12 + 60, 0, 0)
    m[AVAIL:AVAIL + 6] = struct.pack('<HHH', 0, 1, 0)
    m[FRAME + 12:FRAME + 26] = bytes.fromhex('ffffffffffff02000000000188b5')
    assert libc.pkey_mprotect(ctypes.c_void_p(at), ctypes.c_size_t(SIZE), 3, key) == 0
    tap = os.open('/dev/net/tun', os.O_RDWR)
    fcntl.ioctl(tap, 0x400454ca, struct.pack('16sH22x', b'tap0', 0x5002))	# TUNSETIFF: IFF_TAP, IFF_NO_PI, IFF_VNET_HDR
    fcntl.ioctl(tap, 0x400454d8, struct.pack('i', 12))				# TUNSETVNETHDRSZ
    os.system('ip link set tap0 up')
    kick, call, err = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3))
    net = os.open('/dev/vhost-net', os.O_RDWR)

    libc.pkey_set(KEY, at_owner)
    ioctl(net, 0x01)						# SET_OWNER
    libc.pkey_set(KEY, ACCESS)
    ioctl(net, 0x00, 'Q', 1 << 32)				# SET_FEATURES
    ioctl(net, 0x03, 'IIQQQQ', 1, 0, at, SIZE, at, 0)		# SET_MEM_TABLE
    ioctl(net, 0x10, 'II', 1, 16)				# SET_VRING_NUM, BASE, ADDR, KICK, CALL, ERR
    ioctl(net, 0x12, 'II', 1, 0)
    ioctl(net, 0x11, 'IIQQQQ', 1, 0, at, at + USED, at + AVAIL, 0)
    for nr, fd in (0x20, kick), (0x21, call), (0x22, err):
        ioctl(net, nr, 'Ii', 1, fd)
    ioctl(net, 0x30, 'Ii', 1, tap)				# NET_SET_BACKEND
    os.eventfd_write(kick, 1)
    time.sleep(2)

    used, = struct.unpack('<H', m[USED + 2:USED + 4])
    try:
        os.eventfd_read(err)
        error = True
    except BlockingIOError:
        error = False
    for fd in net, tap, kick, call, err:
        os.close(fd)
    return {(1, False): 'served', (0, True): 'not served, an error is signalled'}.get((used, error), 'used %d, error %s' % (used, error))


for key in 0, KEY:
    for o in ACCESS, NONE:
        print('FACT memory with%s key, SET_OWNER with%s access: %s' % ('out' * (not key), 'out' * o, served(key, o)))
os._exit(0)
END

# ---- run -------------------------------------------------------------------------------------------------------------
boot() { # WHERE THE KERNEL IS, ITS RELEASE
	echo "Linux $2"
	for m in drivers/net/tun drivers/net/tap drivers/vhost/vhost_iotlb drivers/vhost/vhost drivers/vhost/vhost_net; do
		f=$(find "$1" -path "*/kernel/$m.ko*")
		case $f in
		*.xz) "$root/bin/busybox" xz -dc "$f" >"$g/m/${m##*/}.ko" ;;
		*) cp "$f" "$g/m/" ;;
		esac
	done
	(cd "$g" && find . | "$root/bin/busybox" cpio -o -H newc 2>/dev/null | gzip -1) >"$tmp/initrd"
	QEMU_MODULE_DIR=$root/$lib/qemu timeout 300 "$root/lib64/ld-linux-x86-64.so.2" --library-path "$root/$lib:$root/lib/x86_64-linux-gnu:$root/$lib/pulseaudio" \
		"$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/seabios" -L "$root/usr/share/qemu" -M q35 -accel tcg -cpu max -m 768 \
		-nodefaults -no-user-config -display none -no-reboot -serial stdio -kernel "$1/boot/vmlinuz-$2" -initrd "$tmp/initrd" \
		-append 'console=ttyS0 quiet panic=-1' >"$tmp/out" 2>&1 </dev/null || true
	tr -d '\r' <"$tmp/out" | sed -n 's/.*FACT /  /p'
}
{ boot "$root" "${KERNEL#linux-image-}"; boot "$newer" "${NEWER#linux-image-}"; } >"$tmp/seen"

cat >"$tmp/want" <<'END'
Linux 6.1.0-57-amd64
  memory without key, SET_OWNER with access: served
  memory without key, SET_OWNER without access: served
  memory with key, SET_OWNER with access: not served, an error is signalled
  memory with key, SET_OWNER without access: not served, an error is signalled
Linux 6.12.118+deb13-amd64
  memory without key, SET_OWNER with access: served
  memory without key, SET_OWNER without access: served
  memory with key, SET_OWNER with access: served
  memory with key, SET_OWNER without access: not served, an error is signalled
END
echo "vhost-net on Debian's kernels:"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	tail -n 20 "$tmp/out"
	exit 1
fi
echo "AS DESCRIBED: vhost-net needs access at VHOST_SET_OWNER, whatever comes later; on 6.1 it never works"
