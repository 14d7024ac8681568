# SPDX-License-Identifier: BSD-3-Clause
"""A vhost-user front-end and virtio-net driver in Python, for tests.

Written from the specifications, not from the C code: the vhost-user protocol
and virtio 1.3 (split virtqueues 2.7, packed virtqueues 2.8). It trusts nothing
and lets a test send anything.
"""
import array
import ctypes
import mmap
import os
import select
import socket
import struct
import time

# virtio and vhost-user feature bits
NET_CSUM, NET_GUEST_CSUM, NET_MTU, NET_MAC = 0, 1, 3, 5
NET_GUEST_TSO4, NET_GUEST_TSO6, NET_HOST_TSO4, NET_HOST_TSO6 = 7, 8, 11, 12
NET_MRG_RXBUF, NET_STATUS, NET_MQ = 15, 16, 22
LOG_ALL, ANY_LAYOUT, INDIRECT, EVENT_IDX, PROTOCOL = 26, 27, 28, 29, 30
VERSION_1, PACKED, IN_ORDER = 32, 34, 35

PF_MQ, PF_LOG_SHMFD, PF_REPLY_ACK, PF_MTU, PF_BACKEND_REQ, PF_CONFIG = 0, 1, 3, 4, 5, 9
PF_BACKEND_SEND_FD, PF_RESET_DEVICE, PF_MEM_SLOTS, PF_STATUS = 10, 13, 15, 16

GET_FEATURES, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE, SET_LOG_BASE, SET_LOG_FD = range(1, 8)
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE, SET_VRING_KICK, SET_VRING_CALL = range(8, 14)
SET_VRING_ERR, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = range(14, 19)
SEND_RARP, NET_SET_MTU, SET_BACKEND_REQ_FD, IOTLB_MSG, SET_VRING_ENDIAN, GET_CONFIG, SET_CONFIG = range(19, 26)
POSTCOPY_ADVISE, GET_INFLIGHT_FD, SET_INFLIGHT_FD, RESET_DEVICE = 28, 31, 32, 34
GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG, SET_STATUS, GET_STATUS = 36, 37, 38, 39, 40

DESC_NEXT, DESC_WRITE, DESC_INDIRECT = 1, 2, 4
PACKED_AVAIL, PACKED_USED = 1 << 7, 1 << 15

libc = ctypes.CDLL(None, use_errno=True)


def bit(*bits):
    return sum(1 << b for b in bits)


def eventfd(value=0, flags=os.O_CLOEXEC | os.O_NONBLOCK):
    fd = libc.eventfd(ctypes.c_uint(value), flags)
    assert fd >= 0
    return fd


class Refused(Exception):
    """The back-end answered with an error."""


class Gone(Exception):
    """The back-end closed the connection."""


class Memory:
    """Guest memory: one memfd, with a bump allocator."""

    def __init__(self, size=8 << 20, gpa=0x1_0000_0000, uva=0x7f55_0000_0000, seal=True):
        self.size, self.gpa, self.uva = size, gpa, uva
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC | 2)
        os.ftruncate(self.fd, size)
        if seal:
            import fcntl
            fcntl.fcntl(self.fd, 1033, 0x2 | 0x4)  # F_ADD_SEALS: F_SEAL_SHRINK | F_SEAL_GROW
        self.map = mmap.mmap(self.fd, size)
        self.views = {c: memoryview(self.map).cast(c) for c in "HIQ"}
        self.next = 4096

    def alloc(self, size, align=64):
        self.next = (self.next + align - 1) & ~(align - 1)
        off = self.next
        self.next += size
        assert self.next <= self.size
        return off

    def close(self):
        for view in self.views.values():
            view.release()
        try:
            self.map.close()
        except BufferError:
            pass  # a released view's parent is collected later
        os.close(self.fd)

    # A single field is one load or store through a typed view. struct.pack_into() would clear the
    # field first and unpack byte by byte: the back-end would see half an index.

    def w(self, fmt, off, *v):
        if len(fmt) == 1:
            view = self.views[fmt]
            view[off // view.itemsize] = v[0]
        else:
            struct.pack_into("<" + fmt, self.map, off, *v)

    def r(self, fmt, off):
        if len(fmt) == 1:
            view = self.views[fmt]
            return view[off // view.itemsize]
        return struct.unpack_from("<" + fmt, self.map, off)


class SplitRing:
    packed = False
    in_order = False  # descriptors are taken and come back in ring order, one used entry for each chain

    def __init__(self, mem, size=256):
        self.mem, self.size = mem, size
        self.desc = mem.alloc(16 * size, 4096)
        self.avail = mem.alloc(6 + 2 * size, 2)
        self.used = mem.alloc(6 + 8 * size, 4)
        self.reset()

    def reset(self):
        for area, n in ((self.desc, 16 * self.size), (self.avail, 6 + 2 * self.size), (self.used, 6 + 8 * self.size)):
            self.mem.map[area:area + n] = bytes(n)
        self.free = list(range(self.size))
        self.chains = {}
        self.avail_idx = self.used_idx = 0

    def base(self):
        return self.avail_idx

    def take(self):
        return self.free.pop(0 if self.in_order else -1)

    def add(self, bufs, token=None, indirect=False):
        """bufs: list of (offset in memory, length, device may write)."""
        if indirect:
            table = self.mem.alloc(16 * len(bufs), 16)
            for i, (off, length, write) in enumerate(bufs):
                last = i == len(bufs) - 1
                self.mem.w("QIHH", table + 16 * i, self.mem.gpa + off, length,
                           (DESC_WRITE if write else 0) | (0 if last else DESC_NEXT), 0 if last else i + 1)
            ids = [self.take()]
            self.raw_desc(ids[0], self.mem.gpa + table, 16 * len(bufs), DESC_INDIRECT, 0)
        else:
            ids = [self.take() for _ in bufs]
            for i, (off, length, write) in enumerate(bufs):
                last = i == len(bufs) - 1
                self.raw_desc(ids[i], self.mem.gpa + off, length,
                              (DESC_WRITE if write else 0) | (0 if last else DESC_NEXT), 0 if last else ids[i + 1])
        self.chains[ids[0]] = (ids, token, bufs)
        self.expose(ids[0])

    def raw_desc(self, i, addr, length, flags, nxt):
        self.mem.w("QIHH", self.desc + 16 * i, addr & (1 << 64) - 1, length, flags, nxt)

    def expose(self, head):
        self.mem.w("H", self.avail + 4 + 2 * (self.avail_idx % self.size), head)
        self.set_avail_idx(self.avail_idx + 1)

    def set_avail_idx(self, idx):
        self.avail_idx = idx & 0xffff
        self.mem.w("H", self.avail + 2, self.avail_idx)

    def get(self):
        """(token, bufs, length written) of the next chain that came back, or None."""
        if self.mem.r("H", self.used + 2) == self.used_idx:
            return None
        head, length = self.mem.r("II", self.used + 4 + 8 * (self.used_idx % self.size))
        self.used_idx = (self.used_idx + 1) & 0xffff
        assert not self.in_order or head == next(iter(self.chains)), f"chain {head} came back out of order"
        ids, token, bufs = self.chains.pop(head)
        self.free += ids
        return token, bufs, length


class PackedRing:
    packed = True
    in_order = False

    def __init__(self, mem, size=256):
        self.mem, self.size = mem, size
        self.desc = mem.alloc(16 * size, 4096)
        self.avail = mem.alloc(4, 4)
        self.used = mem.alloc(4, 4)
        self.reset()

    def reset(self):
        self.mem.map[self.desc:self.desc + 16 * self.size] = bytes(16 * self.size)
        self.mem.w("I", self.avail, 0)
        self.mem.w("I", self.used, 0)
        self.next_avail, self.avail_wrap = 0, 1
        self.next_used, self.used_wrap = 0, 1
        self.free = list(range(self.size))
        self.room = self.size
        self.chains = {}

    def base(self):
        v = self.next_avail | self.avail_wrap << 15
        return v | v << 16

    def add(self, bufs, token=None, indirect=False):
        ident = self.free.pop(0 if self.in_order else -1)
        entries = []
        if indirect:
            table = self.mem.alloc(16 * len(bufs), 16)
            for i, (off, length, write) in enumerate(bufs):
                self.mem.w("QIHH", table + 16 * i, self.mem.gpa + off, length, 0, DESC_WRITE if write else 0)
            entries.append((self.mem.gpa + table, 16 * len(bufs), DESC_INDIRECT))
        else:
            for i, (off, length, write) in enumerate(bufs):
                entries.append((self.mem.gpa + off, length,
                                (DESC_WRITE if write else 0) | (DESC_NEXT if i < len(bufs) - 1 else 0)))
        self.chains[ident] = (len(entries), token, bufs)
        self.raw(entries, ident)

    def raw(self, entries, ident):
        assert self.room >= len(entries)
        first = self.next_avail, self.avail_wrap
        for i, (addr, length, flags) in enumerate(entries):
            at, wrap = self.next_avail, self.avail_wrap
            flags |= PACKED_AVAIL if wrap else PACKED_USED
            self.mem.w("QIH", self.desc + 16 * at, addr & (1 << 64) - 1, length, ident)
            if i:
                self.mem.w("H", self.desc + 16 * at + 14, flags)
            else:
                head_flags = flags
            self.next_avail += 1
            if self.next_avail == self.size:
                self.next_avail, self.avail_wrap = 0, self.avail_wrap ^ 1
        self.room -= len(entries)
        self.mem.w("H", self.desc + 16 * first[0] + 14, head_flags)

    def get(self):
        flags = self.mem.r("H", self.desc + 16 * self.next_used + 14)
        if bool(flags & PACKED_AVAIL) != bool(self.used_wrap) or bool(flags & PACKED_USED) != bool(self.used_wrap):
            return None
        length, ident = self.mem.r("IH", self.desc + 16 * self.next_used + 8)
        assert not self.in_order or ident == next(iter(self.chains)), f"chain {ident} came back out of order"
        n, token, bufs = self.chains.pop(ident)
        self.next_used += n
        self.room += n
        if self.next_used >= self.size:
            self.next_used -= self.size
            self.used_wrap ^= 1
        self.free.append(ident)
        return token, bufs, length


class Frontend:
    """One connection. Methods named as messages send them; raw() sends anything."""

    def __init__(self, path, timeout=30, listen=None):
        if listen is not None:
            listen.settimeout(timeout)
            self.sock, _ = listen.accept()
        else:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(path)
        self.sock.settimeout(timeout)
        self.reply_ack = False
        self.features = self.protocol = 0
        self.mem = None
        self.rings = {}
        self.fds = []

    def close(self):
        self.sock.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = []
        if self.mem:
            self.mem.close()
            self.mem = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # -- messages

    def raw(self, data, fds=()):
        anc = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self.sock.sendmsg([data], anc)
        except (BrokenPipeError, ConnectionResetError) as err:
            raise Gone() from err

    def recv_exact(self, n):
        data = b""
        while len(data) < n:
            try:
                part = self.sock.recv(n - len(data))
            except ConnectionResetError as err:
                raise Gone() from err
            if not part:
                raise Gone()
            data += part
        return data

    def recv_reply(self, request):
        req, flags, size = struct.unpack("<III", self.recv_exact(12))
        data = self.recv_exact(size)
        assert req == request and flags & 0x7 == 0x5, (req, flags)
        return data

    def send(self, request, payload=b"", fds=(), need_reply=None):
        need = self.reply_ack if need_reply is None else need_reply
        self.raw(struct.pack("<III", request, 1 | (8 if need else 0), len(payload)) + payload, fds)
        return need

    def ask(self, request, payload=b"", fds=()):
        """A message that has a reply of its own."""
        self.send(request, payload, fds, need_reply=False)
        return self.recv_reply(request)

    def tell(self, request, payload=b"", fds=()):
        """A message that is only acknowledged, when that was negotiated."""
        if self.send(request, payload, fds):
            code, = struct.unpack("<Q", self.recv_reply(request))
            if code:
                raise Refused(request, code)

    def ask_u64(self, request):
        return struct.unpack("<Q", self.ask(request))[0]

    def tell_u64(self, request, v, fds=()):
        self.tell(request, struct.pack("<Q", v), fds)

    def tell_state(self, request, q, num):
        self.tell(request, struct.pack("<II", q, num))

    # -- set-up

    def negotiate(self, features, protocol=bit(PF_REPLY_ACK, PF_CONFIG, PF_MEM_SLOTS, PF_STATUS, PF_RESET_DEVICE,
                                               PF_LOG_SHMFD)):
        """features: wanted bits; those not offered are left out. PROTOCOL is added when protocol is not 0."""
        offered = self.ask_u64(GET_FEATURES)
        self.offered = offered
        self.tell(SET_OWNER)
        if protocol:
            assert offered >> PROTOCOL & 1
            self.offered_protocol = self.ask_u64(GET_PROTOCOL_FEATURES)
            self.protocol = protocol & self.offered_protocol
            self.tell_u64(SET_PROTOCOL_FEATURES, self.protocol)
            self.reply_ack = bool(self.protocol >> PF_REPLY_ACK & 1)
            features |= bit(PROTOCOL)
        self.features = features & offered
        self.tell_u64(SET_FEATURES, self.features)

    def region(self, mem):
        return struct.pack("<QQQQ", mem.gpa, mem.size, mem.uva, 0)

    def set_memory(self, mem):
        self.mem = mem
        self.tell(SET_MEM_TABLE, struct.pack("<II", 1, 0) + self.region(mem), [mem.fd])

    def addr_msg(self, q, ring, flags=0, log=0):
        u = self.mem.uva
        return struct.pack("<IIQQQQ", q, flags, u + ring.desc, u + ring.used, u + ring.avail, log)

    def start_ring(self, q, ring, call=True, enable=True, base=None):
        kick, callfd = eventfd(), eventfd() if call else None
        self.fds += [kick] + ([callfd] if call else [])
        self.rings[q] = ring
        ring.kick_fd, ring.call_fd = kick, callfd
        self.tell_state(SET_VRING_NUM, q, ring.size)
        self.tell_state(SET_VRING_BASE, q, ring.base() if base is None else base)
        if call:
            self.tell_u64(SET_VRING_CALL, q, [callfd])
        else:
            self.tell_u64(SET_VRING_CALL, q | 0x100)
        self.tell(SET_VRING_ADDR, self.addr_msg(q, ring))
        self.tell_u64(SET_VRING_KICK, q, [kick])
        if self.features >> PROTOCOL & 1 and enable:
            self.tell_state(SET_VRING_ENABLE, q, 1)

    def stop_ring(self, q):
        data = self.ask(GET_VRING_BASE, struct.pack("<II", q, 0))
        got, base = struct.unpack("<II", data)
        assert got == q
        return base

    def kick(self, q):
        os.write(self.rings[q].kick_fd, struct.pack("<Q", 1))

    def alive(self):
        """Does the session still answer?"""
        try:
            self.ask_u64(GET_FEATURES)
            return True
        except (Gone, OSError):
            return False


BASIC = bit(VERSION_1, INDIRECT, ANY_LAYOUT)


class Nic(Frontend):
    """A virtio-net driver on top: one queue pair unless told otherwise."""

    def __init__(self, path, features=BASIC | bit(NET_MRG_RXBUF), size=256, pairs=1, mem=None, listen=None, fill=True,
                 bufsize=2048, indirect=False, protocol=None):
        super().__init__(path, listen=listen)
        kw = {} if protocol is None else {"protocol": protocol}
        self.negotiate(features, **kw)
        self.set_memory(mem or Memory(16 << 20))
        self.hdr = 12 if self.features & bit(VERSION_1, NET_MRG_RXBUF) else 10
        self.bufsize, self.indirect, self.pairs = bufsize, indirect, pairs
        cls = PackedRing if self.features >> PACKED & 1 else SplitRing
        for q in range(2 * pairs):
            ring = cls(self.mem, size)
            ring.in_order = bool(self.features >> IN_ORDER & 1)
            self.start_ring(q, ring)
        self.tx_all = [self.mem.alloc(66000) for _ in range(64)]
        self.tx_free = list(self.tx_all)
        if fill:
            for p in range(pairs):
                self.fill_rx(size - 1 if size < 64 else 64, p)

    def fill_rx(self, n, pair=0):
        for _ in range(n):
            off = self.mem.alloc(self.bufsize)
            self.rings[2 * pair].add([(off, self.bufsize, True)], off)
        self.kick(2 * pair)

    def reclaim(self, pair=0):
        while (got := self.rings[2 * pair + 1].get()) is not None:
            self.tx_free.append(got[0])

    def send_packet(self, data, hdr=None, pair=0, cut=None, kick=True):
        """cut: split header+packet into descriptors at these offsets."""
        self.reclaim(pair)
        deadline = time.monotonic() + 30
        while not self.tx_free:
            assert time.monotonic() < deadline, "transmit buffers never came back"
            self.reclaim(pair)
        off = self.tx_free.pop()
        whole = (hdr or bytes(self.hdr)) + data
        self.mem.map[off:off + len(whole)] = whole
        edges = [0] + list(cut or []) + [len(whole)]
        bufs = [(off + a, b - a, False) for a, b in zip(edges, edges[1:])]
        self.rings[2 * pair + 1].add(bufs, off, indirect=self.indirect and len(bufs) > 1)
        if kick:
            self.kick(2 * pair + 1)

    def poll_packet(self, pair=0):
        """(header, packet) or None; gives the buffers back to the device."""
        ring = self.rings[2 * pair]
        got = ring.get()
        if got is None:
            return None
        off, _, length = got
        assert self.hdr <= length <= self.bufsize, length
        data = self.mem.map[off:off + length]
        hdr, data = data[:self.hdr], data[self.hdr:]
        offs = [off]
        # As real drivers do: what is too short for a frame is dropped before its header is looked at.
        if self.hdr == 12 and self.features >> NET_MRG_RXBUF & 1 and length > self.hdr:
            for _ in range(struct.unpack_from("<H", hdr, 10)[0] - 1):
                more = ring.get()
                assert more is not None, "merged buffers must become visible together"
                offs.append(more[0])
                data += self.mem.map[more[0]:more[0] + more[2]]
        for off in offs:
            ring.add([(off, self.bufsize, True)], off)
        self.kick(2 * pair)
        return hdr, data

    def recv_packet(self, timeout=30, pair=0):
        deadline = time.monotonic() + timeout
        while True:
            got = self.poll_packet(pair)
            if got is not None:
                return got
            if time.monotonic() > deadline:
                return None
            select.select([self.rings[2 * pair].call_fd], [], [], 0.002)


def frame(n, size=64, src=1, dst=2):
    """An Ethernet frame of size bytes that names its number and is easy to check."""
    head = bytes([2, 0, 0, 0, 0, dst, 2, 0, 0, 0, 0, src, 0x88, 0xb5]) + struct.pack("<I", n)
    body = bytes((n * 7 + i) & 0xff for i in range(max(size - len(head), 0)))
    return (head + body)[:size]
