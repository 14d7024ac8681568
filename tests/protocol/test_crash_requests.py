# SPDX-License-Identifier: BSD-3-Clause
"""
A daemon that copies a disk's requests is killed anywhere, or stopped, and the next one goes on (docs/handover.md): each request is done once and
answered once, with the right data, also those that were in the device side's hands.
"""
import contextlib
import random
import signal
import time

import blk
import conftest
import pytest
import vu
from blk import Disk
from test_crash import ENDS, TIMES, crashes, next_one, rest
from test_device import FORMATS, dev, link
from test_upgrade_requests import Both, driver

IDS = ["split", "event", "packed", "packed-event"]
# Of enum vp_place_point.
POINTS = {"taken": 16, "kept": 17, "given": 18, "returned": 19, "noted": 20, "answer": 21, "answered": 22, "freed": 23}


@pytest.fixture
def held(make_daemon):
    def made(**keys):
        d = make_daemon("--hold=3")
        link(d, "copy", Profile_Capacity="4M", **keys)
        return d.start()
    return made


@contextlib.contextmanager
def copied(d, fmt=0, account=True):
    protocol = blk.PF if account else blk.PF & ~vu.bit(blk.PF_INFLIGHT)
    with driver(d, fmt, protocol=protocol) as f, dev(d) as p:
        disk = Disk(p)
        disk.features |= fmt & ~vu.bit(vu.PACKED)
        disk.attach().up()
        rest(d)
        try:
            yield f, disk
        finally:
            if d.proc and not d.alive():
                d.proc = None  # killed, as was meant


def went_on(d, times):
    assert d.log().count("went on with 1 links of the daemon before, 0 start anew") == times, d.log()
    link_now = d.show("ab")
    assert link_now["sides"]["driver"]["sessions"] == 1
    assert not link_now["sides"]["device"]["requests_given_again"], "the device side saw a request twice"


@pytest.mark.parametrize("account", [True, False], ids=["account", "none"])
@pytest.mark.parametrize("fmt", FORMATS, ids=IDS)
def test_killed(held, fmt, account):
    """Again and again, at any time, with writes that are read back."""
    rng = random.Random(5)
    d = held()
    with copied(d, fmt, account) as (f, disk):
        fds = d.fds()
        with Both(f, disk) as load:
            for _ in range(TIMES):
                rest(d)
                time.sleep(rng.random() * 0.01)
                d.kill()
                next_one(d)
                load.more(20)
        went_on(d, TIMES)
        d.wait_fds(fds)


@pytest.mark.parametrize("fmt", [FORMATS[0], FORMATS[3]], ids=["split", "packed"])
def test_at_each_point(held, fmt):
    """Killed between any two stores of a step, in either direction."""
    d = held()
    with copied(d, fmt) as (f, disk), Both(f, disk) as load:
        for point in POINTS.values():
            for n in (1, 2, 7):
                rest(d)
                d.kill()
                crashes(d, point, n)
                next_one(d)
                load.more(20)
    assert " 0 start anew" in d.log() and " 1 start anew" not in d.log()


@pytest.mark.parametrize("sig", ENDS)
def test_stopped(held, sig):
    d = held()
    with copied(d) as (f, disk), Both(f, disk) as load:
        d.hang_up()
        d.proc.send_signal(sig)
        assert d.proc.wait(60) == (0 if sig in (signal.SIGTERM, signal.SIGINT) else -sig)
        next_one(d)
        load.more()
        went_on(d, 1)


def test_nobody_serves(held):
    """The device side has gone when the daemon is killed: what is open waits for the next one, as without a crash."""
    d = held()
    with driver(d) as f:
        with dev(d) as p:
            disk = Disk(p).attach().up()
            tokens = [f.request(blk.OUT, i * 8, blk.pattern(4096, i)) for i in range(5)]
            for _ in tokens:
                assert disk.take(0, 5)
        d.wait(lambda: d.show("ab")["sides"]["device"]["requests_open"] == 5)
        rest(d)
        d.kill()
        next_one(d)
        assert d.show("ab")["sides"]["device"]["requests_open"] == 5
        with dev(d) as p:
            disk = Disk(p).attach().up()
            for _ in tokens:
                disk.answer(disk.take(0, 5))
            d.wait(lambda: f.reap() or all(t in f.done for t in tokens))
        assert d.log().count("went on with 1 links of the daemon before, 0 start anew") == 1
    d.proc = None if d.proc and not d.alive() else d.proc


def test_upgraded_before(held):
    """What a daemon was handed over with open requests it leaves to the next one, too."""
    d = held()
    with copied(d) as (f, disk), Both(f, disk) as load:
        for _ in range(5):
            d.upgrade()
            d.control = conftest.Control(d.run / "control.sock")
            rest(d)
            d.kill()
            next_one(d)
            load.more(20)
    assert d.log().count("went on with 1 links of the daemon before, 0 start anew") == 5, d.log()[-3000:]
