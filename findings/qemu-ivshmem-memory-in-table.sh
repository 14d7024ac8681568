#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# QEMU gives the memory behind an ivshmem device to the back-ends of the VM's vhost-user devices, as if it were the VM's own: with the descriptor, at
# the address of the BAR, as soon as the guest switches the BAR on.
#
#   software   QEMU 7.2 (Debian 1:7.2+dfsg-7+deb12u18+b3), machine q35, emulated. No guest runs: a driver's accesses come by QEMU's qtest protocol
#   input      valid: vhost-user-blk, which runs, with CONFIGURE_MEM_SLOTS and without it; beside it ivshmem-plain and ivshmem-doorbell, whose
#              memory is shared with others. The guest sets BAR 2, switches memory decoding on, moves the BAR, switches it off
#   expected   the regions that the back-end gets are the guest's RAM, in which its rings and buffers lie: what others share with this VM by a
#              device is theirs, and the back-end of a disk has nothing to do with it
#   seen       a further region at the BAR's address, with a descriptor of that very file (the same inode), by SET_MEM_TABLE or ADD_MEM_REG; it
#              goes and comes while the rings run, whenever the guest writes the device's registers
#   and        each takes a place in the table, which has 8 of them without CONFIGURE_MEM_SLOTS
#
# A device may well be made to write into another one's BAR, and QEMU has one test for both: RAM with a descriptor. So whoever serves one device of
# a VM gets what the VM's owner was given by a third party, and keeps the descriptor as long as it likes. A guest that
# places its BARs anew changes the tables of all its back-ends. QEMU 11.1.3 (Debian), tried by hand with ivshmem-plain, does the same.
# Why it matters to vhost-pci: over `ivshmem` in fast mode a driver VM's memory is such a device of the device VM (docs/howto.md). Another vhost-user
# device of the device VM, its own network card or disk, brings the driver VM's memory to the process that serves it.
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

# ---- a back-end, a driver, and the others who share ---------------------------------------------------------------------
cat >"$tmp/both.py" <<'END'
import array, os, select, socket, struct, subprocess, sys, time

TMP, SYSTEM = sys.argv[1], sys.argv[2:]
BAR, SLOT = 0xe0000000, 5
FEATURES = 1 << 32 | 1 << 30							# VERSION_1, protocol features


class Qemu:
    """Its back-end is served whenever an answer of qtest is waited for."""
    def __init__(self, protocol, theirs, *devices):
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
        self.log, self.buf, self.protocol, self.theirs, self.table = [], b'', protocol, theirs, set()
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
        if req == 5:								# SET_MEM_TABLE
            table = {(struct.unpack('<Q', body[8 + 32 * i:16 + 32 * i])[0], os.fstat(f).st_ino) for i, f in enumerate(fds)}
            for at, file in sorted(self.table - table):
                self.tell('SET_MEM_TABLE without', at, file)
            for at, file in sorted(table - self.table):
                self.tell('SET_MEM_TABLE with', at, file)
            self.table = table
        elif req in (37, 38):							# ADD_MEM_REG, REM_MEM_REG
            at = struct.unpack('<Q', body[8:16])[0]
            if req == 37:
                self.table.add((at, os.fstat(fds[0]).st_ino))
            file, = [f for a, f in self.table if a == at]
            self.tell('ADD_MEM_REG of' if req == 37 else 'REM_MEM_REG of', at, file)
            if req == 38:
                self.table.remove((at, file))
        elif req == 11:
            self.log.append('GET_VRING_BASE')
        for f in fds:
            if req in (5, 37):
                os.close(f)
        answer = {1: struct.pack('<Q', FEATURES), 11: body, 15: struct.pack('<Q', self.protocol), 17: struct.pack('<Q', 1), 36: struct.pack('<Q', 32),
                  24: body[:12] + bytes(max(0, size - 12))}.get(req, bytes(8) if flags & 8 else None)
        if answer is not None:
            self.back.sendall(struct.pack('<III', req, 5, len(answer)) + answer)

    def tell(self, what, at, file):
        if at >= 1 << 28:							# beyond the VM's 64 MiB
            self.log.append('%s %#x, %s' % (what, at, self.theirs.get(file, 'an unknown file')))

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


with open(os.path.join(TMP, 'bios'), 'wb') as f:
    f.write(b'\xf4' * 65536)	# the CPU halts
plain = os.path.join(TMP, 'plain')
with open(plain, 'wb') as f:
    f.truncate(1 << 20)
memfd = os.memfd_create('doorbell')
os.ftruncate(memfd, 1 << 20)
theirs = {os.stat(plain).st_ino: "ivshmem-plain's file", os.fstat(memfd).st_ino: "ivshmem-doorbell's file"}
for name, protocol in ('no CONFIGURE_MEM_SLOTS', 1 << 9 | 1 << 3), ('CONFIGURE_MEM_SLOTS', 1 << 15 | 1 << 9 | 1 << 3):
    path = os.path.join(TMP, 'peers')
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(1)
    pid = os.fork()
    if pid == 0:
        peer = server.accept()[0]
        for number, passed in (0, None), (0, None), (-1, memfd), (0, os.eventfd(0)):
            peer.sendmsg([struct.pack('<q', number)],
                         [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [passed]))] if passed is not None else [])
        peer.recv(1)								# until QEMU ends
        os._exit(0)
    server.close()
    q = Qemu(protocol, theirs, '-device', 'vhost-user-blk-pci,chardev=c,num-queues=1,disable-legacy=on,addr=%d' % SLOT,
             '-object', 'memory-backend-file,id=other,mem-path=%s,size=1M,share=on' % plain, '-device', 'ivshmem-plain,memdev=other,addr=6',
             '-chardev', 'socket,id=d,path=' + path, '-device', 'ivshmem-doorbell,chardev=d,vectors=1,addr=7')
    try:
        q.up(FEATURES, 1)
        print('%s; DRIVER_OK, beyond the RAM: %s' % (name, q.said()))
        for device, slot, at in ('ivshmem-plain', 6, 0xd0000000), ('ivshmem-doorbell', 7, 0xd4000000):
            q.pci(0x18, at, slot)
            q.pci(0x1c, 0, slot)
            print('  %s, BAR set: %s' % (device, q.said()))
            q.pci(0x04, 2, slot)
            print('    decoding on: ' + q.said())
            q.pci(0x18, at + 0x1000000, slot)
            print('    moved: ' + q.said())
            q.pci(0x04, 0, slot)
            print('    decoding off: ' + q.said())
    finally:
        q.p.kill()
        q.p.wait()
        os.waitpid(pid, 0)
        os.unlink(path)
END

# ---- run -------------------------------------------------------------------------------------------------------------
export QEMU_MODULE_DIR="$root/$lib/qemu"
PYTHONHOME=$root/usr timeout 120 "$ld" --library-path "$libs" "$root/usr/bin/python3.11" -B "$tmp/both.py" "$tmp" \
	"$ld" --library-path "$libs" "$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/seabios" -L "$root/usr/share/qemu" \
	>"$tmp/seen" 2>"$tmp/out" || true

cat >"$tmp/want" <<'END'
no CONFIGURE_MEM_SLOTS; DRIVER_OK, beyond the RAM: nothing
  ivshmem-plain, BAR set: nothing
    decoding on: SET_MEM_TABLE with 0xd0000000, ivshmem-plain's file
    moved: SET_MEM_TABLE without 0xd0000000, ivshmem-plain's file, SET_MEM_TABLE with 0xd1000000, ivshmem-plain's file
    decoding off: SET_MEM_TABLE without 0xd1000000, ivshmem-plain's file
  ivshmem-doorbell, BAR set: nothing
    decoding on: SET_MEM_TABLE with 0xd4000000, ivshmem-doorbell's file
    moved: SET_MEM_TABLE without 0xd4000000, ivshmem-doorbell's file, SET_MEM_TABLE with 0xd5000000, ivshmem-doorbell's file
    decoding off: SET_MEM_TABLE without 0xd5000000, ivshmem-doorbell's file
CONFIGURE_MEM_SLOTS; DRIVER_OK, beyond the RAM: nothing
  ivshmem-plain, BAR set: nothing
    decoding on: ADD_MEM_REG of 0xd0000000, ivshmem-plain's file
    moved: REM_MEM_REG of 0xd0000000, ivshmem-plain's file, ADD_MEM_REG of 0xd1000000, ivshmem-plain's file
    decoding off: REM_MEM_REG of 0xd1000000, ivshmem-plain's file
  ivshmem-doorbell, BAR set: nothing
    decoding on: ADD_MEM_REG of 0xd4000000, ivshmem-doorbell's file
    moved: REM_MEM_REG of 0xd4000000, ivshmem-doorbell's file, ADD_MEM_REG of 0xd5000000, ivshmem-doorbell's file
    decoding off: REM_MEM_REG of 0xd5000000, ivshmem-doorbell's file
END
echo "QEMU ${QEMU#*:} (Debian):"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	tail -n 20 "$tmp/out"
	exit 1
fi
echo "AS DESCRIBED: what others share with a VM by an ivshmem device goes to the back-ends of its other devices"
