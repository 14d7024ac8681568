# SPDX-License-Identifier: BSD-3-Clause
"""Who is held off for an eventfd that blocks: nobody who shares it with somebody else."""
import os
import struct
import time

import pytest

import portclient as pc
import vu
from portlab import PortLab, started
from test_bugclass_rings import blocks


@pytest.fixture(params=["local", "ivshmem"])
def lab(make_daemon, request):
    """Driver VM a: a fast link whose device side gets its call eventfds, and a relay link."""
    d = make_daemon()
    one = PortLab(d, "fast", request.param)
    d.link("ac", device="c", Device_Endpoint="virtio-net")
    d.link("ad", device="d", Device_Endpoint="port", Device_Attachment="local", Link_Mode="fast")
    d.start()
    yield one
    one.close()


def goes_round(x, y, n):
    for k in range(n):
        x.send_packet(vu.frame(k))
        x.reclaim()
        assert y.recv_packet()[1] == vu.frame(k)


def spoil(lab, p, nic):
    """The device side makes the driver VM's call eventfd block, and has the daemon write to it."""
    theirs = p.doorbells[p.state().queues[0].doorbell] if lab.attachment == "ivshmem" else p.doorbells[1]
    assert os.fstat(theirs)
    blocks(theirs)
    pc.one(lab.bell)
    time.sleep(1.3)  # for a second it is waited for; that is over, or still goes on
    os.read(theirs, 8)
    os.set_blocking(theirs, False)


def test_device_side_that_spoils_a_call_fd(lab):
    """It costs the link that it is on, time and again. The driver VM's other links go on, with it or with others."""
    with vu.Nic(lab.d.sock("ac", "driver")) as x, vu.Nic(lab.d.sock("ac", "device")) as y, vu.Nic(lab.drv()) as nic, \
            vu.Nic(lab.d.sock("ad", "driver")) as nic2, pc.Local(lab.d.sock("ad", "device")) as p2:
        goes_round(x, y, 3)
        goes_round(y, x, 3)
        assert p2.attach() == pc.OK
        started(p2)
        for lap in range(4):
            with lab.connect() as p:
                # The daemon's own doorbell, which it passes on to the driver VM.
                lab.bell = p.doorbells[0x10001] if lab.attachment == "ivshmem" else os.dup(p.doorbells[1])
                assert p.attach() == pc.OK
                started(p)
                if lab.attachment == "ivshmem":
                    p.wait(lambda s: s.queues[0].doorbell >> 16 >= 16)
                else:
                    lab.d.wait(lambda: p.drain() or lab.d.show("ab")["sides"]["device"]["calls_direct"] == 2)
                spoil(lab, p, nic)
                # With what the two have in common they are held off by now; no other link of the driver VM's notices.
                goes_round(x, y, 3)
                goes_round(y, x, 3)
                assert all(q["state"] == "running" for q in lab.d.show("ac")["sides"]["driver"]["queues"]), lap
                pc.one(p2.doorbells[1])
                assert pc.raised(nic2.rings[0].call_fd)
                if lab.attachment == "local":
                    os.close(lab.bell)
            lab.d.wait(lambda: not lab.d.show("ab")["sides"]["device"]["online"])
            p2.sync()
        assert lab.d.show("ac")["status"] == "up"


def test_driver_that_spoils_its_own_call_fd(lab):
    """What only it has counts against it on all of its links, as ever."""
    with vu.Nic(lab.d.sock("ac", "driver")) as x, vu.Nic(lab.d.sock("ac", "device")) as y:
        for lap in range(3):
            call = x.rings[0].call_fd
            blocks(call)
            y.send_packet(vu.frame(lap))
            lab.d.wait(lambda: lab.d.show("ac")["sides"]["driver"]["queues"][0]["state"] == "broken")
            os.read(call, 8)
            os.set_blocking(call, False)
            x.stop_ring(0)
            x.rings[0].reset()
            x.start_ring(0, x.rings[0])
            x.fill_rx(64)
        # Held off: a queue that is well breaks at the first call.
        y.send_packet(vu.frame(9))
        lab.d.wait(lambda: lab.d.show("ac")["sides"]["driver"]["queues"][0]["state"] == "broken")
