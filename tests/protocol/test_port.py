# SPDX-License-Identifier: BSD-3-Clause
"""A fast link between a scripted driver and a scripted device side on the local attachment."""
import os
import select
import socket
import struct
import subprocess
import time

import pytest

import conftest
import portclient as pc
import vu
from portside import answer_stop, forward, settled


@pytest.fixture
def fast(make_daemon):
    d = make_daemon()
    d.link("ab", Device_Endpoint="port", Device_Attachment="local", Link_Mode="fast")
    return d.start()


def drv(d):
    return d.sock("ab", "driver")


def dev(d):
    return d.sock("ab", "device")


def test_down_reasons(fast):
    with pc.Local(dev(fast)) as p:
        s = p.state()
        assert s.reason == pc.NO_ATTACH and not s.attached and not s.up and s.type == 1 and s.mode == 1
        assert len(s.queues) == 2 and s.max_queues == 2
        assert p.attach() == pc.OK
        s = p.state()
        assert s.attached and s.reason == pc.NO_DRIVER and s.epoch == 0
        assert s.offered & ~s.required and not s.required & ~s.offered
        with vu.Frontend(drv(fast)) as f:
            f.negotiate(vu.BASIC)
            s = p.wait(lambda s: s.reason == pc.NOT_READY)
            assert s.epoch == 1
            f.set_memory(vu.Memory())
            p.wait(lambda s: len(s.regions) == 1)
        s = p.wait(lambda s: s.reason == pc.NO_DRIVER)
        assert not s.regions
        assert p.command(pc.DETACH) == pc.OK
        assert p.state().reason == pc.NO_ATTACH


@pytest.mark.parametrize("order", ["driver first", "device first"])
def test_packets(fast, order):
    if order == "driver first":
        nic = vu.Nic(drv(fast))
        p = pc.Local(dev(fast))
        assert p.attach() == pc.OK
    else:
        p = pc.Local(dev(fast))
        assert p.attach() == pc.OK
        nic = vu.Nic(drv(fast))
    with nic, p:
        s = p.wait(lambda s: s.up and all(q.flags & pc.STARTED and q.flags & pc.ENABLED for q in s.queues))
        assert s.reason == 0 and s.epoch == 1 and s.windows[0][4] == 1
        assert s.features & ~vu.bit(vu.PROTOCOL) == nic.features & ~vu.bit(vu.PROTOCOL)
        fast.wait(lambda: fast.show("ab")["status"] == "up")
        for i in range(3):
            nic.send_packet(vu.frame(i, 100 + i))
        got, at = forward(p, 3)
        assert got == [vu.frame(i, 100 + i) for i in range(3)]
        assert pc.raised(nic.rings[1].call_fd), "the call did not arrive"
        # and into the receive queue
        q = s.queues[0]
        (bufs, head) = p.take(q, q.base)
        p.view(bufs[0][0], 12 + 60)[:] = bytes(10) + b"\1\0" + vu.frame(9, 60)
        p.give_back(q, q.base, head, 72)
        pc.one(p.doorbells[q.doorbell])
        assert nic.recv_packet()[1] == vu.frame(9, 60)
        dropped = fast.stats("ab")["driver"]["tx"]
        assert not sum(v for v in dropped["drops"].values()) if "drops" in dropped else True


def test_driver_side_runs_alone(fast):
    """No device side: the transmit queue is drained, what was sent is counted, the index goes on later."""
    with vu.Nic(drv(fast)) as nic:
        for i in range(100):
            nic.send_packet(vu.frame(i, 64))
        fast.wait(lambda: nic.rings[1].mem.r("H", nic.rings[1].used + 2) == 100)
        with pc.Local(dev(fast)) as p:
            assert p.attach() == pc.OK
            s = p.wait(lambda s: s.up)
            assert s.queues[1].base == 100 and s.queues[0].base == 0
            nic.send_packet(vu.frame(1000, 64))
            assert forward(p)[0] == [vu.frame(1000, 64)]
        # the process left without a word: its used index counts
        fast.wait(lambda: fast.show("ab")["status"] == "partial")
        nic.send_packet(vu.frame(1, 64))
        fast.wait(lambda: nic.rings[1].mem.r("H", nic.rings[1].used + 2) == 102)
        with pc.Local(dev(fast)) as p:
            assert p.attach() == pc.OK
            assert p.wait(lambda s: s.up).queues[1].base == 102


def test_stop_waits_for_the_guest(fast):
    with vu.Nic(drv(fast)) as nic, pc.Local(dev(fast)) as p:
        p.attach()
        p.wait(lambda s: s.up)
        for i in range(5):
            nic.send_packet(vu.frame(i, 64))
        _, at = forward(p, 5)
        nic.send(vu.GET_VRING_BASE, struct.pack("<II", 1, 0), need_reply=False)
        s = p.wait(lambda s: s.queues[1].flags & pc.STOP)
        run = s.queues[1].run
        fast.stays(lambda: not select.select([nic.sock], [], [], 0)[0], 0.1)
        assert p.stopped(1, run + 1, at) == pc.STALE
        assert p.stopped(1, run, 0x10000) == pc.INVALID
        assert p.stopped(2, run, at) == pc.INVALID
        assert p.stopped(1, run, at) == pc.OK
        assert struct.unpack("<II", nic.recv_reply(vu.GET_VRING_BASE)) == (1, 5)
        s = p.state()
        assert not s.queues[1].flags & (pc.STARTED | pc.STOP)
        assert p.stopped(1, run, at) == pc.STALE
        # a new run of the same queue
        nic.start_ring(1, nic.rings[1], base=5)
        s = p.wait(lambda s: s.queues[1].flags & pc.STARTED)
        assert s.queues[1].run == run + 1 and s.queues[1].base == 5


def test_guest_that_does_not_answer_is_cut(fast):
    with vu.Nic(drv(fast)) as nic, pc.Local(dev(fast)) as p:
        p.attach()
        p.wait(lambda s: s.up)
        t = time.monotonic()
        assert nic.stop_ring(1) == 0
        took = time.monotonic() - t
        assert 0.9 < took < pc.limit(2), took
        s = p.wait(lambda s: s.reason == pc.TIMEOUT)
        assert not s.attached and not s.up and not s.regions and not s.windows
        fast.wait(lambda: p.drain() or p.gone, why="the window was not withdrawn")
        # it may come back
        nic.start_ring(1, nic.rings[1], base=0)
        assert p.attach() == pc.OK
        assert p.wait(lambda s: s.up)


def test_no_base_takes_the_used_index(fast):
    with vu.Nic(drv(fast)) as nic, pc.Local(dev(fast)) as p:
        p.attach()
        p.wait(lambda s: s.up)
        for i in range(7):
            nic.send_packet(vu.frame(i, 64))
        forward(p, 4)
        nic.send(vu.GET_VRING_BASE, struct.pack("<II", 1, 0), need_reply=False)
        answer_stop(p, 1, 0, flags=2)
        assert struct.unpack("<II", nic.recv_reply(vu.GET_VRING_BASE)) == (1, 4)


def test_attach_refusals(fast):
    with pc.Local(dev(fast)) as p:
        assert p.attach(abi=0x10000) == pc.VERSION
        assert p.state().answer[4] == pc.ABI
        assert p.attach(type=2) == pc.DEVICE_TYPE
        assert p.state().answer[4] == 1
        s = p.state()
        assert p.attach(features=s.required & ~vu.bit(vu.EVENT_IDX)) == pc.FEATURES
        s = p.state()
        assert s.answer[4] == vu.bit(vu.EVENT_IDX) and s.reason == pc.BAD_FEATURES and not s.attached
        assert p.command(99) == pc.UNKNOWN
        assert p.command(5) == pc.NOT_ATTACHED
        assert p.stopped(0, 1) == pc.NOT_ATTACHED
        assert p.attach(features=s.required) == pc.OK
        assert p.command(pc.SYNC, (p.state().regions_generation + 1) & 0xffffffff) == pc.INVALID


def test_memory_comes_and_goes(fast):
    with vu.Nic(drv(fast)) as nic, pc.Local(dev(fast)) as p:
        p.attach()
        s = p.wait(lambda s: s.up)
        run = s.queues[1].run
        extra = vu.Memory(4 << 20, gpa=0x8_0000_0000, uva=0x7f66_0000_0000)
        nic.tell(vu.ADD_MEM_REG, struct.pack("<Q", 0) + nic.region(extra), [extra.fd])
        s = p.wait(lambda s: len(s.regions) == 2)
        assert s.up and s.queues[1].run == run, "adding memory must not end the run"
        assert [r[0] for r in s.regions] == [nic.mem.gpa, extra.gpa]
        extra.map[100] = 77
        assert p.view(extra.gpa + 100, 1)[0] == 77

        def seconds(sync):
            """For which the window stays."""
            s = p.state()
            slot, gone = s.regions[1][3], len(p.gone)
            nic.tell(vu.REM_MEM_REG, struct.pack("<Q", 0) + nic.region(extra), [])
            t = time.monotonic()
            s = p.wait(lambda s: len(s.regions) == 1)
            assert s.up and s.queues[1].run == run
            assert slot < len(s.windows) and s.windows[slot][3] == 4 or time.monotonic() - t > 0.8, "the window stays until SYNC"
            if sync:
                assert p.command(pc.SYNC, s.regions_generation) == pc.OK
            p.wait(lambda s: len(s.windows) == 1)
            t = time.monotonic() - t
            fast.wait(lambda: p.drain() or len(p.gone) == gone + 1)
            nic.tell(vu.ADD_MEM_REG, struct.pack("<Q", 0) + nic.region(extra), [extra.fd])
            p.wait(lambda s: len(s.regions) == 2)
            return t

        # A busy machine may be late, but not each time. Without SYNC it stays for a second.
        assert any(seconds(True) < 0.5 for _ in range(5)), "SYNC did not release the window"
        assert 0.8 < seconds(False) < pc.limit(2)
        extra.close()


def test_broken_queue_harms_only_itself(fast):
    with vu.Nic(drv(fast)) as nic, pc.Local(dev(fast)) as p:
        p.attach()
        s = p.wait(lambda s: s.up)
        assert p.stopped(1, s.queues[1].run, 0, 1) == pc.OK
        s = p.state()
        assert s.up and s.queues[1].flags & pc.BROKEN and not s.queues[1].flags & pc.STARTED
        assert s.queues[0].flags & pc.STARTED
        fast.stays(lambda: p.state().queues[1].run == s.queues[1].run, 0.1)  # a broken queue is not handed over again
        assert fast.show("ab")["status"] == "broken"
        nic.stop_ring(1)
        nic.start_ring(1, nic.rings[1])
        s = p.wait(lambda s: s.queues[1].flags & pc.STARTED)
        assert not s.queues[1].flags & pc.BROKEN


def test_given_up_queue_waits_for_the_next_attach(fast):
    with vu.Nic(drv(fast)) as nic, pc.Local(dev(fast)) as p:
        p.attach()
        s = p.wait(lambda s: s.up)
        nic.send_packet(vu.frame(0, 64))
        _, at = forward(p)
        assert p.stopped(1, s.queues[1].run, at) == pc.OK
        fast.stays(lambda: not p.state().queues[1].flags & pc.STARTED, 0.1)
        assert p.attach() == pc.OK
        s = p.wait(lambda s: s.up and s.queues[1].flags & pc.STARTED)
        assert s.queues[1].base == 1


def test_second_process_is_refused(fast):
    with pc.Local(dev(fast)):
        with pc.Local(dev(fast), expect_error=True) as q:
            assert q.error == 16  # EBUSY
    with pc.Local(dev(fast)) as p:
        assert p.attach() == pc.OK


def test_next_process_is_served_at_once(fast):
    """Its predecessor has gone, and had sent what nobody has read."""
    p = pc.Local(dev(fast))
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(pc.limit(5))
        with fast.stopped():
            s.connect(dev(fast))
            p.sock.send(b"x")
            p.close()
        assert struct.unpack_from("<I", s.recv(48))[0] == pc.HELLO


def test_next_process_is_not_dropped(fast):
    """A process that left cannot be told that its run is over; the one that comes at once has nothing to do with that."""
    for _ in range(5):
        with pc.Local(dev(fast)) as p:  # a moment after the last one
            p.attach()
            with vu.Nic(drv(fast)) as nic:
                p.wait(lambda s: s.up)
                settled(fast, 2, 2)
                p.drain()
                nic.tell(vu.SET_VRING_CALL, struct.pack("<Q", 1), [nic.rings[0].call_fd])
                time.sleep(0.8)  # the daemon has stopped raising the new one itself: it has nothing else to do
                p.drain()


def test_driver_killed_and_back(fast):
    with pc.Local(dev(fast)) as p:
        p.attach()
        for i in range(5):
            with vu.Nic(drv(fast)) as nic:
                s = p.wait(lambda s: s.up)
                assert s.epoch == i + 1
                nic.send_packet(vu.frame(i, 64))
                assert forward(p)[0] == [vu.frame(i, 64)]
            s = p.wait(lambda s: not s.up)
            assert not s.regions and not any(q.flags & pc.STARTED for q in s.queues)
            p.sync()
        n = fast.fds()
        for i in range(10):
            with vu.Nic(drv(fast)):
                p.wait(lambda s: s.up)
            p.wait(lambda s: not s.up)
            p.sync()
        fast.wait(lambda: fast.fds() <= n + 1)


def started(s):
    return s.up and all(q.flags & pc.STARTED for q in s.queues)


def test_next_run_waits_for_the_last_one(fast):
    """A front-end that goes and comes at once may have the same rings as before, on which the guest is perhaps still at work."""
    with pc.Local(dev(fast)) as p:
        assert p.attach() == pc.OK
        with vu.Nic(drv(fast)):
            gen = p.wait(started).regions_generation
        assert p.wait(lambda s: not s.up).regions_generation != gen
        with vu.Nic(drv(fast)) as nic:
            used = lambda: nic.mem.r("H", nic.rings[1].used + 2)
            s = p.wait(lambda s: s.up)
            assert p.command(pc.SYNC, gen) == pc.OK  # of an earlier update: says nothing
            nic.send_packet(vu.frame(1, 64))
            # The daemon does not drain the ring beside the guest.
            fast.stays(lambda: not any(q.flags & pc.STARTED for q in p.state().queues) and used() == 0, 0.1)
            assert p.command(pc.SYNC, s.regions_generation) == pc.OK
            p.wait(started)
            assert forward(p)[0] == [vu.frame(1, 64)]
        # One that detaches has let go, too.
        p.wait(lambda s: not s.up)
        with vu.Nic(drv(fast)) as nic:
            p.wait(lambda s: s.up)
            nic.send_packet(vu.frame(2, 64))
            fast.stays(lambda: used() == 0, 0.1)
            assert p.command(pc.DETACH) == pc.OK
            fast.wait(lambda: used() == 1)
            assert p.attach() == pc.OK
            p.wait(started)
        # One that never says that it has seen the end is cut, and may attach again.
        with vu.Nic(drv(fast)):
            assert p.wait(lambda s: s.reason == pc.TIMEOUT)
            assert p.attach() == pc.OK
            p.wait(started)


def test_scribbling_guest(fast):
    """The guest fills header, state and commands with rubbish: only it is confused."""
    with vu.Nic(drv(fast)) as nic, pc.Local(dev(fast)) as p:
        p.attach()
        p.wait(lambda s: s.up)
        rnd = os.urandom
        for _ in range(200):
            p.mem[0x1000:0x1080] = rnd(128)
            p.mem[0x10000:0x20000] = rnd(0x10000)
            pc.one(p.doorbells[0])
        assert nic.alive()
    fast.wait(lambda: fast.show("ab")["status"] != "up")
    # A new process on the same port: what changed is written, the rest it must not trust before ATTACH.
    assert fast.alive()


def test_unsealed_memory_is_passed_to_a_process(fast):
    with vu.Nic(drv(fast), mem=vu.Memory(16 << 20, seal=False)) as nic, pc.Local(dev(fast)) as p:
        p.attach()
        assert p.wait(lambda s: s.up)


def test_admin_down(fast):
    with vu.Nic(drv(fast)) as nic, pc.Local(dev(fast)) as p:
        p.attach()
        p.wait(lambda s: s.up)
        fast.call("link.down", name="ab")
        # The guest is still at work on the rings: they are its own until it answers.
        s = p.wait(lambda s: all(q.flags & pc.STOP for q in s.queues))
        assert s.up and s.regions and p.let_go() == len(s.queues)
        s = p.wait(lambda s: s.reason == pc.ADMIN)
        assert not s.up and not s.regions
        fast.call("link.up", name="ab")
        assert p.wait(lambda s: s.up)


def test_events(fast):
    """Whoever watches sees each change of the link's status, once, with a reason."""
    sub = conftest.Control(fast.run / "control.sock")
    sub.call("events.subscribe")

    def event():
        e = sub.line()
        assert e["event"] == "link.state" and e["data"]["link"] == "ab"
        return e["data"]["status"], e["data"]["why"]

    with vu.Nic(drv(fast)) as nic:
        assert event() == ("partial", "driver side connected")
        with pc.Local(dev(fast)) as p:
            assert event() == ("partial", "device side connected")
            p.attach()
            assert event() == ("up", "link up")
            p.wait(lambda s: s.up)
            p.command(pc.DETACH)
            assert event() == ("partial", "link down: not attached")
            p.attach()
            assert event() == ("up", "link up")
            s = p.wait(lambda s: s.up)
            assert p.stopped(0, s.queues[0].run, 0, 1) == pc.OK
            assert event() == ("broken", "a queue broke; see link.show")
            nic.stop_ring(0)
            nic.start_ring(0, nic.rings[0])
            assert event() == ("up", "link up")
            fast.call("link.down", name="ab")
            assert event() == ("down", "set down")
            p.wait(lambda s: all(q.flags & pc.STOP for q in s.queues))
            p.let_go()
            p.wait(lambda s: not s.up)
            fast.call("link.up", name="ab")
            assert event() == ("up", "set up")
            p.wait(lambda s: s.up)
        assert event() == ("partial", "device side disconnected")
    assert event() == ("waiting", "the front-end went away")
    with pc.Local(dev(fast)) as p:
        assert event() == ("partial", "device side connected")
        p.attach()
        with vu.Nic(drv(fast)):
            assert event() == ("partial", "driver side connected")
            assert event() == ("up", "link up")
        assert event() == ("partial", "the front-end went away")
    assert event() == ("waiting", "device side disconnected")
    fast.call("link.remove", name="ab")
    assert sub.line()["event"] == "link.removed"
    sub.close()


def test_fast_needs_one_trust_group(make_daemon):
    d = make_daemon()
    d.write("b.vm", "[VM]\nTrustGroup=other\n")
    d.link("ab", Device_Endpoint="port", Device_Attachment="local", Link_Mode="fast")
    r = subprocess.run(d.command("--check-config"), capture_output=True, text=True)
    assert r.returncode and "fast-needs-one-trust-group" in r.stdout + r.stderr


@pytest.mark.parametrize("ring", [0, vu.bit(vu.EVENT_IDX)])
def test_ring_formats_offered(make_daemon, ring):
    d = make_daemon()
    d.link("ab", Device_Endpoint="port", Device_Attachment="local", Device_PackedRings="yes")
    d.start()
    with vu.Nic(drv(d), vu.BASIC | vu.bit(vu.PACKED) | ring) as nic, pc.Local(dev(d)) as p:
        p.attach()
        s = p.wait(lambda s: s.up)
        assert s.features >> vu.PACKED & 1
        assert s.queues[1].base == 0x80008000
        nic.send(vu.GET_VRING_BASE, struct.pack("<II", 1, 0), need_reply=False)
        s = p.wait(lambda s: s.queues[1].flags & pc.STOP)
        assert p.stopped(1, s.queues[1].run, 0x80038003) == pc.OK
        assert struct.unpack("<II", nic.recv_reply(vu.GET_VRING_BASE)) == (1, 0x80038003)


def test_process_that_does_not_read(fast):
    """Nothing is queued for it beyond its socket's buffer; then it is dropped."""
    p = pc.Local(dev(fast))
    p.attach()
    gone = lambda: not fast.show("ab")["sides"]["device"]["connected"]
    seq = p.state().answer[0]
    for i in range(2000):
        with vu.Nic(drv(fast)):
            fast.wait(lambda: fast.show("ab")["status"] != "waiting")
        # Else it would be cut, and get no more.
        p.command_raw(seq + i + 1, pc.SYNC, p.state().regions_generation)
        if gone():
            break
    fast.wait(gone)
    p.close()
    with vu.Nic(drv(fast)), pc.Local(dev(fast)) as p:
        p.attach()
        p.wait(lambda s: s.up)


def test_second_front_ends_are_logged_once(fast):
    with vu.Nic(drv(fast)):
        for _ in range(2):
            with vu.Frontend(drv(fast)) as f:
                assert f.sock.recv(1) == b"", "a second front-end was served"
        assert fast.show("ab")["sides"]["driver"]["refused"] == 2
    assert fast.log().count("refused a second front-end") == 1


def test_memory_slots_of_a_vm_that_has_a_port(make_daemon):
    """QEMU does not survive a reset with them when a port's windows are among its VM's memory; others may have them."""
    d = make_daemon()
    d.link("ab", driver="a", device="b", Device_Endpoint="port", Device_Attachment="local", Link_Mode="fast")
    d.link("bc", driver="b", device="c", Device_Endpoint="port", Device_Attachment="local", Link_Mode="fast")
    d.start()
    for link, slots in ("ab", True), ("bc", False):
        with vu.Frontend(d.sock(link, "driver")) as f:
            f.negotiate(vu.BASIC)
            assert bool(f.offered_protocol >> vu.PF_MEM_SLOTS & 1) == slots, link
