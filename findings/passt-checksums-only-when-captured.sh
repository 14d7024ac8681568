#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# passt leaves the TCP checksum of what it sends to a VM over vhost-user at zero, for a driver that has not negotiated to get such packets.
# With --pcap, with which one would look for that, all checksums are right.
#
#   software   passt 0.0~git20250503.587980c (Debian 0.0~git20250503.587980c-2+deb13u1)
#   input      valid: a vhost-user front-end that takes VERSION_1 and MRG_RXBUF of what is offered, as a driver on a VM would; ARP, a SYN to
#              a port of the host's loopback, its ACK; the program on the host sends 11 bytes
#   expected   GUEST_CSUM is not negotiated, nor offered at all: packets come with full checksums and flags 0 (virtio 1.2, 5.1.6.4.1)
#   seen       checksum 0, and VIRTIO_NET_HDR_F_DATA_VALID in the header: "somebody has looked at it, and it is right"
#   and        with --pcap right checksums come, and the same flag. Over its other socket (QEMU's -netdev stream) they always come
#
# The passt of July 2026 (0.0~git20260728.f8df3f1, backports of Debian 13), tried by hand, offers GUEST_CSUM, and who does not take it gets right
# checksums; the flag comes all the same. A guest that takes the packet for itself believes the flag. Who only looks at bytes does not: a user-space stack without the flag (DPDK, a nested
# VM's device), a guest that passes the packet on to another network, tcpdump. None of them is tried here.
# Why it matters to vhost-pci: in copy mode the daemon stands between, and would have to refuse the flag to a driver without GUEST_CSUM: it lets
# it through for this one's sake (lib/net/offload.h).
#
# Needs apt that knows a Debian mirror, python3, 100 MB of space in TMPDIR and about half a minute. Installs nothing on this machine.
set -eu

PINNED=passt=0.0~git20250503.587980c-2+deb13u1
SUITE=trixie

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT INT TERM
root=$tmp/root
lib=usr/lib/x86_64-linux-gnu

# ---- the package, with all that it needs, into a folder of its own -------------------------------------------------
# shellcheck disable=SC2016
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 'Origin: Debian' | grep -v security | head -n 1)
[ -n "$mirror" ] || { echo "apt knows no Debian mirror: run apt-get update"; exit 1; }
mkdir -p "$tmp/apt/archives/partial" "$tmp/apt/state/lists/partial" "$root"
: >"$tmp/apt/status"
echo "deb $mirror $SUITE main" >"$tmp/sources.list"
cat >"$tmp/apt.conf" <<END
Dir::Etc::SourceList "$tmp/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State "$tmp/apt/state";
Dir::State::status "$tmp/apt/status";
Dir::Cache "$tmp/apt";
APT::Install-Recommends "0";
APT::Sandbox::User "";
Acquire::Languages "none";
END
export APT_CONFIG="$tmp/apt.conf"
{ apt-get update -qq && apt-get install -qq -y --download-only $PINNED; } >"$tmp/apt.log" 2>&1 || { cat "$tmp/apt.log"; exit 1; }
for p in "$tmp"/apt/archives/*.deb; do
	dpkg-deb -x "$p" "$root"
done
for ld in "$root/usr/lib64/ld-linux-x86-64.so.2" "$root/$lib/ld-linux-x86-64.so.2"; do
	[ -e "$ld" ] && break
done
# Started by root it goes on as nobody.
chmod 755 "$tmp"
mkdir -m 1777 "$tmp/run"

# ---- a VM: either kind of socket, one TCP connection -------------------------------------------------------------------
cat >"$tmp/vm.py" <<'END'
import array, mmap, os, socket, struct, subprocess, sys, time

path, vhost, argv = sys.argv[1], '--vhost-user' in sys.argv, sys.argv[2:]
HOST, GUEST, MAC = socket.inet_aton('192.0.2.1'), socket.inet_aton('192.0.2.2'), bytes.fromhex('020000000002')
MEM, GPA, RX, TX, AVAIL, USED, BUFS, FRAMES, HDR = 1 << 20, 1 << 30, 0, 0x4000, 0x1000, 0x2000, 0x10000, 0x80000, 12


class Vhost:
    def __init__(self, s):
        self.s, self.n = s, [0, 0]
        fd = os.memfd_create('ram')
        os.ftruncate(fd, MEM)
        m = self.m = mmap.mmap(fd, MEM)
        self.send(1)
        offered = self.answer()
        print('  GUEST_CSUM is %soffered' % ('' if offered >> 1 & 1 else 'not '))
        self.send(3)
        self.send(15)
        self.answer()
        self.send(16, struct.pack('<Q', 0))
        self.send(2, struct.pack('<Q', offered & (1 << 32 | 1 << 30 | 1 << 15)))
        self.send(5, struct.pack('<IIQQQQ', 1, 0, GPA, MEM, GPA, 0), [fd])
        for i in range(16):
            m[16 * i:16 * i + 16] = struct.pack('<QIHH', GPA + BUFS + 4096 * i, 4096, 2, 0)
            m[AVAIL + 4 + 2 * i:AVAIL + 6 + 2 * i] = struct.pack('<H', i)
        m[AVAIL + 2:AVAIL + 4] = struct.pack('<H', 16)
        for i, at in enumerate((RX, TX)):
            self.kick = os.eventfd(0)
            self.send(8, struct.pack('<II', i, 16))
            self.send(10, struct.pack('<II', i, 0))
            self.send(9, struct.pack('<IIQQQQ', i, 0, GPA + at, GPA + at + USED, GPA + at + AVAIL, 0))
            self.send(13, struct.pack('<Q', i), [os.eventfd(0)])
            self.send(12, struct.pack('<Q', i), [self.kick])
            self.send(18, struct.pack('<II', i, 1))

    def send(self, req, body=b'', fds=()):
        anc = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))] if fds else []
        self.s.sendmsg([struct.pack('<III', req, 1, len(body)) + body], anc)

    def answer(self):
        return struct.unpack('<Q', self.s.recv(struct.unpack('<III', self.s.recv(12, socket.MSG_WAITALL))[2], socket.MSG_WAITALL))[0]

    def transmit(self, frame):
        i, m = self.n[1], self.m
        at = FRAMES + 4096 * i
        m[at:at + HDR + len(frame)] = bytes(HDR) + frame
        m[TX + 16 * i:TX + 16 * i + 16] = struct.pack('<QIHH', GPA + at, HDR + len(frame), 0, 0)
        m[TX + AVAIL + 4 + 2 * i:TX + AVAIL + 6 + 2 * i] = struct.pack('<H', i)
        self.n[1] += 1
        m[TX + AVAIL + 2:TX + AVAIL + 4] = struct.pack('<H', i + 1)
        os.eventfd_write(self.kick, 1)

    def receive(self):
        """Flags of the header, frame."""
        end, n, m = time.monotonic() + 20, self.n[0], self.m
        while struct.unpack('<H', m[USED + 2:USED + 4])[0] == n:
            assert time.monotonic() < end, 'nothing comes'
            time.sleep(0.01)
        self.n[0] += 1
        i, size = struct.unpack('<II', m[USED + 4 + 8 * n:USED + 12 + 8 * n])
        buf = bytes(m[BUFS + 4096 * i:BUFS + 4096 * i + size])
        return {0: ', flags 0', 2: ', DATA_VALID'}.get(buf[0], ', flags %d' % buf[0]), buf[HDR:]


class Stream:
    def __init__(self, s):
        self.s = s

    def transmit(self, frame):
        self.s.sendall(struct.pack('>I', len(frame)) + frame)

    def receive(self):
        return '', self.s.recv(struct.unpack('>I', self.s.recv(4, socket.MSG_WAITALL))[0], socket.MSG_WAITALL)


def checksum(b):
    n = sum(struct.unpack('>%dH' % ((len(b) + 1) // 2), b + bytes(len(b) % 2)))
    while n >> 16:
        n = (n & 0xffff) + (n >> 16)
    return ~n & 0xffff


def pseudo(ip_from, ip_to, size):
    return ip_from + ip_to + struct.pack('>BBH', 0, 6, size)


def segment(seq, ack, flags):
    t = struct.pack('>HHIIBBHHH', 40000, port, seq, ack, 0x50, flags, 65535, 0, 0)
    t = t[:16] + struct.pack('>H', checksum(pseudo(GUEST, HOST, len(t)) + t)) + t[18:]
    h = struct.pack('>BBHHHBBH', 0x45, 0, 20 + len(t), 1, 0x4000, 64, 6, 0) + GUEST + HOST
    vm.transmit(gateway + MAC + b'\x08\x00' + h[:10] + struct.pack('>H', checksum(h)) + h[12:] + t)


def expect(name, flags):
    """The next TCP segment with these flags, and what is said of it. Its sequence number."""
    while True:
        said, frame = vm.receive()
        ip = frame[14:14 + struct.unpack('>H', frame[16:18])[0]]
        t = ip[20:]
        if frame[12:14] == b'\x08\x00' and ip[9] == 6 and t[13] == flags:
            right = checksum(pseudo(ip[12:16], ip[16:20], len(t)) + t) == 0
            print('  %s: TCP checksum %s%s' % (name, 'right' if right else 'zero' if t[16:18] == b'\0\0' else 'wrong', said))
            return struct.unpack('>I', t[4:8])[0]


listener = socket.create_server(('127.0.0.1', 0))
listener.settimeout(20)
port = listener.getsockname()[1]
passt = subprocess.Popen(argv)
try:
    end = time.monotonic() + 20
    while True:
        s = socket.socket(socket.AF_UNIX)
        try:
            s.connect(path)
            break
        except OSError:
            assert time.monotonic() < end and passt.poll() is None, 'no passt'
            time.sleep(0.1)
    s.settimeout(20)
    vm = Vhost(s) if vhost else Stream(s)
    vm.transmit(b'\xff' * 6 + MAC + struct.pack('>HHHBBH', 0x806, 1, 0x800, 6, 4, 1) + MAC + GUEST + bytes(6) + HOST)
    frame = b''
    while frame[12:14] != b'\x08\x06':
        frame = vm.receive()[1]
    gateway = frame[6:12]
    segment(1000, 0, 0x02)
    seq = expect('SYN, ACK', 0x12)
    segment(1001, seq + 1, 0x10)
    listener.accept()[0].send(b'hello world')
    expect('data', 0x18)
finally:
    passt.kill()
    passt.wait()
END

# ---- run -----------------------------------------------------------------------------------------------------------
run() { # NAME, OPTIONS
	echo "$1:"
	shift
	rm -f "$tmp/run/sock"
	timeout 60 python3 -B "$tmp/vm.py" "$tmp/run/sock" "$ld" --library-path "$root/$lib" "$root/usr/bin/passt" --foreground --quiet --socket "$tmp/run/sock" \
		-4 -a 192.0.2.2 -n 24 -g 192.0.2.1 -i lo -D none -t none -u none "$@" 2>>"$tmp/out" || echo "  failed"
}
{
	run 'vhost-user' --vhost-user
	run 'vhost-user, --pcap' --vhost-user --pcap "$tmp/run/pcap"
	run 'stream'
} >"$tmp/seen"

cat >"$tmp/want" <<'END'
vhost-user:
  GUEST_CSUM is not offered
  SYN, ACK: TCP checksum zero, DATA_VALID
  data: TCP checksum zero, DATA_VALID
vhost-user, --pcap:
  GUEST_CSUM is not offered
  SYN, ACK: TCP checksum right, DATA_VALID
  data: TCP checksum right, DATA_VALID
stream:
  SYN, ACK: TCP checksum right
  data: TCP checksum right
END
echo "passt ${PINNED#*=} (Debian):"
sed 's/^/  /' "$tmp/seen"
if ! cmp -s "$tmp/want" "$tmp/seen"; then
	echo "CHANGED: not what was seen before:"
	diff "$tmp/want" "$tmp/seen" || true
	cat "$tmp/out"
	exit 1
fi
echo "AS DESCRIBED: over vhost-user there is no TCP checksum, unless somebody captures"
