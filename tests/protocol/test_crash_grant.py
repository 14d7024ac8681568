# SPDX-License-Identifier: BSD-3-Clause
"""
A daemon is killed, crashes or is stopped, and the next one goes on with its grant links (docs/handover.md): what is granted stays granted, and
what was taken back, and acknowledged, does not come back.
"""
import contextlib
import os
import pathlib
import random
import select
import socket
import struct
import threading
import time

import pytest

import conftest
import portclient as pc
import test_grant_viommu as tv
import vu
from portflow import PATH, ends
from portlab import started
from portside import answer_stop
from test_crash import ENDS, hung_up, make_box, next_one, open_box, rest
from test_crash_port import Answers, guards, parted, serves, service, shown  # pylint: disable=unused-import
from test_grant import GRANT, POOL, POOL_SIZE, Bounced
from test_guard_windows import Vmm
from test_upgrade_fast import page_of
from test_upgrade_grant import same_but_for_age

KINDS = [("swiotlb", "local"), ("swiotlb", "shmem"), ("memory", "local"), ("memory", "shmem"), ("memory", "ivshmem")]
IDS = [f"{g}-{a}" for g, a in KINDS]
BOTH = pytest.mark.parametrize("attachment", ["local", "shmem"])
TIMES = 6
PORTS = {"local": pc.Local, "shmem": Vmm, "ivshmem": pc.Ivshmem}


class Lab:
    """A link that is granted its pool, or a memory device."""

    def __init__(self, make, grant, attachment):
        self.d, self.grant, self.attachment, self.qmp = make(), grant, attachment, None
        keys = {"Driver_Grant": grant}
        if grant == "memory":
            keys["Driver_GrantSize"] = "32M"
        if attachment == "shmem":
            keys["Device_ApertureSize"] = "8G"
        if attachment == "ivshmem":
            path = str(self.d.tmp / "ab.qmp")
            self.qmp = pc.Qmp(path)
            keys.update(Device_QMP=path, Device_HotplugBus="rp0 rp1")
        self.d.link("ab", Device_Endpoint="port", Device_Attachment=attachment, Link_Mode="grant", **keys)
        self.d.start()

    def nic(self):
        return vu.Nic(self.d.sock("ab", "driver"), mem=Bounced() if self.grant == "swiotlb" else vu.Memory(32 << 20))

    def port(self):
        p = PORTS[self.attachment](self.d.sock("ab", "device"))
        p.vmm = self.qmp
        return p

    def channel(self):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(pc.limit(10))
        s.connect(str(self.d.run / "ab.grant.sock"))
        return s.makefile("rw")

    def line(self, nic):
        return f"grant swiotlb {nic.mem.gpa + POOL:#x} {POOL_SIZE:#x}"

    def shown(self):
        return self.d.show("ab")["sides"]["driver"]["grant"]


@contextlib.contextmanager
def lab(make, grant, attachment):
    x = Lab(make, grant, attachment)
    d = x.d
    try:
        with x.nic() as nic, x.port() as p, contextlib.ExitStack() as more:
            assert p.attach(PATH) == pc.OK
            if grant == "swiotlb":
                p.wait(lambda s: s.reason == GRANT)
                x.ch = more.enter_context(x.channel())
                assert x.ch.readline() == "grant?\n"
                print(x.line(nic), file=x.ch, flush=True)
                assert x.ch.readline() == "ok\n"
            started(p)
            if attachment == "ivshmem":
                p.wait(lambda s: all(q.doorbell >> 16 >= 16 for q in s.queues))
            rest(d)
            yield x, d, nic, p
    finally:
        if d.proc and not d.alive():
            d.proc = None  # killed, as was meant
        if x.qmp:
            x.qmp.close()


@pytest.fixture
def held(make_daemon):
    return lambda: make_daemon("--hold=3")


def windows(p):
    return sum(size for size, _, _, kind, _ in p.state().windows if kind)


def again(d):
    rest(d)
    rest(d)  # what had come before the first look has been read by now
    d.kill()
    next_one(d)


def asked(p):
    """Requests for windows that its VMM got."""
    return len(p.log) if isinstance(p, pc.Shmem) else 0


# ---- what is granted stays granted ---------------------------------------------------------------


@pytest.mark.parametrize("grant,attachment", KINDS, ids=IDS)
def test_killed(held, grant, attachment):
    """Again and again, with numbered packets both ways; no window comes or goes, and nobody is asked again."""
    with lab(held, grant, attachment) as (x, d, nic, p):
        before, granted, fds, n = shown(p.state()), x.shown(), d.fds(), asked(p)
        with ends(nic, p) as e:
            for _ in range(TIMES):
                rest(d)
                d.kill()
                e.more()
                next_one(d)
                e.more()
        assert shown(p.state()) == before and not hung_up(nic) and asked(p) == n
        assert same_but_for_age(granted, x.shown())
        assert d.log().count("went on with 1 links of the daemon before, 0 start anew") == TIMES, d.log()
        assert "asked to let go" not in d.log() and "is not granted any more" not in d.log()
        assert d.show("ab")["sides"]["driver"]["sessions"] == 1
        d.wait_fds(fds)
        if grant == "swiotlb":
            # Its channel is the same one, and so is the socket.
            print("hello", file=x.ch, flush=True)
            assert x.ch.readline().startswith("error ")
            with x.channel():
                d.wait(lambda: x.shown()["channel"]["connections"] == 2)
                assert x.ch.readline() == ""
        # Who has what is known.
        end_last_ring(x, nic, p, (e.given[1] & 0xffff, e.given[0] & 0xffff))
        assert not windows(p) and x.shown()["state"] == "none"


def end_ring(nic, p, q, base):
    nic.send(vu.GET_VRING_BASE, struct.pack("<II", q, 0), need_reply=False)
    answer_stop(p, q, base)
    while not select.select([nic.sock], [], [], 0)[0]:
        p.command_raw(max(struct.unpack_from("<I", p.mem, pc.COMMAND)[0], p.state().answer[0]) + 1, pc.SYNC, p.state().regions_generation)
        p.idle()
    assert struct.unpack("<II", nic.recv_reply(vu.GET_VRING_BASE)) == (q, base)


def end_last_ring(x, nic, p, bases=(0, 0)):
    for q in 0, 1:
        end_ring(nic, p, q, bases[q])


@pytest.mark.parametrize("sig", ENDS)
@pytest.mark.parametrize("grant,attachment", KINDS, ids=IDS)
def test_stopped(held, grant, attachment, sig):
    with lab(held, grant, attachment) as (x, d, nic, p):
        before = page_of(p)
        with ends(nic, p) as e:
            rest(d)
            d.hang_up()
            d.proc.send_signal(sig)
            assert d.proc.wait(60) == (0 if sig in (2, 15) else -sig)
            assert page_of(p) == before
            e.more()
            next_one(d)
            e.more()
        assert d.show("ab")["sides"]["driver"]["sessions"] == 1 and "asked to let go" not in d.log()
        assert x.shown()["state"] == "granted"
        if grant == "swiotlb":
            assert "the connection has ended" not in d.log()
            with x.channel():
                d.wait(lambda: x.shown()["channel"]["connections"] == 2)


@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("grant,attachment", [("swiotlb", "local"), ("memory", "shmem")])
def test_service_manager(service, grant, attachment, how):  # pylint: disable=redefined-outer-name
    with lab(lambda: service, grant, attachment) as (x, d, nic, p):
        names = d.rest(lambda: len(d.manager.names()))
        with ends(nic, p) as e:
            for _ in range(3):
                rest(d)
                getattr(d, how)()
                e.more()
                next_one(d)
                e.more()
        assert "asked to let go" not in d.log() and "belongs to no link any more" not in d.log()
        d.wait(lambda: len(d.manager.names()) == names)
        d.wait(lambda: len(guards(d)) == 1)


def test_upgraded_in_between(held):
    with lab(held, "swiotlb", "shmem") as (x, d, nic, p):
        with ends(nic, p) as e:
            for _ in range(2):
                d.upgrade()
                d.control = conftest.Control(d.run / "control.sock")
                again(d)
                e.more()
        assert "asked to let go" not in d.log() and x.shown()["state"] == "granted"
        d.wait(lambda: len(guards(d)) == 1)


# ---- what was taken back does not come back ------------------------------------------------------


@BOTH
def test_dropped_before(held, attachment):
    """The device side has let go of some of it, or of none, when the daemon ends: the next one waits for the rest, and gives nothing new."""
    with lab(held, "swiotlb", attachment) as (x, d, nic, p):
        d.call("link.grant", name="ab", drop=True)
        p.wait(lambda s: all(q.flags & pc.STOP for q in s.queues))
        again(d)
        assert x.shown()["state"] == "ending" and windows(p)
        s = p.state()
        assert p.stopped(0, s.queues[0].run, 0) == pc.OK
        again(d)
        assert x.shown()["state"] == "ending"
        assert p.stopped(1, s.queues[1].run, 0) == pc.OK
        s = p.wait(lambda s: not s.up and s.reason == GRANT)
        assert not s.regions
        again(d)
        assert not p.state().regions
        # One that is on its way out: its VMM, or the guest, answers another daemon.
        p.sync()
        p.wait(lambda s: not windows(p) and x.shown()["state"] == "none")
        again(d)
        d.stays(lambda: serves(p) or not windows(p) and p.state().reason == GRANT, 0.2)
        assert not hung_up(nic) and x.shown()["state"] == "none"
        # It may grant again. It was asked to, as ever when nothing is granted: once.
        assert x.ch.readline() == "grant?\n"
        print(x.line(nic), file=x.ch, flush=True)
        assert x.ch.readline() == "ok\n"
        started(p)
        with ends(nic, p):
            again(d)


@BOTH
def test_ended_before(held, attachment):
    """A ring's stop is answered: its window has gone, and stays so. With the last one the pool goes."""
    with lab(held, "swiotlb", attachment) as (x, d, nic, p):
        area = nic.mem.gpa + nic.rings[1].desc
        end_ring(nic, p, 1, 0)
        again(d)
        assert all(r[0] != area for r in p.state().regions) and p.state().queues[0].flags & pc.STARTED
        end_ring(nic, p, 0, 0)
        again(d)
        assert not windows(p) and x.shown()["state"] == "none"
        for q in 0, 1:
            nic.start_ring(q, nic.rings[q], base=0)
        # It is asked anew, by this one or by the next.
        again(d)
        assert x.ch.readline() == "grant?\n"
        p.wait(lambda s: s.reason == GRANT)
        assert not p.state().regions and not windows(p)


def shows(p, addr):
    return any(a <= addr < a + n for a, n, _, _, _ in p.state(torn=True).regions)


def polite(d, p, addr, done, q=None):
    """What a device side does that is asked to let go, of queue q first, until done() or the daemon's end."""
    told = None
    while d.alive() and not done():
        s = p.state(torn=True)
        seq = max(struct.unpack_from("<I", p.mem, pc.COMMAND)[0], s.answer[0]) + 1
        if not s.generation & 1 and s.status and q is not None and s.queues[q].flags & pc.STOP and told != s.generation:
            told = s.generation
            p.command_raw(seq, pc.QUEUE_STOPPED, q, s.queues[q].run, 0, 0)
        elif not s.generation & 1 and not shows(p, addr) and told != s.generation:
            told = s.generation
            p.command_raw(seq, pc.SYNC, s.regions_generation)
        serves(p)
        time.sleep(0.0005)


def holds(d, x, nic, p, addr, q=None):
    """
    The daemon has been killed somewhere on the way to the answer. If that has come, nothing of it is there, whoever the daemon is. If not, it is
    still to come, or the VMs are parted and nothing is there at all.
    """
    shmem = isinstance(p, pc.Shmem)
    d.hang_up()
    came = bool(select.select([nic.sock], [], [], 0)[0]) and not hung_up(nic)
    if came:
        assert not shows(p, addr)
    mapped = set(p.live) if shmem else set()
    answers = Answers(p)
    next_one(d)
    d.wait(lambda: len(guards(d)) == 1)
    anew = hung_up(nic)
    if came:
        d.stays(lambda: not shows(p, addr), 0.05)
    answers.end()
    if anew:
        assert "has not let go" not in d.log() and not p.state().regions
        assert not shmem or not [1 for shmid, _ in p.live if shmid], "its VMM has windows still"
    else:
        assert "asked to let go" not in d.log() and d.show("ab")["sides"]["driver"]["sessions"] == 1
        polite(d, p, addr, lambda: select.select([nic.sock], [], [], 0)[0], q)
        assert not shows(p, addr)
        assert not shmem or not came or set(p.live) <= mapped, "a window has come back"
    return "anew" if anew else "went on, and it had come" if came else "went on"


POINTS = {"marked": 200, "boxed": 201, "unmarked": 202}  # VP_POINT_MARKED and on


def crash_at(d, point, n):
    """The next daemon, which is killed when it passes that point for the nth time. It may be before it is ready."""
    with open(d.log_path, "ab") as log, pytest.MonkeyPatch.context() as env:
        env.setenv("VHOST_PCI_CRASH_AT", f"{POINTS[point]},{n}")
        d.proc = d.spawn(log)


def as_expected(point, seen):
    """With the mark the link starts anew. Without it the next daemon goes on, before the answer and behind it."""
    print(seen)
    died = [s for s in seen if s.startswith("died")]
    assert len(died) > 1 and all(s.endswith("anew") == (point != "unmarked") for s in died), seen
    assert point != "unmarked" or any("it had come" in s for s in died), seen


@pytest.mark.parametrize("point", POINTS)
@BOTH
def test_killed_at_each_point(held, attachment, point):
    """A ring's window is taken back."""
    seen = []
    for n in range(1, 8):
        with lab(held, "swiotlb", attachment) as (x, d, nic, p):
            area = nic.mem.gpa + nic.rings[1].desc
            rest(d)
            d.kill()
            crash_at(d, point, n)
            nic.send(vu.GET_VRING_BASE, struct.pack("<II", 1, 0), need_reply=False)
            stop = time.monotonic() + 1
            polite(d, p, area, lambda: time.monotonic() > stop, 1)
            seen.append("lived" if d.alive() else "died")
            d.kill()
            seen[-1] += ", " + holds(d, x, nic, p, area, 1)
            if not seen[-1].endswith("anew"):
                assert struct.unpack("<II", nic.recv_reply(vu.GET_VRING_BASE))[0] == 1 and x.shown()["state"] == "granted"
    as_expected(point, seen)


@pytest.mark.parametrize("when", range(8))
@BOTH
def test_killed_while_something_is_taken_back(held, attachment, when):
    """The same at any moment."""
    with lab(held, "swiotlb", attachment) as (x, d, nic, p):
        area = nic.mem.gpa + nic.rings[1].desc
        timer = threading.Timer(when * 0.0015, d.proc.kill)
        timer.start()
        nic.send(vu.GET_VRING_BASE, struct.pack("<II", 1, 0), need_reply=False)
        polite(d, p, area, lambda: False, 1)
        timer.join()
        print(holds(d, x, nic, p, area, 1))


# ---- nobody goes on ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("grant,attachment", KINDS, ids=IDS)
def test_no_next_one(make_daemon, grant, attachment, how):
    """The guard waits for as long as the keeper does. Then the device side lets go, its VMM unmaps, and only then the connection ends."""
    with lab(lambda: make_daemon("--hold=1"), grant, attachment) as (x, d, nic, p):
        began = time.monotonic()
        with ends(nic, p) as e:
            getattr(d, how)()
            e.more()
        assert not hung_up(nic) and windows(p)
        parted(d, nic, p)
        assert time.monotonic() - began >= 0.9
        if attachment == "shmem":
            assert not [1 for shmid, _ in p.live if shmid], "its VMM has windows still"
        d.proc = None


@pytest.mark.parametrize("grant,attachment", KINDS, ids=IDS)
def test_link_that_has_changed(held, grant, attachment):
    """It starts anew, with nothing granted, and its sockets are where they were."""
    with lab(held, grant, attachment) as (x, d, nic, p):
        conf = d.conf / "ab.link"
        d.kill()
        conf.write_text(conf.read_text() + "\n[Net]\nMTU=1300\n")
        t = threading.Thread(target=lambda: next_one(d))
        t.start()
        parted(d, nic, p)
        t.join()
        d.wait(lambda: len(guards(d)) == 1)
        assert d.show("ab")["mtu"] == 1300 and x.shown()["state"] == "none"
        if grant == "swiotlb":
            assert x.ch.readline() == ""
            with x.channel():
                d.wait(lambda: x.shown()["channel"]["connected"])


def test_link_that_has_gone(held):
    """Its socket for grants goes, too."""
    with lab(held, "swiotlb", "local") as (x, d, nic, p):
        d.link("cd", driver="c", device="d")
        d.kill()
        (d.conf / "ab.link").unlink()
        answers = Answers(p)
        next_one(d)
        answers.end()
        assert not (d.run / "ab.grant.sock").exists() and not pathlib.Path(d.sock("ab", "driver")).exists()


@pytest.mark.parametrize("grant,attachment", KINDS, ids=IDS)
def test_next_one_is_killed_while_it_restores(held, grant, attachment):
    """At any moment: a later one goes on, or one guard, and one only, parts the VMs."""
    seen = []
    for i in range(8):
        with lab(held, grant, attachment) as (x, d, nic, p):
            d.kill()
            answers = Answers(p)
            with open(d.log_path, "ab") as log:
                d.proc = d.spawn(log)
            time.sleep(i * 0.015)
            d.kill()
            next_one(d)
            d.wait(lambda: len(guards(d)) == 1)
            went_on = not hung_up(nic)
            answers.end()
            seen.append(went_on)
            if went_on:
                assert "asked to let go" not in d.log(), d.log()
                with ends(nic, p):
                    pass
                assert x.shown()["state"] == "granted"
            else:
                # Over ivshmem the port may be taken over while that guard is at it, which waits for its whole time then.
                assert "the device VM has let go after" in d.log() or attachment == "ivshmem", d.log()
                assert attachment != "shmem" or not [1 for shmid, _ in p.live if shmid]
    print(seen)


# ---- the channel ---------------------------------------------------------------------------------


@contextlib.contextmanager
def talk(held, attachment="local"):
    """Nothing is granted yet."""
    x = Lab(held, "swiotlb", attachment)
    with x.nic() as nic, x.port() as p, x.channel() as ch:
        assert p.attach(PATH) == pc.OK
        assert ch.readline() == "grant?\n"
        p.wait(lambda s: s.reason == GRANT)
        rest(x.d)
        yield x, x.d, nic, p, ch


def test_half_a_line(held):
    """What has come of it is known to the next daemon."""
    with talk(held) as (x, d, nic, p, ch):
        line = x.line(nic)
        print(line[:20], file=ch, end="", flush=True)
        d.call("daemon.version")
        again(d)
        print(line[20:], file=ch, flush=True)
        assert ch.readline() == "ok\n"
        started(p)
        again(d)
        with ends(nic, p):
            pass
        assert x.shown()["by"] == "its channel"


def test_said_while_there_is_no_daemon(held):
    with talk(held) as (x, d, nic, p, ch):
        d.kill()
        print(x.line(nic), file=ch, flush=True)
        time.sleep(0.05)
        next_one(d)
        assert ch.readline() == "ok\n"
        started(p)
        # Nor is one that connects meanwhile lost.
        rest(d)
        d.kill()
        with x.channel():
            next_one(d)
            d.wait(lambda: x.shown()["channel"]["connections"] == 2)


@pytest.mark.parametrize("when", range(10))
def test_killed_while_it_grants(held, when):
    """Its answer comes, and it is granted; or the connection ends, and nothing is."""
    with talk(held) as (x, d, nic, p, ch):
        timer = threading.Timer(when * 0.0007, d.proc.kill)
        timer.start()
        print(x.line(nic), file=ch, flush=True)
        timer.join()
        d.proc.wait()
        d.hang_up()
        answers = Answers(p)
        next_one(d)
        got = ch.readline()
        answers.end()
        assert got in ("ok\n", "")
        anew = hung_up(nic)
        if not anew:
            assert got == "ok\n" and x.shown()["state"] == "granted", "a grant that was given is lost"
            started(p)
            with ends(nic, p):
                pass
        else:
            assert x.shown()["state"] == "none"
        print(repr(got), "anew" if anew else "went on")


# ---- Grant=viommu --------------------------------------------------------------------------------


@contextlib.contextmanager
def vlab(held, attachment, n=16):
    """Rings, and n pages from x.page on, are granted."""
    x = tv.Lab(held(), attachment)
    d = x.d
    try:
        with x.nic(grain=16) as nic, PORTS[attachment](d.sock("ab", "device")) as p:
            assert p.attach() == pc.OK
            tv.up(p, nic)
            x.page = tv.free_page(nic) + 20
            tv.want(p, nic, at(x.page), n * tv.PAGE)
            rest(d)
            yield x, d, nic, p
    finally:
        if d.proc and not d.alive():
            d.proc = None


def at(page):
    return tv.IOVA + page * tv.PAGE


@BOTH
def test_windows_of_a_viommu(held, attachment):
    """They stay, and nothing is asked for anew; what comes later is given, and what is taken back goes."""
    with vlab(held, attachment) as (x, d, nic, p):
        base = 0
        for n in range(TIMES):
            nic.send_packet(vu.frame(n, 300))
            (got,), base = tv.forward(p, nic, 1, base)
            assert got == vu.frame(n, 300)
            rest(d)
            before, granted, misses, maps = shown(p.state()), x.grant(), len(nic.misses), asked(p)
            d.kill()
            next_one(d)
            rest(d)
            assert shown(p.state()) == before and same_but_for_age(granted, x.grant()) and asked(p) == maps
            assert not nic.serve() and len(nic.misses) == misses, "something is asked for anew"
        assert d.log().count("went on with 1 links of the daemon before, 0 start anew") == TIMES
        tv.want(p, nic, at(x.page + 64), tv.PAGE)
        tv.send_later(nic, tv.INVALIDATE, x.page + 3)
        p.wait(lambda s: not tv.covers(s, at(x.page + 3), 1))
        assert tv.settle(p, nic) == 0
        bufs, _ = p.take(p.state().queues[0], 0)
        tv.want(p, nic, bufs[0][0], bufs[0][1], tv.WRITE)
        again(d)
        tv.answer_packet(p, nic, vu.frame(5, 600))
        assert not hung_up(nic) and "asked to let go" not in d.log() and d.show("ab")["sides"]["driver"]["sessions"] == 1


@pytest.mark.parametrize("soon", [False, True], ids=["later", "at once"])
@BOTH
def test_taken_back_before(held, attachment, soon):
    """The front-end has its answer: the page is not shown, not mapped, and not given to who asks for it."""
    with vlab(held, attachment) as (x, d, nic, p):
        page = x.page + 3
        tv.send_later(nic, tv.INVALIDATE, page)
        p.wait(lambda s: not tv.covers(s, at(page), 1))
        assert tv.settle(p, nic) == 0
        nic.perm[page] = 0
        if not soon:
            rest(d)
        mapped = dict(p.live) if attachment == "shmem" else {}
        d.kill()
        answers = Answers(p)
        next_one(d)
        d.stays(lambda: not shows(p, at(page)), 0.2)
        answers.end()
        assert attachment != "shmem" or set(p.live) <= set(mapped), "a window has come back"
        if hung_up(nic):
            assert soon and not p.state().regions
            return
        tv.refused(p, nic, at(page), tv.READ)
        assert not tv.covers(p.state(), at(page), 1)
        tv.want(p, nic, at(x.page), 3 * tv.PAGE)


def stays_away(d, nic, p, page, result):
    """Nobody is given it that asks."""
    if result == "anew":
        return
    assert tv.take_answer(nic) == 0
    nic.perm[page] = 0
    tv.refused(p, nic, at(page), tv.READ)
    assert not shows(p, at(page)) and d.alive()


@pytest.mark.parametrize("point", POINTS)
@BOTH
def test_killed_at_each_point_with_a_viommu(held, attachment, point):
    """A mapping is taken back."""
    seen = []
    for n in range(1, 8):
        with vlab(held, attachment) as (x, d, nic, p):
            page = x.page + 3
            rest(d)
            d.kill()
            crash_at(d, point, n)
            tv.send_later(nic, tv.INVALIDATE, page)
            stop = time.monotonic() + 1
            polite(d, p, at(page), lambda: time.monotonic() > stop)
            seen.append("lived" if d.alive() else "died")
            d.kill()
            result = holds(d, x, nic, p, at(page))
            seen[-1] += ", " + result
            stays_away(d, nic, p, page, result)
    as_expected(point, seen)


@pytest.mark.parametrize("when", range(8))
@BOTH
def test_killed_while_a_mapping_is_taken_back(held, attachment, when):
    """The same at any moment."""
    with vlab(held, attachment) as (x, d, nic, p):
        page = x.page + 3
        timer = threading.Timer(when * 0.0015, d.proc.kill)
        timer.start()
        tv.send_later(nic, tv.INVALIDATE, page)
        polite(d, p, at(page), lambda: False)
        timer.join()
        result = holds(d, x, nic, p, at(page))
        print(result)
        stays_away(d, nic, p, page, result)


@BOTH
def test_taken_back_while_there_is_no_daemon(held, attachment):
    """The next one takes it away, and answers then."""
    with vlab(held, attachment) as (x, d, nic, p):
        d.kill()
        tv.send_later(nic, tv.INVALIDATE, x.page + 3)
        time.sleep(0.05)
        next_one(d)
        p.wait(lambda s: not tv.covers(s, at(x.page + 3), 1))
        d.stays(lambda: not tv.answered(nic), 0.1)
        assert tv.settle(p, nic) == 0
        assert not tv.covers(p.state(), at(x.page + 3), 1) and not hung_up(nic)
        again(d)
        assert not tv.covers(p.state(), at(x.page + 3), 1)
        tv.want(p, nic, at(x.page), 3 * tv.PAGE)


@BOTH
def test_question_without_an_answer(held, attachment):
    """The device side has asked, and the vIOMMU answers another daemon; also when it refuses."""
    with vlab(held, attachment) as (x, d, nic, p):
        good, bad = x.page + 100, x.page + 110
        nic.perm[bad] = 0
        nic.silent = True
        for page in good, bad:
            assert p.command(tv.MAP, at(page), 100, tv.READ) == pc.OK
        for _ in range(3):
            again(d)
        nic.silent = False
        tv.wait(p, nic, lambda s: tv.covers(s, at(good), 100))
        tv.refused(p, nic, at(bad), tv.READ)
        assert not tv.covers(p.state(), at(bad), 1)
        again(d)
        assert tv.covers(p.state(), at(good), 100)


@BOTH
def test_dropped_by_hand(held, attachment):
    """Nothing is given any more, by whoever comes."""
    with vlab(held, attachment) as (x, d, nic, p):
        s = p.state()
        d.call("link.grant", name="ab", drop=True)
        p.wait(lambda s: all(q.flags & pc.STOP for q in s.queues))
        again(d)
        for q in 0, 1:
            assert p.stopped(q, s.queues[q].run, 0) == pc.OK
        p.wait(lambda s: not s.up)
        p.sync()
        p.wait(lambda s: not windows(p))
        again(d)
        assert p.command(tv.MAP, at(x.page), 1, tv.READ) != pc.OK
        d.stays(lambda: not windows(p) and not p.state().up, 0.1)
        assert not hung_up(nic)


@pytest.mark.parametrize("how", ["kill", "stop"])
@BOTH
def test_no_next_one_with_a_viommu(make_daemon, attachment, how):
    with vlab(lambda: make_daemon("--hold=1"), attachment) as (x, d, nic, p):
        getattr(d, how)()
        d.stays(lambda: not hung_up(nic) and windows(p), 0.5)
        parted(d, nic, p)
        assert attachment != "shmem" or not [1 for shmid, _ in p.live if shmid]
        d.proc = None


@BOTH
def test_copied_queue_is_not_kept(held, attachment):
    """The guard parts the VMs at once, as without a keeper."""
    with vlab(held, attachment) as (x, d, nic, p):
        page = tv.free_page(nic) + 100
        nic.perm[page] = tv.RO
        tv.refused(p, nic, at(page), tv.READ)
        tv.give_up(p, nic, 1)
        d.stays(lambda: not d.show("ab")["kept"], 0.3)
        d.kill()
        answers = Answers(p)
        next_one(d)
        d.wait(lambda: hung_up(nic))
        answers.end()


def test_question_of_a_data_thread(held):
    """Nobody has the queue, and what is sent is dropped: a table's address is asked for, and another daemon hears the answer."""
    x = tv.Lab(held(), "local")
    d = x.d
    with x.nic(indirect=True) as nic:
        d.wait(lambda: nic.serve() or all(q["state"] == "running" for q in d.show("ab")["sides"]["driver"]["queues"]))
        for _ in range(3):
            rest(d)
            nic.silent = True
            free = len(nic.tx_free)
            nic.send_packet(vu.frame(1, 300), cut=[12, 100])
            d.wait(lambda: select.select([nic.back], [], [], 0)[0])
            again(d)
            nic.silent = False
            d.wait(lambda: nic.reclaim() or len(nic.tx_free) == free)
            nic.invalidate(nic.tx_free[-1] // tv.PAGE, 64)
        assert "was not made" not in d.log() and nic.back and not hung_up(nic)
        assert d.log().count("went on with 1 links") == 3


@pytest.mark.parametrize("kind", ["swiotlb", "viommu"])
def test_bytes_that_lie(service, kind):  # pylint: disable=redefined-outer-name
    """Any one byte of a box is another one: the link goes on or not, and nothing crashes."""
    rng = random.Random(11)
    d = service
    x = tv.Lab(d, "local") if kind == "viommu" else Lab(lambda: d, kind, "local")
    for _ in range(16):
        with x.nic() as nic, pc.Local(d.sock("ab", "device")) as p, contextlib.ExitStack() as more:
            assert p.attach(PATH) == pc.OK
            if kind == "viommu":
                tv.up(p, nic)
                tv.want(p, nic, at(tv.free_page(nic) + 20), 5 * tv.PAGE)
            else:
                ch = more.enter_context(x.channel())
                assert ch.readline() == "grant?\n"
                print(x.line(nic), file=ch, flush=True)
                started(p)
            rest(d)
            d.kill()
            time.sleep(0.05)
            with d.manager.lock:
                k = next(k for k, (name, _) in enumerate(d.manager.store) if name.startswith("keep.ab."))
                name, fd = d.manager.store[k]
                got, fds = open_box(fd)
                os.close(fd)
                where = rng.randrange(len(got))
                d.manager.store[k] = (name, make_box(got[:where] + bytes([got[where] ^ 0xff]) + got[where + 1:], fds))
                for f in fds:
                    os.close(f)
            answers = Answers(p)
            next_one(d)
            d.wait(lambda: len(guards(d)) == 1)
            answers.end()
            assert d.alive() and (hung_up(nic) or d.show("ab")["sides"]["driver"]["connected"])
        d.wait(lambda: not d.show("ab")["sides"]["driver"]["connected"])
