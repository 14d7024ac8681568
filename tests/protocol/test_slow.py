# SPDX-License-Identifier: BSD-3-Clause
"""Who keeps the daemon waiting for more than a second is named in the log: once, with what it was asked for and the way out."""
import contextlib
import json
import re
import socket
import threading

import blk
import portclient as pc
import pytest
import vu
from blk import pattern
from conftest import PATIENCE
from portlab import PortLab, started
from test_hostdev import dev, drv, link
from test_hostile_qmp import GREETING
from vubackend import Backend


def said(d, what, *ways):
    """The line is there, once."""
    d.wait_log(f"{what}: no answer for ")
    lines = [x for x in d.log().splitlines() if f"{what}: no answer for " in x]
    assert len(lines) == 1 and re.search(r"no answer for \d+\.\d s so far; ", lines[0])
    for way in ways:
        assert way in lines[0]


def over(d, what):
    """How long it took is said, once; and nothing more of its being slow."""
    d.wait_log(f"{what}: over after ")
    assert d.log().count(f"{what}: over after ") == d.log().count(f"{what}: no answer for ") == 1


class Monitor:
    """A QEMU whose greeting or whose answer to the command @late comes when release() is called."""

    def __init__(self, path, late):
        self.late, self.go, self.waits = late, threading.Event(), threading.Event()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        threading.Thread(target=self.run, daemon=True).start()

    def say(self, conn, o, what):
        if what == self.late:
            self.waits.set()
            self.go.wait(60)
        conn.sendall(json.dumps(o).encode() + b"\n")

    def run(self):
        with contextlib.suppress(OSError), self.listener.accept()[0] as conn, conn.makefile("rb") as f:
            self.say(conn, GREETING, "the greeting")
            for line in f:
                m = json.loads(line)
                self.say(conn, {"return": {}, "id": m["id"]}, m["execute"])

    def close(self):
        self.go.set()
        self.listener.close()


def monitor(make_daemon, late):
    d = make_daemon()
    path = str(d.tmp / "qmp")
    d.link("ab", Link_Mode="fast", Device_Endpoint="port", Device_Attachment="local", Driver_QMP=path, Driver_NIC="d0")
    return d, path, Monitor(path, late)


def test_qmp_command(make_daemon):
    d, path, m = monitor(make_daemon, "set_link")
    with contextlib.closing(m):
        d.start()
        what = f"QMP {path}: set_link"
        said(d, what, "its QEMU is stopped or busy")
        m.go.set()
        over(d, what)
        assert "qmp_capabilities" not in d.log()


def test_qmp_greeting(make_daemon):
    """A monitor that another program has: the kernel takes the connection, and QEMU does not."""
    d, path, m = monitor(make_daemon, "the greeting")
    with contextlib.closing(m):
        d.start()
        what = f"QMP {path}: the greeting"
        said(d, what, "QMP serves one client at a time, give the daemon a -qmp of its own")
        m.go.set()
        over(d, what)


def test_qmp_command_of_the_daemon_before(make_daemon):
    """The next daemon waits for the answer, and says so."""
    d = make_daemon()
    path = str(d.tmp / "qmp")
    d.link("ab", Link_Mode="copy", Device_Endpoint="port", Device_Attachment="ivshmem", Device_QMP=path, Device_HotplugBus="rp0")
    with contextlib.closing(Monitor(path, "qom-list")) as m:
        d.start()
        assert m.waits.wait(PATIENCE)
        d.upgrade()
        what = f"QMP {path}: what the daemon before this one asked for"
        said(d, what, "its QEMU is stopped or busy")
        m.go.set()
        over(d, what)


@pytest.mark.parametrize("upgraded", [False, True], ids=["one", "upgraded"])
def test_window(make_daemon, upgraded):
    """Of the device VM's VMM: the control block, and a window that comes and one that goes. The next daemon waits on."""
    d = make_daemon()
    lab = PortLab(d, "fast", "shmem")
    d.start()
    with pc.Shmem(lab.dev(), start=False) as p:
        serve, late = p.serve, {(9, 0): "SHMEM_MAP of the control block", (9, 1): "SHMEM_MAP of window 0", (10, 1): "SHMEM_UNMAP of window 0"}

        def slowly():
            data = p.back.recv(52, socket.MSG_PEEK)
            what = late.pop((data[0], data[12]), None)
            if what and upgraded and "window" in what:
                d.upgrade()
            if what:
                said(d, what, "the device VM's VMM is stopped or busy")
            serve()
            if what:
                over(d, what)

        p.serve = slowly
        p.start()
        assert p.attach() == pc.OK
        with vu.Nic(lab.drv()):
            started(p)
            assert len(late) == 1
        while late:
            p.idle()
            p.sync()


def test_guest_that_does_not_stop(make_daemon):
    """The link is taken down: the guest has five seconds."""
    d = make_daemon()
    lab = PortLab(d, "copy", "local")
    d.start()
    with lab.port() as p, vu.Nic(lab.drv()):
        started(p)
        d.call("link.down", name="ab")
        for q in (0, 1):
            said(d, f"the stop of queue {q}", "its guest is stopped or busy")
        assert "cut off:" not in d.log()
        p.let_go()
        for q in (0, 1):
            over(d, f"the stop of queue {q}")


def test_requests_under_way(make_daemon):
    """The driver VM's VMM waits for a disk that is slow."""
    d = make_daemon()
    lab = PortLab(d, "copy", "local", Link_Type="blk")
    d.start()
    with lab.connect() as p:
        disk = blk.Disk(p).attach()
        with blk.Driver(lab.drv()) as f:
            disk.up()
            f.request(blk.OUT, 0, pattern(512))
            got = disk.take()
            stop = threading.Thread(target=f.stop_ring, args=(0,))
            stop.start()
            said(d, "the stop of queue 0", "requests are under way in the device VM")
            disk.answer(got)
            p.wait(lambda s: s.queues[0].flags & pc.STOP)
            over(d, "the stop of queue 0")
            p.let_go()
            stop.join()


def test_backend(make_daemon):
    """On the host, and it does not answer: it is named before it is dropped."""
    d = make_daemon()
    d.run.mkdir()
    link(d)
    d.start()
    with Backend(dev(d)) as b, blk.Driver(drv(d)) as f:
        f.write(0, pattern(512))
        b.mute = (vu.GET_FEATURES,)
        b.sock.shutdown(socket.SHUT_RDWR)
        d.wait(lambda: re.search(r"GET_FEATURES to the back-end \(pid \d+\): no answer for \d+\.\d s so far; the back-end is stopped or busy", d.log()))
        b.mute = ()
        d.wait_log("it did not answer GET_FEATURES within 3000 ms")
        assert d.log().count("GET_FEATURES to the back-end") == 2
        assert f.read(0, 512) == pattern(512)
