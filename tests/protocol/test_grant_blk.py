# SPDX-License-Identifier: BSD-3-Clause
"""Grant=viommu for a disk: requests in windows that the disk asks for; and a driver that maps each buffer for itself, whose queue is copied."""
import struct

import pytest

import blk
import portclient as pc
import vu
from blk import Disk, pattern
from test_device import FORMATS, IoDriver, Serving
from test_grant_viommu import INVALIDATE, IOVA, MAP, PAGE, POOL, READ, REFUSED, RO, WO, WRITE, answered, covers, send_later, sync, take_answer

VIOMMU = {"Link_Mode": "grant", "Link_Type": "blk", "Device_Endpoint": "port", "Device_Attachment": "local", "Driver_Grant": "viommu"}


class Asking(Disk):
    """Asks for what it misses; gives its queue up when that is refused."""

    def __init__(self, p, driver, **kw):
        self.driver, self.refused = driver, 0
        super().__init__(p, **kw)

    def want(self, addr, size, access):
        asked = None
        while not covers(s := self.p.state(), addr, size):
            if asked != s.regions_generation:
                asked = s.regions_generation
                if self.p.command(MAP, addr, size, access) == REFUSED:
                    return False
                sync(self.p)
                continue
            self.p.wait(lambda s: self.driver.serve() or s.regions_generation != asked)
        sync(self.p)
        return True

    def parse(self, bufs, head):
        """Regions may share a buffer out."""
        split = []
        for a, n, w in bufs:
            while n:
                part = min(n, *(at + size - a for at, size, _, _, _ in self.p.state().regions if at <= a < at + size), 1 << 30)
                split.append((a, part, w))
                a, n = a + part, n - part
        return super().parse(split, head)

    def next(self, q=0):
        """take(), while the driver VM's VMM answers."""
        got = []
        self.p.wait(lambda s: self.driver.serve() or got.append(self.take(q, 0.01)) or got[-1])
        return got[-1]

    def has_all(self, q=0):
        """Is all of the next request there? None: there is none."""
        e = self.p.state().queues[q]
        if (got := self.p.take(e, self.at[q])) is None:
            return None
        return all(self.want(a, n, WRITE if w else READ) for a, n, w in got[0])

    def give_up(self, q=0):
        e = self.p.state().queues[q]
        assert self.p.stopped(q, e.run, self.at[q] & 0xffff, 1 | 4) == pc.OK
        said = None

        def again(s):
            nonlocal said
            self.driver.serve()
            if said != s.regions_generation:
                said = s.regions_generation
                sync(self.p)
            return s.queues[q].flags & pc.STARTED and s.queues[q].run != e.run
        self.p.wait(again)
        self.up()
        sync(self.p)


def link(d):
    text = {"Link": {}, "Driver": {"VM": "a"}, "Device": {"VM": "b"}}
    for k, v in VIOMMU.items():
        section, key = k.split("_", 1)
        text[section][key] = v
    d.write("ab.link", "".join(f"[{s}]\n" + "".join(f"{k}={v}\n" for k, v in kv.items()) for s, kv in text.items()))
    return d.start()


@pytest.fixture
def lab(make_daemon):
    d = link(make_daemon())
    p = pc.Local(d.sock("ab", "device"))
    disk = Asking(p, None)
    disk.attach()
    f = disk.driver = IoDriver(d.sock("ab", "driver"))
    p.wait(lambda s: f.serve() or s.up)
    disk.up()
    sync(p)
    yield d, f, p, disk
    f.close()
    p.close()


def grant(d):
    return d.show("ab")["sides"]["driver"]["grant"]


def as_kernels(f):
    """From now on what a request has the disk read is mapped for that only, and so is what it has it write. Rings stay as they are."""
    plain = f.request

    def request(kind, sector, data=b"", **kw):
        f.mem.alloc(1, PAGE)
        start = f.mem.next = f.mem.alloc(PAGE, PAGE)
        t = plain(kind, sector, data, kick=False, **kw)
        q, _, buf, n, status = f.open[t]
        f.perm.update({page: RO for page in range(start // PAGE, buf // PAGE)})
        f.perm.update({page: WO if kind == blk.IN else RO for page in range(buf // PAGE, (buf + max(n, 1) - 1) // PAGE + 1)})
        f.perm[status // PAGE] = WO
        f.kick(q)
        return t
    # The header, the data and the status are in pages of their own.
    alloc = f.mem.alloc
    f.grain = 1
    f.mem.next += 1 << 20  # beyond what one update may have told
    f.mem.alloc = lambda size, align=64: alloc(size, PAGE if align != 4096 else align)
    f.request = request


def test_requests_in_windows(lab):
    """What a driver has mapped for good needs nobody to copy it."""
    d, f, p, disk = lab
    f.grain = 64
    for i in range(8):
        t = f.request(blk.OUT, 16 * i, pattern(8192, i))
        assert disk.has_all()
        disk.serve(1)
        assert f.wait(t)[0] == blk.OK
        t = f.request(blk.IN, 16 * i, length=8192)
        assert disk.has_all()
        disk.serve(1)
        assert f.wait(t) == (blk.OK, pattern(8192, i))
    g = grant(d)
    assert g["state"] == "granted" and g["copied"] == [] and p.state().queues[0].desc < POOL


def test_requests_are_copied(lab):
    """A kernel's driver: the queue is given up with requests in it, none of them is lost or done twice, and each mapping comes and goes."""
    d, f, p, disk = lab
    as_kernels(f)
    first = [f.request(blk.OUT, 16 * i, pattern(4096, i)) for i in range(4)]
    assert disk.has_all() is False
    disk.give_up()
    s = p.state()
    assert s.queues[0].desc >= POOL and grant(d)["copied"] == [0] and grant(d)["state"] == "copied"
    with Serving(disk):
        for i, t in enumerate(first):
            assert f.wait(t)[0] == blk.OK
            assert disk.store[512 * 16 * i:512 * 16 * i + 4096] == pattern(4096, i)
        for i in range(30):
            f.mem.next = 1 << 20
            t = f.request(blk.OUT, i, pattern(512, 100 + i))
            pages = [f.open[t][2] // PAGE, f.open[t][4] // PAGE]
            assert f.wait(t)[0] == blk.OK
            for page in pages:
                f.invalidate(page)
            f.mem.next = 1 << 20
            t = f.request(blk.IN, i, length=512)
            assert f.wait(t) == (blk.OK, pattern(512, 100 + i))
    assert p.state().queues[0].run == s.queues[0].run and {r["what"] for r in grant(d)["ranges"]} == {"copy", "in-flight"}


def test_given_up_with_requests_under_way(lab):
    """Two were taken in windows, the third is refused: the disk answers the two first, and the rest is copied."""
    d, f, p, disk = lab
    f.grain = 64
    two = [f.request(blk.OUT, 16 * i, pattern(4096, i)) for i in range(2)]
    taken = []
    for _ in two:
        assert disk.has_all()
        taken.append(disk.take())
    as_kernels(f)
    third = f.request(blk.OUT, 64, pattern(4096, 9))
    assert disk.has_all() is False
    for got in taken:
        disk.answer(got)
    disk.give_up()
    disk.answer(disk.next())
    assert f.wait(third)[0] == blk.OK and disk.store[512 * 64:512 * 64 + 4096] == pattern(4096, 9)
    for i, t in enumerate(two):
        assert f.wait(t)[0] == blk.OK and disk.store[512 * 16 * i:512 * 16 * i + 4096] == pattern(4096, i)
    t = f.request(blk.IN, 64, length=4096)
    disk.answer(disk.next())
    assert f.wait(t) == (blk.OK, pattern(4096, 9))


def test_copied_ring_is_taken_back(lab):
    """The vIOMMU takes the ring's page from a queue that is copied: its requests under way are answered, and no window is in the way."""
    d, f, p, disk = lab
    as_kernels(f)
    t = f.request(blk.OUT, 0, pattern(4096, 1))
    assert disk.has_all() is False
    disk.give_up()
    got = disk.next()
    run = p.state().queues[0].run
    page = f.rings[0].desc // PAGE
    f.move(page)
    disk.answer(got)
    assert f.wait(t)[0] == blk.OK
    f.mem.check_left()
    t = f.request(blk.IN, 0, length=4096)
    assert p.state().queues[0].run == run
    disk.answer(disk.next())
    assert f.wait(t) == (blk.OK, pattern(4096, 1))
