# SPDX-License-Identifier: BSD-3-Clause
"""Fast mode: a back-end of a file system or of sockets goes with requests under way, and keeps no account of them."""
import contextlib
import struct

import pytest

import portclient as pc
import vu
from blk import Driver
from test_control import ctl
from test_device import dev, drv, make  # noqa: F401: a fixture

EIO = -5
FEATURES = pc.ALL & ~vu.bit(vu.PACKED)


class Asks(Driver):
    """FUSE requests on queue 1: a header of 40 bytes, room for an answer of 200."""

    def __init__(self, path, size=16):
        super().__init__(path, vu.bit(vu.VERSION_1), queues=2, size=size)
        self.unique = 0

    def fuse(self, q=1, answer=200, length=40):
        self.unique += 2
        at = self.mem.alloc(256)
        self.mem.map[at:at + 256] = struct.pack("<IIQ", length, 26, self.unique) + b"\xee" * 240
        self.rings[q].add([(at, 40, False)] + ([(at + 48, answer, True)] if answer else []), at)
        self.kick(q)
        return at

    def answers(self, n, q=1):
        """The next @n: (place, error)."""
        out = []
        for at, _, length in self.d.wait(lambda: self.collect(n, q)):
            size, error, unique = struct.unpack_from("<IiQ", self.mem.map, at + 48)
            if length:
                assert (size, length, unique) == (16, 16, struct.unpack_from("<Q", self.mem.map, at + 8)[0])
            assert bytes(self.mem.map[at + 64:at + 256]) == b"\xee" * 192
            out.append((at, error if length else None))
        self.got = []
        return out

    got = []

    def collect(self, n, q):
        while (one := self.rings[q].get()) is not None:
            self.got = self.got + [one]
        return len(self.got) >= n and self.got


class Files:
    """The device side: takes FUSE requests, and answers those that it is told to."""

    def __init__(self, d, p):
        self.d, self.p = d, p
        assert p.attach(FEATURES, type=26) == pc.OK
        p.wait(lambda s: s.up and s.queues[0].flags & pc.STARTED)
        self.e = p.state().queues[1]
        self.at = self.given = self.e.base

    def take(self):
        bufs, head = self.d.wait(lambda: self.p.take(self.e, self.at))
        self.at += 1
        return bufs, head

    def answer(self, got):
        e, (bufs, head) = self.e, got
        unique, = struct.unpack_from("<Q", self.p.view(bufs[0][0], 16), 8)
        self.p.view(bufs[1][0], 16)[:] = struct.pack("<IiQ", 16, 0, unique)
        self.p.give_back(e, self.given, head, 16)
        self.given += 1
        pc.one(self.p.doorbells[e.doorbell])


@contextlib.contextmanager
def files(d):
    with dev(d) as p:
        yield Files(d, p)


@contextlib.contextmanager
def link_down(d):
    assert ctl(d, "down", "ab").returncode == 0
    yield
    assert ctl(d, "up", "ab").returncode == 0


def fs(make):
    return make("fast", Link_Type="fs", Profile_Tag="home")


@pytest.mark.parametrize("before", [0, 5, 45], ids=lambda n: f"after {n}")
def test_fs_requests_fail_and_the_next_back_end_serves(make, before):
    """What it may have had ends with EIO, and what comes later is served: nothing hangs, nothing is done twice."""
    d = fs(make)
    with Asks(drv(d)) as f:
        f.d = d
        with files(d) as b:
            for _ in range(before):
                at = f.fuse()
                b.answer(b.take())
                assert f.answers(1) == [(at, 0)]
            open_ = [f.fuse() for _ in range(4)]
            b.take()
            hi = f.fuse(0, 0)
        assert f.answers(4) == [(at, EIO) for at in open_]
        assert f.answers(1, 0) == [(hi, None)]
        assert d.show("ab")["status"] == "partial" and d.show("ab")["sides"]["device"]["requests_failed"] == 5
        assert d.log().count("have failed") == 2
        later = f.fuse()
        with files(d) as b:
            b.answer(b.take())
            assert f.answers(1) == [(later, 0)]


@pytest.mark.parametrize("others", [0, 3, 40])
def test_fs_out_of_order(make, others):
    """One waits while later ones are answered, as a thread pool does it, until it does not show in the ring any more. What is open fails, and nothing else."""
    d = fs(make)
    with Asks(drv(d)) as f:
        f.d = d
        with files(d) as b:
            first = f.fuse()
            b.take()
            for _ in range(others):
                at = f.fuse()
                b.answer(b.take())
                assert f.answers(1) == [(at, 0)]
            at = [f.fuse() for _ in range(4)]
            got = [b.take() for _ in at]
            b.answer(got[2])
            b.answer(got[0])
            assert f.answers(2) == [(at[2], 0), (at[0], 0)]
        assert sorted(f.answers(3)) == sorted((x, EIO) for x in (first, at[1], at[3]))
        later = [f.fuse() for _ in range(2)]
        with files(d) as b:
            for x in later:
                b.answer(b.take())
                assert f.answers(1) == [(x, 0)]
        assert d.show("ab")["sides"]["device"]["requests_failed"] == 3


def test_fs_unclear_breaks(make):
    """Out of order, and requests that FUSE does not know: nobody can tell which are open. The queue breaks by name, and nothing is written."""
    d = fs(make)
    with Asks(drv(d)) as f:
        f.d = d
        with files(d) as b:
            at = [f.fuse(length=41) for _ in range(3)]
            got = [b.take() for _ in range(3)]
            b.answer(got[1])
        d.wait(lambda: d.show("ab")["status"] == "broken")
        assert "had not answered" in d.show("ab")["sides"]["driver"]["queues"][1]["error"]
        assert f.answers(1) == [(at[1], 0)] and not f.collect(1, 1)
        for x in (at[0], at[2]):
            assert bytes(f.mem.map[x + 16:x + 256]) == b"\xee" * 240


def test_used_index_that_cannot_be(make):
    """It said to have returned what was never there, in the driver VM's own ring, and went: the queue breaks, the daemon does not."""
    d = fs(make)
    with Asks(drv(d)) as f:
        f.d = d
        with files(d) as b:
            for _ in range(3):
                f.fuse()
            b.take()
            b.p.view(b.e.used, 4).cast("H")[1] = 5000
        d.wait(lambda: d.show("ab")["status"] == "broken")
        with files(d):
            assert d.show("ab")["status"] == "broken" and d.alive()


def test_fs_back_end_that_is_cut_off_lets_go_first(make):
    """It does not answer, and may still be at work: nothing is failed under its hands."""
    d = fs(make)
    with Asks(drv(d)) as f, dev(d) as p:
        f.d = d
        b = Files(d, p)
        at = [f.fuse() for _ in range(3)]
        held = b.take()
        # It keeps what it has mapped.
        base, size, off, win, _ = p.state().regions[0]
        ram = memoryview(p.window(win))[off:off + size]
        p.view = lambda addr, n: ram[addr - base:addr - base + n]
        with link_down(d):
            d.wait(lambda: d.show("ab")["sides"]["device"]["cuts"] == 1)
            d.stays(lambda: not f.collect(1, 1), 0.3)
            b.answer(held)
        assert f.answers(1) == [(at[0], 0)]
        del p.view
        b = Files(d, p)
        assert f.answers(2) == [(at[1], EIO), (at[2], EIO)]
        last = f.fuse()
        b.answer(b.take())
        assert f.answers(1) == [(last, 0)]


def test_vsock_goes_on_where_the_last_one_stood(make):
    """Packets are given to the next one, which does not know their connections."""
    d = make("fast", Link_Type="vsock", Profile_CID="42")
    with Driver(drv(d), vu.bit(vu.VERSION_1), queues=2) as f:
        room = [f.mem.alloc(64) for _ in range(4)]
        for at in room:
            f.rings[0].add([(at, 64, True)], at)
        for n in range(2):
            with dev(d) as p:
                assert p.attach(FEATURES, type=19) == pc.OK
                p.wait(lambda s: s.up and all(q.flags & pc.STARTED for q in s.queues))
                rx, tx = p.state().queues
                assert (rx.base, tx.base) == (n, 0)
                if not n:
                    at = f.mem.alloc(64)
                    f.rings[1].add([(at, 64, False)], at)
                    f.kick(1)
                bufs, head = d.wait(lambda: p.take(tx, tx.base))
                assert bufs[0][0] & 0xffffffff == at
                bufs, head = p.take(rx, rx.base)
                assert bufs[0][0] & 0xffffffff == room[n]
                p.give_back(rx, rx.base, head, 44)
        d.wait(lambda: d.show("ab")["status"] == "partial")
        assert [f.rings[0].get()[0] for _ in range(2)] == room[:2]
