# SPDX-License-Identifier: BSD-3-Clause
"""The shmem attachment against a scripted front-end that behaves like QEMU's generic device."""
import select
import struct
import time

import pytest

import portclient as pc
import vu
from portside import SIGNALS, answer_stop, count, forward


@pytest.fixture
def fast(make_daemon):
    d = make_daemon()
    d.link("ab", Device_Endpoint="port", Device_Attachment="shmem", Device_ApertureSize="8G")
    return d.start()


def drv(d):
    return d.sock("ab", "driver")


def dev(d):
    return d.sock("ab", "device")


def test_packets(fast):
    with vu.Nic(drv(fast)) as nic, pc.Shmem(dev(fast)) as p:
        assert p.attach() == pc.OK
        s = p.wait(lambda s: s.up)
        assert sum(p.sizes) == 8 << 30
        for i in range(3):
            nic.send_packet(vu.frame(i, 100))
        assert forward(p, 3)[0] == [vu.frame(i, 100) for i in range(3)]
        assert pc.raised(nic.rings[1].call_fd)
        # page sizes: place in the BAR and place in the file agree
        size, at = s.windows[0][:2]
        assert (at + pc.CTRL - p.live[1, at][2]) % (2 << 20) == 0


def test_more_queues_than_signals(fast):
    with vu.Nic(drv(fast)), pc.Shmem(dev(fast), nqueues=8) as p:
        assert p.attach() == pc.OK
        assert p.wait(lambda s: s.up)


def test_nothing_is_asked_before_start_and_after_detach(fast):
    with vu.Nic(drv(fast)) as nic, pc.Shmem(dev(fast)) as p:
        assert p.attach() == pc.OK
        p.wait(lambda s: s.up)
        assert p.command(pc.DETACH) == pc.OK
        assert list(p.live) == [(0, 0)], "DETACH was answered before all windows were gone"
        p.stop()
        fast.stays(lambda: not select.select([p.back], [], [], 0)[0], 0.2)  # no request comes
        p.start()
        assert not p.state().attached
        assert p.attach() == pc.OK
        p.wait(lambda s: s.up)


def test_reset_without_detach(fast):
    """A guest that dies: the maps go with the reset, nothing is unmapped, the next life finds the port free."""
    with vu.Nic(drv(fast)) as nic, pc.Shmem(dev(fast)) as p:
        for i in range(3):
            assert p.attach() == pc.OK
            p.wait(lambda s: s.up)
            nic.send_packet(vu.frame(i, 70))
            assert forward(p)[0] == [vu.frame(i, 70)]
            p.stop()
            fast.wait(lambda: fast.show("ab")["status"] == "partial")
            p.start()
            assert not p.state().attached


def test_driver_comes_and_goes(fast):
    with pc.Shmem(dev(fast)) as p:
        assert p.attach() == pc.OK
        took = []
        for i in range(4):
            with vu.Nic(drv(fast)) as nic:
                t = time.monotonic()
                p.wait(lambda s: s.up)
                took.append(time.monotonic() - t)
                nic.send_packet(vu.frame(i, 70))
                assert forward(p)[0] == [vu.frame(i, 70)]
            s = p.wait(lambda s: not s.up)
            assert p.command(pc.SYNC, s.regions_generation) == pc.OK
            p.wait(lambda s: not s.windows)
            fast.wait(lambda: p.poll() or list(p.live) == [(0, 0)])
        # A busy machine may be late, but not each time.
        assert min(took) < 0.5, took


def test_front_end_refuses_the_map(fast):
    with pc.Shmem(dev(fast)) as p:
        p.attach()
        p.refuse = True
        with vu.Nic(drv(fast)) as nic:
            s = p.wait(lambda s: s.reason == pc.WINDOW)
            p.poll()
            fast.wait(lambda: any(w["error"] for w in fast.show("ab")["sides"]["device"]["windows"]))
            p.refuse = False
            p.wait(lambda s: s.up)  # tried again by itself


def test_unsealed_memory_is_refused(fast):
    mem = vu.Memory(16 << 20, seal=False)
    import fcntl
    fcntl.fcntl(mem.fd, 1033, 1)  # F_SEAL_SEAL: nobody can seal it any more
    with vu.Nic(drv(fast), mem=mem) as nic, pc.Shmem(dev(fast)) as p:
        p.attach()
        p.wait(lambda s: s.reason == pc.WINDOW)
        assert "truncated" in fast.show("ab")["sides"]["device"]["windows"][0]["error"]
        assert nic.alive()


def test_device_side_dies(fast):
    with vu.Nic(drv(fast)) as nic:
        for i in range(3):
            with pc.Shmem(dev(fast)) as p:
                assert p.attach() == pc.OK
                p.wait(lambda s: s.up)
            fast.wait(lambda: fast.show("ab")["status"] == "partial")
        nic.send_packet(vu.frame(0, 64))
        assert fast.wait(lambda: nic.rings[1].mem.r("H", nic.rings[1].used + 2) == 1)


def test_stop(fast):
    with vu.Nic(drv(fast)) as nic, pc.Shmem(dev(fast)) as p:
        p.attach()
        p.wait(lambda s: s.up)
        nic.send_packet(vu.frame(0, 64))
        _, at = forward(p)
        nic.send(vu.GET_VRING_BASE, struct.pack("<II", 1, 0), need_reply=False)
        answer_stop(p, 1, at)
        assert struct.unpack("<II", nic.recv_reply(vu.GET_VRING_BASE)) == (1, 1)


def test_signals_without_buffers_are_dropped(fast):
    """Nothing available: the guest has not handled the last one."""
    with vu.Nic(drv(fast)) as nic, pc.Shmem(dev(fast), buffers=4) as p:
        p.attach()
        p.wait(lambda s: s.up)
        for _ in range(50):
            nic.kick(1)
        ring = p.rings[2]
        fast.stays(lambda: ring.mem.r("H", ring.used + 2) <= 4, 0.1)
        while ring.get():
            pass
        ring.add([(p.fe.mem.alloc(8, 8), 8, True)])
        nic.kick(1)
        fast.wait(lambda: ring.get())
        assert fast.alive()


def test_two_system_calls_a_signal(fast):
    """Signals pass the forwarder, in both directions, for epoll_wait and write; no other thread of the daemon wakes up."""
    with vu.Nic(drv(fast)) as nic, pc.Shmem(dev(fast)) as p:
        p.attach()
        p.wait(lambda s: s.up)
        ring = p.rings[2]
        for fd in (p.signals[2], nic.rings[0].call_fd):
            while pc.raised(fd, 0.7):  # from the beginning
                pass

        def kick():
            nic.kick(1)
            assert pc.raised(p.signals[2])
            while ring.get():
                ring.add([(p.fe.mem.alloc(8, 8), 8, True)])

        def call():
            pc.one(p.doorbells[1])
            assert pc.raised(nic.rings[0].call_fd)

        before = fast.show("ab")["sides"]["device"]["signals_forwarded"]
        for what in kick, call:
            calls = count(fast, what)
            assert SIGNALS <= len(calls) <= 2 * SIGNALS + 20, "".join(calls[:20])
        side = fast.show("ab")["sides"]["device"]
        assert side["signals_forwarded"] - before == 2 * SIGNALS
        assert side["kicks_direct"] == side["calls_direct"] == 0
