#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# QEMU tells a vhost-user back-end nothing of what the guest's vIOMMU takes back while the device is stopped, and does not tell it to forget
# when the device starts again: a translation from before a driver's reset still looks valid, and leads to memory that is mapped no more.
#
#   software   QEMU 7.2 (Debian 1:7.2+dfsg-7+deb12u18+b3), machine q35, emulated. No guest runs: a driver's accesses come by QEMU's qtest protocol
#   input      valid: vhost-user-blk with iommu_platform=on,ats=on behind virtio-iommu; MAP, the device runs, the driver resets it, UNMAP, MAP of
#              other memory at the same address, the device runs again on the same connection
#   expected   an invalidation for each UNMAP (vhost-user, "IOMMU support": when the translation is to be invalidated the front-end says so)
#   seen       none, neither while the device is stopped nor when it starts; no message about memory comes either, with CONFIGURE_MEM_SLOTS.
#              Who asks again for the address is given the new memory
#   and        with the same UNMAP and MAP while the device runs there is one invalidation, before UNMAP is done
#
# Resets are what unbinding a driver, a reboot and kexec do, and just there mappings change. The kernel's own vhost does not see it, as QEMU sets its
# features anew at each start, by which it gets an empty table (read in its source). QEMU 11.1.3 (Debian), tried by hand, does the same.
# Why it matters to vhost-pci: all of a driver VM's queues broke after an unbind and bind of its driver; nothing is kept over the time in
# which no ring runs, since then (daemon/front/viommu.c).
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

# ---- a back-end, and a driver of both devices ------------------------------------------------------------------------
cat >"$tmp/both.py" <<'END'
import os, select, socket, struct, subprocess, sys, time

TMP, SYSTEM = sys.argv[1], sys.argv[2:]
SIZE, PHYS, OTHER, IOVA = 2 << 20, 0x1000000, 0x1400000, 0x40000000
VIOMMU, BLK, AVAIL, USED, REQUEST = 4, 5, 0x1000, 0x2000, 0x3000
FEATURES, PROTOCOL = 1 << 33 | 1 << 32 | 1 << 30, 1 << 15 | 1 << 9 | 1 << 5 | 1 << 3
# ACCESS_PLATFORM, VERSION_1, protocol features; CONFIGURE_MEM_SLOTS, CONFIG, BACKEND_REQ, REPLY_ACK
CONFIG = struct.pack('<QIIHBBIBBHIBBH', 2048, 0, 126, 0, 0, 0, 512, 0, 0, 0, 0, 0, 0, 1).ljust(60, b'\0')
MISS, UPDATE, INVALIDATE = 1, 2, 3
BAR, RING, DISK = 0xe0000000, 0x100000, 0xe0100000		# of virtio-iommu, its ring; of the disk


class Qemu:
    """Its back-end is served whenever an answer of qtest is waited for."""
    def __init__(self):
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
            '-qtest', 'unix:' + paths[1], '-qtest-log', 'none', '-chardev', 'socket,id=c,path=' + paths[0], '-device', 'virtio-iommu-pci,addr=%d' % VIOMMU,
            '-device', 'vhost-user-blk-pci,chardev=c,addr=%d,num-queues=1,disable-legacy=on,iommu_platform=on,ats=on' % BLK])
        self.requests, self.told, self.tables, self.buf = 0, [], 0, b''
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
        elif req == 22:						# IOTLB_MSG
            iova, length, user, _, kind = struct.unpack('<QQQBB', body[:26])
            self.told.append((kind, iova, length, user))
        elif req in (5, 37, 38):
            self.tables += 1
        answer = {1: struct.pack('<Q', FEATURES), 11: body, 15: struct.pack('<Q', PROTOCOL), 17: struct.pack('<Q', 1), 36: struct.pack('<Q', 8),
                  24: body[:12] + CONFIG[:size - 12]}.get(req, bytes(8) if flags & 8 else None)
        if answer is not None:
            self.back.sendall(struct.pack('<III', req, 5, len(answer)) + answer)

    def quiet(self):
        """All that it says by itself has come."""
        while select.select([self.back], [], [], 1)[0]:
            self.serve()

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

    def memory(self, at, fmt, *values):
        b = struct.pack('<' + fmt, *values)
        self.cmd('write %#x %d 0x%s' % (at, len(b), b.hex()))

    def pci(self, slot, reg, value):
        self.cmd('outl 0xcf8 %#x' % (1 << 31 | slot << 11 | reg))
        self.cmd('outl 0xcfc %#x' % value)

    def drive(self, slot, bar, features, ring, ring_seen):
        """A virtio device, as far as DRIVER_OK, with queue 0 in 16 entries there."""
        self.pci(slot, 0x20, bar)
        self.pci(slot, 0x24, 0)
        self.pci(slot, 0x04, 6)
        self.put('b', bar + 0x14, 3)				# ACKNOWLEDGE, DRIVER
        for i in 0, 1:
            self.put('l', bar, i)
            self.put('l', bar + 8, i)
            self.put('l', bar + 12, self.get('l', bar + 4) & features >> 32 * i & 0xffffffff)
        self.put('b', bar + 0x14, 11)				# FEATURES_OK
        assert self.get('b', bar + 0x14) == 11
        self.put('w', bar + 0x16, 0)
        self.put('w', bar + 0x18, 16)
        for reg, at in (0x20, 0), (0x28, AVAIL), (0x30, USED):
            self.put('l', bar + reg, ring_seen + at)
            self.put('l', bar + reg + 4, 0)
        self.put('w', bar + 0x1c, 1)
        self.put('b', bar + 0x14, 15)				# DRIVER_OK

    def request(self, fmt, *values):
        """Of virtio-iommu."""
        at, size = RING + REQUEST, struct.calcsize('<' + fmt)
        self.memory(at, fmt, *values)
        self.memory(RING, 'QIHHQIHH', at, size, 1, 1, at + 256, 4, 2, 0)
        self.memory(RING + AVAIL + 4 + 2 * self.requests, 'H', 0)
        self.requests += 1
        self.memory(RING + AVAIL + 2, 'H', self.requests)
        self.put('w', BAR + 0x3000, 0)
        end = time.monotonic() + 30
        while self.get('w', RING + USED + 2) != self.requests:
            assert time.monotonic() < end, 'no answer'
        assert self.get('b', at + 256) == 0, 'refused'

    def start(self, phys):
        self.drive(BLK, DISK, FEATURES, phys, IOVA)
        self.quiet()

    def stop(self):
        self.put('b', DISK + 0x14, 0)
        self.quiet()

    def map(self, phys):
        self.request('B3xIQQQI', 3, 1, IOVA, IOVA + SIZE - 1, phys, 3)	# READ and WRITE

    def unmap(self):
        self.request('B3xIQQ4x', 4, 1, IOVA, IOVA + SIZE - 1)
        self.quiet()

    def ask(self):
        """The first page of the mapping, which no ring lies in: where the back-end finds it."""
        self.asks.sendall(struct.pack('<IIIQQQBB6x', 1, 1, 32, IOVA + 0x10000, 0, 0, 3, MISS))
        n, end = len(self.told), time.monotonic() + 30
        while len(self.told) == n:
            assert time.monotonic() < end, 'no update'
            self.serve()
        kind, first, length, user = self.told[-1]
        assert kind == UPDATE and first == IOVA + 0x10000
        return user

    def says(self, what):
        """What it has said since the last time: updates that it makes for its own sake, the used ring's, do not count."""
        n = sum(t[0] == INVALIDATE for t in self.told)
        print('  %s: %d invalidations, %d messages of memory' % (what, n, self.tables))
        self.told, self.tables = [], 0


def run(stopped):
    q = Qemu()
    try:
        q.drive(VIOMMU, BAR, 1 << 32 | 0xff, RING, RING)
        q.request('B3xIII4x', 1, 1, BLK << 3, 0)		# ATTACH
        q.map(PHYS)
        q.start(PHYS)
        before = q.ask()
        q.told, q.tables = [], 0
        if stopped:
            q.stop()
            q.says('reset')
        q.unmap()
        q.says('UNMAP')
        q.map(OTHER)
        if stopped:
            q.start(OTHER)
            q.says('started again')
        print('  the same address: %d MiB from where it was' % (q.ask() - before >> 20))
    finally:
        q.p.kill()
        q.p.wait()


with open(os.path.join(TMP, 'bios'), 'wb') as f:
    f.write(b'\xf4' * 65536)	# the CPU halts
print('while the device runs:')
run(False)
print('while it is stopped:')
run(True)
END

# ---- run -------------------------------------------------------------------------------------------------------------
export QEMU_MODULE_DIR="$root/$lib/qemu"
PYTHONHOME=$root/usr timeout 120 "$ld" --library-path "$libs" "$root/usr/bin/python3.11" -B "$tmp/both.py" "$tmp" \
	"$ld" --library-path "$libs" "$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/seabios" -L "$root/usr/share/qemu" \
	>"$tmp/seen" 2>"$tmp/out" || true

cat >"$tmp/want" <<'END'
while the device runs:
  UNMAP: 1 invalidations, 0 messages of memory
  the same address: 4 MiB from where it was
while it is stopped:
  reset: 0 invalidations, 0 messages of memory
  UNMAP: 0 invalidations, 0 messages of memory
  started again: 0 invalidations, 0 messages of memory
  the same address: 4 MiB from where it was
END
echo "QEMU ${QEMU#*:} (Debian):"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	tail -n 20 "$tmp/out"
	exit 1
fi
echo "AS DESCRIBED: what is taken back while the device is stopped is never told"
