# SPDX-License-Identifier: BSD-3-Clause
"""What one peer may have written into the log: bounded, told, and not at the cost of what is said of others, or of the audit log."""
import os
import struct
import time

import pytest

import vu
from test_hostile_neighbour import QUIET, message, u64

BURST, PER_S, TELL = 200, 5, 5  # lib/base/loglimit.h


def kicks(f, null):
    """64 times a ring that cannot start, which is a line each."""
    for _ in range(64):
        f.raw(message(vu.SET_VRING_KICK, u64(1)), [null.fileno()])
        f.raw(message(vu.GET_VRING_BASE, struct.pack("<II", 1, 0)))
    f.recv_exact(64 * 20)


@pytest.fixture
def flooded(make_daemon):
    """A daemon, and what has it write lines, called again and again."""
    d = make_daemon("--log-level", "info")
    d.link("ab")
    d.link("cd", driver="c", device="d")
    d.start()
    with vu.Frontend(d.sock("ab", "driver")) as f, os.fdopen(os.memfd_create("no eventfd"), "rb") as null:
        f.negotiate(vu.BASIC, QUIET)
        mem = vu.Memory(4 << 20)
        f.set_memory(mem)
        f.tell_state(vu.SET_VRING_NUM, 1, 64)
        f.tell(vu.SET_VRING_ADDR, f.addr_msg(1, vu.SplitRing(mem, 64)))
        yield d, lambda: kicks(f, null)


def lines(d, subject):
    return [l for l in d.log().splitlines() if subject in l]


def test_one_session_is_bounded_and_told_of(flooded):
    d, flood = flooded
    t, n = time.monotonic(), 64 * 60
    for _ in range(60):
        flood()
    took = time.monotonic() - t
    said = lines(d, "link ab, driver side: queue 1")
    assert len(said) <= BURST + PER_S * (took + 1), f"{len(said)} lines of {n}"
    # Also when nobody says anything any more; and the sum is right.
    d.wait(lambda: lines(d, "lines were left out"))
    flood_over = sum(int(l.split("link ab, driver side: ")[1].split()[0]) for l in lines(d, "lines were left out"))
    d.stop()
    told = sum(int(l.split("link ab, driver side: ")[1].split()[0]) for l in lines(d, "lines were left out"))
    assert flood_over <= told and told + len(lines(d, "link ab, driver side: queue 1")) >= n


def test_others_are_heard(flooded):
    """A queue of another link breaks, a front-end of another VM comes and goes, and the other side of this link does."""
    d, flood = flooded
    for _ in range(20):
        flood()
    for link, side in (("cd", "driver"), ("ab", "device")):
        flood()
        with vu.Nic(d.sock(link, side), fill=False) as nic:
            nic.rings[1].raw_desc(0, 0xdead0000, 100, 0, 0)
            nic.rings[1].expose(0)
            nic.kick(1)
            flood()
            d.wait_log(f"link {link}, {side} side: queue 1")
        d.wait_log(f"link {link}, {side} side: session")


def test_the_audit_log_is_not_bounded(flooded):
    d, flood = flooded
    for n in range(60):
        flood()
        d.call("link.down", name="cd")
        d.call("link.up", name="cd")
    audit = [l for l in d.log().splitlines() if "audit: " in l and '"link":"cd"' in l]
    assert len([l for l in audit if "link.down" in l]) == 60 and len([l for l in audit if "link.up" in l]) == 60


def test_reconnects(make_daemon):
    d = make_daemon("--log-level", "info")
    d.link("ab")
    d.start()
    t = time.monotonic()
    for _ in range(500):
        with vu.Frontend(d.sock("ab", "driver")) as f:
            f.ask_u64(vu.GET_FEATURES)
    assert len(lines(d, "link ab, driver side")) <= BURST + PER_S * (time.monotonic() - t + 1)


def test_debug_lines_do_not_hide_others(make_daemon):
    d = make_daemon()  # level debug
    d.link("ab")
    d.start()
    t = time.monotonic()
    with vu.Frontend(d.sock("ab", "driver")) as f:
        f.negotiate(vu.BASIC)
        for _ in range(200):
            f.raw(message(vu.SET_VRING_NUM, struct.pack("<II", 0, 0), 9) * 50)  # refused, at level debug
            f.recv_exact(50 * 20)
    d.wait_log("session with pid")
    assert 1000 < len(lines(d, "refused")) <= 2000 + 200 * (time.monotonic() - t + 1)
