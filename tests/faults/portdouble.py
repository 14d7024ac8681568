#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""
A device VM on an ivshmem or shmem port for the fault campaign: the VMM's side of the attachment and, in the same process, the agent that
processes split rings; numbered traffic as in traffic.h, from Python.

SIGTERM: DETACH, end. SIGUSR1: the agent dies without a word and the next one takes over (DETACH, ATTACH).
"""
import argparse
import ctypes
import mmap
import os
import pathlib
import random
import select
import signal
import struct
import sys
import time
import zlib

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "conformance")]

import portclient as pc  # noqa: E402
import rig  # noqa: E402
import vu  # noqa: E402

HEADER = struct.Struct("<14sIIIIQQQQ")
WINDOW, PROBE, HDR = 32, 0.05, 12
PATH = pc.ALL & ~vu.bit(vu.PACKED)


class Traffic:
    """struct end and its page, as traffic.c has them."""

    def __init__(self, o):
        with open(o.pages, "r+b") as f:
            self.map = mmap.mmap(f.fileno(), 4096)
        self.at = 1024 * (1 + o.end)
        self.id, self.life, self.rate = 2 * o.link + o.end, o.life, o.rate
        self.seq = self.acked = 0
        self.tokens, self.token_t = 0.0, time.monotonic()
        self.progress = time.monotonic()
        self.rnd = random.Random(o.life)
        self.put("life", o.life)

    def get(self, field):
        return struct.unpack_from("<Q", self.map, self.at + rig.OFFSET[field])[0]

    def put(self, field, v):
        struct.pack_into("<Q", self.map, self.at + rig.OFFSET[field], v)

    def add(self, field, n=1):
        self.put(field, self.get(field) + n)

    def bad(self, field, text):
        if not any(self.get(v) for v in rig.VIOLATIONS):
            raw = text.encode()[:255] + b"\0"
            self.map[self.at + rig.MSG:self.at + rig.MSG + len(raw)] = raw
        self.add(field)

    def may_send(self):
        t = time.monotonic()
        self.tokens = min(self.tokens + (t - self.token_t) * self.rate, 8)
        self.token_t = t
        if self.tokens < 1:
            return 0
        if self.seq - self.acked < WINDOW:
            return min(int(self.tokens), WINDOW - (self.seq - self.acked))
        if t - self.progress < PROBE:
            return 0
        self.progress = t
        self.add("probes")
        return 1

    def make(self):
        self.seq += 1
        self.tokens -= 1
        self.add("tx")
        n = self.rnd.randrange(66, 400)
        body = self.rnd.randbytes(n - HEADER.size)
        eth = bytes([2, 0, 0, 0, 0, 1 - (self.id & 1), 2, 0, 0, 0, 0, self.id & 1, 0x88, 0xb5])
        epoch, = struct.unpack_from("<I", self.map, 0)
        raw = HEADER.pack(eth, 0, self.id, epoch, n, self.life, self.seq, self.get("peer_life"), self.get("peer_seq")) + body
        return raw[:14] + struct.pack("<I", zlib.crc32(raw[18:])) + raw[18:]

    def take(self, raw):
        if len(raw) < HEADER.size:
            return self.bad("corrupt", "a packet of %d bytes" % len(raw))
        _, total, ident, epoch, n, life, seq, ack_life, ack_seq = HEADER.unpack_from(raw)
        if n != len(raw) or zlib.crc32(raw[18:]) != total:
            return self.bad("corrupt", "a changed packet: %d bytes instead of %d, life %d, number %d" % (len(raw), n, life, seq))
        if ident != self.id ^ 1:
            return self.bad("foreign", "a packet of end %#x came to end %#x" % (ident, self.id))
        last_life, last = self.get("peer_life"), self.get("peer_seq")
        if life < last_life:
            return self.bad("stale", "number %d of life %d after life %d had begun" % (seq, life, last_life))
        expected = last + 1 if life == last_life else 1
        if seq < expected:
            return self.bad("dup", "number %d of life %d after number %d" % (seq, life, last))
        self.add("lost", seq - expected)
        if life != last_life:
            self.put("peer_seq", 0)
            self.put("peer_life", life)
        self.put("peer_seq", seq)
        t = time.monotonic()
        if ack_life == self.life and self.acked < ack_seq <= self.seq:
            self.acked, self.progress = ack_seq, t
        now, before = int(t * 1e9), self.get("last_rx_ns")
        if before:
            self.put("max_gap_ns", max(self.get("max_gap_ns"), now - before))
        self.put("last_rx_ns", now)
        self.add("rx")
        struct.pack_into("<I", self.map, self.at + rig.EPOCH_SEEN, epoch)


class Queue:
    """The device's side of a split ring during one run. Its views are made once: state() is far too slow for packets."""

    def __init__(self, port, entry):
        self.entry, self.size, self.run, self.index = entry, entry.size, entry.run, entry.base & 0xffff
        self.desc = port.view(entry.desc, 16 * entry.size)
        self.avail = port.view(entry.avail, 6 + 2 * entry.size)
        self.used = port.view(entry.used, 6 + 8 * entry.size)
        self.avail_u16, self.used_u16 = self.avail.cast("H"), self.used[:4].cast("H")
        self.regions = [(a, size, off, memoryview(port.window(win))) for a, size, off, win, _ in port.state().regions]

    def at(self, addr, n):
        for a, size, off, mem in self.regions:
            if a <= addr and addr + n <= a + size:
                return mem[addr - a + off:addr - a + off + n]
        raise KeyError(hex(addr))

    def take(self):
        if self.avail_u16[1] == self.index:
            return None
        head = i = self.avail_u16[2 + self.index % self.size]
        bufs = []
        while True:
            addr, n, flags, nxt = struct.unpack_from("<QIHH", self.desc, 16 * i)
            bufs.append(self.at(addr, n))
            if not flags & 1:
                return head, bufs
            i = nxt

    def back(self, head, n):
        struct.pack_into("<II", self.used, 4 + 8 * (self.index % self.size), head, n)
        self.index = (self.index + 1) & 0xffff
        self.used_u16[1] = self.index


class Ivshmem(pc.Ivshmem):
    """For copy mode: the pool is a part of BAR2."""

    def window(self, slot):
        size, locator, _, kind, _ = self.state().windows[slot]
        assert kind == 1
        return memoryview(self.mem)[locator:locator + size]


class Agent:
    """Attached: runs what the state page says."""

    def __init__(self, port, traffic):
        self.port, self.traffic, self.q, self.generation, self.synced = port, traffic, {}, None, None
        if port.state().attached:
            port.command(pc.DETACH)
        if port.attach(PATH) != pc.OK:
            raise pc.Gone()

    def raise_bell(self, q):
        entry = self.q[q].entry
        if isinstance(self.port, pc.Ivshmem):
            self.port.doorbell(entry.doorbell)
        else:
            pc.one(self.port.doorbells[1 + q] if entry.doorbell == 0 else self.port.doorbells[entry.doorbell])

    def look(self):
        """Follow the state page when it has changed."""
        g, = struct.unpack_from("<I", self.port.mem, pc.STATE)
        if g == self.generation or g & 1:
            return
        s = self.port.state()
        self.generation = s.generation
        if not s.attached:
            raise pc.Gone()  # cut: a new agent attaches
        for i, entry in enumerate(s.queues):
            have = self.q.get(i)
            lives = s.up and entry.flags & pc.STARTED
            if have and (not lives or entry.run != have.run):
                have = self.q.pop(i) and None
            if lives and entry.flags & pc.STOP:
                q = self.q.pop(i, None)
                self.port.stopped(i, entry.run, q.index if q else entry.base)
            elif lives and entry.flags & pc.ENABLED and not have:
                try:
                    self.q[i] = Queue(self.port, entry)
                    self.traffic.add("sessions")
                except (KeyError, IndexError, AssertionError):
                    self.generation = None  # the window is on its way, or the state is another one by now
        # It works on nothing any more that the state does not show.
        if s.regions_generation != self.synced:
            self.synced = s.regions_generation
            self.port.command(pc.SYNC, self.synced)

    def work(self):
        busy = False
        if 1 in self.q:
            q, n = self.q[1], 0
            packets = []
            while n < 16 and (got := q.take()) is not None:
                head, bufs = got
                packets.append(b"".join(bytes(b) for b in bufs)[HDR:])
                q.back(head, 0)
                n += 1
            if n:
                self.raise_bell(1)
                busy = True
            for p in packets:  # they count when they have been given back
                self.traffic.take(p)
        if 0 in self.q:
            q, n = self.q[0], self.traffic.may_send()
            for _ in range(n):
                got = q.take()
                if got is None:
                    break
                head, bufs = got
                raw = bytes(10) + b"\1\0" + self.traffic.make()
                if len(bufs[0]) < len(raw):
                    self.traffic.bad("broken", "a receive buffer of %d bytes" % len(bufs[0]))
                    break
                bufs[0][:len(raw)] = raw
                q.back(head, len(raw))
                busy = True
            if busy:
                self.raise_bell(0)
        return busy


class Quit(Exception):
    pass


def say_goodbye(port):
    """DETACH. A daemon that stands still, for it is frozen, is not waited for: whoever ends the device VM does not wait either."""
    seq = port.state().answer[0] + 1
    port.command_raw(seq, pc.DETACH)
    deadline = time.monotonic() + 3
    while port.state().answer[0] != seq and time.monotonic() < deadline:
        port.drain()
        port.idle()


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--attachment", choices=["ivshmem", "shmem"], required=True)
    p.add_argument("--port", required=True)
    p.add_argument("--pages", required=True)
    for a, t in (("link", int), ("end", int), ("life", int), ("rate", float)):
        p.add_argument("--" + a, type=t, default=1)
    o = p.parse_args()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    traffic = Traffic(o)
    asked = {}

    def on_signal(sig, _):
        asked[sig] = True
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGUSR1, on_signal)
    port = None
    while signal.SIGTERM not in asked:
        try:
            if port is None:
                port = (Ivshmem if o.attachment == "ivshmem" else pc.Shmem)(o.port)
            sock = port.sock if o.attachment == "ivshmem" else port.fe.sock
            asked.pop(signal.SIGUSR1, None)
            agent = Agent(port, traffic)
            while not asked:
                if select.select([sock], [], [], 0)[0] and not sock.recv(1, 0x2):  # MSG_PEEK
                    raise ConnectionError("the daemon went away")
                port.idle() if o.attachment == "shmem" else None
                agent.look()
                try:
                    busy = agent.work()
                except KeyError as err:
                    # A ring whose memory went with its driver VM; the state page says so in a moment. If it does not, nothing moves any
                    # more on this link, and that is seen.
                    traffic.bad("errors", "descriptor at %s" % err)
                    agent.q.clear()
                    busy = True
                if not busy:
                    time.sleep(0.004)
            if signal.SIGTERM in asked:
                say_goodbye(port)
        except pc.Gone as err:
            # Cut, or the connection ended: the next look at the socket tells.
            traffic.bad("errors", "gone: %r" % err)
            if port is not None and (port.mem is None or select.select([port.sock if o.attachment == "ivshmem" else port.fe.sock], [], [], 0)[0]):
                port.close()
                port = None
            time.sleep(0.01)
        except (OSError, AssertionError, vu.Gone, vu.Refused, EOFError, struct.error) as err:
            traffic.bad("errors", "%s: %s" % (type(err).__name__, err))
            if port is not None:
                try:
                    port.close()
                except OSError:
                    pass
            port = None
            time.sleep(0.02)


if __name__ == "__main__":
    main()
