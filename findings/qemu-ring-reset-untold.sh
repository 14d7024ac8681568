#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# QEMU offers a guest VIRTIO_F_RING_RESET if the vhost-user back-end has it, resets and re-enables a ring for the driver, and tells the back-end
# nothing: it goes on in the ring that the driver has given up, and is kicked for the new one.
#
#   software   QEMU 7.2 (Debian 1:7.2+dfsg-7+deb12u18+b3), machine q35, emulated. No guest runs: a driver's accesses come by QEMU's qtest
#              protocol
#   input      valid: vhost-user net, blk, scsi, vsock and fs devices whose back-end offers VERSION_1 and RING_RESET; DRIVER_OK; the driver
#              writes queue_reset of ring 0, waits until it reads 0, and enables the ring at another place (virtio 1.2, 2.6.1)
#   expected   SET_VRING_ENABLE 0 and GET_VRING_BASE of ring 0, with which vhost-user stops one ring, before queue_reset reads 0; then size,
#              base, address and kick of the new ring. Or the feature is not offered for a back-end that QEMU cannot tell
#   seen       the feature is offered and negotiated, queue_reset reads 0 at once, and no message comes at all, at neither step. The kick of the
#              new ring comes in the old one's eventfd
#   and        a reset of the whole device is told, for each of them
#
# After queue_reset a driver may free the ring's memory and use it for something else, into which the back-end then writes. QEMU has the code
# for vhost-net in the kernel only (hw/net/virtio-net.c asks for a tap), and for other devices none. Linux's virtio_net resets rings so for
# `ethtool -G`. QEMU 11.1.3 (Debian), tried by hand, does the same.
# Why it matters to vhost-pci: that one ring of a driver VM is reset would never reach the daemon, however well its data path could stop and
# start it. So the daemon does not offer the feature.
#
# Needs apt with Debian 12's lists, 1 GB of space in TMPDIR and about a minute. Installs nothing on this machine.
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
BAR, SLOT, RESET = 0xe0000000, 5, 1 << 40
FEATURES, PROTOCOL = RESET | 1 << 32 | 1 << 30, 1 << 9 | 1 << 3 | 1		# VERSION_1, protocol features; CONFIG, REPLY_ACK, MQ
NAMES = {8: 'SET_VRING_NUM', 9: 'SET_VRING_ADDR', 10: 'SET_VRING_BASE', 11: 'GET_VRING_BASE', 12: 'SET_VRING_KICK', 18: 'SET_VRING_ENABLE'}

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
        self.log, self.buf, self.kicks = [], b'', {}
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
        if req == 5:
            self.regions = [struct.unpack('<QQQQ', body[8 + 32 * i:40 + 32 * i]) for i in range(len(fds))]
        elif req == 9 and body[0] == 0:
            at, = struct.unpack('<Q', body[8:16])
            self.place = [gpa + at - user for gpa, length, user, _ in self.regions if user <= at < user + length][0]
        elif req == 12 and body[0] == 0:
            self.kicks[0] = fds[0]
        if req in NAMES and body[0] == 0:
            self.log.append(NAMES[req])
        answer = {1: struct.pack('<Q', FEATURES), 11: body, 15: struct.pack('<Q', PROTOCOL), 17: struct.pack('<Q', 8),
                  24: body[:12] + bytes(max(0, size - 12))}.get(req, bytes(8) if flags & 8 else None)
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

    def kick(self):
        """Of ring 0: does the back-end's eventfd have it?"""
        if select.select([self.kicks[0]], [], [], 0)[0]:			# QEMU kicks at the start
            os.eventfd_read(self.kicks[0])
        self.put('w', BAR + 0x3000, 0)
        return 'comes' if select.select([self.kicks[0]], [], [], 2)[0] else 'does not come'


with open(os.path.join(TMP, 'bios'), 'wb') as f:
    f.write(b'\xf4' * 65536)	# the CPU halts
for device in (('-netdev', 'vhost-user,id=n,chardev=c', '-device', 'virtio-net-pci,netdev=n,disable-legacy=on,romfile='),
               ('-device', 'vhost-user-blk-pci,chardev=c,num-queues=2,disable-legacy=on'), ('-device', 'vhost-user-scsi-pci,chardev=c,num_queues=1,disable-legacy=on'),
               ('-device', 'vhost-user-vsock-pci,chardev=c,disable-legacy=on'), ('-device', 'vhost-user-fs-pci,chardev=c,tag=t')):
    q = Qemu(*device[:-1], device[-1] + ',addr=%d' % SLOT)
    try:
        for reg, value in (0x20, BAR), (0x24, 0), (0x04, 6):
            q.pci(reg, value)
        q.put('b', BAR + 0x14, 3)
        q.put('l', BAR, 1)
        offered = q.get('l', BAR + 4) << 32 & RESET
        q.put('l', BAR + 8, 1)
        q.put('l', BAR + 12, (offered | 1 << 32) >> 32)
        q.put('b', BAR + 0x14, 11)
        assert q.get('b', BAR + 0x14) == 11
        q.queue(0, 0x100000)
        q.queue(1, 0x200000)
        q.put('b', BAR + 0x14, 15)
        assert 'SET_VRING_ADDR' in q.said()
        print('%s: RING_RESET is %s' % (device[-1].split(',')[0], 'offered' if offered else 'not offered'))
        q.put('w', BAR + 0x16, 0)
        q.put('w', BAR + 0x3a, 1)
        print('  reset of ring 0: queue_reset reads %d, queue_enable %d; the back-end is told: %s' % (q.get('w', BAR + 0x3a), q.get('w', BAR + 0x1c), q.said()))
        q.queue(0, 0x300000)
        print('  ring 0 enabled at 0x300000: queue_enable reads %d; the back-end is told: %s' % (q.get('w', BAR + 0x1c), q.said()))
        print('  a kick %s; for the back-end ring 0 is at %#x' % (q.kick(), q.place))
        q.put('b', BAR + 0x14, 0)
        print('  reset of the device; the back-end is told:', q.said())
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
virtio-net-pci: RING_RESET is offered
  reset of ring 0: queue_reset reads 0, queue_enable 0; the back-end is told: nothing
  ring 0 enabled at 0x300000: queue_enable reads 1; the back-end is told: nothing
  a kick comes; for the back-end ring 0 is at 0x100000
  reset of the device; the back-end is told: GET_VRING_BASE, SET_VRING_ENABLE
vhost-user-blk-pci: RING_RESET is offered
  reset of ring 0: queue_reset reads 0, queue_enable 0; the back-end is told: nothing
  ring 0 enabled at 0x300000: queue_enable reads 1; the back-end is told: nothing
  a kick comes; for the back-end ring 0 is at 0x100000
  reset of the device; the back-end is told: SET_VRING_ENABLE, GET_VRING_BASE
vhost-user-scsi-pci: RING_RESET is offered
  reset of ring 0: queue_reset reads 0, queue_enable 0; the back-end is told: nothing
  ring 0 enabled at 0x300000: queue_enable reads 1; the back-end is told: nothing
  a kick comes; for the back-end ring 0 is at 0x100000
  reset of the device; the back-end is told: SET_VRING_ENABLE, GET_VRING_BASE
vhost-user-vsock-pci: RING_RESET is offered
  reset of ring 0: queue_reset reads 0, queue_enable 0; the back-end is told: nothing
  ring 0 enabled at 0x300000: queue_enable reads 1; the back-end is told: nothing
  a kick comes; for the back-end ring 0 is at 0x100000
  reset of the device; the back-end is told: SET_VRING_ENABLE, GET_VRING_BASE
vhost-user-fs-pci: RING_RESET is offered
  reset of ring 0: queue_reset reads 0, queue_enable 0; the back-end is told: nothing
  ring 0 enabled at 0x300000: queue_enable reads 1; the back-end is told: nothing
  a kick comes; for the back-end ring 0 is at 0x100000
  reset of the device; the back-end is told: SET_VRING_ENABLE, GET_VRING_BASE
END
echo "QEMU ${QEMU#*:} (Debian):"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	tail -n 20 "$tmp/out"
	exit 1
fi
echo "AS DESCRIBED: a ring is reset and another one enabled, and the back-end does not know"
