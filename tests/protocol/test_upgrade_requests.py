# SPDX-License-Identifier: BSD-3-Clause
"""A new daemon takes over disks with requests under way: each is answered once, with the right data (docs/handover.md)."""
import os
import pathlib
import random
import struct
import threading
import time

import blk
import conftest
import portclient as pc
import pytest
import vu
from blk import Disk, Driver, pattern
from test_device import FORMATS, dev, drv, link
from portside import answer_stop
from test_upgrade import fd_kinds, real, refused

BASE = vu.bit(vu.VERSION_1, vu.INDIRECT) | blk.FEATURES
BLOCK = 8  # sectors
TIMES = int(os.environ.get("VHOST_PCI_UPGRADES", 10))


@pytest.fixture
def make(make_daemon):
    def made(conf="", **keys):
        d = make_daemon()
        if conf:
            d.write("vhost-pci.conf", conf)
        link(d, "copy", **{k: v for k, v in {"Profile_Capacity": "4M", **keys}.items() if v is not None})
        return d.start()
    return made


class Held(threading.Thread):
    """A disk that holds `hold` requests back all the time, and answers the others in any order."""

    def __init__(self, disk, hold=6):
        super().__init__(daemon=True)
        self.disk, self.hold, self.held, self.ending, self.wrong = disk, hold, [], False, None
        self.served = 0

    def run(self):
        rnd = random.Random(1)
        try:
            while not self.ending:
                if (got := self.disk.take(0, 0.0005)) is not None:
                    self.held.append(got)
                while len(self.held) > self.hold:
                    self.disk.answer(self.held.pop(rnd.randrange(len(self.held))))
                    self.served += 1
        except Exception as err:  # pylint: disable=broad-except
            self.wrong = err


class Load(threading.Thread):
    """Writes blocks and reads them back, `width` at a time; every answer comes once, and is right."""

    def __init__(self, f, width=12, size=512 * BLOCK):
        super().__init__(daemon=True)
        self.f, self.width, self.size, self.done, self.ending, self.wrong = f, width, size, 0, False, None
        self.lap = [0] * width

    def step(self, slot, token):
        """The answer of a slot's request is looked at; its next one."""
        f, sector = self.f, slot * (self.size // 512)
        if token is not None:
            status, data, _ = f.done.pop(token)
            assert status == blk.OK, f"sector {sector}: status {status}"
            if self.lap[slot] % 2 == 0:
                assert data == pattern(self.size, self.lap[slot]), f"sector {sector}: not what was written"
        if self.ending:
            return None
        self.lap[slot] += 1
        if self.lap[slot] % 2:
            return f.request(blk.OUT, sector, pattern(self.size, self.lap[slot] + 1))
        return f.request(blk.IN, sector, length=self.size)

    def run(self):
        try:
            slots = {self.step(i, None): i for i in range(self.width)}
            idle = time.monotonic()
            while slots:
                self.f.reap()
                back = [t for t in slots if t in self.f.done]
                for t in back:
                    slot = slots.pop(t)
                    if (new := self.step(slot, t)) is not None:
                        slots[new] = slot
                    self.done += 1
                if back:
                    idle = time.monotonic()
                assert time.monotonic() - idle < conftest.PATIENCE, f"nothing comes back; {len(slots)} are open"
                time.sleep(0.0005)
        except Exception as err:  # pylint: disable=broad-except
            self.wrong = err


class Both:
    """Load on a disk, while the body runs."""

    def __init__(self, f, disk, **how):
        self.disk, self.load = Held(disk), Load(f, **how)

    def more(self, n=30):
        want, end = self.load.done + n, time.monotonic() + conftest.PATIENCE
        while self.load.done < want:
            assert not self.load.wrong and not self.disk.wrong, (repr(self.load.wrong), repr(self.disk.wrong))
            assert time.monotonic() < end
            time.sleep(0.002)

    def __enter__(self):
        self.disk.start()
        self.load.start()
        self.more()
        return self

    def __exit__(self, *err):
        if not err[0]:
            self.more()
        self.disk.hold, self.load.ending = 0, True
        self.load.join(conftest.PATIENCE)
        self.disk.ending = True
        self.disk.join(conftest.PATIENCE)
        if not err[0]:
            assert not self.load.wrong and not self.disk.wrong, (repr(self.load.wrong), repr(self.disk.wrong))
            assert not self.load.f.open


def device(d):
    return d.show("ab")["sides"]["device"]


def driver(d, fmt=0, **kw):
    return Driver(drv(d), BASE | fmt, mem_size=256 << 20, **kw)


@pytest.mark.parametrize("account", [True, False], ids=["account", "none"])
@pytest.mark.parametrize("fmt", FORMATS, ids=["split", "event", "packed", "packed-event"])
def test_under_load(make, fmt, account):
    d = make()
    protocol = blk.PF if account else blk.PF & ~vu.bit(blk.PF_INFLIGHT)
    with driver(d, fmt, protocol=protocol) as f, dev(d) as p:
        disk = Disk(p)
        disk.features |= fmt & ~vu.bit(vu.PACKED)
        disk.attach().up()
        with Both(f, disk) as load:
            for _ in range(3):
                print("stall_us", d.upgrade()["stall_us"], "held", len(load.disk.held))
                load.more()
        s = device(d)
        assert s["requests_open"] == s["requests_given_again"] == s["requests_failed"] == 0
        d.wait(lambda: d.stats("ab")["driver"]["tx"]["packets"] == load.disk.served)
        assert "went away" not in d.log() and "has left" not in d.log()


@pytest.mark.parametrize("fmt", [0, vu.bit(vu.PACKED)], ids=["split", "packed"])
def test_all_are_held(make, fmt):
    """Nothing moves: what is away, of which a part returned, what waits for room, and how they lie in the pool."""
    d = make(Device_PoolSize="2M")
    kib = 1024
    with driver(d, fmt) as f, dev(d) as p:
        disk = Disk(p).attach().up()
        some = [f.request(blk.OUT, 512 * i, pattern(256 * kib, i), cut=65536) for i in range(7)]
        got = [disk.take() for _ in some]
        for i in range(0, 7, 2):  # holes
            disk.answer(got[i])
            assert f.wait(some[i])[0] == blk.OK
        # There is no room for it in one piece, and none at all for what follows.
        disk.store[512 * 4096:512 * 4096 + kib * kib] = pattern(kib * kib, 77)
        read = f.request(blk.IN, 4096, length=kib * kib, cut=65536)
        late = [f.request(blk.OUT, 6144, pattern(640 * kib, 78), cut=65536), f.request(blk.OUT, 4096, pattern(768 * kib, 79), cut=65536),
                f.request(blk.DO_FLUSH, 0)]
        first = disk.take()
        assert sum(1 for a, n, w in first[1] if w) > 2, "it is to lie in several pieces"
        for _ in range(2):
            assert disk.take(timeout=0.05) is None
            d.upgrade()
        assert device(d)["requests_open"] == 4
        disk.answer(first)
        assert f.wait(read) == (blk.OK, pattern(kib * kib, 77))
        d.upgrade()
        second = disk.take()
        d.upgrade()
        disk.answer(second)
        for g in [disk.take(), disk.take()] + got[5::-2]:
            d.upgrade()
            disk.answer(g)
        for t in late + some[1::2]:
            assert f.wait(t)[0] == blk.OK
        for i in range(7):
            assert disk.store[512 * 512 * i:512 * 512 * i + 256 * kib] == pattern(256 * kib, i)
        assert disk.store[512 * 6144:512 * 6144 + 640 * kib] == pattern(640 * kib, 78)
        assert disk.store[512 * 4096:512 * 4096 + 768 * kib] == pattern(768 * kib, 79)
        assert not f.open


@pytest.mark.parametrize("fmt", FORMATS, ids=["split", "event", "packed", "packed-event"])
def test_nobody_serves(make, fmt):
    """Requests that wait for the next device side wait for it under the next daemon, in order."""
    d = make()
    store = bytearray(4 << 20)
    with driver(d, fmt) as f:
        tokens = [f.request(blk.OUT, i, pattern(512, i)) for i in range(20)]
        left = list(range(20))
        for lap in range(4):
            d.upgrade()
            with dev(d) as p:
                disk = Disk(p, store=store).attach().up()
                d.upgrade()
                got = [disk.take() for _ in left]
                assert [g[3] for g in got] == left, "not in order"
                d.upgrade()
                for i in (5, 2, 0) if lap < 3 else reversed(range(len(left))):
                    disk.answer(got[i])
                    f.wait(tokens[got[i][3]])
                    left.remove(got[i][3])
            d.wait(lambda: d.show("ab")["status"] == "partial")
        assert not left and not f.open and all(s == blk.OK for s, _, _ in f.done.values())
        assert store[:20 * 512] == b"".join(pattern(512, i) for i in range(20))


@pytest.mark.parametrize("fmt", [0, vu.bit(vu.PACKED)], ids=["split", "packed"])
def test_the_account_goes_on(make, fmt):
    """A daemon that took over, and was then killed: its account of open requests is right, also where it was not read to the end."""
    d = make()
    mem = vu.Memory(16 << 20)
    store = bytearray(4 << 20)
    f = Driver(drv(d), BASE | fmt, mem=mem)
    with dev(d) as p:
        disk = Disk(p, store=store).attach().up()
        tokens = [f.request(blk.OUT, i, pattern(512, i)) for i in range(12)]
        got = [disk.take() for _ in range(12)]
        d.upgrade()
        for i in (7, 3):
            disk.answer(got[i])
            f.wait(tokens[i])
        tokens += [f.request(blk.OUT, i, pattern(512, i)) for i in range(12, 16)]
        got += [disk.take() for _ in range(4)]
        d.upgrade()
        disk.answer(got[13])
        f.wait(tokens[13])
        d.kill()
    d.start()
    f2 = Driver(drv(d), f.features, mem=mem, inflight=f.inflight, rings=[f.rings[0]])
    f2.open, f2.done = f.open, f.done
    d.upgrade()  # what it found there nobody has been given yet
    left = [i for i in range(16) if i not in (3, 7, 13)]
    with dev(d) as p:
        disk = Disk(p, store=store).attach().up()
        got = [disk.take() for _ in left]
        assert [g[3] for g in got] == left
        d.upgrade()
        assert disk.take(timeout=0.1) is None
        for g in got[:4]:
            disk.answer(g)
        for t in tokens[:5]:
            f2.wait(t)
    d.kill()
    d.start()
    f3 = Driver(drv(d), f.features, mem=mem, inflight=f.inflight, rings=[f.rings[0]])
    f3.open, f3.done = f2.open, f2.done
    with dev(d) as p:
        disk = Disk(p, store=store).attach().up()
        got = [disk.take() for _ in left[4:]]
        assert [g[3] for g in got] == left[4:]
        for g in got:
            disk.answer(g)
        for t in tokens:
            assert f3.wait(t)[0] == blk.OK
    assert store[:16 * 512] == b"".join(pattern(512, i) for i in range(16))
    f.mem = f2.mem = None
    for x in (f, f2, f3):
        x.close()


def test_driver_stops_and_starts(make):
    """What the next daemon knows is exact: the ring stops there, and what is open is in it still."""
    d = make()
    with driver(d, protocol=blk.PF & ~vu.bit(blk.PF_INFLIGHT)) as f, dev(d) as p:
        disk = Disk(p).attach().up()
        with Both(f, disk) as load:
            d.upgrade()
            load.more()
        t = [f.request(blk.OUT, i, pattern(512, i)) for i in range(3)]
        got = [disk.take() for _ in t]
        d.upgrade()
        for g in got[::-1]:
            disk.answer(g)
        for x in t:
            assert f.wait(x)[0] == blk.OK
        t = threading.Thread(target=answer_stop, args=(p, 0, disk.at[0] & 0xffff))
        t.start()
        base = f.stop_ring(0)
        t.join()
        assert base == f.rings[0].used_idx
        f.start_ring(0, f.rings[0], base=base)
        disk.up()
        with Both(f, disk):
            d.upgrade()


def test_new_one_dies_at_each_point(make, tmp_path):
    path = tmp_path / "dies"
    path.write_text(f'#!/bin/sh\nn=$(cat {tmp_path}/n); VHOST_PCI_TAKEOVER_EXIT=$n exec {real()} "$@"\n')
    path.chmod(0o755)
    d = make(conf=f"[Daemon]\nUpgradeBinaries={path}\n")
    with driver(d) as f, dev(d) as p:
        disk = Disk(p).attach().up()
        page = bytes(p.mem[pc.STATE:pc.STATE + 0x10000])
        with Both(f, disk) as load:
            fds = d.fds()
            for n in range(1, 100):
                (tmp_path / "n").write_text(str(n))
                pid = d.proc.pid
                try:
                    d.upgrade(binary=str(path))
                    break
                except conftest.ControlError:
                    assert d.alive() and d.proc.pid == pid
                    load.more(10)
                    d.wait_fds(fds)
            assert n >= 6, "there are more points than that"
        assert bytes(p.mem[pc.STATE:pc.STATE + 0x10000]) == page


def test_again_and_again(make):
    d = make()
    with driver(d) as f, dev(d) as p:
        disk = Disk(p).attach().up()
        d.upgrade()
        fds, kinds = d.fds(), None
        maps = len(pathlib.Path(f"/proc/{d.proc.pid}/maps").read_text().splitlines())
        with Both(f, disk) as load:
            for _ in range(TIMES):
                d.upgrade()
                load.more(20)
                kinds = kinds or fd_kinds(d.proc.pid)
            assert fd_kinds(d.proc.pid) == kinds
        d.wait_fds(fds)
        assert len(pathlib.Path(f"/proc/{d.proc.pid}/maps").read_text().splitlines()) <= maps + 8


def test_a_stop_is_waited_for(make):
    """Its VMM stops the ring, and a request is under way: not at rest until that is answered."""
    d = make()
    with driver(d) as f, dev(d) as p:
        disk = Disk(p).attach().up()
        f.request(blk.OUT, 0, pattern(512))
        got = disk.take()
        f.send(vu.GET_VRING_BASE, struct.pack("<II", 0, 0), need_reply=False)
        d.wait(lambda: d.call("daemon.version"))
        refused(d, "not at rest")
        assert d.alive()
        disk.answer(got)
        p.wait(lambda s: s.queues[0].flags & pc.STOP)
        p.stopped(0, p.state().queues[0].run, 1)
        f.recv_reply(vu.GET_VRING_BASE)
        d.upgrade()


@pytest.mark.parametrize("keys", [{"Link_Type": "fs", "Profile_Tag": "t"}, {"Link_Type": "vsock", "Profile_CID": "7"}, {"Link_Type": "scsi"},
                                  {"Link_Type": "34"}], ids=["fs", "vsock", "scsi", "34"])
def test_other_types(make, keys):
    """The same engine serves them. One whose back-end is not known yet has no driver side."""
    d = make(Profile_Capacity=None, **keys)
    d.upgrade()
    if "Profile_Tag" in keys or "Profile_CID" in keys:
        with Driver(drv(d), vu.bit(vu.VERSION_1), protocol=blk.PF & ~vu.bit(blk.PF_INFLIGHT)):
            d.upgrade()
    assert d.show("ab")["status"] == "waiting" and d.call("daemon.show")["upgrades"] >= 1
