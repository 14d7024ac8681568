# SPDX-License-Identifier: BSD-3-Clause
"""What the driver VM is told of the link's state: by its device's STATUS, or by its VMM's QMP."""
import os
import socket
import struct
import subprocess

import pytest

import portclient as pc
import vu
from portside import answer_stop
from test_port import dev, drv, fast  # noqa: F401 (a fixture)


def test_carrier_follows_the_device_side(fast):
    """The driver VM's STATUS bit, for front-ends that take the config space from us."""
    pf = vu.bit(vu.PF_REPLY_ACK, vu.PF_BACKEND_REQ, vu.PF_CONFIG)
    back, other = socket.socketpair()
    back.settimeout(30)

    def status(nic):
        raw = nic.ask(vu.GET_CONFIG, struct.pack("<III", 0, 12, 0) + bytes(12))
        return struct.unpack_from("<H", raw, 12 + 6)[0]

    def changed():
        request, flags, size = struct.unpack("<III", back.recv(12))
        assert request == 2 and not size  # CONFIG_CHANGE
        if flags & 8:
            back.sendall(struct.pack("<IIIQ", 2, 1 | 4, 8, 0))

    with vu.Frontend(drv(fast)) as nic:
        nic.negotiate(vu.BASIC | vu.bit(16), pf)  # STATUS
        assert nic.protocol == pf
        nic.tell(vu.SET_BACKEND_REQ_FD, b"", [other.fileno()])
        nic.set_memory(vu.Memory())
        for q in range(2):
            nic.start_ring(q, vu.SplitRing(nic.mem, 64))
        assert status(nic) == 0, "the device VM is not there"
        for _ in range(2):
            with pc.Local(dev(fast)) as p:
                p.attach()
                p.wait(lambda s: s.up)
                changed()
                assert status(nic) == 1
                fast.call("link.down", name="ab")
                for q in range(2):
                    answer_stop(p, q, 0)
                changed()
                assert status(nic) == 0
                fast.call("link.up", name="ab")
                changed()
                assert status(nic) == 1
            changed()  # the process has left
            assert status(nic) == 0
    back.close()
    other.close()


def test_carrier_by_qmp(make_daemon):
    """A VMM that keeps the link state to itself is told by QMP, whether or not the driver's queues run."""
    d = make_daemon()
    path = str(d.tmp / "qmp")
    d.link("ab", Device_Endpoint="port", Device_Attachment="local", Link_Mode="fast", Driver_QMP=path, Driver_NIC="d0")
    d.start()
    qmp = pc.Qmp(path)
    told = qmp.carrier["d0"]
    carrier = lambda: d.show("ab")["sides"]["driver"]["carrier"]
    d.wait(lambda: told == [False])
    assert carrier() == {"up": False, "qmp": "connected", "error": None}
    with pc.Local(dev(d)) as p:
        p.attach()
        d.wait(lambda: told == [False, True])
        with vu.Nic(drv(d)):
            # QEMU takes the link for up when its front-end has connected, before or after it hears of us.
            d.wait(lambda: told == [False, True, True, True])
            p.wait(lambda s: s.up)
            d.call("link.down", name="ab")
            d.wait(lambda: told[4:] == [False])
            p.let_go()
            p.wait(lambda s: not s.up)
            d.call("link.up", name="ab")
            d.wait(lambda: told[4:] == [False, True])
        assert p.command(pc.DETACH) == pc.OK
        d.wait(lambda: told[6:] == [False])
        p.attach()
        d.wait(lambda: told[6:] == [False, True])
    d.wait(lambda: told[8:] == [False])
    assert carrier()["up"] is False
    # A QEMU that starts anew, with another device.
    qmp.close()
    os.unlink(path)
    d.wait(lambda: carrier()["qmp"] != "connected")
    qmp = pc.Qmp(path)
    qmp.carrier = {"d1": []}
    d.wait(lambda: carrier()["error"] == "Device 'd0' not found")
    qmp.close()


@pytest.mark.parametrize("keys, word", [(dict(Driver_QMP="/x"), "go together"), (dict(Driver_NIC="d0"), "go together"),
                                        (dict(Driver_QMP="x", Driver_NIC="d0"), "not an absolute path"),
                                        (dict(Driver_QMP="/x", Driver_NIC="d0", Device_Endpoint="virtio-net"), "Endpoint=port")])
def test_carrier_keys(make_daemon, keys, word):
    d = make_daemon()
    d.link("ab", **dict(dict(Device_Endpoint="port"), **keys))
    r = subprocess.run(d.command("--check-config"), capture_output=True, text=True)
    assert r.returncode and word in r.stdout + r.stderr
