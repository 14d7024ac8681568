# SPDX-License-Identifier: BSD-3-Clause
"""A new daemon takes over from the running one: nobody notices, or the old one goes on (docs/handover.md)."""
import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import threading
import time

import conftest
import pytest
import viommu
import vu
from test_relay import both_ways

MAGIC = 0x76706872
HELLO, DATA, END, DONE, FAILED, ABORT, READY = range(1, 8)


class Flow(threading.Thread):
    """Numbered packets from nic to nic, one behind the other: each arrives once, in order, unchanged."""

    def __init__(self, a, b, window=24, size=200):
        super().__init__(daemon=True)
        self.a, self.b, self.window, self.size = a, b, window, size
        self.sent = self.got = 0
        self.ending, self.wrong = False, None

    def step(self):
        moved = False
        self.a.reclaim()
        if not self.ending and self.sent - self.got < self.window:
            self.a.send_packet(vu.frame(self.sent, self.size))
            self.sent += 1
            moved = True
        while (p := self.b.poll_packet()) is not None:
            assert p[1] == vu.frame(self.got, self.size), f"packet {self.got} did not arrive, or not as it was sent"
            self.got += 1
            moved = True
        return moved

    def run(self):
        try:
            idle = time.monotonic()
            while not self.ending or self.got < self.sent:
                now = time.monotonic()
                if self.step():
                    idle = now
                elif now - idle > conftest.PATIENCE:
                    raise AssertionError(f"nothing moves: {self.sent} sent, {self.got} arrived")
                else:
                    time.sleep(0.0002)
        except Exception as err:  # pylint: disable=broad-except
            self.wrong = err

    def end(self):
        self.ending = True
        self.join()
        assert not self.wrong, repr(self.wrong)
        assert self.got == self.sent
        extra = self.b.poll_packet()
        assert extra is None, "a packet came twice"


@contextlib.contextmanager
def flows(*pairs):
    """While the body runs; at least a few packets before and behind it."""
    all_of = [Flow(a, b) for a, b in pairs]
    for f in all_of:
        f.start()

    def more(n=50):
        want = [f.got + n for f in all_of]
        deadline = time.monotonic() + conftest.PATIENCE
        while any(f.got < w for f, w in zip(all_of, want)):
            assert not any(f.wrong for f in all_of), [repr(f.wrong) for f in all_of]
            assert time.monotonic() < deadline
            time.sleep(0.002)

    more()
    try:
        yield more
        more()
    finally:
        for f in all_of:
            f.end()


@pytest.fixture
def nics(daemon):
    with vu.Nic(daemon.sock("ab", "driver")) as a, vu.Nic(daemon.sock("ab", "device")) as b:
        both_ways(a, b, (64,))
        yield daemon, a, b


def wrapper(d, name, text):
    """A program that an upgrade may start in the place of ours."""
    path = d.tmp / name
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


def real():
    return str((conftest.BUILD / "daemon/vhost-pcid").resolve())


def with_binaries(make_daemon, texts, **links):
    """A daemon with the links ab and cd, which may be upgraded to scripts of these texts; and their paths."""
    d = make_daemon()
    d.link("ab", **links)
    d.link("cd", driver="c", device="d")
    paths = [wrapper(d, f"next{i}", t) for i, t in enumerate(texts)]
    d.write("vhost-pci.conf", "[Daemon]\nUpgradeBinaries=%s\n" % " ".join(paths))
    return d.start(), paths


def refused(d, word, **params):
    with pytest.raises(conftest.ControlError) as err:
        d.call("daemon.upgrade", **params)
    assert word in err.value.message, err.value.message
    return err.value


def fd_kinds(pid):
    kinds = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            k = re.sub(r"\d+", "N", os.readlink(f"/proc/{pid}/fd/{fd}"))
            kinds[k] = kinds.get(k, 0) + 1
    return kinds


# ---- nobody notices ------------------------------------------------------------------------------


def test_nobody_notices(nics):
    d, a, b = nics
    before = d.show("ab")
    sent = {s: v["tx"]["packets"] for s, v in d.stats("ab").items()}
    with flows((a, b), (b, a)) as more:
        got = d.upgrade()
        assert got["links"] == 2 and got["pid"] == d.proc.pid
        more()
    both_ways(a, b)
    after = d.show("ab")
    for side in before["sides"]:
        for key in ("pid", "sessions", "features", "regions", "last", "refused"):
            assert before["sides"][side][key] == after["sides"][side][key], (side, key)
        d.wait(lambda s=side: d.stats("ab")[s]["tx"]["packets"] > sent[s])
    shown = d.call("daemon.show")
    assert shown["upgrades"] == 1 and after["status"] == "up"
    assert "went away" not in d.log()


@pytest.mark.parametrize("fa,fb", [("split", "packed"), ("packed", "split-event"), ("packed-event", "packed-event")])
def test_ring_formats(daemon, fa, fb):
    from test_relay import FORMATS
    base = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF)
    with vu.Nic(daemon.sock("ab", "driver"), base | FORMATS[fa], size=64) as a, \
            vu.Nic(daemon.sock("ab", "device"), base | FORMATS[fb], size=64) as b:
        with flows((a, b), (b, a)) as more:
            for _ in range(3):
                daemon.upgrade()
                more(100)
        # Where the rings stand is known: they stop, and go on from there.
        for nic in (a, b):
            for q in (0, 1):
                nic.start_ring(q, nic.rings[q], base=nic.stop_ring(q))
        both_ways(a, b)


# VHOST_PCI_UPGRADES=500: as many, by hand.
TIMES = int(os.environ.get("VHOST_PCI_UPGRADES", 20))


def test_again_and_again(nics):
    """What one daemon has open, the next one has, and nothing more."""
    d, a, b = nics
    d.upgrade()
    fds, kinds = d.fds(), None
    maps = len(pathlib.Path(f"/proc/{d.proc.pid}/maps").read_text().splitlines())
    with flows((a, b), (b, a)) as more:
        for i in range(TIMES):
            d.upgrade()
            more(20)
            if i == 0:
                kinds = fd_kinds(d.proc.pid)
        now = fd_kinds(d.proc.pid)
    assert now == kinds
    d.wait_fds(fds)
    assert len(pathlib.Path(f"/proc/{d.proc.pid}/maps").read_text().splitlines()) <= maps + 8
    assert d.call("daemon.show")["upgrades"] == TIMES + 1
    assert d.log().count("has taken over") == TIMES + 1


def test_half_a_message(nics):
    """The first half of a message, with its fd, was read by one daemon, the rest by the next."""
    d, a, b = nics
    kick = vu.eventfd()
    a.fds.append(kick)
    whole = struct.pack("<IIIQ", vu.SET_VRING_KICK, 1 | 8, 8, 1)
    a.raw(whole[:14], [kick])
    d.call("daemon.version")
    d.upgrade()
    a.raw(whole[14:])
    assert struct.unpack("<Q", a.recv_reply(vu.SET_VRING_KICK)) == (0,)
    a.rings[1].kick_fd = kick
    both_ways(a, b)


def test_messages_in_between(nics):
    """What a front-end sends meanwhile is answered by the next daemon, in order."""
    d, a, b = nics
    wrong = []

    def talk():
        try:
            while not done.is_set():
                assert a.ask_u64(vu.GET_FEATURES) == a.offered
                a.tell_state(vu.SET_VRING_ENABLE, 0, 1)
        except Exception as err:  # pylint: disable=broad-except
            wrong.append(repr(err))

    done = threading.Event()
    t = threading.Thread(target=talk)
    t.start()
    for _ in range(5):
        d.upgrade()
    done.set()
    t.join()
    assert not wrong
    both_ways(a, b)


def test_front_end_leaves_in_between(make_daemon):
    """It hangs up while the records are on their way: the next daemon sees it, and serves who comes then."""
    slow = f'sleep 0.2; exec {real()} "$@"\n'
    d, (path,) = with_binaries(make_daemon, [slow])
    with vu.Nic(d.sock("ab", "device")) as b:
        a = vu.Nic(d.sock("ab", "driver"))
        both_ways(a, b, (64,))
        t = threading.Timer(0.1, a.close)
        t.start()
        d.upgrade(binary=path)
        t.join()
        d.wait(lambda: not d.show("ab")["sides"]["driver"]["connected"])
        with vu.Nic(d.sock("ab", "driver")) as a:
            both_ways(a, b)


@pytest.mark.parametrize("sort", ["memory", "log"])
def test_file_that_has_become_shorter(make_daemon, sort):
    """A VMM that makes a file shorter harms its own link, and keeps no daemon from taking over."""
    d = make_daemon()
    d.link("ab")
    d.link("cd", driver="c", device="d")
    d.start()
    mem = vu.Memory(16 << 20, gpa=0, seal=False)
    with vu.Nic(d.sock("ab", "driver"), mem=mem) as a, vu.Nic(d.sock("ab", "device")) as b, \
            vu.Nic(d.sock("cd", "driver")) as c, vu.Nic(d.sock("cd", "device")) as e:
        both_ways(a, b)
        both_ways(c, e)
        fd, size = mem.fd, mem.size
        if sort == "log":
            fd, size = os.memfd_create("log"), 4096
            os.ftruncate(fd, size)
            a.send(vu.SET_LOG_BASE, struct.pack("<QQ", size, 0), [fd], need_reply=False)
            a.recv_reply(vu.SET_LOG_BASE)
            a.tell_u64(vu.SET_FEATURES, a.features | vu.bit(vu.LOG_ALL))
        os.ftruncate(fd, 0)
        d.upgrade()
        both_ways(c, e)
        if sort == "memory":
            a.kick(1)
        else:
            b.send_packet(vu.frame(1))
        d.wait(lambda: d.show("ab")["status"] == "broken")
        assert "truncated" in d.log()
        d.upgrade()
        both_ways(c, e)
        os.ftruncate(fd, size)  # so that Python may touch its own mapping again


def test_control_clients(nics):
    """A subscriber goes on to hear events, half a request is kept, and the sockets are the same files."""
    d, a, b = nics
    sub, half = conftest.Control(d.run / "control.sock"), conftest.Control(d.run / "control.sock")
    sub.call("events.subscribe")
    text = json.dumps({"version": 1, "id": 7, "method": "daemon.version"}).encode() + b"\n"
    half.sock.sendall(text[:20])
    inode = os.stat(d.run / "control.sock").st_ino
    d.call("daemon.version")
    d.upgrade()
    half.sock.sendall(text[20:])
    assert half.line()["result"]["pid"] == d.proc.pid
    d.call("link.down", name="cd")
    event = sub.line()
    assert event["event"] == "link.state" and event["data"]["link"] == "cd", event
    assert os.stat(d.run / "control.sock").st_ino == inode
    sub.close()
    half.close()
    assert d.stop() == 0
    assert not os.path.exists(d.run / "control.sock") and not os.path.exists(d.sock("ab", "driver"))


def test_links_keep_what_they_are(nics):
    """Those of the control socket, those that are down, and counters of front-ends that have gone."""
    d, a, b = nics
    d.call("link.add", name="rt", config={"Driver": {"VM": "c"}, "Device": {"VM": "b"}, "Net": {"MTU": 1400}})
    d.call("link.down", name="cd")
    with vu.Nic(d.sock("rt", "driver")) as x, vu.Nic(d.sock("rt", "device")) as y:
        both_ways(x, y, (64,))
        d.upgrade()
        both_ways(x, y, (64,))
        links = {name["name"]: name for name in d.call("link.list")["links"]}
        assert not links["cd"]["up"] and links["rt"]["up"] and links["rt"]["status"] == "up"
        assert d.show("rt")["origin"] == "runtime" and d.show("rt")["mtu"] == 1400
    d.wait(lambda: d.show("rt")["status"] == "waiting")
    d.wait(lambda: d.stats("rt")["driver"]["tx"]["packets"] == 2)
    d.upgrade()
    assert d.stats("rt")["driver"]["tx"]["packets"] == 2
    d.call("link.up", name="cd")


def test_changed_link(nics):
    """A link whose file has changed is set up anew, as by a reload, and no other one."""
    d, a, b = nics
    d.link("cd", driver="c", device="d", Net_MTU="1300")
    d.link("ac", driver="a", device="c")
    with vu.Nic(d.sock("cd", "driver")) as c:
        d.upgrade()
        d.wait(lambda: not d.show("cd")["sides"]["driver"]["connected"])
        assert d.show("cd")["mtu"] == 1300 and d.show("ac")["status"] == "waiting"
        with pytest.raises(vu.Gone):
            c.ask_u64(vu.GET_FEATURES)
    with vu.Nic(d.sock("cd", "driver")) as c, vu.Nic(d.sock("cd", "device")) as e:
        both_ways(c, e, (64,))
    both_ways(a, b)


def test_changed_link_that_cannot_be(nics):
    """The upgrade has happened, and whoever asked for it hears that something is not there."""
    d, a, b = nics
    conftest.adopt_orphans()
    path = d.run / "taken.sock"
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(path))
        s.listen()
        d.link("cd", driver="c", device="d", Driver_Socket=str(path))
        r = subprocess.run([str(conftest.BUILD / "cli/vhost-pcictl"), "--control", str(d.run / "control.sock"), "upgrade"],
                           capture_output=True, text=True, timeout=60)
        assert d.proc.wait(60) == 0
        d.proc = conftest.Adopted(int(re.search(r"pid (\d+)", r.stdout)[1]))
        assert r.returncode == 1 and "1 links that have changed cannot be set up" in r.stderr
        d.wait_log("another process listens there")
        both_ways(a, b)
    os.unlink(path)
    assert d.upgrade()["failed"] == 0 and d.show("cd")["status"] == "waiting"


def test_changed_rate(nics):
    """Keys that a reload changes in a running link an upgrade changes, too."""
    d, a, b = nics
    d.link("cd", driver="c", device="d", Net_PacketsPerSecond="1000", Link_Description="two")
    with vu.Nic(d.sock("cd", "driver")) as c, vu.Nic(d.sock("cd", "device")) as e:
        d.upgrade()
        both_ways(c, e, (64,))
        assert d.show("cd")["packets_per_second"] == 1000 and d.show("cd")["description"] == "two"
        end = time.monotonic() + 1
        n = 0
        while time.monotonic() < end:
            c.send_packet(vu.frame(1, 64))
            n += 1
            e.poll_packet()
        d.wait(lambda: d.stats("cd")["driver"]["tx"]["drops"]["rate"] or d.stats("cd")["driver"]["tx"]["packets"] < n)
    both_ways(a, b)


def test_rate_goes_on(make_daemon):
    """A limit does not begin anew with each daemon."""
    d = make_daemon()
    d.link("ab", Net_PacketsPerSecond="100")
    d.start()
    with vu.Nic(d.sock("ab", "driver")) as a, vu.Nic(d.sock("ab", "device")):
        began = time.monotonic()
        for _ in range(10):
            for _ in range(40):
                a.send_packet(vu.frame(0))
            d.upgrade()
        s = d.wait(lambda: (v := d.stats("ab")["driver"]["tx"])["packets"] + v["dropped"] == 400 and v)
        # 64 at once, and 100 a second; anew each time it would be all of the first 64s.
        assert s["packets"] <= 64 + 100 * (time.monotonic() - began) + 10


def test_viommu(daemon):
    """What the vIOMMU has mapped stays known; nothing that was taken back is used."""
    with viommu.Nic(daemon.sock("ab", "driver")) as a, vu.Nic(daemon.sock("ab", "device")) as b:
        for pair in ((a, b), (b, a)):
            with flows(pair) as more:
                entries = daemon.show("ab")["sides"]["driver"]["iommu"]["entries"]
                repeated = len(a.misses) - len(set(a.misses))
                daemon.upgrade()
                more()
                assert daemon.show("ab")["sides"]["driver"]["iommu"]["entries"] >= entries > 0
                # What it knew it does not ask for again, but for what was on its way.
                assert len(a.misses) - len(set(a.misses)) <= repeated + 16


def test_dirty_log(daemon):
    """A migration goes on: what the next daemon writes is marked, too."""
    from test_relay import both_ways as ways
    with vu.Nic(daemon.sock("ab", "driver")) as a, vu.Nic(daemon.sock("ab", "device")) as b:
        log = vu.Memory(1 << 20)
        a.ask(vu.SET_LOG_BASE, struct.pack("<QQ", log.size, 0), [log.fd])
        a.tell_u64(vu.SET_FEATURES, a.features | vu.bit(26))
        for q in (0, 1):
            a.tell(vu.SET_VRING_ADDR, a.addr_msg(q, a.rings[q], flags=1, log=a.mem.gpa + a.rings[q].used))
        ways(a, b, (64,))
        daemon.upgrade()
        at, zero = (a.mem.gpa >> 12) >> 3, bytes(log.size)
        log.map[:] = zero
        ways(a, b, (64,))
        assert any(log.map[at:at + (a.mem.size >> 15)]), "nothing was marked"
        log.close()


def running(d):
    """Processes of this daemon's directory."""
    found = []
    for p in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(d.run).encode() in (p / "cmdline").read_bytes():
                found.append(int(p.name))
    return found


# Before the first part is read, while the second is, before the verdict, and behind it. Once DONE is said, the old one ends.
@pytest.mark.parametrize("n", [1, 5, 7, 9, 10, -1])
def test_told_to_stop_meanwhile(make_daemon, n):
    """The daemon ends in order, whichever it is by then."""
    conftest.adopt_orphans()
    d, (path,) = with_binaries(make_daemon, [f'VHOST_PCI_TAKEOVER_WAIT={n} exec {real()} "$@"\n'])
    with vu.Nic(d.sock("ab", "driver")) as a, vu.Nic(d.sock("ab", "device")) as b:
        both_ways(a, b, (64,))

        def ask():
            with contextlib.suppress(conftest.ControlError, OSError, ValueError):
                d.call("daemon.upgrade", binary=path)

        t = threading.Thread(target=ask)
        t.start()
        d.wait_log(f"at point {n}, and waits")
        d.proc.send_signal(signal.SIGTERM)
        assert d.proc.wait(conftest.PATIENCE) == 0
        d.wait(lambda: not running(d))
        t.join()
    assert "stopping" in d.log()
    assert not list(d.run.glob("*.sock"))
    d.proc = None


# ---- the old one goes on -------------------------------------------------------------------------


def test_new_one_dies_at_each_point(make_daemon):
    """Whatever it had done by then, the old one goes on; the first one that does not die takes over."""
    d, _ = with_binaries(make_daemon, [])
    path = wrapper(d, "dies", f'n=$(cat {d.tmp}/n); VHOST_PCI_TAKEOVER_EXIT=$n exec {real()} "$@"\n')
    d.stop()
    d.write("vhost-pci.conf", f"[Daemon]\nUpgradeBinaries={path}\n")
    d.start()
    with vu.Nic(d.sock("ab", "driver")) as a, vu.Nic(d.sock("ab", "device")) as b, flows((a, b), (b, a)) as more:
        fds = d.fds()
        for n in range(1, 100):
            (d.tmp / "n").write_text(str(n))
            pid = d.proc.pid
            try:
                d.upgrade(binary=path)
                break
            except conftest.ControlError:
                assert d.alive() and d.proc.pid == pid
                more(10)
                d.wait_fds(fds)
        assert n >= 7, "there are more points than that"
        more()
    assert d.show("ab")["sides"]["driver"]["sessions"] == 1


SILENT = """exec /usr/bin/python3 -B -c '
import socket, struct, sys, time
s = socket.socket(fileno=3)
%s
time.sleep(100)
'
"""

SAY_HELLO = """
s.send(struct.pack("<IIQQ", 0x76706872, 1, 72, 0) + struct.pack("<Ii64s", %d, 1, b"test"))
def part():
    while struct.unpack_from("<II", s.recv(100000))[1] != 3:
        pass
"""

SAY_READY = SAY_HELLO % 1 + """
part()
s.send(struct.pack("<IIQQ", 0x76706872, 7, 0, 0))
part()
"""


@pytest.mark.parametrize("text,word", [
    ("exit 3\n", "ended before it was ready"),
    (SILENT % 's.send(b"x" * 100)', "no vhost-pcid"),
    (SILENT % (SAY_HELLO % 0), "takes a restart"),
    (SILENT % (SAY_HELLO % 1 + "part(); s.close(); raise SystemExit"), "ended before it was ready"),
    (SILENT % (SAY_HELLO % 1 + 's.send(b"nonsense")'), "no vhost-pcid"),
    (SILENT % SAY_READY, "did not"),
    (SILENT % (SAY_READY + 's.send(struct.pack("<IIQQ", 0x76706872, 5, 3, 0) + b"why")'), "why"),
    (SILENT % (SAY_READY + "s.close(); raise SystemExit"), "ended while"),
    (SILENT % (SAY_READY + 's.send(b"nonsense")'), "no sense"),
], ids=["exits", "babbles", "older", "leaves-early", "babbles-early", "silent", "fails", "leaves", "nonsense"])
def test_no_successor(make_daemon, text, word):
    d, (path,) = with_binaries(make_daemon, [text])
    with vu.Nic(d.sock("ab", "driver")) as a, vu.Nic(d.sock("ab", "device")) as b, flows((a, b), (b, a)) as more:
        fds = d.fds()
        refused(d, word, binary=path)
        more()
        d.wait_fds(fds)
    assert d.alive()


def test_bad_configuration(nics):
    """The files are such that no daemon starts with them: the running one goes on."""
    d, a, b = nics
    d.write("bad.link", "[Link]\nMode=nonsense\n")
    refused(d, "not valid")
    both_ways(a, b)


def test_control_socket_moved(make_daemon):
    d = make_daemon()
    d.link("ab")
    d.start()
    d.write("vhost-pci.conf", f"[Control]\nSocket={d.run}/other.sock\n")
    refused(d, "restart")
    assert d.alive()


def test_which_programs(make_daemon):
    d, (ok, writable, gone) = with_binaries(make_daemon, [f'exec {real()} "$@"\n', "exit\n", "exit\n"])
    other = wrapper(d, "other", "exit\n")
    os.chmod(writable, 0o777)
    os.unlink(gone)
    assert "UpgradeBinaries=" in refused(d, "may not be started", binary=other).message
    refused(d, "nobody else may write", binary=writable)
    refused(d, "No such file", binary=gone)
    refused(d, "absolute path", binary="next0")
    d.upgrade(binary=ok)
    d.upgrade()


def test_two_at_once(make_daemon):
    d, (slow,) = with_binaries(make_daemon, [f'sleep 1; exec {real()} "$@"\n'])
    other = conftest.Control(d.run / "control.sock")
    conftest.adopt_orphans()
    t = threading.Thread(target=lambda: got.append(other.call("daemon.upgrade", binary=slow)))
    got = []
    t.start()
    d.wait_log("starts")
    refused(d, "going on already")
    t.join()
    assert d.proc.wait(60) == 0
    d.proc = conftest.Adopted(got[0]["pid"])
    other.close()


def test_stopped_meanwhile(make_daemon):
    """The daemon is told to end while a successor starts: that one ends, too."""
    d, (slow,) = with_binaries(make_daemon, [f'sleep 1; exec {real()} "$@"\n'])
    conftest.adopt_orphans()
    other = conftest.Control(d.run / "control.sock")
    other.sock.sendall(json.dumps({"version": 1, "id": 1, "method": "daemon.upgrade", "params": {"binary": slow}}).encode() + b"\n")
    d.wait_log("starts")
    pid = int(re.search(r"upgrade: pid (\d+) starts", d.log())[1])
    assert d.stop() == 0
    conftest.Adopted(pid).wait(60)
    other.close()


def test_cli(nics):
    d, a, b = nics
    conftest.adopt_orphans()
    cli = [str(conftest.BUILD / "cli/vhost-pcictl"), "--control", str(d.run / "control.sock")]
    with flows((a, b)):
        r = subprocess.run(cli + ["--json", "upgrade"], capture_output=True, text=True, timeout=60)
        assert r.returncode == 0, r.stderr
        assert d.proc.wait(60) == 0
        d.proc = conftest.Adopted(json.loads(r.stdout)["pid"])
        r = subprocess.run(cli + ["upgrade"], capture_output=True, text=True, timeout=60)
        assert r.returncode == 0 and "stood still for" in r.stdout
        assert d.proc.wait(60) == 0
        d.proc = conftest.Adopted(int(re.search(r"pid (\d+)", r.stdout)[1]))
    d.write("bad.link", "[Link]\nMode=nonsense\n")
    r = subprocess.run(cli + ["upgrade", "--or-reload"], capture_output=True, text=True, timeout=60)
    assert r.returncode == 1 and "not valid" in r.stderr
    os.unlink(d.conf / "bad.link")
