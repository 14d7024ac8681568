# SPDX-License-Identifier: BSD-3-Clause
"""
Mode=grant where it is hard: ranges that overlap or end in the middle of something, many of them, VMMs that do not let go, and VMs that wait for
one another.
"""
import contextlib
import os
import select
import struct

import pytest

import portclient as pc
import viommu
import vu
from conftest import Control, ControlError
from test_grant_viommu import (MAP, PAGE, READ, REFUSED, UPDATE, INVALIDATE, IOVA, RW, WRITE, Lab, answered, covers, free_page, obey, read, send_later,
                               settle, shown, sync, take_answer, up, wait, want)


@pytest.fixture(params=["local", "shmem"])
def lab(make_daemon, request):
    return Lab(make_daemon(), request.param)


@pytest.fixture
def shmem(make_daemon):
    return Lab(make_daemon(), "shmem")


def unmaps(p):
    return [entry for entry in p.log if entry[0] == 10]


def say_sync(p):
    """SYNC, without waiting for its answer."""
    seq = max(struct.unpack_from("<I", p.mem, pc.COMMAND)[0], p.state().answer[0]) + 1
    p.command_raw(seq, pc.SYNC, p.state().regions_generation)


# ---- ranges -------------------------------------------------------------------------------------------------

def test_two_addresses_of_one_page(lab):
    """Its window lasts until neither leads there any more."""
    with lab.nic() as nic, lab.port() as p:
        up(p, nic)
        one = free_page(nic) + 10
        other = one + 40
        nic.mem.home[other] = one
        want(p, nic, IOVA + one * PAGE, 2 * PAGE)
        before = shown(p)
        want(p, nic, IOVA + other * PAGE, 1)
        assert shown(p) == before, "one page is shown once"
        os.pwrite(nic.mem.fd, b"here I am", one * PAGE)
        assert read(p, IOVA + other * PAGE, 9) == b"here I am"
        send_later(nic, INVALIDATE, one)
        assert settle(p, nic) == 0
        s = p.state()
        assert covers(s, IOVA + other * PAGE, PAGE) and not covers(s, IOVA + one * PAGE, 1) and shown(p) == before
        send_later(nic, INVALIDATE, other)
        assert settle(p, nic) == 0
        assert not covers(p.state(), IOVA + other * PAGE, 1) and shown(p) == before - PAGE
        assert covers(p.state(), IOVA + (one + 1) * PAGE, PAGE) and p.state().up


@pytest.mark.parametrize("same", [True, False], ids=["same", "elsewhere"])
def test_updates_that_overlap(lab, same):
    """What was there stays when it leads where it led; if not, all of it goes before the answer."""
    with lab.nic() as nic, lab.port() as p:
        up(p, nic)
        page = free_page(nic) + 10
        want(p, nic, IOVA + page * PAGE, 4 * PAGE)
        want(p, nic, IOVA + (page + 8) * PAGE, 4 * PAGE)
        home = page + 2 if same else nic.mem.spare[0]
        generation = p.state().regions_generation
        send_later(nic, UPDATE, page + 2, 8, nic.mem.real_uva + home * PAGE, RW)
        assert settle(p, nic) == 0
        s = p.state()
        for i in (2, 3, 8, 9):
            assert covers(s, IOVA + (page + i) * PAGE, PAGE) == same
        for i in (0, 1, 10, 11):
            want(p, nic, IOVA + (page + i) * PAGE, PAGE)
        assert not same or s.regions_generation == generation
        if not same:
            for i in range(8):
                nic.mem.home[page + 2 + i] = home + i
        want(p, nic, IOVA + (page + 2) * PAGE, 8 * PAGE)
        os.pwrite(nic.mem.fd, b"here I am", (home + 7) * PAGE)
        assert read(p, IOVA + (page + 9) * PAGE, 9) == b"here I am"
        assert p.state().up and p.state().queues[1].run == 1


class TwoFiles(viommu.Nic):
    """Its memory is two files, neighbours by the front-end's addresses."""

    def set_memory(self, mem):
        super().set_memory(mem)
        self.more = vu.Memory(1 << 20)
        self.fds.append(os.dup(self.more.fd))
        self.tell(vu.ADD_MEM_REG, struct.pack("<QQQQQ", 0, mem.real_gpa + mem.size, self.more.size, mem.real_uva + mem.size, 0), [self.more.fd])


def test_range_over_two_files(lab):
    """A mapping that runs from one file into another is refused, or is shown as a window of each: never beyond the end of one."""
    with TwoFiles(lab.d.sock("ab", "driver"), vu.BASIC | vu.bit(vu.NET_MRG_RXBUF)) as nic, lab.port() as p:
        up(p, nic)
        end, at = nic.mem.size // PAGE, IOVA + 0x80_0000_0000
        before = shown(p)

        def answer(iova, perm, plain=nic.answer):
            if iova < at:
                return plain(iova, perm)
            try:
                nic.iotlb(UPDATE, at, 4 * PAGE, nic.mem.real_uva + (end - 2) * PAGE, RW)
            except vu.Refused:
                return False
            return True
        nic.answer = answer
        generation = p.state().regions_generation
        status = p.command(MAP, at, 4 * PAGE, READ)
        if status == pc.OK:
            wait(p, nic, lambda s: s.regions_generation != generation)
            sync(p)
        s = p.state()
        assert s.up and nic.alive()
        if covers(s, at, 4 * PAGE):
            os.pwrite(nic.mem.fd, b"one", (end - 1) * PAGE)
            os.pwrite(nic.more.fd, b"two", 0)
            assert read(p, at + PAGE, 3) == b"one" and read(p, at + 2 * PAGE, 3) == b"two" and shown(p) == before + 4 * PAGE
        else:
            assert shown(p) == before


def test_ten_thousand_pages(shmem):
    """Asked for and given page by page, as virtio-iommu does: neighbours come to lie in few windows."""
    with shmem.nic(mem=viommu.Memory(64 << 20)) as nic, shmem.port() as p:
        runs = [q.run for q in up(p, nic).queues]
        page, n = free_page(nic) + 10, 10000
        # Most are told before anybody asks.
        for i in range(n):
            if i % 250 < 240:
                nic.update(page + i)
        for i in range(0, n, 250):
            want(p, nic, IOVA + (page + i) * PAGE, 250 * PAGE)
        s = p.state()
        assert all(covers(s, IOVA + (page + i) * PAGE, PAGE) for i in range(0, n, 97))
        assert len(s.regions) < 200 and len([w for w in s.windows if w[3]]) < 110
        assert shown(p) >= n * PAGE and [q.run for q in s.queues] == runs and s.up
        # All of it goes at once, while the queues go on.
        before = len(unmaps(p))
        send_later(nic, INVALIDATE, page, n)
        assert settle(p, nic) == 0
        assert not any(covers(p.state(), IOVA + (page + i) * PAGE, 1) for i in range(0, n, 97))
        assert len(unmaps(p)) > before and p.state().up and [q.run for q in p.state().queues] == runs


def test_many_windows_go_at_once(shmem):
    """More than there may be requests: the rest is asked for as answers come, and the driver VM's VMM is answered once all have gone."""
    with shmem.nic(mem=viommu.Memory(16 << 20)) as nic, shmem.port() as p:
        up(p, nic)
        page, n = free_page(nic) + 10, 460
        for i in range(n):
            want(p, nic, IOVA + (page + 2 * i) * PAGE, 1)
        assert len([w for w in p.state().windows if w[3]]) > n
        before = len(unmaps(p))
        send_later(nic, INVALIDATE, page, 2 * n)
        s = p.wait(lambda s: not covers(s, IOVA + page * PAGE, 1))
        say_sync(p)
        assert select.select([p.back], [], [], pc.limit(5))[0], "no UNMAP came"
        # Its VMM is busy.
        shmem.d.stays(lambda: not answered(nic), 0.2)
        for _ in range(n - 1):
            p.serve()
            assert not answered(nic), "there is a window yet"
        p.serve()
        shmem.d.wait(lambda: answered(nic))
        assert take_answer(nic) == 0 and len(unmaps(p)) == before + n
        assert not [k for k in p.live if k[0] == 1 and k[1] in {off for _, _, off, _ in unmaps(p)[before:]}]
        s = p.state()
        assert s.up and s.attached and shmem.d.show("ab")["sides"]["device"]["connected"]


@pytest.mark.parametrize("answer", ["maps", "refuses"])
def test_taken_back_while_it_is_being_mapped(shmem, answer):
    """The device VM's VMM has been asked for a window, and has not answered."""
    with shmem.nic() as nic, shmem.port() as p:
        up(p, nic)
        page = free_page(nic) + 10
        assert p.command(MAP, IOVA + page * PAGE, 1, READ) == pc.OK
        shmem.d.wait(lambda: nic.serve() or select.select([p.back], [], [], 0)[0], why="no MAP came")
        send_later(nic, INVALIDATE, page)
        shmem.d.stays(lambda: not answered(nic), 0.1)
        p.refuse = answer == "refuses"
        p.serve()
        p.refuse = False
        if answer == "maps":
            assert select.select([p.back], [], [], pc.limit(5))[0], "no UNMAP came"
            assert not answered(nic)
            p.serve()
            assert p.log[-1][0] == 10 and p.log[-1][2:] == p.log[-2][2:]
        shmem.d.wait(lambda: answered(nic))
        assert take_answer(nic) == 0 and not covers(p.state(), IOVA + page * PAGE, 1)
        want(p, nic, IOVA + page * PAGE, 1)


# ---- who does not let go ----------------------------------------------------------------------------------------

def test_vmms_that_do_not_let_go(make_daemon):
    """One says nothing, one refuses, one has closed its channel: none is taken for an answer. An event tells, the link is down, and the log names whom
    to end."""
    d = make_daemon()
    ways = {"silent": "b", "refuses": "c", "closed": "d"}
    for name, vm in ways.items():
        d.link(name, device=vm, Device_Endpoint="port", Device_Attachment="shmem", Device_ApertureSize="8G", Link_Mode="grant", Driver_Grant="viommu")
    d.start()
    events = Control(d.run / "control.sock")
    events.call("events.subscribe")
    with contextlib.ExitStack() as stack:
        labs = {}
        for name in ways:
            nic = stack.enter_context(viommu.Nic(d.sock(name, "driver"), vu.BASIC | vu.bit(vu.NET_MRG_RXBUF)))
            p = stack.enter_context(pc.Shmem(d.sock(name, "device")))
            assert p.attach() == pc.OK
            up(p, nic)
            page = free_page(nic) + 10
            want(p, nic, IOVA + page * PAGE, 1)
            labs[name] = nic, p, page
        for name, (nic, p, page) in labs.items():
            send_later(nic, INVALIDATE, page)
            p.wait(lambda s: not covers(s, IOVA + page * PAGE, 1))
            say_sync(p)
            assert select.select([p.back], [], [], pc.limit(5))[0], "no UNMAP came"
            if name == "refuses":
                p.refuse = True
                p.serve()
            elif name == "closed":
                p.back.close()
        for name, vm in ways.items():
            d.wait_log("the VMM of VM %s has not said" % vm)
        told = set()
        while told != set(ways):
            e = events.line()
            if e.get("event") == "link.state" and "has not let a window go" in (e["data"].get("why") or ""):
                told.add(e["data"]["link"])
        for name, (nic, p, page) in labs.items():
            g = d.show(name)["sides"]["driver"]["grant"]
            assert g["state"] == "stuck" and "end it" in g["message"] and not answered(nic), name
            assert p.wait(lambda s: all(q.flags & pc.STOP for q in s.queues) or not s.up)
        # GET_CONFIG and all else on other connections is answered meanwhile.
        for name, (nic, p, page) in labs.items():
            assert p.fe.ask(vu.GET_CONFIG, struct.pack("<III", 0, 16, 0) + bytes(16))[12:20] == b"VHOSTPCI"
            p.close()
            d.wait(lambda: answered(nic))
            assert take_answer(nic) == 0, "its VMM has gone, and the window with it"
    events.close()


# ---- VMs that wait for one another ---------------------------------------------------------------------------------

def test_grants_in_a_circle_are_refused(make_daemon):
    """Each VMM would wait for the other one for ever."""
    d = make_daemon()
    keys = {"Device_Endpoint": "port", "Device_Attachment": "shmem", "Link_Mode": "grant"}
    d.link("ab", **keys)
    d.link("bc", driver="b", device="c", **keys)
    d.start()
    add = lambda mode: {"Link": {"Mode": mode}, "Driver": {"VM": "c"}, "Device": {"VM": "a", "Endpoint": "port", "Attachment": "shmem"}}
    with pytest.raises(ControlError, match="grant-circle.*use Mode=copy"):
        d.call("link.add", name="ca", config=add("grant"))
    d.link("ca", driver="c", device="a", **keys)
    with pytest.raises(ControlError, match="grant-circle"):
        d.call("daemon.reload")
    assert {l["name"] for l in d.call("link.list")["links"]} == {"ab", "bc"}
    (d.conf / "ca.link").unlink()
    d.call("link.add", name="ca", config=add("copy"))


@pytest.mark.parametrize("mode", ["fast", "copy"])
def test_vms_that_serve_each_other(make_daemon, mode):
    """a grants to b and serves b. Each one's VMM waits for the daemon, answers nobody meanwhile, and its guest stands still: both are answered."""
    d = make_daemon()
    d.link("ab", Device_Endpoint="port", Device_Attachment="shmem", Device_ApertureSize="8G", Link_Mode="grant", Driver_Grant="viommu")
    d.link("ba", driver="b", device="a", Device_Endpoint="port", Device_Attachment="shmem", Device_ApertureSize="8G", Link_Mode=mode)
    d.start()
    with viommu.Nic(d.sock("ab", "driver"), vu.BASIC | vu.bit(vu.NET_MRG_RXBUF)) as a, vu.Nic(d.sock("ba", "driver")) as b, \
            pc.Shmem(d.sock("ab", "device")) as in_b, pc.Shmem(d.sock("ba", "device")) as in_a:
        for p in in_b, in_a:
            assert p.attach() == pc.OK
        s = up(in_b, a)
        in_a.wait(lambda s: s.up and all(q.flags & pc.STARTED for q in s.queues))
        sync(in_b)
        # a's VMM waits until the ring's window has gone from b, b's until a has stopped its queue.
        send_later(a, INVALIDATE, (s.queues[1].desc - IOVA) // PAGE)
        b.send(vu.GET_VRING_BASE, struct.pack("<II", 1, 0), need_reply=False)
        d.wait(lambda: in_b.state().queues[1].flags & pc.STOP and in_a.state().queues[1].flags & pc.STOP)
        assert not answered(a) and not answered(b)
        # What a VMM asks on its other connection is answered meanwhile: it might wait for just that.
        for p in in_b, in_a:
            assert p.fe.ask(vu.GET_CONFIG, struct.pack("<III", 0, 16, 0) + bytes(16))[12:20] == b"VHOSTPCI"
        # The guests are cut; b's VMM is answered, and lets go; then a's is.
        d.wait(lambda: answered(b), why="b's VMM waits for ever")
        assert struct.unpack("<II", b.recv_reply(vu.GET_VRING_BASE))[0] == 1
        assert not answered(a), "b's VMM has not let go yet"
        while not answered(a):
            in_b.idle()
        assert take_answer(a) == 0
        assert not [k for k in in_b.live if k[0] == 1]
        assert d.alive() and d.show("ab")["sides"]["driver"]["grant"]["state"] != "stuck"
