# SPDX-License-Identifier: BSD-3-Clause
"""A daemon is killed, crashes or is stopped, and the next one goes on with its sessions: no VMM notices (docs/handover.md)."""
import contextlib
import os
import pathlib
import random
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time

import conftest
import pytest
import vu
from test_hardening import SANITIZED
from test_lingering import LIMIT, lingering, send  # noqa: F401 pylint: disable=unused-import
from test_relay import FORMATS, both_ways
from test_restart import Manager, Service
from test_upgrade import real

MAGIC = 0x76706872

BASE = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF)


class Flow(threading.Thread):
    """Numbered packets from nic to nic: none comes twice, in another order or changed. Those that do not come are counted."""

    def __init__(self, a, b, window=48, size=200, pair=0, quiet=conftest.PATIENCE, **how):
        """What has not come when nothing has moved for @quiet seconds, and no more is sent, is lost."""
        super().__init__(daemon=True)
        self.quiet = quiet
        self.a, self.b, self.window, self.size, self.pair, self.how = a, b, window, size, pair, how
        self.sent = self.next = self.lost = self.empty = 0
        self.ending, self.wrong, self.came = False, None, []

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
            self.came.append(time.monotonic())
            moved = True
        return moved

    def first_since(self, t):
        """Seconds from t to the first packet behind it."""
        return next(c for c in self.came if c > t) - t

    def run(self):
        try:
            idle = time.monotonic()
            while not self.ending or self.next < self.sent:
                now = time.monotonic()
                if self.step():
                    idle = now
                elif self.ending and now - idle > self.quiet:
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
    # On a machine with much else to do the last packets take their time.
    all_of = [Flow(a, b, quiet=2 if lost else conftest.PATIENCE, **how) for a, b in pairs]
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


def rest(d, link="ab"):
    """Until what the last message has changed is kept."""
    d.wait(lambda: d.show(link)["kept"])


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


# VHOST_PCI_CRASHES=1000: as many, by hand.
TIMES = int(os.environ.get("VHOST_PCI_CRASHES", 50))


def fd_count(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_again_and_again(held):
    """One behind the other, with traffic both ways; what one daemon and its holder have open, the next ones have, and nothing more."""
    d = held
    with two(d, "packed", "split-event") as (a, b):
        fds, counts = d.fds(), None
        with flows((a, b), (b, a)) as more:
            for i in range(TIMES):
                d.kill()
                next_one(d)
                more(20)
                if i == 0:
                    counts = fd_count(holder_pid(d))
        d.wait_fds(fds)
        assert fd_count(holder_pid(d)) <= counts
        assert d.show("ab")["sides"]["driver"]["sessions"] == 1


def test_how_fast(held):
    """From the start of the next daemon to the first packet that it moves."""
    d, took = held, []
    with two(d) as (a, b):
        with flows((a, b)) as more:
            for _ in range(5):
                d.kill()
                flow = more.flows[0]
                d.rest(lambda: flow.next, 0.02)
                began = time.monotonic()
                d.start()
                more(1)
                took.append(flow.first_since(began))
    print("seconds from start to traffic:", took)
    assert min(took) < 1


# AddressSanitizer makes an exit status of a SIGSEGV.
ENDS = [signal.SIGTERM, signal.SIGINT, signal.SIGABRT] + ([] if SANITIZED else [signal.SIGSEGV])


@pytest.mark.parametrize("sig", ENDS)
def test_stopped(held, sig):
    """An end in order, or one by a fault, is as a kill for who is connected; sockets wait for the next daemon."""
    d = held
    with two(d, "packed") as (a, b):
        with flows((a, b), (b, a)) as more:
            d.hang_up()
            d.proc.send_signal(sig)
            code = d.proc.wait(60)
            assert code == (0 if sig in (signal.SIGTERM, signal.SIGINT) else -sig)
            late = vu.Frontend(d.sock("cd", "driver"))
            next_one(d)
            more()
        assert late.ask_u64(vu.GET_FEATURES)
        late.close()
        assert d.show("ab")["sides"]["driver"]["sessions"] == 1


POINTS = {"noted": 1, "half": 2, "written": 3, "intent": 4, "sent": 5, "done": 6, "over": 7, "placed": 9}
PACKED_ONLY = (1, 2, 9)


def crashes(d, point, n):
    """A daemon that is killed, perhaps before it is ready, when it passes that point for the nth time."""
    with open(d.log_path, "ab") as log, pytest.MonkeyPatch.context() as env:
        env.setenv("VHOST_PCI_CRASH_AT", f"{point},{n}")
        d.proc = d.spawn(log)
    assert d.proc.wait(conftest.PATIENCE) == -signal.SIGKILL, d.log()
    d.hang_up()


@pytest.mark.parametrize("fa,fb", [("split", "split"), ("packed", "split"), ("split", "packed"), ("packed-event", "packed")])
def test_at_each_point(held, fa, fb):
    """Killed between any two stores of a burst: nothing is lost, nothing comes twice, and the rings go on."""
    d, hit = held, []
    with two(d, fa, fb, size=128) as (a, b):
        for nic in (a, b):
            # A packed ring's come back without a byte, 40 at a kill, three times before anything has to move.
            nic.fill_rx(64)
        with flows((a, b), (b, a), window=40) as more:
            for name, point in POINTS.items():
                if "packed" not in fa + fb and point in PACKED_ONLY:
                    continue
                for n in (1, 7, 50):
                    d.kill()
                    crashes(d, point, n)
                    next_one(d)
                    more(40)
                    hit.append((name, n, [f.empty for f in more.flows]))
        assert d.show("ab")["sides"]["driver"]["sessions"] == d.show("ab")["sides"]["device"]["sessions"] == 1
    print(hit[-1])


@pytest.mark.parametrize("fmt", ["split", "packed"])
def test_the_sender_first(held, fmt):
    """Behind the intent the sender's buffers go back, then the receiver's: a packet that has come was sent, whoever looks when."""
    d = held
    with two(d, fmt, fmt) as (a, b):
        a.reclaim()
        for name, sent, came in (("intent", False, False), ("sent", True, False), ("done", True, True)):
            d.kill()
            free = len(a.tx_free)
            with open(d.log_path, "ab") as log, pytest.MonkeyPatch.context() as env:
                env.setenv("VHOST_PCI_CRASH_AT", f"{POINTS[name]},1")
                d.proc = d.spawn(log)
            a.send_packet(vu.frame(1))
            assert d.proc.wait(conftest.PATIENCE) == -signal.SIGKILL, d.log()
            d.hang_up()
            a.reclaim()
            assert (len(a.tx_free) == free) == sent, name
            got = b.poll_packet()
            assert (got is not None) == came, name
            next_one(d)
            assert (got or b.recv_packet())[1] == vu.frame(1)
            d.rest(lambda: a.reclaim() or len(a.tx_free))
            assert len(a.tx_free) == free
            rest(d)


@pytest.mark.parametrize("fmt", ["split", "packed"])
def test_several_descriptors(held, fmt):
    """Chains of several descriptors, sent and received: their places in a packed ring are written down, too."""
    d = held
    with two(d, fmt, fmt, bufsize=300) as (a, b):
        # 4 buffers each: there are always enough.
        with flows((a, b), window=12, size=900, cut=[12, 100, 500]) as more:
            for point in POINTS.values():
                if fmt == "split" and point in PACKED_ONLY:
                    continue
                d.kill()
                crashes(d, point, 9)
                next_one(d)
                more(40)


@pytest.mark.parametrize("fmt", ["split", "packed"])
def test_early(held, fmt):
    """A packet that takes more receive buffers than a burst has: one is lost at most, and the ring goes on, or its session ends."""
    d = held
    with vu.Nic(d.sock("ab", "driver"), BASE | FORMATS[fmt]) as a, \
            vu.Nic(d.sock("ab", "device"), BASE | FORMATS[fmt], size=256, bufsize=128) as b:
        b.fill_rx(170)
        both_ways(a, b, (64,))
        rest(d)
        with flows((a, b), window=2, size=9000, lost=2) as more:
            for n in (1, 5):
                d.kill()
                crashes(d, 8, n)
                next_one(d)
                more(10)
        assert not hung_up(a) and not hung_up(b)


# ---- what is not gone on with --------------------------------------------------------------------


def gone(nic):
    deadline = time.monotonic() + conftest.PATIENCE
    while not hung_up(nic):
        assert time.monotonic() < deadline, "its session goes on"
        time.sleep(0.01)


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_no_next_one(make_daemon, how):
    """Without a next daemon the VMMs see the end when the time is over, and the holder ends."""
    d = make_daemon("--hold=1")
    d.link("ab")
    d.start()
    with vu.Nic(d.sock("ab", "driver")) as a, vu.Nic(d.sock("ab", "device")) as b:
        both_ways(a, b, (64,))
        rest(d)
        began = time.monotonic()
        assert holder_pid(d)
        getattr(d, how)()
        assert not hung_up(a) and not hung_up(b)
        gone(a)
        gone(b)
        assert time.monotonic() - began >= 0.9
        d.wait(lambda: not holder_pid(d))
        assert "no daemon has come in 1 s" in d.log()
        assert not (d.run / "hold.sock").exists()
    d.proc = None


def test_holder_killed(held):
    """The daemon says so and goes on; its end is seen, as without a holder."""
    d = held
    with two(d) as (a, b), flows((a, b)) as more:
        os.kill(holder_pid(d), signal.SIGKILL)
        d.wait_log("the holder has gone")
        more()
        d.call("link.down", name="cd")
        d.wait_log("link cd: it does not outlive this process")
        assert not d.show("cd")["kept"] and not d.show("ab")["kept"]
        d.call("link.up", name="cd")
        more()
    with vu.Nic(d.sock("ab", "driver")) as a:
        d.kill()
        gone(a)
    d.start()


def test_two_at_once(held):
    """A second daemon gets nothing while the first one lives; of two that come at once one has it all."""
    d = held
    with two(d) as (a, b), flows((a, b), (b, a)) as more:
        other = subprocess.run(d.command(), capture_output=True, text=True, timeout=60, check=False)
        assert "another daemon runs with this runtime directory" in other.stderr and other.returncode
        more()
        d.kill()
        with open(d.log_path, "ab") as log:
            one, two_ = d.spawn(log), d.spawn(log)
        more()
        d.wait(lambda: one.poll() is not None or two_.poll() is not None)
        d.proc = two_ if one.poll() is not None else one
        d.wait_log("ready:")
        d.control = conftest.Control(d.run / "control.sock")
        more()
        assert d.show("ab")["sides"]["driver"]["sessions"] == 1


def test_without_hold(held):
    """The next daemon does not want it: the holder ends at once, and all links start anew."""
    d = held
    with vu.Nic(d.sock("ab", "driver")) as a:
        rest(d)
        d.kill()
        d.args = []
        d.start()
        gone(a)
        assert "went on" not in d.log()
        d.wait(lambda: not holder_pid(d))
        with vu.Nic(d.sock("ab", "driver")) as a, vu.Nic(d.sock("ab", "device")) as b:
            both_ways(a, b, (64,))


def test_without_hold_while_something_lingers(held, lingering):
    """What lies unread in a connection that was kept holds nobody up: neither the other VM's end, nor the links made anew."""
    d = held
    with vu.Nic(d.sock("ab", "driver")) as a, vu.Nic(d.sock("ab", "device")) as b:
        rest(d)
        d.kill()
        send(a.sock, b"x", lingering.make())
        d.args = []
        began = time.monotonic()
        d.start()
        gone(b)
        assert time.monotonic() - began < LIMIT and not holder_pid(d)
    with vu.Nic(d.sock("ab", "driver")) as a, vu.Nic(d.sock("ab", "device")) as b:
        both_ways(a, b, (64,))


def test_holder_that_was_stopped(held):
    """It does not answer the next daemon, which makes another one. When it goes on it leaves that one its socket."""
    d = held
    rest(d)
    old = holder_pid(d)
    os.kill(old, signal.SIGSTOP)
    try:
        d.kill()
        next_one(d)
    finally:
        os.kill(old, signal.SIGCONT)
    d.wait(lambda: not os.path.exists(f"/proc/{old}"), why="the first holder does not end")
    assert (d.run / "hold.sock").exists() and holder_pid(d) != old
    d.kill()
    next_one(d)
    assert "another daemon runs" not in d.log()


def test_changed_link(held):
    """A link whose file has changed starts anew; one that was added at run time, and one that is down, go on."""
    d = held
    d.call("link.add", name="rt", config={"Driver": {"VM": "c"}, "Device": {"VM": "b"}, "Net": {"MTU": 1400}})
    with two(d) as (a, b), vu.Nic(d.sock("cd", "driver")) as c, vu.Nic(d.sock("rt", "driver")) as x, vu.Nic(d.sock("rt", "device")) as y:
        both_ways(x, y, (64,))
        d.call("link.down", name="ab")
        for link in ("ab", "cd", "rt"):
            rest(d, link)
        d.kill()
        d.link("cd", driver="c", device="d", Net_MTU="1300")
        d.start()
        gone(c)
        both_ways(x, y)
        assert not d.show("ab")["up"] and d.show("cd")["mtu"] == 1300 and d.show("rt")["origin"] == "runtime"
        d.call("link.up", name="ab")
        both_ways(a, b)
        with vu.Nic(d.sock("cd", "driver")) as c, vu.Nic(d.sock("cd", "device")) as e:
            both_ways(c, e, (64,))
        d.call("link.remove", name="rt")


def test_while_links_are_made(held):
    """Links of the daemon before go on before the others are made, a few at a time; each of these finds its place."""
    d, others = held, 60
    for i in range(others):
        d.link(f"l{i:04}", Link_Mode="copy", Device_Endpoint="port", Device_Attachment="local")
    d.write("vhost-pci.conf", f"[Daemon]\nMaxLinks={others + 10}\n")
    d.link("fg")
    d.call("daemon.reload")
    for name, mtu in ("same", 1400), ("other", 1300):
        d.call("link.add", name=name, config={"Driver": {"VM": "c"}, "Device": {"VM": "b"}, "Net": {"MTU": mtu}})
    with two(d, "packed") as (a, b), contextlib.ExitStack() as nics:
        nic = {name: nics.enter_context(vu.Nic(d.sock(name, "driver"))) for name in ("cd", "fg", "same", "other")}
        same = nics.enter_context(vu.Nic(d.sock("same", "device")))
        both_ways(nic["same"], same)
        for name in nic:
            rest(d, name)
        with flows((a, b), (b, a)) as more:
            d.kill()
            # One is another one now, one is gone, two that were added at run time have files now.
            d.link("cd", driver="c", device="d", Net_MTU="1300")
            (d.conf / "fg.link").unlink()
            for name in "same", "other":
                d.link(name, driver="c", Net_MTU="1400")
            next_one(d)
            more()
        for name in "cd", "fg":
            gone(nic[name])
        both_ways(nic["same"], same)
        shown = {e["name"]: e for e in d.call("link.list")["links"]}
        assert set(shown) == {"ab", "cd", "same", "other", *(f"l{i:04}" for i in range(others))}
        assert [d.show(name)["origin"] for name in ("same", "other")] == ["file", "file"]
        assert [d.show(name)["mtu"] for name in ("cd", "same", "other")] == [1300, 1400, 1400]
        assert d.show("ab")["sides"]["driver"]["sessions"] == d.show("same")["sides"]["driver"]["sessions"] == 1
    # Nobody makes a socket of its name again: its file has gone.
    assert not os.path.exists(d.sock("fg", "driver")) and not os.path.exists(d.sock("fg", "device"))
    # It is one of the files' from now on.
    (d.conf / "same.link").unlink()
    d.call("daemon.reload")
    assert "same" not in [e["name"] for e in d.call("link.list")["links"]]


def test_killed_while_links_are_made(held):
    """The daemon that went on with links is killed before the others are there: the next one goes on with them, too."""
    d, others = held, 100
    for i in range(others):
        d.link(f"l{i:04}", Link_Mode="copy", Device_Endpoint="port", Device_Attachment="local")
    d.write("vhost-pci.conf", f"[Daemon]\nMaxLinks={others + 10}\n")
    with two(d, "packed") as (a, b), flows((a, b), (b, a)) as more:
        for n in range(3):
            if n == 0:
                d.kill()
            with open(d.log_path, "ab") as log:
                d.proc = d.spawn(log)
            d.wait(lambda: d.log().count("went on with ") == n + 1)
            more()
            d.proc.kill()
            d.proc.wait()
        d.hang_up()
        next_one(d)
        more()
        assert d.show("ab")["sides"]["driver"]["sessions"] == 1
        assert len(d.call("link.list")["links"]) == others + 2


def test_upgraded_in_between(held):
    """An upgrade takes the holder along."""
    d = held
    with two(d, "packed") as (a, b), flows((a, b), (b, a)) as more:
        for _ in range(2):
            d.upgrade()
            more()
            d.control = conftest.Control(d.run / "control.sock")
            rest(d)
            d.kill()
            next_one(d)
            more()


def test_upgraded_to_another_link(held):
    """A link that changed, or is gone, is not handed over: nobody keeps the connections of its VMMs, which connect again."""
    d = held
    with vu.Nic(d.sock("ab", "driver"), BASE) as a, vu.Nic(d.sock("ab", "device"), BASE) as b, \
            vu.Nic(d.sock("cd", "driver"), BASE) as c, vu.Nic(d.sock("cd", "device"), BASE) as e:
        both_ways(a, b, (64,))
        both_ways(c, e, (64,))
        rest(d)
        rest(d, "cd")
        d.link("ab", Net_MTU=1300)
        (d.conf / "cd.link").unlink()
        d.upgrade()
        d.wait(lambda: hung_up(a) and hung_up(b) and hung_up(c))
    assert not os.path.exists(d.sock("cd", "driver")) and not os.path.exists(d.sock("cd", "device"))
    d.control = conftest.Control(d.run / "control.sock")
    with two(d) as (a, b):
        d.kill()
        next_one(d)
        both_ways(a, b)


def test_half_a_message(held):
    """The first half of a message, with its fd, was read by one daemon, the rest by the next."""
    d = held
    with two(d) as (a, b):
        kick = vu.eventfd()
        a.fds.append(kick)
        whole = struct.pack("<IIIQ", vu.SET_VRING_KICK, 1 | 8, 8, 1)
        a.raw(whole[:14], [kick])
        msgs = d.call("daemon.version")
        assert msgs
        rest(d)
        d.kill()
        next_one(d)
        a.raw(whole[14:])
        assert struct.unpack("<Q", a.recv_reply(vu.SET_VRING_KICK)) == (0,)
        a.rings[1].kick_fd = kick
        both_ways(a, b)


@pytest.mark.parametrize("fmt", ["split", "packed"])
def test_what_was_written_last_is_marked(held, fmt):
    """A migration goes on: what a daemon wrote into the rings, and was killed before it marked that, the next one marks."""
    d = held
    with two(d, fmt) as (a, b):
        log = vu.Memory((a.mem.gpa + a.mem.size >> 15) + 4096)
        a.ask(vu.SET_LOG_BASE, struct.pack("<QQ", log.size, 0), [log.fd])
        a.tell_u64(vu.SET_FEATURES, a.features | vu.bit(26))
        for q in (0, 1):
            a.tell(vu.SET_VRING_ADDR, a.addr_msg(q, a.rings[q], flags=1, log=a.mem.gpa + a.rings[q].used))
        both_ways(a, b, (64,))
        rest(d)
        d.kill()
        log.map[:] = bytes(log.size)
        next_one(d)
        for r in (a.rings[0], a.rings[1]):
            first, n = (r.desc, 16 * r.size) if fmt == "packed" else (r.used, 4 + 8 * r.size)
            for page in range(a.mem.gpa + first >> 12, (a.mem.gpa + first + n - 1 >> 12) + 1):
                assert log.map[page >> 3] >> (page & 7) & 1, hex(page)
        log.close()


def areas(r):
    return ((r.desc, 16 * r.size), (r.avail, 6 + 2 * r.size), (r.used, 6 + 8 * r.size)) if not r.packed else ((r.desc, 16 * r.size),)


@pytest.mark.parametrize("fmt", ["split", "packed"])
def test_rings_that_are_other_ones(held, fmt):
    """A VM writes into its rings what it likes while there is no daemon. Its own queue breaks at most; who is beside it sees nothing."""
    d, rng = held, random.Random(11)
    with vu.Nic(d.sock("ab", "device"), BASE | FORMATS[fmt]) as b, vu.Nic(d.sock("cd", "driver")) as c, vu.Nic(d.sock("cd", "device")) as e:
        for i in range(20):
            with vu.Nic(d.sock("ab", "driver"), BASE | FORMATS[fmt]) as a:
                both_ways(a, b, (64,))
                rest(d)
                rest(d, "cd")
                a.send_packet(vu.frame(1))
                if i & 1:
                    d.kill()
                else:
                    crashes_under_way(d, a)
                for r in (a.rings[0], a.rings[1]):
                    for at, n in areas(r):
                        where = rng.choice(range(0, n - 4, 2)) if i % 4 > 1 else 2 if not r.packed else 16 * rng.randrange(r.size) + 14
                        a.mem.w("H", at + where, rng.choice((0, 1, 0xffff, 0x8000, 0x80, 0x8080, a.mem.r("H", at + where) ^ 1 << rng.randrange(16))))
                next_one(d)
                assert d.alive() and not hung_up(b)
                both_ways(c, e, (64,))
            d.wait(lambda: not d.show("ab")["sides"]["driver"]["connected"])
            while b.poll_packet():
                pass
        with vu.Nic(d.sock("ab", "driver"), BASE | FORMATS[fmt]) as a:
            both_ways(a, b, (64,))


def crashes_under_way(d, nic):
    """It ends in the middle of a burst."""
    d.kill()
    with open(d.log_path, "ab") as log, pytest.MonkeyPatch.context() as env:
        env.setenv("VHOST_PCI_CRASH_AT", f"{POINTS['sent']},1")
        d.proc = d.spawn(log)
    nic.send_packet(vu.frame(2))
    assert d.proc.wait(conftest.PATIENCE) == -signal.SIGKILL, d.log()
    d.hang_up()


@pytest.mark.parametrize("size", [0, 8192])
@pytest.mark.parametrize("fmt", ["split", "packed"])
def test_memory_that_has_become_shorter(held, fmt, size):
    """A VM's file is cut off while there is no daemon: its queues break, and who is beside it sees nothing."""
    d = held
    with vu.Nic(d.sock("ab", "device")) as b, vu.Nic(d.sock("cd", "driver")) as c, vu.Nic(d.sock("cd", "device")) as e:
        mem = vu.Memory(seal=False)
        with vu.Nic(d.sock("ab", "driver"), BASE | FORMATS[fmt], mem=mem) as a:
            both_ways(a, b, (64,))
            rest(d)
            rest(d, "cd")
            d.kill()
            os.ftruncate(mem.fd, size)
            next_one(d)
            b.send_packet(vu.frame(1))
            d.wait(lambda: hung_up(a) or d.show("ab")["status"] == "broken")
            both_ways(c, e, (64,))
            assert not hung_up(b)
            os.ftruncate(mem.fd, mem.size)
        d.wait(lambda: not d.show("ab")["sides"]["driver"]["connected"])
        while b.poll_packet():
            pass
        with vu.Nic(d.sock("ab", "driver")) as a:
            both_ways(a, b, (64,))


def test_killed_while_it_is_spoken_to(held):
    """At any moment of a message: the session goes on with its answer, or it ends and says why. Never anything between."""
    d = held
    for i in range(12):
        with vu.Nic(d.sock("ab", "driver")) as a, vu.Nic(d.sock("ab", "device")) as b:
            both_ways(a, b, (64,))
            rest(d)
            went_on = False
            with contextlib.suppress(vu.Gone, OSError):
                with d.stopped():
                    a.raw(struct.pack("<IIIII", vu.GET_VRING_BASE, 1, 8, 1, 0))
                    timer = threading.Timer(i * 0.001, d.proc.kill)
                timer.start()
                timer.join()
                d.kill()
                next_one(d)
                base = struct.unpack("<II", a.recv_reply(vu.GET_VRING_BASE))[1]
                a.start_ring(1, a.rings[1], base=base)
                both_ways(a, b, (64,))
                went_on = True
            if not went_on:
                gone(a)
                assert "it was about to change" in d.log() or "out of date" in d.log()
        d.wait(lambda: d.show("ab")["status"] == "waiting")


# ---- boxes that are wrong: from a service manager that has had its hands in them ---------------------


def open_box(fd):
    """The record and the fds of a box, which is empty then."""
    s = socket.socket(fileno=os.dup(fd))
    got, fds = b"", []
    while True:
        data, some, _, _ = socket.recv_fds(s, 100000, 64)
        kind = struct.unpack_from("<II", data)[1]
        fds += some
        if kind == 3:
            s.close()
            return got, fds
        got += data[24:]


def make_box(got, fds, end=True, total=None):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    n = total or (len(got), len(fds))
    while got or fds:
        socket.send_fds(ours, [struct.pack("<IIQQ", MAGIC, 2, len(got[:30000]), len(fds[:30])) + got[:30000]], fds[:30])
        got, fds = got[30000:], fds[30:]
    if end:
        ours.send(struct.pack("<IIQQ", MAGIC, 3, *n))
    ours.close()
    return theirs.detach()


def others_box(got, fds):
    os.setresuid(65534, 65534, 0)
    try:
        return make_box(got, fds)
    finally:
        os.setresuid(0, 0, 0)


def rehead(got, fds, word, value):
    """The places say something else."""
    for fd in fds:
        with contextlib.suppress(OSError):
            if "places" in os.readlink(f"/proc/self/fd/{fd}"):
                os.pwrite(fd, value, word)
    return make_box(got, fds)


BAD = {
    "cut": (lambda g, f: make_box(g[:len(g) // 2], f, total=(len(g), len(f))), "cut short"),
    "no end": (lambda g, f: make_box(g, f, end=False), "cut short"),
    "nothing": (lambda g, f: make_box(b"", [], end=False), "has begun to read it"),
    "no bytes": (lambda g, f: make_box(b"", f), "malformed, or of a newer version"),
    "newer": (lambda g, f: make_box(g[:8] + struct.pack("<I", 99) + g[12:], f), "is of version 99"),
    "longer": (lambda g, f: make_box(struct.pack("<II", 1, 24) + g[8:24] + bytes(8) + g[24:], f), "of a newer version"),
    "an fd missing": (lambda g, f: make_box(g, f[:-1]), "is missing"),
    "no fds": (lambda g, f: make_box(g, []), "is missing"),
    "swapped": (lambda g, f: make_box(g, f[:1] + f[:0:-1]), "is not what the record says"),
    "another user's": (others_box, "come from user 65534"),
    "out of date": (lambda g, f: rehead(g, f, 8, struct.pack("<Q", 1 << 40)), "out of date"),
    "in the middle": (lambda g, f: rehead(g, f, 16, struct.pack("<I", 1)), "about to change"),
    "other rings": (lambda g, f: rehead(g, f, 4, struct.pack("<I", 3)), "where its rings were is malformed"),
    # The line of the driver's second ring: a position outside.
    "a place outside": (lambda g, f: rehead(g, f, 64 + 64 + 16, struct.pack("<H", 0x7000)), "where it was makes no sense"),
}


@pytest.fixture
def service():
    tmp = pathlib.Path(tempfile.mkdtemp(prefix="vp"))
    d = Service(tmp)
    d.manager = Manager(str(tmp / "notify"))
    d.link("ab")
    d.link("cd", driver="c", device="d")
    yield d.start()
    try:
        assert d.stop() == 0, d.log()
        assert "AddressSanitizer" not in d.log()
    finally:
        d.manager.close()
        shutil.rmtree(tmp, ignore_errors=True)


def settled(d):
    """The service manager has read all that the daemon, which has ended, said to it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as fence:
        fence.connect(d.manager.path)
        socket.send_fds(fence, [b"FDSTORE=1\nFDNAME=fence"], [fence.fileno()])
        d.wait(lambda: "fence" in d.manager.names())
        fence.send(b"FDSTOREREMOVE=1\nFDNAME=fence")
        d.wait(lambda: len(d.manager.names()) == 2)


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_service_manager(service, how):
    """The service manager has the boxes: one for each link, whatever it has been through."""
    d = service
    with two(d, "packed", "split") as (a, b):
        with flows((a, b), (b, a)) as more:
            for _ in range(3):
                getattr(d, how)()
                next_one(d)
                more()
        d.wait(lambda: len(d.manager.names()) == 2)
        assert d.show("ab")["sides"]["driver"]["sessions"] == 1
        d.upgrade()
        d.control = conftest.Control(d.run / "control.sock")
        rest(d)
        d.wait(lambda: len(d.manager.names()) == 2)
        both_ways(a, b)
        d.kill()
        next_one(d)
        both_ways(a, b)
    d.call("link.remove", name="cd")
    d.wait(lambda: len(d.manager.names()) == 1)


def changes(d, n=5):
    """So many new boxes of ab."""
    for _ in range(n):
        d.call("link.down", name="ab")
        rest(d)
        d.call("link.up", name="ab")
        rest(d)


def test_one_box_a_link(service):
    """The one before goes when there is a new one."""
    d = service
    with two(d) as (a, b):
        rest(d, "cd")
        changes(d)
        d.wait(lambda: len(d.manager.store) == 2)
        assert sorted(n.rpartition(".")[0] for n in d.manager.names()) == ["keep.ab", "keep.cd"]
        both_ways(a, b)


class Counted(list):
    """What a service manager has, and how often it was given something."""
    puts = 0

    def __iadd__(self, more):
        self.puts += len(more)
        return super().__iadd__(more)


def test_vmm_that_never_falls_silent(service):
    """A link that changes all the time has a new box a few times a second: neither the daemon nor the service manager has more to do for it."""
    d = service
    with two(d) as (a, b):
        rest(d, "cd")
        with d.manager.lock:
            d.manager.store = Counted(d.manager.store)
        until = time.monotonic() + 2
        while time.monotonic() < until:
            a.tell_state(vu.SET_VRING_ENABLE, 1, 1)
        assert d.manager.store.puts < 30
        rest(d)
        d.kill()
        settled(d)
        next_one(d)
        both_ways(a, b)


def test_out_of_fds_for_a_while(held):
    """What cannot be kept for want of something is kept when that is there again, without another change."""
    d = held
    with two(d) as (a, b):
        limits = resource.prlimit(d.proc.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(d.proc.pid, resource.RLIMIT_NOFILE, (8, limits[1]))
        a.tell_state(vu.SET_VRING_ENABLE, 1, 1)
        d.wait_log("link ab: it does not outlive this process: no socket: Too many open files")
        assert not d.show("ab")["kept"]
        resource.prlimit(d.proc.pid, resource.RLIMIT_NOFILE, limits)
        rest(d)
        d.kill()
        next_one(d)
        both_ways(a, b)
        assert d.log().count("it does not outlive this process") == 1


STRANGER = """
import os, socket, sys, time
os.setresuid(65534, 65534, 65534)
while True:
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(sys.argv[1])
    time.sleep(0.001)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_stranger_that_never_falls_silent(make_daemon):
    """Connections of who may not have the socket change nothing: a daemon that is killed meanwhile is followed as ever."""
    d = make_daemon("--hold=3")
    d.write("a.vm", "[VM]\nTrustGroup=test\nUser=root\n")
    d.link("ab")
    d.start()
    d.tmp.chmod(0o755)
    with two(d) as (a, b), subprocess.Popen(["/usr/bin/python3", "-c", STRANGER, d.sock("ab", "driver")]) as stranger:
        try:
            d.wait(lambda: d.show("ab")["sides"]["driver"]["refused"] > 100)
            for _ in range(50):
                assert d.show("ab")["kept"]
        finally:
            stranger.kill()
        d.kill()
        next_one(d)
        both_ways(a, b)


def test_one_box_a_link_with_a_holder(held):
    d = held
    with two(d):
        rest(d, "cd")
        changes(d, 1)
        fds = fd_count(holder_pid(d))
        changes(d)
        assert fd_count(holder_pid(d)) == fds


def test_service_manager_hears_of_the_next_one_late(service):
    """It listens to a new daemon when the old one has said so, which may take a while: nothing is said to it before."""
    d = service
    path = d.tmp / "waits"
    path.write_text(f'#!/bin/sh\nVHOST_PCI_TAKEOVER_WAIT=-1 exec {real()} "$@"\n')
    path.chmod(0o755)
    d.write("vhost-pci.conf", f"[Daemon]\nUpgradeBinaries={path}\n")
    d.stop()
    d.start()
    with two(d) as (a, b):
        d.wait(lambda: len(d.manager.names()) == 2)
        conftest.adopt_orphans()
        ask = threading.Thread(target=lambda: d.answer.append(d.call("daemon.upgrade", binary=str(path))))
        d.answer = []
        ask.start()
        d.wait_log("at point -1, and waits")
        os.kill(d.proc.pid, signal.SIGSTOP)
        d.wait_log("upgrade: taken over")
        d.stays(lambda: not d.manager.refused, 0.2)
        os.kill(d.proc.pid, signal.SIGCONT)
        ask.join()
        assert d.proc.wait(conftest.PATIENCE) == 0
        d.proc = conftest.Adopted(d.answer[0]["pid"])
        d.control = conftest.Control(d.run / "control.sock")
        rest(d)
        assert not d.manager.refused
        d.wait(lambda: len(d.manager.names()) == 2)
        d.kill()
        next_one(d)
        both_ways(a, b)


def test_service_manager_need_not_wait(service, lingering):
    """What is in a connection's queue, and lingers, is not closed by who keeps that connection in a box."""
    d = service
    with vu.Nic(d.sock("ab", "driver")), vu.Nic(d.sock("ab", "device")):
        rest(d)
        # It waits for the present one to go, and nobody reads what it sends.
        second = socket.socket(socket.AF_UNIX)
        second.connect(d.sock("ab", "device"))
        send(second, b"x", lingering.make())
        d.wait(lambda: d.show("ab")["sides"]["device"]["refused"])
        since = time.monotonic()
        d.call("link.remove", name="cd")
        d.wait(lambda: len(d.manager.names()) == 1)
        assert time.monotonic() - since < LIMIT
        second.close()


@pytest.mark.parametrize("bad", BAD)
def test_bad_box(service, bad):
    """One line says why; the VMM connects again, and another link is not touched by it."""
    d = service
    make, says = BAD[bad]
    if bad == "another user's" and os.geteuid():
        pytest.skip("needs another user")
    with vu.Nic(d.sock("ab", "driver"), BASE | FORMATS["packed"]) as a, vu.Nic(d.sock("ab", "device"), BASE | FORMATS["packed"]) as b, \
            vu.Nic(d.sock("cd", "driver")) as c, vu.Nic(d.sock("cd", "device")) as e:
        both_ways(a, b, (64,))
        both_ways(c, e, (64,))
        rest(d)
        rest(d, "cd")
        d.kill()
        settled(d)
        with d.manager.lock:
            at = next(i for i, (name, _) in enumerate(d.manager.store) if name.startswith("keep.ab."))
            name, fd = d.manager.store[at]
            got, fds = open_box(fd)
            os.close(fd)
            d.manager.store[at] = (name, make(got, fds))
            for f in fds:
                os.close(f)
        next_one(d)
        gone(a)
        gone(b)
        both_ways(c, e)
        lines = [line for line in d.log().splitlines() if "link ab: this daemon cannot go on" in line]
        assert len(lines) == 1 and says in lines[0], lines or d.log()
        with vu.Nic(d.sock("ab", "driver")) as a, vu.Nic(d.sock("ab", "device")) as b:
            both_ways(a, b, (64,))


def test_bytes_that_lie(service):
    """Any one byte of a record, or of the places, is another one: the link goes on or not, and the daemon never crashes."""
    d = service
    rng = random.Random(5)
    for i in range(24):
        with vu.Nic(d.sock("ab", "driver"), BASE | FORMATS["packed"]) as a, vu.Nic(d.sock("ab", "device")) as b:
            both_ways(a, b, (64,))
            rest(d)
            d.kill()
            settled(d)
            with d.manager.lock:
                at = next(k for k, (name, _) in enumerate(d.manager.store) if name.startswith("keep.ab."))
                name, fd = d.manager.store[at]
                got, fds = open_box(fd)
                os.close(fd)
                if i % 2:
                    where = 64 + rng.randrange(4 * 64)
                    box = rehead(got, fds, where, bytes([rng.randrange(256)]))
                else:
                    where = rng.randrange(len(got))
                    box = make_box(got[:where] + bytes([got[where] ^ 0xff]) + got[where + 1:], fds)
                d.manager.store[at] = (name, box)
                for f in fds:
                    os.close(f)
            next_one(d)
            assert d.alive()
        d.wait(lambda: not d.show("ab")["sides"]["driver"]["connected"])
