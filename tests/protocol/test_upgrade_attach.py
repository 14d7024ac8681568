# SPDX-License-Identifier: BSD-3-Clause
"""A new daemon takes over a port in a device VM: its VMM does not notice, whatever it is in the middle of."""
import contextlib
import json
import os
import select
import socket
import struct
import time

import conftest
import portclient as pc
import portlab
import pytest
import vu
from portflow import PATH, ends
from portside import eventfd_id
from test_restart import of_links, service  # noqa: F401 pylint: disable=unused-import


@pytest.mark.parametrize("attachment", ["ivshmem", "shmem"])
def test_changed_link(make_daemon, attachment):
    """A device that would have to be plugged anew is not ended silently; a link that goes, or has no device, is as by a reload."""
    d = make_daemon()
    x = portlab.PortLab(d, "copy", attachment)
    d.start()

    with vu.Nic(x.drv()) as nic, x.connect() as p:
        assert p.attach(PATH) == pc.OK
        portlab.started(p)
        with ends(nic, p) as e:
            text = (d.conf / "ab.link").read_text() + "[Net]\nPacketsPerSecond=1000000\n"
            d.write("ab.link", text)
            d.upgrade()
            assert d.show("ab")["packets_per_second"] == 1000000
            d.write("ab.link", text.replace("PoolSize=4M", "PoolSize=8M"))
            pid = d.proc.pid
            with pytest.raises(conftest.ControlError) as err:
                d.call("daemon.upgrade")
            assert "its device in VM b may have to be plugged anew" in err.value.message
            assert d.alive() and d.proc.pid == pid
            e.more()
    d.wait(lambda: not d.show("ab")["sides"]["device"]["online"])
    d.upgrade()
    with vu.Nic(x.drv()), x.connect() as p:
        assert p.attach(PATH) == pc.OK
        portlab.started(p)
        os.remove(d.conf / "ab.link")
        d.upgrade()
        assert not d.call("link.list")["links"]


# ---- ivshmem -------------------------------------------------------------------------------------


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
        lines = [x for x in d.log().splitlines() if "QMP" in x and "no answer for" not in x and "over after" not in x]
        assert len(lines) == 1, f"the connection was lost: {lines}"
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


def test_ivshmem_link_gone(service):
    """Of a link that the next daemon has no more nothing is kept: its device's connection ends."""
    d = service
    d.link("ab", Link_Mode="copy", Device_Endpoint="port", Device_Attachment="ivshmem")
    d.start()
    with pc.Ivshmem(d.sock("ab", "device")) as p:
        assert p.attach(PATH) == pc.OK
        d.wait(lambda: "keep.ab.conn" in d.manager.names())
        os.remove(d.conf / "ab.link")
        d.upgrade()
        d.wait(lambda: not of_links(d))
        p.sock.settimeout(conftest.PATIENCE)
        while p.sock.recv(4096):
            pass


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
