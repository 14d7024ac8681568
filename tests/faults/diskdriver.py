#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""
The driver of a disk for the fault campaign: a vhost-user front-end with one request queue that writes numbered, checksummed sectors
and reads them back.

What it knows of each sector is in a ledger, a file that outlives it: the number that it has asked for last, the highest that was
acknowledged or read. What a read may show is a number between the two, whole. Fewer: an acknowledged write was lost, or an old one was done
after a newer one. A request that fails, or is never answered, is a violation as well. Its connection may be cut: it goes on with the same
ring and account of open requests, as QEMU does. When it is killed its successor begins with a new ring and the same ledger.

SIGTERM: stops the queue and ends. SIGUSR1: stops it, forgets what is open and sets a new ring up, as a driver's reset does. SIGUSR2:
stops it and goes on where it was.
"""
import argparse
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
sys.path[:0] = [str(HERE), str(HERE.parent / "protocol"), str(HERE.parents[1] / "conformance")]

import blk  # noqa: E402
import rig  # noqa: E402
import vu  # noqa: E402

SECTORS = 256            # places of PLACE bytes
PLACE = 4096
DEPTH = 8
LATE = 30.0              # seconds until a request counts as lost; longer than any fault
ENTRY = struct.Struct("<QQ")  # asked, acknowledged
HEAD = struct.Struct("<14sHQQI")
MAGIC = b"vhost-pci disk"


def made(place, number, length):
    """What a write of this number puts there."""
    body = random.Random(place << 40 | number).randbytes(length - HEAD.size)
    return HEAD.pack(MAGIC, length // 512, place, number, zlib.crc32(body)) + body


def number_in(place, data):
    """None: it is not whole, or not this place's."""
    if not any(data):
        return 0
    magic, n, where, number, crc = HEAD.unpack_from(data)
    whole = data[HEAD.size:]
    return number if magic == MAGIC and 512 * n == len(data) and where == place and zlib.crc32(whole) == crc else None


class Page:
    """struct end_page."""

    def __init__(self, o):
        with open(o.pages, "r+b") as f:
            self.map = mmap.mmap(f.fileno(), 4096)
        self.at = 1024 * (1 + o.end)
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

    def epoch(self):
        return struct.unpack_from("<I", self.map, 0)[0]

    def seen(self, epoch):
        struct.pack_into("<I", self.map, self.at + rig.EPOCH_SEEN, epoch)

    def arrived(self):
        now = int(time.monotonic() * 1e9)
        last = self.get("last_rx_ns")
        if last:
            self.put("max_gap_ns", max(self.get("max_gap_ns"), now - last))
        self.put("last_rx_ns", now)
        self.add("rx")


class Disk:
    def __init__(self, o):
        self.o, self.page = o, Page(o)
        with open(o.ledger, "r+b") as f:
            self.ledger = mmap.mmap(f.fileno(), SECTORS * ENTRY.size)
        self.rnd = random.Random(o.life)
        self.busy, self.f = {}, None
        self.end = False
        self.asked_for = set()   # signals
        self.next = 0.0

    def entry(self, place):
        return ENTRY.unpack_from(self.ledger, place * ENTRY.size)

    def set_entry(self, place, asked, acked):
        ENTRY.pack_into(self.ledger, place * ENTRY.size, asked, acked)

    # -- requests

    def ask(self):
        place = self.rnd.randrange(SECTORS)
        if place in {b[0] for b in self.busy.values()}:
            return
        asked, acked = self.entry(place)
        epoch = self.page.epoch()
        if self.rnd.random() < 0.5:
            asked += 1
            self.set_entry(place, asked, acked)  # before anybody can do it
            token = self.f.request(blk.OUT, place * PLACE // 512, made(place, asked, PLACE))
            self.busy[token] = place, asked, time.monotonic(), epoch
        elif self.rnd.random() < 0.1:
            self.busy[self.f.request(blk.DO_FLUSH, 0)] = None, 0, time.monotonic(), epoch
        else:
            token = self.f.request(blk.IN, place * PLACE // 512, length=PLACE, cut=self.rnd.choice([512, 1024, 4096]))
            self.busy[token] = place, 0, time.monotonic(), epoch
        self.page.add("tx")

    def answered(self, token):
        place, number, _, epoch = self.busy.pop(token)
        status, data, _ = self.f.done.pop(token)
        what = "request" if place is None else "%s of place %d" % ("write" if number else "read", place)
        if status != blk.OK:
            self.page.bad("broken", "a %s failed with status %d" % (what, status))
        elif number:
            self.set_entry(place, number, number)
        elif place is not None:
            self.check(place, data)
        self.page.arrived()
        self.page.seen(epoch)

    def check(self, place, data):
        asked, acked = self.entry(place)
        got = number_in(place, data)
        if got is None:
            self.page.bad("corrupt", "place %d holds no whole write of it: %s" % (place, bytes(data[:32]).hex()))
        elif got < acked:
            self.page.bad("stale", "place %d holds write %d, but write %d was acknowledged or read" % (place, got, acked))
        elif got > asked:
            self.page.bad("corrupt", "place %d holds write %d, but only %d were asked for" % (place, got, asked))
        else:
            self.set_entry(place, asked, max(acked, got))

    def turn(self):
        f, now = self.f, time.monotonic()
        while len(self.busy) < DEPTH and now >= self.next:
            if not self.busy:
                f.mem.next = self.bottom  # all buffers are free again
            if f.mem.size - f.mem.next < 4 * PLACE:
                break  # no more before all are back
            self.ask()
            self.next = max(self.next + 1 / self.o.rate, now - 0.05)
        f.reap()
        for token in [t for t in self.busy if t in f.done]:
            self.answered(token)
        for token, (place, number, since, _) in list(self.busy.items()):
            if now - since > LATE:
                self.page.bad("broken", "a request (place %s, write %d) has no answer after %.0f s" % (place, number, LATE))
                self.busy[token] = place, number, now, 0
        wait = max(min(self.next - time.monotonic(), 0.05), 0.001)
        ready, _, _ = select.select([f.sock, f.rings[0].call_fd], [], [], wait)
        if f.sock in ready and not f.sock.recv(4096):
            raise ConnectionError("closed")
        if f.rings[0].call_fd in ready:
            os.read(f.rings[0].call_fd, 8)

    # -- sessions

    def connect(self):
        """The same ring, memory and account as before, or new ones."""
        features = vu.bit(vu.VERSION_1, vu.INDIRECT) | blk.FEATURES
        if not self.f:
            self.f = blk.Driver(self.o.socket, features)
            self.bottom = self.f.mem.next
        else:
            old = self.f
            self.f = blk.Driver(self.o.socket, features, mem=old.mem, rings=old.rings, inflight=old.inflight)
            self.f.open, self.f.done = old.open, old.done
            old.sock.close()
            for fd in old.fds:
                os.close(fd)
        self.f.kick(0)
        self.page.add("sessions")

    def stop_and_start(self, reset):
        f = self.f
        ring, base = f.rings[0], f.stop_ring(0)
        f.reap()
        for token in [t for t in self.busy if t in f.done]:
            self.answered(token)
        if reset:
            self.busy.clear()
            f.open.clear()
            ring.reset()
            f.inflight = None
            f.set_inflight(1)
        f.start_ring(0, ring, base=0 if reset else base)
        f.kick(0)
        self.page.add("sessions")

    def run(self):
        while not self.end:
            try:
                self.connect()
                while not self.end:
                    while self.asked_for:
                        self.stop_and_start(self.asked_for.pop() == signal.SIGUSR1)
                    self.turn()
            except (OSError, vu.Gone, struct.error) as e:
                self.page.add("errors")
                time.sleep(0.01)
                print("connection: %s" % e, flush=True)
        if self.f:
            try:
                self.f.stop_ring(0)
            except (OSError, vu.Gone):
                pass


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--socket", required=True)
    p.add_argument("--ledger", required=True)
    p.add_argument("--pages", required=True)
    p.add_argument("--link", type=int, default=0)
    p.add_argument("--end", type=int, default=0)
    p.add_argument("--life", type=int, default=1)
    p.add_argument("--rate", type=float, default=200)
    d = Disk(p.parse_args())

    def stop(*_):
        d.end = True
    signal.signal(signal.SIGTERM, stop)
    for sig in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(sig, lambda s, _: d.asked_for.add(s))
    d.run()


if __name__ == "__main__":
    main()
