# SPDX-License-Identifier: BSD-3-Clause
"""A new daemon takes over links with a port: neither end of one notices (docs/handover.md)."""
import contextlib
import json
import os
import pathlib
import select
import socket
import struct
import threading
import time

import conftest
import portclient as pc
import portlab
import pytest
import vu
from portside import eventfd_id, settled
from test_restart import service  # noqa: F401 pylint: disable=unused-import
from test_upgrade import fd_kinds, real, refused

PATH = pc.ALL & ~vu.bit(vu.PACKED)  # the scripted device side knows split rings
DONE = [
    ("copy", "local"),
    ("copy", "ivshmem"),
    ("copy", "shmem"),
    ("fast", "local"),
    ("fast", "ivshmem"),
    ("fast", "shmem"),
]
IDS = [f"{m}-{a}" for m, a in DONE]
STRAIGHT = {"local": (2, 2), "ivshmem": (0, 2), "shmem": (0, 0)}  # kicks and calls that go so on a fast link


class Ends(threading.Thread):
    """Numbered packets both ways between a driver and a device side: each arrives once, in order, unchanged."""

    def __init__(self, nic, port, window=24, size=200):
        super().__init__(daemon=True)
        self.nic, self.port, self.window, self.size = nic, port, window, size
        state = port.state()
        self.tx, self.rx = state.queues[1], state.queues[0]
        self.tx_at, self.rx_at = self.tx.base, self.rx.base
        self.sent, self.got = [0, 0], [0, 0]  # driver to device, device to driver
        self.ending, self.wrong, self.seen = False, None, state.generation

    def device_takes(self):
        moved = False
        while (got := self.port.take(self.tx, self.tx_at)) is not None:
            bufs, head = got
            data = b"".join(bytes(self.port.view(a, l)) for a, l, w in bufs)[12:]
            assert data == vu.frame(self.got[0], self.size), f"packet {self.got[0]} did not arrive, or not as sent"
            self.port.give_back(self.tx, self.tx_at, head, 0)
            self.tx_at += 1
            self.got[0] += 1
            moved = True
        if moved:
            pc.one(self.port.doorbells[self.tx.doorbell])
        return moved

    def device_sends(self):
        moved = False
        while not self.ending and self.sent[1] - self.got[1] < self.window:
            got = self.port.take(self.rx, self.rx_at)
            if got is None:
                break
            bufs, head = got
            whole = bytes(10) + b"\1\0" + vu.frame(self.sent[1], self.size)
            self.port.view(bufs[0][0], len(whole))[:] = whole
            self.port.give_back(self.rx, self.rx_at, head, len(whole))
            self.rx_at += 1
            self.sent[1] += 1
            moved = True
        if moved:
            pc.one(self.port.doorbells[self.rx.doorbell])
        return moved

    def driver(self):
        moved = False
        self.nic.reclaim()
        if not self.ending and self.sent[0] - self.got[0] < self.window:
            self.nic.send_packet(vu.frame(self.sent[0], self.size))
            self.sent[0] += 1
            moved = True
        while (p := self.nic.poll_packet()) is not None:
            assert p[1] == vu.frame(self.got[1], self.size), f"packet {self.got[1]} did not come back, or not as sent"
            self.got[1] += 1
            moved = True
        return moved

    def run(self):
        try:
            idle = time.monotonic()
            while not self.ending or self.got != self.sent:
                moved = self.driver() | self.device_takes() | self.device_sends()
                now = time.monotonic()
                if moved:
                    idle = now
                elif now - idle > conftest.PATIENCE:
                    raise AssertionError(f"nothing moves: {self.sent} sent, {self.got} arrived")
                else:
                    time.sleep(0.0002)
        except Exception as err:  # pylint: disable=broad-except
            self.wrong = err

    def more(self, n=50):
        want = [g + n for g in self.got]
        deadline = time.monotonic() + conftest.PATIENCE
        while any(g < w for g, w in zip(self.got, want)):
            assert not self.wrong, repr(self.wrong)
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def end(self):
        self.ending = True
        self.join()
        assert not self.wrong, repr(self.wrong)
        assert self.nic.poll_packet() is None and self.port.take(self.tx, self.tx_at) is None, "a packet came twice"


@contextlib.contextmanager
def ends(nic, port):
    e = Ends(nic, port)
    e.start()
    e.more()
    try:
        yield e
        e.more()
    finally:
        e.end()


@contextlib.contextmanager
def lab(make_daemon, mode, attachment, conf="", path=PATH, **more):
    d = make_daemon()
    if conf:
        d.write("vhost-pci.conf", conf)
    x = portlab.PortLab(d, mode, attachment, **more)
    d.start()
    try:
        with vu.Nic(x.drv()) as nic, x.connect() as p:
            assert p.attach(path) == pc.OK
            portlab.started(p)
            if mode == "fast":
                settled(d, *STRAIGHT[attachment])   # some time after the link is up
                p.drain()
            yield d, nic, p
    finally:
        x.close()


def same_but_for(before, after, *keys):
    for side in ("driver", "device"):
        for k, v in before["sides"][side].items():
            if k not in keys:
                assert after["sides"][side].get(k) == v, (side, k, v, after["sides"][side].get(k))


@pytest.mark.parametrize("mode,attachment", DONE, ids=IDS)
def test_nobody_notices(make_daemon, mode, attachment):
    with lab(make_daemon, mode, attachment) as (d, nic, p):
        before, page = d.show("ab"), bytes(p.mem[pc.STATE:pc.STATE + 0x10000])
        with ends(nic, p) as e:
            for _ in range(4):
                got = d.upgrade()
                print("stall_us", got["stall_us"])
                e.more()
        assert bytes(p.mem[pc.STATE:pc.STATE + 0x10000]) == page, "the guest sees that"
        after = d.show("ab")
        same_but_for(before, after, "updates", "signals_forwarded", "commands")
        assert after["status"] == "up" and d.call("daemon.show")["upgrades"] == 4
        assert "went away" not in d.log() and "has left" not in d.log()
        # It is a port like any other still: commands, a driver that stops and starts, a guest that leaves.
        p.sync()
        s = p.state()
        assert p.command(pc.DETACH) == pc.OK
        d.wait(lambda: not p.state().up)
        assert p.attach(PATH) == pc.OK
        s2 = portlab.started(p)
        assert all(b.run > a.run for a, b in zip(s.queues, s2.queues))
        with ends(nic, p):
            pass


@pytest.mark.parametrize("mode,attachment", DONE, ids=IDS)
def test_counters_go_on(make_daemon, mode, attachment):
    if mode != "copy":
        pytest.skip("the daemon does not see the packets")
    with lab(make_daemon, mode, attachment) as (d, nic, p):
        with ends(nic, p) as e:
            d.upgrade()
            e.more()
            d.upgrade()
        d.wait(lambda: d.stats("ab")["driver"]["tx"]["packets"] == e.sent[0] and
               d.stats("ab")["device"]["tx"]["packets"] == e.sent[1])


TIMES = int(os.environ.get("VHOST_PCI_UPGRADES", 20))


@pytest.mark.parametrize("mode,attachment", DONE, ids=IDS)
def test_again_and_again(make_daemon, mode, attachment):
    """What one daemon has open, the next one has, and nothing more."""
    with lab(make_daemon, mode, attachment) as (d, nic, p):
        d.upgrade()
        fds = d.fds()
        maps = len(pathlib.Path(f"/proc/{d.proc.pid}/maps").read_text().splitlines())
        with ends(nic, p) as e:
            d.upgrade()
            e.more(20)
            kinds = fd_kinds(d.proc.pid)
            for _ in range(TIMES):
                d.upgrade()
                e.more(20)
            assert fd_kinds(d.proc.pid) == kinds
        d.wait_fds(fds)
        assert len(pathlib.Path(f"/proc/{d.proc.pid}/maps").read_text().splitlines()) <= maps + 8


@pytest.mark.parametrize("mode,attachment", DONE, ids=IDS)
def test_new_one_dies_at_each_point(make_daemon, mode, attachment, tmp_path):
    """Whatever it had done by then, the old one goes on, and the guest sees nothing of that."""
    path = tmp_path / "dies"
    path.write_text(f'#!/bin/sh\nn=$(cat {tmp_path}/n); VHOST_PCI_TAKEOVER_EXIT=$n exec {real()} "$@"\n')
    path.chmod(0o755)
    with lab(make_daemon, mode, attachment, conf=f"[Daemon]\nUpgradeBinaries={path}\n") as (d, nic, p):
        page = bytes(p.mem[pc.STATE:pc.STATE + 0x10000])
        with ends(nic, p) as e:
            fds = d.fds()
            for n in range(1, 100):
                (tmp_path / "n").write_text(str(n))
                pid = d.proc.pid
                try:
                    d.upgrade(binary=str(path))
                    break
                except conftest.ControlError:
                    assert d.alive() and d.proc.pid == pid
                    e.more(10)
                    d.wait_fds(fds)
            assert n >= 6, "there are more points than that"
        assert bytes(p.mem[pc.STATE:pc.STATE + 0x10000]) == page


@pytest.mark.parametrize("mode,attachment", DONE, ids=IDS)
def test_before_and_between(make_daemon, mode, attachment):
    """A port that nobody has, one with a guest and no driver, and one with a driver and no guest."""
    d = make_daemon()
    x = portlab.PortLab(d, mode, attachment)
    d.start()
    try:
        d.upgrade()
        with x.connect() as p:
            assert p.attach(PATH) == pc.OK
            d.upgrade()
            assert p.state().attached and not p.state().up
            with vu.Nic(x.drv()) as nic:
                portlab.started(p)
                with ends(nic, p):
                    d.upgrade()
            d.wait(lambda: not p.state().up)
            d.upgrade()
        d.wait(lambda: not d.show("ab")["sides"]["device"]["connected"])
        with vu.Nic(x.drv()) as nic:
            d.upgrade()
            # Nobody serves: what it sends is dropped, and counted.
            dropped = d.stats("ab")["driver"]["tx"]["dropped"]
            nic.send_packet(vu.frame(0))
            d.wait(lambda: d.stats("ab")["driver"]["tx"]["dropped"] == dropped + 1)
            with x.connect() as p:
                assert p.attach(PATH) == pc.OK
                portlab.started(p)
                with ends(nic, p):
                    d.upgrade()
        assert d.stop() == 0
    finally:
        x.close()


@pytest.mark.parametrize("mode,attachment", [x for x in portlab.ALL if x not in DONE],
                         ids=[f"{m}-{a}" for m, a in portlab.ALL if (m, a) not in DONE])
def test_others_are_refused(make_daemon, mode, attachment):
    """What cannot be handed over yet is named, and nothing happens."""
    d = make_daemon()
    x = portlab.PortLab(d, mode, attachment)
    d.start()
    try:
        pid = d.proc.pid
        refused(d, "link ab cannot be handed over")
        assert d.alive() and d.proc.pid == pid
    finally:
        x.close()


# ---- what an attachment has besides --------------------------------------------------------------


def signals_pass(nic, p):
    """Both ways: the driver is told of what the device side returns, and the device side of what the driver sends."""
    s = p.state()
    for q in s.queues:
        while pc.raised(p.signals[q.kick_signal], 0):
            pass
    while pc.raised(nic.rings[1].call_fd, 0):
        pass
    nic.send_packet(vu.frame(7, 100))
    assert pc.raised(p.signals[s.queues[1].kick_signal]), "no kick"
    avail, = struct.unpack_from("<H", p.view(s.queues[1].avail, 4), 2)
    bufs, head = p.take(s.queues[1], avail - 1)
    assert b"".join(bytes(p.view(a, l)) for a, l, w in bufs)[12:] == vu.frame(7, 100)
    p.give_back(s.queues[1], avail - 1, head, 0)
    pc.one(p.doorbells[s.queues[1].doorbell])


@pytest.mark.parametrize("mode,attachment", DONE, ids=IDS)
def test_signals(make_daemon, mode, attachment):
    # The daemon's shadow rings have what the path knows; in fast mode it is the driver that does without.
    path = PATH if mode == "fast" else PATH & ~vu.bit(vu.EVENT_IDX)
    with lab(make_daemon, mode, attachment, path=path) as (d, nic, p):
        for _ in range(3):
            d.upgrade()
            signals_pass(nic, p)
            assert pc.raised(nic.rings[1].call_fd), "the driver is not told"
            p.sync()  # signal 0 from the guest, and
            while pc.raised(p.signals[0], 0):
                pass
            nic.tell_state(vu.SET_VRING_ENABLE, 0, 0)
            assert pc.raised(p.signals[0]), "the guest is not told of the page"
            nic.tell_state(vu.SET_VRING_ENABLE, 0, 1)
            portlab.started(p)


def test_ivshmem_device_gone_and_back(make_daemon):
    """The next device gets vectors of its own also from a daemon that did not give the last one its."""
    d = make_daemon()
    x = portlab.PortLab(d, "copy", "ivshmem")
    d.start()
    with vu.Nic(x.drv()) as nic:
        with x.connect() as p:
            assert p.attach(PATH) == pc.OK
            portlab.started(p)
            d.upgrade()
            old = [eventfd_id(fd) for fd in p.signals]
        d.wait(lambda: not d.show("ab")["sides"]["device"]["online"])
        d.upgrade()
        with x.connect() as p:
            assert not set(old) & {eventfd_id(fd) for fd in p.signals}
            assert p.attach(PATH) == pc.OK
            portlab.started(p)
            with ends(nic, p):
                d.upgrade()


class Monitor:
    """The socket of a VMM's monitor that says what it is told to say, in pieces."""

    def __init__(self, path):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(4)
        self.conn, self.buf = None, b""

    def accept(self):
        self.conn = self.listener.accept()[0]
        self.conn.settimeout(conftest.PATIENCE)

    def say(self, o):
        self.conn.sendall(json.dumps(o).encode() + b"\r\n")

    def heard(self):
        while b"\n" not in self.buf:
            data = self.conn.recv(65536)
            assert data, "the connection has ended"
            self.buf += data
        line, _, self.buf = self.buf.partition(b"\n")
        return json.loads(line)

    def close(self):
        self.listener.close()
        if self.conn:
            self.conn.close()


def test_ivshmem_half_a_line(make_daemon):
    """The monitor's connection goes on wherever it is: before the greeting, with commands that have no answer, in a line."""
    d = make_daemon()
    path = str(d.tmp / "qmp")
    monitor = Monitor(path)
    d.link("ab", Link_Mode="copy", Device_Endpoint="port", Device_Attachment="ivshmem", Device_PoolSize="4M",
           Device_QMP=path, Device_HotplugBus="rp0")
    d.start()
    try:
        monitor.accept()
        with vu.Nic(d.sock("ab", "driver")) as nic, pc.Ivshmem(d.sock("ab", "device")) as p:
            assert p.attach(PATH) == pc.OK
            portlab.started(p)
            with ends(nic, p) as e:
                d.upgrade()
                monitor.conn.sendall(b'{"QMP": {"version": {}, "capab')
                d.upgrade()
                monitor.conn.sendall(b'ilities": []}}\r\n')
                m = monitor.heard()
                assert m["execute"] == "qmp_capabilities"
                d.upgrade()
                monitor.say({"return": {}, "id": m["id"]})
                m = monitor.heard()
                assert m["execute"] == "qom-list"
                d.upgrade()
                assert d.show("ab")["sides"]["device"]["qmp"] == "connected"
                # The answer has its taker still, and removes what a daemon before had left.
                monitor.say({"return": [{"name": "vhp-ab-9000", "type": "child<ivshmem-doorbell>"}], "id": m["id"]})
                m = monitor.heard()
                assert m["execute"] == "device_del" and m["arguments"] == {"id": "vhp-ab-9000"}
                d.upgrade()
                assert [w["device"] for w in d.show("ab")["sides"]["device"]["window_devices"]] == ["vhp-ab-9000"]
                monitor.say({"return": {}, "id": m["id"]})
                monitor.conn.sendall(b'{"event": "DEVICE_DELETED", "data": {"dev')
                d.call("daemon.version")
                d.upgrade()
                monitor.conn.sendall(b'ice": "vhp-ab-9000"}}\r\n')
                m = monitor.heard()
                assert m["execute"] == "chardev-remove" and m["arguments"] == {"id": "cvhp-ab-9000"}
                d.upgrade()
                monitor.say({"return": {}, "id": m["id"]})
                d.wait(lambda: not d.show("ab")["sides"]["device"]["window_devices"])
                e.more()
            assert d.show("ab")["sides"]["device"]["unplugged"] == 1
            monitor.say({"event": "RESET", "data": {"guest": True}})
            p.wait(lambda s: not s.attached)
        assert d.log().count("QMP") == 1, "the connection was lost"
    finally:
        monitor.close()


def test_ivshmem_monitor_of_the_daemon(make_daemon):
    """QMPMode=server: the socket is the same file, whoever has it."""
    d = make_daemon()
    d.link("ab", Link_Mode="copy", Device_Endpoint="port", Device_Attachment="ivshmem", Device_PoolSize="4M",
           Device_QMP="b.qmp", Device_QMPMode="server", Device_HotplugBus="rp0")
    d.start()
    path = str(d.run / "b.qmp")
    inode = os.stat(path).st_ino
    d.upgrade()
    for _ in range(2):
        qmp = pc.Qmp(path, connects=True)
        d.wait(lambda: d.show("ab")["sides"]["device"]["qmp"] == "connected")
        lists = qmp.log.count("qom-list")
        d.upgrade()
        assert d.show("ab")["sides"]["device"]["qmp"] == "connected" and os.stat(path).st_ino == inode
        assert qmp.log.count("qom-list") == lists == 1, "it connected anew"
        qmp.close()
        d.wait(lambda: d.show("ab")["sides"]["device"]["qmp"].startswith("closed"))
    assert d.stop() == 0
    assert not os.path.exists(path)


def test_ivshmem_kept_fds(service):
    """The service manager has what it had, and a daemon that is killed behind an upgrade leaves as much as any other."""
    d = service
    d.link("ab", Link_Mode="copy", Device_Endpoint="port", Device_Attachment="ivshmem")
    d.start()
    with pc.Ivshmem(d.sock("ab", "device")) as p:
        for life in range(2):
            assert p.attach(PATH) == pc.OK
            with vu.Nic(d.sock("ab", "driver")) as nic:
                portlab.started(p)
                names = d.manager.names()
                assert "keep.ab.conn" in names and names.count("keep..guard") == 1
                with ends(nic, p) as e:
                    for _ in range(2):
                        d.upgrade()
                        e.more()
                assert d.manager.names() == names
                s = p.state()
            d.wait(lambda: not p.state().up)
            d.kill()
            d.start()
            assert not p.state().attached and d.show("ab")["sides"]["device"]["online"]
            assert p.state().generation > s.generation


# ---- shmem ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def shmem_lab(make_daemon):
    d = make_daemon()
    x = portlab.PortLab(d, "copy", "shmem")
    d.start()
    with vu.Nic(x.drv()) as nic, x.connect() as p:
        yield d, nic, p


def test_shmem_requests_without_an_answer(make_daemon):
    """What the VMM was asked before is answered to the next daemon: a window comes, one goes, a guest detaches."""
    with shmem_lab(make_daemon) as (d, nic, p):
        p.idle = lambda: time.sleep(0.002)  # the VMM takes its time
        assert p.attach(PATH) == pc.OK
        d.wait(lambda: select.select([p.back], [], [], 0)[0], why="it was not asked to map the pool")
        d.upgrade()
        assert not p.state().up and p.state().attached
        p.serve()
        portlab.started(p)
        with ends(nic, p):
            d.upgrade()
        before = len(p.log)
        p.command_raw(p.state().answer[0] + 1, pc.DETACH)
        d.wait(lambda: select.select([p.back], [], [], 0)[0], why="it was not asked to unmap the pool")
        d.upgrade()
        seq = p.state().answer[0]
        p.serve()
        p.wait(lambda s: s.answer[0] == seq + 1 and s.answer[2] == pc.OK)
        assert [r[0] for r in p.log[before:]] == [10] and list(p.live) == [(0, 0)]
        del p.idle
        assert p.attach(PATH) == pc.OK
        portlab.started(p)
        with ends(nic, p):
            d.upgrade()
        shown = d.show("ab")["sides"]["device"]
        assert (shown["maps"], shown["unmaps"], shown["maps_failed"], shown["starts"]) == (2, 1, 0, 1)


def test_shmem_answer_of_an_earlier_start(make_daemon):
    """A device that stopped and started meanwhile: what it was asked before is nobody's."""
    with shmem_lab(make_daemon) as (d, nic, p):
        p.idle = lambda: time.sleep(0.002)
        assert p.attach(PATH) == pc.OK
        d.wait(lambda: select.select([p.back], [], [], 0)[0], why="it was not asked to map the pool")
        for q in range(p.nq):
            p.fe.tell_state(vu.SET_VRING_ENABLE, q, 0)
        d.wait(lambda: not d.show("ab")["sides"]["device"]["device_started"])
        d.upgrade()
        p.live.clear()
        for q in range(p.nq):
            p.fe.tell_state(vu.SET_VRING_ENABLE, q, 1)
        d.wait(lambda: d.show("ab")["sides"]["device"]["device_started"])
        d.upgrade()
        p.refuse = True
        p.serve()
        p.refuse = False
        p.serve()
        p.mem = p.live[0, 0][1]
        del p.idle
        assert p.attach(PATH) == pc.OK
        portlab.started(p)
        with ends(nic, p):
            d.upgrade()
        assert d.show("ab")["sides"]["device"]["maps_failed"] == 0


def test_shmem_memory_and_stop(make_daemon):
    """The device's rings go on in another table of memory, and it is known where they stop."""
    with shmem_lab(make_daemon) as (d, nic, p):
        assert p.attach(PATH) == pc.OK
        portlab.started(p)
        with ends(nic, p) as e:
            for _ in range(3):
                p.fe.set_memory(p.fe.mem)
                d.upgrade()
                e.more()
        used = [p.fe.mem.r("H", r.used + 2) for r in p.rings]
        assert used[0], "no signal has passed"
        d.upgrade()
        for q in range(p.nq):
            p.fe.tell_state(vu.SET_VRING_ENABLE, q, 0)
        d.upgrade()
        at = [p.fe.stop_ring(q) for q in range(p.nq)]
        assert [p.fe.mem.r("H", r.used + 2) for r in p.rings] == at and all(a >= u for a, u in zip(at, used))
        p.started = False
        d.upgrade()
        p.live.clear()
        p.start()
        assert p.attach(PATH) == pc.OK
        portlab.started(p)
        with ends(nic, p):
            d.upgrade()


def test_shmem_half_a_message(make_daemon):
    """The VMM's messages and its answers are half read by one daemon, and the rest by the next."""
    with shmem_lab(make_daemon) as (d, nic, p):
        p.idle = lambda: time.sleep(0.002)
        assert p.attach(PATH) == pc.OK
        d.wait(lambda: select.select([p.back], [], [], 0)[0], why="it was not asked to map the pool")
        whole = []
        back, p.back = p.back, Halves(p.back, whole)
        p.serve()
        p.back = back
        back.sendall(whole[0][:9])
        d.call("daemon.version")
        d.upgrade()
        assert not p.state().up
        back.sendall(whole[0][9:])
        portlab.started(p)
        call = vu.eventfd()
        p.fe.fds.append(call)
        whole = struct.pack("<IIIQ", vu.SET_VRING_CALL, 1 | 8, 8, 0)
        p.fe.raw(whole[:14], [call])
        d.call("daemon.version")
        with ends(nic, p) as e:
            d.upgrade()
            p.fe.raw(whole[14:])
            assert struct.unpack("<Q", p.fe.recv_reply(vu.SET_VRING_CALL)) == (0,)
            d.upgrade()
            e.more()
        del p.idle
        p.signals[0] = call
        nic.tell_state(vu.SET_VRING_ENABLE, 0, 0)
        assert pc.raised(call), "its signals do not go where they should"


class Halves:
    """A socket whose answers are not sent."""

    def __init__(self, sock, kept):
        self.sock, self.kept = sock, kept

    def recvmsg(self, *args):
        return self.sock.recvmsg(*args)

    def sendall(self, data):
        self.kept.append(data)
