# SPDX-License-Identifier: BSD-3-Clause
"""libvhostpci on a local port, in the program that the benchmarks use: drivers that behave, that lie, and that die."""
import json
import multiprocessing
import os
import random
import select
import signal
import struct
import subprocess
import time

import pytest

import test_hostile_rings as hostile
import vu
from conftest import BUILD

VPLOAD = BUILD / "bench/vpload"
SPLIT, PACKED = 0, vu.bit(vu.PACKED)
FEATURES = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF)


class Vpload:
    def __init__(self, *sockets):
        self.p = subprocess.Popen([str(VPLOAD), *("unix:" + s for s in sockets)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True, bufsize=1)
        self.answer()

    def answer(self):
        line = self.p.stdout.readline()
        assert line, "vpload ended: " + self.p.stderr.read()
        return json.loads(line)

    def cmd(self, line):
        self.p.stdin.write(line + "\n")
        return self.answer()

    def end(self):
        """Orderly, whatever happened before."""
        self.p.stdin.write("quit\n")
        code = self.p.wait(60)
        text = self.p.stderr.read()
        self.p.stdin.close()
        self.p.stdout.close()
        self.p.stderr.close()
        assert code == 0, (code, text)
        assert "ERROR: AddressSanitizer" not in text and "runtime error:" not in text, text
        return text


@pytest.fixture
def lib(make_daemon):
    """A daemon with two fast links and the library's program on both."""
    d = make_daemon()
    for name in ("l0", "l1"):
        d.link(name, Device_Endpoint="port", Device_Attachment="local", Link_Mode="fast", Device_PackedRings="yes")
    d.start()
    v = Vpload(d.sock("l0", "device"), d.sock("l1", "device"))
    yield d, v
    v.end()


def nic(d, link="l0", ring=SPLIT, **kw):
    return vu.Nic(d.sock(link, "driver"), features=FEATURES | ring, **kw)


def goes_round(a, b, count=50):
    """Packets that a sends arrive at b, whole and in order."""
    for i in range(count):
        data = vu.frame(i, 60 + 29 * i)
        a.send_packet(data)
        got = b.recv_packet()
        assert got is not None and got[1] == data


@pytest.mark.parametrize("ring", [SPLIT, PACKED], ids=["split", "packed"])
@pytest.mark.parametrize("mode", ["echo", "loop", "sleep-echo"])
def test_one_port(lib, mode, ring):
    d, v = lib
    with nic(d, ring=ring) as a:
        v.cmd(mode)
        goes_round(a, a)


@pytest.mark.parametrize("mode", ["copy", "place", "fwd"])
def test_two_ports(lib, mode):
    d, v = lib
    with nic(d, "l0") as a, nic(d, "l1", PACKED) as b:
        v.cmd(mode)
        goes_round(a, b)
        goes_round(b, a)


@pytest.mark.parametrize("mode", ["copy", "fwd"])
def test_lone_packet_of_many_buffers(lib, mode):
    """A burst of one packet that takes several receive buffers."""
    d, v = lib
    with nic(d, "l0") as a, nic(d, "l1") as b:
        v.cmd(mode)
        for i in range(10):
            data = vu.frame(i, 9000)
            a.send_packet(data)
            got = b.recv_packet()
            assert got is not None and got[1] == data


BAD = [f for name, f in sorted(vars(hostile).items()) if name.startswith("split_") and callable(f)]


@pytest.mark.parametrize("bad", BAD, ids=[f.__name__ for f in BAD])
@pytest.mark.parametrize("mode", ["recv", "borrow", "loop"])
def test_ring_that_breaks_the_rules(lib, mode, bad):
    """The queue is given up, said to the daemon; the program goes on, and serves the next driver."""
    d, v = lib
    v.cmd(mode)
    with nic(d) as a:
        bad(a, a.rings[1])
        a.kick(1)
        time.sleep(0.05)
        v.cmd("stats")
    with nic(d, "l0") as a:
        v.cmd("echo")
        goes_round(a, a, 5)


def torture(path, seed, packed):
    """A driver that sends for all it is worth and scribbles over its own rings, until it is killed."""
    rnd = random.Random(seed)
    a = vu.Nic(path, features=FEATURES | (PACKED if packed else 0))
    ring = a.rings[1]
    sane = seed % 2
    for i in range(10 ** 9):
        try:
            a.send_packet(vu.frame(i, 64 + i % 1400), kick=not i % 8)
        except (AssertionError, KeyError, IndexError, struct.error):
            pass
        if not sane and not i % 50:
            # Anywhere in descriptors and indices, the receive queue's too.
            r = a.rings[i // 50 % 2]
            area, n = rnd.choice([(r.desc, 16 * r.size), (r.avail, 6 + 2 * r.size)]) if not packed else (r.desc, 16 * r.size)
            a.mem.map[area + rnd.randrange(n)] = rnd.randrange(256)
        a.tx_free = a.tx_free or [a.mem.alloc(2048)]
    ring.reset()


@pytest.mark.parametrize("mode", ["recv", "borrow", "echo", "loop", "fwd", "copy", "place"])
def test_driver_killed_in_mid_burst(lib, mode):
    d, v = lib
    v.cmd(mode)
    peer = nic(d, "l1") if mode in ("fwd", "copy", "place") else None
    for cycle in range(6):
        p = multiprocessing.get_context("fork").Process(target=torture, args=(d.sock("l0", "driver"), cycle, cycle % 3 == 2), daemon=True)
        p.start()
        before = v.cmd("stats")["packets"]
        deadline = time.monotonic() + 30
        while v.cmd("stats")["packets"] < before + 20 and time.monotonic() < deadline and cycle % 2:
            time.sleep(0.005)
        time.sleep(0.02 + 0.01 * cycle)
        os.kill(p.pid, signal.SIGKILL)
        p.join()
        v.cmd("stats")
    if peer:
        peer.close()
    with nic(d) as a:
        v.cmd("echo")
        goes_round(a, a, 5)


def test_daemon_dies(lib):
    """The program is told that the port is gone, and goes on without it."""
    d, v = lib
    with nic(d) as a:
        v.cmd("echo")
        goes_round(a, a, 5)
        d.kill()
        d.proc = None
        for _ in range(50):
            v.cmd("stats")
            time.sleep(0.01)


def test_call_fd_changes_and_the_program_polls(make_daemon):
    """A program that looks at vhp_changed() alone, as examples/echo.c does, finds the eventfd that a VMM takes for calls in mid-run."""
    d = make_daemon()
    d.link("l0", Device_Endpoint="port", Device_Attachment="local", Link_Mode="fast")
    d.start()
    echo = subprocess.Popen([str(BUILD / "examples/example-echo"), "unix:" + d.sock("l0", "device")])
    try:
        with nic(d) as a:
            d.wait(lambda: d.show("l0")["status"] == "up")
            time.sleep(0.8)  # the driver VM's own eventfd has come
            new = vu.eventfd()
            a.tell(vu.SET_VRING_CALL, struct.pack("<Q", 1), [new])
            time.sleep(0.8)  # for half a second the daemon raises the new one itself
            while select.select([new], [], [], 0)[0]:
                os.read(new, 8)
            a.send_packet(vu.frame(1))
            assert a.recv_packet() is not None
            assert select.select([new], [], [], 20)[0], "the call went into the old eventfd"
            os.close(new)
    finally:
        echo.kill()
        echo.wait()
