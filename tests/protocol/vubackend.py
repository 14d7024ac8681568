# SPDX-License-Identifier: BSD-3-Clause
"""A vhost-user back-end in Python, a disk in memory: what the daemon meets with Endpoint=vhost-user. It notes what it is given.

Written from the vhost-user protocol and virtio 1.3, 2.7 and 5.2, not from the C code. Split rings only.
"""
import array
import mmap
import os
import select
import socket
import struct
import threading
import time

import blk
import vu

SET_DEVICE_STATE_FD, CHECK_DEVICE_STATE, PF_DEVICE_STATE = 42, 43, 19
PF = vu.bit(vu.PF_MQ, vu.PF_REPLY_ACK, vu.PF_BACKEND_REQ, vu.PF_CONFIG)
FEATURES = blk.FEATURES | vu.bit(vu.VERSION_1, vu.PROTOCOL)


class Ring:
    def __init__(self):
        self.num = self.at = 0
        self.desc = self.avail = self.used = 0
        self.kick = self.call = -1
        self.enabled = False


class Backend(threading.Thread):
    """One connection after the other until close(). path: listens there. Tests set what is to go wrong before they start it."""

    def __init__(self, path, sectors=8192, store=None, features=FEATURES, pf=PF, queues=1, connect=False):
        super().__init__(daemon=True)
        self.store = store if store is not None else bytearray(512 * sectors)
        self.config = blk.config(len(self.store) // 512)
        self.features, self.pf, self.queues = features, pf, queues
        self.mute = ()           # messages that it never answers
        self.slow = {}           # message: seconds until it is answered
        self.replies = {}        # message: what is answered instead
        self.serve = True        # else requests stay where they are
        self.hook = None         # called with (ring, head, chain) instead of serving it; true: it has dealt with it
        self.seen, self.got_fds, self.regions, self.rings = [], [], [], {}
        self.kicked = set()      # queues
        self.drops_kicks = False  # that come before a ring is enabled, and enabling looks at nothing: as virtiofsd
        self.sessions, self.errors, self.end = 0, [], False
        self.kept = []           # maps of sessions before: a process may keep them
        self.req = None
        self.account = None      # with INFLIGHT_SHMFD: the area, and bytes a queue
        self.state, self.loaded = b"", []  # with DEVICE_STATE: what it saves; what it was given
        self.state_answer = 0x100
        self.path, self.sock = path, None
        self.wake = os.pipe()
        if not connect:
            self.lsock = socket.socket(socket.AF_UNIX)
            if os.path.exists(path):
                os.unlink(path)
            self.lsock.bind(path)
            self.lsock.listen(4)
        else:
            self.lsock = None

    # -- the connection

    def run(self):
        while not self.end:
            if self.lsock:
                ready, _, _ = select.select([self.lsock, self.wake[0]], [], [])
                if self.lsock not in ready:
                    return
                self.sock, _ = self.lsock.accept()
            else:
                self.sock = socket.socket(socket.AF_UNIX)
                self.sock.connect(self.path)
            self.sessions += 1
            self.acked = 0
            try:
                self.session()
            except (ConnectionError, vu.Gone):
                pass
            except Exception as err:  # for the test's thread
                self.errors.append(err)
            self.hang_up()
            if not self.lsock:
                return

    def hang_up(self):
        self.sock.close()
        for _, _, _, m in self.regions:
            self.kept.append(m)
        for r in self.rings.values():
            for fd in (r.kick, r.call):
                if fd >= 0:
                    os.close(fd)
        if self.req:
            self.req.close()
        self.regions, self.rings, self.req, self.account = [], {}, None, None

    def session(self):
        while not self.end:
            kicks = {r.kick: q for q, r in self.rings.items() if r.kick >= 0}
            ready, _, _ = select.select([self.sock, self.wake[0], *kicks], [], [])
            if self.sock in ready and not self.message():
                return
            for fd in set(ready) & set(kicks):
                if self.rings[kicks[fd]].kick != fd:
                    continue  # the message took it away
                try:
                    os.read(fd, 8)
                except BlockingIOError:
                    pass
                self.kicked.add(kicks[fd])
                self.process(kicks[fd])

    def message(self):
        fds = array.array("i")
        head, anc, _, _ = self.sock.recvmsg(12, socket.CMSG_SPACE(32))
        for _, _, d in anc:
            fds.frombytes(d[:len(d) & ~3])
        if not head:
            return False
        req, flags, size = struct.unpack("<III", head)
        data = b""
        while len(data) < size:
            data += self.sock.recv(size - len(data))
        self.seen.append(req)
        self.got_fds += [(req, os.readlink(f"/proc/self/fd/{fd}")) for fd in fds]
        out = self.handle(req, data, list(fds))
        if req in self.mute:
            return True
        time.sleep(self.slow.get(req, 0))
        if req in self.replies:
            out = self.replies[req]
        if out is None and flags & 8:
            out = struct.pack("<Q", 0)
        if out is not None:
            self.sock.sendall(struct.pack("<III", req, 5, len(out)) + out)
        return True

    def handle(self, req, data, fds):
        u64 = struct.unpack_from("<Q", data)[0] if len(data) >= 8 else 0
        if req == vu.GET_FEATURES:
            return struct.pack("<Q", self.features)
        if req == vu.SET_FEATURES:
            self.acked = u64
        elif req == vu.GET_PROTOCOL_FEATURES:
            return struct.pack("<Q", self.pf)
        elif req == vu.GET_QUEUE_NUM:
            return struct.pack("<Q", self.queues)
        elif req == vu.SET_BACKEND_REQ_FD:
            self.req = socket.socket(fileno=fds[0])
        elif req == vu.GET_CONFIG:
            off, n, fl = struct.unpack_from("<III", data)
            return struct.pack("<III", off, n, fl) + self.config[off:off + n].ljust(n, b"\0")
        elif req == vu.SET_CONFIG:
            off, n, fl = struct.unpack_from("<III", data)
            self.config = self.config[:off] + data[12:12 + n] + self.config[off + n:]
        elif req == vu.SET_INFLIGHT_FD:
            size, off, _, entries = struct.unpack_from("<QQHH", data)
            self.account = mmap.mmap(fds[0], size, offset=off), 16 + 16 * entries + 63 & ~63
            os.close(fds[0])
        elif req == SET_DEVICE_STATE_FD:
            self.move_state(u64, fds[0])
            return struct.pack("<Q", self.state_answer)
        elif req == CHECK_DEVICE_STATE:
            self.mover.join()
            return struct.pack("<Q", 0)
        elif req == vu.SET_MEM_TABLE:
            self.kept += [m for _, _, _, m in self.regions]
            self.regions = []
            for i, fd in enumerate(fds):
                gpa, size, uva, off = struct.unpack_from("<QQQQ", data, 8 + 32 * i)
                self.file_size = os.fstat(fd).st_size
                self.regions.append((gpa, size, uva, mmap.mmap(fd, size, offset=off)))
                os.close(fd)
        elif vu.SET_VRING_NUM <= req <= vu.SET_VRING_CALL or req == vu.SET_VRING_ENABLE:
            return self.ring_message(req, data, fds)
        return None

    def move_state(self, direction, fd):
        """Direction 0: saves it. All in a thread, as a pipe is small."""
        def move():
            with open(fd, "rb" if direction else "wb") as f:
                if self.state_answer != 0x100:
                    return
                if direction:
                    self.loaded.append(f.read())
                else:
                    f.write(self.state)
        self.mover = threading.Thread(target=move, daemon=True)
        self.mover.start()

    def ring_message(self, req, data, fds):
        q, num = struct.unpack_from("<II", data)
        r = self.rings.setdefault(q & 0xff, Ring())
        r.enabled |= not self.acked >> vu.PROTOCOL & 1
        if req == vu.SET_VRING_NUM:
            r.num = num
        elif req == vu.SET_VRING_BASE:
            r.at = num
        elif req == vu.SET_VRING_ADDR:
            r.desc, r.used, r.avail = struct.unpack_from("<QQQ", data, 8)
        elif req == vu.SET_VRING_KICK:
            if r.kick >= 0:
                os.close(r.kick)
            else:
                self.recover(q & 0xff, r)
            r.kick = fds[0]
            if self.drops_kicks and select.select([r.kick], [], [], 0.3)[0]:
                os.read(r.kick, 8)
        elif req == vu.SET_VRING_CALL:
            if r.call >= 0:
                os.close(r.call)
            r.call = fds[0]
        elif req == vu.SET_VRING_ENABLE:
            r.enabled = bool(num)
            if not self.drops_kicks:
                self.process(q)
        elif req == vu.GET_VRING_BASE:
            if r.kick >= 0:
                os.close(r.kick)
            r.kick = -1
            return struct.pack("<II", q, r.at)
        return None

    # -- the account of open requests: "Inflight I/O tracking", split virtqueues

    def note(self, q, head, counter=None):
        if not self.account:
            return
        m, size = self.account
        if counter is None:
            m[q * size + 16 + 16 * head] = 0
        else:
            struct.pack_into("<Q", m, q * size + 24 + 16 * head, counter)
            m[q * size + 16 + 16 * head] = 1

    def recover(self, q, r):
        r.again, r.counter, r.q = [], 1, q
        if not self.account:
            return
        m, size = self.account
        used, = struct.unpack("<H", self.at(r.used + 2, 2, True))
        version, n, last, seen = struct.unpack_from("<HHHH", m, q * size + 8)
        if version and seen != used:
            self.note(q, last)
        struct.pack_into("<HH", m, q * size + 8, 1, r.num)
        struct.pack_into("<H", m, q * size + 14, used)
        heads = sorted((struct.unpack_from("<Q", m, q * size + 24 + 16 * i)[0], i) for i in range(r.num) if m[q * size + 16 + 16 * i])
        r.again = [i for _, i in heads]
        r.counter = heads[-1][0] + 1 if heads else 1
        if r.at != used + len(heads) & 0xffff:
            self.errors.append(AssertionError(f"the ring begins at {r.at}, used {used}, open {heads}"))

    # -- requests

    def at(self, addr, n, user=False):
        for gpa, size, uva, m in self.regions:
            base = uva if user else gpa
            if base <= addr and addr + n <= base + size:
                return memoryview(m)[addr - base:addr - base + n]
        raise ValueError(f"{n} bytes at {addr:#x} are not within what it was given")

    def process(self, q):
        r = self.rings[q]
        while self.serve and r.kick >= 0 and r.enabled:
            if r.again:
                self.one(r, r.again.pop(0))
                continue
            idx, = struct.unpack("<H", self.at(r.avail + 2, 2, True))
            if idx == r.at:
                if self.acked >> vu.EVENT_IDX & 1:
                    self.at(r.used + 4 + 8 * r.num, 2, True)[:] = struct.pack("<H", r.at)
                    if self.at(r.avail + 2, 2, True)[:] != struct.pack("<H", r.at):
                        continue
                return
            assert (idx - r.at & 0xffff) <= r.num, "the ring went back in mid-run"
            head, = struct.unpack("<H", self.at(r.avail + 4 + 2 * (r.at % r.num), 2, True))
            r.at = (r.at + 1) & 0xffff
            self.note(q, head, r.counter)
            r.counter += 1
            self.one(r, head)

    def one(self, r, head):
        chain, i = [], head
        while True:
            addr, n, flags, i = struct.unpack("<QIHH", self.at(r.desc + 16 * i, 16, True))
            chain.append((addr, n, bool(flags & vu.DESC_WRITE)))
            if not flags & vu.DESC_NEXT:
                break
        if not self.hook or not self.hook(r, head, chain):
            self.back(r, head, self.request(chain))

    def request(self, chain):
        out = b"".join(bytes(self.at(a, n)) for a, n, w in chain if not w)
        kind, _, sector = struct.unpack_from("<IIQ", out)
        total = sum(n for _, n, w in chain if w)
        data = b""
        if kind == blk.OUT:
            self.store[512 * sector:512 * sector + len(out) - 16] = out[16:]
        elif kind == blk.IN:
            data = bytes(self.store[512 * sector:512 * sector + total - 1])
        data = data.ljust(total - 1, b"\0") + bytes([blk.OK])
        for a, n, w in chain:
            if w:
                self.at(a, n)[:] = data[:n]
                data = data[n:]
        return total

    def back(self, r, head, length):
        idx, = struct.unpack("<H", self.at(r.used + 2, 2, True))
        if self.account:
            m, size = self.account
            struct.pack_into("<H", m, r.q * size + 12, head)
        self.at(r.used + 4 + 8 * (idx % r.num), 8, True)[:] = struct.pack("<II", head, length)
        self.at(r.used + 2, 2, True)[:] = struct.pack("<H", (idx + 1) & 0xffff)
        if self.account:
            self.note(r.q, head)
            struct.pack_into("<H", m, r.q * size + 14, (idx + 1) & 0xffff)
        os.write(r.call, struct.pack("<Q", 1))

    def config_change(self):
        self.req.sendall(struct.pack("<III", 2, 1, 0))

    # -- the end

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *why):
        self.end = True
        os.write(self.wake[1], b"x")
        self.join(10)
        if self.lsock:
            self.lsock.close()
        for fd in self.wake:
            os.close(fd)
        if self.errors and not why[0]:
            raise self.errors[0]
