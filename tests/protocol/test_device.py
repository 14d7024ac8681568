# SPDX-License-Identifier: BSD-3-Clause
"""Links of another type than net: a scripted virtio-blk driver, and a scripted disk as the device side."""
import os
import struct
import threading

import pytest

import blk
import portclient as pc
import vu
from blk import Disk, Driver, pattern

MODES = ["copy", "fast"]
RING_RESET = 40
FORMATS = [0, vu.bit(vu.EVENT_IDX), vu.bit(vu.PACKED), vu.bit(vu.PACKED, vu.EVENT_IDX)]


def link(d, mode="copy", **keys):
    kw = {"Link_Mode": mode, "Link_Type": "blk", "Device_Endpoint": "port", "Device_Attachment": "local",
          "Device_PackedRings": "yes" if mode == "copy" else "no", **keys}
    if mode == "grant":
        kw.update(Driver_Grant="memory", Driver_GrantSize="16M")  # all that a blk.Driver has
    text = {"Link": {}, "Driver": {"VM": "a"}, "Device": {"VM": "b"}, "Profile": {}, "Net": {}}
    for k, v in kw.items():
        section, key = k.split("_", 1)
        text[section][key] = v
    d.write("ab.link", "".join(f"[{s}]\n" + "".join(f"{k}={v}\n" for k, v in kv.items()) for s, kv in text.items() if kv))


@pytest.fixture
def make(make_daemon):
    def made(mode="copy", **keys):
        d = make_daemon()
        link(d, mode, **keys)
        return d.start()
    return made


def drv(d):
    return d.sock("ab", "driver")


def dev(d):
    return pc.Local(d.sock("ab", "device"))


class Serving(threading.Thread):
    """A disk that answers whatever comes, until it is told to stop."""

    def __init__(self, disk, queues=(0,)):
        super().__init__(daemon=True)
        self.disk, self.queues, self.end, self.error = disk, queues, False, None
        self.start()

    def run(self):
        try:
            while not self.end:
                for q in self.queues:
                    s = self.disk.p.state()
                    self.disk.p.drain()
                    if q < len(s.queues) and s.queues[q].flags & pc.STARTED and self.disk.runs.get(q) == s.queues[q].run:
                        if (got := self.disk.take(q, 0.01)) is not None:
                            self.disk.answer(got, q)
        except Exception as err:  # for the test's thread
            self.error = err

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end = True
        self.join()
        if self.error and not _[0]:
            raise self.error


# ---- data ------------------------------------------------------------------------------------


# In fast mode the scripted disk, which has no packed rings, serves the driver's own.
@pytest.mark.parametrize("mode,fmt", [("copy", f) for f in FORMATS] + [(m, f) for m in ("fast", "grant") for f in FORMATS if not f >> vu.PACKED & 1])
def test_read_back_what_was_written(make, mode, fmt):
    d = make(mode, Profile_Capacity="4M")
    with Driver(drv(d), vu.bit(vu.VERSION_1, vu.INDIRECT) | blk.FEATURES | fmt) as f, dev(d) as p:
        disk = Disk(p)
        # A data path need not have packed rings in copy mode: they end at the daemon.
        disk.features |= fmt & ~vu.bit(vu.PACKED)
        disk.attach().up()
        assert p.state().type == blk.BLK and bool(p.state().features >> vu.PACKED & 1) == False
        with Serving(disk):
            for i, n in enumerate([512, 4096, 65536, 1 << 20]):
                data = pattern(n, i)
                f.write(8 * i, data, indirect=mode == "copy" and n > 65536, cut=n if mode != "copy" else 4096 if n <= 65536 else 16384)
                assert disk.store[512 * 8 * i:512 * 8 * i + n] == data
                assert f.read(8 * i, n, cut=n if mode != "copy" else 4096 if n <= 65536 else 16384, indirect=mode == "copy" and n > 65536) == data
            assert f.wait(f.request(blk.DO_FLUSH, 0))[0] == blk.OK
        if mode == "copy":
            d.wait(lambda: d.stats("ab")["driver"]["tx"]["packets"] == 9)


def test_lengths_of_zero_are_not_believed(make):
    """Back-ends that report 0, or less than they wrote: all of it arrives, and nothing of anybody else's."""
    d = make(Profile_Capacity="4M")
    with Driver(drv(d)) as f, dev(d) as p:
        disk = Disk(p).attach().up()
        disk.store[:4096] = pattern(4096)
        for length in (0, 1, 17, 0xffffffff):
            t = f.request(blk.IN, 0, length=4096)
            disk.answer(disk.take(), length=length)
            assert f.wait(t) == (blk.OK, pattern(4096))
            assert f.done[t][2] == min(length, 4097)
        # Nothing was written at all: no byte of the requests before.
        t = f.request(blk.IN, 0, length=4096)
        head, bufs, _, _ = disk.take()
        disk.back(head, 4097)
        assert f.wait(t) == (0, bytes(4096))


@pytest.mark.parametrize("mode", MODES)
def test_no_ring_reset(make, mode):
    """No message of a front-end says that one ring was reset (findings/qemu-ring-reset-untold.sh), whatever the device side could do."""
    d = make(mode)
    with dev(d) as p:
        disk = Disk(p, features=blk.FEATURES | vu.bit(RING_RESET))
        disk.attach()
        with vu.Frontend(drv(d)) as f:
            offered = f.ask_u64(vu.GET_FEATURES)
            assert offered & vu.bit(vu.VERSION_1) and not offered & vu.bit(RING_RESET)
            with pytest.raises((vu.Refused, vu.Gone)):
                f.negotiate(vu.bit(vu.VERSION_1))
                f.tell_u64(vu.SET_FEATURES, f.features | vu.bit(RING_RESET))


@pytest.mark.parametrize("mode", MODES)
def test_several_queues(make, mode):
    d = make(mode, Profile_Capacity="4M", Link_Queues=4)
    with Driver(drv(d), queues=4) as f, dev(d) as p:
        disk = Disk(p, queues=4).attach().up()
        p.wait(lambda s: all(q.flags & pc.STARTED for q in s.queues) and len(s.queues) == 4)
        disk.up()
        for q in range(4):
            t = f.request(blk.OUT, q, pattern(512, q), q=q)
            disk.serve(1, q)
            assert f.wait(t)[0] == blk.OK
        assert disk.store[:2048] == b"".join(pattern(512, q) for q in range(4))
        if mode == "copy":
            assert [x["direction"] for x in d.show("ab")["sides"]["driver"]["queues"]] == ["request"] * 4


# ---- nobody there, and back again -----------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_requests_wait_while_nobody_serves(make, mode):
    d = make(mode, Profile_Capacity="4M")
    with Driver(drv(d)) as f:
        tokens = [f.request(blk.OUT, i, pattern(512, i)) for i in range(20)]
        d.stays(lambda: f.reap() or not f.done, 0.2)  # nothing is answered, or dropped, while nobody is there
        with dev(d) as p:
            disk = Disk(p).attach().up()
            disk.serve(20)
            for t in tokens:
                assert f.wait(t)[0] == blk.OK
        assert disk.store[:20 * 512] == b"".join(pattern(512, i) for i in range(20))


@pytest.mark.parametrize("fmt", FORMATS)
def test_open_requests_are_given_to_the_next_one_in_order(make, fmt):
    """The device side dies again and again in mid-work: a pause, no error, each request answered once."""
    d = make(Profile_Capacity="4M")
    store = bytearray(4 << 20)
    with Driver(drv(d), vu.bit(vu.VERSION_1, vu.INDIRECT) | blk.FEATURES | fmt) as f:
        tokens = [f.request(blk.OUT, i, pattern(512, i)) for i in range(30)]
        left = list(range(30))
        for lap in range(5):
            with dev(d) as p:
                disk = Disk(p, store=store).attach().up()
                got = [disk.take() for _ in left]
                assert all(got), f"lap {lap}: {got.index(None)} of {len(left)} came"
                assert [g[3] for g in got] == left, "not in order"
                for i in (5, 2, 0) if lap < 4 else reversed(range(len(left))):
                    disk.answer(got[i])
                    f.wait(tokens[got[i][3]])
                    left.remove(got[i][3])
            d.wait(lambda: d.show("ab")["status"] == "partial")
        f.reap()
        assert not left and not f.open and all(s == blk.OK for s, _, _ in f.done.values())
        assert store[:30 * 512] == b"".join(pattern(512, i) for i in range(30))


@pytest.mark.parametrize("mode", ["fast", "grant"])
@pytest.mark.parametrize("vmm", ["keeps the area", "has none"])
def test_fast_with_an_account_loses_nothing(make, vmm, mode):
    """The device side dies in mid-work, also between a completion and its account: the next one goes on from the area."""
    d = make(mode, Profile_Capacity="4M")
    store = bytearray(4 << 20)
    protocol = blk.PF if vmm == "keeps the area" else blk.PF & ~vu.bit(blk.PF_INFLIGHT)
    with Driver(drv(d), protocol=protocol) as f:
        tokens = [f.request(blk.OUT, i, pattern(512, i)) for i in range(20)]
        left = list(range(20))
        for lap in range(4):
            with dev(d) as p:
                disk = Disk(p, store=store, account=True).attach().up()
                got = [disk.take() for _ in left]
                assert [g[3] for g in got] == left
                assert disk.take(timeout=0.05) is None
                for i in (5, 2, 0) if lap < 3 else reversed(range(len(left))):
                    disk.dies_here = lap < 3 and i == 0
                    disk.answer(got[i])
                    f.wait(tokens[got[i][3]])
                    left.remove(got[i][3])
            d.wait(lambda: d.show("ab")["status"] == "partial")
        f.reap()
        assert not left and not f.open and all(s == blk.OK for s, _, _ in f.done.values())
        assert store[:20 * 512] == b"".join(pattern(512, i) for i in range(20))
        # Whoever comes without an account gets a queue with nothing open, and none that has.
        with dev(d) as p:
            disk = Disk(p, store=store, account=True).attach().up()
            f.request(blk.OUT, 0, pattern(512))
            assert disk.take()
        d.wait(lambda: d.show("ab")["status"] == "partial")
        with dev(d) as p:
            Disk(p, store=store).attach()
            d.wait(lambda: d.show("ab")["status"] == "broken")
        assert d.show("ab")["sides"]["driver"]["queues"][0]["error"] == "its back-end has gone with requests that it had not answered"


def test_fast_daemon_is_killed_with_an_account(make):
    """The area is the VMM's: it outlives the daemon, and the next one gives it to the next device side."""
    d = make("fast", Profile_Capacity="4M")
    mem = vu.Memory(16 << 20)
    f = Driver(drv(d), mem=mem)
    with dev(d) as p:
        disk = Disk(p, account=True).attach().up()
        tokens = [f.request(blk.OUT, i, pattern(512, i)) for i in range(10)]
        got = [disk.take() for _ in range(10)]
        for i in (7, 3):
            disk.answer(got[i])
            f.wait(tokens[i])
        d.kill()
    d.start()
    f2 = Driver(drv(d), f.features, mem=mem, inflight=f.inflight, rings=[f.rings[0]])
    f2.open, f2.done = f.open, f.done
    with dev(d) as p:
        disk = Disk(p, store=disk.store, account=True).attach().up()
        got = [disk.take() for _ in range(8)]
        assert [g[3] for g in got] == [0, 1, 2, 4, 5, 6, 8, 9]
        assert disk.take(timeout=0.1) is None
        for g in got:
            disk.answer(g)
        for t in tokens:
            assert f2.wait(t)[0] == blk.OK
    f.mem = None
    f.close()
    f2.close()


def test_fast_account_that_lies(make):
    """The area is the device side's to write: what it makes up harms its own queue."""
    d = make("fast", Profile_Capacity="4M")
    with Driver(drv(d)) as f:
        with dev(d) as p:
            disk = Disk(p, account=True).attach().up()
            for i in range(3):
                f.request(blk.OUT, i, pattern(512, i))
            assert disk.take()
            disk.area(0)[8:12] = b"\x07\0\x08\0"  # another version, of a ring of 8
        d.wait(lambda: d.show("ab")["status"] == "broken")
        assert "in-flight account" in d.show("ab")["sides"]["driver"]["queues"][0]["error"]
        with dev(d) as p:
            Disk(p, account=True).attach()
            assert d.show("ab")["status"] == "broken"


def test_fast_with_open_requests_breaks(make):
    """In fast mode the daemon does not know what was done: no second start, and the reason by name."""
    d = make("fast", Profile_Capacity="4M")
    with Driver(drv(d)) as f:
        with dev(d) as p:
            disk = Disk(p).attach().up()
            t = f.request(blk.OUT, 0, pattern(512))
            disk.serve(1)
            f.wait(t)
        d.wait(lambda: d.show("ab")["status"] == "partial")
        with dev(d) as p:
            disk = Disk(p).attach().up()  # nothing was open: as if nothing had happened
            f.request(blk.OUT, 0, pattern(512))
            assert disk.take()
        d.wait(lambda: d.show("ab")["status"] == "broken")
        q = d.show("ab")["sides"]["driver"]["queues"][0]
        assert q["error"] == "its back-end has gone with requests that it had not answered"
        assert "INFLIGHT_SHMFD" in d.log()


# ---- the driver stops its ring -------------------------------------------------------------------------


def test_stop_waits_for_what_is_under_way(make):
    d = make(Profile_Capacity="4M")
    with Driver(drv(d)) as f, dev(d) as p:
        disk = Disk(p).attach().up()
        tokens = [f.request(blk.OUT, i, pattern(512, i)) for i in range(6)]
        got = [disk.take() for _ in range(6)]
        f.tell_state(vu.SET_VRING_ENABLE, 0, 0)  # as QEMU does first
        f.send(vu.GET_VRING_BASE, struct.pack("<II", 0, 0), need_reply=False)
        d.stays(lambda: (q := p.state().queues[0]).flags & pc.ENABLED and not q.flags & pc.STOP, 0.1)
        for i in (3, 5, 0, 1, 2, 4):
            disk.answer(got[i])
        s = p.wait(lambda s: s.queues[0].flags & pc.STOP)
        assert p.stopped(0, s.queues[0].run, 0) == pc.OK
        assert struct.unpack("<II", f.recv_reply(vu.GET_VRING_BASE)) == (0, 6)
        for t in tokens:
            assert f.wait(t)[0] == blk.OK


@pytest.mark.parametrize("fmt", [0, vu.bit(vu.PACKED)])
def test_stop_while_nobody_serves(make, fmt):
    """What was never answered is left in the driver's ring, or in its VMM's account; it is not lost."""
    d = make(Profile_Capacity="4M")
    for hole in (False, True):
        with Driver(drv(d), vu.bit(vu.VERSION_1, vu.INDIRECT) | blk.FEATURES | fmt) as f:
            with dev(d) as p:
                disk = Disk(p).attach().up()
                tokens = [f.request(blk.OUT, i, pattern(512, i)) for i in range(4)]
                got = [disk.take() for _ in range(4)]
                disk.answer(got[2 if hole else 0])
                f.wait(tokens[2 if hole else 0])
            d.wait(lambda: d.show("ab")["status"] == "partial")
            base = f.stop_ring(0)
            ring = f.rings[0]
            # A start of the same ring, as after a pause.
            f.tell(vu.SET_INFLIGHT_FD, struct.pack("<QQHHI", f.inflight[1], f.inflight[2], 1, 128, 0), [f.inflight[0]])
            f.start_ring(0, ring, base=base)
            with dev(d) as p:
                disk = Disk(p).attach().up()
                assert [disk.take()[3] for _ in range(3)] == ([0, 1, 3] if hole else [1, 2, 3])
                disk.at[0] -= 3
                disk.serve(3)
                for t in tokens:
                    assert f.wait(t)[0] == blk.OK
        d.wait(lambda: d.show("ab")["status"] == "waiting")


def test_an_account_of_split_rings_does_not_hold_packed_ones(make):
    """The area is given first, then packed rings are acknowledged, whose accounts are twice as large: nothing behind it is touched."""
    d = make(Profile_Capacity="4M")
    with Driver.__new__(Driver) as f:
        vu.Frontend.__init__(f, drv(d))
        f.negotiate(vu.bit(vu.VERSION_1, vu.INDIRECT) | blk.FEATURES, protocol=blk.PF)
        f.size = 1024
        area = os.memfd_create("area")
        f.inflight = area, 16 + 16 * 1024 + 63 & ~63, 0
        os.ftruncate(area, f.inflight[1])
        f.set_inflight(1)
        os.close(area)
        f.features |= vu.bit(vu.PACKED)
        f.tell_u64(vu.SET_FEATURES, f.features)
        f.set_memory(vu.Memory(16 << 20))
        with pytest.raises(vu.Refused):
            f.start_ring(0, vu.PackedRing(f.mem, 1024))
        assert "in-flight area" in d.show("ab")["sides"]["driver"]["queues"][0]["error"]
        # With an area that fits it works.
        f.stop_ring(0)
        f.inflight = None
        f.set_inflight(1)
        f.start_ring(0, vu.PackedRing(f.mem, 1024))
        f.open, f.done = {}, {}
        with dev(d) as p:
            disk = Disk(p).attach().up()
            t = f.request(blk.OUT, 0, pattern(512))
            disk.serve(1)
            assert f.wait(t)[0] == blk.OK


@pytest.mark.parametrize("fmt", FORMATS)
def test_daemon_is_killed_with_requests_under_way(make, fmt):
    """The VMM's account of what is open: a new daemon finds it, and nothing is lost or done twice."""
    d = make(Profile_Capacity="4M")
    mem = vu.Memory(16 << 20)
    f = Driver(drv(d), vu.bit(vu.VERSION_1, vu.INDIRECT) | blk.FEATURES | fmt, mem=mem)
    with dev(d) as p:
        disk = Disk(p).attach().up()
        tokens = [f.request(blk.OUT, i, pattern(512, i)) for i in range(10)]
        got = [disk.take() for _ in range(10)]
        for i in (7, 3):
            disk.answer(got[i])
            f.wait(tokens[i])
        d.kill()
    d.start()
    ring, inflight = f.rings[0], f.inflight
    f2 = Driver(drv(d), f.features, mem=mem, inflight=inflight, rings=[ring])
    f2.open, f2.done = f.open, f.done
    with dev(d) as p:
        disk = Disk(p, store=disk.store).attach().up()
        assert [disk.take()[3] for _ in range(8)] == [0, 1, 2, 4, 5, 6, 8, 9]
        assert disk.take(timeout=0.1) is None
        disk.at[0] -= 8
        disk.serve(8)
        for t in tokens:
            assert f2.wait(t)[0] == blk.OK
        t = f2.request(blk.OUT, 20, pattern(512, 20))
        disk.serve(1)
        assert f2.wait(t)[0] == blk.OK
    f.mem = None
    f.close()
    f2.close()


# ---- a device side that breaks the rules ------------------------------------------------------------------


@pytest.mark.parametrize("what", ["never given", "twice", "index", "4 GiB"])
def test_disk_that_breaks_the_rules(make, what):
    d = make(Profile_Capacity="4M")
    with Driver(drv(d)) as f:
        with dev(d) as p:
            disk = Disk(p).attach().up()
            t = f.request(blk.IN, 0, length=512)
            head, bufs, _, _ = got = disk.take()
            if what == "never given":
                disk.back(head + 1 if head + 1 != bufs else head + 2, 512)
            elif what == "twice":
                disk.answer(got)
                f.wait(t)
                disk.back(head, 512)
            elif what == "index":
                p.view(p.state().queues[0].used, 4).cast("H")[1] = 5000
                pc.one(p.doorbells[1])
            else:
                disk.answer(got, length=0xffffffff)
                assert f.wait(t)[0] == blk.OK and f.done[t][2] == 513
            if what != "4 GiB":
                p.wait(lambda s: not s.queues[0].flags & pc.STARTED)
                d.wait(lambda: d.stats("ab")["device"]["queues_spoiled"] == 1)
        with dev(d) as p:
            disk = Disk(p).attach().up()
            t2 = f.request(blk.OUT, 1, pattern(512))
            disk.serve(2 if what in ("never given", "index") else 1)
            assert f.wait(t2)[0] == blk.OK and f.wait(t)[0] == blk.OK


@pytest.mark.parametrize("what", ["never given", "twice", "4 GiB"])
def test_fast_disk_that_breaks_the_rules(make, what):
    """In fast mode it writes the driver's own ring: the driver sees it as of any disk, and nobody else does. Once the driver has begun anew it is over."""
    d = make("fast", Profile_Capacity="4M")
    with Driver(drv(d)) as f:
        with dev(d) as p:
            disk = Disk(p).attach().up()
            t = f.request(blk.IN, 0, length=512)
            got = disk.take()
            head = got[0]
            used = lambda n: struct.unpack_from("<II", p.view(p.state().queues[0].used, 4 + 8 * 16), 4 + 8 * n)  # noqa: E731
            if what == "never given":
                disk.back(head + 100, 512)
                assert used(0) == (head + 100, 512)
            elif what == "twice":
                disk.answer(got)
                assert f.wait(t)[0] == blk.OK
                disk.back(head, 512)
                assert used(1) == (head, 512)
            else:
                disk.answer(got, length=0xffffffff)
                assert f.wait(t)[0] == blk.OK and f.done[t][2] == 0xffffffff
            # Nobody on the host looks at it, and nothing breaks there.
            d.stays(lambda: d.show("ab")["status"] == "up" and not d.show("ab")["sides"]["driver"]["queues"][0].get("error"), 0.2)
            f.sock.settimeout(pc.limit(20))
            f.send(vu.GET_VRING_BASE, struct.pack("<II", 0, 0), need_reply=False)
            s = p.wait(lambda s: s.queues[0].flags & pc.STOP)
            assert p.stopped(0, s.queues[0].run, 1) == pc.OK
            f.recv_reply(vu.GET_VRING_BASE)
            f.open.clear()
            f.start_ring(0, vu.SplitRing(f.mem, 128))
            disk.up()
            t = f.request(blk.IN, 0, length=512)
            disk.serve(1)
            assert f.wait(t)[0] == blk.OK and d.show("ab")["status"] == "up"


def test_fast_disk_that_says_too_much_and_goes(make):
    """More returned than was ever there, or the same one twice, when a back-end without an account has gone: the queue breaks, by name."""
    d = make("fast", Profile_Capacity="4M")
    with Driver(drv(d)) as f:
        with dev(d) as p:
            disk = Disk(p).attach().up()
            t = f.request(blk.IN, 0, length=512)
            got = disk.take()
            disk.answer(got)
            f.wait(t)
            disk.back(got[0], 512)
        d.wait(lambda: d.show("ab")["status"] == "broken")
        assert "had not answered" in d.show("ab")["sides"]["driver"]["queues"][0]["error"] and d.alive()


def test_no_byte_outside_a_request(make):
    """Canaries: around every buffer, and in those that the device may only read."""
    d = make(Profile_Capacity="4M")
    canary = bytes.fromhex("c0ffeec0deadbeef")
    with Driver(drv(d)) as f, dev(d) as p:
        disk = Disk(p).attach().up()
        for kind in (blk.IN, blk.OUT):
            lo = f.mem.alloc(4096, 4096)
            f.mem.map[lo:lo + 4096] = canary * 512
            t = f.request(kind, 0, pattern(1000) if kind == blk.OUT else b"", length=1000)
            _, _, buf, n, status = f.open[t]
            hi = f.mem.alloc(4096, 4096)
            f.mem.map[hi:hi + 4096] = canary * 512
            f.mem.map[status + 1:status + 9] = canary
            f.mem.map[buf + n:buf + n + 8] = canary
            got = disk.take()
            assert canary not in bytes(p.mem), "bytes that belong to no request are in the pool"
            for a, l, w in got[1]:
                p.view(a, l)[:] = b"\x5a" * l
            disk.back(got[0], 0xffffffff)
            f.wait(t)
            assert f.mem.map[lo:lo + 4096] == canary * 512 and f.mem.map[hi:hi + 4096] == canary * 512
            assert f.mem.map[status + 1:status + 9] == canary and f.mem.map[buf + n:buf + n + 8] == canary
            if kind == blk.OUT:
                assert f.mem.map[buf:buf + n] == pattern(1000)


@pytest.mark.parametrize("mode", MODES)
def test_reset_with_requests_under_way(make, mode):
    d = make(mode, Profile_Capacity="4M")
    with dev(d) as p:
        for lap in range(3):
            with Driver(drv(d)) as f:
                disk = Disk(p, tell=lap == 0).attach().up()
                for i in range(10):
                    f.request(blk.IN, i, length=4096)
                assert disk.take()
            s = p.wait(lambda s: s.reason == pc.NO_DRIVER)
            assert not any(q.flags & pc.STARTED for q in s.queues)
            p.sync()
            d.wait(lambda: mode == "fast" or not any(bytes(p.mem)[0x200000:]))


# ---- the order of messages of real VMMs -----------------------------------------------------------------------


def realize(f, ngets=57):
    """QEMU's vhost-user-blk before any guest runs."""
    f.ask_u64(vu.GET_FEATURES)
    pf = f.ask_u64(vu.GET_PROTOCOL_FEATURES)
    f.tell_u64(vu.SET_PROTOCOL_FEATURES, pf & blk.PF)
    f.protocol = pf & blk.PF
    assert f.ask_u64(vu.GET_QUEUE_NUM) == 2
    assert f.ask_u64(vu.GET_MAX_MEM_SLOTS) >= 32
    f.reply_ack = True
    import socket
    a, b = socket.socketpair()
    f.back = a
    f.tell(vu.SET_BACKEND_REQ_FD, b"", [b.fileno()])
    b.close()
    f.reply_ack = False
    f.tell(vu.SET_OWNER)
    offered = f.ask_u64(vu.GET_FEATURES)
    for q in range(2):
        call = vu.eventfd()
        f.fds.append(call)
        f.tell_u64(vu.SET_VRING_CALL, q, [call])
        err = vu.eventfd()
        f.fds.append(err)
        f.tell_u64(vu.SET_VRING_ERR, q, [err])
    cfg = f.ask(vu.GET_CONFIG, struct.pack("<III", 0, ngets, 0) + bytes(ngets))
    assert len(cfg) == 12 + ngets
    return offered, cfg[12:]


@pytest.mark.parametrize("qemu", [7, 11])
@pytest.mark.parametrize("mode", MODES)
def test_order_of_qemu(make, mode, qemu):
    """Realize with nobody there, the firmware's driver first, then another one; stop in the order of either version."""
    d = make(mode, Profile_Capacity="4M", Link_Queues=2)
    f = Driver.__new__(Driver)
    vu.Frontend.__init__(f, drv(d))
    f.open, f.done, f.size, f.inflight = {}, {}, 128, None
    offered, cfg = realize(f)
    assert struct.unpack_from("<Q", cfg)[0] == 8192
    f.mem = vu.Memory(16 << 20)
    f.reply_ack = qemu == 11
    for features in (vu.bit(vu.VERSION_1, blk.BLK_SIZE, blk.SEG_MAX), offered & ~vu.bit(vu.LOG_ALL, vu.PACKED, 33)):
        f.features = features | vu.bit(vu.PROTOCOL)
        f.tell_u64(vu.SET_FEATURES, f.features)
        f.ask_u64(vu.GET_STATUS)
        f.tell_u64(vu.SET_STATUS, 8)
        assert f.protocol >> blk.PF_INFLIGHT & 1
        f.inflight = None
        f.set_inflight(2)
        f.tell_u64(vu.SET_FEATURES, f.features)
        f.ask_u64(vu.GET_STATUS)
        f.tell(vu.ADD_MEM_REG, bytes(8) + f.region(f.mem), [f.mem.fd])
        firmware = not features >> vu.EVENT_IDX & 1
        f.rings = {}
        f.start_ring(0, vu.SplitRing(f.mem, 128), enable=False)
        if not firmware:
            f.start_ring(1, vu.SplitRing(f.mem, 128), enable=False)
        for q in range(2):
            f.tell_state(vu.SET_VRING_ENABLE, q, 1)  # one of them may never have got a size
        f.tell_u64(vu.SET_STATUS, 0xf)
        with dev(d) as p:
            disk = Disk(p, queues=2).attach().up()
            t = f.request(blk.IN, 0, length=512)
            disk.serve(1)
            assert f.wait(t)[0] == blk.OK
            if qemu == 7:
                f.tell_u64(vu.SET_STATUS, 0)
            for q in range(2):
                f.tell_state(vu.SET_VRING_ENABLE, q, 0)
            for q in range(2):
                f.send(vu.GET_VRING_BASE, struct.pack("<II", q, 0), need_reply=False)
                if q in f.rings:
                    s = p.wait(lambda s: s.queues[q].flags & pc.STOP)
                    assert p.stopped(q, s.queues[q].run, 1 - q) == pc.OK
                assert struct.unpack("<II", f.recv_reply(vu.GET_VRING_BASE)) == (q, 1 if q == 0 else 0)
            f.tell_u64(vu.SET_STATUS, 0)
        f.tell(vu.REM_MEM_REG, bytes(8) + f.region(f.mem))
    f.back.close()
    f.close()


# ---- a driver VM with a vIOMMU, and one that is being migrated -------------------------------------------------------


class IoDriver(Driver):
    """Rings and requests hold IOVAs; misses are answered whenever somebody looks for answers."""

    def __init__(self, path, features=0, **kw):
        import viommu
        self.back = None
        self.io = viommu
        self.misses, self.fails, self.perm, self.silent, self.grain, self.told = [], [], {}, False, 1, 0
        super().__init__(path, vu.bit(vu.VERSION_1, vu.INDIRECT, viommu.ACCESS_PLATFORM) | blk.FEATURES | features,
                         mem=viommu.Memory(4 << 20), **kw)
        assert self.features >> viommu.ACCESS_PLATFORM & 1

    def __getattr__(self, name):
        import viommu
        if name in ("region", "set_channel", "iotlb", "update", "invalidate", "move", "answer", "serve"):
            return getattr(viommu.Nic, name).__get__(self)
        raise AttributeError(name)

    def region(self, mem):
        return struct.pack("<QQQQ", mem.real_gpa, mem.size, mem.real_uva, 0)

    def set_memory(self, mem):
        self.set_channel()
        vu.Frontend.set_memory(self, mem)

    def reap(self):
        self.serve()
        super().reap()

    def close(self):
        if self.back:
            self.back.close()
            self.back = None
        super().close()


@pytest.mark.parametrize("fmt", [0, vu.bit(vu.PACKED)])
def test_viommu(make, fmt):
    """Misses on the way there and back; pages that move while a request is under way; one that may not be written."""
    d = make(Profile_Capacity="4M")
    with IoDriver(drv(d), fmt) as f, dev(d) as p:
        disk = Disk(p).attach()
        d.wait(lambda: f.serve() or p.state().up)
        disk.up()
        with Serving(disk):
            for i in range(8):
                data = pattern(8192, i)
                f.write(16 * i, data)
                assert f.read(16 * i, 8192) == data
        # The buffer moves while the disk has the request: the answer goes to the new place.
        t = f.request(blk.IN, 0, length=4096)
        f.serve(0.1)
        got = disk.take()
        page = f.open[t][2] // 4096
        f.move(page)
        disk.answer(got)
        assert f.wait(t) == (blk.OK, pattern(8192)[:4096])
        f.mem.check_left()
        # It may not be written any more: no byte goes there, and the request is not answered as if one had.
        t = f.request(blk.IN, 0, length=4096)
        f.serve(0.1)
        got = disk.take()
        page = f.open[t][2] // 4096
        f.perm[page] = 1
        f.misses.clear()
        f.move(page)
        disk.answer(got)
        d.wait(lambda: f.serve() or any(page == (iova - f.io.IOVA) // 4096 for iova, _ in f.misses + f.fails))
        d.stays(lambda: f.reap() or t not in f.done, 0.1)
        f.mem.check_left()


def test_dirty_log(make):
    """Live migration: what the disk's answers change in the driver's memory is logged, and no more."""
    d = make(Profile_Capacity="4M")
    mem = vu.Memory(4 << 20, gpa=0)
    with Driver(drv(d), vu.bit(vu.VERSION_1, vu.INDIRECT, vu.LOG_ALL) | blk.FEATURES, mem=mem,
                protocol=blk.PF | vu.bit(vu.PF_LOG_SHMFD)) as f, dev(d) as p, os.fdopen(os.memfd_create("log"), "w+b") as log:
        disk = Disk(p).attach().up()
        log.truncate(4096)
        f.send(vu.SET_LOG_BASE, struct.pack("<QQ", 4096, 0), [log.fileno()], need_reply=False)
        f.recv_reply(vu.SET_LOG_BASE)
        t = f.request(blk.IN, 0, length=10000)
        _, _, buf, n, status = f.open[t]
        disk.serve(1)
        assert f.wait(t)[0] == blk.OK
        bits = os.pread(log.fileno(), 4096, 0)
        dirty = {8 * i + b for i, byte in enumerate(bits) for b in range(8) if byte >> b & 1}
        assert dirty == set(range(buf // 4096, (buf + n - 1) // 4096 + 1)) | {status // 4096}
