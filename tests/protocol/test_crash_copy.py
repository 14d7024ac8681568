# SPDX-License-Identifier: BSD-3-Clause
"""
A daemon that copies packets between a driver VM and a device VM is killed anywhere, or stopped, and the next one goes on (docs/handover.md): each
packet arrives once, in order, also those that were in the device side's hands.
"""
import contextlib
import os
import random
import signal
import time

import conftest
import portclient as pc
import portlab
import pytest
import vu
from portflow import ends, lab
from test_crash import ENDS, TIMES, crashes, hung_up, next_one, rest
from test_crash_port import shown
from test_logged import answer_stops
from test_relay import FORMATS

BASE = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF)
KEPT = ["local", "ivshmem", "shmem"]
# Of enum vp_place_point.
POINTS = {"half": 2, "placed": 9, "took": 10, "all": 11, "noted": 12, "counts": 13, "shown": 14, "given": 15}
PACKED_ONLY = (2, 9)


@pytest.fixture
def held(make_daemon):
    return lambda: make_daemon("--hold=3")


@contextlib.contextmanager
def copied(held, attachment="local", fmt="split", size=256, **more):
    nic = {"features": BASE | FORMATS[fmt], "size": size}
    with lab(held, "copy", attachment, nic=nic, **more) as (d, nic, p):
        rest(d)
        try:
            yield d, nic, p
        finally:
            if d.proc and not d.alive():
                d.proc = None  # killed, as was meant


def went_on(d, times):
    assert d.log().count("went on with 1 links of the daemon before, 0 start anew") == times, d.log()
    assert d.show("ab")["sides"]["driver"]["sessions"] == 1


@pytest.mark.parametrize("fmt", ["split", "packed-event", "packed-inorder"])
@pytest.mark.parametrize("attachment", KEPT)
def test_killed(held, attachment, fmt):
    """Again and again, at any time, with numbered packets both ways."""
    rng = random.Random(5)
    with copied(held, attachment, fmt) as (d, nic, p):
        before, fds = shown(p.state()), d.fds()
        with ends(nic, p) as e:
            for _ in range(TIMES):
                rest(d)
                time.sleep(rng.random() * 0.01)
                d.kill()
                next_one(d)
                e.more(10)
        assert shown(p.state()) == before and not hung_up(nic)
        went_on(d, TIMES)
        d.wait_fds(fds)
        # Who has what is known: the queues are given back and handed over again, where they are.
        d.call("link.down", name="ab")
        answer_stops(p, (e.given[1], e.given[0]))
        p.wait(lambda s: s.reason == pc.ADMIN)
        d.call("link.up", name="ab")
        portlab.started(p)
        with ends(nic, p):
            pass


@pytest.mark.parametrize("fmt", ["split", "packed"])
@pytest.mark.parametrize("attachment", KEPT)
def test_at_each_point(held, attachment, fmt):
    """Killed between any two stores of a step, in either direction."""
    with copied(held, attachment, fmt, size=64) as (d, nic, p):
        with ends(nic, p) as e:
            for point in POINTS.values():
                if fmt == "split" and point in PACKED_ONLY:
                    continue
                for n in (1, 2, 9, 50):
                    rest(d)
                    d.kill()
                    crashes(d, point, n)
                    next_one(d)
                    e.more(20)
        assert not hung_up(nic) and d.show("ab")["sides"]["driver"]["sessions"] == 1
        assert " 0 start anew" in d.log() and " 1 start anew" not in d.log()


@pytest.mark.parametrize("sig", ENDS)
@pytest.mark.parametrize("attachment", KEPT)
def test_stopped(held, attachment, sig):
    with copied(held, attachment) as (d, nic, p):
        with ends(nic, p) as e:
            d.hang_up()
            d.proc.send_signal(sig)
            assert d.proc.wait(60) == (0 if sig in (signal.SIGTERM, signal.SIGINT) else -sig)
            next_one(d)
            e.more()
        went_on(d, 1)


def test_hung(held):
    """It does not move any more, and is ended by who watches it."""
    with copied(held) as (d, nic, p), ends(nic, p) as e:
        d.proc.send_signal(signal.SIGSTOP)
        time.sleep(0.2)
        d.kill()
        next_one(d)
        e.more()


@pytest.mark.parametrize("attachment", KEPT)
def test_upgraded_in_between(held, attachment):
    with copied(held, attachment) as (d, nic, p):
        with ends(nic, p) as e:
            for _ in range(3):
                d.upgrade()
                d.control = conftest.Control(d.run / "control.sock")
                rest(d)
                e.more()
                d.kill()
                next_one(d)
                e.more()


@pytest.mark.parametrize("attachment", KEPT)
def test_nothing_moves(held, attachment):
    """What waits in either end's hands while the daemon is killed waits there for the next one, and for the one behind it."""
    with copied(held, attachment) as (d, nic, p):
        e = None
        with ends(nic, p) as e:
            pass
        nic.fill_rx(16)
        for i in range(3):
            nic.send_packet(vu.frame(i))
        tx, taken = p.state().queues[1], []
        d.wait(lambda: taken.append(p.take(tx, e.taken[0] + len(taken))) or taken[-1] is None or len(taken) == 3)
        for _ in range(3):
            rest(d)
            d.kill()
            next_one(d)
        nic.send_packet(vu.frame(3))
        d.wait(lambda: p.take(tx, e.taken[0] + 3))
        went_on(d, 3)


def test_no_next_one(make_daemon):
    """The keeper's time is over: the driver VM hears of it as of any daemon that has gone."""
    with copied(lambda: make_daemon("--hold=1")) as (d, nic, p):
        d.kill()
        assert not hung_up(nic)
        d.wait(lambda: hung_up(nic))
        d.proc = None


def test_next_one_is_killed_while_it_restores(held):
    """At any moment: a later one goes on, or the VMMs connect again."""
    seen, rng = [], random.Random(3)
    for _ in range(10):
        with copied(held) as (d, nic, p):
            d.kill()
            with open(d.log_path, "ab") as log:
                d.proc = d.spawn(log)
            time.sleep(rng.random() * 0.12)
            d.kill()
            next_one(d)
            seen.append(not hung_up(nic))
            if seen[-1]:
                with ends(nic, p):
                    pass
    print(seen)


@pytest.mark.parametrize("attachment", KEPT)
def test_both_ends_go_meanwhile(held, attachment):
    """Who hangs up while there is no daemon is gone for the next one; nothing of what was on its way is left in the pool for who comes then."""
    with copied(held, attachment) as (d, nic, p):
        d.kill()
        nic.close()
        next_one(d)
        p.wait(lambda s: s.reason == pc.NO_DRIVER)
        p.sync()
        with vu.Nic(d.sock("ab", "driver")) as nic:
            portlab.started(p)
            with ends(nic, p):
                rest(d)
            d.kill()
            p.close()
            next_one(d)
            d.wait(lambda: not d.show("ab")["sides"]["device"]["connected"])
            assert not hung_up(nic)


@pytest.mark.parametrize("attachment", KEPT)
def test_hostile_ends(held, attachment):
    """Rings that say anything while there is no daemon: the next one lives, and has the link, or its queues end in order."""
    rng = random.Random(9)
    for _ in range(6):
        with copied(held, attachment, rng.choice(["split", "packed"]), size=64) as (d, nic, p):
            with ends(nic, p) as e:
                e.more(20)
            rest(d)
            d.kill()
            for _, size, off, win, _ in p.state().regions[:1]:
                mem = memoryview(p.window(win))
                for _ in range(200):
                    at = off + rng.randrange(min(size, 1 << 16))
                    mem[at:at + 1] = bytes([rng.randrange(256)])
            for r in nic.rings[:2] if isinstance(nic.rings, list) else list(nic.rings.values())[:2]:
                size = r.used + (4 if r.packed else 6 + 8 * r.size) - r.desc
                for _ in range(50):
                    nic.mem.map[r.desc + rng.randrange(size)] = rng.randrange(256)
            next_one(d)
            time.sleep(0.1)
            assert d.alive(), d.log()
            d.show("ab")
