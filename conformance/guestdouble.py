#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A minimal guest: docs/spec.md, "A minimal driver", over the local attachment. It serves a network
device with split rings and sends every packet back.

With --deviate it does one thing wrong; conformance/run must see it.
"""
import argparse
import os
import pathlib
import select
import socket
import struct
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import portclient as pc  # noqa: E402
import vu  # noqa: E402

NET = 1
FEATURES = vu.bit(vu.VERSION_1, vu.NET_MRG_RXBUF, vu.NET_CSUM, vu.NET_GUEST_CSUM, vu.NET_MAC,
                  vu.NET_STATUS, vu.NET_MTU,
                  vu.NET_MQ, 17, 21, vu.ANY_LAYOUT, vu.INDIRECT, vu.EVENT_IDX)
BROKEN = 1
HDR = 12
MAX_ADDR = 1 << 64

# What it can do wrong, and the rule that it breaks.
DEVIATIONS = {
    "any-magic": "G1", "any-header": "G2", "torn": "G3", "any-status": "G4", "ignores-enabled":
    "G5", "never-stops": "G6",
    "goes-on-after-stop": "G7", "same-run": "G8", "ignores-started": "G9", "only-own-runs": "G10",
    "dirty-args": "G11",
    "does-not-wait": "G12", "seq-from-1": "G13", "attached-anyway": "G14", "waits-for-kick":
    "G15", "kick-1-plus-q": "G16",
    "never-calls": "G17", "doorbell-1-plus-q": "G18", "all-windows": "G19", "one-region": "G20",
    "skips-bad": "G21",
    "writes-all": "G22", "lies-in-sync": "G23", "starts-at-once": "G24", "goes-on-when-down":
    "G25", "one-stop": "G26",
    "works-after-cut": "G27", "no-sync-at-end": "G28", "trusts-index": "G29", "gives-up-all":
    "G30", "any-state": "G31",
    "talks": "G32", "old-doorbell": "G33", "any-version": "G34", "no-header": "G35",
    "no-num-buffers": "G36", "counts-unasked": "G48", "counts-often": "G49",
}


class Bad(Exception):
    """The driver VM broke the rules of the ring."""


class Torn(Exception):
    pass


class Transport(pc.Local):
    """The socket and its messages; the header is checked by the guest."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)
        self.signals, self.doorbells, self.windows, self.maps, self.gone = [], [], {}, {}, []
        self.mem = self.error = None
        self.views = None
        while (kind := self.read_message()) != pc.READY:
            if kind == pc.ERROR:
                sys.exit(f"the daemon refuses the port: {self.error}")

    def hello(self, fds, arg):
        super().hello(fds, arg)
        self.words = memoryview(self.mem).cast("I")


class Queue:
    def __init__(self, number, entry, guest):
        self.number, self.entry = number, entry
        self.run, self.size, self.index = entry.run, entry.size, entry.base & 0xffff
        self.find(guest)

    def find(self, guest):
        e = self.entry
        if not 0 < e.size <= 32768 or e.size & e.size - 1:
            raise Bad("size")
        self.desc, self.avail, self.used = (guest.one(a, n) for a, n in
                                            ((e.desc, 16 * e.size), (e.avail, 6 + 2 * e.size),
                                             (e.used, 6 + 8 * e.size)))
        self.used_u16 = self.used[:4].cast("H")
        self.avail_u16 = self.avail[:4].cast("H")


class Guest:
    def __init__(self, path, deviate=()):
        self.wrong = set(deviate)
        self.t = Transport(path)
        self.q, self.given_up = {}, {}
        self.table, self.synced = [], None
        self.seq = 0
        self.kicked = set()
        self.packets = []

    # -- attach and commands

    def check(self):
        m = self.t.mem
        magic, version, *sizes = struct.unpack_from("<8s7I", m)
        queues, signals = struct.unpack_from("<II", m, 0x34)
        if magic != b"VHOSTPCI" and "any-magic" not in self.wrong:
            sys.exit("no magic")
        if version != pc.ABI and "any-version" not in self.wrong:
            sys.exit(f"version {version:#x}")
        if "any-header" not in self.wrong and (sizes[:5] != [0x80, 0x10000, 0x10000, 0x1000,
                                                             0x1000] or
                                               not 1 <= queues <= 128 or signals < 1 + queues):
            sys.exit("another header")

    def attach(self):
        self.check()
        if self.wrong & {"starts-at-once"}:
            self.update()
        if self.t.words[(pc.STATE + 8) // 4] & 1:
            self.command(pc.DETACH)
        status = self.command(pc.ATTACH, pc.ABI, FEATURES, 0, NET)
        if status != pc.OK and "attached-anyway" not in self.wrong:
            sys.exit(f"ATTACH was refused: status {status}")

    def command(self, opcode, *args):
        words = self.t.words
        old, answered = words[pc.COMMAND // 4], words[(pc.STATE + 0x100) // 4]
        seq = (max(old, answered) + 1 & 0xffffffff) or 1
        if "seq-from-1" in self.wrong:
            seq = self.seq = self.seq + 1
        while seq in (old, answered) and "seq-from-1" not in self.wrong:
            seq += 1
        args = list(args) + [0] * (15 - len(args))
        if "dirty-args" in self.wrong:
            args[14] = 7
        struct.pack_into("<15Q", self.t.mem, pc.COMMAND + 8, *args)
        words[pc.COMMAND // 4 + 1] = opcode
        words[pc.COMMAND // 4] = seq
        pc.one(self.t.doorbells[0])
        if "does-not-wait" in self.wrong and opcode == pc.QUEUE_STOPPED:
            time.sleep(0.05)
            return pc.OK
        deadline = time.monotonic() + pc.limit(5)
        while True:
            s = self.read()
            if s and s.answer[0] == seq:
                return s.answer[2]
            if time.monotonic() > deadline:
                sys.exit(f"command {opcode} was not answered")
            select.select([self.t.signals[0]], [], [], 0.05)
            pc.raised(self.t.signals[0], 0)

    # -- the state

    def read(self):
        """A consistent copy, or None: half written."""
        for _ in range(100):
            g = self.t.words[pc.STATE // 4]
            raw = bytes(self.t.mem[pc.STATE:pc.STATE + 0x10000])
            if g & 1 and "torn" not in self.wrong:
                time.sleep(0.001)
                continue
            if self.t.words[pc.STATE // 4] == g:
                return pc.State(raw)
        return None

    def contradicts(self, s):
        if "any-state" in self.wrong:
            return False
        end = 0
        for addr, size, off, win, _ in s.regions:
            if not size or addr < end or addr + size >= MAX_ADDR or win >= len(s.windows):
                return True
            if not s.windows[win][3] or off + size > s.windows[win][0]:
                return True
            end = addr + size
        return any(q.flags & pc.STOP and not q.flags & pc.STARTED or q.flags & pc.STARTED and
                   not q.run for q in s.queues)

    def update(self):
        while True:
            self.take_messages()
            s = self.read()
            if s is None:
                return
            if self.contradicts(s):
                self.q.clear()
                return
            self.follow(s)
            if self.t.words[pc.STATE // 4] == s.generation:
                return

    def take_messages(self):
        while select.select([self.t.sock], [], [], 0)[0]:
            bells = list(self.t.doorbells)
            if "old-doorbell" in self.wrong:
                self.t.doorbells = [os.dup(b) for b in bells]
            self.t.read_message()
            if "old-doorbell" in self.wrong:
                self.t.doorbells = bells

    def follow(self, s):
        wrong = self.wrong
        up = (s.status == 1 or "any-status" in wrong and
              s.status) and (s.attached or wrong & {"attached-anyway", "starts-at-once"})
        for i in list(self.q):
            e = s.queues[i] if i < len(s.queues) else None
            if not s.up:
                if "goes-on-when-down" in wrong:
                    return
                if "works-after-cut" in wrong and s.reason == pc.TIMEOUT:
                    return
            if "goes-on-after-stop" in wrong and self.given_up.get(i) == self.q[i].run:
                continue
            if not up or not e or not e.flags & pc.STARTED or e.run != self.q[i].run:
                if "same-run" in wrong and up and e and e.flags & pc.STARTED:
                    self.q[i].run = e.run
                    continue
                if "lies-in-sync" not in wrong:
                    del self.q[i]
        if s.regions_generation != self.synced and not ("no-sync-at-end" in wrong and
                                                        s.reason == pc.DAEMON):
            if "all-windows" in wrong and any(w[3] not in (0, 1, 4) for w in s.windows):
                sys.exit("a window of a kind that I do not know")
            if "lies-in-sync" not in wrong or s.regions:
                self.table = [(a, size, off, self.t.window(win), flags) for a, size, off, win,
                              flags in s.regions
                              if off + size <= s.windows[win][0] or "any-state" not in wrong]
                for q in self.q.values():
                    q.find(self)
            if s.attached:
                self.synced = s.regions_generation
                self.command(pc.SYNC, self.synced)
        asked = [(i, e) for i, e in enumerate(s.queues) if e.flags & pc.STARTED and
                 e.flags & pc.STOP]
        for i, e in [a for a in asked if a[0] == 0] if "one-stop" in wrong else asked:
            if "never-stops" in wrong or "only-own-runs" in wrong and i not in self.q:
                continue
            q = self.q.get(i) if "goes-on-after-stop" in wrong else self.q.pop(i, None)
            if self.given_up.get(i) != e.run or "goes-on-after-stop" not in wrong:
                self.given_up[i] = e.run
                self.command(pc.QUEUE_STOPPED, i, e.run, q.index if q else e.base, 0)
        for i, e in enumerate(s.queues):
            started = e.flags & (pc.STARTED | pc.BROKEN) == pc.STARTED or "ignores-started" in wrong
            if not up or not started or e.flags & pc.STOP:
                continue
            if i not in self.q and self.given_up.get(i) != e.run:
                try:
                    self.q[i] = Queue(i, e, self)
                except Bad:
                    self.give_up(i, e.run)
            if i not in self.q:
                continue
            q = self.q[i]
            q.kick = 1 + i if "kick-1-plus-q" in wrong else e.kick_signal
            q.bell = 1 + i if "doorbell-1-plus-q" in wrong else e.doorbell
            q.enabled = e.flags & pc.ENABLED or "ignores-enabled" in wrong
            if "waits-for-kick" not in wrong:
                self.kicked.add(i)

    def give_up(self, i, run):
        if "skips-bad" in self.wrong:
            return
        for n in [i] + [n for n in self.q if n != i and "gives-up-all" in self.wrong]:
            r = self.q.pop(n).run if n in self.q else run
            self.given_up[n] = r
            self.command(pc.QUEUE_STOPPED, n, r, 0, BROKEN)

    # -- rings

    def pieces(self, addr, n):
        """Where [addr, addr + n) lies: views, split where regions meet."""
        out = []
        for a, size, off, mem, flags in self.table:
            if n and a <= addr < a + size:
                m = min(n, a + size - addr)
                if "one-region" in self.wrong:
                    m = n
                out.append(memoryview(mem)[addr - a + off:addr - a + off + m])
                addr, n = addr + m, n - m
        if n:
            raise Bad("no region")
        return out

    def one(self, addr, n):
        out = self.pieces(addr, n)
        if len(out) != 1:
            raise Bad("a ring over two regions")
        return out[0]

    def chain(self, q):
        """(head, views), or None. Each field is loaded once."""
        ahead = q.avail_u16[1] - q.index & 0xffff
        if not ahead:
            return None
        if ahead > q.size and "trusts-index" not in self.wrong:
            raise Bad("available index")
        head, = struct.unpack_from("<H", q.avail, 4 + 2 * (q.index % q.size))
        i, views, table, size = head, [], q.desc, q.size
        for n in range(q.size + 1):
            if n == q.size or i >= size:
                raise Bad("a chain without end, or out of range")
            addr, length, flags, nxt = struct.unpack_from("<QIHH", table, 16 * i)
            if addr + length >= MAX_ADDR:
                raise Bad("wraps around")
            if flags & vu.DESC_INDIRECT:
                if table is not q.desc or flags & 1 or not length or length % 16:
                    raise Bad("indirect table")
                table, size, i = self.one(addr, length), length // 16, 0
                continue
            if bool(flags & vu.DESC_WRITE) != (q.number % 2 == 0):
                raise Bad("direction")
            views += self.pieces(addr, length)
            if not flags & vu.DESC_NEXT:
                return head, views
            i = nxt

    def back(self, q, head, n):
        struct.pack_into("<II", q.used, 4 + 8 * (q.index % q.size), head, n)
        q.index = q.index + 1 & 0xffff
        q.used_u16[1] = q.index

    def process(self, q):
        """Takes packets, and sends them back. Whether anything was done."""
        if not q.enabled:
            return False
        n = 0
        try:
            while q.number % 2 and (got := self.chain(q)):
                self.packets.append((q.number - 1, b"".join(bytes(v) for v in got[1])))
                self.back(q, got[0], 0)
                n += 1
            while q.number % 2 == 0 and self.packets and self.packets[0][0] == q.number:
                got = self.chain(q)
                if not got:
                    break
                self.put(q, got, self.packets.pop(0)[1])
                n += 1
        except Bad:
            if "skips-bad" in self.wrong:
                q.index = q.avail_u16[1]
            self.give_up(q.number, q.run)
        if n and "never-calls" not in self.wrong:
            pc.one(self.t.doorbells[q.bell])
        return n > 0

    def put(self, q, got, raw):
        head, views = got
        body = raw[HDR:]
        hdr = bytes(10) + (b"\0\0" if "no-num-buffers" in self.wrong else b"\1\0")
        data = (b"" if "no-header" in self.wrong else hdr) + body
        if "writes-all" in self.wrong:
            for _, size, off, mem, _ in self.table:
                mem[off + size - 5 * (1 << 20):off + size - (1 << 20)] = bytes(4 << 20)
        done = 0
        for v in views:
            part = data[done:done + len(v)]
            v[:len(part)] = part
            done += len(part)
        self.back(q, head, done)

    # -- life

    def run(self):
        self.attach()
        self.update()
        if "talks" in self.wrong:
            self.t.sock.send(b"hello")
        while True:
            fds = [self.t.sock] + self.t.signals
            ready = select.select(fds, [], [], 1 if not self.kicked else 0)[0]
            for s, fd in enumerate(self.t.signals):
                if fd not in ready:
                    continue
                pc.raised(fd, 0)
                if s == 0:
                    self.update()
                self.kicked |= {i for i, q in self.q.items() if q.kick == s}
                # Signal 1 + q may carry kicks as well; and a kick may have come before its run.
                if s and "kick-1-plus-q" not in self.wrong and "waits-for-kick" not in self.wrong:
                    self.update()
            if self.t.sock in ready:
                self.update()
            for i in sorted(self.kicked, reverse=True):
                if i in self.q:
                    self.process(self.q[i])
            if self.kicked and self.wrong & {"counts-unasked", "counts-often"}:
                # Often: a packet's two queues, and its kicks.
                if "counts-unasked" in self.wrong or (s := self.read()) and s.flags & 2:
                    for n in range(4):
                        self.command(pc.COUNTERS, n + 1, 64)
            self.kicked = {0} if self.packets and 0 in self.q and self.kicked - {0} else set()


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("port", help="unix:PATH")
    p.add_argument("--deviate", action="append", default=[], choices=sorted(DEVIATIONS))
    o = p.parse_args()
    try:
        Guest(o.port.removeprefix("unix:"), o.deviate).run()
    except (pc.Gone, ConnectionError):
        return 0


if __name__ == "__main__":
    sys.exit(main())
