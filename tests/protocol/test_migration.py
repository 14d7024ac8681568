# SPDX-License-Identifier: BSD-3-Clause
"""A driver VM moves from one link to another under traffic, as a VMM moves it. What has arrived is, byte for byte, what was left behind."""
import copy
import ctypes
import os
import random
import struct

import pytest

import portclient as pc
import vu
from portlab import PortLab, started
from portside import answer_stop
from test_copy import Device

PAGE = 4096
SIZE = 16 << 20
HDR = 12
VMS = {"here": "ab", "there": "cd"}
MRG = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF)
VIEWS = {"plain": vu.BASIC, "mergeable": MRG, "event": MRG | vu.bit(vu.EVENT_IDX), "order": MRG | vu.bit(vu.IN_ORDER),
         "packed": MRG | vu.bit(vu.PACKED), "packed-event": MRG | vu.bit(vu.PACKED, vu.EVENT_IDX)}
# The scripted device side knows split rings; on a fast link they are the driver's own.
CASES = [(m, v) for m in ("relay", "copy", "fast") for v in VIEWS if m != "fast" or "packed" not in v]

exchange = ctypes.CDLL("libatomic.so.1").__atomic_exchange_8
exchange.restype = ctypes.c_uint64


class Memory(vu.Memory):
    """It knows what the guest itself has written: its VMM has that from elsewhere."""

    written = set()

    def w(self, fmt, off, *v):
        super().w(fmt, off, *v)
        self.written.add(off // PAGE)


class Log:
    """The back-end's dirty log, for memory that begins somewhere in it."""

    def __init__(self, nic):
        self.mem = nic.mem
        self.size = (nic.mem.gpa + nic.mem.size) // PAGE // 8
        self.fd = os.memfd_create("log")
        os.ftruncate(self.fd, self.size)
        self.map = vu.mmap.mmap(self.fd, self.size)
        self.words = (ctypes.c_uint64 * (self.size // 8)).from_buffer(self.map)

    def take(self):
        first, pages = self.mem.gpa // PAGE // 64, set()
        for i in range(self.size // 8 - first):
            v = exchange(ctypes.c_void_p(ctypes.addressof(self.words) + 8 * (first + i)), ctypes.c_uint64(0), 5)
            pages |= {64 * i + b for b in range(64) if v >> b & 1} if v else set()
        assert not any(self.words[:first]), "marked outside of the memory"
        return pages

    def close(self):
        del self.words
        self.map.close()
        os.close(self.fd)


class RelayEnd:
    """The device side of a relay link: another driver."""

    def __init__(self, d, name, features):
        d.link(name, driver=VMS[name][0], device=VMS[name][1])
        self.d, self.name, self.features = d, name, features

    def up(self):
        self.nic = vu.Nic(self.d.sock(self.name, "device"), self.features)
        self.nic.__enter__()

    def send(self, packets):
        for p in packets:
            self.nic.send_packet(p, kick=False)
        self.nic.kick(1)
        return True

    def take(self):
        while (got := self.nic.poll_packet()) is not None:
            yield got[1]

    def logged(self, change):
        change()

    def stop(self, nic, q):
        return nic.stop_ring(q)

    def close(self):
        self.nic.close()


class PortEnd:
    """The device side of a port link: a guest that takes and returns the buffers that there are."""

    def __init__(self, d, name, mode):
        self.lab = PortLab(d, mode, "local", name=name, driver=VMS[name][0], device=VMS[name][1],
                           **({"Link_Migration": "yes"} if mode == "fast" else {}))
        self.mode = mode

    def up(self):
        self.p = self.lab.connect()
        self.p.__enter__()
        assert self.p.attach(pc.ALL & ~vu.bit(vu.PACKED)) == pc.OK

    def runs(self):
        started(self.p)
        self.rx, self.tx = Device(self.p, 0), Device(self.p, 1)

    def send(self, packets):
        """All that there are buffers for, of any size: the driver posts no more meanwhile."""
        rx = self.rx
        for data in packets:
            whole, bufs, at = bytes(10) + b"\1\0" + data, [], rx.at
            while whole and (got := self.p.take(rx.entry, at)) is not None:
                (addr, n, _), = got[0]
                bufs.append((addr, whole[:n], got[1]))
                whole, at = whole[n:], at + 1
            if whole:
                return False
            addr, part, head = bufs[0]
            bufs[0] = addr, part[:10] + struct.pack("<H", len(bufs)) + part[HDR:], head
            for addr, part, head in bufs:
                self.p.view(addr, len(part))[:] = part
                rx.back(head, len(part))
        return True

    def take(self):
        while (got := self.p.take(self.tx.entry, self.tx.at)) is not None:
            yield b"".join(bytes(self.p.view(a, n)) for a, n, w in got[0])[HDR:]
            self.tx.back(got[1], 0)

    def logged(self, change):
        """Where they were in the guest's hands, it lets go of the driver's rings first."""
        was = self.p.state()
        change(lambda: [answer_stop(self.p, q, at) for q, at in enumerate((self.rx.at, self.tx.at))] if self.mode == "fast" else None)
        self.p.wait(lambda s: s.up and all(q.flags & pc.STARTED and (self.mode != "fast" or q.run != o.run) for q, o in zip(s.queues, was.queues)))
        self.runs()

    def stop(self, nic, q):
        nic.send(vu.GET_VRING_BASE, struct.pack("<II", q, 0), need_reply=False)
        answer_stop(self.p, q, (self.rx, self.tx)[q].at)
        return struct.unpack("<II", nic.recv_reply(vu.GET_VRING_BASE))[1]

    def close(self):
        self.p.close()


def end_of(d, name, mode, features):
    return RelayEnd(d, name, features) if mode == "relay" else PortEnd(d, name, mode)


def own_pages(nic):
    """Both used rings where the driver writes nothing: flags and index end a page, the entries begin one. Receive buffers, too."""
    for q, ring in nic.rings.items():
        nic.stop_ring(q)
        if not ring.packed:
            ring.used = nic.mem.alloc(2 * PAGE, PAGE) + PAGE - 4
            ring.reset()
        nic.start_ring(q, ring)
    nic.mem.alloc(0, PAGE)
    nic.fill_rx(200)


def log_on(nic, log, let_go=lambda: None):
    """As QEMU does: the log, the feature, then each ring with the address of its used ring."""
    nic.send(vu.SET_LOG_BASE, struct.pack("<QQ", log.size, 0), [log.fd], need_reply=False)
    nic.recv_reply(vu.SET_LOG_BASE)
    nic.send(vu.SET_FEATURES, struct.pack("<Q", nic.features | vu.bit(vu.LOG_ALL)), need_reply=True)
    let_go()
    assert nic.recv_reply(vu.SET_FEATURES) == bytes(8)
    for q, ring in nic.rings.items():
        nic.tell(vu.SET_VRING_ADDR, nic.addr_msg(q, ring, flags=1, log=nic.mem.gpa + ring.used))


def arrived(nic, path, mem, bases):
    """The same driver, on another link and in other memory."""
    new = copy.copy(nic)
    vu.Frontend.__init__(new, path)
    new.negotiate(nic.features)
    assert new.features == nic.features
    new.set_memory(mem)
    for q, ring in nic.rings.items():
        ring = copy.copy(ring)
        ring.mem = mem
        new.start_ring(q, ring, base=bases[q])
    return new


class Frames:
    """Frames with numbers. None comes altered, twice, or too early."""

    def __init__(self, sizes):
        self.sizes, self.rand, self.n, self.last = sizes, random.Random(1), 0, -1

    def more(self, n):
        out = [vu.frame(self.n + i, self.rand.randint(*self.sizes)) for i in range(n)]
        self.n += n
        return out

    def came(self, frame):
        n, = struct.unpack_from("<I", frame, 14)
        assert frame == vu.frame(n, len(frame)) and self.last < n < self.n, (n, self.last, self.n)
        self.last = n


def moved(make_daemon, mode, features, sizes, disable):
    d = make_daemon()
    here, there = (end_of(d, name, mode, features) for name in ("here", "there"))
    d.start()
    mem, dest = Memory(SIZE), vu.Memory(SIZE, uva=0x7f66_0000_0000)
    mem.written = set()
    down, up = Frames(sizes), Frames((60, 1500))
    with vu.Nic(d.sock("here", "driver"), features, mem=mem, fill=False) as nic:
        tx_area = range(min(nic.tx_free) // PAGE, (max(nic.tx_free) + 66000) // PAGE + 1)
        own_pages(nic)
        here.up()
        if mode != "relay":
            here.runs()
        log = Log(nic)
        pages = {"all": set(range(SIZE // PAGE))}

        def sync():
            todo = log.take() | mem.written | pages.pop("all", set())
            mem.written.clear()
            for i in todo:
                dest.map[i * PAGE:(i + 1) * PAGE] = mem.map[i * PAGE:(i + 1) * PAGE]

        here.logged(lambda *let_go: log_on(nic, log, *let_go))
        for lap in range(15):
            here.send(down.more(40))
            for _ in range(3):
                sync()
                for _ in range(down.rand.randrange(30)):
                    if (got := nic.poll_packet()) is not None:
                        down.came(got[1])
            for f in up.more(5):
                nic.send_packet(f)
            for f in here.take():
                up.came(f)
        # The VM stops; what its neighbour has just sent is on its way.
        here.send(down.more(60))
        sync()
        if disable:
            for q in nic.rings:
                nic.tell_state(vu.SET_VRING_ENABLE, q, 0)
        bases = [here.stop(nic, q) for q in nic.rings]
        mem.written |= set(tx_area)
        sync()
        left = bytes(mem.map)
        wrong = [i for i in range(SIZE // PAGE) if dest.map[i * PAGE:(i + 1) * PAGE] != left[i * PAGE:(i + 1) * PAGE]]
        assert not wrong, f"pages {wrong}, used rings at {[r.used / PAGE for r in nic.rings.values()]}"
        for q, ring in nic.rings.items():
            assert ring.packed or mem.r("H", ring.used + 2) == bases[q], "what is in nobody's hands is lost"
        there.up()
        with arrived(nic, d.sock("there", "driver"), dest, bases) as new:
            if mode != "relay":
                there.runs()
            for f in up.more(5):
                new.send_packet(f)

            def take():
                while (got := new.poll_packet()) is not None:
                    down.came(got[1])

            def sent(frame):
                take()  # which gives the buffers again
                return there.send([frame])

            def last_came():
                take()
                if down.last == down.n - 1:
                    return True
                if mode == "relay":  # drops what there is no buffer for: some of a burst, but not what comes alone
                    there.send(down.more(1))
                return False

            for f in down.more(20):
                d.wait(lambda: sent(f))
            d.wait(last_came)
            d.wait(lambda: up.last == up.n - 1 or [up.came(f) for f in there.take()] and False)
            there.close()
        here.close()
        assert bytes(mem.map) == left and not log.take(), "written to behind the driver's back"
        log.close()


@pytest.mark.parametrize("disable", [True, False], ids=["disabled", "enabled"])
@pytest.mark.parametrize("mode,view", CASES)
def test_small_packets(make_daemon, mode, view, disable):
    moved(make_daemon, mode, VIEWS[view], (60, 200), disable)


@pytest.mark.parametrize("mode,view", [(m, v) for m, v in CASES if v in ("plain", "mergeable", "packed")])
def test_large_packets(make_daemon, mode, view):
    moved(make_daemon, mode, VIEWS[view], (60, 2000) if view == "plain" else (1000, 9000), True)
