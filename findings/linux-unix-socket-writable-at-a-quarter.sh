#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# poll() says of a Unix stream socket that it is not writable while it takes three times as many messages as it has taken yet; and the buffer of
# 208 KiB is full with 278 messages of 12 bytes, 3336 bytes in all. Who waits for POLLOUT waits until three quarters of them are read.
#
#   software   Linux 6.1.192-3 (Debian's linux-image-6.1.0-57-amd64), under Debian 12's QEMU, emulated
#   input      valid: socketpair(AF_UNIX, SOCK_STREAM), non-blocking send() of messages as long as a vhost-user header, as they come, to a peer
#              that does not read; then a peer that reads one at a time
#   expected   a stream of 212992 bytes (SO_SNDBUF) takes some thousands of them; POLLOUT is there as long as send() takes one ("writing is now
#              possible", poll(2)), and comes back with the first room that there is
#   seen       POLLOUT has gone after 70; 208 more are taken, then EAGAIN. One message read: send() takes one again, and poll() waits on.
#              POLLOUT comes back when 209 have been read; who waits for it hears nothing of a peer that has read 200 and waits for an answer
#   and        a message of which one byte is left counts as a whole one. It is the sender's SO_SNDBUF that counts; the receiver's SO_RCVBUF
#              changes nothing
#
# Each send() is a buffer of its own and is charged with its bookkeeping, 768 bytes here; TIOCOUTQ counts so, too. The socket is writable when
# at most a quarter of SO_SNDBUF is charged, but for send() the whole of it may be. Linux 6.18, tried by hand, has the same numbers.
# Why it matters to vhost-pci: a socket's buffer says little about how much waits for a peer that does not read; what waits for a client of the
# control socket is counted and bounded in the daemon itself (daemon/control/control.c).
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
for p in sh mount; do
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
import fcntl, select, socket, struct, termios

SIZE = 12


def writable(s):
    return bool(select.select([], [s], [], 0)[1])


def number(s, what):
    return struct.unpack('i', fcntl.ioctl(s, what, bytes(4)))[0]


def takes(s):
    try:
        return s.send(bytes(SIZE)) == SIZE
    except BlockingIOError:
        return False


def full(rcvbuf=None):
    """A socket that takes no more, its peer; after how many poll() had enough, after how many send()."""
    a, b = socket.socketpair()
    a.setblocking(False)
    if rcvbuf:
        b.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
    n = polled = 0
    while takes(a):
        n += 1
        if not polled and not writable(a):
            polled = n
    return a, b, polled, n


a, b, polled, n = full()
print('FACT SO_SNDBUF %d; messages of %d bytes: after %d not writable for poll(), after %d for send()' % (
    a.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), SIZE, polled, n))
print('FACT then there are %d bytes for the peer (FIONREAD), and %d not read yet of the sender\'s (TIOCOUTQ)' % (
    number(b, termios.FIONREAD), number(a, termios.TIOCOUTQ)))
read = 0
while not writable(a):
    b.recv(SIZE)
    read += 1
    if read in (1, 200):
        again = takes(a)
        if again:
            b.recv(SIZE)
        print('FACT %d read: send() %s, poll() %s' % (read, 'takes one' if again else 'says EAGAIN', 'says POLLOUT' if writable(a) else 'waits'))
print('FACT %d read: poll() says POLLOUT' % read)

a, b, _, n = full(1 << 20)
print('FACT with SO_RCVBUF of 1 MiB at the receiver: %d for send()' % n)

a, b, _, n = full()
b.recv(SIZE - 1)
print('FACT all but one byte of a message read: send() %s' % ('takes one' if takes(a) else 'says EAGAIN'))
b.recv(1)
print('FACT its last byte read: send() %s' % ('takes one' if takes(a) else 'says EAGAIN'))
END
(cd "$g" && find . | "$root/bin/busybox" cpio -o -H newc 2>/dev/null | gzip -1) >"$tmp/initrd"

# ---- run -------------------------------------------------------------------------------------------------------------
QEMU_MODULE_DIR=$root/$lib/qemu timeout 300 "$root/lib64/ld-linux-x86-64.so.2" --library-path "$root/$lib:$root/lib/x86_64-linux-gnu:$root/$lib/pulseaudio" \
	"$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/seabios" -L "$root/usr/share/qemu" -M q35 -accel tcg -cpu max -m 512 \
	-nodefaults -no-user-config -display none -no-reboot -serial stdio -kernel "$root/boot/vmlinuz-${KERNEL#linux-image-}" -initrd "$tmp/initrd" \
	-append 'console=ttyS0 quiet panic=-1' >"$tmp/out" 2>&1 </dev/null || true

tr -d '\r' <"$tmp/out" | sed -n 's/.*FACT //p' >"$tmp/seen"

cat >"$tmp/want" <<'END'
SO_SNDBUF 212992; messages of 12 bytes: after 70 not writable for poll(), after 278 for send()
then there are 3336 bytes for the peer (FIONREAD), and 213504 not read yet of the sender's (TIOCOUTQ)
1 read: send() takes one, poll() waits
200 read: send() takes one, poll() waits
209 read: poll() says POLLOUT
with SO_RCVBUF of 1 MiB at the receiver: 278 for send()
all but one byte of a message read: send() says EAGAIN
its last byte read: send() takes one
END
echo "Linux 6.1.192-3 (Debian):"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	tail -n 20 "$tmp/out"
	exit 1
fi
echo "AS DESCRIBED: a Unix socket is full by the number of messages, and writable for poll() only at a quarter of that"
