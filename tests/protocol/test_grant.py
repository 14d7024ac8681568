# SPDX-License-Identifier: BSD-3-Clause
"""Grant mode: the device side reaches the rings that run and the range that was granted, no more and no longer."""
import select
import socket
import struct

import pytest

import portclient as pc
import viommu
import vu
from conftest import ControlError
from portlab import started
from portside import answer_stop, forward

GRANT = 14
POOL, POOL_SIZE = 8 << 20, 8 << 20  # in the driver VM's memory


class Bounced(vu.Memory):
    """Rings lie in pages of their own, buffers in the pool: as with swiotlb=force."""

    def __init__(self):
        super().__init__(32 << 20)
        self.pool = POOL

    def alloc(self, size, align=64):
        if align in (2, 4, 4096):
            return super().alloc(size, align)
        off = self.pool = (self.pool + 63) & ~63
        self.pool += size
        assert self.pool <= POOL + POOL_SIZE
        return off


class GrantLab:
    def __init__(self, d, attachment, **keys):
        self.d, self.attachment = d, attachment
        if attachment == "shmem":
            keys["Device_ApertureSize"] = "8G"
        d.link("ab", Device_Endpoint="port", Device_Attachment=attachment, Link_Mode="grant", **keys)
        d.start()

    def nic(self, **kw):
        kw.setdefault("mem", Bounced())
        return vu.Nic(self.d.sock("ab", "driver"), **kw)

    def port(self):
        return {"local": pc.Local, "shmem": pc.Shmem}[self.attachment](self.d.sock("ab", "device"))

    def give(self, nic, at=POOL, size=POOL_SIZE):
        return self.d.call("link.grant", name="ab", address=nic.mem.gpa + at, size=size)

    def grant(self):
        return self.d.show("ab")["sides"]["driver"]["grant"]

    def channel(self):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(pc.limit(10))
        s.connect(str(self.d.run / "ab.grant.sock"))
        return s.makefile("rw")


@pytest.fixture(params=["local", "shmem"])
def lab(make_daemon, request):
    return GrantLab(make_daemon(), request.param)


@pytest.fixture
def shmem(make_daemon):
    return GrantLab(make_daemon(), "shmem")


def shown(p):
    return sum(size for size, _, _, kind, _ in p.state().windows if kind)


def pages(nic):
    """Bytes of the pages of its rings."""
    got = 0
    for r in nic.rings.values():
        end = r.used + 6 + 8 * r.size
        got += (end + 4095 & ~4095) - r.desc
    return got


def test_nothing_without_a_grant(lab):
    with lab.nic() as nic, lab.port() as p:
        assert p.attach() == pc.OK
        s = p.wait(lambda s: s.reason == GRANT)
        assert not s.up and not s.regions and not shown(p) and s.mode == 2
        assert lab.d.show("ab")["sides"]["device"]["reason"] == "nothing granted"
        g = lab.grant()
        assert g["state"] == "none" and g["bytes"] == 0 and "vhost-pci-grant" in g["message"]
        assert nic.alive()


@pytest.mark.parametrize("size", [64, 256])
def test_rings_and_pool_and_no_more(lab, size):
    with lab.nic(size=size) as nic, lab.port() as p:
        assert p.attach() == pc.OK
        p.wait(lambda s: s.reason == GRANT)
        lab.give(nic)
        s = started(p)
        assert shown(p) == POOL_SIZE + pages(nic)
        assert {w[0] for w in s.windows if w[3]} == {POOL_SIZE, pages(nic) // 2}
        assert p.view(nic.mem.gpa + POOL, POOL_SIZE)[:8] == nic.mem.map[POOL:POOL + 8]
        with pytest.raises(KeyError):
            p.view(nic.mem.gpa + POOL - 4096, 4096)
        for i in range(3):
            nic.send_packet(vu.frame(i, 200))
        assert forward(p, 3)[0] == [vu.frame(i, 200) for i in range(3)]
        q = s.queues[0]
        bufs, head = p.take(q, q.base)
        p.view(bufs[0][0], 12 + 60)[:] = bytes(10) + b"\1\0" + vu.frame(9, 60)
        p.give_back(q, q.base, head, 72)
        pc.one(p.doorbells[q.doorbell])
        assert nic.recv_packet()[1] == vu.frame(9, 60)
        g = lab.grant()
        assert g["state"] == "granted" and g["bytes"] == shown(p) and g["by"] == "the administrator"
        assert [r["what"] for r in g["ranges"]] == ["ring", "ring", "pool"]


def test_packed_rings_and_pairs(make_daemon):
    """A window for each ring, all of it, wherever its three areas lie; added while the link is up, they take it down no more."""
    d = make_daemon()
    lab = GrantLab(d, "shmem", Device_PackedRings="yes", Link_Queues=2)
    with lab.nic(pairs=2, features=vu.BASIC | vu.bit(vu.NET_MRG_RXBUF, vu.PACKED)) as nic, lab.port() as p:
        p.attach()
        p.wait(lambda s: s.reason == GRANT)
        lab.give(nic)
        s = p.wait(lambda s: s.up and len(s.regions) >= 5 and all(q.flags & pc.STARTED for q in s.queues))
        run = s.queues[0].run
        for q in s.queues:
            for area in (q.desc, q.avail, q.used):
                p.view(area, 4)
        nic.send(vu.GET_VRING_BASE, struct.pack("<II", 3, 0), need_reply=False)
        answer_stop(p, 3, 0, flags=2)
        while not select.select([nic.sock], [], [], 0)[0]:
            seq = max(struct.unpack_from("<I", p.mem, pc.COMMAND)[0], p.state().answer[0]) + 1
            p.command_raw(seq, pc.SYNC, p.state().regions_generation)
            p.idle()
        nic.recv_reply(vu.GET_VRING_BASE)
        nic.start_ring(3, nic.rings[3], base=0x80008000)
        s = p.wait(lambda s: s.queues[3].flags & pc.STARTED)
        assert s.up and s.queues[0].run == run, "the others have gone on"


def test_drop_stops_the_queues_first(lab):
    with lab.nic() as nic, lab.port() as p:
        p.attach()
        p.wait(lambda s: s.reason == GRANT)
        lab.give(nic)
        started(p)
        lab.d.call("link.grant", name="ab", drop=True)
        p.wait(lambda s: all(q.flags & pc.STOP for q in s.queues))
        assert p.state().up and shown(p), "windows go when the queues have stopped"
        assert p.let_go() == 2
        s = p.wait(lambda s: not s.up and s.reason == GRANT)
        assert not s.regions and shown(p)
        assert lab.grant()["state"] == "ending", "the device VM has it yet"
        assert p.command(pc.SYNC, s.regions_generation) == pc.OK
        p.wait(lambda s: not shown(p) and lab.grant()["state"] == "none")
        lab.give(nic)
        started(p)


def test_stop_is_answered_when_the_window_has_gone(lab):
    """Not before the guest has let go, nor (shmem) before the device VM's VMM has said that it is unmapped."""
    with lab.nic() as nic, lab.port() as p:
        p.attach()
        p.wait(lambda s: s.reason == GRANT)
        lab.give(nic)
        started(p)
        area = nic.mem.gpa + nic.rings[1].desc
        nic.send(vu.GET_VRING_BASE, struct.pack("<II", 1, 0), need_reply=False)
        answer_stop(p, 1, 0)
        s = p.wait(lambda s: all(r[0] != area for r in s.regions))
        assert s.up and s.queues[0].flags & pc.STARTED, "the other queue goes on"
        assert any(r[0] == nic.mem.gpa + POOL for r in s.regions)
        lab.d.stays(lambda: not select.select([nic.sock], [], [], 0)[0], 0.1)
        seq = max(struct.unpack_from("<I", p.mem, pc.COMMAND)[0], s.answer[0]) + 1
        p.command_raw(seq, pc.SYNC, s.regions_generation)
        if lab.attachment == "shmem":
            assert select.select([p.back], [], [], pc.limit(5))[0], "no UNMAP came"
            lab.d.stays(lambda: not select.select([nic.sock], [], [], 0)[0], 0.1)
            p.serve()
        assert struct.unpack("<II", nic.recv_reply(vu.GET_VRING_BASE)) == (1, 0)
        nic.start_ring(1, nic.rings[1], base=0)
        p.wait(lambda s: s.queues[1].flags & pc.STARTED)
        nic.send_packet(vu.frame(5, 80))
        assert forward(p, 1)[0] == [vu.frame(5, 80)]


def test_a_ring_waits_beside_one_that_was_given_up(shmem):
    """The window of one is on its way, the other is there and nobody's: the daemon waits for the first and goes on."""
    with shmem.nic() as nic, shmem.port() as p:
        p.attach()
        p.wait(lambda s: s.reason == GRANT)
        shmem.give(nic)
        s = started(p)
        assert p.stopped(0, s.queues[0].run, 0, flags=1) == pc.OK
        nic.send(vu.GET_VRING_BASE, struct.pack("<II", 1, 0), need_reply=False)
        answer_stop(p, 1, 0)
        while not select.select([nic.sock], [], [], 0)[0]:
            p.command_raw(max(struct.unpack_from("<I", p.mem, pc.COMMAND)[0], p.state().answer[0]) + 1, pc.SYNC,
                          p.state().regions_generation)
            p.idle()
        nic.recv_reply(vu.GET_VRING_BASE)
        nic.start_ring(1, nic.rings[1], base=0)
        assert shmem.d.call("daemon.version")
        p.wait(lambda s: s.queues[1].flags & pc.STARTED)


def test_last_ring_ends_the_grant(lab):
    with lab.nic() as nic, lab.port() as p, lab.channel() as ch:
        assert ch.readline() == "grant?\n"
        p.attach()
        p.wait(lambda s: s.reason == GRANT)
        lab.give(nic)
        started(p)
        for q in 0, 1:
            nic.send(vu.GET_VRING_BASE, struct.pack("<II", q, 0), need_reply=False)
            answer_stop(p, q, 0)
            p.command_raw(max(struct.unpack_from("<I", p.mem, pc.COMMAND)[0], p.state().answer[0]) + 1, pc.SYNC,
                          p.state().regions_generation)
            while not select.select([nic.sock], [], [], 0)[0]:
                p.idle()
            assert struct.unpack("<II", nic.recv_reply(vu.GET_VRING_BASE)) == (q, 0)
        assert not shown(p) and lab.grant()["state"] == "none"
        for q in 0, 1:
            nic.start_ring(q, nic.rings[q], base=0)
        assert ch.readline() == "grant?\n", "it is asked anew"
        s = p.wait(lambda s: s.reason == GRANT)
        assert not s.regions


def test_vmm_that_does_not_let_a_window_go(shmem):
    """The driver VM's VMM gets no answer; the log names who is to be ended; everybody else is served."""
    with shmem.nic() as nic:
        with shmem.port() as p:
            p.attach()
            p.wait(lambda s: s.reason == GRANT)
            shmem.give(nic)
            started(p)
            nic.send(vu.GET_VRING_BASE, struct.pack("<II", 1, 0), need_reply=False)
            answer_stop(p, 1, 0)
            shmem.d.wait_log("The VMM of VM b has not said".replace("The", "the"))
            assert shmem.grant()["state"] == "stuck"
            assert not select.select([nic.sock], [], [], 0)[0]
        assert struct.unpack("<II", nic.recv_reply(vu.GET_VRING_BASE))[0] == 1, "its VMM has gone, and the window with it"


def test_front_end_goes_while_it_waits(lab):
    """It has asked for a ring's index, and leaves before the windows have gone: its successor is served like any other."""
    with lab.port() as p, lab.channel() as ch:
        p.attach()
        for _ in range(3):
            with lab.nic() as nic:
                assert ch.readline() == "grant?\n"
                p.wait(lambda s: s.reason == GRANT)
                lab.give(nic)
                s = started(p)
                nic.send(vu.GET_VRING_BASE, struct.pack("<II", 1, 0), need_reply=False)
                answer_stop(p, 1, 0)
            s = p.wait(lambda s: s.reason == pc.NO_DRIVER)
            assert p.command(pc.SYNC, s.regions_generation) == pc.OK
            p.wait(lambda s: not shown(p) and lab.grant()["state"] == "none")


def test_driver_vm_with_a_viommu(lab):
    with viommu.Nic(lab.d.sock("ab", "driver"), vu.BASIC | vu.bit(vu.NET_MRG_RXBUF)) as nic:
        lab.d.wait(lambda: nic.serve() or lab.d.show("ab")["sides"]["driver"]["queues"][0]["state"] == "running")
        with pytest.raises(ControlError, match="use Grant=viommu"):
            lab.d.call("link.grant", name="ab", address=nic.mem.gpa, size=4096)
        assert "use Grant=viommu" in lab.grant()["message"]


def test_ranges_that_are_none(lab):
    d = lab.d
    with pytest.raises(ControlError, match="no ring that runs"):
        d.call("link.grant", name="ab", address=0x1_0000_0000, size=4096)
    with lab.nic() as nic:
        for at, size, why in ((POOL + 1, 4096, "whole pages"), (POOL, 4095, "whole pages"),
                              (0, nic.mem.size + 4096, "not one piece"), (-4096, 8192, "not one piece"),
                              (nic.mem.size, 4096, "not one piece")):
            with pytest.raises(ControlError, match=why):
                lab.give(nic, at, size)
        with pytest.raises(ControlError, match="go together"):
            d.call("link.grant", name="ab", address=0)
        with pytest.raises(ControlError, match="not both"):
            d.call("link.grant", name="ab", address=0, size=4096, drop=True)
        lab.give(nic)
        lab.give(nic)
        with pytest.raises(ControlError, match="granted already"):
            lab.give(nic, POOL, 4096)
        assert lab.grant()["state"] == "granted"


def test_buffers_outside(lab):
    """A driver that does not bounce: found before its queue is handed over."""
    with lab.nic(mem=vu.Memory(32 << 20)) as nic, lab.port() as p:
        p.attach()
        p.wait(lambda s: s.reason == GRANT)
        lab.give(nic)
        s = p.wait(lambda s: s.up)
        lab.d.wait_log("outside of what is granted; start the driver VM's kernel with swiotlb=force")
        assert not s.queues[0].flags & pc.STARTED
        assert "swiotlb=force" in lab.grant()["message"]


def test_the_driver_vm_says_it(lab):
    with lab.channel() as early:
        with lab.nic() as nic, lab.port() as p:
            assert early.readline() == "grant?\n"
            p.attach()
            print("refuse no pool: swiotlb=force is not there", file=early, flush=True)
            lab.d.wait(lambda: "no pool: swiotlb=force" in lab.grant()["message"])
            with lab.channel() as ch:
                assert ch.readline() == "grant?\n", "who connects is asked"
                assert early.readline() == "", "the last connection counts"
                print(f"grant swiotlb {nic.mem.gpa + POOL:#x} {POOL_SIZE:#x}", file=ch, flush=True)
                assert ch.readline() == "ok\n"
                started(p)
                assert lab.grant()["by"] == "its channel" and lab.grant()["channel"]["connected"]
                print(f"grant swiotlb {nic.mem.gpa:#x} {POOL_SIZE:#x}", file=ch, flush=True)
                assert ch.readline().startswith("error ")
            lab.d.wait(lambda: not lab.grant()["channel"]["connected"])
            assert p.state().up, "a grant does not end with the channel"


@pytest.mark.parametrize("text", ["x" * 300, "\n" * 1000, "grant swiotlb 0x0 0x1000\n" * 100], ids=["long", "empty", "many"])
def test_hostile_channel(lab, text):
    with lab.nic(), lab.channel() as ch:
        print(text, file=ch, flush=True)
        try:
            while ch.readline():
                pass
        except ConnectionError:
            pass
    lab.d.wait_log("the connection has ended: the driver VM sen")
    with lab.channel():
        lab.d.wait(lambda: lab.grant()["channel"]["connected"])


@pytest.mark.parametrize("line", ["", "grant", "grant swiotlb", "grant swiotlb 1 2", "grant swiotlb 0x1000 0x1000 0x1",
                                  "grant swiotlb 0x1ffffffffffffffff 0x1000", "grant viommu 0x1000 0x1000", "\0\x1b[31m"])
def test_lines_that_are_none(lab, line):
    with lab.channel() as ch:
        print(line, file=ch, flush=True)
        assert ch.readline().startswith("error ")


def test_memory_device(make_daemon):
    d = make_daemon()
    d.link("ab", Device_Endpoint="port", Device_Attachment="local", Link_Mode="grant", Driver_Grant="memory",
           Driver_GrantSize="24M")
    d.start()
    with vu.Frontend(d.sock("ab", "driver")) as f, pc.Local(d.sock("ab", "device")) as p:
        f.negotiate(vu.BASIC)
        f.set_memory(vu.Memory(64 << 20, gpa=0, uva=0x7f00_0000_0000))
        pool = vu.Memory(24 << 20, gpa=0x1_0000_0000, uva=0x7f66_0000_0000)
        f.tell(vu.ADD_MEM_REG, struct.pack("<Q", 0) + f.region(pool), [pool.fd])
        ram, f.mem = f.mem, pool
        p.attach()
        for q in 0, 1:
            f.start_ring(q, vu.SplitRing(pool))
        s = started(p)
        assert [(r[0], r[1]) for r in s.regions] == [(pool.gpa, pool.size)], "rings that lie in it have no windows of their own"
        assert d.show("ab")["sides"]["driver"]["grant"]["source"] == "memory"
        with pytest.raises(ControlError, match="found, not told"):
            d.call("link.grant", name="ab", address=pool.gpa, size=4096)
        ram.close()


def test_memory_device_between_pages(make_daemon):
    """A VMM that says so has no memory device that can be granted, and keeps no daemon from taking over."""
    d = make_daemon()
    d.link("ab", Device_Endpoint="port", Device_Attachment="local", Link_Mode="grant", Driver_Grant="memory",
           Driver_GrantSize="24M")
    d.start()
    with vu.Frontend(d.sock("ab", "driver")) as f, pc.Local(d.sock("ab", "device")) as p:
        f.negotiate(vu.BASIC)
        ram = vu.Memory(64 << 20, gpa=0, uva=0x7f00_0000_0000)
        pool = vu.Memory(24 << 20, gpa=0x1_0000_0800, uva=0x7f66_0000_0000)
        f.set_memory(ram)
        f.tell(vu.ADD_MEM_REG, struct.pack("<Q", 0) + f.region(pool), [pool.fd])
        p.attach()
        for q in 0, 1:
            f.start_ring(q, vu.SplitRing(ram))
        p.wait(lambda s: s.reason == GRANT)
        assert d.show("ab")["sides"]["driver"]["grant"]["state"] == "none"
        d.upgrade()
        assert p.state().reason == GRANT and f.alive()
        pool.close()


def test_no_grants_in_other_modes(make_daemon):
    d = make_daemon()
    d.link("ab", Device_Endpoint="port", Device_Attachment="local", Link_Mode="fast")
    d.start()
    with pytest.raises(ControlError, match="mode fast; grants are for Mode=grant"):
        d.call("link.grant", name="ab")
