# SPDX-License-Identifier: BSD-3-Clause
"""As test_crash.py, where VMs have a vIOMMU: the next daemon knows nothing of what it maps, and asks again."""
import contextlib
import socket
import struct
import threading
import time

import conftest
import pytest
import test_crash
import viommu
import vu
from test_crash import BASE, POINTS, PACKED_ONLY, Flow, crashes, gone, held, hung_up, next_one, rest  # noqa: F401 pylint: disable=unused-import
from test_hardening import SANITIZED
from test_relay import FORMATS
from test_viommu import open_log
from viommu import INVALIDATE, IOVA, PAGE, RW, UPDATE

# Behind the points of virtq/place.h, those of vhostuser/journal.h.
JOURNAL = {"done": 100, "read": 101, "answered": 102, "asked": 103, "heard": 104}


def flows(*pairs, **how):
    """A relay does not wait for ever for a translation: an instrumented one, and a scripted VMM beside it, are that slow at times."""
    return test_crash.flows(*pairs, lost=100 if SANITIZED else 0, **how)


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


def test_messages_leave_no_mark(held):  # noqa: F811
    """The link is kept all the time: no IOTLB message, miss or answer is waited for by a new record."""
    d = held
    with two(d, "both") as (a, b), flows((a, b), (b, a), window=24) as more:
        kept = []
        for _ in range(30):
            kept.append(d.show("ab")["kept"])
            more(5)
        assert all(kept), kept
        before = d.show("ab")["sides"]["driver"]["iommu"]
        more(50)
        assert d.show("ab")["sides"]["driver"]["iommu"]["invalidations"] >= before["invalidations"] + 50


def waiting(nic, d, n):
    """So many requests that nobody has read: their ids."""
    size = n * (12 + 32)
    served(d, until=lambda: len(nic.back.recv(size, socket.MSG_PEEK)) == size)
    data = nic.back.recv(4096, socket.MSG_PEEK)
    return [struct.unpack_from("<I", data, at)[0] for at in range(0, len(data), 44)]


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_open_misses(held, how):  # noqa: F811
    """What a daemon had asked, the next one hears, and knows that it is not the answer to its own questions."""
    d = held
    with two(d, moves=False) as (a, b):
        for off in range(0, a.mem.next, PAGE):
            a.invalidate(off // PAGE)
        # The rings are back, and nothing else.
        served(d, a, until=lambda: d.show("ab")["status"] == "up")
        a.silent = True
        a.send_packet(vu.frame(1))
        b.send_packet(vu.frame(2))
        first = waiting(a, d, 2)
        getattr(d, how)()
        next_one(d)
        time.sleep(0.3)
        assert waiting(a, d, 2) == first == [1, 1], "it asks before it has heard what was asked"
        a.silent = False
        old, a.answer = a.answer, lambda iova, perm: False
        for _ in range(2):
            with a.lock:
                head = a.back.recv(44, socket.MSG_WAITALL)
                assert not a.answer(*struct.unpack_from("<QQQB", head, 12)[::3])
                a.back.sendall(struct.pack("<IIIQ", 1, 5, 8, 1))
        a.answer = old
        got = []
        served(d, a, b, until=lambda: (p := b.poll_packet()) and got.append(p[1]) or got)
        served(d, a, b, until=lambda: (p := a.poll_packet()) and got.append(p[1]) or len(got) == 2)
        assert got == [vu.frame(1), vu.frame(2)]
        exchange(d, a, b, 10)
        assert "request channel closed" not in d.log()


@pytest.mark.parametrize("fmt", ["split", "packed"])
def test_while_it_waits(held, fmt):  # noqa: F811
    """Until the rings are translated nothing passes, nothing is dropped and no VMM hears anything; who is killed then is followed, too."""
    d = held
    with two(d, "both", fmt, fmt, moves=False) as (a, b), answering(a, b):
        told = a.told, b.told
        d.kill()
        with open(d.log_path, "ab") as log, pytest.MonkeyPatch.context() as env:
            env.setenv("VHOST_PCI_CRASH_AT", f"{POINTS['sent']},1")
            d.proc = d.spawn(log)
        for i in range(5):
            b.send_packet(vu.frame(i), kick=i == 4)
        assert d.proc.wait(conftest.PATIENCE) == -9, d.log()
        a.silent = True
        d.hang_up()
        for _ in range(2):
            next_one(d)
            time.sleep(0.3)
            assert d.show("ab")["status"] != "up" and d.show("ab")["kept"]
            d.kill()
        next_one(d)
        a.silent = False
        got = []
        served(d, until=lambda: (p := a.poll_packet()) and p[1] and got.append(p[1]) or len(got) == 5)
        assert got == [vu.frame(i) for i in range(5)]
        assert (a.told, b.told) == told, "the link was said to be down"
        d.wait(lambda: b.reclaim() or len(b.tx_free) == 64)


@contextlib.contextmanager
def answering(*nics):
    """Whatever a daemon asks is answered, also while nobody is there to take the answer."""
    ending = threading.Event()

    def run(nic):
        while not ending.is_set():
            nic.serve()
            time.sleep(0.0005)
    threads = [threading.Thread(target=run, args=(nic,), daemon=True) for nic in nics]
    for t in threads:
        t.start()
    try:
        yield
    finally:
        ending.set()
        for t in threads:
            t.join()


def test_nobody_answers(held):  # noqa: F811
    """A VMM that does not say where it maps its rings holds the other one up for a while only."""
    d = held
    with two(d, moves=False) as (a, b):
        a.silent = True
        d.kill()
        next_one(d)
        b.send_packet(vu.frame(1))
        d.wait_log("has not said where its vIOMMU maps a queue")
        # Dropped, as ever where the other side takes nothing.
        d.wait(lambda: b.reclaim() or len(b.tx_free) == 64)
        a.silent = False
        served(d, a, until=lambda: d.show("ab")["status"] == "up")
        exchange(d, a, b, 10)
        served(d, a, b, until=lambda: d.show("ab")["kept"])
        d.kill()
        next_one(d)
        exchange(d, a, b, 20)


@pytest.mark.parametrize("fmt", ["split", "packed"])
def test_stopped_while_it_waits(held, fmt):  # noqa: F811
    """The driver stops its rings before they are translated, and starts them where it was told that they are."""
    d = held
    with two(d, "driver", fmt, moves=False) as (a, b):
        a.silent = True
        d.kill()
        next_one(d)
        for q in (0, 1):
            a.start_ring(q, a.rings[q], base=a.stop_ring(q))
        a.silent = False
        exchange(d, a, b, 10)


def test_half_a_message(held):  # noqa: F811
    """The first half of an INVALIDATE was read by one daemon, the rest by the next one, which answers."""
    d = held
    with two(d, moves=False) as (a, b):
        whole = struct.pack("<IIIQQQBB6x", vu.IOTLB_MSG, 1 | 8, 32, IOVA, PAGE, 0, 0, INVALIDATE)
        for cut in (1, 12, 30):
            a.raw(whole[:cut])
            assert d.call("daemon.version")
            rest(d)
            d.kill()
            next_one(d)
            a.raw(whole[cut:])
            assert struct.unpack("<Q", a.recv_reply(vu.IOTLB_MSG)) == (0,)
            served(d, a, b, until=lambda: d.show("ab")["status"] == "up")
        exchange(d, a, b, 10)


def test_refused_message(held):  # noqa: F811
    """One that is refused is answered, and changes the record; the link is kept again soon."""
    d = held
    with two(d, moves=False) as (a, b):
        for _ in range(2):
            with pytest.raises(vu.Refused):
                a.iotlb(UPDATE, IOVA, PAGE, 0x1234, RW)
            with pytest.raises(vu.Refused):
                a.iotlb(9, IOVA, PAGE)
            rest(d)
            d.kill()
            next_one(d)
        exchange(d, a, b, 10)


def test_upgraded_in_between(held):  # noqa: F811
    d = held
    with two(d, "both", "packed") as (a, b), flows((a, b), (b, a), window=24) as more:
        for _ in range(2):
            d.upgrade()
            more(20)
            d.control = conftest.Control(d.run / "control.sock")
            rest(d)
            d.kill()
            next_one(d)
            more(20)


@pytest.mark.parametrize("fmt", ["split", "packed"])
def test_dirty_log(held, fmt):  # noqa: F811
    """Logging goes on with it: rings and buffers by the pages that they are mapped to."""
    d = held
    with two(d, "driver", fmt, moves=False) as (a, b), open_log(a) as log:
        served(d, a, b, until=lambda: d.show("ab")["status"] == "up")
        rest(d)
        d.kill()
        next_one(d)
        log.clear()
        b.send_packet(vu.frame(1, 500))
        assert served(d, a, b, until=a.poll_packet)[1] == vu.frame(1, 500)
        dirty = log.dirty()
        assert {log.page(a.rings[0].used if fmt == "split" else a.rings[0].desc)} <= dirty, "the receive ring is not in the log"
        assert {p for p in dirty if p > log.page(max(a.tx_free) + 66000)}, "nor is its buffer"
        exchange(d, a, b, 10)
