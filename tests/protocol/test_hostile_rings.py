# SPDX-License-Identifier: BSD-3-Clause
"""Rings that break the rules: that queue stops with one clear line, nothing else does."""
import struct

import pytest

import vu
from test_hostile_messages import guarded  # noqa: F401 (a fixture)
from test_relay import both_ways

SPLIT, PACKED = 0, vu.bit(vu.PACKED)


def split_index_ahead(a, r):
    r.set_avail_idx(r.avail_idx + r.size + 1)


def split_index_back(a, r):
    r.set_avail_idx(r.avail_idx - 1)


def split_head_out_of_range(a, r):
    r.expose(r.size)


def split_next_out_of_range(a, r):
    r.raw_desc(0, a.mem.gpa + 4096, 100, vu.DESC_NEXT, r.size)
    r.expose(0)


def split_loop(a, r):
    r.raw_desc(0, a.mem.gpa + 4096, 100, vu.DESC_NEXT, 1)
    r.raw_desc(1, a.mem.gpa + 4096, 100, vu.DESC_NEXT, 0)
    r.expose(0)


def split_unmapped(a, r):
    r.raw_desc(0, 0xdead0000, 100, 0, 0)
    r.expose(0)


def split_wraps(a, r):
    r.raw_desc(0, (1 << 64) - 50, 100, 0, 0)
    r.expose(0)


def split_past_the_end(a, r):
    r.raw_desc(0, a.mem.gpa + a.mem.size - 10, 100, 0, 0)
    r.expose(0)


def split_writable_first(a, r):
    r.raw_desc(0, a.mem.gpa + 4096, 100, vu.DESC_NEXT | vu.DESC_WRITE, 1)
    r.raw_desc(1, a.mem.gpa + 8192, 100, 0, 0)
    r.expose(0)


def split_four_gib(a, r):
    for i in range(8):
        r.raw_desc(i, a.mem.gpa, 0xffffffff, vu.DESC_NEXT if i < 7 else 0, i + 1)
    r.expose(0)


def split_indirect(length, inner=0):
    def case(a, r):
        table = a.mem.alloc(65536, 4096)
        for i in range(4):
            a.mem.w("QIHH", table + 16 * i, a.mem.gpa + 4096, 64, inner or (vu.DESC_NEXT if i < 3 else 0), i + 1)
        r.raw_desc(0, a.mem.gpa + table, length, vu.DESC_INDIRECT, 0)
        r.expose(0)
    case.__name__ = f"split_indirect_{length}_{inner}"
    return case


def split_indirect_long(a, r):
    """A table that is longer than the queue; what is in its entries does not matter."""
    n = r.size + 1
    table = a.mem.alloc(16 * n, 4096)
    for i in range(n):
        a.mem.w("QIHH", table + 16 * i, a.mem.gpa + 4096, 0 if i & 1 else 1, vu.DESC_NEXT if i < n - 1 else 0, i + 1 if i < n - 1 else 0)
    r.raw_desc(0, a.mem.gpa + table, 16 * n, vu.DESC_INDIRECT, 0)
    r.expose(0)


def split_indirect_and_next(a, r):
    r.raw_desc(0, a.mem.gpa + 4096, 16, vu.DESC_INDIRECT | vu.DESC_NEXT, 1)
    r.expose(0)


def split_indirect_unmapped(a, r):
    r.raw_desc(0, 0xdead0000, 64, vu.DESC_INDIRECT, 0)
    r.expose(0)


def packed_endless(a, r):
    r.raw([(a.mem.gpa + 4096, 100, vu.DESC_NEXT)] * r.size, 0)


def packed_unmapped(a, r):
    r.raw([(0xdead0000, 100, 0)], 0)


def packed_writable_first(a, r):
    r.raw([(a.mem.gpa + 4096, 100, vu.DESC_NEXT | vu.DESC_WRITE), (a.mem.gpa + 8192, 100, 0)], 0)


def packed_indirect_odd(a, r):
    r.raw([(a.mem.gpa + 4096, 17, vu.DESC_INDIRECT)], 0)


def packed_indirect_empty(a, r):
    r.raw([(a.mem.gpa + 4096, 0, vu.DESC_INDIRECT)], 0)


def packed_indirect_huge(a, r):
    r.raw([(a.mem.gpa, 0xfffffff0, vu.DESC_INDIRECT)], 0)


def packed_indirect_long(a, r):
    n = r.size + 1
    table = a.mem.alloc(16 * n, 4096)
    for i in range(n):
        a.mem.w("QIHH", table + 16 * i, a.mem.gpa + 4096, 0 if i & 1 else 1, 0, 0)
    r.raw([(a.mem.gpa + table, 16 * n, vu.DESC_INDIRECT)], 0)


CASES = [(SPLIT, c) for c in (
    split_index_ahead, split_index_back, split_head_out_of_range, split_next_out_of_range, split_loop, split_unmapped,
    split_wraps, split_past_the_end, split_writable_first, split_four_gib, split_indirect(0), split_indirect(17),
    split_indirect(1 << 20), split_indirect(64, vu.DESC_INDIRECT), split_indirect_and_next, split_indirect_unmapped,
    split_indirect_long)]
CASES += [(PACKED, c) for c in (packed_endless, packed_unmapped, packed_writable_first, packed_indirect_odd,
                                packed_indirect_empty, packed_indirect_huge, packed_indirect_long)]


@pytest.mark.parametrize("ring,case", CASES, ids=[c.__name__ for _, c in CASES])
@pytest.mark.parametrize("q", [1, 0], ids=["transmit", "receive"])
def test_broken_ring(guarded, ring, case, q):  # noqa: F811
    f = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF) | ring
    with vu.Nic(guarded.sock("ab", "driver"), f, fill=q == 1) as a, vu.Nic(guarded.sock("ab", "device")) as b:
        case(a, a.rings[q])
        a.kick(q)
        if q == 0:
            b.send_packet(vu.frame(1))  # makes the relay look at the receive ring
        entry = guarded.wait(lambda: (e := guarded.show("ab")["sides"]["driver"]["queues"][q])["state"] == "broken" and e)
        assert entry["error"]
        lines = [line for line in guarded.log().splitlines() if f"link ab, driver side: queue {q}:" in line and "stays stopped" in line]
        assert len(lines) == 1, lines
        # The other direction of the same link goes on, and so do all queues of the other side.
        if q == 1:
            b.send_packet(vu.frame(7))
            assert a.recv_packet()[1] == vu.frame(7)
        else:
            a.send_packet(vu.frame(7))
            assert b.recv_packet()[1] == vu.frame(7)
        assert all(e["state"] == "running" for e in guarded.show("ab")["sides"]["device"]["queues"])
        # Set up again, it works again.
        a.stop_ring(q)
        a.rings[q].reset()
        a.start_ring(q, a.rings[q])
        if q == 0:
            a.fill_rx(16)
        both_ways(a, b)


HEADERS = {
    "csum_start outside": struct.pack("<BBHHHHH", 1, 0, 0, 0, 5000, 6, 0),
    "csum_offset outside": struct.pack("<BBHHHHH", 1, 0, 0, 0, 14, 65000, 0),
    "csum wraps": struct.pack("<BBHHHHH", 1, 0, 0, 0, 65535, 65535, 0),
    "gso not negotiated": struct.pack("<BBHHHHH", 1, 1, 54, 100, 34, 16, 0),
    "gso without checksum": struct.pack("<BBHHHHH", 0, 1, 54, 100, 0, 0, 0),
    "gso size zero": struct.pack("<BBHHHHH", 1, 1, 54, 0, 34, 16, 0),
    "gso type unknown": struct.pack("<BBHHHHH", 1, 77, 54, 100, 34, 16, 0),
}


@pytest.mark.parametrize("name", HEADERS)
def test_bad_offload_header(guarded, name):  # noqa: F811
    """The packet is dropped and counted; the queue goes on."""
    f = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF, vu.NET_CSUM)
    if name in ("gso without checksum", "gso size zero"):
        f |= vu.bit(vu.NET_HOST_TSO4)
    with vu.Nic(guarded.sock("ab", "driver"), f) as a, vu.Nic(guarded.sock("ab", "device")) as b:
        a.send_packet(vu.frame(1, 200), hdr=HEADERS[name])
        a.send_packet(vu.frame(2, 200))
        assert b.recv_packet()[1] == vu.frame(2, 200)
        guarded.wait(lambda: guarded.stats("ab")["driver"]["tx"]["drops"]["bad-header"] == 1)


@pytest.mark.parametrize("size", [1, 5, 11])
def test_shorter_than_the_header(guarded, size):  # noqa: F811
    with vu.Nic(guarded.sock("ab", "driver")) as a, vu.Nic(guarded.sock("ab", "device")) as b:
        off = a.tx_free.pop()
        a.rings[1].add([(off, size, False)], off)
        a.kick(1)
        a.send_packet(vu.frame(2))
        assert b.recv_packet()[1] == vu.frame(2)
        guarded.wait(lambda: guarded.stats("ab")["driver"]["tx"]["dropped"] == 1)


@pytest.mark.parametrize("ring", [SPLIT, PACKED], ids=["split", "packed"])
def test_zero_length_descriptors(guarded, ring):  # noqa: F811
    """Allowed by some drivers, useless: skipped or broken, never a crash."""
    f = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF) | ring
    with vu.Nic(guarded.sock("ab", "driver"), f) as a, vu.Nic(guarded.sock("ab", "device")) as b:
        off = a.tx_free.pop()
        data = bytes(12) + vu.frame(1)
        a.mem.map[off:off + len(data)] = data
        a.rings[1].add([(off, 0, False), (off, 12, False), (off, 0, False), (off + 12, len(data) - 12, False)], off)
        a.kick(1)
        got = guarded.wait(lambda: b.poll_packet() or guarded.show("ab")["sides"]["driver"]["queues"][1]["state"] == "broken")
        assert got is True or got[1] == vu.frame(1)


def test_blocking_call_fd(guarded):  # noqa: F811
    """A call eventfd that is full and blocks costs its own queue only."""
    import os
    with vu.Nic(guarded.sock("ab", "driver")) as a, vu.Nic(guarded.sock("ab", "device")) as b, \
            vu.Nic(guarded.sock("cd", "driver")) as c, vu.Nic(guarded.sock("cd", "device")) as d:
        call = b.rings[0].call_fd
        os.set_blocking(call, False)
        os.write(call, struct.pack("<Q", (1 << 64) - 2))
        os.set_blocking(call, True)  # the flag is shared with the daemon's duplicate
        for n in range(4):
            a.send_packet(vu.frame(n))
        both_ways(c, d)
        assert guarded.show("cd")["status"] == "up"
        os.read(call, 8)
