# SPDX-License-Identifier: BSD-3-Clause
"""Grant links through an upgrade (docs/handover.md): what is granted stays granted, and what is taken back goes, whoever is the daemon."""
import pathlib
import struct

import pytest

import conftest
import portclient as pc
import vu
from portflow import PATH, ends
from portlab import started
from test_grant import GRANT, GrantLab, POOL, POOL_SIZE
from test_grant_viommu import (IOVA, INVALIDATE, MAP, PAGE, READ, RO, WRITE, Lab, answer_packet, answered, covers, forward, free_page,
                               give_up, refused, send_later, settle, take_answer, up, wait, want)
from test_upgrade import fd_kinds
from test_upgrade_fast import Hooked, page_of
from test_upgrade_port import TIMES


@pytest.fixture
def hooked(tmp_path):
    return Hooked(tmp_path)


def same_but_for_age(a, b):
    return {k: v for k, v in a.items() if k != "age_s"} == {k: v for k, v in b.items() if k != "age_s"} and \
        (a["age_s"] is None or a["age_s"] <= b["age_s"])


# ---- Grant=swiotlb -------------------------------------------------------------------------------


@pytest.mark.parametrize("attachment,by", [("local", "administrator"), ("local", "channel"), ("shmem", "channel")])
def test_pool(make_daemon, attachment, by):
    """Who granted it, and since when, is still known; it is dropped, or ends with the last ring, as ever."""
    lab = GrantLab(make_daemon(), attachment)
    d = lab.d
    with lab.nic() as nic, lab.port() as p, lab.channel() as ch:
        assert ch.readline() == "grant?\n"
        assert p.attach(PATH) == pc.OK
        p.wait(lambda s: s.reason == GRANT)
        page = page_of(p)
        line = f"grant swiotlb {nic.mem.gpa + POOL:#x} {POOL_SIZE:#x}"
        if by == "channel":
            print(line[:20], file=ch, end="", flush=True)   # the rest comes to another daemon
            d.call("daemon.version")
        d.upgrade()
        assert page_of(p) == page and p.state().reason == GRANT and lab.grant()["state"] == "none"
        if by == "channel":
            print(line[20:], file=ch, flush=True)
            assert ch.readline() == "ok\n"
        else:
            lab.give(nic)
        s = started(p)
        page, granted = page_of(p), lab.grant()
        assert granted["channel"]["connected"] and granted["channel"]["connections"] == 1
        with ends(nic, p) as e:
            for _ in range(3):
                d.upgrade()
                e.more()
        assert page_of(p) == page, "the guest sees that"
        assert same_but_for_age(granted, lab.grant())
        assert "went away" not in d.log() and "has left" not in d.log() and "is not granted any more" not in d.log()
        d.call("link.grant", name="ab", drop=True)
        p.wait(lambda s: all(q.flags & pc.STOP for q in s.queues))
        d.upgrade()
        assert lab.grant()["state"] == "ending"
        for q, at in enumerate((e.given[1], e.given[0])):
            assert any(r[0] == nic.mem.gpa + POOL for r in p.state().regions), "queue %d may be at work in it" % q
            assert p.stopped(q, s.queues[q].run, at & 0xffff) == pc.OK
        p.wait(lambda s: not s.up and s.reason == GRANT)
        p.sync()
        p.wait(lambda s: lab.grant()["state"] == "none")
        d.upgrade()
        lab.give(nic)
        started(p)
        with ends(nic, p):
            d.upgrade()
        # The socket of the channel is the link's still.
        with lab.channel() as again:
            d.wait(lambda: lab.grant()["channel"]["connections"] == 2)
            assert set(iter(ch.readline, "")) <= {"grant?\n"} and again
    assert d.stop() == 0
    assert not (d.run / "ab.grant.sock").exists()


@pytest.mark.parametrize("attachment", ["local", "shmem"])
@pytest.mark.parametrize("grant", ["swiotlb", "viommu"])
def test_again_and_again(make_daemon, grant, attachment):
    """What one daemon has open, the next one has, and nothing more."""
    lab = (GrantLab if grant == "swiotlb" else Lab)(make_daemon(), attachment)
    d = lab.d
    with lab.nic() as nic, lab.port() as p:
        if grant == "swiotlb":
            assert p.attach(PATH) == pc.OK
            p.wait(lambda s: s.reason == GRANT)
            lab.give(nic)
            started(p)
        else:
            up(p, nic)
            want(p, nic, IOVA + (free_page(nic) + 5) * PAGE, 20 * PAGE)
        page = page_of(p)
        d.upgrade()
        d.upgrade()
        maps = len(pathlib.Path(f"/proc/{d.proc.pid}/maps").read_text().splitlines())
        kinds = fd_kinds(d.proc.pid)
        for _ in range(TIMES):
            d.upgrade()
        assert fd_kinds(d.proc.pid) == kinds
        assert len(pathlib.Path(f"/proc/{d.proc.pid}/maps").read_text().splitlines()) <= maps + 8
        assert page_of(p) == page


def test_new_one_dies_at_each_point(make_daemon, hooked):
    """Whatever it had done by then, the old one goes on, and the guest sees nothing of that."""
    d = make_daemon()
    d.write("vhost-pci.conf", hooked.conf)
    lab = GrantLab(d, "local")
    with lab.nic() as nic, lab.port() as p:
        assert p.attach(PATH) == pc.OK
        p.wait(lambda s: s.reason == GRANT)
        lab.give(nic)
        started(p)
        page, granted = page_of(p), lab.grant()
        with ends(nic, p) as e:
            fds = d.fds()
            for n in range(1, 100):
                pid = d.proc.pid
                try:
                    hooked.upgrade(d, "EXIT", n)
                    break
                except conftest.ControlError:
                    assert d.alive() and d.proc.pid == pid
                    e.more(10)
                    d.wait_fds(fds)
            assert n >= 6, "there are more points than that"
        assert page_of(p) == page and same_but_for_age(granted, lab.grant())


# ---- Grant=memory --------------------------------------------------------------------------------


def test_memory_device(make_daemon):
    d = make_daemon()
    d.link("ab", Device_Endpoint="port", Device_Attachment="local", Link_Mode="grant", Driver_Grant="memory", Driver_GrantSize="24M")
    d.start()
    with vu.Frontend(d.sock("ab", "driver")) as f, pc.Local(d.sock("ab", "device")) as p:
        f.negotiate(vu.BASIC)
        f.set_memory(vu.Memory(64 << 20, gpa=0, uva=0x7f00_0000_0000))
        pool = vu.Memory(24 << 20, gpa=0x1_0000_0000, uva=0x7f66_0000_0000)
        f.tell(vu.ADD_MEM_REG, struct.pack("<Q", 0) + f.region(pool), [pool.fd])
        ram, f.mem = f.mem, pool
        assert p.attach() == pc.OK
        d.upgrade()
        for q in 0, 1:
            f.start_ring(q, vu.SplitRing(pool))
        started(p)
        page, grant = page_of(p), d.show("ab")["sides"]["driver"]["grant"]
        for _ in range(3):
            d.upgrade()
        assert page_of(p) == page and same_but_for_age(grant, d.show("ab")["sides"]["driver"]["grant"])
        assert grant["state"] == "granted" and grant["by"] == "its memory device"
        ram.close()


# ---- Grant=viommu --------------------------------------------------------------------------------


@pytest.mark.parametrize("attachment", ["local", "shmem"])
def test_windows_of_a_viommu(make_daemon, attachment):
    """Windows stay. The next daemon gives what is asked of it, and takes back what the vIOMMU takes back."""
    lab = Lab(make_daemon(), attachment)
    d = lab.d
    with lab.nic(grain=16) as nic, lab.port() as p:
        up(p, nic)
        page = free_page(nic) + 20
        want(p, nic, IOVA + page * PAGE, 16 * PAGE)
        base = 0
        for n in range(4):
            nic.send_packet(vu.frame(n, 300))
            (got,), base = forward(p, nic, 1, base)
            assert got == vu.frame(n, 300)
            state, granted, misses = page_of(p), lab.grant(), len(nic.misses)
            d.upgrade()
            assert page_of(p) == state and same_but_for_age(granted, lab.grant())
            assert not nic.serve() and len(nic.misses) == misses, "nothing is asked for anew"
        want(p, nic, IOVA + (page + 64) * PAGE, PAGE)
        send_later(nic, INVALIDATE, page + 3)
        p.wait(lambda s: not covers(s, IOVA + (page + 3) * PAGE, 1))
        d.stays(lambda: not answered(nic), 0.1)
        assert settle(p, nic) == 0
        # What was next to it comes back by itself, or when it is asked for; from another daemon, too.
        d.upgrade()
        want(p, nic, IOVA + page * PAGE, 3 * PAGE)
        want(p, nic, IOVA + (page + 4) * PAGE, 12 * PAGE)
        want(p, nic, IOVA + (page + 3) * PAGE, PAGE)
        bufs, _ = p.take(p.state().queues[0], 0)
        want(p, nic, bufs[0][0], bufs[0][1], WRITE)
        answer_packet(p, nic, vu.frame(5, 600))


def test_while_something_is_taken_back(make_daemon):
    """A window on its way is waited for: who has to answer for it is the daemon that was asked."""
    lab = Lab(make_daemon(), "local")
    with lab.nic(grain=16) as nic, lab.port() as p:
        up(p, nic)
        page = free_page(nic) + 20
        want(p, nic, IOVA + page * PAGE, 16 * PAGE)
        send_later(nic, INVALIDATE, page + 3)
        p.wait(lambda s: not covers(s, IOVA + (page + 3) * PAGE, 1))
        lab.d.upgrade()     # the guest says nothing: that takes as long as a guest is waited for
        assert answered(nic) and take_answer(nic) == 0
        assert not covers(p.state(), IOVA + (page + 3) * PAGE, 1)
        nic.send_packet(vu.frame(3, 500))
        assert forward(p, nic, 1)[0] == [vu.frame(3, 500)]


def test_question_without_an_answer(make_daemon):
    """The device side has asked, the vIOMMU has not answered yet: it answers another daemon."""
    lab = Lab(make_daemon(), "local")
    with lab.nic() as nic, lab.port() as p:
        up(p, nic)
        page = free_page(nic) + 100
        nic.silent = True
        assert p.command(MAP, IOVA + page * PAGE, 100, READ) == pc.OK
        lab.d.upgrade()
        nic.silent = False
        wait(p, nic, lambda s: covers(s, IOVA + page * PAGE, 100))


@pytest.mark.parametrize("attachment", ["local", "shmem"])
def test_copied_queue(make_daemon, attachment):
    """One queue is copied and the other one is not, until the driver starts it anew."""
    lab = Lab(make_daemon(), attachment)
    d = lab.d
    with lab.nic() as nic, lab.port() as p:
        s = up(p, nic)
        bufs, _ = p.take(s.queues[0], s.queues[0].base)
        want(p, nic, bufs[0][0], bufs[0][1], WRITE)
        page = free_page(nic) + 100
        nic.perm[page] = RO
        refused(p, nic, IOVA + page * PAGE, READ)
        give_up(p, nic, 1)
        base = None
        for n in range(20):
            nic.send_packet(vu.frame(n, 900))
            if n % 5 == 4:
                state, granted = page_of(p), lab.grant()
                d.upgrade()
                assert page_of(p) == state and same_but_for_age(granted, lab.grant()) and granted["copied"] == [1]
            (got,), base = forward(p, nic, 1, base)
            assert got == vu.frame(n, 900)
        s = p.state()
        assert s.queues[0].desc < 1 << 52 and covers(s, bufs[0][0], bufs[0][1]) and s.queues[0].run == 1
        answer_packet(p, nic, vu.frame(5, 600))
