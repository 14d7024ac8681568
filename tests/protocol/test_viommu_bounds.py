# SPDX-License-Identifier: BSD-3-Clause
"""A driver VM with a vIOMMU: what is kept of its translations, and what is done while one of them does not come."""
import select
import struct
import time

import pytest

import vu
from bugclass import MRG
from iolab import lab  # noqa: F401 (a fixture)
from viommu import INVALIDATE, IOVA, PAGE, RW, UPDATE, WO

MAX_ENTRIES = 65536


def test_ranges_merge(lab):
    """Pages that continue each other are one entry, others are not; splitting gives two."""
    nic = lab.driver()
    for n in range(20):
        lab.there_and_back(n)
    at = 3000  # pages that nothing else uses
    base = lab.iommu()["entries"]
    for p in range(64):
        nic.update(at + (p ^ 1))
    assert lab.iommu()["entries"] == base + 1
    nic.invalidate(at + 20)
    assert lab.iommu()["entries"] == base + 2
    nic.update(at + 40, WO)  # reading goes, and that it may be written is not proven
    assert lab.iommu()["entries"] == base + 3
    nic.update(at + 40)
    nic.update(at + 20)
    assert lab.iommu()["entries"] == base + 1
    nic.invalidate(at, 64)
    assert lab.iommu()["entries"] == base


def test_bound_on_entries(lab):
    """More mappings than are kept: some are forgotten, and missed again; nothing else happens."""
    nic = lab.driver()
    lab.there_and_back(1)
    sent = 0

    def flood(n):
        nonlocal sent
        data = b"".join(struct.pack("<IIIQQQBB6x", vu.IOTLB_MSG, 1, 32, (1 << 50) + 2 * (sent + i) * PAGE, PAGE, nic.mem.real_uva, RW, UPDATE)
                        for i in range(n))
        nic.raw(data)
        sent += n
        for _ in range(n):
            assert struct.unpack("<Q", nic.recv_reply(vu.IOTLB_MSG))[0] == 0

    while sent < MAX_ENTRIES + 2000:
        flood(30)  # no more answers than the daemon keeps for a front-end that is slow to read
    assert MAX_ENTRIES / 2 < lab.iommu()["entries"] <= MAX_ENTRIES
    for n in range(10):
        lab.there_and_back(n)
    nic.iotlb(3, 1 << 50, 1 << 50)
    assert lab.iommu()["entries"] < 1000
    lab.there_and_back(99)


def test_bound_on_pieces(lab):
    """An invalidation inside an entry makes two of it: there is an end to that, too."""
    nic = lab.driver()
    lab.there_and_back(1)
    at = lambda i: (1 << 50) + 4 * i * PAGE

    def flood(n, kind, off, size):
        for i in range(0, n, 30):
            part = range(i, min(i + 30, n))
            nic.raw(b"".join(struct.pack("<IIIQQQBB6x", vu.IOTLB_MSG, 1, 32, at(k) + off, size, nic.mem.real_uva, RW, kind) for k in part))
            for _ in part:
                assert struct.unpack("<Q", nic.recv_reply(vu.IOTLB_MSG))[0] == 0
            if not i % 3000:
                assert lab.iommu()["entries"] <= MAX_ENTRIES

    flood(40000, UPDATE, 0, 3 * PAGE)
    assert lab.iommu()["entries"] >= 40000
    flood(40000, INVALIDATE, PAGE, PAGE)
    assert MAX_ENTRIES / 2 < lab.iommu()["entries"] <= MAX_ENTRIES
    for n in range(10):
        lab.there_and_back(n)


def test_bad_updates(lab):
    """Refused; what was mapped before stays as it was."""
    nic = lab.driver()
    lab.there_and_back(1)
    n, u = lab.iommu()["entries"], nic.mem.real_uva
    for iova, size, uaddr, perm in (
            (IOVA, 0, u, RW), (IOVA, PAGE, u - PAGE, RW), (IOVA, nic.mem.size + PAGE, u, RW), ((1 << 64) - PAGE, 2 * PAGE, u, RW),
            (IOVA, PAGE, (1 << 64) - 1, RW), (IOVA, PAGE, u, 0), (IOVA, PAGE, IOVA, RW), (IOVA, 2 * PAGE, u + nic.mem.size - PAGE, RW)):
        with pytest.raises(vu.Refused):
            nic.iotlb(UPDATE, iova, size, uaddr, perm)
    for kind in (0, 1, 4, 5, 255):
        with pytest.raises(vu.Refused):
            nic.iotlb(kind, IOVA, PAGE, u, RW)
    assert lab.iommu()["entries"] == n
    lab.there_and_back(2)


def test_without_the_feature(lab):
    with vu.Frontend(lab.path()) as f:
        f.negotiate(MRG)
        f.set_memory(vu.Memory())
        assert struct.unpack("<Q", f.ask(vu.IOTLB_MSG, struct.pack("<QQQBB6x", 0, PAGE, f.mem.uva, RW, UPDATE)))[0]
        assert f.alive()


def test_front_end_that_does_not_answer(lab):
    """Its queues wait. Others do not, and a ring that is stopped meanwhile says exactly where it stood."""
    nic = lab.driver()
    lab.there_and_back(1)
    nic.silent = True
    off = nic.mem.alloc(PAGE, PAGE)
    lab.tx_from(off)
    nic.send_packet(vu.frame(2))
    time.sleep(0.1)
    lab.check()
    base = nic.rings[1].avail_idx - 1
    assert nic.stop_ring(1) == base
    nic.silent = False
    nic.start_ring(1, nic.rings[1], base=base)
    lab.wait_up()
    assert lab.answer() == vu.frame(2)


@pytest.mark.parametrize("lab, q", [("relay", 1), ("copy", 1), ("copy", 0)], indirect=["lab"])
def test_waiting_is_no_polling(lab, q):
    """For a translation, of a packet or of the buffer that one is to go into: the data threads sleep, and go on with the answer."""
    nic = lab.driver(fill=bool(q))
    off = nic.mem.alloc(PAGE, PAGE)
    if q:
        lab.there_and_back(1)
        lab.tx_from(off)
    else:
        nic.tx_free = [nic.mem.alloc(PAGE, PAGE)]
        nic.update(nic.tx_free[0] // PAGE)
        nic.rings[0].add([(off, 2048, True)], off)
        nic.kick(0)
        lab.wait(lambda: (IOVA + off, WO) in nic.misses)
        time.sleep(0.1)
        nic.invalidate(off // PAGE)
    nic.silent = True
    nic.send_packet(vu.frame(3))
    assert select.select([nic.back], [], [], 60)[0], "nothing was asked"
    rounds = lambda: sum(t["rounds"] for t in lab.d.call("daemon.show")["threads"])
    time.sleep(0.1)
    before, t = rounds(), time.monotonic()
    time.sleep(0.2)
    assert rounds() - before < 5000 * (time.monotonic() - t) and lab.answer(0.1) is None
    nic.silent = False
    assert lab.answer() == vu.frame(3)


@pytest.mark.parametrize("when", ["before", "while it is asked"])
def test_channel_comes_late(lab, when):
    """Without a channel misses cannot be sent: that is said once, and made good when it comes."""
    nic = lab.driver(wait=False) if when == "before" else lab.driver()
    nic.silent = True
    nic.back.close()
    nic.back = None
    off = nic.mem.alloc(PAGE, PAGE)
    lab.tx_from(off)
    nic.send_packet(vu.frame(1))
    time.sleep(0.3)
    assert lab.d.log().count("a vIOMMU miss cannot be sent") <= 1
    nic.silent = False
    nic.set_channel()
    lab.wait_up()
    assert lab.answer() == vu.frame(1) or when == "before"  # what came while the link was down is dropped
    lab.there_and_back(2)


def test_guest_names_pages_that_are_not_mapped(lab):
    """Thousands of addresses that nobody mapped: what is remembered of them is bounded, and the queue breaks."""
    nic = lab.driver(fill=False)
    for i in range(200):
        nic.rings[0].raw_desc(i, (1 << 45) + i * PAGE, 2048, vu.DESC_WRITE, 0)
        nic.rings[0].expose(i)
    nic.kick(0)
    lab.until_receive_breaks()
    assert len(nic.misses) < 200
    assert lab.d.log().count("its vIOMMU does not map") <= 64


@pytest.mark.parametrize("lab", ["copy"], indirect=True)
def test_device_side_dies(lab):
    """Its death while a translation is awaited: rings are taken back exactly, the next device side goes on."""
    nic = lab.driver()
    for n in range(3):
        for i in range(10):
            lab.there_and_back(i)
        nic.silent = True
        nic.invalidate(0, 2000)
        nic.send_packet(vu.frame(50))
        time.sleep(0.05)
        lab.proc.kill()
        lab.proc.wait()
        lab.d.wait(lambda: not lab.d.stats("ab")["device"]["online"])
        nic.silent = False
        lab.wait(lambda: all(lab.queue(q)["state"] == "running" for q in (0, 1)))
        lab.start_port()
        lab.wait_up()
        while lab.answer(0.3) is not None:
            pass


@pytest.mark.parametrize("lab", ["copy"], indirect=True)
def test_pool_shows_what_was_mapped(lab):
    """Of a page that the vIOMMU maps, the device VM gets what the descriptor names; of others nothing."""
    nic = lab.driver()
    secret = b"not yours" * 400
    off = nic.mem.alloc(3 * PAGE, PAGE)
    nic.mem.map[off:off + 3 * PAGE] = (secret * 4)[:3 * PAGE]
    nic.perm[off // PAGE + 1] = 0
    # From the end of a mapped page into one that is not.
    nic.rings[1].add([(off + PAGE - 100, 300, False)], off)
    nic.kick(1)
    lab.broken(1)
    with open(f"/proc/{lab.proc.pid}/maps") as maps:
        spans = [tuple(int(x, 16) for x in line.split()[0].split("-")) for line in maps if "memfd:" in line and "rw-s" in line]
    assert spans
    with open(f"/proc/{lab.proc.pid}/mem", "rb") as m:
        for start, end in spans:
            m.seek(start)
            assert secret[:90] not in m.read(end - start)
