#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# QEMU switches O_NONBLOCK of each descriptor that it is sent over a socket, and so for the sender, too: off over QMP (getfd, add-fd), on in
# ivshmem-doorbell and in qemu-storage-daemon's vhost-user-blk export. The flag is the open file's, and an eventfd has one for all its users.
#
#   software   QEMU and qemu-storage-daemon 7.2 (Debian 1:7.2+dfsg-7+deb12u18+b3)
#   input      valid: two eventfds, one of them made with EFD_NONBLOCK, by each of these ways. No guest runs
#   expected   who passes a descriptor on finds it as it was: the receiver waits with poll() or sets what it wants on files of its own
#   seen       after getfd and add-fd both are blocking: the sender's read() of an empty eventfd, which said EAGAIN before, waits for ever.
#              After ivshmem's and vhost-user's messages both are non-blocking: the sender's thread that waited in read() gets EAGAIN
#   and        a program that receives it by recvmsg() and does no more, and a QEMU that inherits it (-add-fd), change nothing
#
# Why it matters to vhost-pci: the daemon hands signals of its own to QEMU, and one VM's to the other's. It relies on the flag of none that
# anybody else has: daemon/sys/fds.h, daemon/threads/forward.c, lib/engine/queue.h.
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

# ---- who passes eventfds on --------------------------------------------------------------------------------------------
cat >"$tmp/pass.py" <<'END'
import array, fcntl, os, signal, socket, struct, subprocess, sys, time

TMP, SYSTEM, DAEMON = sys.argv[1], sys.argv[2].split('|'), sys.argv[3].split('|')


class Waits(Exception):
    pass


def alarm(*_):
    raise Waits


def pair():
    return os.eventfd(0), os.eventfd(0, os.EFD_NONBLOCK)


def state(fd):
    """The flag, and what a read() of the empty eventfd makes of it."""
    flag = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        os.read(fd, 8)
        does = 'has something'
    except BlockingIOError:
        does = 'EAGAIN'
    except Waits:
        does = 'waits'
    signal.setitimer(signal.ITIMER_REAL, 0)
    return '%s (read() %s)' % ('O_NONBLOCK' if flag else 'blocking', 'says EAGAIN' if does == 'EAGAIN' else does)


def show(way, fds):
    print('%s: the first %s, the second %s' % (way, state(fds[0]), state(fds[1])))


def send(s, data, fds=()):
    s.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))] if fds else [])


def listen(name):
    s = socket.socket(socket.AF_UNIX)
    s.bind(os.path.join(TMP, name))
    s.listen(1)
    s.settimeout(30)
    return s


def connect(name):
    end = time.monotonic() + 30
    while True:
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(30)
        try:
            s.connect(os.path.join(TMP, name))
            return s
        except OSError:
            assert time.monotonic() < end, name
            time.sleep(0.1)


signal.signal(signal.SIGALRM, alarm)
show('as they were made', pair())

fds = pair()
a, b = socket.socketpair()
send(a, b'x', fds)
socket.recv_fds(b, 1, 2)
show('received by recvmsg()', fds)

# ---- QEMU: inherited, an ivshmem server's, by QMP. No guest runs: its signals stay zero.
inherited, doorbells = pair(), pair()
server = listen('ivshmem')
vm = subprocess.Popen(SYSTEM + [
    '-M', 'q35', '-accel', 'tcg', '-m', '64', '-nodefaults', '-no-user-config', '-display', 'none', '-S',
    '-qmp', 'unix:%s,server=on,wait=off' % os.path.join(TMP, 'qmp'),
    '-chardev', 'socket,id=c,path=' + os.path.join(TMP, 'ivshmem'), '-device', 'ivshmem-doorbell,chardev=c,vectors=2',
    '-add-fd', 'fd=%d,set=1' % inherited[0], '-add-fd', 'fd=%d,set=2' % inherited[1]], pass_fds=inherited)
try:
    s = server.accept()[0]
    mem = os.memfd_create('mem')
    os.ftruncate(mem, 1 << 20)
    for n in 0, 1:						# version, own id; then the memory, a peer's doorbells
        s.sendall(struct.pack('<q', n))
    for n, fd in ((-1, mem), (2, doorbells[0]), (2, doorbells[1])):
        send(s, struct.pack('<q', n), [fd])
    qmp = connect('qmp')
    answers = qmp.makefile('r')
    answers.readline()

    def execute(text, fds=()):
        send(qmp, text.encode(), fds)
        answer = answers.readline()
        assert answer.startswith('{"return"'), answer

    execute('{"execute": "qmp_capabilities"}')
    for way, text in (('getfd', '{"execute": "getfd", "arguments": {"fdname": "f%d"}}'), ('add-fd', '{"execute": "add-fd", "arguments": {"fdset-id": 1%d}}')):
        fds = pair()
        for n in 0, 1:
            execute(text % n, [fds[n]])
        show('QEMU, QMP %s' % way, fds)
    show('QEMU, inherited, -add-fd', inherited)
    show('QEMU, doorbells of ivshmem-doorbell', doorbells)
finally:
    vm.kill()
    vm.wait()

# ---- qemu-storage-daemon: a vhost-user front-end's
daemon = subprocess.Popen(DAEMON + ['--blockdev', 'driver=null-co,node-name=n,size=1048576', '--export',
                                    'vhost-user-blk,id=x,node-name=n,addr.type=unix,addr.path=' + os.path.join(TMP, 'blk')])
try:
    s = connect('blk')

    def message(req, body=b'', fds=()):
        send(s, struct.pack('<III', req, 1, len(body)) + body, fds)

    def features():
        message(1)
        return s.recv(struct.unpack('<III', s.recv(12, socket.MSG_WAITALL))[2], socket.MSG_WAITALL)

    features()
    message(3)
    message(2, struct.pack('<Q', 1 << 32))
    for name, req in ('SET_VRING_CALL', 13), ('SET_VRING_ERR', 14):
        fds = pair()
        for fd in fds:
            message(req, struct.pack('<Q', 0), [fd])
        features()						# they are handled when it is answered
        for fd in fds:						# it may have signalled
            os.eventfd_write(fd, 1)
            os.eventfd_read(fd)
        show('qemu-storage-daemon, %s' % name, fds)
finally:
    daemon.kill()
    daemon.wait()
END

# ---- run -------------------------------------------------------------------------------------------------------------
export QEMU_MODULE_DIR="$root/$lib/qemu"
run="$ld|--library-path|$libs"
PYTHONHOME=$root/usr timeout 120 "$ld" --library-path "$libs" "$root/usr/bin/python3.11" -B "$tmp/pass.py" "$tmp" \
	"$run|$root/usr/bin/qemu-system-x86_64|-L|$root/usr/share/seabios|-L|$root/usr/share/qemu" "$run|$root/usr/bin/qemu-storage-daemon" \
	>"$tmp/seen" 2>"$tmp/out" || true

cat >"$tmp/want" <<'END'
as they were made: the first blocking (read() waits), the second O_NONBLOCK (read() says EAGAIN)
received by recvmsg(): the first blocking (read() waits), the second O_NONBLOCK (read() says EAGAIN)
QEMU, QMP getfd: the first blocking (read() waits), the second blocking (read() waits)
QEMU, QMP add-fd: the first blocking (read() waits), the second blocking (read() waits)
QEMU, inherited, -add-fd: the first blocking (read() waits), the second O_NONBLOCK (read() says EAGAIN)
QEMU, doorbells of ivshmem-doorbell: the first O_NONBLOCK (read() says EAGAIN), the second O_NONBLOCK (read() says EAGAIN)
qemu-storage-daemon, SET_VRING_CALL: the first O_NONBLOCK (read() says EAGAIN), the second O_NONBLOCK (read() says EAGAIN)
qemu-storage-daemon, SET_VRING_ERR: the first O_NONBLOCK (read() says EAGAIN), the second O_NONBLOCK (read() says EAGAIN)
END
echo "QEMU ${QEMU#*:} (Debian):"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	tail -n 20 "$tmp/out"
	exit 1
fi
echo "AS DESCRIBED: O_NONBLOCK of what is sent to QEMU is QEMU's from then on"
