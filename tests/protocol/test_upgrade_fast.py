# SPDX-License-Identifier: BSD-3-Clause
"""
Fast links through an upgrade (docs/handover.md): the device side is at work in the driver's rings all the time. What goes over beside queues,
and that somebody guards the driver VM's connection whoever dies when (daemon/handover/verdict.h).
"""
import contextlib
import json
import os
import re
import struct

import pytest

import blk
import conftest
import portclient as pc
import portlab
import vu
from blk import Disk, Driver, pattern
from portflow import PATH, ends, lab
from portside import same, settled
from test_device import dev, drv, make  # noqa: F401 (a fixture)
from test_guard import deaf, gone, hung_up
from test_logged import COPY, FAST, answer_stops, log_on, runs
from test_upgrade import real, refused

FEATURES = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF)


def page_of(p):
    return bytes(p.mem[pc.STATE:pc.STATE + 0x10000])


class Hooked:
    """A daemon whose successors wait, or end, where a test wants it."""

    def __init__(self, tmp_path):
        self.path, self.env = tmp_path / "hooked", tmp_path / "env"
        self.path.write_text(f'#!/bin/sh\n. {self.env}\nexec {real()} "$@"\n')
        self.path.chmod(0o755)
        self.conf = f"[Daemon]\nUpgradeBinaries={self.path}\n"

    def hook(self, what, n):
        self.env.write_text(f"export VHOST_PCI_TAKEOVER_{what}={n}\n")

    def upgrade(self, d, what="WAIT", n=10000):
        self.hook(what, n)
        return d.upgrade(binary=str(self.path))

    def points(self, d):
        """How many there are before the verdict."""
        self.upgrade(d)
        return max(int(n) for n in re.findall(r"upgrade: at point (\d+)", d.log()))

    def begin(self, d, n):
        """One that waits at point n: the pids of both daemons."""
        self.hook("WAIT", n)
        conftest.adopt_orphans()
        self.asks = conftest.Control(d.run / "control.sock")
        self.asks.sock.sendall(json.dumps({"version": 1, "id": 1, "method": "daemon.upgrade", "params": {"binary": str(self.path)}}).encode() + b"\n")
        d.wait_log(f"upgrade: at point {n}, and waits")
        return d.proc, conftest.Adopted(int(re.findall(r"upgrade: pid (\d+) starts", d.log())[-1]))

    def close(self):
        self.asks.close()


@pytest.fixture
def hooked(tmp_path):
    return Hooked(tmp_path)


# ---- signals -------------------------------------------------------------------------------------


def test_signals(make_daemon, hooked):
    """The device side keeps the driver's own eventfds. What it raises on the daemon's while nobody looks is passed later."""
    d = make_daemon()
    d.write("vhost-pci.conf", hooked.conf)
    x = portlab.PortLab(d, "fast", "local")
    d.start()
    with x.connect() as p:
        ours = os.dup(p.doorbells[1])
        assert p.attach(PATH) == pc.OK
        with vu.Nic(x.drv()) as nic:
            portlab.started(p)
            settled(d, 2, 2)
            p.drain()
            n, before = hooked.points(d), page_of(p)
            for q in (0, 1):
                assert same(p.signals[1 + q], nic.rings[q].kick_fd) and same(p.doorbells[1 + q], nic.rings[q].call_fd)
            settled(d, 2, 2)
            while pc.raised(nic.rings[0].call_fd, 0.7):
                pass
            old, new = hooked.begin(d, n)
            pc.one(ours)
            old.wait()
            d.proc = new
            assert pc.raised(nic.rings[0].call_fd), "the call was lost"
            assert page_of(p) == before
            # One that changes is given to the device side by the new daemon, and the next one sees to what went into the old one.
            call = vu.eventfd()
            nic.tell(vu.SET_VRING_CALL, struct.pack("<Q", 0), [call])
            d.upgrade()
            pc.one(ours)
            assert pc.raised(call)
            d.wait(lambda: p.drain() or same(p.doorbells[1], call))
            os.close(call)
            hooked.close()
    os.close(ours)


# ---- memory --------------------------------------------------------------------------------------


def test_windows_on_both_sides_of_an_upgrade(make_daemon):
    """A page is written where it was never written before, by the next daemon as by the first: nothing of an earlier entry stays."""
    with lab(make_daemon, "fast", "local") as (d, nic, p):
        more = [vu.Memory(1 << 20, gpa=(1 << 33) + (i << 24), uva=(1 << 45) + (i << 24)) for i in range(40)]

        def shows(there):
            want = sorted([nic.mem.gpa] + [m.gpa for m in there])
            s = p.wait(lambda s: sorted(r[0] for r in s.regions) == want and s.up)
            p.drain()
            p.sync()
            assert all(s.windows[r[3]][1] in p.windows for r in s.regions)
            rest = page_of(p)[0xc000 + 32 * len(s.regions):0xc000 + 32 * 509]
            assert not any(rest), "entries behind the last one are not empty"

        def add(some):
            for m in some:
                nic.tell(vu.ADD_MEM_REG, struct.pack("<Q", 0) + nic.region(m), [m.fd])

        add(more[:3])
        shows(more[:3])
        d.upgrade()
        shows(more[:3])
        add(more[3:])
        shows(more)
        d.upgrade()
        shows(more)
        nic.tell(vu.REM_MEM_REG, struct.pack("<Q", 0) + nic.region(more[-1]))
        shows(more[:-1])
        d.upgrade()
        shows(more[:-1])
        for m in more:
            m.close()


# ---- who guards ----------------------------------------------------------------------------------


@contextlib.contextmanager
def guarded(make_daemon, hooked):
    """A link whose device side has the driver's queues, and how many points an upgrade has before its verdict."""
    with lab(make_daemon, "fast", "local", conf=hooked.conf) as (d, nic, p):
        n = hooked.points(d)
        try:
            yield d, nic, p, n
        finally:
            if d.proc and not d.alive():
                d.proc = None  # killed, as was meant


def held_until_let_go(d, nic, p):
    """No daemon is there any more. One guard, and one only, sees to it that the driver VM's VMM is not set loose on its rings."""
    deaf(p)
    s = p.wait(lambda s: s.reason == pc.DAEMON)
    assert s.attached and not s.up and not s.regions
    d.stays(lambda: not hung_up(nic.sock), 0.3)
    p.sync()
    d.wait(lambda: hung_up(nic.sock), why="the driver VM is still held")
    d.wait_log("the device VM has let go after")
    assert d.log().count("is asked to let go") == 1 and "has not let go" not in d.log()


def kill(*procs):
    for p in procs:
        p.kill()
    for p in procs:
        p.wait(60)


@pytest.mark.parametrize("at", ["first part", "all told", "verdict given"])
def test_old_one_is_killed(make_daemon, hooked, at):
    """Before all is told the new one ends with it. Later that goes on, and guards."""
    with guarded(make_daemon, hooked) as (d, nic, p, n):
        page = page_of(p)
        old, new = hooked.begin(d, {"first part": 2, "all told": n, "verdict given": -1}[at])
        kill(old)
        hooked.close()
        if at != "first part":
            d.proc, d.control = new, conftest.Control(d.run / "control.sock")
            assert page_of(p) == page and not hung_up(nic.sock)
            with ends(nic, p):
                d.upgrade()
            kill(d.proc)
        held_until_let_go(d, nic, p)
        new.wait(60)


@pytest.mark.parametrize("at", ["first part", "all told"])
def test_new_one_is_killed(make_daemon, hooked, at):
    """The old one goes on, and guards."""
    with guarded(make_daemon, hooked) as (d, nic, p, n):
        page = page_of(p)
        old, new = hooked.begin(d, {"first part": 2, "all told": n}[at])
        kill(new)
        assert "error" in hooked.asks.line()
        hooked.close()
        assert page_of(p) == page and not hung_up(nic.sock)
        with ends(nic, p):
            d.upgrade()
        kill(d.proc)
        held_until_let_go(d, nic, p)


@pytest.mark.parametrize("at", [-1, -2, -3], ids=["verdict given", "said", "at work"])
def test_new_one_is_killed_behind_the_verdict(make_daemon, hooked, at):
    """The old one touches nothing any more: it ends."""
    with guarded(make_daemon, hooked) as (d, nic, p, _):
        old, new = hooked.begin(d, at)
        kill(new)
        old.wait(60)
        hooked.close()
        held_until_let_go(d, nic, p)


@pytest.mark.parametrize("at", ["all told", "verdict given"])
def test_both_are_killed(make_daemon, hooked, at):
    with guarded(make_daemon, hooked) as (d, nic, p, n):
        guards = d.call("daemon.show")["guard_pid"]
        kill(*hooked.begin(d, n if at == "all told" else -1))
        hooked.close()
        held_until_let_go(d, nic, p)
        d.wait(lambda: gone(guards))


# ---- a driver VM that migrates -------------------------------------------------------------------


def test_while_it_is_logged(make_daemon):
    """The daemon does the work then. It goes on with it, and gives the queues back when that is over."""
    log = os.memfd_create("log")
    d = make_daemon()
    x = portlab.PortLab(d, "fast", "local", Link_Migration="yes")
    d.start()
    with vu.Nic(x.drv(), FEATURES, mem=vu.Memory(16 << 20, gpa=0)) as nic, x.connect() as p:
        assert p.attach(PATH) == pc.OK
        s = portlab.started(p)
        d.upgrade()
        log_on(nic, log)
        answer_stops(p, (0, 0))
        assert nic.recv_reply(vu.SET_FEATURES) == bytes(8)
        s = runs(p, COPY, s)
        with ends(nic, p) as e:
            page = page_of(p)
            d.upgrade()
            e.more()
            os.pwrite(log, bytes(4096), 0)
            d.upgrade()
            e.more()
            assert any(os.pread(log, 4096, 0)), "nothing was marked"
        assert page_of(p) == page
        nic.tell_u64(vu.SET_FEATURES, nic.features)     # it was called off
        answer_stops(p, (e.given[1], e.given[0]))
        runs(p, FAST, s)
        with ends(nic, p):
            d.upgrade()
    assert d.show("ab")["sides"]["driver"]["sessions"] == 1
    os.close(log)


def test_requests_that_are_logged(make):
    """A disk's queue that is copied while its driver VM migrates goes on as one."""
    d = make("fast", Profile_Capacity="4M", Link_Migration="yes")
    log = os.memfd_create("log")
    mem = vu.Memory(16 << 20, gpa=0)
    with Driver(drv(d), protocol=blk.PF | vu.bit(vu.PF_LOG_SHMFD), mem=mem) as f, dev(d) as p:
        Disk(p).attach().up()
        d.upgrade()
        log_on(f, log)
        answer_stops(p, (0,))
        assert f.recv_reply(vu.SET_FEATURES) == bytes(8)
        p.wait(lambda s: s.mode == COPY and s.queues[0].flags & pc.STARTED)
        d.upgrade()
        p.wait(lambda s: s.mode == COPY and s.queues[0].flags & pc.STARTED)
        f.tell_u64(vu.SET_FEATURES, f.features)
        answer_stops(p, (0,))
        p.wait(lambda s: s.mode == FAST and s.queues[0].flags & pc.STARTED)
        d.upgrade()
    os.close(log)


# ---- open requests -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fast", "grant"])
@pytest.mark.parametrize("vmm", ["keeps the area", "has none"])
def test_account_of_requests(make, vmm, mode):
    """The area goes over, with what is open: whether somebody has the queue, or nobody has."""
    d = make(mode, Profile_Capacity="4M")
    store = bytearray(4 << 20)
    protocol = blk.PF if vmm == "keeps the area" else blk.PF & ~vu.bit(blk.PF_INFLIGHT)
    with Driver(drv(d), protocol=protocol) as f:
        tokens = [f.request(blk.OUT, i, pattern(512, i)) for i in range(20)]
        left = list(range(20))
        for lap in range(4):
            with dev(d) as p:
                disk = Disk(p, store=store, account=True).attach().up()
                got = [disk.take() for _ in left]
                assert [g[3] for g in got] == left
                page, area = page_of(p), bytes(disk.area(0))
                d.upgrade()
                assert page_of(p) == page and bytes(disk.area(0)) == area
                for i in (5, 2, 0) if lap < 3 else reversed(range(len(left))):
                    disk.dies_here = lap < 3 and i == 0
                    disk.answer(got[i])
                    f.wait(tokens[got[i][3]])
                    left.remove(got[i][3])
                if lap == 1:
                    d.upgrade()
            d.wait(lambda: d.show("ab")["status"] == "partial")
            d.upgrade()
            d.upgrade()
        f.reap()
        assert not left and not f.open and all(s == blk.OK for s, _, _ in f.done.values())
        assert store[:20 * 512] == b"".join(pattern(512, i) for i in range(20))


def test_requests_without_an_account(make):
    """What is open when the device side goes is lost by name, as it would be without an upgrade."""
    d = make("fast", Profile_Capacity="4M")
    with Driver(drv(d)) as f:
        with dev(d) as p:
            disk = Disk(p).attach().up()
            t = f.request(blk.OUT, 0, pattern(512))
            got = disk.take()
            d.upgrade()
            disk.answer(got)
            assert f.wait(t)[0] == blk.OK
            f.request(blk.OUT, 0, pattern(512))
            assert disk.take()
            d.upgrade()
        d.wait(lambda: d.show("ab")["status"] == "broken")
        d.upgrade()
        q = d.show("ab")["sides"]["driver"]["queues"][0]
        assert q["error"] == "its back-end has gone with requests that it had not answered"
