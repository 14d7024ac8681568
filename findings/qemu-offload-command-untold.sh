#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# QEMU lets a guest's driver switch off what it has negotiated to receive (TSO, checksums), and does not tell the vhost-user back-end, which makes
# the packets: it answers "done" and the back-end goes on with the features of the start.
#
#   software   QEMU 7.2 (Debian 1:7.2+dfsg-7+deb12u18+b3), machine q35, emulated. No guest runs: a driver's accesses come by QEMU's qtest protocol
#   input      valid: a vhost-user net back-end with GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, and without CTRL_GUEST_OFFLOADS; a driver that takes
#              what it is offered of these, DRIVER_OK, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET with 0 by the control queue
#   expected   SET_FEATURES without the three bits, with which vhost-user changes features while rings run (as it does for LOG_ALL); or the command
#              fails; or CTRL_GUEST_OFFLOADS is not offered for a back-end that QEMU cannot tell
#   seen       the command is offered though the back-end has it not, the answer is VIRTIO_NET_OK, and no message comes. When the device is set
#              up anew without a reset by the driver (set_link off and on) SET_FEATURES has the three bits as before
#   and        of all that the driver says by this queue, one thing reaches the back-end: the number of queue pairs (MQ), as SET_VRING_ENABLE. That
#              it receives all or not, which unicast addresses and which VLANs is acknowledged, too, and told to nobody
#
# Linux's virtio_net sends the command when a program for XDP is attached, which takes no packet of several segments, and for `ethtool -K` of
# rx-gro-hw; it believes the answer. QEMU 11.1.3 (Debian), tried by hand, answers OK and tells nothing either.
# Why it matters to vhost-pci: neither the daemon nor a device VM can know that a driver VM's driver takes such packets no more. A link whose driver
# VM uses XDP has to go without them from the start (Offloads= of the link).
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
import json, os, select, socket, struct, subprocess, sys, time

TMP, SYSTEM = sys.argv[1], sys.argv[2:]
BAR, SLOT, CONTROL = 0xe0000000, 5, 4						# the queue behind two pairs
GUEST = 1 << 1 | 1 << 7 | 1 << 8						# CSUM, TSO4, TSO6
FEATURES, PROTOCOL = 1 << 32 | 1 << 30 | 1 << 22 | GUEST, 1 << 3 | 1		# VERSION_1, protocol features, MQ; REPLY_ACK, MQ
COMMANDS = 1 << 2 | 1 << 17 | 1 << 18 | 1 << 19 | 1 << 16			# CTRL_GUEST_OFFLOADS, CTRL_VQ, CTRL_RX, CTRL_VLAN; STATUS


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
        self.log, self.buf, self.used = [], b'', 0
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
        head, _, _, _ = socket.recv_fds(self.back, 12, 16)
        req, flags, size = struct.unpack('<III', head)
        body = self.back.recv(size, socket.MSG_WAITALL) if size else b''
        if req == 2:
            self.log.append('SET_FEATURES %s the three' % ('with' if struct.unpack('<Q', body)[0] & GUEST == GUEST else 'without'))
        elif req == 18:
            self.log.append('SET_VRING_ENABLE %d of %d' % (body[4], body[0]))
        elif req != 13:								# SET_VRING_CALL: masked interrupts
            self.log.append('message %d' % req)
        answer = {1: struct.pack('<Q', FEATURES), 11: body, 15: struct.pack('<Q', PROTOCOL), 17: struct.pack('<Q', 2)}.get(
            req, bytes(8) if flags & 8 else None)
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

    def pci(self, reg, value, slot=SLOT):
        self.cmd('outl 0xcf8 %#x' % (1 << 31 | slot << 11 | reg))
        self.cmd('outl 0xcfc %#x' % value)

    def queue(self, index, ring):
        self.put('w', BAR + 0x16, index)
        self.put('w', BAR + 0x18, 16)
        for reg, at in (0x20, 0), (0x28, 0x1000), (0x30, 0x2000):
            self.put('l', BAR + reg, ring + at)
            self.put('l', BAR + reg + 4, 0)
        self.put('w', BAR + 0x1c, 1)

    def up(self, wants, queues):
        """The driver as far as DRIVER_OK; what it was offered."""
        for reg, value in (0x20, BAR), (0x24, 0), (0x04, 6):
            self.pci(reg, value)
        self.put('b', BAR + 0x14, 3)
        offered = 0
        for i in 0, 1:
            self.put('l', BAR, i)
            word = self.get('l', BAR + 4)
            offered |= word << 32 * i
            self.put('l', BAR + 8, i)
            self.put('l', BAR + 12, word & wants >> 32 * i & 0xffffffff)
        self.put('b', BAR + 0x14, 11)
        assert self.get('b', BAR + 0x14) == 11
        for i in range(queues):
            self.queue(i, 0x100000 * (i + 1))
        self.put('b', BAR + 0x14, 15)
        return offered

    def write(self, at, data):
        self.cmd('write %#x %#x 0x%s' % (at, len(data), data.hex()))

    def command(self, what, group, number, data):
        ring = 0x100000 * (CONTROL + 1)
        at, end = ring + 0x4000, ring + 0x4002 + len(data)
        self.write(at, struct.pack('<BB', group, number) + data + b'\xff')
        self.write(ring, struct.pack('<QIHHQIHHQIHH', at, 2, 1, 1, at + 2, len(data), 1, 2, end, 1, 2, 0))
        self.put('w', ring + 0x1004 + 2 * self.used, 0)
        self.used += 1
        self.put('w', ring + 0x1002, self.used)
        self.put('w', BAR + 0x3000 + 4 * CONTROL, CONTROL)
        limit = time.monotonic() + 30
        while self.get('w', ring + 0x2002) != self.used:
            assert time.monotonic() < limit, what
        print('%s: %s; the back-end is told: %s' % (what, 'OK' if self.get('b', end) == 0 else 'refused', self.said()))


with open(os.path.join(TMP, 'bios'), 'wb') as f:
    f.write(b'\xf4' * 65536)	# the CPU halts
q = Qemu('-qmp', 'unix:%s,server=on,wait=off' % os.path.join(TMP, 'qmp'), '-netdev', 'vhost-user,id=n,chardev=c,queues=2',
         '-device', 'virtio-net-pci,netdev=n,mq=on,disable-legacy=on,romfile=,addr=%d' % SLOT)
try:
    qmp = socket.socket(socket.AF_UNIX)
    qmp.connect(os.path.join(TMP, 'qmp'))
    text = b''

    def answered():
        """The next line that QMP says; the back-end is served meanwhile."""
        global text
        end = time.monotonic() + 30
        while b'\n' not in text:
            assert time.monotonic() < end, 'no answer'
            r = select.select([q.back, qmp], [], [], 1)[0]
            if q.back in r:
                q.serve()
            if qmp in r:
                text += qmp.recv(4096)
        line, _, text = text.partition(b'\n')
        return json.loads(line)

    def ask(execute, **arguments):
        qmp.sendall(json.dumps({'execute': execute, 'arguments': arguments}).encode() + b'\n')
        while 'return' not in answered():
            pass

    answered()									# the greeting
    ask('qmp_capabilities')
    q.said()
    offered = q.up(FEATURES | COMMANDS, CONTROL + 1)
    print('the back-end has %s CTRL_GUEST_OFFLOADS; the driver is offered %s' % ('a' if FEATURES & 4 else 'no', 'it' if offered & 4 else 'none'))
    print('DRIVER_OK:', ', '.join(sorted({m for m in q.said().split(', ') if 'FEATURES' in m})))
    q.command('two pairs', 4, 0, struct.pack('<H', 2))
    q.command('no offload', 5, 0, bytes(8))
    q.command('promiscuous: no', 0, 0, b'\0')
    q.command('no unicast address but its own', 1, 0, struct.pack('<II', 0, 0))
    q.command('VLAN 5', 2, 0, struct.pack('<H', 5))
    ask('set_link', name='n', up=False)
    assert 'message 11' in q.said()						# GET_VRING_BASE
    ask('set_link', name='n', up=True)
    print('set_link off and on:', ', '.join(sorted({m for m in q.said().split(', ') if 'FEATURES' in m})))
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
the back-end has no CTRL_GUEST_OFFLOADS; the driver is offered it
DRIVER_OK: SET_FEATURES with the three
two pairs: OK; the back-end is told: SET_VRING_ENABLE 1 of 0, SET_VRING_ENABLE 1 of 1, SET_VRING_ENABLE 1 of 2, SET_VRING_ENABLE 1 of 3
no offload: OK; the back-end is told: nothing
promiscuous: no: OK; the back-end is told: nothing
no unicast address but its own: OK; the back-end is told: nothing
VLAN 5: OK; the back-end is told: nothing
set_link off and on: SET_FEATURES with the three
END
echo "QEMU ${QEMU#*:} (Debian):"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	tail -n 20 "$tmp/out"
	exit 1
fi
echo "AS DESCRIBED: the driver switches its offloads off, and who makes the packets does not know"
