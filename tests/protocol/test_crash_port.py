# SPDX-License-Identifier: BSD-3-Clause
"""
A daemon is killed, crashes or is stopped, and the next one goes on with its links with a port (docs/handover.md): neither VM notices. Where none
does, one guard sees to it that the driver VM's connection ends only when the device VM has let go of its rings.
"""
import contextlib
import os
import pathlib
import random
import select
import shutil
import signal
import struct
import tempfile
import threading
import time

import pytest

import blk
import conftest
import portclient as pc
import portlab
import vu
from blk import Disk, Driver, pattern
from portflow import PATH, ends, lab
from portside import same, settled
from test_crash import ENDS, TIMES, hung_up, next_one, rest
from test_device import dev, drv, link
from test_guard import deaf, gone
from test_hardening import SANITIZED
from test_logged import answer_stops
from test_relay import FORMATS
from test_restart import Manager, Service
from test_upgrade_fast import page_of

BASE = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF)
KEPT = ["local", "shmem", "ivshmem"]


@pytest.fixture
def held(make_daemon):
    return lambda: make_daemon("--hold=3")


@contextlib.contextmanager
def fast(held, attachment="local", **more):
    with lab(held, "fast", attachment, **more) as (d, nic, p):
        rest(d)
        try:
            yield d, nic, p
        finally:
            if d.proc and not d.alive():
                d.proc = None  # killed, as was meant


def shown(s):
    """What the guest goes by, but for the generation."""
    return (s.flags, s.status, s.reason, s.epoch, s.config, s.regions_generation, s.features, [vars(q) for q in s.queues], s.windows, s.regions)


@pytest.mark.parametrize("attachment", KEPT)
def test_killed(held, attachment):
    """Again and again, with numbered packets both ways: the device side is at work in the rings all the time."""
    with fast(held, attachment) as (d, nic, p):
        before, fds = shown(p.state()), d.fds()
        with ends(nic, p) as e:
            for _ in range(TIMES):
                rest(d)
                d.kill()
                e.more()
                next_one(d)
                e.more()
        assert shown(p.state()) == before and not hung_up(nic)
        assert d.log().count("went on with 1 links of the daemon before, 0 start anew") == TIMES, d.log()
        assert "asked to let go" not in d.log()
        assert d.show("ab")["sides"]["driver"]["sessions"] == 1
        d.wait_fds(fds)
        # Who has what is known: the queues are given back and handed over again.
        d.call("link.down", name="ab")
        answer_stops(p, (e.given[1], e.given[0]))
        p.wait(lambda s: s.reason == pc.ADMIN)
        d.call("link.up", name="ab")
        portlab.started(p)


@pytest.mark.parametrize("sig", ENDS)
@pytest.mark.parametrize("attachment", KEPT)
def test_stopped(held, attachment, sig):
    with fast(held, attachment) as (d, nic, p):
        before = page_of(p)
        with ends(nic, p) as e:
            rest(d)  # a window's BAR is asked for a moment after it has come
            d.hang_up()
            d.proc.send_signal(sig)
            assert d.proc.wait(60) == (0 if sig in (signal.SIGTERM, signal.SIGINT) else -sig)
            assert page_of(p) == before
            e.more()
            next_one(d)
            e.more()
        assert d.show("ab")["sides"]["driver"]["sessions"] == 1 and "asked to let go" not in d.log()


def guards(d):
    """Those of daemons in its directory."""
    found = []
    for p in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (p / "comm").read_text().strip() == "vhost-pci-guard" and str(d.run) in (p / "cmdline").read_text():
                found.append(int(p.name))
    return found


def serves(p):
    """Its VMM answers."""
    if isinstance(p, pc.Shmem) and select.select([p.back], [], [], 0)[0]:
        with contextlib.suppress(pc.Gone, ConnectionError):
            p.serve()


def parted(d, nic, p, by_itself=1):
    """One guard tells the device side, waits for it, and ends the driver VM's connection then."""
    deaf(p)
    s = p.wait(lambda s: s.reason == pc.DAEMON)
    assert s.attached and not s.up and not s.regions
    d.stays(lambda: not hung_up(nic), 0.2)
    # Over ivshmem the next daemon takes the port over then, at once, and the answer is overwritten.
    p.command_raw(max(struct.unpack_from("<I", p.mem, pc.COMMAND)[0], s.answer[0]) + 1, pc.SYNC, s.regions_generation)
    d.wait(lambda: serves(p) or hung_up(nic), why="the driver VM is still held")
    d.wait_log("the device VM has let go after")
    assert d.log().count("asked to let go") == by_itself and "has not let go" not in d.log()


@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("attachment", KEPT)
def test_no_next_one(make_daemon, attachment, how):
    """The guard waits for as long as the keeper does, and sees to it then."""
    with fast(lambda: make_daemon("--hold=1"), attachment) as (d, nic, p):
        guard, began = d.call("daemon.show")["guard_pid"], time.monotonic()
        with ends(nic, p) as e:
            getattr(d, how)()
            e.more()
        assert not hung_up(nic)
        parted(d, nic, p)
        assert time.monotonic() - began >= 0.9
        d.wait(lambda: gone(guard))
        d.proc = None


@pytest.mark.parametrize("attachment", KEPT)
def test_no_keeper(make_daemon, attachment):
    """As without one."""
    with fast(lambda: make_daemon("--hold=30"), attachment) as (d, nic, p):
        holder = next(int(q.name) for q in pathlib.Path("/proc").glob("[0-9]*") if of(q, d))
        os.kill(holder, signal.SIGKILL)
        d.wait_log("the holder has gone")
        d.kill()
        parted(d, nic, p)


def of(proc, d):
    with contextlib.suppress(OSError):
        return (proc / "comm").read_text().strip() == "vhost-pci-hold" and str(d.run) in (proc / "cmdline").read_text()
    return False


@pytest.mark.parametrize("attachment", KEPT)
def test_link_that_has_changed(held, attachment):
    """It starts anew: the guard before parts the VMs, and the next daemon waits for that."""
    with fast(held, attachment) as (d, nic, p):
        conf = d.conf / "ab.link"
        d.kill()
        conf.write_text(conf.read_text() + "\n[Net]\nMTU=1300\n")
        t = threading.Thread(target=lambda: next_one(d))
        t.start()
        parted(d, nic, p)
        t.join()
        assert "cannot go on" in d.log() or "it is not handed over" in d.log()
        d.wait(lambda: len(guards(d)) == 1)
        assert d.show("ab")["mtu"] == 1300


def outcome(d, nic, p):
    """After anything: the link went on, or one guard has parted the VMs. Never anything between."""
    if d.show("ab")["sides"]["driver"]["sessions"] == 1 and d.show("ab")["sides"]["driver"]["connected"] and not hung_up(nic):
        with ends(nic, p):
            pass
        return "went on"
    return "anew"


@pytest.mark.parametrize("attachment", KEPT)
def test_killed_while_something_changes(held, attachment):
    """At any moment of a stop and start of a queue, and of the guest's answer."""
    seen = []
    for i in range(10):
        with fast(held, attachment) as (d, nic, p):
            stop = struct.pack("<IIIII", vu.SET_VRING_ENABLE, 1, 8, 1, i & 1)
            timer = threading.Timer(i * 0.001, d.proc.kill)
            timer.start()
            with contextlib.suppress(OSError):
                nic.raw(stop)
            timer.join()
            d.proc.wait()
            d.hang_up()
            answers = Answers(p)
            next_one(d)
            d.wait(lambda: len(guards(d)) == 1)
            seen.append(hung_up(nic))
            answers.end()
            if not seen[-1]:
                assert d.show("ab")["sides"]["driver"]["sessions"] == 1
                assert "asked to let go" not in d.log()
            else:
                assert "the device VM has let go after" in d.log() and "has not let go" not in d.log()
    print(seen)


class Answers(threading.Thread):
    """A device side that lets go when it is told to."""

    def __init__(self, p):
        super().__init__(daemon=True)
        self.p, self.ending, self.wrong = p, False, None
        self.start()

    def run(self):
        try:
            while not self.ending:
                s = self.p.state(torn=True)
                if s.reason == pc.DAEMON and s.attached and not s.generation & 1:
                    seq = max(struct.unpack_from("<I", self.p.mem, pc.COMMAND)[0], s.answer[0]) + 1
                    self.p.command_raw(seq, pc.SYNC, s.regions_generation)
                    while not self.ending:
                        serves(self.p)
                        time.sleep(0.002)
                serves(self.p)
                time.sleep(0.002)
        except Exception as err:  # pylint: disable=broad-except
            self.wrong = err

    def end(self):
        self.ending = True
        self.join()
        assert not self.wrong, repr(self.wrong)


@pytest.mark.parametrize("attachment", KEPT)
def test_next_one_is_killed_while_it_restores(held, attachment):
    """At any moment: a later one goes on, or one guard, and one only, parts the VMs."""
    seen, rng = [], random.Random(3)
    for _ in range(12):
        with fast(held, attachment) as (d, nic, p):
            d.kill()
            answers = Answers(p)
            with open(d.log_path, "ab") as log:
                d.proc = d.spawn(log)
            time.sleep(rng.random() * 0.12)
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
            else:
                assert "the device VM has let go after" in d.log() and "has not let go" not in d.log(), d.log()
    print(seen)


def young_guard(pid):
    """The guard that this daemon has just made, which is at work."""
    with contextlib.suppress(OSError):
        for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            text = pathlib.Path(f"/proc/{child}/status").read_text()
            if "vhost-pci-guard" in text and (SANITIZED or "Seccomp:\t2" in text) and "State:\tS" in text:
                return int(child)
    return None


def test_guard_that_answers_late(held):
    """The next daemon's guard has what it was asked for when the daemon has given up: it parts the VMs, and the link starts anew."""
    for _ in range(20):
        with fast(held) as (d, nic, p):
            d.kill()
            with open(d.log_path, "ab") as log:
                d.proc = d.spawn(log)
            guard = d.wait(lambda: young_guard(d.proc.pid))
            os.kill(guard, signal.SIGSTOP)
            answers = Answers(p)
            try:
                d.wait(lambda: "went on with" in d.log() or "cannot go on with it" in d.log())
            finally:
                os.kill(guard, signal.SIGCONT)
            late = "does not answer" in d.log()
            if late:
                d.wait(lambda: hung_up(nic), why="the driver VM's connection is nobody's")
                d.wait(lambda: len(guards(d)) == 1)
            answers.end()
            d.wait_log("ready:")
            d.stop()
            if late:
                assert "the device VM has let go after" in d.log() and "has not let go" not in d.log()
                return
    raise AssertionError("no guard was stopped in time")


@pytest.mark.parametrize("attachment", KEPT)
def test_guest_that_counts(held, attachment):
    """A guest's counters make no new box, and a kill in the middle of their answer leaves no page half written."""
    with fast(held, attachment) as (d, nic, p):
        for i in range(10):
            rest(d)  # over ivshmem the next daemon has asked the VM what it has
            seq = p.state().answer[0] + 1
            for n in range(20):
                p.command_raw(seq + n, pc.COUNTERS, 100 * i + n, 1, 2, 3)
                if n == 2 * i:
                    d.proc.kill()
            d.kill()
            next_one(d)
            s = p.wait(lambda s: s.answer[0] == seq + 19)
            assert s.answer[2] == pc.OK and s.up
        assert d.log().count("went on with 1 links") == 10, d.log()
        with ends(nic, p):
            pass


@pytest.mark.parametrize("attachment", KEPT)
def test_both_ends_go_meanwhile(held, attachment):
    """Who hangs up while there is no daemon is gone for the next one."""
    with fast(held, attachment) as (d, nic, p):
        d.kill()
        nic.close()
        next_one(d)
        p.wait(lambda s: s.reason == pc.NO_DRIVER)
        p.sync()
        with vu.Nic(d.sock("ab", "driver")) as nic:
            portlab.started(p)
            rest(d)
            d.kill()
            p.close()
            next_one(d)
            d.wait(lambda: not d.show("ab")["sides"]["device"]["connected"])
            assert not hung_up(nic)


@pytest.mark.parametrize("fmt", ["split", "packed"])
@pytest.mark.parametrize("attachment", KEPT)
def test_drained(held, attachment, fmt):
    """Nobody is there to take what the driver sends: it is dropped, by one daemon after the other, and comes back each time."""
    d = held()
    x = portlab.PortLab(d, "fast", attachment)
    d.start()
    with vu.Nic(x.drv(), BASE | FORMATS[fmt], size=64) as nic:
        rest(d)
        stop, sent = threading.Event(), []

        def send():
            while not stop.is_set():
                nic.reclaim()
                if nic.tx_free:
                    nic.send_packet(vu.frame(len(sent)))
                    sent.append(1)
                else:
                    time.sleep(0.0005)

        t = threading.Thread(target=send)
        t.start()
        for _ in range(10):
            n = len(sent)
            d.wait(lambda: len(sent) > n + 100)
            d.kill()
            next_one(d)
        n = len(sent)
        d.wait(lambda: len(sent) > n + 200)
        stop.set()
        t.join()
        assert d.show("ab")["sides"]["driver"]["sessions"] == 1
    x.close()


def test_signals_through_the_daemon(held):
    """What was raised on an eventfd of the daemon's while there was none is passed, and each side is signalled once more."""
    d = held()
    x = portlab.PortLab(d, "fast", "local")
    d.start()
    with x.connect() as p:
        ours = os.dup(p.doorbells[1])
        assert p.attach(PATH) == pc.OK
        with vu.Nic(x.drv()) as nic:
            portlab.started(p)
            settled(d, 2, 2)
            rest(d)
            p.drain()
            while pc.raised(nic.rings[0].call_fd, 0.7):
                pass
            d.kill()
            pc.one(ours)
            next_one(d)
            assert pc.raised(nic.rings[0].call_fd), "the call was lost"
            for q in (0, 1):
                assert same(p.signals[1 + q], nic.rings[q].kick_fd) and same(p.doorbells[1 + q], nic.rings[q].call_fd)
            settled(d, 2, 2)
            # One that changes is given to the device side as ever.
            call = vu.eventfd()
            nic.tell(vu.SET_VRING_CALL, struct.pack("<Q", 0), [call])
            d.wait(lambda: p.drain() or same(p.doorbells[1], call))
            os.close(call)
    os.close(ours)
    x.close()


def test_upgraded_in_between(held):
    with fast(held) as (d, nic, p):
        with ends(nic, p) as e:
            for _ in range(2):
                d.upgrade()
                d.control = conftest.Control(d.run / "control.sock")
                rest(d)
                e.more()
                d.kill()
                next_one(d)
                e.more()
        assert "asked to let go" not in d.log()
        d.wait(lambda: len(guards(d)) == 1)
        # The guards of those that went before are no more: this one parts the VMs.
        d.call("link.remove", name="ab")
        parted(d, nic, p, by_itself=0)


def test_beside_others(held):
    """Links of several kinds, one of which starts anew: the others go on."""
    d = held()
    d.link("cd", driver="c", device="d")
    d.link("ef", driver="a", device="c", Device_Endpoint="port", Device_Attachment="local", Link_Mode="grant")
    with fast(lambda: d) as (d, nic, p), vu.Nic(d.sock("cd", "driver")) as c, vu.Nic(d.sock("cd", "device")) as e, vu.Nic(d.sock("ef", "driver")) as g:
        for link in "ab", "cd", "ef":
            rest(d, link)
        conf = d.conf / "ef.link"
        with ends(nic, p) as flow:
            for n in range(3):
                rest(d)
                d.kill()
                if not n:
                    conf.write_text(conf.read_text() + "\n[Net]\nMTU=1300\n")
                next_one(d)
                flow.more()
        assert not hung_up(c) and not hung_up(e) and hung_up(g)


@pytest.mark.parametrize("vmm", ["keeps the area", "has none"])
def test_account_of_requests(make_daemon, vmm):
    """A disk: the account goes on, with what is open, whether somebody has the queue or nobody has."""
    d = make_daemon("--hold=5")
    link(d, "fast", Profile_Capacity="4M")
    d.start()

    def again():
        rest(d)
        d.kill()
        next_one(d)

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
                before, area = shown(p.state()), bytes(disk.area(0))
                again()
                assert shown(p.state()) == before and bytes(disk.area(0)) == area
                for i in (5, 2, 0) if lap < 3 else reversed(range(len(left))):
                    disk.dies_here = lap < 3 and i == 0
                    disk.answer(got[i])
                    f.wait(tokens[got[i][3]])
                    left.remove(got[i][3])
                if lap == 1:
                    again()
            d.wait(lambda: d.show("ab")["status"] == "partial")
            again()
            again()
        f.reap()
        assert not left and not f.open and all(s == blk.OK for s, _, _ in f.done.values())
        assert store[:20 * 512] == b"".join(pattern(512, i) for i in range(20))
    assert d.show("ab")["sides"]["driver"]["sessions"] == 1


# ---- a service manager -----------------------------------------------------------------------------


@pytest.fixture
def service():
    tmp = pathlib.Path(tempfile.mkdtemp(prefix="vp"))
    d = Service(tmp)
    d.manager = Manager(str(tmp / "notify"))
    yield d
    try:
        if d.proc:
            assert d.stop() == 0, d.log()
        assert "AddressSanitizer" not in d.log()
    finally:
        d.manager.close()
        shutil.rmtree(tmp, ignore_errors=True)


@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("attachment", KEPT)
def test_service_manager(service, attachment, how):
    with fast(lambda: service, attachment) as (d, nic, p):
        names = d.rest(lambda: len(d.manager.names()))
        with ends(nic, p) as e:
            for _ in range(4):
                rest(d)
                getattr(d, how)()
                e.more()
                next_one(d)
                e.more()
        assert "asked to let go" not in d.log() and "belongs to no link any more" not in d.log()
        d.wait(lambda: len(d.manager.names()) == names)
        d.wait(lambda: len(guards(d)) == 1)


def test_service_that_is_stopped_for_good(service):
    """The service manager closes all that it has: the guard sees to it."""
    with fast(lambda: service) as (d, nic, p):
        d.stop()
        d.manager.close()
        d.manager = Manager(str(d.tmp / "notify2"))
        parted(d, nic, p)
        d.proc = None


def test_service_manager_that_ends_the_guard(service):
    """One that is about to kill all that the daemon left behind asks first: the VMs are parted, as without it, and the link starts anew."""
    with fast(lambda: service) as (d, nic, p):
        guard = d.call("daemon.show")["guard_pid"]
        d.kill()
        d.stays(lambda: not gone(guard), 0.1)
        os.kill(guard, signal.SIGTERM)
        parted(d, nic, p)
        d.wait(lambda: gone(guard))
        next_one(d)
        assert "has parted its VMs" in d.log()
        with vu.Nic(d.sock("ab", "driver")):
            pass


def test_bytes_that_lie(service):
    """Any one byte of a box is another one: the link goes on or not, and nothing crashes."""
    from test_crash import make_box, open_box, rehead, settled as store_settled  # pylint: disable=import-outside-toplevel
    rng = random.Random(7)
    d = service
    portlab.PortLab(d, "fast", "local")
    d.start()
    for i in range(24):
        with pc.Local(d.sock("ab", "device")) as p:
            assert p.attach(PATH) == pc.OK
            with vu.Nic(d.sock("ab", "driver")) as nic:
                portlab.started(p)
                rest(d)
                d.kill()
                time.sleep(0.05)
                with d.manager.lock:
                    at = next(k for k, (name, _) in enumerate(d.manager.store) if name.startswith("keep.ab."))
                    name, fd = d.manager.store[at]
                    got, fds = open_box(fd)
                    os.close(fd)
                    where = rng.randrange(len(got))
                    box = make_box(got[:where] + bytes([got[where] ^ 0xff]) + got[where + 1:], fds)
                    d.manager.store[at] = (name, box)
                    for f in fds:
                        os.close(f)
                answers = Answers(p)
                next_one(d)
                d.wait(lambda: len(guards(d)) == 1)
                answers.end()
                assert d.alive() and (hung_up(nic) or d.show("ab")["sides"]["driver"]["connected"])
        d.wait(lambda: not d.show("ab")["sides"]["driver"]["connected"])
