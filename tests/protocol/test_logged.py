# SPDX-License-Identifier: BSD-3-Clause
"""A fast link whose driver VM may migrate (Migration=yes): while its VMM logs, the queues are copied, and the daemon does the logging."""
import os
import select
import struct

import pytest

import portclient as pc
import vu
from portlab import ATTACHMENTS, PortLab, started
from portside import answer_stop, forward
from test_copy import Device

BESIDE = 1 << 52    # where the pool lies
LOGGED = 8
FAST, COPY = 1, 3
FEATURES = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF)


@pytest.fixture(params=ATTACHMENTS)
def lab(request, make_daemon):
    d = make_daemon()
    lab = PortLab(d, "fast", request.param, Link_Migration="yes")
    d.start()
    yield lab
    lab.close()


def log_on(nic, log):
    """As QEMU does: the log, then the feature. Its answer is not read."""
    os.ftruncate(log, 4096)
    nic.send(vu.SET_LOG_BASE, struct.pack("<QQ", 4096, 0), [log], need_reply=False)
    nic.recv_reply(vu.SET_LOG_BASE)
    nic.send(vu.SET_FEATURES, struct.pack("<Q", nic.features | vu.bit(vu.LOG_ALL)), need_reply=True)


def answered(nic):
    return bool(select.select([nic.sock], [], [], 0)[0])


def answer_stops(p, bases):
    p.wait(lambda s: all(q.flags & pc.STOP for q in s.queues))
    for q, base in enumerate(bases):
        answer_stop(p, q, base)


def runs(p, mode, since):
    """Both queues run in that mode, not as they did in the state @since."""
    s = p.wait(lambda s: s.up and all(q.flags & pc.STARTED and q.run != o.run for q, o in zip(s.queues, since.queues)))
    assert (s.mode, bool(s.flags & LOGGED)) == (mode, mode == COPY)
    for q in s.queues:
        assert all((a >= BESIDE) == (mode == COPY) for a in (q.desc, q.avail, q.used))
    return s


def both_ways(p, nic, n):
    """A packet each way; the indices at which both queues go on."""
    rx = Device(p, 0)
    rx.send(vu.frame(n, 700))
    assert nic.recv_packet()[1] == vu.frame(n, 700)
    nic.send_packet(vu.frame(n + 1, 300))
    out, at = forward(p)
    assert out == [vu.frame(n + 1, 300)]
    return rx.at, at


def test_there_and_back(lab):
    """The front-end has its answer when the device VM has let go of the driver's rings, and not before. Features stay as they are."""
    log = os.memfd_create("log")
    with vu.Nic(lab.drv(), FEATURES, mem=vu.Memory(16 << 20, gpa=0)) as nic, lab.port() as p:
        s = started(p)
        assert s.mode == FAST
        bases = both_ways(p, nic, 1)
        log_on(nic, log)
        p.wait(lambda s: all(q.flags & pc.STOP for q in s.queues))
        answer_stop(p, 0, bases[0])
        lab.d.stays(lambda: not answered(nic), 0.2)
        answer_stop(p, 1, bases[1])
        assert nic.recv_reply(vu.SET_FEATURES) == bytes(8)
        s2 = runs(p, COPY, s)
        assert s2.features == s.features and s2.epoch == s.epoch
        nic.tell(vu.SET_VRING_ADDR, nic.addr_msg(0, nic.rings[0], flags=1, log=nic.mem.gpa + nic.rings[0].used))
        buf = nic.rings[0].chains[struct.unpack_from("<I", nic.mem.map, nic.rings[0].avail + 4 + 2 * (nic.rings[0].used_idx % nic.rings[0].size))[0] & 0xffff][1]
        bases = both_ways(p, nic, 11)
        bits = os.pread(log, 4096, 0)
        dirty = {i * 8 + k for i, v in enumerate(bits) for k in range(8) if v >> k & 1}
        assert {buf // 4096, nic.rings[0].used // 4096} <= dirty
        nic.tell_u64(vu.SET_FEATURES, nic.features)     # it was called off
        answer_stops(p, bases)
        s3 = runs(p, FAST, s2)
        both_ways(p, nic, 21)
        assert s3.features == s.features
    os.close(log)


def test_guest_that_does_not_answer(lab):
    """It is cut off, and the front-end has its answer. Logged or not, the next one is served in the mode that holds."""
    log = os.memfd_create("log")
    with vu.Nic(lab.drv(), FEATURES, mem=vu.Memory(16 << 20, gpa=0)) as nic:
        with lab.port() as p:
            s = started(p)
            log_on(nic, log)
            assert nic.recv_reply(vu.SET_FEATURES) == bytes(8)
            p.wait(lambda s: not s.attached)
            assert p.attach() == pc.OK
            runs(p, COPY, s)
            both_ways(p, nic, 1)
    os.close(log)


def test_front_end_leaves_while_it_waits(lab):
    log = os.memfd_create("log")
    with lab.port() as p:
        with vu.Nic(lab.drv(), FEATURES, mem=vu.Memory(16 << 20, gpa=0)) as nic:
            s = started(p)
            log_on(nic, log)
            p.wait(lambda s: all(q.flags & pc.STOP for q in s.queues))
        s = p.wait(lambda s: not s.up)
        assert not s.flags & LOGGED and s.mode == FAST
        p.sync()
        with vu.Nic(lab.drv(), FEATURES, mem=vu.Memory(16 << 20, gpa=0)) as nic:
            runs(p, FAST, s)
            both_ways(p, nic, 1)
    os.close(log)


@pytest.mark.parametrize("mode,word,offered", [("fast", "auto", False), ("fast", "no", False), ("fast", "yes", True), ("copy", "auto", True),
                                               ("copy", "no", False)])
def test_policy(make_daemon, mode, word, offered):
    """What is not offered, a VMM refuses to migrate; show says so, too."""
    d = make_daemon()
    lab = PortLab(d, mode, "local", Link_Migration=word)
    d.start()
    with vu.Frontend(lab.drv()) as f:
        assert bool(f.ask_u64(vu.GET_FEATURES) >> vu.LOG_ALL & 1) == offered
        assert bool(f.ask_u64(vu.GET_PROTOCOL_FEATURES) >> vu.PF_LOG_SHMFD & 1) == offered
    assert d.show("ab")["migratable"] == offered
