# SPDX-License-Identifier: BSD-3-Clause
"""Links of other types than net: large requests, long chains, and the room that they have."""
import os
import struct

import pytest

import blk
import portclient as pc
import vu
from blk import Disk, Driver, pattern
from test_device import MODES, Serving, dev, drv, make  # noqa: F401 (a fixture)

def test_pool_of_8_mib_serves_64_of_64_kib(make):
    d = make(Profile_Capacity="8M")
    with Driver(drv(d), size=256) as f, dev(d) as p:
        disk = Disk(p, sectors=16384).attach().up()
        tokens = [f.request(blk.IN, 128 * i, length=65536, cut=65536) for i in range(64)]
        got = [disk.take() for _ in range(64)]
        assert all(got)
        for g in got:
            disk.answer(g)
        for t in tokens:
            assert f.wait(t)[0] == blk.OK


def test_request_larger_than_the_pool(make):
    """It breaks the queue, and the key that would help is named; smaller ones of the same size together just wait."""
    d = make(Profile_Capacity="64M", Device_PoolSize="4M")
    with Driver(drv(d), mem_size=64 << 20) as f, dev(d) as p:
        disk = Disk(p, sectors=131072).attach().up()
        tokens = [f.request(blk.OUT, 0, bytes(3 << 20), cut=1 << 20) for _ in range(3)]
        disk.serve(3)
        for t in tokens:
            assert f.wait(t)[0] == blk.OK
        f.request(blk.OUT, 0, bytes(16 << 20), cut=1 << 20)
        p.wait(lambda s: s.queues[0].flags & pc.STOP)
        p.let_go()
        d.wait(lambda: d.show("ab")["status"] == "broken")
        d.wait_log("raise PoolSize=")


@pytest.mark.parametrize("fmt", [0, vu.bit(vu.PACKED)])
@pytest.mark.parametrize("indirect", [False, True])
def test_chain_of_1024_segments(make, fmt, indirect):
    """As many as a ring of 1,024 may have, with header and status: a driver whose device says seg_max 1,022 does that."""
    d = make(Profile_Capacity="4M")
    with Driver(drv(d), vu.bit(vu.VERSION_1, vu.INDIRECT) | blk.FEATURES | fmt, size=1024) as f, dev(d) as p:
        disk = Disk(p).attach().up()
        with Serving(disk):
            data = pattern(1022 * 512)
            for _ in range(2):
                f.write(0, data, cut=512, indirect=indirect)
                assert disk.store[:len(data)] == data
                assert f.read(0, len(data), cut=512, indirect=indirect) == data
            f.write(0, pattern(512, 1), indirect=indirect)
        assert d.show("ab")["status"] == "up"


def test_chain_of_1024_segments_fast(make):
    """In fast mode only the device side counts, which has the driver's ring as it is."""
    d = make("fast", Profile_Capacity="4M")
    with Driver(drv(d), size=1024) as f, dev(d) as p:
        disk = Disk(p).attach().up()
        with Serving(disk):
            data = pattern(1022 * 512)
            f.write(0, data, cut=512)
            assert f.read(0, len(data), cut=512) == data


@pytest.mark.parametrize("mode", MODES)
def test_request_of_16_mib(make, mode):
    """The pool is large enough for one: the second one waits, and both are done."""
    d = make(mode, Profile_Capacity="64M", **({"Device_PoolSize": "32M"} if mode == "copy" else {}))
    with Driver(drv(d), mem_size=80 << 20) as f, dev(d) as p:
        disk = Disk(p, sectors=131072).attach().up()
        data = [os.urandom(4096) * 4096 for _ in range(2)]
        tokens = [f.request(blk.OUT, 32768 * i, data[i], cut=1 << 20) for i in range(2)]
        got = disk.take()
        assert got and (mode == "fast" or disk.take(timeout=0.1) is None)
        disk.answer(got)
        disk.serve(1)
        assert all(f.wait(t)[0] == blk.OK for t in tokens)
        assert disk.store[:32 << 20] == b"".join(data)
        t = f.request(blk.IN, 0, length=16 << 20, cut=1 << 20)
        disk.serve(1)
        assert f.wait(t) == (blk.OK, data[0])


def test_chain_longer_than_its_queue(make):
    """As many as a ring of 256 may have are taken. 1,024 are not: the queue breaks, and nothing else does."""
    d = make(Profile_Capacity="4M")
    with Driver(drv(d), size=256) as f, dev(d) as p:
        disk = Disk(p).attach().up()
        data = pattern(254 * 512)
        t = f.request(blk.OUT, 0, data, cut=512, indirect=True)
        disk.serve(1)
        assert f.wait(t)[0] == blk.OK and disk.store[:len(data)] == data
        t = f.request(blk.IN, 0, length=len(data), cut=512, indirect=True)
        disk.serve(1)
        assert f.wait(t) == (blk.OK, data)
        f.request(blk.OUT, 0, pattern(1022 * 512), cut=512, indirect=True)
        d.wait(lambda: p.let_go() or d.show("ab")["status"] == "broken")
        assert disk.store[:len(data)] == data


def test_pool_is_emptied_when_the_guest_has_let_go(make):
    """Not under its hands, when the driver VM vanishes: a ring that goes back to 0 in mid-run looks like a broken one."""
    d = make(Profile_Capacity="4M")
    with dev(d) as p:
        with Driver(drv(d)) as f:
            disk = Disk(p).attach().up()
            f.request(blk.OUT, 0, pattern(4096))
            head, bufs, _, _ = disk.take()
            # In the pool header and data are one buffer.
            data = p.view(bufs[0][0] + 16, 4096)
            avail = p.view(p.state().queues[0].avail, 4)
        p.wait(lambda s: not s.queues[0].flags & pc.STARTED)
        d.show("ab")
        assert data == pattern(4096) and struct.unpack_from("<H", avail, 2)[0] == 1
        p.sync()
        p.wait(lambda s: data == bytes(4096) and avail == bytes(4))
        # Whoever does not say so has it taken away before the next run.
        with Driver(drv(d)) as f:
            disk.up()
            f.request(blk.OUT, 0, pattern(4096, 1))
            _, bufs, _, _ = disk.take()
            data = p.view(bufs[0][0] + 16, 4096)
            assert data == pattern(4096, 1)
        p.wait(lambda s: not s.queues[0].flags & pc.STARTED)
    d.wait(lambda: data == bytes(4096))
