# SPDX-License-Identifier: BSD-3-Clause
"""An idle driver VM: the front-end's side of a vhost-user session with two empty rings.

For questions about many links, where nothing but the sessions and rings has to exist.
"""
import array
import ctypes
import os
import socket
import struct

GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 1, 2, 3, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_KICK, SET_VRING_CALL = 8, 9, 10, 12, 13
VERSION_1 = 1 << 32
RING, RING_SPAN, UVA = 256, 0x4000, 0x10000000
SIZE = 0x10000

_libc = ctypes.CDLL(None, use_errno=True)


def eventfd():
    fd = _libc.eventfd(0, 0o2004000)  # EFD_CLOEXEC | EFD_NONBLOCK
    if fd < 0:
        raise OSError(ctypes.get_errno(), "eventfd")
    return fd


class IdleVm:
    """Connects, sets memory (regions of 64 KiB in one file) and both rings up, then does nothing."""

    def __init__(self, path, regions=1):
        self.fds = []
        self.s = socket.socket(socket.AF_UNIX)
        self.s.connect(path)
        offered = self._ask(GET_FEATURES)
        self._send(SET_OWNER)
        self._send(SET_FEATURES, struct.pack("<Q", offered & VERSION_1))
        mem = os.memfd_create("idle-vm", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(mem, SIZE * regions)
        table = struct.pack("<II", regions, 0)
        for i in range(regions):
            table += struct.pack("<QQQQ", 2 * i * SIZE, SIZE, UVA + 2 * i * SIZE, i * SIZE)
        self._send(SET_MEM_TABLE, table, [mem] * regions)
        os.close(mem)
        for q in (0, 1):
            base = UVA + q * RING_SPAN
            kick, call = eventfd(), eventfd()
            self.fds += [kick, call]
            self._send(SET_VRING_NUM, struct.pack("<II", q, RING))
            self._send(SET_VRING_BASE, struct.pack("<II", q, 0))
            self._send(SET_VRING_ADDR, struct.pack("<IIQQQQ", q, 0, base, base + 0x2000, base + 0x1000, 0))
            self._send(SET_VRING_CALL, struct.pack("<Q", q), [call])
            self._send(SET_VRING_KICK, struct.pack("<Q", q), [kick])
        self._ask(GET_FEATURES)  # answered when all the above has been done

    def _send(self, request, payload=b"", fds=()):
        anc = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.s.sendmsg([struct.pack("<III", request, 1, len(payload)) + payload], anc)

    def _ask(self, request):
        self._send(request)
        data = b""
        while len(data) < 20:
            more = self.s.recv(20 - len(data))
            if not more:
                raise ConnectionError("the back-end ended the session")
            data += more
        return struct.unpack_from("<Q", data, 12)[0]

    def close(self):
        self.s.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = []
