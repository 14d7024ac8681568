# SPDX-License-Identifier: BSD-3-Clause
"""As test_crash.py, where VMs have a vIOMMU: the next daemon knows nothing of what it maps, and asks again."""
import contextlib
import select
import struct
import threading
import time

import pytest
import viommu
import vu
from test_crash import BASE, POINTS, PACKED_ONLY, Flow, crashes, flows, gone, held, hung_up, next_one, rest  # noqa: F401 pylint: disable=unused-import
from test_relay import FORMATS
from viommu import INVALIDATE, IOVA, PAGE, RW, UPDATE

# Behind the points of virtq/place.h, those of vhostuser/journal.h.
JOURNAL = {"done": 10, "read": 11, "answered": 12, "asked": 13, "heard": 14}


class Strict(viommu.Nic):
    """
    A driver that takes each buffer's page back when it has come back, and maps another page there. Two threads may use it: one sends,
    one receives.
    """

    def __init__(self, *args, moves=True, **kw):
        self.lock, self.moves, self.moved = threading.RLock(), moves, 0
        super().__init__(*args, bufsize=kw.pop("bufsize", 2048), **kw)

    def unmap(self, off, length):
        for page in range(off // PAGE, (off + length - 1) // PAGE + 1):
            self.move(page)
            self.moved += 1
        if len(self.mem.left) > 500:
            self.mem.check_left()

    def serve(self, timeout=0):
        with self.lock:
            super().serve(timeout)

    def reclaim(self, pair=0):
        with self.lock:
            self.serve()
            while (got := self.rings[2 * pair + 1].get()) is not None:
                if self.moves:
                    self.unmap(got[0], 1000)
                self.tx_free.append(got[0])

    def send_packet(self, data, hdr=None, pair=0, cut=None, kick=True):
        with self.lock:
            super().send_packet(data, hdr, pair, cut, kick)

    def poll_packet(self, pair=0):
        with self.lock:
            self.serve()
            ring = self.rings[2 * pair]
            if (got := ring.get()) is None:
                return None
            off, _, length = got
            whole = self.mem.map[off:off + length]
            if self.moves:
                self.unmap(off, 1000)
            ring.add([(off, self.bufsize, True)], off)
            self.kick(2 * pair)
            return whole[:self.hdr], whole[self.hdr:]


def served(d, *nics, until, timeout=60):
    end = time.monotonic() + timeout
    while not (got := until()):
        assert time.monotonic() < end, (d.show("ab"), d.log()[-3000:])
        for nic in nics:
            if isinstance(nic, viommu.Nic):
                nic.serve()
        time.sleep(0.001)
    return got


def exchange(d, a, b, first=0, n=5):
    """Packets both ways. A relay drops what waits for too long for a translation: it goes again then."""
    for i in range(first, first + n):
        for x, y in ((a, b), (b, a)):
            sent = []

            def came():
                if not sent or time.monotonic() > sent[-1] + 1:
                    x.send_packet(vu.frame(i, 100))
                    sent.append(time.monotonic())
                while (p := y.poll_packet()) is not None:
                    if p[1] == vu.frame(i, 100):
                        return True
                return False
            served(d, a, b, until=came)
            x.reclaim()


# Which side has a vIOMMU, with which kind of ring.
SIDES = {"driver": (True, False), "device": (False, True), "both": (True, True)}


@contextlib.contextmanager
def two(d, sides="driver", fa="split", fb="split", **kw):
    make = [Strict if s else vu.Nic for s in SIDES[sides]]
    with make[0](d.sock("ab", "driver"), BASE | FORMATS[fa], **(kw if SIDES[sides][0] else {})) as a, \
            make[1](d.sock("ab", "device"), BASE | FORMATS[fb], **(kw if SIDES[sides][1] else {})) as b:
        served(d, a, b, until=lambda: d.show("ab")["status"] == "up")
        exchange(d, a, b)
        served(d, a, b, until=lambda: d.show("ab")["kept"])
        yield a, b
        assert not hung_up(a) and not hung_up(b)
        for nic in (a, b):
            if isinstance(nic, Strict):
                nic.mem.check_left()
                assert not nic.fails
        shown = d.show("ab")
        assert [s["sessions"] for s in shown["sides"].values()] == [1, 1], d.log()[-3000:]
        assert all(s["queues"][q]["state"] == "running" for s in shown["sides"].values() for q in (0, 1)), shown


@pytest.mark.parametrize("fa,fb", [("split", "split"), ("packed", "split"), ("split-event", "packed-event")])
@pytest.mark.parametrize("sides", SIDES)
def test_killed(held, sides, fa, fb):  # noqa: F811
    """Under traffic whose pages are taken back one by one: none is lost, none comes twice, and none is touched behind the answer."""
    d = held
    with two(d, sides, fa, fb) as (a, b):
        with flows((a, b), (b, a), window=24) as more:
            for _ in range(8):
                d.kill()
                next_one(d)
                more(20)
        assert all(n.moved > 300 for n in (a, b) if isinstance(n, Strict))
        exchange(d, a, b, 1000)
    assert d.log().count("went on with 2 links of the daemon before, 0 start anew") == 8, d.log()


@pytest.mark.parametrize("fa,fb", [("split", "packed"), ("packed", "split")])
def test_at_each_point(held, fa, fb):  # noqa: F811
    """Killed between any two stores of a burst, and of an IOTLB message, a miss, and their answers."""
    d = held
    with two(d, "both", fa, fb) as (a, b):
        with flows((a, b), (b, a), window=24) as more:
            for point in [*POINTS.values(), *JOURNAL.values()]:
                if "packed" not in fa + fb and point in PACKED_ONLY:
                    continue
                for n in (1, 30):
                    d.kill()
                    crashes(d, point, n)
                    next_one(d)
                    more(20)
        exchange(d, a, b, 1000)
    assert "start anew" in d.log() and "connect again" not in d.log(), d.log()
