# SPDX-License-Identifier: BSD-3-Clause
"""A driver VM with a vIOMMU on relay and copy links: misses, permissions, invalidations under traffic."""
import os
import random
import select
import struct
import time

import pytest

import vu
from bugclass import MRG, Lab
from iolab import lab  # noqa: F401 (a fixture)
from viommu import ACCESS_PLATFORM, IOVA, PAGE, RO, RW, WO, Memory

PACKED = vu.bit(vu.PACKED)
FORMATS = pytest.mark.parametrize("ring", [0, PACKED, vu.bit(vu.EVENT_IDX)], ids=["split", "packed", "event-idx"])


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
    # A ring that waits for its translation gets it; neither is broken.
    while not lab.queue(0)["state"] == lab.queue(1)["state"] == "running":
        assert time.monotonic() < end + 60, lab.d.show("ab")
        lab.answer(0.01)
    # What was sent is taken without a further kick.
    while nic.rings[1].chains:
        assert time.monotonic() < end + 60, lab.d.show("ab")
        lab.answer(0.01)
        nic.reclaim()
    # What is still on its way comes before this one, or never.
    nic.send_packet(vu.frame(1 << 20))
    while (packet := lab.answer(1)) != vu.frame(1 << 20):
        assert time.monotonic() < end + 120, lab.d.show("ab")
        if packet is None:
            nic.send_packet(vu.frame(1 << 20))
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
    at, got, answer = [], [], nic.answer
    nic.answer = lambda *question: at.append(time.monotonic()) or answer(*question)
    n = late = 0
    while n < 7:
        nic.iotlb(3, 0, (1 << 64) - 1)
        # While the ring itself is looked for there is no receiver.
        lab.wait(lambda: lab.queue(0)["state"] == "running")
        del at[:], got[:]
        lost, since = lab.lost(), time.monotonic()
        lab.far.send_packet(vu.frame(n))
        time.sleep(0.03)
        lab.d.wait(lambda: got.append(nic.poll_packet()) or got[-1] or lab.lost() > lost)
        if got[-1]:
            assert got[-1][1] == vu.frame(n)
            n += 1
        else:
            # Longer than a translation is waited for: this machine has no time for us.
            assert max(at, default=since) - since > 0.15 and late < 100, lab.d.stats("ab")["device"]["tx"]
            late += 1


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
    lab.there_and_back(99, 500, others=True)  # the first one, where it has waited for a buffer
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

    def broke():
        """A relay may have given up the packet that asked: at the next one."""
        if lab.mode == "relay" and not lab.far.reclaim() and len(lab.far.tx_free) > 60:
            lab.far.send_packet(vu.frame(3, 500))
        return lab.queue(0)["state"] == "broken"

    lab.wait(broke)
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
