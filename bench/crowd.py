# SPDX-License-Identifier: BSD-3-Clause
"""A relay link with many queue pairs that are never idle, honest or not, and a neighbour's packets measured beside it.

Everything that plays VMs is one thread: it fills the crowd's rings up again, a queue at a time, and looks after the neighbour's packet
in between. So it takes no time from what it measures, and the data thread has a CPU of its own.
"""
import array
import json
import mmap
import os
import random
import socket
import struct
import time

import frontend as fe

INDIRECT, MRG, CSUM, TSO4 = 1 << 28, 1 << 15, 1 << 0, 1 << 11
NEXT, WRITE, TABLE = 1, 2, 4
HDR = 12
UVA = 0x7f5500000000
ONE = struct.pack("=Q", 1)


class CrowdVm:
    """One side: `pairs` queue pairs of `size`. fill(vm, q, i) says which descriptor (address, length, flags) slot i of queue q is."""

    def __init__(self, path, pairs, size, features, memory, fill):
        self.pairs, self.size = pairs, size
        self.fd = os.memfd_create("crowd", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        span = (16 * size + 6 + 2 * size + 6 + 8 * size + 8191) // 4096 * 4096
        self.next, total = span * 2 * pairs, span * 2 * pairs + memory
        os.ftruncate(self.fd, total)
        self.map = mmap.mmap(self.fd, total)
        self.h = memoryview(self.map).cast("H")
        self.fds, self.s = [], socket.socket(socket.AF_UNIX)
        self.s.connect(path)
        offered = self.ask(fe.GET_FEATURES)
        self.send(fe.SET_OWNER)
        self.send(fe.SET_FEATURES, struct.pack("<Q", offered & (features | fe.VERSION_1)))
        self.send(fe.SET_MEM_TABLE, struct.pack("<IIQQQQ", 1, 0, 0, total, UVA, 0), [self.fd])
        self.avail, self.used, self.kick = [], [], []
        for q in range(2 * pairs):
            desc = q * span
            avail, used = desc + 16 * size, desc + 16 * size + 4096 * ((6 + 2 * size + 4095) // 4096)
            used = min(used, desc + span - 6 - 8 * size) // 4 * 4
            for i in range(size):
                struct.pack_into("<QIHH", self.map, desc + 16 * i, *fill(self, q, i), 0)
                self.h[avail // 2 + 2 + i] = i
            self.avail.append(avail // 2 + 1)
            self.used.append(used // 2 + 1)
            kick, call = fe.eventfd(), fe.eventfd()
            self.fds += [kick, call]
            self.kick.append(kick)
            self.send(fe.SET_VRING_NUM, struct.pack("<II", q, size))
            self.send(fe.SET_VRING_BASE, struct.pack("<II", q, 0))
            self.send(fe.SET_VRING_ADDR, struct.pack("<IIQQQQ", q, 0, UVA + desc, UVA + used, UVA + avail, 0))
            self.send(fe.SET_VRING_CALL, struct.pack("<Q", q), [call])
            self.send(fe.SET_VRING_KICK, struct.pack("<Q", q), [kick])
            self.h[avail // 2] = 1  # VRING_AVAIL_F_NO_INTERRUPT
        self.ask(fe.GET_FEATURES)

    def alloc(self, n, align=64):
        at = (self.next + align - 1) // align * align
        self.next = at + n
        return at

    def send(self, request, payload=b"", fds=()):
        anc = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.s.sendmsg([struct.pack("<III", request, 1, len(payload)) + payload], anc)

    def ask(self, request):
        self.send(request)
        data = b""
        while len(data) < 20:
            data += self.s.recv(20 - len(data))
        return struct.unpack_from("<Q", data, 12)[0]

    def refill(self, q):
        """Offer everything that came back; a ring that ran empty may be asleep."""
        h, avail = self.h, self.avail[q]
        used, offered = h[self.used[q]], h[avail]
        h[avail] = (used + self.size) & 0xffff
        if used == offered:
            os.write(self.kick[q], ONE)

    def hang_up(self):
        self.s.close()

    def close(self):
        self.s.close()
        for fd in self.fds:
            os.close(fd)
        self.h.release()
        self.map.close()
        os.close(self.fd)


def tcp4(plen):
    """Ethernet, IPv4 and TCP headers in front of plen bytes."""
    eth = bytes([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0])
    ip = struct.pack(">BBHHHBBHII", 0x45, 0, min(40 + plen, 65535), 1, 0, 64, 6, 0, 0x0a000001, 0x0a000002)
    return eth + ip + struct.pack(">HHIIBBHHH", 1, 2, 3, 4, 0x50, 0x10, 0xffff, 0, 0)


# ---- what a transmit slot holds ---------------------------------------------------------------------------------------------

def whole(size, own=True):
    """Packets of one descriptor."""
    def fill(vm, q, i):
        if own or i == 0 and q == 1:
            vm.buf = vm.alloc(HDR + size)
        return vm.buf, HDR + size, 0
    return fill


def tso(payload, mss):
    def fill(vm, q, i):
        if i == 0:
            head = struct.pack("<BBHHHHH", 1, 1, 54, mss, 34, 16, 0) + tcp4(payload)
            vm.buf = vm.alloc(len(head) + payload)
            vm.map[vm.buf:vm.buf + len(head)] = head
        return vm.buf, HDR + 54 + payload, 0
    return fill


def needs_csum(size):
    def fill(vm, q, i):
        if i == 0:
            head = struct.pack("<BBHHHHH", 1, 0, 0, 0, 34, 16, 0) + tcp4(size - 54)
            vm.buf = vm.alloc(HDR + size)
            vm.map[vm.buf:vm.buf + len(head)] = head
        return vm.buf, HDR + size, 0
    return fill


def tables(n, length, tables_per_queue=32, scattered=False, write=0):
    """Indirect tables of n entries of `length` bytes each (0: nothing in them), in any order and each on a page of its own."""
    def fill(vm, q, i):
        if i == 0:
            vm.tables = []
            if not hasattr(vm, "data"):
                vm.data = vm.alloc(max(length, 64) if not scattered else 4096 * n, 4096)
        if i < tables_per_queue:
            at = vm.alloc(16 * n, 16)
            order = list(range(1, n))
            if scattered:
                random.Random(i).shuffle(order)
            order = [0] + order
            for k, e in enumerate(order):
                end = k == n - 1
                struct.pack_into("<QIHH", vm.map, at + 16 * e, vm.data + (4096 * e + 64 * (e % 60) if scattered else 0), length,
                                 write | (0 if end else NEXT), 0 if end else order[k + 1])
            vm.tables.append(at)
        return vm.tables[i % tables_per_queue], 16 * n, TABLE
    return fill


def room(size, own=True):
    """Receive buffers of one descriptor, each its own or all the same."""
    def fill(vm, q, i):
        if own or not hasattr(vm, "rx"):
            vm.rx = vm.alloc(HDR + size)
        return vm.rx, HDR + size, WRITE
    return fill


# name: ring size of the transmitting queues, what their slots are, bytes of memory that each needs; the same of the receiving ones
M = 1 << 20
USUAL = (1024, room(1518), 2 * M)
HONEST = {
    "64 B": (1024, whole(64), M) + USUAL,
    "1518 B": (1024, whole(1518), 2 * M) + USUAL,
    "64 KiB": (256, whole(65000, own=False), M) + USUAL,
}
HOSTILE = {
    "empty tables": (1024, tables(256, 0), M) + USUAL,
    "empty tables, ring of 32768": (32768, tables(256, 0, 8), M) + USUAL,
    "short empty tables": (1024, tables(8, 0), M) + USUAL,
    "tables of single bytes": (1024, tables(256, 1), M) + USUAL,
    "scattered": (1024, tables(256, 250, 32, True), 2 * M) + USUAL,
    "scattered on both sides": (1024, tables(256, 250, 32, True), 2 * M, 1024, tables(256, 250, 32, True, WRITE), 2 * M),
    "segments, mss 410": (256, tso(65000, 410), M) + USUAL,
    "segments, mss 1": (256, tso(32000, 1), M, 32768, room(116, own=False), M),
    "checksums of 64 KiB": (256, needs_csum(65000), M) + USUAL,
    "receiver with small buffers": (256, whole(65000, own=False), M, 1024, room(116), M),
    "receiver with tiny buffers": (256, whole(65000, own=False), M, 32768, room(4), 3 * M),
}
# What the daemon refuses: each breaks its queue, once it is seen.
REFUSED = {
    "empty tables of 32768": (1024, tables(32768, 0, 2), 2 * M) + USUAL,
}


class Crowd:
    """Both VMs of a link, the first sending to the second on all pairs."""

    def __init__(self, sockets, pairs, what):
        size, transmit, memory, rx_size, receive, rx_memory = what
        self.pairs = pairs
        self.tx = CrowdVm(sockets[0], pairs, size, INDIRECT | CSUM | TSO4, pairs * memory + 4 * M,
                          lambda vm, q, i: transmit(vm, q, i) if q & 1 else (0, 64, WRITE))
        self.rx = CrowdVm(sockets[1], pairs, rx_size, INDIRECT | MRG, pairs * rx_memory + 4 * M,
                          lambda vm, q, i: (0, 64, 0) if q & 1 else receive(vm, q, i))
        self.turn = 0

    def step(self):
        """A little of the refilling; called again and again."""
        p = self.turn = (self.turn + 1) % self.pairs
        self.rx.refill(2 * p)
        self.tx.refill(2 * p + 1)

    def begin(self):
        for p in range(self.pairs):
            self.rx.refill(2 * p)
            self.tx.refill(2 * p + 1)

    def drain(self):
        """Until nothing is left to send."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            for p in range(self.pairs):
                self.rx.refill(2 * p)
            if all(self.tx.h[self.tx.used[q]] == self.tx.h[self.tx.avail[q]] for q in range(1, 2 * self.pairs, 2)):
                return
            time.sleep(0.001)

    def hang_up(self):
        """Leave, and keep the memory: freeing it takes a while."""
        self.tx.hang_up()
        self.rx.hang_up()

    def close(self):
        self.tx.close()
        self.rx.close()


class Neighbour:
    """A link with one pair, and one packet under way at a time."""

    def __init__(self, sockets):
        send, receive = whole(64), room(1518)
        fill = lambda vm, q, i: send(vm, q, i) if q & 1 else receive(vm, q, i)  # noqa: E731
        self.a = CrowdVm(sockets[0], 1, 256, 0, M, fill)
        self.b = CrowdVm(sockets[1], 1, 256, MRG, M, fill)
        self.b.refill(0)
        self.sent = 0

    def send(self):
        h, a = self.a.h, self.a
        self.sent = (self.sent + 1) & 0xffff
        h[a.avail[1]] = self.sent
        os.write(a.kick[1], ONE)

    def arrived(self):
        b = self.b
        if b.h[b.used[0]] != self.sent:
            return False
        b.refill(0)
        return True

    def close(self):
        self.a.close()
        self.b.close()


def measure(crowd, nb, control, seconds, gap=(0.0002, 0.002), half_time=None):
    """Times in us of the neighbour's packets and of requests at the control socket (a path), while the crowd is at work.
    half_time is called in the middle, and followed by a request at once."""
    rng = random.Random(1)
    s = socket.socket(socket.AF_UNIX)
    s.connect(control)
    s.setblocking(False)
    request = json.dumps({"version": 1, "id": 1, "method": "link.list", "params": {}}).encode() + b"\n"
    now = time.perf_counter
    packets, answers, pending = [], [], b""
    sent = asked = None
    next_send = next_ask = now() + 0.05
    end = next_send + seconds
    half = end - seconds / 2
    crowd.begin()
    try:
        while True:
            crowd.step()
            t = now()
            if half_time and t >= half and asked is None:
                half_time()
                half_time, next_ask, t = None, t, now()
            if sent is not None:
                if nb.arrived():
                    packets.append((now() - sent) * 1e6)
                    sent, next_send = None, now() + rng.uniform(*gap)
            elif t >= end and asked is None:
                break
            elif t >= next_send and t < end:
                sent = now()
                nb.send()
            if asked is None:
                if next_ask <= t < end:
                    asked = t
                    s.send(request)
            elif t >= next_ask:
                next_ask = t + 0.0005
                try:
                    pending += s.recv(1 << 16)
                except BlockingIOError:
                    continue
                if pending.endswith(b"\n"):
                    answers.append((now() - asked) * 1e6)
                    asked, pending, next_ask = None, b"", now() + 0.02
            if t > end + 60:
                raise TimeoutError("a packet or an answer did not come within a minute")
    finally:
        s.close()
    return packets, answers
