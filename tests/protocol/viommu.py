# SPDX-License-Identifier: BSD-3-Clause
"""A driver VM with a vIOMMU: a front-end that answers IOTLB misses, over memory whose pages can move.

Rings and descriptors hold IOVAs. Every IOVA page has a home, a page of the memory file; moving it is what a guest does that unmaps a
page and maps another one at the same address.
"""
import ctypes
import mmap
import os
import select
import socket
import struct

import vu

ACCESS_PLATFORM = 33
IOVA = 0x40_0000_0000
PAGE = 4096
MISS, UPDATE, INVALIDATE, ACCESS_FAIL = range(1, 5)
RO, WO, RW = 1, 2, 3
PF = vu.bit(vu.PF_REPLY_ACK, vu.PF_CONFIG, vu.PF_MEM_SLOTS, vu.PF_STATUS, vu.PF_BACKEND_REQ, vu.PF_LOG_SHMFD, vu.PF_RESET_DEVICE)
POISON = b"\xee" * PAGE

vu.libc.mmap.restype = ctypes.c_void_p
vu.libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]


class Memory(vu.Memory):
    """What vu.py takes for guest physical and for user addresses are IOVAs here. The upper half holds homes to move to."""

    def __init__(self, size=16 << 20):
        super().__init__(2 * size, gpa=IOVA, uva=IOVA)
        self.real_gpa, self.real_uva = 0x1_0000_0000, 0x7f55_0000_0000
        self.spare = list(range(size // PAGE, 2 * size // PAGE))
        self.home = {}  # IOVA page: page of the file, where that is another one
        self.left = []  # homes that were left, poisoned

    def move(self, page, lost=True):
        """The driver's view goes with it. lost: the device has no way to the old home any more."""
        old, new = self.home.get(page, page), self.spare.pop(0)
        os.pwrite(self.fd, os.pread(self.fd, PAGE, old * PAGE), new * PAGE)
        at = ctypes.addressof(ctypes.c_char.from_buffer(self.map)) + page * PAGE
        # MAP_SHARED | MAP_FIXED
        assert vu.libc.mmap(at, PAGE, mmap.PROT_READ | mmap.PROT_WRITE, 0x11, self.fd, new * PAGE) == at
        self.home[page] = new
        if lost:
            os.pwrite(self.fd, POISON, old * PAGE)
            self.left.append(old)

    def check_left(self):
        """Nobody wrote to a page that was taken away. They may be used again."""
        for page in self.left:
            assert os.pread(self.fd, PAGE, page * PAGE) == POISON, f"page {page} was written after the invalidation's answer"
        self.spare += self.left
        self.left = []


class Nic(vu.Nic):
    def __init__(self, path, features=0, **kw):
        self.back = None
        self.misses, self.fails = [], []
        self.told = 0       # CONFIG_CHANGE
        self.perm = {}      # IOVA page: what of it is mapped; 0 = nothing, the default is read and write
        self.silent = False  # misses stay unanswered
        self.grain = 1      # pages in one update
        super().__init__(path, features | vu.bit(ACCESS_PLATFORM), mem=kw.pop("mem", None) or Memory(), protocol=PF, **kw)
        assert self.features >> ACCESS_PLATFORM & 1

    def region(self, mem):
        return struct.pack("<QQQQ", mem.real_gpa, mem.size, mem.real_uva, 0)

    def set_memory(self, mem):
        self.set_channel()
        super().set_memory(mem)

    def set_channel(self):
        if self.back:
            self.back.close()
        self.back, other = socket.socketpair()
        self.back.settimeout(30)
        self.tell(vu.SET_BACKEND_REQ_FD, b"", [other.fileno()])
        other.close()

    def close(self):
        if self.back:
            self.back.close()
            self.back = None
        super().close()

    # -- messages

    def iotlb(self, kind, iova, size, uaddr=0, perm=0):
        code, = struct.unpack("<Q", self.ask(vu.IOTLB_MSG, struct.pack("<QQQBB6x", iova, size, uaddr, perm, kind)))
        if code:
            raise vu.Refused(vu.IOTLB_MSG, code)

    def update(self, page, perm=None, n=1):
        home = self.mem.home.get(page, page)
        self.iotlb(UPDATE, IOVA + page * PAGE, n * PAGE, self.mem.real_uva + home * PAGE, self.perm.get(page, RW) if perm is None else perm)

    def invalidate(self, page, n=1):
        self.iotlb(INVALIDATE, IOVA + page * PAGE, n * PAGE)

    def move(self, page):
        self.invalidate(page)
        self.mem.move(page)

    # -- the back-end's requests

    def answer(self, iova, perm):
        """A miss: True when it has been answered by an update."""
        page = (iova - IOVA) // PAGE
        if not 0 <= page < self.mem.size // PAGE or perm & ~self.perm.get(page, RW):
            return False
        n = 1
        while n < self.grain and page + n not in self.perm and page + n not in self.mem.home and page not in self.mem.home:
            n += 1
        self.update(page, n=n)
        return True

    def serve(self, timeout=0):
        while self.back and not self.silent and select.select([self.back], [], [], timeout)[0]:
            head = self.back.recv(12, socket.MSG_WAITALL)
            if not head:
                self.back.close()
                self.back = None
                return
            req, flags, size = struct.unpack("<III", head)
            data, status = self.back.recv(size, socket.MSG_WAITALL) if size else b"", 0
            if req == 1:
                iova, _, _, perm, kind = struct.unpack("<QQQBB6x", data)
                (self.misses if kind == MISS else self.fails).append((iova, perm))
                assert kind in (MISS, ACCESS_FAIL)
                status = 0 if kind == ACCESS_FAIL or self.answer(iova, perm) else 1
            self.told += req == 2
            if flags & 8 and self.back:
                self.back.sendall(struct.pack("<IIIQ", req, 1 | 4, 8, status))

    def poll_packet(self, pair=0):
        self.serve()
        return super().poll_packet(pair)

    def reclaim(self, pair=0):
        self.serve()
        super().reclaim(pair)
