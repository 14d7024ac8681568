# SPDX-License-Identifier: BSD-3-Clause
"""
The daemon is killed and started again by a service manager that kept its fds: ports of running device VMs go on, also where their links start
anew. Links that go on: test_crash_port.py.
"""
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import pytest

import portclient as pc
import vu
from conftest import Daemon
from portside import forward
from test_guard import listens

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "scripts" / "vm"))
from fdstore import Manager  # noqa: E402


# All of a link (link/keep.c). Without it the link starts anew.
BOXES = (".box0", ".box1")


class Service(Daemon):
    manager = None

    def spawn(self, log):
        return self.manager.spawn(self.command(), stderr=log, stdin=subprocess.DEVNULL)


@pytest.fixture
def service():
    tmp = pathlib.Path(tempfile.mkdtemp(prefix="vp"))
    d = Service(tmp)
    d.manager = Manager(str(tmp / "notify"), but_for=BOXES)
    yield d
    try:
        assert d.stop() == 0, d.log()
    finally:
        d.manager.close()
        shutil.rmtree(tmp, ignore_errors=True)


def link(d, mode, **keys):
    d.link("ab", Link_Mode=mode, Device_Endpoint="port", Device_Attachment="ivshmem", **keys)
    return d


def of_links(d):
    """What is kept, but for the word of the daemon's guard that it is done."""
    return [n for n in d.manager.names() if n != "keep..guard"]


def start_fast(d):
    """A fast link's daemon, and the QMP server of its device VM."""
    qmp = pc.Qmp(str(d.tmp / "qmp"))
    link(d, "fast", Device_QMP=str(d.tmp / "qmp"), Device_HotplugBus="rp0 rp1").start()
    return qmp


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_fast(service, how):
    d = service
    qmp = start_fast(d)
    with pc.Ivshmem(d.sock("ab", "device")) as p:
        p.vmm = qmp
        assert p.attach() == pc.OK
        runs, generations, waited = [0], [0], []
        for life in range(3):
            with vu.Nic(d.sock("ab", "driver")) as nic:
                s = p.wait(lambda s: s.up and s.queues[1].avail)
                assert s.generation > generations[-1], "the guest would take a new state for one that it knows"
                assert s.queues[1].run > runs[-1], "the guest would take a new run for one that it knows"
                runs.append(s.queues[1].run)
                generations.append(s.generation)
                nic.send_packet(vu.frame(life, 100))
                assert forward(p, 1)[0] == [vu.frame(life, 100)]
                assert pc.raised(nic.rings[1].call_fd)
                # An orderly end waits for the guest to let go of the driver VM's rings, see test_guard.py.
                ending = threading.Thread(target=getattr(d, how))
                ending.start()
                p.wait(lambda s: s.reason == pc.DAEMON)
                p.sync()
                ending.join()
                d.start()
                assert not p.state().attached
                assert d.show("ab")["sides"]["device"]["online"]
                # It has: the driver VM need not wait, as it would for three seconds.
                since = time.monotonic()
                d.wait(lambda: listens(d.sock("ab", "driver")))
                waited.append(time.monotonic() - since)
            # The next number: the old command is not executed twice.
            assert p.attach() == pc.OK
        assert min(waited) < 2, waited
    d.wait(lambda: not d.show("ab")["sides"]["device"]["online"])
    d.wait(lambda: "keep.ab.conn" not in d.manager.names())
    qmp.close()


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_guest_goes_on(service, how):
    """Where a ring stands says its used index, not a front-end that noted it when it lost the daemon: the guest went on."""
    d = service
    qmp = start_fast(d)
    with pc.Ivshmem(d.sock("ab", "device")) as p:
        p.vmm = qmp
        p.attach()
        with vu.Nic(d.sock("ab", "driver")) as nic:
            p.wait(lambda s: s.up and s.queues[1].avail)
            for n in range(4):
                nic.send_packet(vu.frame(n, 100))
            forward(p, 1)
            used = nic.rings[1].used + 2
            noted = nic.mem.r("H", used)
            for end in (d.kill, d.kill) if how == "kill" else (d.stop, d.stop):
                end()
                d.start()
                d.stays(lambda: not listens(d.sock("ab", "driver")), 0.3)  # nobody has asked the guest
            nic.mem.w("H", used, 4)
            p.attach()
            d.wait(lambda: listens(d.sock("ab", "driver")))
            with vu.Frontend(d.sock("ab", "driver")) as again:
                again.negotiate(nic.features)
                again.set_memory(nic.mem)
                for q in (0, 1):
                    again.start_ring(q, nic.rings[q], base=(0, noted)[q])
                s = p.wait(lambda s: s.up and s.queues[1].avail)
                assert (noted, s.queues[1].base, s.queues[0].base) == (1, 4, 0)
                again.mem = None    # the other one's
    qmp.close()


def test_guest_that_does_not_let_go(service):
    """The driver VM waits for it three seconds, not for ever."""
    d = service
    qmp = start_fast(d)
    with pc.Ivshmem(d.sock("ab", "device")) as p:
        p.vmm = qmp
        p.attach()
        with vu.Nic(d.sock("ab", "driver")):
            p.wait(lambda s: s.up)
            d.kill()
        d.start()
        d.wait(lambda: listens(d.sock("ab", "driver")))
    qmp.close()


def test_copy(service):
    """The pool is part of the device's memory and goes on with it."""
    d = link(service, "copy").start()
    with pc.Ivshmem(d.sock("ab", "device")) as p:
        for life in range(3):
            assert p.attach(pc.ALL & ~vu.bit(vu.PACKED)) == pc.OK  # the scripted device side knows split rings
            with vu.Nic(d.sock("ab", "driver")) as nic:
                p.wait(lambda s: s.up and s.queues[1].avail)
                nic.send_packet(vu.frame(life, 100))
                assert forward(p, 1)[0] == [vu.frame(life, 100)]
            d.wait(lambda: not p.state().up)
            d.kill()
            d.start()
            assert not p.state().attached


def test_device_vm_gone_meanwhile(service):
    d = link(service, "copy").start()
    with pc.Ivshmem(d.sock("ab", "device")) as p:
        p.attach()
        d.kill()
    d.start()
    d.wait(lambda: not d.show("ab")["sides"]["device"]["online"])
    with pc.Ivshmem(d.sock("ab", "device")) as p:
        assert p.attach() == pc.OK


def test_other_size(service):
    """The device VM's device has the memory it was made with: with another pool the port starts anew, and says so."""
    d = link(service, "copy").start()
    with pc.Ivshmem(d.sock("ab", "device")) as p:
        p.attach()
        d.kill()
        link(d, "copy", Device_PoolSize="64M")
        d.start()
        d.wait_log("another size")
    with pc.Ivshmem(d.sock("ab", "device")) as p:
        assert p.attach() == pc.OK


def test_link_gone(service):
    """Nothing stays in the store for a link that is removed, be it while the daemon is down."""
    d = link(service, "copy").start()
    d.wait(lambda: "keep.ab.mem" in d.manager.names())
    d.kill()
    (d.conf / "ab.link").unlink()
    d.start()
    d.wait(lambda: not of_links(d))
    link(d, "copy")
    d.call("daemon.reload")
    d.wait(lambda: "keep.ab.bell2" in d.manager.names())
    d.call("link.remove", name="ab")
    d.wait(lambda: not of_links(d))
