# SPDX-License-Identifier: BSD-3-Clause
"""A copy link between a scripted driver and a scripted, and hostile, device side on the local attachment."""
import os
import struct
import time

import pytest

import portclient as pc
import vu
from portside import count

POOL = 0x200000
PAGE = 4096
VIEWS = [vu.BASIC | vu.bit(vu.NET_MRG_RXBUF), vu.BASIC | vu.bit(vu.NET_MRG_RXBUF, vu.PACKED),
         vu.BASIC | vu.bit(vu.NET_MRG_RXBUF, vu.EVENT_IDX), vu.BASIC, vu.BASIC | vu.bit(vu.NET_MRG_RXBUF, vu.IN_ORDER),
         vu.BASIC | vu.bit(vu.NET_MRG_RXBUF, vu.PACKED, vu.IN_ORDER)]
PATH = pc.ALL & ~vu.bit(vu.PACKED)  # the scripted device side knows split rings


class Local(pc.Local):
    def window(self, slot):
        size, locator, serial, kind, _ = self.state().windows[slot]
        assert kind == 1 and locator == POOL, "in copy mode there is the pool and nothing else"
        return memoryview(self.mem)[locator:locator + size]


@pytest.fixture
def copy(make_daemon):
    d = make_daemon()
    d.link("ab", device="stranger", Device_Endpoint="port", Device_Attachment="local")
    return d.start()


def drv(d):
    return d.sock("ab", "driver")


def dev(d):
    return d.sock("ab", "device")


def attached(d):
    p = Local(dev(d))
    assert p.attach(PATH) == pc.OK
    return p


def up(p):
    return p.wait(lambda s: s.up and all(q.flags & pc.STARTED and q.flags & pc.ENABLED for q in s.queues))


class Device:
    """Takes and returns buffers of one queue's run."""

    def __init__(self, p, q):
        self.p, self.q = p, q
        self.entry = p.state().queues[q]
        self.at = self.entry.base

    def take(self, timeout=None):
        end = time.monotonic() + (pc.limit(5) if timeout is None else timeout)
        while (got := self.p.take(self.entry, self.at)) is None:
            if time.monotonic() > end:
                return None
            pc.raised(self.p.signals[self.entry.kick_signal], 0.05)
        return got

    def back(self, head, length):
        self.p.give_back(self.entry, self.at, head, length)
        self.at += 1
        pc.one(self.p.doorbells[self.entry.doorbell])

    def packet(self):
        bufs, head = self.take()
        data = b"".join(bytes(self.p.view(a, l)) for a, l, w in bufs)
        self.back(head, 0)
        return data[12:]

    def send(self, data, hdr=bytes(10) + b"\1\0"):
        bufs, head = self.take()
        whole = hdr + data
        self.p.view(bufs[0][0], len(whole))[:] = whole
        self.back(head, len(whole))


def test_policy_chooses_copy(copy):
    s = copy.show("ab")
    assert s["mode"] == "copy" and s["policy"]["rule"] == "auto-across-groups"


@pytest.mark.parametrize("features", VIEWS)
def test_packets_both_ways(copy, features):
    with vu.Nic(drv(copy), features) as nic, attached(copy) as p:
        s = up(p)
        assert s.mode == 3 and not s.features >> vu.PACKED & 1
        assert [r[4] for r in s.regions] == [3, 1, 2]
        tx, rx = Device(p, 1), Device(p, 0)
        for i in range(200):
            f = vu.frame(i, 60 + i * 7 % 1400)
            nic.send_packet(f)
            assert tx.packet() == f
            f = vu.frame(i + 1000, 60 + i * 11 % 1400)
            rx.send(f)
            assert nic.recv_packet()[1] == f
        # Packets are counted when they have gone.
        copy.wait(lambda: (st := copy.stats("ab"))["driver"]["tx"]["packets"] == st["device"]["tx"]["packets"] == 200 and
                  st["driver"]["rx"]["packets"] == 200)


def test_sender_cannot_change_what_it_sent(copy):
    with vu.Nic(drv(copy)) as nic, attached(copy) as p:
        up(p)
        tx = Device(p, 1)
        nic.send_packet(vu.frame(1, 500))
        copy.wait(lambda: nic.rings[1].mem.r("H", nic.rings[1].used + 2) == 1)  # given back already
        nic.reclaim()
        nic.mem.map[nic.tx_free[-1]:nic.tx_free[-1] + 512] = b"\xcc" * 512
        assert tx.packet() == vu.frame(1, 500)


def test_rate_holds_back_without_polling(make_daemon):
    """A device VM over its rate waits, loses nothing, and costs its data thread a look a millisecond."""
    d = make_daemon()
    d.write("vhost-pci.conf", "[Daemon]\nBusyPollMicroseconds=0\n")
    d.link("ab", device="stranger", Device_Endpoint="port", Device_Attachment="local", Net_PacketsPerSecond=100)
    d.start()
    n = 150
    with vu.Nic(drv(d)) as nic, attached(d) as p:
        up(p)
        nic.fill_rx(n - 64)
        rx = Device(p, 0)
        start = time.monotonic()
        for i in range(n):
            rx.send(vu.frame(i))
        got = lambda: d.stats("ab")["device"]["tx"]["packets"]
        rounds = lambda: sum(t["rounds"] for t in d.call("daemon.show")["threads"])
        d.wait(lambda: got() >= 64)
        before, t = rounds(), time.monotonic()
        time.sleep(0.3)
        assert got() < n, "nothing was held back"
        assert rounds() - before < 8000 * (time.monotonic() - t)
        for i in range(n):
            assert nic.recv_packet()[1] == vu.frame(i)
        assert time.monotonic() - start > (n - 64) / 100 - 0.1


def test_blocking_call_fd_at_the_end(make_daemon):
    """What is given back when a queue stops is told by the main thread. A call fd that blocks holds it up for a second, not for ever."""
    d = make_daemon()
    d.link("ab", device="stranger", Device_Endpoint="port", Device_Attachment="local", Net_PacketsPerSecond=1)
    d.start()
    with vu.Nic(drv(d)) as nic, attached(d) as p:
        up(p)
        nic.fill_rx(36)
        rx = Device(p, 0)
        for i in range(100):
            rx.send(vu.frame(i))
        for i in range(64):
            assert nic.recv_packet()[1] == vu.frame(i)
        call = nic.rings[0].call_fd
        os.set_blocking(call, False)
        os.write(call, struct.pack("<Q", 1))
        os.read(call, 8)
        os.write(call, struct.pack("<Q", (1 << 64) - 2))
        os.set_blocking(call, True)
        nic.send(vu.GET_VRING_BASE, struct.pack("<II", 0, 0), need_reply=False)
        s = p.wait(lambda s: s.queues[0].flags & pc.STOP)
        assert p.stopped(0, s.queues[0].run, 0) == pc.OK
        assert struct.unpack("<II", nic.recv_reply(vu.GET_VRING_BASE))[0] == 0
        for i in range(64, 100):
            assert nic.recv_packet()[1] == vu.frame(i)
        assert d.show("ab")["up"]


@pytest.mark.parametrize("features", VIEWS)
def test_stop_gives_an_exact_base(copy, features):
    packed = features >> vu.PACKED & 1
    with vu.Nic(drv(copy), features) as nic, attached(copy) as p:
        up(p)
        rx = Device(p, 0)
        for i in range(5):
            rx.send(vu.frame(i, 100))
        assert nic.recv_packet()[1] == vu.frame(0, 100)
        nic.send(vu.GET_VRING_BASE, struct.pack("<II", 0, 0), need_reply=False)
        s = p.wait(lambda s: s.queues[0].flags & pc.STOP)
        rx.send(vu.frame(5, 100))  # a last one, between STOP and the answer
        assert p.stopped(0, s.queues[0].run, 4711) == pc.OK  # what it says of the index is of no interest
        q, base = struct.unpack("<II", nic.recv_reply(vu.GET_VRING_BASE))
        assert base == (0x80068006 if packed else 6)
        for i in range(1, 6):
            assert nic.recv_packet()[1] == vu.frame(i, 100)


def test_guest_that_does_not_answer(copy):
    with vu.Nic(drv(copy)) as nic, attached(copy) as p:
        up(p)
        rx = Device(p, 0)
        rx.send(vu.frame(0, 100))
        t = time.monotonic()
        assert nic.stop_ring(0) == 1
        assert 0.9 < time.monotonic() - t < pc.limit(2)
        assert p.wait(lambda s: s.reason == pc.TIMEOUT)


def test_device_side_comes_and_goes(copy):
    with vu.Nic(drv(copy)) as nic:
        for i in range(50):
            nic.send_packet(vu.frame(i, 64))  # nobody there: drained
        copy.wait(lambda: nic.rings[1].mem.r("H", nic.rings[1].used + 2) == 50)
        for lap in range(5):
            with attached(copy) as p:
                up(p)
                tx, rx = Device(p, 1), Device(p, 0)
                for i in range(20):
                    nic.send_packet(vu.frame(i, 64))
                    assert tx.packet() == vu.frame(i, 64)
                    rx.send(vu.frame(i, 99))
                    assert nic.recv_packet()[1] == vu.frame(i, 99)
            copy.wait(lambda: copy.show("ab")["status"] == "partial")


def give_again(nic):
    """Whatever came, back it goes."""
    while (got := nic.rings[0].get()) is not None:
        nic.rings[0].add([(got[0], nic.bufsize, True)], got[0])
    nic.kick(0)


CORRUPTIONS = ["used id", "used index", "same id twice", "huge length"]


@pytest.mark.parametrize("what", CORRUPTIONS)
def test_corrupted_shadow_ring(copy, what):
    """Ends the device side's run; the driver's ring stays whole and goes on with the next one."""
    with vu.Nic(drv(copy)) as nic:
        with attached(copy) as p:
            up(p)
            rx = Device(p, 0)
            rx.send(vu.frame(1, 100))
            assert nic.recv_packet()[1] == vu.frame(1, 100)
            bufs, head = rx.take()
            if what == "used id":
                rx.back(999, 100)
            elif what == "used index":
                p.view(rx.entry.used, 4).cast("H")[1] = 5000
                pc.one(p.doorbells[rx.entry.doorbell])
            elif what == "same id twice":
                rx.back(head, 0)
                rx.back(head, 0)
            else:
                p.view(bufs[0][0], bufs[0][1])[:] = bytes(10) + b"\1\0" + b"z" * (bufs[0][1] - 12)
                rx.back(head, 0xffffffff)
                got = nic.recv_packet()
                assert got and len(got[1]) == nic.bufsize - nic.hdr
            if what != "huge length":
                p.wait(lambda s: not s.queues[0].flags & pc.STARTED)
                copy.wait(lambda: copy.stats("ab")["device"]["queues_spoiled"] == 1)
                copy.wait(lambda: copy.show("ab")["status"] == "partial")
            tx = Device(p, 1)  # the other queue goes on
            nic.send_packet(vu.frame(7, 64))
            assert tx.packet() == vu.frame(7, 64)
        give_again(nic)
        with attached(copy) as p:
            up(p)
            rx = Device(p, 0)
            rx.send(vu.frame(2, 100))
            assert nic.recv_packet()[1] == vu.frame(2, 100)


OFFLOADS = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF, vu.NET_GUEST_CSUM, vu.NET_GUEST_TSO4)
# flags, gso_type, hdr_len, gso_size, csum_start, csum_offset: what a hostile device side might say of 100 bytes
BAD_HEADERS = [(1, 0, 0, 0, 95, 4), (1, 0, 0, 0, 0xffff, 0xffff), (1, 1, 54, 0, 34, 16), (0, 1, 54, 500, 34, 16),
               (1, 4, 54, 500, 34, 16), (1, 0x81, 54, 500, 34, 16), (1, 0x7f, 54, 500, 34, 16), (1, 3, 54, 500, 34, 6)]


@pytest.mark.parametrize("packed", [False, True])
def test_bad_offload_headers(copy, packed):
    """They do not enter the driver's ring; the queue goes on."""
    with vu.Nic(drv(copy), OFFLOADS | (vu.bit(vu.PACKED) if packed else 0)) as nic, attached(copy) as p:
        up(p)
        rx = Device(p, 0)
        for i, h in enumerate(BAD_HEADERS):
            rx.send(vu.frame(i, 100), hdr=struct.pack("<BBHHHHH", *h, 1))
            got = []
            copy.wait(lambda: got.append(nic.rings[0].get()) or got[-1])
            off, _, length = got[-1]
            assert length == 0 and nic.mem.map[off:off + 112] == bytes(112), f"header {h} got through"
            rx.send(vu.frame(i, 100), hdr=struct.pack("<BBHHHHH", 1, 1, 54, 40, 34, 16, 1))
            hdr, data = nic.recv_packet()
            assert data == vu.frame(i, 100) and hdr == struct.pack("<BBHHHHH", 1, 1, 54, 40, 34, 16, 1)
        copy.wait(lambda: (st := copy.stats("ab")["device"]["tx"])["drops"]["bad-header"] == st["packets"] == len(BAD_HEADERS))


def test_num_buffers_is_counted(copy):
    """A packet is as many buffers as came; what the device side claims beyond that waits, and harms nobody else."""
    with vu.Nic(drv(copy)) as nic, attached(copy) as p:
        up(p)
        rx, tx = Device(p, 0), Device(p, 1)
        rx.send(b"x" * 100, hdr=bytes(10) + b"\3\0")
        copy.stays(lambda: nic.poll_packet() is None, 0.05)
        nic.send_packet(vu.frame(7, 64))
        assert tx.packet() == vu.frame(7, 64)
        rx.send(b"y" * 88)  # its header is data, now
        assert nic.poll_packet() is None
        rx.send(b"z" * 88)
        hdr, data = nic.recv_packet()
        assert hdr == bytes(10) + b"\3\0"
        assert data == b"x" * 100 + (bytes(10) + b"\1\0") + b"y" * 88 + (bytes(10) + b"\1\0") + b"z" * 88
        rx.send(b"x" * 100, hdr=bytes(10) + b"\xff\xff")  # more than there can be
        copy.wait(lambda: copy.stats("ab")["device"]["tx"]["dropped"] == 1)


CANARY = bytes.fromhex("c0ffeec0deadbeef")


@pytest.mark.parametrize("features", VIEWS)
@pytest.mark.parametrize("before", [False, True], ids=["alone", "in front"])
def test_receive_buffer_that_may_not_be_written(copy, before, features):
    """A device-readable descriptor in the receive queue: nothing of it is changed, whatever the device side writes and says."""
    with vu.Nic(drv(copy), features, fill=False) as nic, attached(copy) as p:
        off = nic.mem.alloc(2 * PAGE, PAGE)
        nic.mem.map[off:off + 2 * PAGE] = CANARY * (2 * PAGE // 8)
        nic.rings[0].add([(off, 2048, False)] + ([(off + PAGE, 2048, True)] if before else []), off)
        nic.kick(0)
        up(p) if before else None
        end = time.monotonic() + 1
        while time.monotonic() < end and copy.show("ab")["sides"]["driver"]["queues"][0]["state"] != "broken":
            queues = p.state().queues
            if not queues or not queues[0].flags & pc.STARTED:
                continue
            rx = Device(p, 0)
            if (got := rx.take(0.05)) is None:
                continue
            for a, n, w in got[0]:
                p.view(a, n)[:] = bytes(10) + b"\1\0" + b"z" * (n - 12)
            rx.back(got[1], 4096)
            break
        copy.stays(lambda: nic.mem.map[off:off + PAGE] == CANARY * (PAGE // 8), 0.05)
        assert CANARY not in bytes(p.mem), "a receive queue shows the driver's bytes"


class Hoarder(Device):
    """Takes buffers long before it gives any back, and those in another order."""

    def __init__(self, p, q):
        super().__init__(p, q)
        self.given, self.kept = self.at, []

    def more(self):
        """All that there are now."""
        while (got := self.p.take(self.entry, self.at)) is not None:
            self.kept.append(got)
            self.at += 1
        return self.kept

    def give(self, i, data=None):
        """Number i of what it has; with data, as a packet."""
        bufs, head = self.kept.pop(i)
        if data:
            data = bytes(10) + b"\1\0" + data
            self.p.view(bufs[0][0], len(data))[:] = data
        self.p.give_back(self.entry, self.given, head, len(data or b""))
        self.given += 1
        if self.wanted():
            pc.one(self.p.doorbells[self.entry.doorbell])

    def wanted(self):
        """Does the daemon want to hear of the buffer just given back?"""
        avail = self.p.view(self.entry.avail, 6 + 2 * self.entry.size).cast("H")
        if self.p.state().features >> vu.EVENT_IDX & 1:
            return avail[2 + self.entry.size] == (self.given - 1) & 0xffff
        return not avail[0] & 1


@pytest.mark.parametrize("features", VIEWS)
def test_buffers_come_back_in_any_order(copy, features):
    """A driver that was promised order gets it (SplitRing, PackedRing assert that); others get what is back, as it comes."""
    in_order = features >> vu.IN_ORDER & 1
    with vu.Nic(drv(copy), features) as nic, attached(copy) as p:
        up(p)
        assert nic.features >> vu.IN_ORDER & 1 == in_order and nic.rings[0].in_order == bool(in_order)
        rx = Hoarder(p, 0)
        copy.wait(lambda: len(rx.more()) >= 8)
        for lap in range(0, 80, 8):
            copy.wait(lambda: len(rx.more()) >= 8)
            numbers = list(range(lap, lap + 8))
            for i in reversed(range(1, 8)):
                rx.give(i, vu.frame(numbers[i], 100))
            if in_order:
                copy.stays(lambda: nic.poll_packet() is None, 0.002)  # nothing comes before what is older
            rx.give(0, vu.frame(numbers[0], 100))
            for n in numbers if in_order else reversed(numbers):
                assert nic.recv_packet()[1] == vu.frame(n, 100)


class Narrow:
    """Two copy links with pools as small as can be, 484 KiB for each queue's buffers, on one data thread."""

    def __init__(self, d, features, **kw):
        for name, driver in ("ab", "a"), ("cd", "c"):
            d.link(name, driver=driver, device="stranger", Device_Endpoint="port", Device_Attachment="local", Device_PoolSize="1M")
        d.write("vhost-pci.conf", "[Daemon]\nThreads=1\nBusyPollMicroseconds=0\n")
        self.d = d.start()
        self.nic, self.other = vu.Nic(d.sock("ab", "driver"), features, **kw), vu.Nic(d.sock("cd", "driver"))
        self.p, self.far = Local(d.sock("ab", "device")), Local(d.sock("cd", "device"))
        for p in self.p, self.far:
            assert p.attach(PATH) == pc.OK
            up(p)
        self.tx, self.rx = Hoarder(self.p, 1), Hoarder(self.p, 0)
        self.ways = [(self.other, Device(self.far, 1), Device(self.far, 0))]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for end in self.p, self.far, self.nic, self.other:
            end.close()

    def others_go_on(self, tx=None, rx=None):
        """The other link, both ways, and what is given of this one; and nobody waits by looking all the time."""
        rounds = lambda: sum(t["rounds"] for t in self.d.call("daemon.show")["threads"])
        for i in range(10):
            for nic, tx1, rx1 in self.ways + [(self.nic, tx, rx)]:
                if tx1:
                    nic.send_packet(vu.frame(i, 300))
                    assert tx1.packet() == vu.frame(i, 300)
                if rx1:
                    rx1.send(vu.frame(i + 50, 300))
                    assert nic.recv_packet()[1] == vu.frame(i + 50, 300)
        before, t = rounds(), time.monotonic()
        time.sleep(0.1)
        assert rounds() - before < 2000 * (time.monotonic() - t)


@pytest.mark.parametrize("features", [VIEWS[0], VIEWS[1], VIEWS[4]])
def test_transmit_area_is_full(make_daemon, features):
    """A device side that returns no transmit buffer: the queue's driver waits, nobody else does, and nothing is lost."""
    n = 100
    with Narrow(make_daemon(), features) as lab:
        nic = lab.nic
        for i in range(n):  # the one that finds no room is in pieces in the first view, whole in the others
            nic.send_packet(vu.frame(i, 9000), cut=[12, 5000] if (i + (features != VIEWS[0])) % 3 == 0 else None)
        lab.d.wait(lambda: len(lab.tx.more()) > 40)
        had, waiting = lab.d.rest(lambda: nic.reclaim() or (len(lab.tx.more()), len(nic.rings[1].chains)))
        assert had + waiting == n and waiting > 20, "there is room for all"
        lab.others_go_on(rx=Device(lab.p, 0))
        nic.reclaim()
        assert len(lab.tx.more()) == had and len(nic.rings[1].chains) == waiting
        seen = 0
        while seen < n + 20:
            lab.d.wait(lab.tx.more)
            for bufs, _ in lab.tx.kept:
                assert bytes(lab.p.view(bufs[0][0], bufs[0][1])) == bytes(12) + vu.frame(seen, 9000)
                seen += 1
            while lab.tx.kept:  # the oldest, which the others' room waits for, at last
                lab.tx.give(-1)
            if n <= seen < n + 20:
                nic.send_packet(vu.frame(seen, 9000))
        lab.d.wait(lambda: nic.reclaim() or not nic.rings[1].chains)
        assert not lab.tx.more()
        assert lab.d.stats("ab")["driver"]["tx"]["dropped"] == 0


@pytest.mark.parametrize("features", [VIEWS[0], VIEWS[1], VIEWS[4]])
def test_receive_area_is_full(make_daemon, features):
    """One that takes receive buffers and fills none, then all but the oldest: the others go on, then this queue does."""
    in_order, n = features >> vu.IN_ORDER & 1, 100
    with Narrow(make_daemon(), features, fill=False, bufsize=16000) as lab:
        nic, tx = lab.nic, Device(lab.p, 1)
        nic.fill_rx(n)
        lab.d.wait(lambda: len(lab.rx.more()) > 20)
        had = lab.d.rest(lambda: len(lab.rx.more()))
        assert had < n - 50, "there is room for all"
        lab.others_go_on(tx=tx)
        assert len(lab.rx.more()) == had and nic.poll_packet() is None
        for i in range(1, had):
            lab.rx.give(1, vu.frame(i, 7000))
        came = [] if in_order else [nic.recv_packet()[1] for _ in range(1, had)]
        lab.d.rest(lambda: len(lab.rx.more()))
        lab.others_go_on(tx=tx)
        assert nic.poll_packet() is None and len(lab.rx.more()) < had
        lab.rx.give(0, vu.frame(0, 7000))
        came += [nic.recv_packet()[1] for _ in range(had if in_order else 1)]
        assert came == [vu.frame(i, 7000) for i in ([] if in_order else range(1, had))] + [vu.frame(i, 7000) for i in range(had if in_order else 1)]
        for i in range(had, 2 * n):
            lab.d.wait(lab.rx.more)
            lab.rx.give(0, vu.frame(i, 7000))
            assert nic.recv_packet()[1] == vu.frame(i, 7000)
        assert nic.poll_packet() is None
        lab.d.wait(lambda: lab.d.stats("ab")["device"]["tx"]["packets"] == 2 * n)


def test_queues_have_areas_of_their_own(make_daemon):
    """What one queue's buffers hold is never in another's, nor in the rings."""
    d = make_daemon()
    d.link("ab", device="stranger", Device_Endpoint="port", Device_Attachment="local", Link_Queues=2)
    d.start()
    with vu.Nic(drv(d), VIEWS[0] | vu.bit(vu.NET_MQ), pairs=2) as nic, attached(d) as p:
        s = up(p)
        assert len(s.queues) == 4
        for pair in (0, 1):
            for i in range(30):
                nic.send_packet(bytes([pair + 1]) * 1000, pair=pair)
        spans = []
        for q in range(4):
            e = s.queues[q]
            spans += [(e.desc, 16 * e.size, -1 - 3 * q), (e.avail, 6 + 2 * e.size, -2 - 3 * q), (e.used, 6 + 8 * e.size, -3 - 3 * q)]
            dev = Device(p, q)
            for _ in range(30):
                bufs, _ = dev.take()
                dev.at += 1
                for addr, n, write in bufs:
                    assert write == (q % 2 == 0)
                    assert q % 2 == 0 or bytes(p.view(addr, n))[12:] == bytes([q // 2 + 1]) * 1000
                    spans.append((addr, n, q))
        spans.sort()
        for (a, n, q), (b, _, other) in zip(spans, spans[1:]):
            assert a + n <= b, f"queues {q} and {other} share bytes at {b:#x}"


@pytest.mark.parametrize("features", VIEWS)
def test_dirty_log(copy, features):
    """Live migration: what a device side's packet changes in the driver's memory is logged, and no more."""
    packed = features >> vu.PACKED & 1
    with vu.Nic(drv(copy), features, mem=vu.Memory(16 << 20, gpa=0), fill=False) as nic:
        ring = nic.rings[0]
        nic.stop_ring(0)
        if not packed:  # the entries in another page than flags and index
            ring.used = nic.mem.alloc(2 * PAGE, PAGE) + PAGE - 4
            ring.reset()
        nic.start_ring(0, ring)
        nic.fill_rx(8)
        used = ring.desc if packed else ring.used + 4
        with os.fdopen(os.memfd_create("log"), "r+b") as log, attached(copy) as p:
            up(p)
            log.truncate(4096)
            nic.send(vu.SET_LOG_BASE, struct.pack("<QQ", 4096, 0), [log.fileno()], need_reply=False)
            nic.recv_reply(vu.SET_LOG_BASE)
            nic.tell_u64(vu.SET_FEATURES, nic.features | vu.bit(vu.LOG_ALL))
            nic.tell(vu.SET_VRING_ADDR, nic.addr_msg(0, ring, flags=1, log=nic.mem.gpa + ring.used))
            rx = Device(p, 0)
            rx.send(vu.frame(5, 500))
            got = []
            copy.wait(lambda: got.append(ring.get()) or got[-1])
            buf, _, length = got[-1]
            assert nic.mem.map[buf + 12:buf + length] == vu.frame(5, 500)
            bits = os.pread(log.fileno(), 4096, 0)
            dirty = {i * 8 + k for i, v in enumerate(bits) for k in range(8) if v >> k & 1}
            assert {buf // 4096, (buf + length - 1) // 4096, used // 4096} <= dirty
            # Nothing else but flags, index and event fields.
            assert dirty <= {buf // 4096, (buf + length - 1) // 4096, used // 4096, ring.used // 4096}


def test_next_run_waits_for_the_last_one(copy):
    """A driver VM that goes and comes at once: the device side may be in a burst on the same shadow ring, which it must not
    go on with in the new run. It would put a packet into a buffer that is another one by now."""
    with attached(copy) as p:
        with vu.Nic(drv(copy)) as nic:
            up(p)
            rx = Device(p, 0)
            bufs, head = rx.take()
            old = [q.run for q in p.state().queues]
            gen = p.state().regions_generation
        with vu.Nic(drv(copy)) as nic:
            s = p.wait(lambda s: s.up and s.regions_generation != gen)
            nic.send_packet(vu.frame(1, 64))  # waits, too: the device side will have it soon
            copy.stays(lambda: not any(q.flags & pc.STARTED for q in p.state().queues), 0.1)
            # The end of the burst. The address is still that of the pool; the state page says no more of the ring.
            entry = rx.entry
            p.view(bufs[0][0], 112)[:] = b"o" * 112
            p.give_back(entry, rx.at, head, 112)
            assert p.command(pc.SYNC, gen) == pc.OK  # of an earlier update: says nothing
            assert not any(q.flags & pc.STARTED for q in p.state().queues)
            assert p.command(pc.SYNC, s.regions_generation) == pc.OK
            s = up(p)
            assert all(q.run != r for q, r in zip(s.queues, old))
            tx, rx = Device(p, 1), Device(p, 0)
            assert tx.packet() == vu.frame(1, 64)
            rx.send(vu.frame(2, 99))
            assert nic.recv_packet()[1] == vu.frame(2, 99)
        # One that never says that it has seen the end is cut, and may attach again.
        with vu.Nic(drv(copy)) as nic:
            assert p.wait(lambda s: s.reason == pc.TIMEOUT)
            assert p.attach(PATH) == pc.OK
            up(p)
            rx = Device(p, 0)
            rx.send(vu.frame(3, 99))
            assert nic.recv_packet()[1] == vu.frame(3, 99)


def test_pool_is_empty_for_the_next_driver(copy):
    with attached(copy) as p:
        with vu.Nic(drv(copy)) as nic:
            up(p)
            for i in range(40):
                nic.send_packet(b"secret" * 200)
            copy.wait(lambda: b"secretsecret" in bytes(p.mem))
        p.wait(lambda s: s.reason == pc.NO_DRIVER)
        assert not p.state().regions
        # When it has let go, not under its hands.
        p.sync()
        copy.wait(lambda: not any(bytes(p.mem)[POOL:]))


def test_pool_quota(make_daemon):
    d = make_daemon()
    d.write("b.vm", "[VM]\nMaxPool=16M\n")
    for i, size in enumerate(["8M", "8M"]):
        d.link(f"l{i}", driver="a", device="b", Device_Endpoint="port", Device_Attachment="local", Link_Mode="copy", Device_PoolSize=size)
    d.start()
    with pytest.raises(Exception, match="MaxPool"):
        d.call("link.add", name="more", config={"Link": {"Mode": "copy"}, "Driver": {"VM": "a"},
                                                  "Device": {"VM": "b", "Endpoint": "port", "Attachment": "local"}})


def test_no_fds_or_jobs_leak(copy):
    def lap():
        with vu.Nic(drv(copy)) as nic, attached(copy) as p:
            up(p)
            tx = Device(p, 1)
            nic.send_packet(vu.frame(1, 64))
            assert tx.packet() == vu.frame(1, 64)
        copy.wait(lambda: copy.show("ab")["status"] == "waiting")
    lap()
    n = copy.fds()
    for _ in range(5):
        lap()
    copy.wait_fds(n)


def test_kick_system_calls(copy):
    """The data thread raises the signal itself: nobody else is woken, two system calls at most."""
    with vu.Nic(drv(copy)) as nic, Local(dev(copy)) as p:
        p.attach(PATH & ~vu.bit(vu.EVENT_IDX))  # so that every packet is a kick
        up(p)
        tx = Device(p, 1)
        nic.send_packet(vu.frame(0, 64))
        assert tx.packet() == vu.frame(0, 64)
        copy.wait(lambda: copy.show("ab")["sides"]["device"]["kicks_direct"] == 2)
        while pc.raised(p.signals[2], 0):
            pass

        def packet():
            nic.reclaim()
            nic.send_packet(vu.frame(1, 64))
            assert pc.raised(p.signals[2])
            assert tx.packet() == vu.frame(1, 64)

        forwarded = count(copy, packet, "vp-signal")
        assert len(forwarded) < 8, "".join(forwarded[:20])
        assert copy.show("ab")["sides"]["device"]["signals_forwarded"] == 0


def test_signal_that_blocks(copy):
    """The device side makes its own eventfd block: it loses the queue, everything else goes on."""
    with vu.Nic(drv(copy)) as nic, Local(dev(copy)) as p:
        p.attach(PATH & ~vu.bit(vu.EVENT_IDX))
        up(p)
        fd = p.signals[2]
        while pc.raised(fd, 0):
            pass
        os.write(fd, struct.pack("<Q", (1 << 64) - 2))
        os.set_blocking(fd, True)
        nic.send_packet(vu.frame(1, 64))
        p.wait(lambda s: not s.queues[1].flags & pc.STARTED)
        copy.wait(lambda: copy.stats("ab")["device"]["queues_spoiled"] == 1)
        rx = Device(p, 0)  # on the same data thread
        rx.send(vu.frame(2, 100))
        assert nic.recv_packet()[1] == vu.frame(2, 100)
        for i in range(5):
            nic.send_packet(vu.frame(i, 64))
        copy.wait(lambda: nic.rings[1].mem.r("H", nic.rings[1].used + 2) == 6)  # drained
