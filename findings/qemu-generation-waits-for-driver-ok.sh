#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# QEMU's virtio devices do not change config_generation before the driver has set DRIVER_OK, whatever changes in their config space. A driver
# that reads a field of 64 bits while it sets the device up, and does all that virtio asks for, gets a value that never was.
#
#   software   QEMU 7.2 (Debian 1:7.2+dfsg-7+deb12u18+b3), machine q35, emulated. No guest runs: a driver's accesses come by QEMU's qtest
#              protocol
#   input      valid: virtio-blk-pci on a sparse file of 2 TiB less 4 KiB. The driver reads config_generation, the capacity's lower half, its
#              upper half, and the generation again; QMP block_resize to 2 TiB and 4 KiB comes between the halves
#   expected   the generation differs, so that the driver reads once more: the device must show another one when what is read has changed since
#              the last read (virtio 1.2, 4.1.4.3.1). The driver's state is not spoken of, and drivers read most of it before DRIVER_OK
#   seen       the generation is the same, and the capacity comes out as nearly 4 TiB, about twice of what the disk ever had. The generation
#              does not change at DRIVER_OK either, and there is no interrupt: nothing says that what was read is old
#   and        the same after DRIVER_OK: the generation changes, and the second try is right
#
# The counter is stepped in the function that notifies the driver, behind its test of DRIVER_OK; that virtio forbids the notification before
# then is right. So a driver that keeps what it has read in its set-up keeps it for good, if a resize falls between. QEMU 11.1.3 (Debian), tried
# by hand, does the same.
# Why it matters to vhost-pci: a device VM may tell a new config while the driver VM boots, and its front-end does not hear of it that way. The
# daemon's own state page counts regardless of who looks (docs/spec.md, config_generation).
#
# Needs apt with Debian 12's lists, 1 GB and a file system with sparse files in TMPDIR, about half a minute. Installs nothing on this machine.
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

# ---- a driver -----------------------------------------------------------------------------------------------------------
cat >"$tmp/both.py" <<'END'
import json, os, socket, subprocess, sys, time

TMP, SYSTEM = sys.argv[1], sys.argv[2:]
BAR, SLOT, RING = 0xe0000000, 5, 0x100000
GENERATION, ISR, CAPACITY = BAR + 0x15, BAR + 0x1000, BAR + 0x2000
SMALL, LARGE = (1 << 32) - 8, (1 << 32) + 8			# sectors
DISK = os.path.join(TMP, 'disk')


class Qemu:
    def __init__(self):
        with open(DISK, 'wb') as f:
            f.truncate(SMALL * 512)
        there = {}
        for n in 'qtest', 'qmp':
            s = there[n] = socket.socket(socket.AF_UNIX)
            s.bind(os.path.join(TMP, n))
            s.listen(1)
            s.settimeout(30)
        self.p = subprocess.Popen(SYSTEM + [
            '-M', 'q35', '-accel', 'tcg', '-bios', os.path.join(TMP, 'bios'), '-m', '64', '-nodefaults', '-no-user-config', '-display', 'none',
            '-qtest', 'unix:' + os.path.join(TMP, 'qtest'), '-qtest-log', 'none', '-qmp', 'unix:' + os.path.join(TMP, 'qmp'),
            '-blockdev', 'driver=file,node-name=d,filename=' + DISK, '-device', 'virtio-blk-pci,drive=d,addr=%d,disable-legacy=on,num-queues=1' % SLOT])
        self.files = {n: s.accept()[0].makefile('rw') for n, s in there.items()}
        self.files['qmp'].readline()
        self.qmp('qmp_capabilities')
        for n in there:
            os.unlink(os.path.join(TMP, n))

    def say(self, to, text):
        self.files[to].write(text + '\n')
        self.files[to].flush()

    def qmp(self, command, **args):
        self.say('qmp', json.dumps({'execute': command, 'arguments': args}))
        while True:
            answer = json.loads(self.files['qmp'].readline())
            assert 'error' not in answer, answer
            if 'return' in answer:
                return

    def cmd(self, text):
        self.say('qtest', text)
        line = self.files['qtest'].readline()
        assert line.startswith('OK'), line
        return line.split()[1:]

    def put(self, size, at, value):
        self.cmd('write%s %#x %#x' % (size, at, value))

    def get(self, size, at):
        return int(self.cmd('read%s %#x' % (size, at))[0], 16)

    def pci(self, reg, value):
        self.cmd('outl 0xcf8 %#x' % (1 << 31 | SLOT << 11 | reg))
        self.cmd('outl 0xcfc %#x' % value)

    def features(self):
        """As far as FEATURES_OK, with VERSION_1."""
        for reg, value in (0x20, BAR), (0x24, 0), (0x04, 6):
            self.pci(reg, value)
        self.put('b', BAR + 0x14, 3)
        for i in 0, 1:
            self.put('l', BAR + 8, i)
            self.put('l', BAR + 12, i)
        self.put('b', BAR + 0x14, 11)
        assert self.get('b', BAR + 0x14) == 11

    def ready(self):
        """A queue, and DRIVER_OK."""
        self.put('w', BAR + 0x16, 0)
        for reg, at in (0x20, 0), (0x28, 0x1000), (0x30, 0x2000):
            self.put('l', BAR + reg, RING + at)
            self.put('l', BAR + reg + 4, 0)
        self.put('w', BAR + 0x1c, 1)
        self.put('b', BAR + 0x14, 15)

    def capacity(self, between=lambda: None):
        """As a driver has to read it: once more, if the generation is another one afterwards. Also how often that was."""
        n = 0
        while True:
            n += 1
            before = self.get('b', GENERATION)
            low = self.get('l', CAPACITY)
            if n == 1:
                between()
            value = self.get('l', CAPACITY + 4) << 32 | low
            if self.get('b', GENERATION) == before:
                return '%#x, read %s' % (value, 'once' if n == 1 else '%d times' % n)

    def resize(self):
        self.qmp('block_resize', **{'node-name': 'd', 'size': LARGE * 512})


with open(os.path.join(TMP, 'bios'), 'wb') as f:
    f.write(b'\xf4' * 65536)	# the CPU halts
print('sectors before %#x, after %#x' % (SMALL, LARGE))
for ok in False, True:
    q = Qemu()
    try:
        q.features()
        if ok:
            q.ready()
        print('resized %s DRIVER_OK:' % ('after' if ok else 'before'))
        first = q.get('b', GENERATION)
        print('  the driver reads a capacity of', q.capacity(q.resize))
        if not ok:
            q.ready()
            print('  with DRIVER_OK then:')
        told = 'told by an interrupt' if q.get('b', ISR) & 2 else 'no interrupt for it'
        print('  config_generation is %s; %s' % ('as it was' if q.get('b', GENERATION) == first else 'another one', told))
        print('  the driver reads a capacity of', q.capacity())
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
sectors before 0xfffffff8, after 0x100000008
resized before DRIVER_OK:
  the driver reads a capacity of 0x1fffffff8, read once
  with DRIVER_OK then:
  config_generation is as it was; no interrupt for it
  the driver reads a capacity of 0x100000008, read once
resized after DRIVER_OK:
  the driver reads a capacity of 0x100000008, read 2 times
  config_generation is another one; told by an interrupt
  the driver reads a capacity of 0x100000008, read once
END
echo "QEMU ${QEMU#*:} (Debian):"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	tail -n 20 "$tmp/out"
	exit 1
fi
echo "AS DESCRIBED: before DRIVER_OK a change is not to be seen in config_generation, and half of one is read"
