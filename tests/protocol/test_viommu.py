# SPDX-License-Identifier: BSD-3-Clause
"""A driver VM with a vIOMMU on relay and copy links: misses, permissions, invalidations under traffic, bounds."""
import os
import random
import select
import struct
import subprocess
import time

import pytest

import vu
from bugclass import MRG, Lab, lab_of
from viommu import ACCESS_PLATFORM, INVALIDATE, IOVA, PAGE, RO, RW, UPDATE, WO, Memory, Nic

PACKED = vu.bit(vu.PACKED)
FORMATS = pytest.mark.parametrize("ring", [0, PACKED, vu.bit(vu.EVENT_IDX)], ids=["split", "packed", "event-idx"])
MAX_ENTRIES = 65536


class IoLab(Lab):
    def driver(self, features=MRG, wait=True, far={}, **kw):
        if self.mode == "relay" and self.far is None:
            self.far = self.stack.enter_context(vu.Nic(self.d.sock("ab", "device"), **far))
        self.nic = self.stack.enter_context(Nic(self.path(), features, **kw))
        if wait:
            self.wait_up()
        return self.nic

    def wait(self, what):
        return self.d.wait(lambda: self.nic.serve() or what())

    def wait_up(self):
        self.wait(lambda: self.d.show("ab")["status"] == "up")

    def there_and_back(self, n, size=200, **kw):
        """A relay does not wait for ever for a translation: on a busy machine it drops and counts, and the packet goes again."""
        lost = 0
        while lost < 20 and self.mode == "relay":
            self.nic.send_packet(vu.frame(n, size), **kw)
            if (got := self.answer(1)) is not None:
                assert got == vu.frame(n, size)
                return
            lost += 1
            st = self.d.stats("ab")
            assert sum(st[s]["tx"]["dropped"] for s in st) >= lost, st
        super().there_and_back(n, size, **kw)

    def tx_from(self, off):
        """The next packet is sent from that buffer."""
        self.wait(lambda: self.nic.reclaim() or not self.nic.rings[1].chains)
        self.nic.tx_free.append(off)

    def until_receive_breaks(self):
        """Packets until the receive queue is looked at (see there_and_back()) and broken."""
        def broke():
            self.echo()
            self.nic.reclaim()
            if len(self.nic.tx_free) > 60:
                self.nic.send_packet(vu.frame(1))
            return self.queue(0)["state"] == "broken"
        self.wait(broke)
        self.broken(0)

    def iommu(self):
        return self.d.show("ab")["sides"]["driver"]["iommu"]

    def broken(self, q):
        """That queue stops and says why, nothing else does."""
        entry = self.wait(lambda: (e := self.queue(q))["state"] == "broken" and e)
        assert entry["error"] and self.queue(1 - q)["state"] == "running"


@pytest.fixture(params=["relay", "copy"])
def lab(make_daemon, request):
    yield from lab_of(IoLab, make_daemon, request.param)


def pages(off, length):
    return range(off // PAGE, (off + length - 1) // PAGE + 1)


def test_fast_offers_none(make_daemon):
    """Nobody translates for a device VM that has all of the memory."""
    lab = Lab(make_daemon(), "fast")
    with vu.Frontend(lab.path()) as f:
        f.negotiate(MRG | vu.bit(ACCESS_PLATFORM))
        assert not f.offered >> ACCESS_PLATFORM & 1
    lab.close()


@FORMATS
def test_misses(lab, ring):
    """Each page is asked for once; what is known is not asked for again."""
    nic = lab.driver(MRG | ring)
    for n in range(50):
        lab.there_and_back(n, 60 + n * 29)
    asked = len(nic.misses)
    touched = set()
    for r in nic.rings.values():
        touched |= {*pages(r.desc, 16 * r.size), *pages(r.avail, 600), *pages(r.used, 2100)}
    # One may be noted while its answer comes in.
    assert len(set(nic.misses)) >= asked - 3, "pages that were answered were asked for again"
    assert asked <= 2 * len(touched) + 50 + 64 + 2, "more misses than pages"
    assert not nic.fails
    before = lab.iommu()["misses"]
    # Every buffer has been used now: no packet misses any more.
    for n in range(150):
        lab.there_and_back(n, 200)
    between = lab.iommu()["misses"]
    for n in range(150):
        lab.there_and_back(n, 200)
    assert lab.iommu()["misses"] == between and between - before <= 64 + 64


def test_large_packets_over_pages(lab):
    """A packet of many pages, each of which is a miss of its own, scattered in the file."""
    nic = lab.driver(bufsize=33000, far={"bufsize": 33000})
    off = nic.tx_free[-1]
    for p in pages(off, 32000):
        if p % 2:
            nic.move(p)
    for n in range(3):
        lab.there_and_back(n, 32000)


@FORMATS
def test_moving_pages(lab, ring):
    """
    Pages of rings and buffers move under traffic: no packet is changed, and once an invalidation has been answered nobody reads or
    writes the page that was taken away.
    """
    rnd = random.Random(5)
    nic = lab.driver(MRG | ring, bufsize=16500, far={"bufsize": 16500})
    mem = nic.mem
    rings = [p for r in nic.rings.values() for area, n in ((r.desc, 16 * r.size), (r.avail, 600), (r.used, 2100)) for p in pages(area, n)]
    bufs = list(range(min(rings), mem.next // PAGE))
    end, sent, seen, got = time.monotonic() + 2, 0, -1, 0
    while time.monotonic() < end or got < 50:
        assert time.monotonic() < end + 60, lab.d.show("ab")
        nic.reclaim()
        for _ in range(8):
            if nic.tx_free:
                nic.send_packet(vu.frame(sent, 16000), kick=False)
                sent += 1
        nic.kick(1)
        # A machine that is too slow for these and for packets beside them has a while for packets.
        for _ in range(3 if time.monotonic() < end else rnd.randrange(10) == 0):
            nic.move(rnd.choice(rings if rnd.random() < 0.3 else bufs))
        for _ in range(8):
            lab.echo()
            packet = nic.poll_packet()
            if packet is None:
                continue
            n, = struct.unpack_from("<I", packet[1], 14)
            assert n > seen, "twice, or out of order"
            assert packet[1] == vu.frame(n, 16000), f"packet {n} was changed"
            seen, got = n, got + 1
        if len(mem.left) > 500:
            mem.check_left()
    assert lab.queue(0)["state"] == lab.queue(1)["state"] == "running"
    # What was sent is taken without a further kick.
    while nic.rings[1].chains:
        assert time.monotonic() < end + 60, lab.d.show("ab")
        lab.answer(0.01)
        nic.reclaim()
    while lab.answer(2) is not None:
        pass
    lab.there_and_back(1 << 20)
    mem.check_left()


def test_remapped_by_update(lab):
    """An update that leads elsewhere takes the old place away, as an invalidation would."""
    nic = lab.driver()
    mem, off = nic.mem, nic.mem.alloc(PAGE, PAGE)
    for n in range(40):
        lab.tx_from(off)
        lab.there_and_back(n, 500)
        mem.move(off // PAGE)
        nic.update(off // PAGE)
    # And a ring's: whoever looks at the old one sees it as it was for ever.
    for r in nic.rings.values():
        for page in {area // PAGE for area in (r.desc, r.avail, r.used)}:
            mem.move(page, lost=False)
            nic.update(page)
        lab.wait_up()
        lab.there_and_back(99)
    mem.check_left()


def test_everything_invalidated(lab):
    """What a lazy guest does: one range for all. Rings find their places again."""
    nic = lab.driver()
    for n in range(30):
        lab.there_and_back(n)
        nic.iotlb(3, 0, (1 << 64) - 1)
        assert lab.iommu()["entries"] <= 1 or lab.mode == "copy"
        lab.wait_up()


@pytest.mark.parametrize("lab", ["relay"], indirect=True)
def test_slow_answers(lab):
    """Packets to a driver whose translations are all taken back between any two, as a lazy guest's are: each one's buffer is asked for
    anew, and each is waited for, though the answer takes longer than a receiver that has no buffers would be given."""
    nic = lab.driver()
    lab.there_and_back(0)
    before = lab.d.stats("ab")["device"]["tx"]["dropped"]
    for n in range(1, 8):
        nic.iotlb(3, 0, (1 << 64) - 1)
        # While the ring itself is looked for there is no receiver.
        lab.wait(lambda: lab.queue(0)["state"] == "running")
        lab.far.send_packet(vu.frame(n))
        time.sleep(0.03)
        got = nic.recv_packet()
        assert got and got[1] == vu.frame(n), lab.d.stats("ab")["device"]["tx"]
    assert lab.d.stats("ab")["device"]["tx"]["dropped"] == before


def test_memory_replaced(lab):
    """Another file under the same addresses: translations into the old one are gone."""
    nic = lab.driver()
    lab.there_and_back(1)
    old, new = nic.mem, Memory()
    new.map[:] = old.map[:]
    new.next = old.next
    nic.tell(vu.SET_MEM_TABLE, struct.pack("<II", 1, 0) + nic.region(new), [new.fd])
    was = bytes(old.map)
    nic.mem = new
    for r in nic.rings.values():
        r.mem = new
    lab.wait_up()
    for n in range(10):
        lab.there_and_back(n)
    assert bytes(old.map) == was, "the old memory was written"
    old.close()


@pytest.mark.parametrize("how", ["unmapped", "read only", "granted less"])
def test_write_permission(lab, how):
    """A receive buffer that may not be written is not."""
    nic = lab.driver(fill=False)
    mem, off = nic.mem, nic.mem.alloc(PAGE, PAGE)
    mem.map[off:off + PAGE] = b"\xc5" * PAGE
    if how == "granted less":
        # Answered, but not with what was asked for: not asked again for ever.
        nic.answer = lambda iova, perm: nic.update((iova - IOVA) // PAGE, RO if (iova - IOVA) // PAGE == off // PAGE else RW) or True
    else:
        nic.perm[off // PAGE] = 0 if how == "unmapped" else RO
        if how == "read only":
            nic.update(off // PAGE)
    nic.rings[0].add([(off, 2048, True)], off)
    nic.kick(0)
    lab.until_receive_breaks()
    assert mem.map[off:off + PAGE] == b"\xc5" * PAGE
    mine = [m for m in nic.misses if m[0] == IOVA + off]
    assert mine == [(IOVA + off, WO)]
    lab.wait(lambda: nic.fails == ([(IOVA + off, WO)] if how == "granted less" else []))
    assert lab.d.log().count("its vIOMMU") == 1


@FORMATS
@pytest.mark.parametrize("how", ["unmapped", "write only"])
def test_read_permission(lab, how, ring):
    """A packet that may not be read does not leave."""
    nic = lab.driver(MRG | ring)
    off = nic.mem.alloc(PAGE, PAGE)
    nic.perm[off // PAGE] = 0 if how == "unmapped" else WO
    if how == "write only":
        nic.update(off // PAGE)
    lab.tx_from(off)
    nic.send_packet(vu.frame(1, 500))
    lab.broken(1)
    assert lab.answer(0.2) is None
    assert (IOVA + off, RO) in nic.misses
    nic.stop_ring(1)
    nic.rings[1].reset()
    nic.start_ring(1, nic.rings[1])
    nic.tx_free = [nic.mem.alloc(PAGE, PAGE)]
    lab.wait_up()
    lab.there_and_back(2)


def both(lab):
    """A page that a packet lies in, and behind it the first receive buffer."""
    nic = lab.driver(fill=False)
    off = nic.mem.alloc(PAGE, PAGE)
    nic.mem.map[off:off + PAGE] = b"\xc5" * PAGE
    lab.tx_from(off)
    nic.send_packet(vu.frame(1, 500))
    lab.wait(lambda: nic.reclaim() or not nic.rings[1].chains)
    assert [m for m in nic.misses if m[0] == IOVA + off] == [(IOVA + off, RO)]
    while lab.mode == "relay" and lab.far.poll_packet() is not None:
        pass
    nic.tx_free = [nic.mem.alloc(PAGE, PAGE) for _ in range(64)]
    return nic, off


def give_buffers(lab, nic, off):
    more = nic.mem.alloc(8 * 2048, PAGE)
    for at in (off + 2048, *range(more, more + 8 * 2048, 2048)):
        nic.rings[0].add([(at, 2048, True)], at)
    nic.kick(0)


def test_writing_is_asked_for(lab):
    """An update says read and write, always. A page that was read is not written before that was asked for, and then it is known."""
    nic, off = both(lab)
    give_buffers(lab, nic, off)
    lab.answer(0.5)  # the first one, where it has waited for a buffer
    for n in range(20):
        lab.there_and_back(n, 500)
    for n in range(20):
        lab.tx_from(off)
        lab.there_and_back(n, 500)
    asked = [m for m in nic.misses if m[0] == IOVA + off]
    assert sorted(asked) == [(IOVA + off, RO), (IOVA + off, WO)], "each permission once"
    assert not nic.fails


def test_written_page_that_may_only_be_read(lab):
    """It was read, and the update said that it may be written. The front-end refuses the question, as QEMU does: the receive queue breaks,
    the page stays as it was, and packets are still sent from it."""
    nic, off = both(lab)
    nic.perm[off // PAGE] = RO
    nic.answer = lambda iova, perm: not perm & ~nic.perm.get(page := (iova - IOVA) // PAGE, RW) and not nic.update(page, RW)
    give_buffers(lab, nic, off)
    lab.until_receive_breaks()
    assert nic.mem.map[off + 2048:off + PAGE] == b"\xc5" * 2048
    assert [m for m in nic.misses if m[0] == IOVA + off] == [(IOVA + off, RO), (IOVA + off, WO)]
    before = lab.d.stats("ab")["driver"]["tx"]
    lab.tx_from(off)
    nic.send_packet(vu.frame(7, 500))
    lab.wait(lambda: nic.reclaim() or not nic.rings[1].chains)
    after = lab.d.stats("ab")["driver"]["tx"]
    assert after["packets"] + after["dropped"] > before["packets"] + before["dropped"] and lab.queue(1)["state"] == "running"


def test_answer_to_another_question(lab):
    """Reading and writing of a page are asked for together. The update that answers the reading says nothing of the writing."""
    nic, off = both(lab)
    nic.invalidate(off // PAGE)
    nic.update(nic.tx_free[0] // PAGE)
    nic.silent, spare = True, nic.tx_free
    nic.tx_free = [off]
    nic.send_packet(vu.frame(2, 500))
    asked = []

    def ask(perm):
        """The next question, of this page."""
        head = nic.back.recv(12, 8 << 5)  # MSG_WAITALL
        iova, _, _, got, kind = struct.unpack("<QQQBB6x", nic.back.recv(32, 8 << 5))
        assert (iova, kind) == (IOVA + off, 1) and got == perm, (hex(iova), got, kind)
        asked.append((head, iova, got))

    def reply(status):
        nic.back.sendall(struct.pack("<IIIQ", 1, 1 | 4, 8, status))

    ask(RO)
    give_buffers(lab, nic, off)
    if lab.mode == "relay":
        lab.far.send_packet(vu.frame(3, 500))
    ask(WO)
    nic.update(off // PAGE, RW)
    reply(0)
    # Nothing is written: only reading was answered.
    lab.d.stays(lambda: lab.echo() or nic.mem.map[off + 2048:off + PAGE] == b"\xc5" * 2048, 0.4)
    reply(1)
    lab.broken(0)
    assert nic.mem.map[off + 2048:off + PAGE] == b"\xc5" * 2048
    nic.silent, nic.tx_free = False, spare


def stop_all(nic, how):
    if how == "reset":
        nic.tell(vu.RESET_DEVICE)
    else:
        for q in (0, 1):
            nic.stop_ring(q)


def start_all(nic):
    """As a driver that has been bound anew, with the buffers of the last one."""
    for q in (0, 1):
        ring = nic.rings[q]
        bufs = [token for _, token, _ in ring.chains.values()]
        ring.reset()
        nic.start_ring(q, ring)
        if q:
            nic.tx_free += bufs
            continue
        for off in bufs:
            ring.add([(off, nic.bufsize, True)], off)
        nic.kick(0)


@pytest.mark.parametrize("how", ["stop", "reset", "asked before"])
@FORMATS
def test_stopped_device_forgets(lab, ring, how):
    """
    While no ring runs a front-end says nothing of what its vIOMMU takes back. So what was known is not used afterwards, nor is what
    is answered late to what was asked before.
    """
    nic = lab.driver(MRG | ring)
    mem = nic.mem
    for n in range(3):
        for i in range(20):
            lab.there_and_back(i)
        if how == "asked before":
            off = mem.alloc(PAGE, PAGE)
            lab.tx_from(off)
            nic.silent = True
            nic.send_packet(vu.frame(77))
            assert select.select([nic.back], [], [], 60)[0]
        stop_all(nic, how)
        if how == "asked before":
            nic.silent = False
            nic.serve(0.1)
        else:
            assert lab.iommu()["entries"] == 0
        # Without a word: pages of rings and buffers lie elsewhere, and what was there is not for this device any more.
        first = min(r.desc for r in nic.rings.values()) // PAGE
        for page in range(first, first + 150):
            mem.move(page)
        if how == "asked before":
            mem.move(off // PAGE)
        start_all(nic)
        lab.wait_up()
        for i in range(20):
            lab.there_and_back(i)
        assert lab.queue(0)["state"] == lab.queue(1)["state"] == "running"
        mem.check_left()


@pytest.mark.parametrize("ring", [0, PACKED], ids=["split", "packed"])
def test_dirty_log_of_a_ring_that_waits(lab, ring):
    """Logging is switched on while a ring waits for its translation: what is written to it and into its buffers is logged none the less."""
    nic = lab.driver(MRG | ring)
    mem = nic.mem
    lab.there_and_back(1)
    nic.silent = True
    for r in nic.rings.values():
        for area in (r.desc, r.avail, r.used):
            nic.invalidate(area // PAGE)
    with open_log(nic) as log:
        nic.silent = False
        lab.wait_up()
        log.clear()
        lab.there_and_back(2, 500)
        want = {log.page(r.used if not ring else r.desc) for r in nic.rings.values()}
        dirty = log.dirty()
        assert want <= dirty, "what was written to the rings is not in the log"
        # The receive buffer is one of these; transmit buffers lie before them.
        assert {p for p in dirty if p > log.page(max(nic.tx_free) + 66000)}, "nor is the receive buffer"


class open_log:
    """Live migration: SET_LOG_BASE, LOG_ALL, and the rings' addresses once more with their logging."""

    def __init__(self, nic):
        self.nic = nic
        self.fd = os.memfd_create("log")
        os.ftruncate(self.fd, 1 << 18)
        nic.send(vu.SET_LOG_BASE, struct.pack("<QQ", 1 << 18, 0), [self.fd], need_reply=False)
        nic.recv_reply(vu.SET_LOG_BASE)
        nic.tell_u64(vu.SET_FEATURES, nic.features | vu.bit(vu.LOG_ALL))
        for q, r in nic.rings.items():
            nic.tell(vu.SET_VRING_ADDR, nic.addr_msg(q, r, 1, IOVA + r.used))  # an IOVA, as QEMU sends it

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.fd)

    def page(self, off):
        return self.nic.mem.real_gpa // PAGE + self.nic.mem.home.get(off // PAGE, off // PAGE)

    def clear(self):
        os.pwrite(self.fd, bytes(1 << 18), 0)

    def dirty(self):
        bits = os.pread(self.fd, 1 << 18, 0)
        return {i * 8 + k for i, v in enumerate(bits) if v for k in range(8) if v >> k & 1}


def test_table_may_not_be_read(lab):
    """Indirect descriptors: the table is translated as what it points to is."""
    nic = lab.driver(MRG, indirect=True)
    lab.there_and_back(1, cut=[12])
    table = nic.mem.alloc(PAGE, PAGE)
    nic.mem.next = table
    nic.perm[table // PAGE] = WO
    nic.send_packet(vu.frame(2), cut=[12])
    lab.broken(1)


@pytest.mark.parametrize("area,perm", [("used", RO), ("desc", 0), ("avail", WO)])
def test_ring_permission(lab, area, perm):
    """A ring that may not be used as it must be is broken; the other one works."""
    nic = lab.driver()
    nic.stop_ring(1)
    # Areas on pages of their own.
    for a in ("desc", "avail", "used"):
        setattr(nic.rings[1], a, nic.mem.alloc(2 * PAGE, PAGE))
    nic.rings[1].reset()
    nic.perm[getattr(nic.rings[1], area) // PAGE] = perm
    nic.start_ring(1, nic.rings[1])
    lab.broken(1)


def test_permission_taken_away(lab):
    """Read and write, then read only, without an invalidation in between: the next packet is not written."""
    nic = lab.driver(fill=False)
    mem, off = nic.mem, nic.mem.alloc(2 * PAGE, PAGE)
    nic.rings[0].add([(off, 2048, True)], off)
    nic.kick(0)
    lab.there_and_back(1)  # gives the buffer back to the device, whose translation is known
    nic.perm[off // PAGE] = RO
    nic.update(off // PAGE)
    was = mem.map[off:off + PAGE]
    lab.until_receive_breaks()
    assert mem.map[off:off + PAGE] == was


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
