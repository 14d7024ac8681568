# SPDX-License-Identifier: BSD-3-Clause
"""
Sockets that linger. Whoever lets go of the last descriptor of a TCP socket with SO_LINGER waits for as long as it says: by close(), by closing a
UNIX socket that has it in its queue, and by receiving a message without room for it. It is never one of the daemon's threads that are needed.
"""
import contextlib
import os
import socket
import struct
import time

import pytest

import portclient as pc
import vu

LINGER = 120  # seconds
LIMIT = 60


class Lingering:
    """Sockets whose other end does not read."""
    def __init__(self):
        self.ends = []

    def make(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            s = socket.create_connection(server.getsockname())
            self.ends.append(server.accept()[0])
        s.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                s.send(bytes(1 << 16))
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER))
        return s

    def inside(self):
        """A UNIX socket with such a one in its queue."""
        a, b = socket.socketpair()
        with self.make() as s:
            socket.send_fds(b, [b"x"], [s.fileno()])
        self.ends.append(b)
        return a


@pytest.fixture
def lingering():
    one = Lingering()
    yield one
    for s in one.ends:
        with contextlib.suppress(OSError):
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.close()


def promptly(d):
    t = time.monotonic()
    for _ in range(5):
        d.call("daemon.version")
        time.sleep(0.05)
    with vu.Nic(d.sock("cd", "driver")) as a, vu.Nic(d.sock("cd", "device")) as b:
        a.send_packet(vu.frame(1))
        assert b.recv_packet()[1] == vu.frame(1)
    assert time.monotonic() - t < LIMIT


def send(sock, data, *socks):
    socket.send_fds(sock, [data], [s.fileno() for s in socks])
    for s in set(socks):
        s.close()


def connect(path):
    s = socket.socket(socket.AF_UNIX)
    s.connect(path)
    return s


def message(request, payload=b""):
    return struct.pack("<III", request, 1, len(payload)) + payload


# Of a front-end: what it sends, and which sockets with it.
FRONTEND = {
    "kick": lambda l: (message(vu.SET_VRING_KICK, struct.pack("<Q", 0)), [l.make()]),
    "call": lambda l: (message(vu.SET_VRING_CALL, struct.pack("<Q", 0)), [l.make()]),
    "UNIX socket": lambda l: (message(vu.SET_VRING_KICK, struct.pack("<Q", 0)), [l.inside()]),
    "request channel": lambda l: (message(vu.SET_BACKEND_REQ_FD), [l.inside()]),
    "TCP request channel": lambda l: (message(vu.SET_BACKEND_REQ_FD), [l.make()]),
    "surplus": lambda l: (message(vu.SET_OWNER), [l.make()]),
    # The one that matters is the last.
    "very many": lambda l: (message(vu.SET_OWNER), [*[l.ends[0]] * 252, l.make()]),
    "behind nonsense": lambda l: (b"\xff" * 12, [l.make()]),
}

KINDS = {
    "relay": {},
    "fast": {"Device_Endpoint": "port", "Device_Attachment": "local"},
    "copy": {"Device_Endpoint": "port", "Device_Attachment": "local", "Link_Mode": "copy"},
    "shmem": {"Device_Endpoint": "port", "Device_Attachment": "shmem"},
}


@pytest.mark.parametrize("trick", FRONTEND)
@pytest.mark.parametrize("kind", KINDS)
def test_front_end(make_daemon, lingering, kind, trick):
    d = make_daemon()
    d.link("ab", **KINDS[kind])
    d.link("cd", driver="c", device="d")
    d.start()
    before = d.fds()
    lingering.ends.append(socket.socket())  # one of many
    data, socks = FRONTEND[trick](lingering)
    with vu.Frontend(d.sock("ab", "device" if kind == "shmem" else "driver")) as f:
        f.negotiate(vu.BASIC, vu.bit(vu.PF_REPLY_ACK, vu.PF_BACKEND_REQ))
        with d.stopped():
            socket.send_fds(f.sock, [data], [s.fileno() for s in socks])
            socks[-1].close()
            if trick == "behind nonsense":
                send(f.sock, b"x", lingering.make())
        promptly(d)
    promptly(d)
    # Those who wait are interrupted after a moment.
    d.wait_fds(before)


@pytest.mark.parametrize("kind", ["relay", "local", "ivshmem"])
def test_nobody_is_waiting_for_it(make_daemon, lingering, kind):
    """Connections that are refused, or wait for another to end, with something in their queue."""
    d = make_daemon()
    d.link("ab", **({"Device_Endpoint": "port", "Device_Attachment": kind} if kind != "relay" else {}))
    d.link("cd", driver="c", device="d")
    d.start()
    path = d.sock("ab", "device")
    first = connect(path)
    d.wait(lambda: d.show("ab")["sides"]["device"]["connections" if kind != "relay" else "sessions"])
    with d.stopped():
        more = [connect(path) for _ in range(3)]
        for s in more:
            send(s, b"x", lingering.make())
    promptly(d)
    if kind == "relay":
        d.wait(lambda: d.show("ab")["sides"]["device"]["refused"] >= 3)
        promptly(d)
    for s in [first, *more]:
        s.close()


@pytest.mark.parametrize("attachment", ["local", "ivshmem"])
def test_device(make_daemon, lingering, attachment):
    """Nothing is expected from it but that it goes."""
    d = make_daemon()
    d.link("ab", Device_Endpoint="port", Device_Attachment=attachment)
    d.link("cd", driver="c", device="d")
    d.start()
    with {"local": pc.Local, "ivshmem": pc.Ivshmem}[attachment](d.sock("ab", "device")) as p:
        with d.stopped():
            send(p.sock, b"x", lingering.make())
        promptly(d)
        assert "file descriptors" in d.show("ab")["sides"]["device"]["last"]


def test_qmp(make_daemon, lingering):
    d = make_daemon()
    path = str(d.tmp / "qmp")
    d.link("ab", Device_Endpoint="port", Device_Attachment="ivshmem", Device_QMP=path, Device_HotplugBus="rp0")
    d.link("cd", driver="c", device="d")
    qmp = pc.Qmp(path)
    try:
        d.start()
        d.wait(lambda: d.show("ab")["sides"]["device"]["qmp"] == "connected")
        with d.stopped():
            send(qmp.conn, b"{", lingering.make())
        promptly(d)
        d.wait_log("it sends file descriptors")
    finally:
        qmp.close()


def test_window_device(make_daemon, lingering):
    """The daemon's end of a window's chardev is never read; it goes with the device."""
    d = make_daemon()
    path = str(d.tmp / "qmp")
    d.link("ab", Device_Endpoint="port", Device_Attachment="ivshmem", Device_QMP=path, Device_HotplugBus="rp0")
    d.link("cd", driver="c", device="d")
    qmp = pc.Qmp(path)
    try:
        d.start()
        with vu.Nic(d.sock("ab", "driver")), pc.Ivshmem(d.sock("ab", "device")) as p:
            p.vmm = qmp
            p.attach()
            p.wait(lambda s: s.up)
            with socket.socket(fileno=os.dup(next(iter(qmp.chardevs.values())))) as s, lingering.make() as l:
                socket.send_fds(s, [b"x"], [l.fileno()])
                with d.stopped():
                    l.close()
        d.wait(lambda: not qmp.devices)
        promptly(d)
    finally:
        qmp.close()


@pytest.mark.parametrize("how", ["request", "nonsense", "closed"])
def test_control_client(daemon, lingering, how):
    s = connect(str(daemon.run / "control.sock"))
    with daemon.stopped():
        if how == "nonsense":
            s.send(b"x" * 66000)
        send(s, b"{\n", lingering.make())
        if how == "closed":
            s.close()
    promptly(daemon)
    s.close()


def test_not_the_fault_of_a_vm(daemon, lingering):
    """What others bring does not count against the VM that was served last."""
    with vu.Nic(daemon.sock("ab", "driver")) as nic:
        assert nic.alive()
        with daemon.stopped():
            clients = [connect(str(daemon.run / "control.sock")) for _ in range(20)]
            for s in clients:
                send(s, b"x", lingering.make())
        for s in clients:
            assert s.recv(1) == b""
        for _ in range(20):
            assert nic.alive()
            time.sleep(0.02)
