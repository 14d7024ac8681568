# SPDX-License-Identifier: BSD-3-Clause
"""A new daemon takes over links with a vhost-user back-end on the host, which sees nothing of that (docs/handover.md)."""
import os
import random
import select
import shutil
import struct
import time

import blk
import conftest
import pytest
import vu
from blk import Driver, pattern
from test_control import ctl
from test_hostdev import FAST, STATE, dev, device, drv, fast_backend, link
from test_hostdev_real import StorageDaemon
from test_upgrade import fd_kinds, real
from test_upgrade_requests import Load
from vubackend import Backend

BASE = vu.bit(vu.VERSION_1, vu.INDIRECT) | blk.FEATURES
TIMES = int(os.environ.get("VHOST_PCI_UPGRADES", 10))
CONFIG_CHANGE = struct.pack("<III", 2, 1, 0)


@pytest.fixture
def make(make_daemon):
    def made(conf="", **keys):
        d = make_daemon()
        d.run.mkdir()
        if conf:
            d.write("vhost-pci.conf", conf)
        link(d, **keys)
        return d.start()
    return made


class Holding(Backend):
    """Holds `hold` requests back all the time, and answers the others in any order."""

    def __init__(self, *a, hold=4, **kw):
        super().__init__(*a, **kw)
        self.hold, self.held, self.rnd, self.hook = hold, [], random.Random(1), self.take

    def take(self, r, head, chain):
        self.held.append((head, chain))
        while len(self.held) > self.hold:
            got, bufs = self.held.pop(self.rnd.randrange(len(self.held)))
            self.back(r, got, self.request(bufs))
        return True


class Loaded:
    def __init__(self, d, b, fmt=0):
        self.b, self.f = b, Driver(drv(d), BASE | fmt, mem_size=256 << 20)
        self.load = Load(self.f)

    def more(self, n=30):
        want = self.load.done + n
        vu_wait(lambda: self.load.done >= want or self.load.wrong)
        assert not self.load.wrong and not self.b.errors, (self.load.wrong, self.b.errors)

    def __enter__(self):
        self.load.start()
        self.more()
        return self

    def __exit__(self, *err):
        if not err[0]:
            self.more()
        self.load.ending, self.b.hold = True, 0
        self.f.request(blk.DO_FLUSH, 0)  # so that it looks at what it holds
        self.load.join(conftest.PATIENCE)
        if not err[0]:
            assert not self.load.wrong and not self.b.errors, (self.load.wrong, self.b.errors)
        self.f.close()


def vu_wait(what):
    end = time.monotonic() + conftest.PATIENCE
    while not what():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.parametrize("fmt", [0, vu.bit(vu.PACKED, vu.EVENT_IDX)], ids=["split", "packed-event"])
@pytest.mark.parametrize("mode", ["client", "server"])
def test_it_sees_nothing(make, mode, fmt):
    d = make(Device_SocketMode=mode)
    with Holding(dev(d), connect=mode == "server") as b, Loaded(d, b, fmt) as load:
        seen = list(b.seen)
        for _ in range(4):
            print("stall_us", d.upgrade()["stall_us"], "held", len(b.held))
            load.more()
        assert b.seen == seen and b.sessions == 1
        s = device(d)
        assert s["connected"] and s["connections"] == 1 and s["dropped"] == s["requests_given_again"] == 0


def test_what_is_half_said(make):
    """Half a request of the back-end; an answer that is owed; and then it is served as ever."""
    d = make()
    with Backend(dev(d)) as b, Driver(drv(d)) as f:
        f.write(0, pattern(4096))
        b.config = blk.config(16384)
        b.req.sendall(CONFIG_CHANGE[:7])
        d.call("daemon.version")
        d.upgrade()
        b.slow[vu.GET_CONFIG] = 1
        b.req.sendall(CONFIG_CHANGE[7:])
        d.wait(lambda: b.seen[-1] == vu.GET_CONFIG)
        d.upgrade()  # at rest when that has been answered: the next daemon would take it for something unasked
        d.wait(lambda: struct.unpack_from("<Q", f.ask(vu.GET_CONFIG, struct.pack("<III", 0, 60, 0) + bytes(60)), 12)[0] == 16384)
        assert f.read(0, 4096) == pattern(4096)
        assert device(d)["dropped"] == 0 and b.sessions == 1


@pytest.mark.parametrize("mode", ["client", "server"])
def test_before_and_between(make, mode):
    """Nobody there yet; one that goes with open requests; the next one."""
    d = make(Device_SocketMode=mode, Profile_Capacity="4M")
    store, path = bytearray(4 << 20), drv(d)
    d.upgrade()
    with Driver(path) as f:
        t = [f.request(blk.OUT, 8 * i, pattern(4096, i)) for i in range(8)]
        for hold in (8, 3):
            b = Holding(dev(d), hold=hold, store=store, connect=mode == "server")
            with b:
                d.wait(lambda n=hold, x=b: len(x.held) == n)
                d.upgrade()
                assert b.sessions == 1
            d.wait(lambda: not device(d)["connected"])
            d.upgrade()
        b = Backend(dev(d), store=store, connect=mode == "server")
        with b:
            assert all(f.wait(x)[0] == blk.OK for x in t)
            d.upgrade()
            for i in range(8):
                assert f.read(8 * i, 4096) == pattern(4096, i)


def test_what_it_knew_is_kept(make):
    """DEVICE_STATE: saved under one daemon, given to the next back-end by another."""
    d = make(Profile_Capacity="4M")
    state = os.urandom(300000)
    with Driver(drv(d)) as f:
        with Backend(dev(d), pf=STATE) as a:
            a.state = state
            f.write(0, pattern(4096, 1))
            assert ctl(d, "down", "ab").returncode == 0
            d.wait(lambda: a.loaded == [state] and device(d)["attached"])
        d.wait(lambda: not device(d)["connected"])
        d.upgrade()
        with Backend(dev(d), store=a.store, pf=STATE) as b:
            d.wait(lambda: b.loaded == [state])
            d.upgrade()
            assert ctl(d, "up", "ab").returncode == 0
            assert f.read(0, 4096) == pattern(4096, 1)


def test_new_one_dies_at_each_point(make, tmp_path):
    path = tmp_path / "dies"
    path.write_text(f'#!/bin/sh\nn=$(cat {tmp_path}/n); VHOST_PCI_TAKEOVER_EXIT=$n exec {real()} "$@"\n')
    path.chmod(0o755)
    d = make(conf=f"[Daemon]\nUpgradeBinaries={path}\n")
    with Holding(dev(d)) as b, Loaded(d, b) as load:
        seen, fds = list(b.seen), d.fds()
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
        assert b.seen == seen and b.sessions == 1


def test_again_and_again(make):
    d = make()
    with Holding(dev(d)) as b, Loaded(d, b) as load:
        d.upgrade()
        fds, kinds = d.fds(), fd_kinds(d.proc.pid)
        for _ in range(TIMES):
            d.upgrade()
            load.more(20)
        assert fd_kinds(d.proc.pid) == kinds
        d.wait_fds(fds)


def test_fast(make):
    """The back-end has the driver VM's memory and eventfds, and works on; what comes later reaches it as ever."""
    d = make(**FAST)
    with fast_backend(dev(d)) as b, Driver(drv(d)) as f:
        load = Load(f)
        load.start()
        vu_wait(lambda: load.done >= 50 or load.wrong)
        seen = list(b.seen)
        for _ in range(4):
            want = load.done + 50
            print("stall_us", d.upgrade()["stall_us"])
            vu_wait(lambda n=want: load.done >= n or load.wrong)
        load.ending = True
        load.join(conftest.PATIENCE)
        assert not load.wrong and not b.errors, (load.wrong, b.errors)
        assert b.seen == seen and b.sessions == 1
        s = device(d)
        assert s["connections"] == 1 and s["kicks_direct"] == s["calls_direct"] == 1
        more = vu.Memory(4 << 20, gpa=1 << 33, uva=1 << 45)
        f.tell(vu.ADD_MEM_REG, struct.pack("<Q", 0) + f.region(more), [more.fd])
        d.wait(lambda: len(b.regions) == 2)
        call = os.eventfd(0, os.EFD_NONBLOCK)
        f.tell(vu.SET_VRING_CALL, struct.pack("<Q", 0), [call])
        f.request(blk.OUT, 8, pattern(512))
        d.wait(lambda: select.select([call], [], [], 0.01)[0])
        os.close(call)
        d.upgrade()
        f.request(blk.OUT, 8, pattern(512))


def test_fast_new_one_dies_at_each_point(make, tmp_path):
    """Its back-end is left when the driver VM goes, whichever daemon it is by then."""
    path = tmp_path / "dies"
    path.write_text(f'#!/bin/sh\nn=$(cat {tmp_path}/n); VHOST_PCI_TAKEOVER_EXIT=$n exec {real()} "$@"\n')
    path.chmod(0o755)
    d = make(conf=f"[Daemon]\nUpgradeBinaries={path}\n", **FAST)
    with fast_backend(dev(d)) as b, Driver(drv(d)) as f:
        f.write(0, pattern(4096))
        fds = d.fds()
        for n in range(1, 100):
            (tmp_path / "n").write_text(str(n))
            pid = d.proc.pid
            try:
                d.upgrade(binary=str(path))
                break
            except conftest.ControlError:
                assert d.alive() and d.proc.pid == pid
                f.write(8, pattern(4096, n))
                d.wait_fds(fds)
        assert n >= 6, "there are more points than that"
        assert f.read(0, 4096) == pattern(4096) and b.sessions == 1
        f.close()
        d.wait(lambda: not device(d)["connected"] or device(d)["connections"] > 1)


@pytest.mark.skipif(not shutil.which("qemu-storage-daemon"), reason="qemu-storage-daemon is not installed (package qemu-system-common)")
def test_qemu_storage_daemon(make):
    """Upgraded again and again while a driver writes and reads back; then a 1 MiB request and a stop."""
    d = make()
    s = StorageDaemon(d)
    s.start()
    try:
        with Driver(drv(d), mem_size=256 << 20) as f:
            load = Load(f, width=16, size=16384)
            load.start()
            for _ in range(TIMES):
                want = load.done + 40
                vu_wait(lambda n=want: load.done >= n or load.wrong)
                print("stall_us", d.upgrade()["stall_us"], "done", load.done)
            load.ending = True
            load.join(conftest.PATIENCE)
            assert not load.wrong and not f.open, load.wrong
            f.write(2048, pattern(1 << 20, 9), cut=16384)
            assert f.read(2048, 1 << 20, cut=16384) == pattern(1 << 20, 9)
            f.stop_ring(0)
        assert device(d)["connections"] == 1 and device(d)["dropped"] == 0 and device(d)["requests_given_again"] == 0
        assert d.call("daemon.show")["upgrades"] == TIMES and s.proc.poll() is None
    finally:
        s.kill()
