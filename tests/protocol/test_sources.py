# SPDX-License-Identifier: BSD-3-Clause
"""fds that others keep open: what the daemon has closed, or has been given another one for, is nobody's any more.

epoll goes on watching a file as long as anybody has it open, whoever closed what. All modes, all attachments, both channels of a
front-end, and the kicks and doorbells that data threads and the forwarder wait for.
"""
import contextlib
import os
import select
import signal
import socket
import struct
import time

import pytest

import portclient as pc
import vu
from bugclass import MODES, Lab, lab_of
from portlab import PortLab, started

PF = vu.bit(vu.PF_REPLY_ACK, vu.PF_CONFIG, vu.PF_MEM_SLOTS, vu.PF_STATUS, vu.PF_BACKEND_REQ)
JUNK = bytes(64)  # no message of vhost-user's


@pytest.fixture(params=MODES)
def lab(make_daemon, request):
    yield from lab_of(Lab, make_daemon, request.param)


@pytest.fixture(params=["fast", "copy"])
def shmem(make_daemon, request):
    one = PortLab(make_daemon(), request.param, "shmem")
    one.d.link("cd", driver="c", device="d")
    one.d.start()
    yield one


def channel(fe):
    """A request channel whose daemon's end the front-end has, too: (ours, duplicate of theirs)."""
    a, b = socket.socketpair()
    a.settimeout(30)
    fe.tell(vu.SET_BACKEND_REQ_FD, b"", [b.fileno()])
    return a, b


def closed(s):
    """By the other end, which may not have read all."""
    try:
        return bool(select.select([s], [], [], 30)[0]) and s.recv(64) == b""
    except ConnectionResetError:
        return True


def idle(d):
    """Does the main thread rest? In clock ticks of a second."""
    def ticks():
        with open(f"/proc/{d.proc.pid}/task/{d.proc.pid}/stat") as f:
            return sum(map(int, f.read().rsplit(")", 1)[1].split()[11:13]))
    t = ticks()
    time.sleep(0.5)
    return ticks() - t < 10


def spoil_channels(d, fe):
    """Junk comes after the daemon has closed its end, which stays open here; the same a number of times."""
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            a, b = channel(fe)
            stack.enter_context(a)
            stack.enter_context(b)
            a.sendall(JUNK)
            assert fe.alive()
            time.sleep(0.02)
            a.sendall(JUNK)
        a, b = channel(fe)
        # Replaced while it is well, and kept.
        c, e = channel(fe)
        stack.enter_context(c)
        for s in (a, b):
            stack.enter_context(s)
        e.close()
        a.sendall(JUNK)
        time.sleep(0.05)
        assert fe.alive() and idle(d)
        c.sendall(JUNK)  # the one in force: this is seen
        assert closed(c)


def test_request_channel_kept_open(lab):
    with vu.Frontend(lab.path()) as f:
        f.negotiate(vu.BASIC, PF)
        spoil_channels(lab.d, f)
        lab.check()
    lab.check()


def test_request_channel_of_a_shmem_port_kept_open(shmem):
    with pc.Shmem(shmem.dev(), start=False) as p:
        spoil_channels(shmem.d, p.fe)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_channels_replaced_in_one_go(lab, n):
    """Two later the number of the daemon's fd is the same again; the last channel is the one that counts."""
    with vu.Frontend(lab.path()) as f:
        f.negotiate(vu.BASIC, PF)
        pairs = [socket.socketpair() for _ in range(1 + n)]
        f.tell(vu.SET_BACKEND_REQ_FD, b"", [pairs[0][1].fileno()])
        lab.d.proc.send_signal(signal.SIGSTOP)  # so that it finds all of them at once
        for _, theirs in pairs[1:]:
            f.send(vu.SET_BACKEND_REQ_FD, b"", [theirs.fileno()], need_reply=False)
        lab.d.proc.send_signal(signal.SIGCONT)
        assert f.alive()
        for _, theirs in pairs:
            theirs.close()
        for ours, _ in pairs[:-1]:
            assert closed(ours), "a channel that was replaced is open"
            ours.close()
        pairs[-1][0].sendall(JUNK)
        assert closed(pairs[-1][0])
        pairs[-1][0].close()
        assert f.alive()


def test_front_end_goes_and_keeps_everything(lab):
    """Socket, channel, kicks: a process beside the VMM has them all, and uses them."""
    nic = lab.driver()
    a, b = socket.socketpair()
    fds = lab.d.fds()
    sock = nic.sock.dup()
    kicks = [os.dup(r.kick_fd) for r in nic.rings.values()]
    lab.there_and_back(1)
    sock.shutdown(socket.SHUT_RDWR)
    lab.stack.close()
    lab.far = None
    lab.d.wait(lambda: lab.d.show("ab")["status"] in ("waiting", "partial"))
    before = lab.d.rest(lambda: sleeps(lab.d))
    for _ in range(50):
        for k in kicks:
            pc.one(k)
        time.sleep(0.002)
    assert sleeps(lab.d) - before < 10, "kicks of a driver VM that has gone wake data threads"
    assert idle(lab.d)
    sock.close()
    for k in kicks:
        os.close(k)
    a.close()
    b.close()
    lab.driver()
    lab.there_and_back(2)
    assert lab.d.fds() <= fds + 4


def sleeps(d):
    return sum(t["sleeps"] for t in d.call("daemon.show")["threads"])


def test_kick_replaced(lab):
    """The new one works, at once and often; the old ones wake nobody."""
    nic = lab.driver()
    lab.there_and_back(0)
    old = []
    for n in range(1, 6):
        kick = vu.eventfd()
        old.append(nic.rings[1].kick_fd)
        nic.tell(vu.SET_VRING_KICK, struct.pack("<Q", 1), [kick])
        nic.rings[1].kick_fd = kick
        nic.fds.append(kick)
        time.sleep(0.05)
        lab.there_and_back(n)
    before = lab.d.rest(lambda: sleeps(lab.d))
    for _ in range(50):
        for k in old:
            pc.one(k)
        time.sleep(0.002)
    assert sleeps(lab.d) - before < 10, "a kick that was replaced wakes data threads"
    lab.there_and_back(7)


def replace_bell(p, q):
    kick = vu.eventfd()
    old = p.doorbells[q]
    p.fe.tell(vu.SET_VRING_KICK, struct.pack("<Q", q), [kick])
    p.doorbells[q] = kick
    return old


def test_doorbells_of_a_shmem_port_replaced(shmem):
    """Commands and calls come by the new kick fd; who takes over an old one's number is not taken out in its place."""
    d = shmem.d
    with vu.Nic(shmem.drv()) as nic, pc.Shmem(shmem.dev()) as p:
        assert p.attach(pc.ALL & ~vu.bit(vu.PACKED)) == pc.OK
        started(p)
        old = []
        for lap in range(4):
            for q in range(len(p.doorbells)):
                old.append(replace_bell(p, q))
            with vu.Frontend(d.sock("cd", "driver")) as victim, vu.Frontend(d.sock("cd", "device")) as victim2:
                assert p.command(pc.SYNC, p.state().regions_generation) == pc.OK
                q = p.state().queues[0]
                while pc.raised(nic.rings[0].call_fd, 0):
                    pass
                if shmem.mode == "fast":
                    pc.one(p.doorbells[1])
                    assert pc.raised(nic.rings[0].call_fd)
                else:
                    give(p, q, lap)
                    assert nic.recv_packet()[1] == vu.frame(lap)
                for _ in range(5):
                    for fd in old:
                        pc.one(fd)
                assert victim.alive() and victim2.alive()
        before = d.rest(lambda: sleeps(d))
        for _ in range(30):
            for fd in old:
                pc.one(fd)
            time.sleep(0.002)
        assert sleeps(d) - before < 10 and idle(d)
        p.fe.sock.close()
        p.back.close()
        d.wait(lambda: not d.show("ab")["sides"]["device"]["connected"])
        with vu.Frontend(d.sock("cd", "driver")) as victim:
            for fd in old + p.doorbells:
                pc.one(fd)
            assert victim.alive() and d.alive() and idle(d)


def give(p, q, n):
    """Chain number n of the receive queue's shadow ring, in copy mode."""
    bufs, head = p.take(q, n)
    whole = bytes(10) + b"\1\0" + vu.frame(n)
    p.view(bufs[0][0], len(whole))[:] = whole
    p.give_back(q, n, head, len(whole))
    pc.one(p.doorbells[q.doorbell])


@pytest.mark.parametrize("mode", ["fast", "copy"])
def test_local_process_goes_and_keeps_its_eventfds(make_daemon, mode):
    one = PortLab(make_daemon(), mode, "local")
    d = one.d
    d.start()
    with vu.Nic(one.drv()) as nic:
        kept = []
        for _ in range(3):
            with one.port() as p:
                started(p)
                kept += [os.dup(fd) for fd in p.doorbells + p.signals]
                kept.append(os.dup(p.sock.fileno()))
                p.sock.shutdown(socket.SHUT_RDWR)
            d.wait(lambda: not d.show("ab")["sides"]["device"]["online"])
        before = d.rest(lambda: sleeps(d))
        for _ in range(30):
            for fd in kept:
                with contextlib.suppress(OSError, BlockingIOError):
                    pc.one(fd)
            time.sleep(0.002)
        # The driver VM's own kicks are among them where they went straight through, and are in force.
        assert sleeps(d) - before < (10 if mode == "copy" else 200)
        assert d.alive() and idle(d) and nic.alive()
        for fd in kept:
            os.close(fd)
