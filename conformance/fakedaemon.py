# SPDX-License-Identifier: BSD-3-Clause
"""A daemon and a driver VM for a guest under test: the local attachment, or an ivshmem server.

Written from docs/spec.md and docs/local-attachment.md, not from the C code. One thread: whoever
uses it calls serve(), which hands signals on and answers commands, so that a check decides when the
daemon does what.

Run as a program, it serves a local port without a driver VM. With --deviate it does one thing wrong;
conformance/run must see it.
"""
import argparse
import array
import mmap
import os
import select
import socket
import struct
import sys
import time

import portclient as pc
import vu

POOL = 0x200000
SIZE = 8 << 20
GPA = 0x1_0000_0000
RX, TX = 0, 1
NET = 1
MAC = bytes([0x52, 0x54, 0, 0x12, 0x34, 0x56])
FEATURES = vu.bit(vu.VERSION_1, vu.NET_MRG_RXBUF)
K_POOL = 1
READ, WRITE = 1, 2


class Timeout(Exception):
    pass


class Pool(vu.Memory):
    """The driver VM's memory: the pool behind the control block. Offsets are those of the file;
    link address = GPA + offset."""

    def __init__(self, size=SIZE):
        self.size, self.gpa, self.next = size, GPA, POOL
        self.fd = os.memfd_create("vhost-pci-control", os.MFD_CLOEXEC | 2)
        os.ftruncate(self.fd, size)
        import fcntl
        fcntl.fcntl(self.fd, 1033, 0x2 | 0x4)  # F_ADD_SEALS: F_SEAL_SHRINK | F_SEAL_GROW
        self.map = mmap.mmap(self.fd, size)
        self.views = {c: memoryview(self.map).cast(c) for c in "HIQ"}

    def clear(self):
        """For the next driver VM."""
        self.map[POOL:] = bytes(self.size - POOL)
        self.next = POOL


class Command:
    def __init__(self, raw):
        self.seq, self.op, *self.args = struct.unpack("<II15Q", raw)
        self.at = time.monotonic()

    def __repr__(self):
        return f"command {self.op} {[hex(a) for a in self.args[:4]]}"


class Daemon:
    """The page is what publish() writes of self.*; nothing is read back."""

    def __init__(self, path, kind="local", queues=2, deviate=()):
        self.kind, self.path, self.deviate = kind, path, set(deviate)
        self.mem = Pool()
        self.nqueues = queues
        n = 2 + queues  # one more than there must be: kick_signal may be any
        self.kick = [vu.eventfd() for _ in range(n)]
        self.bell = [vu.eventfd() for _ in range(n)]
        self.calls = [0] * n
        self.conn = self.guest_id = None
        self.said = b""
        self.gone = False
        self.commands, self.answers = [], {}
        self.status_of = {}      # opcode -> status instead of the right one
        self.hold = False        # commands are seen and not answered
        self.held = None
        self.attached, self.status, self.reason, self.epoch = False, 0, pc.NO_ATTACH, 0
        self.count = False       # COUNTERS is asked for
        self.regions_generation = 1
        self.features, self.required = 0, vu.bit(vu.VERSION_1)
        self.runs, self.queue, self.regions, self.windows = [0] * queues, [None] * queues, [], []
        self.serial = 0
        self.g = 0
        self.answer = (0, 0, 0, 0, 0, 0)
        self.guest_features = 0
        self.header()
        self.publish(signal=False)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path + ".new")
        self.listener.listen(4)
        os.rename(path + ".new", path)  # there when somebody can connect

    # -- the control block

    def header(self, magic=b"VHOSTPCI", version=pc.ABI, size=0x80, state=0x10000, queues=None,
               signals=None):
        struct.pack_into("<IIIIIIQQIIII32s", self.mem.map, 8, version, size, state, 0x10000, 0x1000,
                         0x1000, POOL, SIZE - POOL,
                         3 if self.kind == "local" else 1,
                         self.nqueues if queues is None else queues,
                         len(self.kick) if signals is None else signals,
                         0 if self.kind == "local" else 1 << 16, b"conformance")
        self.mem.map[0:8] = magic

    def w32(self, at, v):
        self.mem.views["I"][at // 4] = v & 0xffffffff

    def r32(self, at):
        return self.mem.views["I"][at // 4]

    def publish(self, signal=True, torn=False):
        """@torn: leave the page in the middle of a change."""
        m, s = self.mem.map, pc.STATE
        g = self.g | 1  # odd, also after a change that was left in the middle
        if "even-generation" not in self.deviate:
            self.w32(s, g)
        nq = self.nqueues if any(self.queue) else 0
        struct.pack_into("<IIIII", m, s + 4, pc.ABI, self.attached | self.count << 1, self.status, self.reason,
                         3)
        struct.pack_into("<QIIIIIIII", m, s + 0x18, self.epoch, NET, self.nqueues, nq,
                         len(self.regions), len(self.windows),
                         6 if "short-config" in self.deviate else 12, 1,
                         self.regions_generation)
        struct.pack_into("<6Q", m, s + 0x40, self.features, 0, self.required, 0, self.required, 0)
        struct.pack_into("<IIIIQQ", m, s + 0x100, *self.answer)
        struct.pack_into("<6sHHH", m, s + 0x200, MAC, self.status & 1, self.nqueues // 2, 1500)
        for i, q in enumerate(self.queue):
            raw = bytes(64)
            if q:
                raw = struct.pack("<QQQIIIIII16x", q["desc"], q["avail"], q["used"], q["size"],
                                  q["base"], q["flags"], q["run"],
                                  q["kick"], q["bell"])
            m[s + 0x1000 + 64 * i:s + 0x1040 + 64 * i] = raw
        windows = b"".join(struct.pack("<QQIIII", *w, 0) for w in self.windows)
        regions = b"".join(struct.pack("<QQQII", *r) for r in self.regions)
        m[s + 0x8000:s + 0x8100] = windows.ljust(256, b"\0")
        m[s + 0xc000:s + 0xc100] = regions.ljust(256, b"\0")
        if "reserved" in self.deviate:
            m[s + 0x400] = 1
        if not torn and "even-generation" not in self.deviate:
            g += 1
            self.w32(s, g)
            self.g = g
        if signal:
            pc.one(self.kick[0])

    # -- the guest

    def accept(self):
        conn, _ = self.listener.accept()
        if self.conn and self.kind == "local" and "two-processes" not in self.deviate:
            conn.send(struct.pack("<II5Q", pc.ERROR, 0, 16, 0, 0, 0, 0))
            conn.close()
            return
        self.conn, self.gone = conn, False
        try:
            self.greet()
        except OSError:
            pass

    def send(self, data, fds=()):
        anc = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.conn.sendmsg([data], anc)

    def message(self, kind, *args, fds=()):
        self.send(struct.pack("<II5Q", kind, len(fds), *(list(args) + [0] * (5 - len(args)))), fds)

    def greet(self):
        if self.kind == "ivshmem":
            for v, fd in [(0, None), (0, None),
                          (-1,
                           self.mem.fd)] + [(1,
                                             f) for f in self.bell] + [(0, f) for f in self.kick]:
                self.send(struct.pack("<q", v), [] if fd is None else [fd])
            return
        self.message(pc.HELLO, 1, pc.ABI, SIZE, len(self.kick), len(self.bell), fds=[self.mem.fd])
        self.message(0x4711, 1, 2, 3,
                     fds=[self.mem.fd])  # unknown: it is skipped, its fds are closed
        self.message(pc.SIGNALS, 0, fds=self.kick)
        self.message(pc.DOORBELLS, 0,
                     fds=self.bell[:1] if "few-doorbells" in self.deviate else self.bell)
        self.message(pc.READY)

    def serve(self, timeout=0.02):
        """Hand on what the guest does for @timeout seconds at most; returns after the first
        thing."""
        p = select.poll()
        p.register(self.listener, select.POLLIN)
        if self.conn:
            p.register(self.conn, select.POLLIN)
        for b in self.bell:
            p.register(b, select.POLLIN)
        for fd, _ in p.poll(max(int(timeout * 1000), 0)):
            if fd == self.listener.fileno():
                self.accept()
            elif self.conn and fd == self.conn.fileno():
                self.hear()
            elif fd in self.bell:
                n, = struct.unpack("<Q", os.read(fd, 8))
                i = self.bell.index(fd)
                self.calls[i] += n
                if i == 0:
                    self.look()

    def hear(self):
        try:
            data = self.conn.recv(4096)
        except ConnectionResetError:
            data = b""
        if data:
            self.said += data
            return
        self.conn.close()
        self.conn, self.gone = None, True
        if self.kind == "local":
            self.attached = "keeps-attached" in self.deviate
            self.status, self.reason = 0, pc.NO_ATTACH
            self.queue = [None] * self.nqueues
            self.publish()

    def look(self):
        if self.hold:
            self.held = bytes(self.mem.map[pc.COMMAND:pc.COMMAND + 128])
            return
        cmd = Command(bytes(self.mem.map[pc.COMMAND:pc.COMMAND + 128]))
        if cmd.seq == 0 or cmd.seq == self.answer[0] and "executes-twice" not in self.deviate:
            return
        self.commands.append(cmd)
        if "believes" in self.deviate:  # what the guest wrote into the state
            self.attached = bool(self.r32(pc.STATE + 8) & 1)
        status, value = self.execute(cmd)
        if cmd.op in self.status_of:
            status, value = self.status_of[cmd.op]
        self.answer = (cmd.seq, cmd.op, status, 0, value, 0)
        self.publish(signal="silent" not in self.deviate)

    def execute(self, c):
        """(status, value[0])"""
        a, d = c.args, self.deviate
        if c.op == pc.ATTACH:
            if a[0] != pc.ABI and "any-version" not in d:
                return pc.VERSION, pc.ABI
            if a[3] not in (0, NET) and "any-type" not in d:
                return pc.DEVICE_TYPE, NET
            self.attached, self.queue = False, [None] * self.nqueues
            if self.required & ~a[1] and "any-features" not in d:
                self.reason = pc.BAD_FEATURES
                return pc.FEATURES, self.required & ~a[1]
            self.attached, self.guest_features = True, a[1]
            self.status, self.reason = 0, 0 if "no-reason" in d else pc.NO_DRIVER
            return pc.OK, 0
        if c.op == pc.DETACH:
            self.attached, self.status, self.reason = False, 0, pc.NO_ATTACH
            self.queue, self.regions, self.windows = [None] * self.nqueues, [], []
            self.regions_generation += 1
            return pc.OK, 0
        if c.op == pc.QUEUE_STOPPED:
            if not self.attached:
                return pc.OK if "not-attached" in d else pc.NOT_ATTACHED, 0
            if a[0] >= self.nqueues:
                return pc.INVALID, 0
            q = self.queue[a[0]]
            if not q or not q["flags"] & pc.STARTED or q["run"] != a[1]:
                return pc.STALE, 0
            if a[2] > 0xffff or a[3] & ~3:
                return pc.INVALID, 0
            q["flags"] &= ~(pc.STARTED | pc.STOP)
            q["flags"] |= pc.BROKEN if a[3] & 1 else 0
            return pc.OK, 0
        if c.op == pc.COUNTERS:
            return pc.OK if self.attached or "counts-anybody" in d else pc.NOT_ATTACHED, 0
        if c.op == pc.SYNC:
            ahead = a[0] - self.regions_generation & 0xffffffff
            return pc.INVALID if 0 < ahead < 1 << 31 and "future-sync" not in d else pc.OK, 0
        return pc.OK if "knows-all" in d else pc.UNKNOWN, 0

    def until(self, what, seen, timeout=5):
        """Serve until what() is true; AssertionError(@seen) after @timeout seconds."""
        deadline = time.monotonic() + pc.limit(timeout)
        while not (v := what()):
            if time.monotonic() > deadline:
                raise AssertionError(seen() if callable(seen) else seen)
            self.serve()
        return v

    def idle(self, seconds):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.serve(deadline - time.monotonic())

    def of(self, op, since=0):
        """Commands of one kind."""
        return [c for c in self.commands[since:] if c.op == op]

    # -- the driver VM

    def driver(self, size=64):
        """Comes: new memory, new rings, receive buffers; not yet shown."""
        self.mem.clear()
        self.rings = [vu.SplitRing(self.mem, size) for _ in range(self.nqueues)]
        self.epoch += 1
        self.buffers = [self.mem.alloc(2048) for _ in range(16)]
        for b in self.buffers:
            self.rings[RX].add([(b, 2048, True)], b)
        self.features = FEATURES
        self.whole()

    def whole(self):
        """One region for all of the pool."""
        self.serial += 1
        self.windows = [(SIZE - POOL, POOL, self.serial, K_POOL, 1)]
        self.regions = [(GPA + POOL, SIZE - POOL, 0, 0, READ | WRITE)]
        self.regions_generation += 1

    def start(self, q, flags=pc.STARTED | pc.ENABLED, base=None):
        r = self.rings[q]
        self.runs[q] += 1
        self.queue[q] = dict(desc=GPA + r.desc, avail=GPA + r.avail, used=GPA + r.used, size=r.size,
                             base=self.used(q) if base is None else base, flags=flags,
                             run=self.runs[q], kick=1 + q,
                             bell=1 + q if self.kind == "local" else 1 << 16 | 1 + q)

    def link_up(self, queues=None):
        for q in range(self.nqueues) if queues is None else queues:
            self.start(q)
        self.status, self.reason = 1, 0
        self.publish()

    def link_down(self, reason=pc.NO_DRIVER):
        """The driver VM is gone: in one update, nobody is asked."""
        self.status, self.reason, self.queue = 0, reason, [None] * self.nqueues
        self.regions, self.windows = [], []
        self.regions_generation += 1
        self.publish()

    def used(self, q):
        return self.mem.r("H", self.rings[q].used + 2)

    def send_packet(self, data, kick=True, header=bytes(12)):
        off = self.mem.alloc(12 + len(data))
        self.mem.map[off:off + 12 + len(data)] = header + data
        self.rings[TX].add([(off, 12 + len(data), False)], off)
        if kick:
            self.ring_kick(TX)

    def ring_kick(self, q):
        entry = self.queue[q]
        assert entry, "the guest has left" if self.gone else f"queue {q} has no run"
        pc.one(self.kick[entry["kick"]])

    def received(self):
        """(header, packet) of the next packet that the guest wrote into the receive queue, or
        None."""
        got = self.rings[RX].get()
        if got is None:
            return None
        off, _, length = got
        return bytes(self.mem.map[off:off + 12]), bytes(self.mem.map[off + 12:off + length])

    def close(self):
        for s in (self.listener, self.conn):
            if s:
                s.close()
        for fd in self.kick + self.bell:
            os.close(fd)
        self.mem.close()
        if os.path.exists(self.path):
            os.unlink(self.path)


# What it can do wrong, and the rule that it breaks.
DEVIATIONS = {
    "header": "D2", "believes": "D3", "even-generation": "D4", "reserved": "D5", "no-reason":
    "D7", "executes-twice": "D16",
    "silent": "D17", "knows-all": "D18", "any-version": "D19", "any-type": "D20", "any-features":
    "D21", "keeps-attached": "D40",
    "not-attached": "D24", "counts-anybody": "D58", "future-sync": "D28", "few-doorbells": "D45", "two-processes": "D46",
    "short-config": "D50",
}


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("socket")
    p.add_argument("--deviate", action="append", default=[], choices=sorted(DEVIATIONS))
    o = p.parse_args()
    d = Daemon(o.socket, deviate=o.deviate)
    if "header" in d.deviate:
        d.header(size=0x60)
    print("ready", flush=True)
    while True:
        d.serve(1)


if __name__ == "__main__":
    sys.exit(main())
