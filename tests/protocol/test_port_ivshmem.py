# SPDX-License-Identifier: BSD-3-Clause
"""The ivshmem attachment against a scripted device and a scripted QMP server."""
import os
import socket
import struct
import subprocess
import time

import pytest

import portclient as pc
import vu
from portside import SIGNALS, count, forward, same, settled


class Lab:
    def __init__(self, d, **keys):
        self.d = d
        self.path = str(d.tmp / "qmp")
        d.link("ab", Device_Endpoint="port", Device_Attachment="ivshmem", **keys)

    def start(self):
        self.d.start()
        return self

    def drv(self):
        return self.d.sock("ab", "driver")

    def dev(self):
        return self.d.sock("ab", "device")

    def device(self):
        return self.d.show("ab")["sides"]["device"]

    def error(self):
        return next((w["error"] for w in self.device()["windows"] if w["error"]), None)


@pytest.fixture
def lab(make_daemon):
    d = make_daemon()
    path = str(d.tmp / "qmp")
    one = Lab(d, Device_QMP=path, Device_HotplugBus="rp0 rp1")
    one.qmp = pc.Qmp(path)
    yield one.start()
    one.qmp.close()


def test_packets(lab):
    with vu.Nic(lab.drv()) as nic, pc.Ivshmem(lab.dev()) as p:
        p.vmm = lab.qmp
        assert p.attach() == pc.OK
        s = p.wait(lambda s: s.up)
        for i in range(3):
            nic.send_packet(vu.frame(i, 100))
        assert forward(p, 3)[0] == [vu.frame(i, 100) for i in range(3)]
        assert pc.raised(nic.rings[1].call_fd)
        assert len(lab.qmp.devices) == 1
        assert p.command(pc.DETACH) == pc.OK
        lab.d.wait(lambda: not lab.qmp.devices and not lab.qmp.chardevs and not lab.qmp.fds)


def test_drivers_come_and_go(lab):
    with pc.Ivshmem(lab.dev()) as p:
        p.vmm = lab.qmp
        p.attach()
        for i in range(6):
            with vu.Nic(lab.drv()) as nic:
                p.wait(lambda s: s.up)
                nic.send_packet(vu.frame(i, 64))
                assert forward(p)[0] == [vu.frame(i, 64)]
            p.wait(lambda s: not s.up)
            p.sync()
        lab.d.wait(lambda: not lab.qmp.devices)
        n = lab.d.fds()
        for i in range(3):
            with vu.Nic(lab.drv()):
                p.wait(lambda s: s.up)
            p.wait(lambda s: not s.up)
            p.sync()
        lab.d.wait(lambda: not lab.qmp.devices and lab.d.fds() <= n)


def test_no_qmp(make_daemon):
    lab = Lab(make_daemon()).start()
    with vu.Nic(lab.drv()) as nic, pc.Ivshmem(lab.dev()) as p:
        p.attach()
        p.wait(lambda s: s.reason == pc.WINDOW)
        lab.d.wait(lab.error)
        assert "QMP=" in lab.error() and "HotplugBus=" in lab.error()
        assert nic.alive()


def test_size_that_is_no_power_of_two(lab):
    with vu.Nic(lab.drv(), mem=vu.Memory(12 << 20)), pc.Ivshmem(lab.dev()) as p:
        p.attach()
        p.wait(lambda s: s.reason == pc.WINDOW)
        lab.d.wait(lab.error)
        assert "power of two" in lab.error() and "shmem" in lab.error()
        assert "device_add" not in lab.qmp.log


def test_no_free_root_port(lab):
    lab.qmp.buses.clear()
    with vu.Nic(lab.drv()), pc.Ivshmem(lab.dev()) as p:
        p.vmm = lab.qmp
        p.attach()
        p.wait(lambda s: s.reason == pc.WINDOW)
        lab.d.wait(lambda: lab.error())
        assert "rp" in lab.error()
        lab.qmp.buses.append("rp1")
        assert p.wait(lambda s: s.up)
        assert not [c for c in lab.qmp.chardevs if c not in ["c" + d for d in lab.qmp.devices]]


def test_bar_without_address(lab):
    lab.qmp.bar = False
    with vu.Nic(lab.drv()), pc.Ivshmem(lab.dev()) as p:
        p.vmm = lab.qmp
        p.attach()
        p.wait(lambda s: any(q.flags & pc.STOP for q in s.queues))
        p.let_go()
        lab.d.wait(lambda: lab.error())
        assert "pref64-reserve" in lab.error()
        assert p.state().reason == pc.WINDOW
        lab.qmp.bar = True
        p.wait(lambda s: s.up and not lab.error())


def test_guest_that_never_releases(lab):
    """The old window stays plugged; the next driver VM gets another port, DETACH is answered in time."""
    with pc.Ivshmem(lab.dev()) as p:
        p.vmm = lab.qmp
        p.attach()
        lab.qmp.release = False
        with vu.Nic(lab.drv()):
            p.wait(lambda s: s.up)
        p.wait(lambda s: not s.up)
        p.sync()
        with vu.Nic(lab.drv()):
            p.wait(lambda s: s.up)
            assert sorted(d["bus"] for d in lab.qmp.devices.values()) == ["rp0", "rp1"]
            t = time.monotonic()
            assert p.command(pc.DETACH) == pc.OK
            assert 0.2 < time.monotonic() - t < pc.limit(3)


def test_reset_ends_the_runs(lab):
    with vu.Nic(lab.drv()) as nic, pc.Ivshmem(lab.dev()) as p:
        p.vmm = lab.qmp
        p.attach()
        p.wait(lambda s: s.up)
        lab.qmp.event("RESET", guest=True, reason="guest-reset")
        p.wait(lambda s: not s.attached)
        nic.send_packet(vu.frame(0, 64))
        lab.d.wait(lambda: nic.rings[1].mem.r("H", nic.rings[1].used + 2) == 1)
        assert p.attach() == pc.OK
        p.wait(lambda s: s.up)


def left_behind(lab):
    """Names of the windows of a daemon that was killed."""
    with vu.Nic(lab.drv()), pc.Ivshmem(lab.dev()) as p:
        p.vmm = lab.qmp
        p.attach()
        p.wait(lambda s: s.up)
        old = list(lab.qmp.devices)
        lab.d.kill()
    lab.d.log_path.unlink()
    return old


def test_left_behind_by_an_earlier_daemon(lab):
    old = left_behind(lab)
    lab.qmp.devices["vhp-ab-other-8001"] = {"bus": "x", "pos": 1, "fd": -1, "size": 0, "leaving": False}
    lab.d.start()
    lab.d.wait(lambda: not set(old) & set(lab.qmp.devices))
    assert "vhp-ab-other-8001" in lab.qmp.devices, "another link's window was removed"


def test_left_behind_and_not_released(lab):
    """As long as it may be in any root port, nothing is plugged: QEMU takes a second device into one, and no guest finds that."""
    lab.qmp.release = False
    old = left_behind(lab)
    lab.d.start()
    with vu.Nic(lab.drv()), pc.Ivshmem(lab.dev()) as p:
        p.vmm = lab.qmp
        p.attach()
        lab.d.wait(lambda: any("earlier daemon" in (w["error"] or "") for w in lab.device()["windows"]))
        assert lab.qmp.log.count("device_add") == 1 and lab.qmp.devices[old[0]]["leaving"]
        lab.qmp.release = True
        # Asked for every few seconds; as soon as it has gone the window is plugged.
        lab.d.wait(lambda: old[0] not in lab.qmp.devices)
        p.wait(lambda s: s.up)


def test_device_gone_and_back(lab):
    """Each device has vectors of its own: QEMU may still watch those of one that was unplugged, and does not survive their being raised."""
    old = []
    with vu.Nic(lab.drv()) as nic:
        for i in range(3):
            with pc.Ivshmem(lab.dev()) as p:
                p.vmm = lab.qmp
                p.attach()
                p.wait(lambda s: s.up)
                nic.send_packet(vu.frame(i, 64))
                assert forward(p)[0] == [vu.frame(i, 64)]
                assert not any(same(a, b) for a in old for b in p.signals)
                assert not any(pc.raised(fd, 0) for fd in old)
            lab.d.wait(lambda: not lab.device()["online"] and not lab.qmp.devices)
            time.sleep(0.1)  # whatever still comes
            for fd in p.signals:
                pc.raised(fd, 0)
            old += p.signals


def test_direct_calls(lab):
    """The driver VM's call eventfds become doorbells; kicks are forwarded with two system calls at most."""
    with vu.Nic(lab.drv()) as nic, pc.Ivshmem(lab.dev()) as p:
        p.vmm = lab.qmp
        p.attach()
        has = set(p.doorbells)

        def direct(s):
            """What the device had read before the guest read the page."""
            assert all(q.doorbell >> 16 == 1 or q.doorbell in has for q in s.queues), "a doorbell is shown before the device has it"
            has.update(p.doorbells)
            return s.up and all(q.doorbell >> 16 >= 16 for q in s.queues)

        s = p.wait(direct)
        settled(lab.d, 0, 2)
        for i, q in enumerate(s.queues):
            assert same(p.doorbells[q.doorbell], nic.rings[i].call_fd)
        nic.send_packet(vu.frame(1, 64))
        assert forward(p)[0] == [vu.frame(1, 64)]
        assert pc.raised(nic.rings[1].call_fd)
        while pc.raised(nic.rings[0].call_fd, 0.7):  # from the beginning
            pass

        def call():
            p.doorbell(s.queues[0].doorbell)
            assert pc.raised(nic.rings[0].call_fd)

        assert len(count(lab.d, call)) < 20
        while pc.raised(p.signals[2], 0):
            pass

        def kick():
            nic.kick(1)
            assert pc.raised(p.signals[2])

        calls = count(lab.d, kick, "vp-signal")
        assert SIGNALS <= len(calls) <= 2 * SIGNALS + 8, "".join(calls[:20])


def test_next_device_is_served_at_once(lab):
    """Its predecessor has gone, and had sent what nobody has read."""
    p = pc.Ivshmem(lab.dev())
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(pc.limit(5))
        with lab.d.stopped():
            s.connect(lab.dev())
            p.sock.send(b"x")
            p.close()
        assert s.recv(8) == bytes(8), "refused"


def test_device_that_does_not_read(lab):
    """Its doorbells stay ours, and calls arrive."""
    with vu.Nic(lab.drv()) as nic, pc.Ivshmem(lab.dev()) as p:
        p.vmm = lab.qmp
        p.drain = lambda: None
        p.attach()
        s = p.wait(lambda s: s.up)
        lab.d.stays(lambda: all(q.doorbell >> 16 == 1 for q in p.state().queues), 0.5)
        s = p.state()
        p.doorbell(s.queues[0].doorbell)
        assert pc.raised(nic.rings[0].call_fd)
        del p.drain
        p.wait(lambda s: all(q.doorbell >> 16 >= 16 for q in s.queues))
        p.doorbell(0x10001)  # the guest has not looked at the page yet
        assert pc.raised(nic.rings[0].call_fd)


def test_call_fds_that_come_back_have_their_doorbell(lab):
    """A VMM masks an interrupt by another eventfd, any number of times: two doorbells are enough."""
    with vu.Nic(lab.drv()) as nic, pc.Ivshmem(lab.dev()) as p:
        p.vmm = lab.qmp
        p.attach()
        p.wait(lambda s: all(q.doorbell >> 16 >= 16 for q in s.queues))
        fds = [vu.eventfd(), nic.rings[0].call_fd]
        seen = set()
        for i in range(20):
            fd = fds[i % 2]
            nic.tell(vu.SET_VRING_CALL, struct.pack("<Q", 0), [fd])
            lab.d.wait(lambda: p.drain() or (p.state().queues[0].doorbell >> 16 >= 16 and
                                             same(p.doorbells[p.state().queues[0].doorbell], fd)))
            seen.add(p.state().queues[0].doorbell)
        assert len(seen) == 2
        assert lab.device()["doorbells_used"] == 3


def test_doorbells_are_used_up(lab):
    """Then calls are forwarded. A new device begins with none."""
    with vu.Nic(lab.drv()) as nic, pc.Ivshmem(lab.dev()) as p:
        p.vmm = lab.qmp
        p.attach()
        p.wait(lambda s: all(q.doorbell >> 16 >= 16 for q in s.queues))
        for i in range(700):
            fd = vu.eventfd()
            nic.tell(vu.SET_VRING_CALL, struct.pack("<Q", 0), [fd])
            p.drain()
            if i < 690:
                os.close(fd)
        s = p.wait(lambda s: s.queues[0].doorbell >> 16 == 1)
        assert lab.device()["doorbells_used"] < 600
        assert "forwarded until the device is plugged anew" in lab.d.log()
        while pc.raised(fd, 0.7):
            pass
        p.doorbell(s.queues[0].doorbell)
        assert pc.raised(fd)
    lab.d.wait(lambda: not lab.device()["online"])
    with vu.Nic(lab.drv()) as nic, pc.Ivshmem(lab.dev()) as p:
        p.vmm = lab.qmp
        p.attach()
        p.wait(lambda s: all(q.doorbell >> 16 >= 16 for q in s.queues))
        assert lab.device()["doorbells_used"] == 2


def test_window_ids_go_round_those_in_use(lab):
    """An id is not given while any device of that VM may have it: of another link, or of a daemon before this one."""
    mine = lambda: [d for d in lab.qmp.devices if d.startswith("vhp-ab-")]

    def window(p):
        with vu.Nic(lab.drv()):
            s = p.wait(lambda s: s.up)
            name, = mine()
            pos = lab.qmp.devices[name]["pos"]
            assert s.windows[s.regions[0][3]][1] == pos and name == f"vhp-ab-{pos:04x}"
        p.wait(lambda s: not s.up)
        p.sync()
        lab.d.wait(lambda: not mine())
        return pos

    with pc.Ivshmem(lab.dev()) as p:
        p.vmm = lab.qmp
        p.attach()
        first = window(p)
        behind = lambda n: 0x8000 + (first + n) % 0x8000
        # As many as a list may hold: the unit test goes round once (test_winid.c).
        for i in set(range(1, 2000)) - {3}:
            lab.qmp.devices[f"vhp-other-{behind(i):04x}"] = {"bus": "x", "pos": i, "fd": -1, "size": 0, "leaving": False}
        lists = lab.qmp.log.count("qom-list")
        lab.qmp.conn.shutdown(2)  # it looks at what there is when it connects
        lab.d.wait(lambda: lab.qmp.log.count("qom-list") > lists)
        lab.d.wait(lambda: lab.device()["qmp"] == "connected")
        assert [window(p) for _ in range(3)] == [behind(3), behind(2000), behind(2001)]


def test_occupied_root_port(lab):
    """What is behind it already is named, not the size of the memory."""
    lab.qmp.occupied["rp0"] = "qemu-xhci,id=usb"
    with vu.Nic(lab.drv()), pc.Ivshmem(lab.dev()) as p:
        assert p.attach() == pc.OK
        lab.d.wait(lambda: "root port rp0 is occupied (in use by qemu-xhci,id=usb)" in (lab.error() or ""))
        assert "HotplugBus= names ports that nobody else uses" in lab.error()


def test_qmp_socket_of_the_daemon(make_daemon):
    """QMPMode=server: the VMM connects, as often as it starts; a second one waits, a stranger is sent away, the file goes with the link."""
    d = make_daemon()
    one = Lab(d, Device_QMP="b.qmp", Device_QMPMode="server", Device_HotplugBus="rp0 rp1").start()
    path = str(d.run / "b.qmp")
    assert one.device()["qmp"] == "not connected yet"
    for _ in range(2):
        qmp = pc.Qmp(path, connects=True)
        d.wait(lambda: one.device()["qmp"] == "connected")
        with socket.socket(socket.AF_UNIX) as second:
            second.connect(path)
            second.settimeout(60)
            assert second.recv(1) == b"", "two VMMs at once"
        with vu.Nic(one.drv()) as nic, pc.Ivshmem(one.dev()) as p:
            p.vmm = qmp
            assert p.attach() == pc.OK
            p.wait(lambda s: s.up)
            nic.send_packet(vu.frame(1, 100))
            assert forward(p, 1)[0] == [vu.frame(1, 100)]
            assert p.command(pc.DETACH) == pc.OK
            d.wait(lambda: not qmp.devices)
        qmp.close()
        d.wait(lambda: one.device()["qmp"].startswith("closed"))
    os.remove(d.conf / "ab.link")
    d.call("daemon.reload")
    assert not os.path.exists(path)


@pytest.mark.parametrize("keys, word", [
    (dict(Device_QMPMode="server"), "QMPMode=server makes the socket of QMP=, which is not set"),
    (dict(Device_QMP="b.qmp", Device_HotplugBus="w0"), "QMP=b.qmp is not an absolute path"),
    (dict(Device_QMP="ab.driver.sock", Device_QMPMode="server", Device_HotplugBus="w0"), "already belongs to the driver side of link ab; set another QMP="),
    (dict(Device_QMP="control.sock", Device_QMPMode="server", Device_HotplugBus="w0"), "control socket; set another QMP="),
    (dict(Device_QMP="x.qmp", Device_QMPMode="server", Device_HotplugBus="w0", Driver_QMP="x.qmp", Driver_QMPMode="server", Driver_NIC="n"),
     "x.qmp already belongs to the driver side of link ab")])
def test_qmp_keys(make_daemon, keys, word):
    d = make_daemon()
    d.link("ab", Device_Endpoint="port", Device_Attachment="ivshmem", **keys)
    r = subprocess.run(d.command("--check-config"), capture_output=True, text=True)
    assert r.returncode and word in r.stderr, r.stderr
