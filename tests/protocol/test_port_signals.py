# SPDX-License-Identifier: BSD-3-Clause
"""Kicks and calls of a fast link on the local attachment: eventfds of the driver VM's own, without the daemon."""
import os
import struct
import time

import conftest
import portclient as pc
import vu
from portside import answer_stop, count, eventfd_id, forward, same, settled
from test_port import dev, drv, fast  # noqa: F401 (a fixture)


def test_direct_signals(fast):
    """A process gets the driver VM's own eventfds: no system call of the daemon's for a signal."""
    with vu.Nic(drv(fast)) as nic, pc.Local(dev(fast)) as p:
        p.attach()
        p.wait(lambda s: s.up)
        settled(fast, 2, 2)
        for q in (0, 1):
            assert same(p.signals[1 + q], nic.rings[q].kick_fd) and same(p.doorbells[1 + q], nic.rings[q].call_fd)
        for fd in (p.signals[2], nic.rings[0].call_fd):
            while pc.raised(fd, 0.7):  # from the beginning
                pass

        def both():
            nic.kick(1)
            assert pc.raised(p.signals[2])
            pc.one(p.doorbells[1])
            assert pc.raised(nic.rings[0].call_fd)

        calls = count(fast, both)
        assert len(calls) < 20, "".join(calls[:20])


def test_direct_signals_of_a_new_run(fast):
    """The fds of a run end with it."""
    with pc.Local(dev(fast)) as p:
        p.attach()
        for lap in range(3):
            with vu.Nic(drv(fast)) as nic:
                p.wait(lambda s: s.up)
                settled(fast, 2, 2)
                assert same(p.signals[2], nic.rings[1].kick_fd)
                nic.send_packet(vu.frame(lap, 64))
                assert forward(p)[0] == [vu.frame(lap, 64)]
                assert pc.raised(nic.rings[1].call_fd)
                theirs = eventfd_id(nic.rings[1].kick_fd)
                nic.send(vu.GET_VRING_BASE, struct.pack("<II", 1, 0), need_reply=False)
                answer_stop(p, 1, 1)
                nic.recv_reply(vu.GET_VRING_BASE)
                settled(fast, 1, 1)
                p.drain()
                assert eventfd_id(p.signals[2]) != theirs, "the driver VM's kick was not taken back"
            p.wait(lambda s: not s.up)
            p.sync()
            settled(fast, 0, 0)


def test_call_fd_changes_in_a_run(fast):
    """As a VMM does to mask an interrupt. What goes into the old one is not lost for long."""
    with vu.Nic(drv(fast)) as nic, pc.Local(dev(fast)) as p:
        p.attach()
        s = p.wait(lambda s: s.up)
        settled(fast, 2, 2)
        run = s.queues[0].run
        old = os.dup(p.doorbells[1])
        fds = fast.fds()
        new = os.eventfd(0, os.EFD_NONBLOCK) if hasattr(os, "eventfd") else vu.eventfd()
        nic.tell(vu.SET_VRING_CALL, struct.pack("<Q", 0), [new])
        pc.one(old)  # the process has not seen the change yet
        assert pc.raised(new), "the call was lost"
        fast.wait(lambda: p.drain() or same(p.doorbells[1], new))
        assert p.state().queues[0].run == run
        end = time.monotonic() + conftest.PATIENCE
        while pc.raised(new, 0.7):
            assert time.monotonic() < end, "it is raised for ever"
        pc.one(p.doorbells[1])
        assert pc.raised(new)
        os.close(old)
        # What raised it is taken down.
        fast.wait(lambda: fast.fds() <= fds)
