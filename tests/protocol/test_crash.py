# SPDX-License-Identifier: BSD-3-Clause
"""A daemon is killed, crashes or is stopped, and the next one goes on with its sessions: no VMM notices (docs/handover.md)."""
import contextlib
import os
import pathlib
import select
import signal
import struct
import subprocess
import threading
import time

import conftest
import pytest
import vu
from test_relay import FORMATS, both_ways

BASE = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF)


class Flow(threading.Thread):
    """Numbered packets from nic to nic: none comes twice, in another order or changed. Those that do not come are counted."""

    def __init__(self, a, b, window=48, size=200, pair=0, **how):
        super().__init__(daemon=True)
        self.a, self.b, self.window, self.size, self.pair, self.how = a, b, window, size, pair, how
        self.sent = self.next = self.lost = self.empty = 0
        self.ending, self.wrong, self.seen_at = False, None, time.monotonic()

    def step(self):
        moved = False
        self.a.reclaim(self.pair)
        while not self.ending and self.sent - self.next < self.window and self.a.tx_free:
            self.a.send_packet(vu.frame(self.sent, self.size), pair=self.pair, **self.how)
            self.sent += 1
            moved = True
        while (p := self.b.poll_packet(self.pair)) is not None:
            if not p[1]:
                self.empty += 1
                continue
            n = struct.unpack_from("<I", p[1], 14)[0]
            assert n >= self.next, f"packet {n} came twice, or late: {self.next} is next"
            assert n < self.sent and p[1] == vu.frame(n, self.size), f"packet {n} is not as it was sent"
            self.lost += n - self.next
            self.next = n + 1
            self.seen_at = time.monotonic()
            moved = True
        return moved

    def run(self):
        try:
            idle = time.monotonic()
            while not self.ending or self.next < self.sent:
                now = time.monotonic()
                if self.step():
                    idle = now
                elif self.ending and now - idle > 1:
                    self.lost += self.sent - self.next
                    break
                elif now - idle > conftest.PATIENCE:
                    raise AssertionError(f"nothing moves: {self.sent} sent, {self.next} is next")
                else:
                    time.sleep(0.0002)
        except Exception as err:  # pylint: disable=broad-except
            self.wrong = err

    def end(self):
        self.ending = True
        self.join()
        assert not self.wrong, repr(self.wrong)


@contextlib.contextmanager
def flows(*pairs, lost=0, **how):
    """While the body runs; at least a few packets before and behind it. No more than @lost may be lost in all."""
    all_of = [Flow(a, b, **how) for a, b in pairs]
    for f in all_of:
        f.start()

    def more(n=50):
        want = [f.next + n for f in all_of]
        deadline = time.monotonic() + conftest.PATIENCE
        while any(f.next < w for f, w in zip(all_of, want)):
            assert not any(f.wrong for f in all_of), [repr(f.wrong) for f in all_of]
            assert time.monotonic() < deadline, [(f.sent, f.next) for f in all_of]
            time.sleep(0.002)

    more.flows = all_of
    more()
    try:
        yield more
        more()
    finally:
        for f in all_of:
            f.end()
    assert sum(f.lost for f in all_of) <= lost, [(f.lost, f.empty, f.sent) for f in all_of]


def hung_up(nic):
    p = select.poll()
    p.register(nic.sock, select.POLLRDHUP)
    return bool(p.poll(0))


def rest(d):
    """Until the last message is 5 ms old, and what it has changed is kept."""
    d.call("daemon.version")
    time.sleep(0.03)


def next_one(d):
    """The next daemon; seconds from its start until it is ready."""
    began = time.monotonic()
    d.start()
    return time.monotonic() - began


@pytest.fixture
def held(make_daemon):
    """A daemon with a holder, and the links ab and cd."""
    d = make_daemon("--hold=3")
    d.link("ab")
    d.link("cd", driver="c", device="d")
    return d.start()


def holder_pid(d):
    """The one that listens in its directory."""
    for p in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (p / "comm").read_text().strip() == "vhost-pci-hold" and str(d.run) in (p / "cmdline").read_text():
                return int(p.name)
    return None


@contextlib.contextmanager
def two(d, fa="split", fb="split", **kw):
    with vu.Nic(d.sock("ab", "driver"), BASE | FORMATS[fa], **kw) as a, vu.Nic(d.sock("ab", "device"), BASE | FORMATS[fb], **kw) as b:
        both_ways(a, b, (64,))
        rest(d)
        yield a, b
        assert not hung_up(a) and not hung_up(b)


@pytest.mark.parametrize("fa,fb", [("split", "split"), ("split-event", "packed"), ("packed-event", "split"), ("packed", "packed-inorder")])
def test_killed(held, fa, fb):
    d = held
    with two(d, fa, fb) as (a, b):
        with flows((a, b), (b, a)) as more:
            for _ in range(3):
                d.kill()
                next_one(d)
                more()
        shown = d.show("ab")
        assert shown["status"] == "up" and [s["sessions"] for s in shown["sides"].values()] == [1, 1]
        # Where the rings stand is known: they stop, and go on from there.
        for nic in (a, b):
            for q in (0, 1):
                nic.start_ring(q, nic.rings[q], base=nic.stop_ring(q))
        both_ways(a, b)
    assert d.log().count("went on with 2 links of the daemon before, 0 start anew") == 3, d.log()
