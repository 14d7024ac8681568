# SPDX-License-Identifier: BSD-3-Clause
"""What a queue may cost in one go: a run of its job ends when that is used up, and the rest comes in the next ones."""
import struct
import time

import pytest

import vu
from bugclass import Lab, lab_of
from test_relay import both_ways

MRG = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF)
RINGS = {"split": 0, "packed": vu.bit(vu.PACKED)}
TABLES = 40


@pytest.fixture
def lab(make_daemon, request):
    yield from lab_of(Lab, make_daemon, request.param)


def table(nic, n, length=0, write=False):
    """An indirect table of n entries; where it lies."""
    at = nic.mem.alloc(16 * n, 4096)
    packed = nic.features >> vu.PACKED & 1
    for i in range(n):
        last = i == n - 1
        flags = (vu.DESC_WRITE if write else 0) | (0 if packed or last else vu.DESC_NEXT)
        nic.mem.w("QIHH", at + 16 * i, nic.mem.gpa + 4096, length, *((0, flags) if packed else (flags, 0 if last else i + 1)))
    return at


def offer(nic, q, at, n):
    """All tables at once."""
    ring = nic.rings[q]
    for i in range(TABLES):
        if ring.packed:
            ring.raw([(nic.mem.gpa + at, 16 * n, vu.DESC_INDIRECT)], i)
        else:
            ring.raw_desc(i, nic.mem.gpa + at, 16 * n, vu.DESC_INDIRECT, 0)
            nic.mem.w("H", ring.avail + 4 + 2 * ((ring.avail_idx + i) % ring.size), i)
    if not ring.packed:
        ring.set_avail_idx(ring.avail_idx + TABLES)
    nic.kick(q)


def used(nic, q):
    ring = nic.rings[q]
    if not ring.packed:
        return nic.mem.r("H", ring.used + 2)
    flags = [nic.mem.r("H", ring.desc + 16 * i + 14) for i in range(ring.size)]
    return sum(bool(f & vu.PACKED_AVAIL) and bool(f & vu.PACKED_USED) for f in flags)


@pytest.mark.parametrize("lab", ["relay", "copy"], indirect=True)
@pytest.mark.parametrize("ring", RINGS)
def test_empty_tables_take_many_runs(lab, ring):
    """Descriptors with nothing in them are work: 40 tables of 256 come back one in a run, not 32."""
    nic = lab.driver(MRG | RINGS[ring])
    before = lab.d.stats("ab")["driver"]["tx"]
    offer(nic, 1, table(nic, 256), 256)
    lab.d.wait(lambda: used(nic, 1) == TABLES)
    tx = lab.d.wait(lambda: (t := lab.d.stats("ab")["driver"]["tx"])["dropped"] - before["dropped"] == TABLES and t)
    assert tx["bursts"] - before["bursts"] >= TABLES
    assert lab.d.show("ab")["status"] == "up"


@pytest.mark.parametrize("lab", ["fast"], indirect=True)
@pytest.mark.parametrize("ring", RINGS)
def test_empty_tables_fast(lab, ring):
    """The same through libvhostpci: they come back, and the queue goes on."""
    nic = lab.driver(MRG | RINGS[ring])
    offer(nic, 1, table(nic, 256), 256)
    lab.d.wait(lambda: used(nic, 1) == TABLES)
    assert lab.d.show("ab")["status"] == "up"


@pytest.mark.parametrize("mode", ["relay", "copy"])
@pytest.mark.parametrize("ring", RINGS)
def test_rate_of_empty_tables(make_daemon, ring, mode):
    """A table of 256 entries counts as 8 packets of PacketsPerSecond=: for as long the queue is not looked at, and nobody polls."""
    one = Lab(make_daemon(), mode, start_port=False)
    d = one.d
    d.link("ab", device="b" if mode == "relay" else "stranger", Net_PacketsPerSecond=20,
           **({} if mode == "relay" else {"Device_Endpoint": "port", "Device_Attachment": "local", "Link_Mode": "copy"}))
    d.call("daemon.reload")
    one.start_port()
    try:
        nic = one.driver(MRG | RINGS[ring])
        offer(nic, 1, table(nic, 256), 256)
        d.wait(lambda: used(nic, 1) >= 8)
        time.sleep(0.2)
        before, done, since = d.call("daemon.show")["threads"][0]["rounds"], used(nic, 1), time.monotonic()
        time.sleep(0.5)
        rounds, took = d.call("daemon.show")["threads"][0]["rounds"] - before, time.monotonic() - since
        # 64 at once, 64 owed, 8 a table; then one more each 0.4 s.
        assert done <= used(nic, 1) < TABLES or took > 5
        assert d.stats("ab")["driver"]["tx"]["dropped"] < TABLES or took > 5
        assert rounds < 6000 * took, rounds
    finally:
        one.close()


def tso(nic, payload, mss):
    hdr = struct.pack("<BBHHHHH", 1, 1, 54, mss, 34, 16, 0)
    eth = bytes([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0])
    ip = struct.pack(">BBHHHBBHII", 0x45, 0, 40 + payload, 1, 0, 64, 6, 0, 0x0a000001, 0x0a000002)
    tcp = struct.pack(">HHIIBBHHH", 1, 2, 1000, 4, 0x50, 0x10, 0xffff, 0, 0)
    nic.send_packet(eth + ip + tcp + bytes(i & 0xff for i in range(payload)), hdr)


def test_too_many_segments(daemon):
    """A packet that would become thousands of segments is dropped and counted; one with a low mss that makes few is cut."""
    f = MRG | vu.bit(vu.NET_CSUM, vu.NET_HOST_TSO4)
    with vu.Nic(daemon.sock("ab", "driver"), f) as a, vu.Nic(daemon.sock("ab", "device"), bufsize=128, fill=False) as b:
        b.fill_rx(200)
        for payload, mss in ((32000, 1), (100, 1), (100, 7), (32000, 190)):
            tso(a, payload, mss)
        daemon.wait(lambda: daemon.stats("ab")["driver"]["tx"]["drops"]["bad-packet"] == 4)
        tso(a, 800, 8)
        for i in range(100):
            _, got = b.recv_packet()
            assert len(got) == 62 and struct.unpack_from(">I", got, 38)[0] == 1000 + 8 * i
        daemon.wait(lambda: daemon.stats("ab")["driver"]["tx"]["segmented"] == 1)
        b.close()
        with vu.Nic(daemon.sock("ab", "device")) as b2:
            daemon.wait(lambda: daemon.show("ab")["status"] == "up")
            both_ways(a, b2)


def test_rate_of_segments(make_daemon):
    """What a packet is cut into counts as packets; the next ones wait, they are not dropped."""
    d = make_daemon()
    d.link("ab", Net_PacketsPerSecond=50)
    d.start()
    f = MRG | vu.bit(vu.NET_CSUM, vu.NET_HOST_TSO4)
    with vu.Nic(d.sock("ab", "driver"), f) as a, vu.Nic(d.sock("ab", "device"), fill=False, bufsize=1526) as b:
        b.fill_rx(250)
        since = time.monotonic()
        for _ in range(2):
            tso(a, 50000, 500)  # 100 segments each: 64 at once, and as many may be owed
        d.wait(lambda: d.stats("ab")["driver"]["tx"]["segmented"] >= 1)
        time.sleep(0.3)
        tso(a, 50000, 500)
        time.sleep(0.3)
        tx = d.stats("ab")["driver"]["tx"]
        # A second of 50 pays for what is owed.
        assert (tx["segmented"] < 3 and tx["dropped"] == 0) or time.monotonic() - since > 1
        d.wait(lambda: d.stats("ab")["driver"]["tx"]["dropped"] + d.stats("ab")["driver"]["tx"]["segmented"] == 3)
