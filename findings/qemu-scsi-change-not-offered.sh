#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# QEMU's vhost-user-scsi device offers VIRTIO_SCSI_F_CHANGE to the guest whatever the back-end offers, and sends the guest's word to the
# back-end: SET_FEATURES has a bit that GET_FEATURES had not.
#
#   software   QEMU 7.2 (Debian 1:7.2+dfsg-7+deb12u18+b3), machine pc, emulated. No guest runs: a driver's accesses come by QEMU's qtest protocol
#   input      valid: a back-end whose features are VERSION_1 and the bit for protocol features; a driver that takes what it is offered of
#              the bits of virtio-scsi (INOUT, HOTPLUG, CHANGE, T10_PI), sets up three queues and DRIVER_OK
#   expected   bits in SET_FEATURES are among those of GET_FEATURES (vhost-user, "Feature bits" are negotiated); the guest is offered no
#              device feature that the back-end has to do and lacks. HOTPLUG is treated so
#   seen       the guest is offered CHANGE, and the back-end gets SET_FEATURES with CHANGE
#
# A back-end that refuses features which it has not offered breaks with every Linux guest, as its virtio_scsi driver takes CHANGE. It
# goes away with param_change=off. Why it matters to vhost-pci: such a back-end is what the daemon is for QEMU.
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

ld=$root/lib64/ld-linux-x86-64.so.2
libs=$root/$lib:$root/lib/x86_64-linux-gnu:$root/$lib/pulseaudio

# ---- a back-end, and a driver ------------------------------------------------------------------------------------------
cat >"$tmp/both.py" <<'END'
import os, select, socket, struct, subprocess, sys, time

BITS = {0: 'INOUT', 1: 'HOTPLUG', 2: 'CHANGE', 3: 'T10_PI'}
OFFERED = 1 << 32 | 1 << 30
IO, SLOT = 0xc000, 5


def names(bits):
    return ', '.join(n for b, n in BITS.items() if bits >> b & 1) or 'none'


class Qemu:
    """Its back-end is served whenever an answer of qtest is waited for."""
    def __init__(self, tmp, argv, opt):
        paths = [os.path.join(tmp, n) for n in ('vhost', 'qtest')]
        listeners = []
        for p in paths:
            s = socket.socket(socket.AF_UNIX)
            s.bind(p)
            s.listen(1)
            s.settimeout(30)
            listeners.append(s)
        self.p = subprocess.Popen(argv + [
            '-M', 'pc,memory-backend=ram', '-accel', 'tcg', '-bios', os.path.join(tmp, 'bios'), '-m', '64', '-object', 'memory-backend-memfd,id=ram,size=64M,share=on',
            '-nodefaults', '-no-user-config', '-display', 'none', '-qtest', 'unix:' + paths[1], '-qtest-log', 'none',
            '-chardev', 'socket,id=c,path=' + paths[0],
            '-device', 'vhost-user-scsi-pci,chardev=c,num_queues=1,addr=%d,disable-modern=on,disable-legacy=off%s' % (SLOT, opt)])
        self.acked, self.back, self.buf = [], None, b''
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
        req, _, size = struct.unpack('<III', self.back.recv(12, socket.MSG_WAITALL))
        body = self.back.recv(size, socket.MSG_WAITALL) if size else b''
        answer = {1: struct.pack('<Q', OFFERED), 15: struct.pack('<Q', 0), 11: body}.get(req)
        if req == 2:
            self.acked.append(struct.unpack('<Q', body)[0])
        if answer is not None:
            self.back.sendall(struct.pack('<III', req, 5, len(answer)) + answer)

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

    def pci(self, reg, value):
        self.cmd('outl 0xcf8 %#x' % (1 << 31 | SLOT << 11 | reg))
        self.cmd('outl 0xcfc %#x' % value)

    def drive(self):
        """As a legacy driver: registers in I/O space. Returns what it is offered."""
        self.pci(0x10, IO)
        self.pci(0x04, 7)
        self.cmd('outb %#x 3' % (IO + 18))	# ACKNOWLEDGE, DRIVER
        offered = int(self.cmd('inl %#x' % IO)[0], 16) & sum(1 << b for b in BITS)
        self.cmd('outl %#x %#x' % (IO + 4, offered))
        for q in range(3):
            self.cmd('outw %#x %d' % (IO + 14, q))
            self.cmd('outl %#x %#x' % (IO + 8, 0x100 + 16 * q))
        self.cmd('outb %#x 7' % (IO + 18))	# DRIVER_OK
        return offered


with open(os.path.join(sys.argv[1], 'bios'), 'wb') as f:
    f.write(b'\xf4' * 65536)	# the CPU halts
for opt in '', ',param_change=off':
    q = Qemu(sys.argv[1], sys.argv[2:], opt)
    try:
        offered = q.drive()
        print('vhost-user-scsi-pci%s:' % opt)
        print('  the back-end offers of the bits of virtio-scsi:', names(OFFERED))
        print('  the guest is offered:', names(offered))
        print('  SET_FEATURES has:', names(q.acked[-1]) if q.acked else 'not come')
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
vhost-user-scsi-pci:
  the back-end offers of the bits of virtio-scsi: none
  the guest is offered: CHANGE
  SET_FEATURES has: CHANGE
vhost-user-scsi-pci,param_change=off:
  the back-end offers of the bits of virtio-scsi: none
  the guest is offered: none
  SET_FEATURES has: none
END
echo "QEMU ${QEMU#*:} (Debian):"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	tail -n 20 "$tmp/out"
	exit 1
fi
echo "AS DESCRIBED: the back-end is told of a feature that it has not offered"
