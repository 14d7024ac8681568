#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Linux releases the files of a process that ends from the highest descriptor to the lowest, and those of one close_range() or exec as well.
# close(), called for one after the other, releases them at once and so in the order of the calls.
#
#   software   Linux 6.1.192-3 (Debian's linux-image-6.1.0-57-amd64), under Debian 12's QEMU, emulated
#   input      valid: a process opens the files a, b, c, d and e; inotify tells another one of each file's last close (IN_CLOSE_WRITE)
#   expected   one way for all: in the order of the descriptors, in which the kernel goes through the table (close_files(), close_range())
#   seen       close() of each: a b c d e. close_range(), exit, SIGKILL, close-on-exec at exec: e d c b a
#   and        dup2() puts a file where another is, and then: it is the number that counts, not when it was opened
#
# The kernel goes through the table upwards, but the last put of a file only queues its release for when the task leaves the kernel, and what is
# queued last is done first. Nothing promises an order; still a program's first descriptors, mostly the sockets that it listens on and its lock
# files, live longest: peers see their connections end while a new connect() finds the socket of the old process listening, and is reset
# then. 6.12.118 (Debian 13), tried by hand, does the same.
# Why it matters to vhost-pci: the daemon that took over saw the old one's end on one socket and found another one still in use. Now the old
# one closes all others itself, before it ends (daemon/sys/fds.h, daemon/control/upgrade.c).
#
# Needs apt with Debian 12's lists, 1 GB of space in TMPDIR and about a minute. Installs nothing on this machine.
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
rm -rf "$tmp/apt/archives"

# ---- a guest: busybox and Python -------------------------------------------------------------------------------------
g=$tmp/guest
mkdir -p "$g/bin" "$g/proc" "$g/sys" "$g/dev" "$g/tmp" "$g/lib64" "$g/$lib" "$g/lib/x86_64-linux-gnu" "$g/usr/lib" "$g/usr/bin"
cp "$root/bin/busybox" "$g/bin/"
for p in sh mount true; do
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
/usr/bin/python3.11 /main.py
busybox poweroff -f
END
chmod 755 "$g/init"
cat >"$g/main.py" <<'END'
import ctypes, os, struct, time

libc = ctypes.CDLL(None)
DIR, IN_CLOSE_WRITE = '/tmp/', 8
watch = libc.inotify_init()
assert libc.inotify_add_watch(watch, DIR.encode(), IN_CLOSE_WRITE) > 0


def closed():
    names, events = [], os.read(watch, 65536)
    while events:
        size, = struct.unpack('I', events[12:16])
        names.append(events[16:16 + size].rstrip(b'\0').decode())
        events = events[16 + size:]
    return ' '.join(names)


def each(fds):
    for fd in fds:
        os.close(fd)


def moved(fds):
    """The first one to the highest number."""
    os.dup2(fds[0], fds[-1] + 1)
    os.close(fds[0])
    os._exit(0)


def killed(fds):
    os.kill(os.getpid(), 9)
    time.sleep(10)


for way, does in (('close() of each', each),
                  ('close_range()', lambda fds: libc.close_range(fds[0], fds[-1], 0)),
                  ('exit', lambda fds: os._exit(0)),
                  ('SIGKILL', killed),
                  ('exec', lambda fds: os.execv('/bin/true', ['true'])),
                  ('a moved to the highest number by dup2(), exit', moved)):
    child = os.fork()
    if not child:
        does([os.open(DIR + name, os.O_CREAT | os.O_WRONLY) for name in 'abcde'])
        os._exit(0)
    os.waitpid(child, 0)
    print('FACT %s: %s' % (way, closed()))
os._exit(0)
END
(cd "$g" && find . | "$root/bin/busybox" cpio -o -H newc 2>/dev/null | gzip -1) >"$tmp/initrd"

# ---- run -------------------------------------------------------------------------------------------------------------
QEMU_MODULE_DIR=$root/$lib/qemu timeout 300 "$root/lib64/ld-linux-x86-64.so.2" --library-path "$root/$lib:$root/lib/x86_64-linux-gnu:$root/$lib/pulseaudio" \
	"$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/seabios" -L "$root/usr/share/qemu" -M q35 -accel tcg -cpu max -m 512 \
	-nodefaults -no-user-config -display none -no-reboot -serial stdio -kernel "$root/boot/vmlinuz-${KERNEL#linux-image-}" -initrd "$tmp/initrd" \
	-append 'console=ttyS0 quiet panic=-1' >"$tmp/out" 2>&1 </dev/null || true

tr -d '\r' <"$tmp/out" | sed -n 's/.*FACT //p' >"$tmp/seen"
cat >"$tmp/want" <<'END'
close() of each: a b c d e
close_range(): e d c b a
exit: e d c b a
SIGKILL: e d c b a
exec: e d c b a
a moved to the highest number by dup2(), exit: a e d c b
END
echo "Linux 6.1.192-3 (Debian):"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	tail -n 20 "$tmp/out"
	exit 1
fi
echo "AS DESCRIBED: the highest descriptor goes first, unless close() is called for each"
