# SPDX-License-Identifier: BSD-3-Clause
"""RESET_DEVICE stops all queues, and is answered as a stop is: when whoever is at work on them has let go (spec, "Life cycle", 4)."""
import select
import time

import pytest

import portclient as pc
import vu
from portlab import ALL, IDS, PortLab, started


@pytest.fixture(params=ALL, ids=IDS)
def lab(make_daemon, request):
    one = PortLab(make_daemon(), *request.param)
    one.d.start()
    yield one
    one.close()


def quiet(nic, seconds):
    return not select.select([nic.sock], [], [], seconds)[0]


def test_answered_when_the_guest_has_let_go(lab):
    with vu.Nic(lab.drv()) as nic, lab.port() as p:
        s = started(p)
        runs, bases = [q.run for q in s.queues], [q.base for q in s.queues]
        nic.send(vu.RESET_DEVICE)
        p.wait(lambda s: all(q.flags & pc.STOP for q in s.queues))
        assert quiet(nic, 0.2), "answered while the guest has both queues"
        assert p.stopped(0, runs[0], s.queues[0].base) == pc.OK
        assert quiet(nic, 0.2), "answered while the guest has a queue"
        assert not p.state().queues[0].flags & pc.STARTED
        assert p.stopped(1, runs[1], s.queues[1].base) == pc.OK
        nic.recv_reply(vu.RESET_DEVICE)
        assert not any(q.flags & (pc.STARTED | pc.STOP) for q in p.state().queues)
        assert [q.run for q in p.state().queues] == runs
        assert all(q["state"] == "stopped" for q in lab.d.show("ab")["sides"]["driver"]["queues"])
        # Everything from the start, on the same connection.
        for q, r in nic.rings.items():
            r.reset()
            nic.start_ring(q, r)
        s = started(p)
        assert [q.run for q in s.queues] == [r + 1 for r in runs] and [q.base for q in s.queues] == bases
        assert nic.alive()


def test_guest_that_does_not_let_go(lab):
    """It is cut, as for any stop."""
    with vu.Nic(lab.drv()) as nic, lab.port() as p:
        started(p)
        t = time.monotonic()
        nic.tell(vu.RESET_DEVICE)
        took = time.monotonic() - t
        assert 0.9 < took < pc.limit(3), took
        s = p.wait(lambda s: s.reason == pc.TIMEOUT)
        assert not s.attached and not any(q.flags & pc.STARTED for q in s.queues)
        assert nic.alive()


def seconds(what):
    t = time.monotonic()
    what()
    return time.monotonic() - t


def test_no_guest(lab):
    with vu.Nic(lab.drv()) as nic:
        # A busy machine may be late, but not each time.
        assert any(seconds(lambda: nic.tell(vu.RESET_DEVICE)) < 0.5 for _ in range(5))
        assert nic.alive()


def test_front_end_that_goes_meanwhile(lab):
    """Nobody is answered any more; the next driver VM is served."""
    with lab.port() as p:
        with vu.Nic(lab.drv()) as nic:
            started(p)
            nic.send(vu.RESET_DEVICE)
            p.wait(lambda s: all(q.flags & pc.STOP for q in s.queues))
        p.wait(lambda s: not s.up)
        p.sync()
        with vu.Nic(lab.drv()) as nic:
            started(p)
            assert nic.alive()


def test_guest_that_goes_meanwhile(lab):
    with vu.Nic(lab.drv()) as nic:
        with lab.port() as p:
            started(p)
            nic.send(vu.RESET_DEVICE)
            p.wait(lambda s: all(q.flags & pc.STOP for q in s.queues))
        nic.recv_reply(vu.RESET_DEVICE)
        assert nic.alive()
