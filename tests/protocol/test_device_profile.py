# SPDX-License-Identifier: BSD-3-Clause
"""What a driver VM is shown of a device other than net: by its back-end's profile, learned or written."""
import os
import re
import socket
import struct
import subprocess
import time

import pytest

import blk
import portclient as pc
import vu
from blk import Disk, Driver
from test_device import MODES, dev, drv, link, make  # noqa: F401 (a fixture)


def test_learned_profile_is_kept(make):
    """Nothing is written: no socket before the back-end came once; afterwards it need not be there."""
    d = make()
    assert not os.path.exists(drv(d))
    with dev(d) as p:
        p.wait(lambda s: s.reason == blk.REASON_PROFILE)
        assert p.attach(blk.FEATURES, type=blk.BLK) == blk.PROFILE
        Disk(p, sectors=2048, features=vu.bit(blk.FLUSH, blk.BLK_SIZE)).attach()
        assert os.path.exists(drv(d))
    d.stop()
    d.start()
    with vu.Frontend(drv(d)) as f:
        f.negotiate(0, protocol=blk.PF)
        assert f.offered & blk.FEATURES == vu.bit(blk.FLUSH, blk.BLK_SIZE)
        cfg = f.ask(vu.GET_CONFIG, struct.pack("<III", 0, 60, 0) + bytes(60))[12:]
        assert struct.unpack_from("<Q", cfg)[0] == 2048


@pytest.mark.parametrize("mode", MODES)
def test_back_end_with_less_is_refused_by_name(make, mode):
    d = make(mode, Profile_Capacity="4M", Link_Queues=2)
    cases = [({"features": blk.FEATURES & ~vu.bit(blk.FLUSH, blk.SEG_MAX)}, pc.FEATURES, "it lacks SEG_MAX FLUSH"),
             ({"queues": 1}, blk.PROFILE, "it has 1 queues, the link 2"),
             ({"sectors": 4096}, blk.PROFILE, "its disk has 2097152 bytes, Capacity= says 4194304"),
             ({"cfg": blk.config(8192)[:24]}, blk.PROFILE, "it has 24 bytes of config space, the link needs 60"),
             ({"cfg": blk.config(8192, 4096)}, blk.PROFILE, "its blocks have 4096 bytes, the profile says 512"),
             ({"features": blk.FEATURES | vu.bit(blk.RO)}, blk.PROFILE, "its disk is read-only")]
    with dev(d) as p:
        for kw, status, why in cases:
            disk = Disk(p, tell=False, **{"queues": 2, **kw})
            assert disk.describe() == status, why
            assert why in d.show("ab")["sides"]["device"]["misfit"]
        # More than is asked for is no harm: a longer config space, more queues and features.
        disk = Disk(p, tell=False, queues=7, cfg=blk.config(8192, length=200), features=(1 << 24) - 1 & ~vu.bit(blk.RO))
        assert disk.describe() == pc.OK
        assert d.show("ab")["sides"]["device"]["misfit"] is None
        assert p.command(blk.BACKEND, 0, 0, 1, 1, 0) == pc.DEVICE_TYPE
        assert p.command(blk.BACKEND, 0, 0, 2, 1, 255) == pc.INVALID
        assert p.command(blk.CONFIG, 8, 8) == pc.INVALID
        assert p.command(blk.CONFIG, 0, 105) == pc.INVALID


def test_changed_capacity_reaches_the_driver(make):
    d = make()
    with dev(d) as p:
        disk = Disk(p, sectors=2048).attach()
        f = vu.Frontend(drv(d))
        f.negotiate(vu.bit(vu.VERSION_1), protocol=blk.PF)
        a, b = socket.socketpair()
        a.settimeout(30)
        f.tell(vu.SET_BACKEND_REQ_FD, b"", [b.fileno()])
        # To a suspended device nothing is sent.
        f.set_memory(vu.Memory(1 << 20))
        f.start_ring(0, vu.SplitRing(f.mem, 128))
        for sectors in (4096, 8192):
            disk.config = blk.config(sectors)
            assert disk.describe() == pc.OK
            assert struct.unpack("<III", a.recv(12))[0] == 2
            a.sendall(struct.pack("<IIIQ", 2, 5, 8, 0))
            cfg = f.ask(vu.GET_CONFIG, struct.pack("<III", 0, 60, 0) + bytes(60))[12:]
            assert struct.unpack_from("<Q", cfg)[0] == sectors
        # A storm: one message is under way at a time, and the last state is what is read.
        for i in range(200):
            disk.config = blk.config(10000 + i)
            assert disk.describe() == pc.OK
        n = 0
        try:
            while a.recv(12):
                n += 1
                a.sendall(struct.pack("<IIIQ", 2, 5, 8, 0))
                a.settimeout(0.3)  # for the first one as long as it takes
        except TimeoutError:
            pass
        assert 1 <= n <= 3
        cfg = f.ask(vu.GET_CONFIG, struct.pack("<III", 0, 60, 0) + bytes(60))[12:]
        assert struct.unpack_from("<Q", cfg)[0] == 10199
        for s in (a, b, f):
            s.close()


@pytest.mark.parametrize("mode", MODES)
def test_write_cache_reaches_the_back_end(make, mode):
    d = make(mode)
    with dev(d) as p:
        Disk(p).attach()
        with Driver(drv(d)) as f:
            f.tell(vu.SET_CONFIG, struct.pack("<III", blk.WCE, 1, 0) + b"\0")
            raw = bytes(p.mem[pc.STATE + 0x70:pc.STATE + 0x7c])
            gen, off, size = struct.unpack("<III", raw)
            assert gen and (off, size) == (blk.WCE, 1) and p.mem[pc.STATE + 0x300 + blk.WCE] == 0
            cfg = f.ask(vu.GET_CONFIG, struct.pack("<III", 0, 60, 0) + bytes(60))[12:]
            assert cfg[blk.WCE] == 0
            with pytest.raises(vu.Refused):
                f.tell(vu.SET_CONFIG, struct.pack("<III", 0, 8, 0) + bytes(8))


def test_forgotten_profile(make):
    d = make()
    with dev(d) as p:
        Disk(p, sectors=2048).attach()
    p = d.call("link.profile", name="ab")
    assert p["known"] and p["learned"] and p["config"].startswith("0008000000000000")
    with Driver(drv(d)):
        with pytest.raises(Exception, match="driver VM"):
            d.call("link.profile", name="ab", forget=True)
    d.wait(lambda: d.show("ab")["status"] == "waiting")
    assert not d.call("link.profile", name="ab", forget=True)["known"]
    assert not os.path.exists(drv(d))
    with dev(d) as p:
        Disk(p, sectors=4096).attach()
    assert d.call("link.profile", name="ab")["config"].startswith("0010000000000000")


@pytest.mark.parametrize("kind,queues,keys", [("fs", 2, {"Profile_Tag": "home"}), ("scsi", 3, {}), ("vsock", 2, {"Profile_CID": "42"}),
                                              ("25", 1, {"Profile_Features": "0x3"})])
def test_other_types_have_a_profile_at_once(make, kind, queues, keys):
    d = make(Link_Type=kind, **keys)
    with Driver(drv(d), vu.bit(vu.VERSION_1), queues=queues) as f, dev(d) as p:
        s = p.state()
        assert s.type == {"fs": 26, "scsi": 8, "vsock": 19, "25": 25}[kind]
        assert p.attach(pc.ALL & ~vu.bit(vu.PACKED), type=s.type) == pc.OK
        s = p.wait(lambda s: s.up)
        assert len(s.queues) == queues and d.show("ab")["type"] == kind
        if kind == "vsock":
            assert f.ask(vu.GET_CONFIG, struct.pack("<III", 0, 8, 0) + bytes(8))[12:] == struct.pack("<Q", 42)
        if kind == "fs":
            assert f.ask(vu.GET_CONFIG, struct.pack("<III", 0, 40, 0) + bytes(40))[12:16] == b"home"


def test_fs_requests_fail_when_their_back_end_goes(make):
    """Its open files went with it: an error, and not the same thing done twice."""
    d = make(Link_Type="fs")
    with Driver(drv(d), vu.bit(vu.VERSION_1), queues=2) as f:
        with dev(d) as p:
            assert p.attach(pc.ALL & ~vu.bit(vu.PACKED), type=26) == pc.OK
            s = p.wait(lambda s: s.up and s.queues[1].flags & pc.STARTED)
            hdr, reply = f.mem.alloc(40), f.mem.alloc(200)
            f.mem.map[hdr:hdr + 40] = struct.pack("<IIQ", 40, 26, 4711) + bytes(24)
            f.rings[1].add([(hdr, 40, False), (reply, 200, True)], 1)
            f.kick(1)
            assert pc.raised(p.signals[s.queues[1].kick_signal])
            while p.take(s.queues[1], s.queues[1].base) is None:
                time.sleep(0.01)
        d.wait(lambda: f.mem.r("H", f.rings[1].used + 2) == 1)
        assert f.rings[1].get()[2] == 16
        assert struct.unpack_from("<IiQ", f.mem.map, reply) == (16, -5, 4711)


@pytest.mark.parametrize("keys,why", [
    ({"Link_Type": "floppy"}, "is not a device type"), ({"Device_Endpoint": "virtio-net"}, "needs Endpoint=port"),
    ({"Net_MTU": "1500"}, r"\[Net\] is for Type=net"), ({"Profile_Tag": "x"}, "not for Type=blk"),
    ({"Link_Type": "net", "Profile_Capacity": "1G"}, r"\[Profile\] is for other types"),
    ({"Profile_Capacity": "1000"}, "multiple of 512"), ({"Link_Type": "vsock", "Link_Queues": "2"}, "one pair")])
def test_keys_that_do_not_fit_the_type(make_daemon, keys, why):
    d = make_daemon()
    base = {"Device_Attachment": "local", "Device_PackedRings": "yes"} if keys.get("Device_Endpoint") != "virtio-net" else {}
    link(d, **keys)
    if not base:
        d.write("ab.link", "[Link]\nType=blk\n[Driver]\nVM=a\n[Device]\nVM=b\n")
    r = subprocess.run(d.command("--check-config"), capture_output=True, text=True)
    assert r.returncode and re.search(why, r.stderr), r.stderr
