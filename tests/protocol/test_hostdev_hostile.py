# SPDX-License-Identifier: BSD-3-Clause
"""Back-ends on the host (Endpoint=vhost-user) that are silent, late, or lie; and who may be one."""
import socket
import struct
import time

import pytest

import blk
import vu
from blk import Driver, pattern
from clock import Clock
from conftest import ControlError
from test_hostdev import MODES, NAMES, dev, device, drv, fast_backend, link, make  # noqa: F401 (a fixture)
from vubackend import Backend


@pytest.mark.parametrize("message", [vu.GET_FEATURES, vu.GET_CONFIG, vu.SET_MEM_TABLE, vu.SET_VRING_ADDR])
def test_a_silent_backend_is_dropped_and_harms_nobody(make_daemon, message):
    """The other link's disk answers meanwhile, and so does the daemon."""
    d = make_daemon()
    d.run.mkdir()
    link(d, Profile_Capacity="4M")
    link(d, "cd", driver="c", device="d")
    d.start()
    with Backend(d.sock("cd", "device")), Backend(dev(d)) as b:
        d.wait(lambda: d.listens(d.sock("cd", "driver")))
        with Driver(drv(d)) as f, Driver(d.sock("cd", "driver")) as other:
            f.read(0, 512)
            b.mute = (message,)
            b.sock.shutdown(socket.SHUT_RDWR)
            t = f.request(blk.IN, 0, length=4096)
            d.wait(lambda: message in b.mute and b.sessions >= 2)
            took, clock = [], Clock(d)

            def dropped():
                with clock.timed(took):
                    other.write(0, pattern(4096))
                return device(d)["dropped"]

            d.wait(dropped)
            assert max(took) < 2 and "did not answer" in device(d)["last"]
            assert t in f.open
            b.mute = ()
            assert f.wait(t)[0] == blk.OK


@pytest.mark.parametrize("keys", MODES, ids=NAMES)
def test_config_space_is_told_never_then_late(make, keys):
    """The driver VM runs meanwhile, with a profile that is written; its requests wait."""
    d = make(Profile_Capacity="4M", **keys)
    b = fast_backend(dev(d))
    b.mute = (vu.GET_CONFIG,)
    with b, Driver(drv(d)) as f:
        t = f.request(blk.OUT, 0, pattern(512))
        d.wait(lambda: device(d)["dropped"])
        assert "did not answer GET_CONFIG" in device(d)["last"]
        # Late, but within its time.
        b.mute, b.slow = (), {vu.GET_CONFIG: 1}
        assert f.wait(t)[0] == blk.OK and f.read(0, 512) == pattern(512)


def test_silent_when_a_queue_is_to_stop(make):
    """The driver VM's VMM has its answer all the same, in bounded time."""
    d = make()
    with Backend(dev(d)) as b, Driver(drv(d)) as f:
        f.write(0, pattern(512))
        b.mute = (vu.GET_VRING_BASE,)
        assert f.stop_ring(0) == 1
        d.wait(lambda: device(d)["dropped"] == 1)


@pytest.mark.parametrize("message,answer,words", [
    (vu.GET_CONFIG, struct.pack("<III", 0, 100, 0) + bytes(100), "answered with 100"),
    (vu.GET_CONFIG, struct.pack("<III", 0, 60, 0) + bytes(300), "payload"),
    (vu.GET_FEATURES, bytes(4), "payload"),
    (vu.GET_FEATURES, b"", "payload"),
    (vu.SET_MEM_TABLE, struct.pack("<Q", 1), "refused SET_MEM_TABLE"),
    (vu.SET_VRING_KICK, struct.pack("<Q", 22), "refused SET_VRING_KICK"),
])
def test_answers_are_checked(make, message, answer, words):
    d = make(Profile_Capacity="4M")
    b = Backend(dev(d))
    b.replies[message] = answer
    with b, Driver(drv(d)):
        d.wait(lambda: device(d)["dropped"] >= 1)
        d.wait_log(words)
    assert d.alive()


def test_too_many_queues_and_an_index_that_cannot_be(make):
    d = make()
    b = Backend(dev(d))
    b.replies[vu.GET_QUEUE_NUM] = struct.pack("<Q", 1 << 63)
    with b, Driver(drv(d)) as f:
        f.write(0, pattern(512))
        b.replies[vu.GET_VRING_BASE] = struct.pack("<II", 0, 0xffffffff)
        assert f.stop_ring(0) == 1
        b.replies[vu.GET_VRING_BASE] = struct.pack("<II", 9, 0)
        f.start_ring(0, vu.SplitRing(f.mem, 128))
        f.write(0, pattern(512))
        f.stop_ring(0)
        d.wait_log("was answered for ring 9")


def test_unasked_messages(make):
    d = make()
    with Backend(dev(d)) as b, Driver(drv(d)) as f:
        f.write(0, pattern(512))
        b.sock.sendall(struct.pack("<IIIQ", vu.GET_FEATURES, 5, 8, 0))
        # A request can be completed while the daemon still waits for the answer to SET_VRING_ENABLE: it takes this one for that.
        d.wait(lambda: any(s in (device(d)["last"] or "") for s in ("unasked", "a reply to GET_FEATURES came where")))
        # It comes again, and serves.
        f.write(0, pattern(512))


@pytest.mark.parametrize("keys", MODES, ids=NAMES)
def test_a_storm_of_config_changes(make, keys):
    d = make(**keys)
    with fast_backend(dev(d)) as b, Driver(drv(d)) as f:
        f.write(0, pattern(512))
        before = b.seen.count(vu.GET_CONFIG)
        begun = time.monotonic()
        while time.monotonic() - begun < 1:
            b.config_change()
        f.write(0, pattern(512, 1))
        assert b.seen.count(vu.GET_CONFIG) - before < 20 and d.alive()


def test_completes_what_it_was_never_given(make):
    """The queue is taken from it and the requests are not answered by that."""
    d = make()
    with Backend(dev(d)) as b, Driver(drv(d)) as f:
        f.write(0, pattern(512))
        asked = []

        def wrong(r, head, chain):
            b.hook = None
            b.back(r, (head + 77) % r.num, 1)
            return True
        b.hook = wrong
        asked.append(f.request(blk.IN, 0, length=512))
        d.wait(lambda: device(d)["queues_spoiled"] == 1)
        assert asked[0] in f.open and d.alive()


def test_a_length_of_4_gib(make):
    d = make()
    with Backend(dev(d)) as b, Driver(drv(d)) as f:
        f.write(0, pattern(4096))

        def wrong(r, head, chain):
            b.request(chain)
            b.back(r, head, 0xffffffff)
            return True
        b.hook = wrong
        t = f.request(blk.IN, 0, length=4096)
        assert f.wait(t) == (blk.OK, pattern(4096)) and f.done[t][2] == 4097


def test_policy(make_daemon):
    d = make_daemon()
    d.run.mkdir()
    link(d, Link_Mode="auto")
    d.start()
    assert d.show("ab")["mode"] == "copy"
    why = d.call("policy.explain", name="ab")
    assert "auto-vhost-user" in str(why)
    # Its memory only by name, and within a trust group.
    link(d, Link_Mode="fast")
    d.call("daemon.reload")
    assert "fast-same-group" in str(d.call("policy.explain", name="ab"))
    d.write("b.vm", "[VM]\nTrustGroup=other\n")
    with pytest.raises(ControlError, match="fast-needs-one-trust-group"):
        d.call("daemon.reload")
    link(d, Link_Mode="relay")
    with pytest.raises(ControlError, match="relay-needs-virtio-net"):
        d.call("daemon.reload")
