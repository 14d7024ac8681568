#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# A vhost-user back-end behind QEMU's virtio-iommu is told of each 4 KiB page by itself, however large the guest's mapping is: 512 misses for one
# MAP of 2 MiB. Behind intel-iommu one answer covers the 2 MiB. What is taken back is told in one piece by virtio-iommu, too.
#
#   software   QEMU 7.2 (Debian 1:7.2+dfsg-7+deb12u18+b3), machine q35, emulated. No guest runs: a driver's accesses come by QEMU's qtest protocol
#   input      valid: vhost-user-blk with iommu_platform=on,ats=on behind either IOMMU; one mapping of 2 MiB, of memory in one piece, read and
#              write. The back-end asks (IOTLB miss) for each address of it that no update has covered yet, 4 KiB after 4 KiB
#   expected   an update says how far the translation holds, as intel-iommu's do; virtio-iommu has one request with first and last address for
#              the whole mapping, and says in its config space that pages of any size from 4 KiB are fine (page_size_mask)
#   seen       virtio-iommu: 512 misses, 512 updates of 4 KiB; UNMAP: one invalidation of 2 MiB. intel-iommu: one miss, one update of 2 MiB
#   and        intel-iommu with the same 2 MiB mapped by 4 KiB pages: 512 misses
#
# So hugepages in the guest (DPDK) spare a back-end the misses with one of the two only, and a back-end that caches few translations never gets
# to the end of a pool. QEMU 11.1.3 (Debian), tried by hand, does the same.
# Why it matters to vhost-pci: translations are joined in the daemon by address and place in the file, or the driver VM's memory would not go into
# a few windows (lib/guestmem/iotlb.h, daemon/link/grant.c).
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
PAGE, SIZE, PHYS, IOVA = 4096, 2 << 20, 0x1000000, 0x40000000
VIOMMU, BLK, AVAIL, USED, REQUEST = 4, 5, 0x1000, 0x2000, 0x3000
FEATURES, PROTOCOL = 1 << 33 | 1 << 32 | 1 << 30, 1 << 9 | 1 << 5 | 1 << 3	# ACCESS_PLATFORM, VERSION_1; CONFIG, BACKEND_REQ, REPLY_ACK
CONFIG = struct.pack('<QIIHBBIBBHIBBH', 2048, 0, 126, 0, 0, 0, 512, 0, 0, 0, 0, 0, 0, 1).ljust(60, b'\0')
MISS, UPDATE, INVALIDATE = 1, 2, 3


class Qemu:
    """Its back-end is served whenever an answer of qtest is waited for."""
    def __init__(self, iommu):
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
            '-qtest', 'unix:' + paths[1], '-qtest-log', 'none', '-chardev', 'socket,id=c,path=' + paths[0], '-device', iommu,
            '-device', 'vhost-user-blk-pci,chardev=c,addr=%d,num-queues=1,disable-legacy=on,iommu_platform=on,ats=on' % BLK])
        self.told, self.buf = [], b''
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
            iova, length, _, _, kind = struct.unpack('<QQQBB', body[:26])
            self.told.append((kind, iova, length))
        answer = {1: struct.pack('<Q', FEATURES), 11: body, 15: struct.pack('<Q', PROTOCOL), 17: struct.pack('<Q', 1),
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
        self.bar, self.ring, self.requests = bar, ring, 0

    def request(self, fmt, *values):
        """Of virtio-iommu, which was the last to be driven."""
        at, size = self.ring + REQUEST, struct.calcsize('<' + fmt)
        self.memory(at, fmt, *values)
        self.memory(self.ring, 'QIHHQIHH', at, size, 1, 1, at + 256, 4, 2, 0)
        self.memory(self.ring + AVAIL + 4 + 2 * self.requests, 'H', 0)
        self.requests += 1
        self.memory(self.ring + AVAIL + 2, 'H', self.requests)
        self.put('w', self.bar + 0x3000, 0)
        end = time.monotonic() + 30
        while self.get('w', self.ring + USED + 2) != self.requests:
            assert time.monotonic() < end, 'no answer'
        assert self.get('b', at + 256) == 0, 'refused'

    def walk(self):
        """Ask for what is not known of the mapping. Prints how often that was, and how much each answer told."""
        self.drive(BLK, 0xe0100000, FEATURES, PHYS, IOVA)
        self.quiet()
        self.told, misses, at = [], 0, IOVA
        while at < IOVA + SIZE:
            self.asks.sendall(struct.pack('<IIIQQQBB6x', 1, 1, 32, at, 0, 0, 3, MISS))
            misses += 1
            n, end = len(self.told), time.monotonic() + 30
            while len(self.told) == n:
                assert time.monotonic() < end, 'no update'
                self.serve()
            kind, first, length = self.told[-1]
            assert kind == UPDATE and first <= at < first + length
            at = first + length
        print('  misses: %d; updates of %s' % (misses, ', '.join('%d KiB' % (n >> 10) for n in sorted({t[2] for t in self.told}))))


def virtio(q):
    ring = 0x100000
    q.drive(VIOMMU, 0xe0000000, 1 << 32 | 0xff, ring, ring)
    bar = q.bar
    print('  page_size_mask: %#x' % q.get('q', bar + 0x2000))
    q.request('B3xIII4x', 1, 1, BLK << 3, 0)			# ATTACH
    q.request('B3xIQQQI', 3, 1, IOVA, IOVA + SIZE - 1, PHYS, 3)	# MAP, READ and WRITE
    n = q.requests
    q.walk()
    q.bar, q.ring, q.requests, q.told = bar, ring, n, []
    q.request('B3xIQQ4x', 4, 1, IOVA, IOVA + SIZE - 1)		# UNMAP
    q.quiet()
    print('  invalidations of %s' % ', '.join('%d KiB' % (t[2] >> 10) for t in q.told if t[0] == INVALIDATE))


def intel(q, large):
    root, context, level3, level2, level1, regs = 0x200000, 0x201000, 0x202000, 0x203000, 0x204000, 0xfed90000
    q.memory(root, 'QQ', context | 1, 0)
    q.memory(context + 16 * (BLK << 3), 'QQ', level3 | 1 << 2 | 1, 1 << 8 | 1)	# with a device's own IOTLB; domain 1, 39 bits
    q.memory(level3 + 8 * (IOVA >> 30), 'Q', level2 | 3)
    q.memory(level2 + 8 * (IOVA >> 21 & 511), 'Q', PHYS | 1 << 7 | 3 if large else level1 | 3)
    q.memory(level1, '512Q', *(PHYS + i * PAGE | 3 for i in range(512)))
    q.put('q', regs + 0x20, root)
    q.put('l', regs + 0x18, 1 << 30)
    q.put('l', regs + 0x18, 1 << 31)
    assert q.get('l', regs + 0x1c) >> 30 == 3
    q.walk()


with open(os.path.join(TMP, 'bios'), 'wb') as f:
    f.write(b'\xf4' * 65536)	# the CPU halts
INTEL = 'intel-iommu,device-iotlb=on,intremap=off'
for name, device, maps in (('virtio-iommu, one mapping of 2 MiB', 'virtio-iommu-pci,addr=%d' % VIOMMU, virtio),
                           ('intel-iommu, one mapping of 2 MiB', INTEL, lambda q: intel(q, True)),
                           ('intel-iommu, 512 mappings of 4 KiB', INTEL, lambda q: intel(q, False))):
    print('%s:' % name)
    q = Qemu(device)
    try:
        maps(q)
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
virtio-iommu, one mapping of 2 MiB:
  page_size_mask: 0xfffffffffffff000
  misses: 512; updates of 4 KiB
  invalidations of 2048 KiB
intel-iommu, one mapping of 2 MiB:
  misses: 1; updates of 2048 KiB
intel-iommu, 512 mappings of 4 KiB:
  misses: 512; updates of 4 KiB
END
echo "QEMU ${QEMU#*:} (Debian):"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	tail -n 20 "$tmp/out"
	exit 1
fi
echo "AS DESCRIBED: behind virtio-iommu each page is a miss of its own"
