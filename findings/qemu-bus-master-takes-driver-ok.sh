#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# QEMU takes DRIVER_OK out of a virtio device's status when the guest clears Bus Master Enable in the PCI command register, and does not give it
# back when the bit is set again: a device that was only kept from DMA for a moment is stopped for good, and its back-end has forgotten it.
#
#   software   QEMU 7.2 (Debian 1:7.2+dfsg-7+deb12u18+b3), machine q35, emulated. No guest runs: a driver's accesses come by QEMU's qtest
#              protocol
#   input      valid: vhost-user-blk with two queues, set up as far as DRIVER_OK; the command register from 6 (memory, bus master) to 2 and back
#              to 6; a kick
#   expected   no DMA while the bit is clear (PCI), and the device goes on when it is set. The status is the driver's, who alone sets it and
#              never clears a bit of it but by a reset; of itself a device sets NEEDS_RESET at most (virtio 1.2, 2.1)
#   seen       the status goes from 15 to 11, and the back-end gets the messages of a reset. With the bit set again the status is still 11, no
#              message comes, and a kick goes to nobody. NEEDS_RESET is not set: nothing tells the driver
#   and        if the driver writes 15 again, which none has a reason to do, the rings start where the back-end said that they stood
#
# Drivers are not the only ones who write the command register: Linux's PCI core clears the bit in pci_disable_device(), and for kexec. QEMU
# 11.1.3 (Debian), tried by hand, does the same, with SET_STATUS 0 behind GET_VRING_BASE.
# Why it matters to vhost-pci: a driver VM's rings can end with no reset by its driver, and nothing says whether they will ever be set up again;
# to the daemon that is a stopped device like any other (lib/vhostuser, GET_VRING_BASE).
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
FEATURES = 1 << 32 | 1 << 30 | 1 << 12					# VERSION_1, protocol features, MQ
PROTOCOL = 1 << 16 | 1 << 9 | 1 << 3 | 1				# STATUS, CONFIG, REPLY_ACK, MQ
CONFIG = struct.pack('<QIIHBBIBBHIBBH', 2048, 0, 126, 0, 0, 0, 512, 0, 0, 0, 0, 0, 0, 2).ljust(60, b'\0')
NAMES = {10: 'SET_VRING_BASE', 11: 'GET_VRING_BASE', 18: 'SET_VRING_ENABLE', 39: 'SET_STATUS'}
BASE = 7

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
        if req == 12:
            self.kicks[body[0]] = fds[0]
        elif req == 11:
            body = body[:4] + struct.pack('<I', BASE)
        if req == 39:
            self.status, = struct.unpack('<Q', body)
            self.log.append('%s %d' % (NAMES[req], self.status))
        elif req in NAMES:
            self.log.append('%s %d of ring %d' % (NAMES[req], *struct.unpack('<II', body)[::-1]))
        answer = {1: struct.pack('<Q', FEATURES), 11: body, 15: struct.pack('<Q', PROTOCOL), 17: struct.pack('<Q', 2),
                  24: body[:12] + CONFIG[:size - 12], 40: struct.pack('<Q', getattr(self, 'status', 0))}.get(req, bytes(8) if flags & 8 else None)
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
        for fd in self.kicks.values():
            if select.select([fd], [], [], 0)[0]:			# QEMU kicks at each start
                os.eventfd_read(fd)
        self.put('w', BAR + 0x3000, 0)
        return 'comes' if select.select([self.kicks[0]], [], [], 2)[0] else 'does not come'

    def state(self, what):
        print('%s:' % what)
        print('  the back-end is told:', self.said())
        print('  the driver reads a status of %d; a kick %s' % (self.get('b', BAR + 0x14), self.kick()))


with open(os.path.join(TMP, 'bios'), 'wb') as f:
    f.write(b'\xf4' * 65536)	# the CPU halts
q = Qemu('-device', 'vhost-user-blk-pci,chardev=c,addr=%d,num-queues=2,disable-legacy=on' % SLOT)
try:
    for reg, value in (0x20, BAR), (0x24, 0), (0x04, 6):
        q.pci(reg, value)
    q.put('b', BAR + 0x14, 3)
    for i in 0, 1:
        q.put('l', BAR, i)
        q.put('l', BAR + 8, i)
        q.put('l', BAR + 12, q.get('l', BAR + 4) & (1 << 32 | 1 << 12) >> 32 * i & 0xffffffff)
    q.put('b', BAR + 0x14, 11)
    for i in 0, 1:
        q.queue(i, 0x100000 << i)
    q.put('b', BAR + 0x14, 15)
    q.state('DRIVER_OK')
    q.pci(0x04, 2)
    q.state('bus master cleared')
    q.pci(0x04, 6)
    q.state('bus master set again')
    q.put('b', BAR + 0x14, 15)
    q.state('status 15 written once more')
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
DRIVER_OK:
  the back-end is told: SET_STATUS 8, SET_VRING_BASE 0 of ring 0, SET_VRING_BASE 0 of ring 1, SET_VRING_ENABLE 1 of ring 0, SET_VRING_ENABLE 1 of ring 1, SET_STATUS 15
  the driver reads a status of 15; a kick comes
bus master cleared:
  the back-end is told: SET_STATUS 0, SET_VRING_ENABLE 0 of ring 0, SET_VRING_ENABLE 0 of ring 1, GET_VRING_BASE 7 of ring 0, GET_VRING_BASE 7 of ring 1
  the driver reads a status of 11; a kick does not come
bus master set again:
  the back-end is told: nothing
  the driver reads a status of 11; a kick does not come
status 15 written once more:
  the back-end is told: SET_STATUS 8, SET_VRING_BASE 7 of ring 0, SET_VRING_BASE 7 of ring 1, SET_VRING_ENABLE 1 of ring 0, SET_VRING_ENABLE 1 of ring 1, SET_STATUS 15
  the driver reads a status of 15; a kick comes
END
echo "QEMU ${QEMU#*:} (Debian):"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	tail -n 20 "$tmp/out"
	exit 1
fi
echo "AS DESCRIBED: a moment without Bus Master Enable takes DRIVER_OK for good, and nobody is told"
