# SPDX-License-Identifier: BSD-3-Clause
"""
A daemon is killed, and the next one goes on with a fast link over ivshmem (docs/handover.md), whatever the device VM's VMM is in the middle of.
What holds for each attachment: test_crash_port.py.
"""
import contextlib
import os
import random
import socket
import threading

import portclient as pc
import portlab
import vu
from portflow import PATH, ends
from portside import same
from test_crash import hung_up, make_box, next_one, open_box, rest
from test_crash_port import Answers, fast, guards, held, parted, service, shown  # noqa: F401 pylint: disable=unused-import
from test_upgrade_attach import Monitor


class Slow(pc.Qmp):
    """It executes a command when it is told to; from free() on, at once."""

    def __init__(self, *args, **kw):
        self.gate, self.at, self.freed = threading.Semaphore(0), None, False
        super().__init__(*args, **kw)

    def execute(self, cmd, a, fds):
        if not self.freed:
            self.at = cmd
            self.gate.acquire()
            self.at = None
        return super().execute(cmd, a, fds)

    def until(self, d, cmd):
        """The next one that it would execute is cmd."""
        while True:
            d.wait(lambda: self.at, why=f"no {cmd}: {self.log}")
            if self.at == cmd:
                return
            at = len(self.log)
            self.gate.release()
            d.wait(lambda: len(self.log) > at, why=f"no {cmd}: {self.log}")

    def free(self):
        self.freed = True
        self.gate.release(1000)

    def close(self):
        self.free()
        super().close()


def again(d):
    # The monitor may have something to say yet.
    d.stays(lambda: rest(d) is None, 0.1)
    d.kill()
    next_one(d)


@contextlib.contextmanager
def slow_lab(make, **more):
    d = make()
    x = portlab.PortLab(d, "fast", "ivshmem", vmm=Slow, **more)
    d.start()
    try:
        yield d, x, x.qmp
    finally:
        x.close()
        if d.proc and not d.alive():
            d.proc = None


PLUG = ["qmp_capabilities", "qom-list", "getfd", "chardev-add", "device_add", "query-pci"]
UNPLUG = ["device_del", "chardev-remove"]


def test_at_each_command(held):
    """Killed while each command of a window waits for its answer, which the next daemon gets: it is plugged once, and unplugged once."""
    with slow_lab(held) as (d, x, qmp):
        qmp.until(d, PLUG[0])
        again(d)
        with vu.Nic(x.drv()) as nic, x.connect() as p:
            assert p.attach(PATH) == pc.OK
            for cmd in PLUG[1:]:
                qmp.until(d, cmd)
                again(d)
                assert not hung_up(nic)
            qmp.free()
            portlab.started(p)
            with ends(nic, p):
                pass
            assert d.show("ab")["sides"]["device"]["plugged"] == 1 == len(qmp.devices)
            rest(d)
            qmp.freed, qmp.gate = False, threading.Semaphore(0)
            leaves = threading.Thread(target=lambda: p.command(pc.DETACH))
            leaves.start()
            for cmd in UNPLUG:
                qmp.until(d, cmd)
                again(d)
            qmp.free()
            leaves.join()
            d.wait(lambda: not qmp.devices and not qmp.chardevs and not qmp.fds)
            d.wait(lambda: not d.show("ab")["sides"]["device"]["window_devices"])
            shown_ = d.show("ab")["sides"]
            assert (shown_["device"]["plugged"], shown_["device"]["unplugged"], shown_["driver"]["sessions"]) == (1, 1, 1)
            for cmd in PLUG[2:5] + UNPLUG[1:]:
                assert qmp.log.count(cmd) == 1, qmp.log
            assert p.attach(PATH) == pc.OK
            portlab.started(p)
            with ends(nic, p):
                again(d)
        assert "QMP" not in "".join(l for l in d.log().splitlines() if "closed" in l), "the connection was lost"


def test_half_a_line(held):
    """The monitor's connection goes on in the middle of its greeting, and of an event, and with it whose answer is owed."""
    d = held()
    path = str(d.tmp / "qmp")
    monitor = Monitor(path)
    d.link("ab", Link_Mode="fast", Device_Endpoint="port", Device_Attachment="ivshmem", Device_QMP=path, Device_HotplugBus="rp0")
    d.start()

    def hear(cmd, **args):
        m = monitor.heard()
        assert m["execute"] == cmd and (not args or m["arguments"] == args), m
        return lambda ret={}: monitor.say({"return": ret, "id": m["id"]})

    def devices():
        return d.show("ab")["sides"]["device"]["window_devices"]

    left = [{"name": "vhp-ab-9000", "type": "child<ivshmem-doorbell>"}]
    try:
        monitor.accept()
        again(d)
        monitor.conn.sendall(b'{"QMP": {"version": {}, "capab')
        d.call("daemon.version")
        again(d)
        monitor.conn.sendall(b'ilities": []}}\r\n')
        caps = hear("qmp_capabilities")
        again(d)
        caps()
        old = hear("qom-list")
        again(d)
        # What it was asked before does not say how things are now.
        new = hear("qom-list")
        old(left)
        d.stays(lambda: not devices(), 0.1)
        new(left)
        gone = hear("device_del", id="vhp-ab-9000")
        again(d)
        new = hear("qom-list")
        gone()
        new(left)
        # It asks again for what is to go.
        gone = hear("device_del", id="vhp-ab-9000")
        assert [w["device"] for w in devices()] == ["vhp-ab-9000"]
        gone()
        monitor.conn.sendall(b'{"event": "DEVICE_DELETED", "data": {"dev')
        d.call("daemon.version")
        again(d)
        new = hear("qom-list")
        monitor.conn.sendall(b'ice": "vhp-ab-9000"}}\r\n')
        gone = hear("chardev-remove", id="cvhp-ab-9000")
        new([])
        gone()
        d.wait(lambda: not devices())
        assert d.show("ab")["sides"]["device"]["unplugged"] == 1
        again(d)
        hear("qom-list")([])
        assert d.show("ab")["sides"]["device"]["qmp"] == "connected"
        lines = [x for x in d.log().splitlines() if "QMP" in x and "no answer for" not in x and "over after" not in x]
        assert len(lines) == 1, f"the connection was lost: {lines}"
    finally:
        monitor.close()


def test_monitor_of_the_daemon(held):
    """QMPMode=server: the socket is the same file, whoever has it, and the VMM stays connected."""
    d = held()
    d.link("ab", Link_Mode="fast", Device_Endpoint="port", Device_Attachment="ivshmem", Device_QMP="b.qmp", Device_QMPMode="server",
           Device_HotplugBus="rp0")
    d.start()
    path = str(d.run / "b.qmp")
    inode = os.stat(path).st_ino
    again(d)
    for _ in range(2):
        qmp = pc.Qmp(path, connects=True)
        d.wait(lambda: d.show("ab")["sides"]["device"]["qmp"] == "connected")
        greeted = qmp.log.count("qmp_capabilities")
        again(d)
        assert d.show("ab")["sides"]["device"]["qmp"] == "connected" and os.stat(path).st_ino == inode
        assert qmp.log.count("qmp_capabilities") == greeted == 1, "it connected anew"
        qmp.close()
        d.wait(lambda: d.show("ab")["sides"]["device"]["qmp"].startswith("closed"))
    assert d.stop() == 0
    next_one(d)
    assert os.stat(path).st_ino == inode


def test_doorbells(held):
    """Those that are the driver VM's own stay, and what it has given before is known: no further one is used."""
    with fast(held, "ivshmem") as (d, nic, p):
        for _ in range(3):
            before = shown(p.state())
            again(d)
            p.drain()
            assert shown(p.state()) == before and d.show("ab")["sides"]["device"]["doorbells_used"] == 2
            for i, q in enumerate(p.state().queues):
                assert q.doorbell >> 16 >= 16 and same(p.doorbells[q.doorbell], nic.rings[i].call_fd)
        # One that comes now is numbered behind them.
        call = vu.eventfd()
        nic.tell(vu.SET_VRING_CALL, b"\0" * 8, [call])
        d.wait(lambda: p.drain() or (p.state().queues[0].doorbell >> 16 >= 16 and same(p.doorbells[p.state().queues[0].doorbell], call)))
        assert d.show("ab")["sides"]["device"]["doorbells_used"] == 3
        os.close(call)


def store_settled(d):
    """The service manager has read all that the daemon, which has ended, said to it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as fence:
        fence.connect(d.manager.path)
        socket.send_fds(fence, [b"FDSTORE=1\nFDNAME=fence"], [fence.fileno()])
        d.wait(lambda: "fence" in d.manager.names())
        fence.send(b"FDSTOREREMOVE=1\nFDNAME=fence")
        d.wait(lambda: "fence" not in d.manager.names())


def no_box(d, link, read=False):
    """Its box is lost, or another daemon has read it, and has come no further."""
    store_settled(d)
    with d.manager.lock:
        for name, fd in [e for e in d.manager.store if e[0].startswith(f"keep.{link}.box")]:
            if read:
                for inner in open_box(fd)[1]:
                    os.close(inner)
                continue
            d.manager.store.remove((name, fd))
            os.close(fd)


def test_ids_of_a_link_that_starts_anew(service):
    """Of two links of the device VM one goes on: it plugs no window before the VM has said what the other one may have left in it."""
    d = service
    with slow_lab(lambda: d, buses=("rp2", "rp3")) as (_, x, qmp):
        y = portlab.PortLab(d, "fast", "ivshmem", name="cd", driver="c")
        y.qmp.devices = qmp.devices
        y.qmp.release = qmp.release = False
        d.call("daemon.reload")
        qmp.free()
        with x.connect() as p, y.connect() as r, vu.Nic(y.drv()):
            assert p.attach(PATH) == pc.OK and r.attach(PATH) == pc.OK
            portlab.started(r)
            rest(d)
            theirs, = qmp.devices.values()
            rest(d, "cd")
            d.kill()
            no_box(d, "cd")
            qmp.freed, qmp.gate = False, threading.Semaphore(0)
            answers = Answers(r)
            next_one(d)
            answers.end()
            assert d.log().count("went on with 1 links of the daemon before, 0 start anew") == 1
            with vu.Nic(x.drv()) as nic:
                d.wait(lambda: any("earlier daemon" in (w["error"] or "") for w in d.show("ab")["sides"]["device"]["windows"]))
                assert not d.show("ab")["sides"]["device"]["window_devices"]
                qmp.until(d, "qom-list")
                qmp.free()
                portlab.started(p)
                ours, = [v for k, v in qmp.devices.items() if k.startswith("vhp-ab-")]
                assert ours["pos"] != theirs["pos"]
                with ends(nic, p):
                    pass
        y.close()


def test_what_was_kept_before(service):
    """A link that starts anew has its port as ever, also when daemons have gone on with it before."""
    with fast(lambda: service, "ivshmem") as (d, nic, p), contextlib.ExitStack() as nics:
        names = [n for n in d.manager.names() if ".box" not in n]
        for read in (False, True, False):
            rest(d)
            generation = p.state().generation
            d.kill()
            no_box(d, "ab", read)
            answers = Answers(p)
            next_one(d)
            answers.end()
            assert d.show("ab")["sides"]["device"]["online"] and p.state().generation > generation
            assert p.attach(PATH) == pc.OK
            assert hung_up(nic)
            nic = nics.enter_context(vu.Nic(d.sock("ab", "driver")))
            portlab.started(p)
            p.wait(lambda s: p.drain() or all(q.doorbell >> 16 >= 16 for q in s.queues))
            with ends(nic, p) as e:
                again(d)
                e.more()
            d.wait(lambda: [n for n in d.manager.names() if ".box" not in n] == names)


def test_unlinked(service):
    """A link that has gone on ends as any: its window is unplugged, its device's connection ends, nothing is kept of it."""
    with fast(lambda: service, "ivshmem") as (d, nic, p):
        again(d)
        with ends(nic, p):
            pass
        d.call("link.remove", name="ab")
        parted(d, nic, p, by_itself=0)
        # The connection ends behind that, and this VMM with it.
        d.wait(lambda: all(w["leaving"] for w in p.vmm.devices.values()))
        d.wait(lambda: not [n for n in d.manager.names() if n.startswith("keep.ab")])
        p.sock.settimeout(pc.limit(5))
        with contextlib.suppress(pc.Gone):
            while True:
                p.message()
        for path in d.sock("ab", "driver"), d.sock("ab", "device"):
            assert not os.path.exists(path)


def test_reloaded(service):
    """Keys that a running link takes: other root ports, and the link goes on with these, too."""
    with fast(lambda: service, "ivshmem") as (d, nic, p):
        again(d)
        conf = d.conf / "ab.link"
        conf.write_text(conf.read_text().replace("rp0 rp1", "rp1 rp0 rp2"))
        d.call("daemon.reload")
        d.wait(lambda: d.show("ab")["sides"]["device"]["qmp"] == "connected")
        with ends(nic, p) as e:
            for _ in range(2):
                again(d)
                e.more()
        assert len(p.vmm.devices) == 1 and d.show("ab")["sides"]["driver"]["sessions"] == 1


def test_device_comes_and_goes(held):
    """Killed before and behind: the next device has vectors of its own, and windows are those of nobody any more."""
    with fast(held, "ivshmem") as (d, nic, p):
        old = p.signals
        vmm = p.vmm
        p.close()
        d.wait(lambda: not d.show("ab")["sides"]["device"]["online"] and not vmm.devices)
        again(d)
        with pc.Ivshmem(d.sock("ab", "device")) as p:
            p.vmm = vmm
            assert not any(same(a, b) for a in old for b in p.signals)
            again(d)
            assert p.attach(PATH) == pc.OK
            portlab.started(p)
            with ends(nic, p):
                again(d)
        assert not hung_up(nic)
        d.wait(lambda: len(guards(d)) == 1)


def test_bytes_that_lie(service):
    """Any one byte of a box is another one, of its monitor, windows or doorbells, too: the link goes on or not, and nothing crashes."""
    rng, seen = random.Random(11), []
    d = service
    x = portlab.PortLab(d, "fast", "ivshmem")
    d.start()
    for _ in range(24):
        with x.connect() as p:
            assert p.attach(PATH) == pc.OK
            with vu.Nic(x.drv()) as nic:
                portlab.started(p)
                rest(d)
                d.kill()
                store_settled(d)
                with d.manager.lock:
                    at = next(k for k, (name, _) in enumerate(d.manager.store) if name.startswith("keep.ab.box"))
                    name, fd = d.manager.store[at]
                    got, fds = open_box(fd)
                    os.close(fd)
                    where = rng.randrange(len(got))
                    d.manager.store[at] = (name, make_box(got[:where] + bytes([got[where] ^ 0xff]) + got[where + 1:], fds))
                    for f in fds:
                        os.close(f)
                answers = Answers(p)
                next_one(d)
                d.wait(lambda: len(guards(d)) == 1)
                answers.end()
                assert d.alive()
                seen.append(hung_up(nic))
        # What it has been told is wrong: the next one begins with nothing.
        d.kill()
        with d.manager.lock:
            for _, fd in d.manager.store:
                os.close(fd)
            d.manager.store = []
        d.wait(lambda: not guards(d))
        next_one(d)
    assert 2 <= sum(seen) < len(seen), seen
    x.close()
