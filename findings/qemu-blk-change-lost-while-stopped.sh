#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# A vhost-user-blk back-end whose config changes while the guest's driver is not up cannot get it through to QEMU: told of nothing QEMU asks for
# nothing, and told by the back-end's message it says "done" and does nothing. The guest has the capacity of the time when QEMU connected.
#
#   software   QEMU 7.2 (Debian 1:7.2+dfsg-7+deb12u18+b3), machine q35, emulated. No guest runs: a driver's accesses come by QEMU's qtest
#              protocol
#   input      valid: a back-end with CONFIG, BACKEND_REQ and REPLY_ACK, whose capacity grows before DRIVER_OK; then
#              VHOST_USER_BACKEND_CONFIG_CHANGE_MSG that wants an answer, before DRIVER_OK and after it, with other fields, too
#   expected   a change without a word is in order, as a device whose rings are stopped is to send nothing (vhost-user, "Suspended device
#              state"): QEMU reads the config when the driver starts, or each time that the driver reads it. Where a message comes all the same,
#              QEMU reads it then (CONFIG_CHANGE_MSG: the front-end sends GET_CONFIG for the updated content), or the answer is not 0
#   seen       no GET_CONFIG, neither for the message nor when the driver starts, and the answer is 0. After DRIVER_OK GET_CONFIG comes for each
#              message; of what it brings the guest sees the capacity alone, beside seg_max, blk_size and geometry of the start. If the capacity
#              is the same, it sees nothing, and there is no interrupt. Each answer is 0
#   and        the same message with the same config, once more after DRIVER_OK, brings the capacity that was lost before
#
# QEMU answers the guest from a copy. A disk that grows while its VM is in the firmware's menu, or between firmware and kernel, has not grown
# for that VM. QEMU 11.1.3 (Debian), tried by hand, takes all fields after DRIVER_OK, and loses a change before it as 7.2 does.
# Why it matters to vhost-pci: what has changed meanwhile is told when the first ring runs (daemon/front/vdev_config.c).
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

# ---- a back-end, and a driver ------------------------------------------------------------------------------------------
cat >"$tmp/both.py" <<'END'
import os, select, socket, struct, subprocess, sys, time

TMP, SYSTEM = sys.argv[1], sys.argv[2:]
BAR, SLOT = 0xe0000000, 5
FEATURES = 1 << 32 | 1 << 30 | 1 << 6 | 1 << 4 | 1 << 2			# VERSION_1, protocol features; BLK_SIZE, GEOMETRY, SEG_MAX
PROTOCOL = 1 << 9 | 1 << 5 | 1 << 3 | 1					# CONFIG, BACKEND_REQ, REPLY_ACK, MQ


def config(capacity, seg_max=126, blk_size=512, cylinders=2):
    return struct.pack('<QIIHBBIBBHIBBH', capacity, 0, seg_max, cylinders, 16, 63, blk_size, 0, 0, 0, 0, 0, 0, 1).ljust(60, b'\0')

class Qemu:
    """Its back-end is served whenever an answer of qtest is waited for."""
    def __init__(self, *devices):
        paths = [os.path.join(TMP, n) for n in ('vhost', 'qtest')]
        listeners = []
        for p in paths:
            s = socket.socket(socket.AF_UNIX)
            s.bind(p)
            s.listen(1)
            s.settimeout(30)
            listeners.append(s)
        self.p = subprocess.Popen(SYSTEM + [
            '-M', 'q35,memory-backend=ram', '-accel', 'tcg', '-bios', os.path.join(TMP, 'bios'), '-m', '64',
            '-object', 'memory-backend-memfd,id=ram,size=64M,share=on', '-nodefaults', '-no-user-config', '-display', 'none',
            '-qtest', 'unix:' + paths[1], '-qtest-log', 'none', '-chardev', 'socket,id=c,path=' + paths[0], *devices])
        self.log, self.buf, self.config = [], b'', config(2048)
        self.back = listeners[0].accept()[0]
        listeners[1].settimeout(0)
        end = time.monotonic() + 30
        while True:
            assert time.monotonic() < end, 'no qtest'
            r = select.select([self.back, listeners[1]], [], [], 1)[0]
            if self.back in r:
                self.serve()
            if listeners[1] in r:
                self.qtest = listeners[1].accept()[0]
                break
        for p in paths:
            os.unlink(p)

    def serve(self):
        head, fds, _, _ = socket.recv_fds(self.back, 12, 16)
        req, flags, size = struct.unpack('<III', head)
        body = self.back.recv(size, socket.MSG_WAITALL) if size else b''
        if req == 21:						# SET_BACKEND_REQ_FD
            self.asks = socket.socket(fileno=fds[0])
        elif req == 24:
            self.log.append('GET_CONFIG')
        answer = {1: struct.pack('<Q', FEATURES), 11: body, 15: struct.pack('<Q', PROTOCOL), 17: struct.pack('<Q', 1),
                  24: body[:12] + self.config[:size - 12]}.get(req, bytes(8) if flags & 8 else None)
        if answer is not None:
            self.back.sendall(struct.pack('<III', req, 5, len(answer)) + answer)

    def said(self):
        """What has come since the last time, when no more comes."""
        while select.select([self.back], [], [], 1)[0]:
            self.serve()
        log, self.log = self.log, []
        return ', '.join(log) or 'nothing'

    def cmd(self, text):
        self.qtest.sendall(text.encode() + b'\n')
        end = time.monotonic() + 30
        while b'\n' not in self.buf:
            assert time.monotonic() < end, text
            r = select.select([self.back, self.qtest], [], [], 1)[0]
            if self.back in r:
                self.serve()
            if self.qtest in r:
                self.buf += self.qtest.recv(4096)
        line, _, self.buf = self.buf.partition(b'\n')
        assert line.startswith(b'OK'), line
        return line.split()[1:]

    def put(self, size, at, value):
        self.cmd('write%s %#x %#x' % (size, at, value))

    def get(self, size, at):
        return int(self.cmd('read%s %#x' % (size, at))[0], 16)

    def pci(self, reg, value):
        self.cmd('outl 0xcf8 %#x' % (1 << 31 | SLOT << 11 | reg))
        self.cmd('outl 0xcfc %#x' % value)

    def queue(self, index, ring):
        self.put('w', BAR + 0x16, index)
        self.put('w', BAR + 0x18, 16)
        for reg, at in (0x20, 0), (0x28, 0x1000), (0x30, 0x2000):
            self.put('l', BAR + reg, ring + at)
            self.put('l', BAR + reg + 4, 0)
        self.put('w', BAR + 0x1c, 1)

    def change(self, what, new):
        """The back-end's message; what comes of it."""
        self.config = new
        self.asks.sendall(struct.pack('<III', 2, 1 | 8, 0))	# CONFIG_CHANGE_MSG, to be answered
        end = time.monotonic() + 30
        while not select.select([self.asks], [], [], 0)[0]:
            assert time.monotonic() < end, 'no answer'
            if select.select([self.back, self.asks], [], [], 1)[0] == [self.back]:
                self.serve()
        answer, = struct.unpack('<12xQ', self.asks.recv(20, socket.MSG_WAITALL))
        print('%s: the back-end gets %s, and %d for an answer' % (what, self.said(), answer))
        self.sees()

    def sees(self):
        told = 'interrupt' if self.get('b', BAR + 0x1000) & 2 else 'no interrupt'
        print('  the guest sees: capacity %d, seg_max %d, blk_size %d, cylinders %d; %s' % (
            self.get('q', BAR + 0x2000), self.get('l', BAR + 0x200c), self.get('l', BAR + 0x2014), self.get('w', BAR + 0x2010), told))


with open(os.path.join(TMP, 'bios'), 'wb') as f:
    f.write(b'\xf4' * 65536)	# the CPU halts
q = Qemu('-device', 'vhost-user-blk-pci,chardev=c,addr=%d,num-queues=1,disable-legacy=on' % SLOT)
try:
    for reg, value in (0x20, BAR), (0x24, 0), (0x04, 6):
        q.pci(reg, value)
    q.said()
    print('at first:')
    q.sees()
    q.config = config(3072)
    print('another capacity: the back-end gets', q.said())
    q.sees()
    q.change('one more, with the message', config(4096))
    q.put('b', BAR + 0x14, 3)
    for i in 0, 1:
        q.put('l', BAR, i)
        q.put('l', BAR + 8, i)
        q.put('l', BAR + 12, q.get('l', BAR + 4) & FEATURES >> 32 * i & 0xffffffff)
    q.put('b', BAR + 0x14, 11)
    q.queue(0, 0x100000)
    q.put('b', BAR + 0x14, 15)
    print('DRIVER_OK: the back-end gets', q.said())
    q.sees()
    q.change('the message once more', config(4096))
    q.change('other fields, with the message', config(4096, 30, 4096, 9))
    q.change('all of them, with the message', config(8192, 30, 4096, 9))
finally:
    q.p.kill()
    q.p.wait()
END

# ---- run -------------------------------------------------------------------------------------------------------------
export QEMU_MODULE_DIR="$root/$lib/qemu"
PYTHONHOME=$root/usr timeout 120 "$ld" --library-path "$libs" "$root/usr/bin/python3.11" -B "$tmp/both.py" "$tmp" \
	"$ld" --library-path "$libs" "$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/seabios" -L "$root/usr/share/qemu" \
	>"$tmp/seen" 2>"$tmp/out" || true

cat >"$tmp/want" <<'END'
at first:
  the guest sees: capacity 2048, seg_max 126, blk_size 512, cylinders 2; no interrupt
another capacity: the back-end gets nothing
  the guest sees: capacity 2048, seg_max 126, blk_size 512, cylinders 2; no interrupt
one more, with the message: the back-end gets nothing, and 0 for an answer
  the guest sees: capacity 2048, seg_max 126, blk_size 512, cylinders 2; no interrupt
DRIVER_OK: the back-end gets nothing
  the guest sees: capacity 2048, seg_max 126, blk_size 512, cylinders 2; no interrupt
the message once more: the back-end gets GET_CONFIG, and 0 for an answer
  the guest sees: capacity 4096, seg_max 126, blk_size 512, cylinders 2; interrupt
other fields, with the message: the back-end gets GET_CONFIG, and 0 for an answer
  the guest sees: capacity 4096, seg_max 126, blk_size 512, cylinders 2; no interrupt
all of them, with the message: the back-end gets GET_CONFIG, and 0 for an answer
  the guest sees: capacity 8192, seg_max 126, blk_size 512, cylinders 2; interrupt
END
echo "QEMU ${QEMU#*:} (Debian):"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	tail -n 20 "$tmp/out"
	exit 1
fi
echo "AS DESCRIBED: what changes before the driver is up is lost, though the front-end says that it is not"
