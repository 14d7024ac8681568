# SPDX-License-Identifier: BSD-3-Clause
"""
Grant=viommu: what the driver VM's vIOMMU has mapped comes as windows when it is asked for, and goes before the answer. Queues for which
windows are of no use are copied.
"""
import os
import pathlib
import select
import struct
import subprocess
import time

import pytest

import portclient as pc
import viommu
import vu
from conftest import BUILD
from portlab import started
from viommu import INVALIDATE, IOVA, PAGE, RO, RW, UPDATE, WO, Nic

MAP, UNMAP, REFUSED, LIMIT = 5, 6, 11, 9
READ, WRITE = 1, 2
MAP_FLAG = 4
GRANT = 14
BROKEN, GIVEN_UP = 1, 4
POOL = 1 << 52  # beyond any address of a driver VM: rings and buffers of queues that are copied


class Lab:
    def __init__(self, d, attachment):
        self.d, self.attachment = d, attachment
        keys = {"Device_ApertureSize": "8G"} if attachment == "shmem" else {}
        d.link("ab", Device_Endpoint="port", Device_Attachment=attachment, Link_Mode="grant", Driver_Grant="viommu",
               **keys)
        d.start()

    def nic(self, features=0, grain=1, **kw):
        nic = Nic(self.d.sock("ab", "driver"), features or vu.BASIC | vu.bit(vu.NET_MRG_RXBUF), **kw)
        nic.grain = grain
        return nic

    def port(self):
        p = {"local": pc.Local, "shmem": pc.Shmem}[self.attachment](self.d.sock("ab", "device"))
        assert p.attach() == pc.OK
        return p

    def grant(self):
        return self.d.show("ab")["sides"]["driver"]["grant"]


@pytest.fixture(params=["local", "shmem"])
def lab(make_daemon, request):
    return Lab(make_daemon(), request.param)


@pytest.fixture
def shmem(make_daemon):
    return Lab(make_daemon(), "shmem")


def wait(p, nic, what):
    """As p.wait(), while the driver VM's VMM answers."""
    return p.wait(lambda s: nic.serve() or what(s))


def up(p, nic):
    return wait(p, nic, lambda s: s.up and all(q.flags & pc.STARTED for q in s.queues))


def covers(s, addr, size):
    """Is [addr, addr + size) covered by regions whose windows are there?"""
    for a, n, _, w, _ in s.regions:
        if a <= addr < a + n and s.windows[w][4] & 1:
            part = min(size, a + n - addr)
            addr, size = addr + part, size - part
    return not size


def want(p, nic, addr, size, access=READ):
    """What a guest does that misses something, until it is there."""
    asked = None
    while True:
        s = p.state()
        if covers(s, addr, size):
            sync(p)
            return s
        if asked != s.regions_generation:
            asked = s.regions_generation
            assert p.command(MAP, addr, size, access) in (pc.OK, LIMIT)
            sync(p)
            continue
        wait(p, nic, lambda s: s.regions_generation != asked)


def sync(p):
    assert p.command(pc.SYNC, p.state().regions_generation) == pc.OK


def obey(p, nic, what):
    """As wait(), and the guest says SYNC whenever memory changes."""
    said = None

    def look(s):
        nonlocal said
        nic.serve()
        if said != s.regions_generation:
            said = s.regions_generation
            sync(p)
        return what(s)
    return p.wait(look)


def send_later(nic, kind, page, n=1, uaddr=0, perm=0):
    """An IOTLB message whose answer is looked for later."""
    nic.send(vu.IOTLB_MSG, struct.pack("<QQQBB6x", IOVA + page * PAGE, n * PAGE, uaddr, perm, kind), need_reply=False)


def answered(nic):
    return bool(select.select([nic.sock], [], [], 0)[0])


def take_answer(nic):
    return struct.unpack("<Q", nic.recv_reply(vu.IOTLB_MSG))[0]


def settle(p, nic):
    """The guest says SYNC, and its VMM answers, until the front-end has its answer."""
    def look(s):
        if not answered(nic):
            sync(p)
        return answered(nic)
    p.wait(look)
    return take_answer(nic)


def forward(p, nic, n=1, base=None):
    """Take n packets as a guest does that asks for what it misses."""
    q, out = p.state().queues[1], []
    i = q.base if base is None else base
    while len(out) < n:
        got = p.take(q, i)
        if got is None:
            deadline = time.monotonic() + pc.limit(2)
            while not pc.raised(p.signals[q.kick_signal], 0.002):
                nic.serve()
                assert time.monotonic() < deadline, "no kick"
            continue
        bufs, head = got
        for a, l, _ in bufs:
            want(p, nic, a, l)
        out.append(b"".join(read(p, a, l) for a, l, w in bufs)[12:])
        p.give_back(q, i, head, 0)
        i += 1
    pc.one(p.doorbells[q.doorbell])
    return out, i & 0xffff


def pieces(p, addr, size):
    """Views of [addr, addr + size), which regions may share out."""
    while size:
        part = min(size, *(a + n - addr for a, n, _, _, _ in p.state().regions if a <= addr < a + n), 1 << 30)
        yield p.view(addr, part)
        addr, size = addr + part, size - part


def read(p, addr, size):
    return b"".join(bytes(v) for v in pieces(p, addr, size))


def write(p, addr, data):
    for v in pieces(p, addr, len(data)):
        v[:], data = data[:len(v)], data[len(v):]


def page_of(addr):
    return (addr - IOVA) // PAGE


def free_page(nic):
    """The first page that no ring shares."""
    return nic.tx_free[0] // PAGE + 1


def ring_pages(nic):
    pages = set()
    for r in nic.rings.values():
        for off, n in (r.desc, 16 * r.size), (r.avail, 6 + 2 * r.size), (r.used, 6 + 8 * r.size):
            pages |= set(range(off // PAGE, (off + n - 1) // PAGE + 1))
    return pages


def shown(p):
    return sum(size for size, _, _, kind, _ in p.state().windows if kind)


def test_nothing_but_the_rings_at_first(lab):
    with lab.nic() as nic, lab.port() as p:
        s = up(p, nic)
        assert s.flags & MAP_FLAG and s.mode == 2
        rings = ring_pages(nic)
        for r in nic.rings.values():
            for off, n in (r.desc, 16 * r.size), (r.avail, 6 + 2 * r.size), (r.used, 6 + 8 * r.size):
                assert covers(s, IOVA + off, n)
        assert shown(p) == len(rings) * PAGE
        assert {page_of(iova) for iova, _ in nic.misses} == rings, "nothing else was asked for"
        g = lab.grant()
        assert g["source"] == "viommu" and g["state"] == "granted" and g["bytes"] == shown(p) and g["message"] == ""
        assert all(r["what"] == "mapped" for r in g["ranges"])


@pytest.mark.parametrize("grain", [1, 64])
def test_packets(lab, grain):
    with lab.nic(grain=grain) as nic, lab.port() as p:
        up(p, nic)
        frames = [vu.frame(i, 60 + 29 * i) for i in range(40)]
        for f in frames:
            nic.send_packet(f)
        assert forward(p, nic, 40)[0] == frames
        s = p.state()
        q = s.queues[0]
        bufs, head = p.take(q, q.base)
        want(p, nic, bufs[0][0], bufs[0][1], WRITE)
        write(p, bufs[0][0], bytes(10) + b"\1\0" + vu.frame(9, 60))
        p.give_back(q, q.base, head, 72)
        pc.one(p.doorbells[q.doorbell])
        assert nic.recv_packet()[1] == vu.frame(9, 60)
        assert p.state().queues[0].run == q.run, "memory that comes ends no run"
        assert len([w for w in p.state().windows if w[3]]) < 110, "pieces are joined when there are many"


def test_answers(lab):
    with lab.nic() as nic:
        with {"local": pc.Local, "shmem": pc.Shmem}[lab.attachment](lab.d.sock("ab", "device")) as p:
            assert p.command(MAP, IOVA, PAGE, READ) == pc.NOT_ATTACHED
            assert p.attach() == pc.OK
            up(p, nic)
            assert p.command(MAP, IOVA, 0, READ) == pc.INVALID
            assert p.command(MAP, pc.ALL, 2, READ) == pc.INVALID
            assert p.command(MAP, IOVA, PAGE, 4) == pc.INVALID
            assert p.command(MAP, IOVA, (1 << 20) + 1, READ) == LIMIT
            assert p.command(UNMAP, IOVA, 0) == pc.INVALID
            q = p.state().queues[0]
            assert p.command(MAP, q.desc, 16, READ) == pc.OK and p.state().answer[4] == 1
            page = free_page(nic)
            # Not asked for in a way that its VMM answers: at most 64 at a time.
            nic.silent = True
            for i in range(64):
                assert p.command(MAP, IOVA + (page + i) * PAGE, 1, READ) == pc.OK and p.state().answer[4] == 0
            assert p.command(MAP, IOVA + (page + 64) * PAGE, 1, READ) == LIMIT
            gen = p.state().regions_generation
            nic.silent = False
            s = wait(p, nic, lambda s: s.regions_generation != gen)
            want(p, nic, IOVA + (page + 64) * PAGE, 1)
            # Given back, but not what a ring lies in.
            far = page + 200
            want(p, nic, IOVA + far * PAGE, 1)
            assert p.command(UNMAP, IOVA + far * PAGE, PAGE) == pc.OK
            p.wait(lambda s: s.up and not covers(s, IOVA + far * PAGE, 1))
            assert p.command(UNMAP, 0, pc.ALL) == pc.OK
            assert covers(p.state(), q.desc, 16) and p.state().up


@pytest.mark.parametrize("perm", [0, RO, WO])
def test_refused(lab, perm):
    """Not mapped, or not for both reading and writing: a window can be read and written."""
    with lab.nic() as nic, lab.port() as p:
        up(p, nic)
        page = free_page(nic) + 100
        nic.perm[page] = perm
        gen = p.state().regions_generation
        before = len(nic.misses)
        assert p.command(MAP, IOVA + page * PAGE, 100, READ) == pc.OK
        s = wait(p, nic, lambda s: s.regions_generation != gen)
        assert not covers(s, IOVA + page * PAGE, 100)
        assert p.command(MAP, IOVA + page * PAGE, 100, READ) == REFUSED
        assert {page_of(a) for a, _ in nic.misses[before:]} == {page}, "its neighbours were not asked for"
        assert "not mapped by the driver VM's vIOMMU for reading and writing" in lab.grant()["message"]
        old = p.state().queues
        assert p.stopped(1, old[1].run, 0, 1) == pc.OK
        s = obey(p, nic, lambda s: s.queues[1].flags & pc.STARTED)
        assert s.up and s.queues[0].run == old[0].run and s.queues[1].run == old[1].run + 1, "the other queue goes on"
        assert s.queues[1].desc >= POOL and not covers(s, old[1].desc, 16), "it is copied, and its ring is not shown any more"
        assert lab.grant()["copied"] == [1] and lab.grant()["state"] == "granted"
        nic.send_packet(vu.frame(3, 500))
        assert forward(p, nic, 1)[0] == [vu.frame(3, 500)]


@pytest.mark.parametrize("how", ["invalidate", "elsewhere", "less"])
def test_taken_back(lab, how):
    """The answer waits until the window has gone; what was next to it comes back by itself, or when it is asked for."""
    with lab.nic(grain=16) as nic, lab.port() as p:
        up(p, nic)
        page = free_page(nic) + 20
        want(p, nic, IOVA + page * PAGE, 16 * PAGE)
        slot = next(r[3] for r in p.state().regions if r[0] <= IOVA + page * PAGE < r[0] + r[1])
        old = p.state().windows[slot]
        spare = nic.mem.spare[0]
        args = {"invalidate": (INVALIDATE, page + 3), "elsewhere": (UPDATE, page + 3, 1, nic.mem.real_uva + spare * PAGE, RW),
                "less": (UPDATE, page + 3, 1, nic.mem.real_uva + (page + 3) * PAGE, RO)}[how]
        send_later(nic, *args)
        s = p.wait(lambda s: not covers(s, IOVA + (page + 3) * PAGE, 1))
        assert s.up and s.queues[1].flags & pc.STARTED and not s.queues[1].flags & pc.STOP
        lab.d.stays(lambda: not answered(nic), 0.1)
        seq = max(struct.unpack_from("<I", p.mem, pc.COMMAND)[0], s.answer[0]) + 1
        p.command_raw(seq, pc.SYNC, p.state().regions_generation)
        if lab.attachment == "shmem":
            def unmapped():
                while not any(r == 10 and off == old[1] for r, _, off, _ in p.log):
                    lab.d.stays(lambda: not answered(nic), 0.05)
                    assert select.select([p.back], [], [], pc.limit(5))[0], "no UNMAP came"
                    p.serve()
            unmapped()
        assert settle(p, nic) == 0
        assert old[2] not in [w[2] for w in p.state().windows]
        want(p, nic, IOVA + page * PAGE, 3 * PAGE)
        want(p, nic, IOVA + (page + 4) * PAGE, 12 * PAGE)
        if how == "elsewhere":
            nic.mem.home[page + 3] = spare
        if how != "less":
            want(p, nic, IOVA + (page + 3) * PAGE, PAGE)
            home = nic.mem.home.get(page + 3, page + 3)
            os.pwrite(nic.mem.fd, b"here I am", home * PAGE)
            assert read(p, IOVA + (page + 3) * PAGE, 9) == b"here I am"


def test_ring_is_taken_back(lab):
    """Its queue is stopped first, and starts again when the ring is mapped again; the other one goes on."""
    with lab.nic() as nic, lab.port() as p:
        s = up(p, nic)
        nic.send_packet(vu.frame(1, 100))
        assert forward(p, nic, 1)[0] == [vu.frame(1, 100)]
        q = s.queues[1]
        page = page_of(q.desc)
        assert page not in {page_of(a) for a in (s.queues[0].desc, s.queues[0].avail, s.queues[0].used)}
        send_later(nic, INVALIDATE, page)
        s = p.wait(lambda s: s.queues[1].flags & pc.STOP)
        assert covers(s, q.desc, 16) and not s.queues[0].flags & pc.STOP and not answered(nic)
        assert p.stopped(1, q.run, 1) == pc.OK
        s = p.wait(lambda s: not covers(s, q.desc, 16))
        assert not s.queues[1].flags & pc.STARTED
        assert settle(p, nic) == 0
        nic.mem.move(page)
        s = wait(p, nic, lambda s: s.queues[1].flags & pc.STARTED)
        assert s.queues[1].run == q.run + 1 and s.queues[1].base == 1 and s.up
        sync(p)
        nic.send_packet(vu.frame(2, 100))
        assert forward(p, nic, 1)[0] == [vu.frame(2, 100)]
        nic.mem.check_left()


def test_guest_that_does_not_let_go(lab):
    """It is asked for a second, then its window goes all the same."""
    with lab.nic() as nic, lab.port() as p:
        s = up(p, nic)
        sync(p)
        send_later(nic, INVALIDATE, page_of(s.queues[1].desc))
        p.wait(lambda s: answered(nic))
        assert take_answer(nic) == 0
        assert not p.state().attached, "it was cut"
        if lab.attachment == "shmem":
            assert not [k for k in p.live if k[0] == 1]


def test_vmm_that_does_not_let_go(shmem):
    """The driver VM's VMM gets no answer until the other one has gone."""
    with shmem.nic() as nic:
        with shmem.port() as p:
            up(p, nic)
            page = free_page(nic)
            want(p, nic, IOVA + page * PAGE, 1)
            send_later(nic, INVALIDATE, page)
            p.wait(lambda s: not covers(s, IOVA + page * PAGE, 1))
            p.command_raw(max(struct.unpack_from("<I", p.mem, pc.COMMAND)[0], p.state().answer[0]) + 1, pc.SYNC,
                          p.state().regions_generation)
            shmem.d.wait_log("The VMM of VM b has not said".replace("The", "the"))
            assert shmem.grant()["state"] == "stuck" and not answered(nic)
        assert take_answer(nic) == 0


def test_driver_leaves_while_the_answer_waits(lab):
    with lab.port() as p:
        with lab.nic() as nic:
            s = up(p, nic)
            send_later(nic, INVALIDATE, page_of(s.queues[1].desc))
            p.wait(lambda s: s.queues[1].flags & pc.STOP)
        p.wait(lambda s: s.reason == pc.NO_DRIVER and not s.regions)
        sync(p)
        with lab.nic() as nic:
            up(p, nic)


def test_map_while_something_is_taken_back(lab):
    """Nothing is given until that has its answer."""
    with lab.nic() as nic, lab.port() as p:
        s = up(p, nic)
        page = free_page(nic)
        send_later(nic, INVALIDATE, page_of(s.queues[1].desc))
        p.wait(lambda s: s.queues[1].flags & pc.STOP)
        assert p.command(MAP, IOVA + page * PAGE, 1, READ) == pc.OK
        assert not nic.misses or nic.misses[-1][0] != IOVA + page * PAGE
        assert p.stopped(1, s.queues[1].run, 0) == pc.OK
        assert settle(p, nic) == 0
        wait(p, nic, lambda s: covers(s, IOVA + page * PAGE, 1))


def kernels_driver(nic):
    """Buffers are mapped to be read or to be written only, but for those that share a page with a ring. Returns one of each."""
    some, rx = {}, nic.rings[0]
    posted = [struct.unpack_from("<Q", nic.mem.map, rx.desc + 16 * head)[0] for head in range(rx.size)]
    for perm, addrs in (WO, [a for a in posted if a]), (RO, [IOVA + off for off in nic.tx_free]):
        for page in {page_of(a) for a in addrs} - ring_pages(nic):
            nic.perm[page] = perm
            some[perm] = IOVA + page * PAGE
    return some


def give_up(p, nic, q, base=None):
    """What a guest does whose MAP was refused. Returns its next run."""
    old = p.state().queues[q]
    assert p.stopped(q, old.run, old.base if base is None else base, BROKEN | GIVEN_UP) == pc.OK
    s = obey(p, nic, lambda s: s.queues[q].flags & pc.STARTED)
    assert s.queues[q].run != old.run and s.queues[q].desc >= POOL and s.up
    sync(p)
    return s.queues[q]


def answer_packet(p, nic, frame):
    q = p.state().queues[0]
    bufs, head = p.take(q, q.base)
    write(p, bufs[0][0], bytes(10) + b"\1\0" + frame)
    p.give_back(q, q.base, head, 12 + len(frame))
    pc.one(p.doorbells[q.doorbell])
    assert nic.recv_packet()[1] == frame


def refused(p, nic, addr, access):
    """MAP of what is not mapped for both."""
    gen = p.state().regions_generation
    if p.command(MAP, addr, 1, access) == pc.OK:
        wait(p, nic, lambda s: s.regions_generation != gen)
        sync(p)
        assert p.command(MAP, addr, 1, access) == REFUSED


def test_kernels_driver(lab):
    """Both queues are copied; of its memory nothing is shown; each packet's mapping comes and goes. The next driver is granted."""
    with lab.nic(bufsize=4096) as nic, lab.port() as p:
        some = kernels_driver(nic)
        up(p, nic)
        for q, perm, access in (1, RO, READ), (0, WO, WRITE):
            refused(p, nic, some[perm], access)
            give_up(p, nic, q)
        s = p.wait(lambda s: len(s.regions) == 1)
        g = lab.grant()
        assert g["state"] == "copied" and g["copied"] == [0, 1] and g["bytes"] == 0
        assert [r["what"] for r in g["ranges"]] == ["copy"] and s.regions[0][0] >= POOL and s.mode == 2
        nic.send_packet(vu.frame(0, 300))
        (got,), base = forward(p, nic, 1)
        assert got == vu.frame(0, 300)
        for n in range(1, 41):
            nic.reclaim()
            for page in {off // PAGE for off in nic.tx_free} if n % 10 == 0 else ():
                nic.invalidate(page)
            nic.send_packet(vu.frame(n, 60 + n))
            (got,), base = forward(p, nic, 1, base)
            assert got == vu.frame(n, 60 + n)
        answer_packet(p, nic, vu.frame(7, 99))
        assert p.command(MAP, IOVA + nic.tx_free[0], 1, READ) == REFUSED, "whose mappings nobody needs"
        # Another driver, or the same one again.
        for q in 0, 1:
            nic.send(vu.GET_VRING_BASE, struct.pack("<II", q, 0), need_reply=False)
            p.wait(lambda s: nic.serve() or s.queues[q].flags & pc.STOP)
            assert p.stopped(q, p.state().queues[q].run, p.state().queues[q].base) == pc.OK
            p.wait(lambda s: nic.serve() or sync(p) or answered(nic))
            _, base = struct.unpack("<II", nic.recv_reply(vu.GET_VRING_BASE))
            assert base == (41 if q else 1)
        nic.perm.clear()
        for q in 0, 1:
            nic.start_ring(q, nic.rings[q], base=41 if q else 1)
        s = wait(p, nic, lambda s: s.up and all(q.flags & pc.STARTED and q.desc < POOL for q in s.queues))
        assert lab.grant()["state"] == "granted" and lab.grant()["copied"] == [] and lab.grant()["message"] == ""
        sync(p)
        nic.send_packet(vu.frame(1, 100))
        assert forward(p, nic, 1)[0] == [vu.frame(1, 100)]


def test_one_queue_is_copied(lab):
    """Receive buffers are pooled, and keep their windows; what is sent is mapped for the packet."""
    with lab.nic() as nic, lab.port() as p:
        s = up(p, nic)
        bufs, _ = p.take(s.queues[0], s.queues[0].base)
        want(p, nic, bufs[0][0], bufs[0][1], WRITE)
        page = free_page(nic) + 100
        nic.perm[page] = RO
        refused(p, nic, IOVA + page * PAGE, READ)
        give_up(p, nic, 1)
        assert lab.grant()["copied"] == [1]
        for n in range(20):
            nic.send_packet(vu.frame(n, 900))
        assert forward(p, nic, 20)[0] == [vu.frame(n, 900) for n in range(20)]
        s = p.state()
        assert s.queues[0].desc < POOL and covers(s, bufs[0][0], bufs[0][1]) and s.queues[0].run == 1
        answer_packet(p, nic, vu.frame(5, 600))


def test_packed_rings_are_copied(make_daemon):
    """Where it stood the ring does not tell: the guest has said so."""
    d = make_daemon()
    d.link("ab", Device_Endpoint="port", Device_Attachment="local", Link_Mode="grant", Driver_Grant="viommu", Device_PackedRings="yes")
    d.start()
    lab = Lab.__new__(Lab)
    lab.d, lab.attachment = d, "local"
    echo = subprocess.Popen([ECHO, "unix:" + d.sock("ab", "device")])
    try:
        with lab.nic(vu.BASIC | vu.bit(vu.NET_MRG_RXBUF, vu.PACKED)) as nic:
            d.wait(lambda: nic.serve() or d.show("ab")["status"] == "up")
            for page in {off // PAGE for off in nic.tx_free[20:]} - ring_pages(nic):
                nic.perm[page] = RO
            for n in range(60):
                sent, end = vu.frame(n, 200), time.monotonic() + pc.limit(5)
                back = sent[6:12] + sent[:6] + sent[12:]
                got = None
                while got is None or got[1] != back:
                    assert time.monotonic() < end, "packet %d did not come back" % n
                    nic.reclaim()
                    nic.send_packet(sent)
                    got = nic.recv_packet(timeout=0.1)
            assert lab.grant()["copied"] == [1]
    finally:
        echo.kill()
        echo.wait()


def test_ring_that_is_broken_indeed(lab):
    """Copied, it is found to be that: once, and in the daemon's own words."""
    with lab.nic() as nic, lab.port() as p:
        s = up(p, nic)
        nic.rings[1].add([(IOVA + nic.tx_free[0], 100, False)], 7)
        struct.pack_into("<H", nic.mem.map, nic.rings[1].avail + 4, 9999)
        nic.kick(1)
        assert p.stopped(1, s.queues[1].run, 0, 1) == pc.OK
        obey(p, nic, lambda s: lab.d.show("ab")["status"] == "broken" and s.queues[1].flags & pc.STOP)
        q = p.state().queues[1]
        assert q.run == s.queues[1].run + 1 and p.stopped(1, q.run, q.base) == pc.OK
        assert not p.state().queues[1].flags & pc.STARTED and p.state().queues[0].run == 1


def test_guest_that_gives_everything_up(lab):
    """It may do so once for a run of the driver's ring in its memory; then it is left without."""
    with lab.nic() as nic, lab.port() as p:
        up(p, nic)
        new = give_up(p, nic, 1)
        assert p.stopped(1, new.run, new.base, 1) == pc.OK
        lab.d.wait(lambda: nic.serve() or lab.d.show("ab")["status"] == "partial")
        assert not p.state().queues[1].flags & pc.STARTED


def test_everything_is_flushed(shmem):
    """As a kernel in lazy mode does, rings included: after some time the queues are copied, and flushes pass by them."""
    with shmem.nic() as nic, shmem.port() as p:
        up(p, nic)
        n = 0
        while shmem.grant()["state"] != "copied":
            n += 1
            assert n < 100
            send_later(nic, INVALIDATE, 0, nic.mem.size // PAGE)
            def look(s):
                if not answered(nic):
                    p.let_go()
                    sync(p)
                return answered(nic)
            p.wait(look)
            assert take_answer(nic) == 0
            wait(p, nic, lambda s: s.up and all(q.flags & pc.STARTED for q in s.queues))
            sync(p)
        assert 60 < n < 80
        runs = [q.run for q in p.state().queues]
        for _ in range(50):
            nic.invalidate(0, nic.mem.size // PAGE)
        nic.send_packet(vu.frame(1, 100))
        assert forward(p, nic, 1)[0] == [vu.frame(1, 100)]
        assert [q.run for q in p.state().queues] == runs and p.state().up


def test_short_lived_mappings(lab):
    """A driver that maps each buffer for itself is told from one that maps its memory once."""
    with lab.nic() as nic, lab.port() as p:
        up(p, nic)
        page = free_page(nic)
        runs = [q.run for q in p.state().queues]
        for i in range(100):
            gen = p.state().regions_generation
            if p.command(MAP, IOVA + page * PAGE, 1, READ) == REFUSED:
                break
            wait(p, nic, lambda s: s.regions_generation != gen)
            want(p, nic, IOVA + page * PAGE, 1)
            send_later(nic, INVALIDATE, page)
            p.wait(lambda s: p.let_go() and False or (sync(p) or True) and answered(nic))
            assert take_answer(nic) == 0
        assert 60 <= i < 70
        assert "takes mappings back" in lab.grant()["message"]
        assert [q.run for q in p.state().queues] == runs, "who needs no more goes on"
        give_up(p, nic, 1)
        nic.send_packet(vu.frame(1, 100))
        assert forward(p, nic, 1)[0] == [vu.frame(1, 100)]
        assert lab.grant()["copied"] == [1] and p.state().queues[0].run == runs[0]


def test_unaligned_updates(lab):
    """Only whole pages become windows; a part of one is refused."""
    with lab.nic() as nic, lab.port() as p:
        up(p, nic)
        page = free_page(nic) + 2
        answer = nic.answer

        def unaligned(iova, perm):
            if page_of(iova) != page:
                return answer(iova, perm)
            nic.iotlb(UPDATE, iova + 512, PAGE, nic.mem.real_uva + page * PAGE + 512, RW)
            return True
        nic.answer = unaligned
        gen = p.state().regions_generation
        assert p.command(MAP, IOVA + page * PAGE + 1024, 100, READ) == pc.OK
        wait(p, nic, lambda s: s.regions_generation != gen)
        assert p.command(MAP, IOVA + page * PAGE + 1024, 100, READ) == REFUSED
        assert p.state().up


def test_storm_of_updates(shmem):
    """10,000 mappings, scattered in memory, none asked for: nothing is given, and everybody is served."""
    with shmem.nic(mem=viommu.Memory(64 << 20)) as nic, shmem.port() as p:
        up(p, nic)
        before = shown(p)
        base = nic.mem.next // PAGE + 16
        for i in range(10000):
            nic.iotlb(UPDATE, IOVA + (base + i) * PAGE, PAGE, nic.mem.real_uva + (1 + (i * 7919) % 16000) * PAGE, RW)
        assert shown(p) == before
        assert p.command(MAP, IOVA, 16, READ) in (pc.OK, REFUSED)


def test_many_scattered_pages(shmem):
    """More than there are windows: what is too much is refused by name."""
    with shmem.nic(mem=viommu.Memory(16 << 20)) as nic, shmem.port() as p:
        up(p, nic)
        base = nic.mem.next // PAGE + 16
        for i in range(0, 1200, 2):
            addr, gen = IOVA + (base + i) * PAGE, p.state().regions_generation
            assert p.command(MAP, addr, 1, READ) == pc.OK
            s = wait(p, nic, lambda s: s.regions_generation != gen)
            sync(p)
            if not covers(s, addr, 1) and p.command(MAP, addr, 1, READ) == REFUSED:
                break
        assert i > 800 and "hugepages" in shmem.grant()["message"]
        s = p.state()
        assert s.up and len(s.regions) <= 509 and len(s.windows) <= 509


def test_neighbours_are_joined(lab):
    """Ranges next to each other share a window when there are many; rings and buffers are shown all the time."""
    with lab.nic() as nic, lab.port() as p:
        s = up(p, nic)
        runs, page, most = [q.run for q in s.queues], free_page(nic), 0
        for i in range(150):
            asked = set()
            def there(s):
                assert s.up and all(covers(s, q.desc, 16 * q.size) for q in s.queues), "a ring was gone"
                assert all(covers(s, IOVA + (page + k) * PAGE, PAGE) for k in range(i)), "what was there was gone"
                if s.regions_generation not in asked:
                    asked.add(s.regions_generation)
                    sync(p)
                    p.command(MAP, IOVA + (page + i) * PAGE, 1, WRITE)
                return covers(s, IOVA + (page + i) * PAGE, PAGE)
            wait(p, nic, there)
            sync(p)
            most = max(most, len([w for w in p.state().windows if w[3]]))
        assert 60 < most < 80 and [q.run for q in p.state().queues] == runs


def test_range_over_two_files(lab):
    """An update has to lie in one region of the memory table."""
    with lab.nic() as nic, lab.port() as p:
        up(p, nic)
        with pytest.raises(vu.Refused):
            nic.iotlb(UPDATE, IOVA, 4 * nic.mem.size, nic.mem.real_uva, RW)
        assert nic.alive() and p.state().up


def test_drop(lab):
    with lab.nic() as nic, lab.port() as p:
        up(p, nic)
        lab.d.call("link.grant", name="ab", drop=True)
        p.wait(lambda s: all(q.flags & pc.STOP for q in s.queues))
        assert p.let_go() == 2
        s = p.wait(lambda s: not s.up and s.reason == GRANT)
        sync(p)
        p.wait(lambda s: not shown(p) and lab.grant()["state"] == "none")
        assert "dropped" in lab.grant()["message"]


def test_other_sources_do_not_map(make_daemon):
    d = make_daemon()
    d.link("ab", Device_Endpoint="port", Device_Attachment="local", Link_Mode="fast")
    d.start()
    with vu.Nic(d.sock("ab", "driver")), pc.Local(d.sock("ab", "device")) as p:
        assert p.attach() == pc.OK
        s = started(p)
        assert not s.flags & MAP_FLAG
        assert p.command(MAP, s.queues[0].desc, 16, READ) == REFUSED


ECHO = str(pathlib.Path(BUILD) / "examples/example-echo")


@pytest.mark.parametrize("ring", [0, vu.bit(vu.PACKED), vu.bit(vu.INDIRECT)], ids=["split", "packed", "indirect"])
@pytest.mark.parametrize("grain", [1, 512])
def test_a_program_on_the_library(make_daemon, ring, grain):
    """It asks for what it misses and sends every packet back; what is refused breaks its queue and no other."""
    lab = Lab(make_daemon(), "local")
    with lab.nic(vu.BASIC | vu.bit(vu.NET_MRG_RXBUF) | ring, grain=grain, bufsize=4096, indirect=bool(ring & vu.bit(vu.INDIRECT))) as nic:
        with subprocess.Popen([ECHO, "unix:" + lab.d.sock("ab", "device")]) as echo:
            try:
                def there():
                    nic.serve()
                    return lab.d.show("ab")["status"] == "up"
                lab.d.wait(there)
                def there_and_back(n, size):
                    """It does not keep what there is no room for yet: such a packet is sent again."""
                    sent, tries = vu.frame(n, size), 0
                    back = sent[6:12] + sent[:6] + sent[12:]
                    while True:
                        nic.send_packet(sent, cut=[12, 40] if ring & vu.bit(vu.INDIRECT) else None)
                        got, tries = nic.recv_packet(timeout=0.03), tries + 1
                        while got and got[1] != back:
                            got = nic.recv_packet(timeout=0.03)
                        if got:
                            return
                        assert tries < 500
                for n in range(70):
                    there_and_back(n, 60 + n * 14)
                misses = len(set(nic.misses))
                assert not nic.fails
                for n in range(70):
                    there_and_back(100 + n, 200)
                assert len(set(nic.misses)) - misses <= 4 * 70, "what is there is not asked for again"
                # A buffer that is not mapped.
                page = (nic.tx_free[-1] + 70000 * 64) // PAGE
                nic.perm[page] = 0
                ring1 = nic.rings[1]
                nic.reclaim()
                ring1.add([(page * PAGE, 100, False)], page * PAGE)
                nic.kick(1)
                lab.d.wait(lambda: nic.serve() or lab.d.show("ab")["status"] == "broken")
                assert echo.poll() is None
                queues = lab.d.show("ab")["sides"]["device"]["queues"]
                assert "not mapped" in lab.grant()["message"] and lab.grant()["copied"] == [1], queues
            finally:
                echo.kill()
