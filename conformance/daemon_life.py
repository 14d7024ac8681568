# SPDX-License-Identifier: BSD-3-Clause
"""What a daemon owes its guest: the rules D of docs/spec.md, sections 5 to 12."""
import os
import select
import struct
import time

import portclient as pc
import vu
from checklist import NotTested, expect, holds
from daemon_side import NET, runs, ready, quiet, take_signals, forward, call, stopped_at


# ---- section 5: signals


@holds("D29", needs=("driver",))
def signal_0_after_changes(c):
    with c.attached() as p:
        quiet(p)
        take_signals(p)
        with c.nic():
            p.wait(runs)
            deadline = time.monotonic() + pc.limit(1)
            while not take_signals(p):
                expect(time.monotonic() < deadline, "the link came up without signal 0")
                p.idle()


@holds("D30", "D31", needs=("driver",))
def kicks_and_calls(c):
    with c.up() as (p, nic):
        time.sleep(0.6)
        p.wait(runs)
        q = p.state().queues[1]
        expect(q.kick_signal < len(p.signals),
               f"kick_signal {q.kick_signal} of {len(p.signals)} signals")

        def kicked():
            if isinstance(p, pc.Shmem):
                return p.rings[q.kick_signal].get() is not None
            return pc.raised(p.signals[q.kick_signal], 0)

        while kicked():
            pass
        while pc.raised(nic.rings[1].call_fd, 0):
            pass
        nic.send_packet(vu.frame(0))
        deadline = time.monotonic() + pc.limit(2)
        while not kicked():
            expect(time.monotonic() < deadline,
                   f"the driver's kick did not raise signal {q.kick_signal}")
            p.idle()
        got = forward(p, 1, 1, q.base)[0]
        expect(got[12:] == vu.frame(0), "the packet in the buffer is not the one that was sent")
        expect(pc.raised(nic.rings[1].call_fd, pc.limit(2)), "the guest's call did not reach the driver VM")


@holds("D56", needs=("driver",))
def replaced_call(c):
    """The driver VM's VMM takes another eventfd for its calls while the queue runs."""
    c.only_fast()
    with c.up() as (p, nic):
        run = p.state().queues[1].run
        quiet(p, 0.8)
        old = old_doorbell(p, 1)
        new = new_call(nic, 1)
        old()
        expect(pc.raised(new, pc.limit(3)),
               "a call by the doorbell that was shown before did not reach the driver VM")
        time.sleep(0.8)
        while pc.raised(new, 0):
            pass
        p.drain()
        expect(p.state().queues[1].run == run, "the run ended")
        call(p, 1)
        expect(pc.raised(new, pc.limit(3)), "a call by the present doorbell did not reach the driver VM")
        os.close(new)


@holds("D51", needs=("local", "driver"))
def replacement_is_told(c):
    """A process that polls only looks at its socket when the state has changed."""
    c.only_fast()
    with c.up() as (p, nic):
        g = quiet(p, 0.8)
        take_signals(p)
        had = list(p.doorbells)
        new = new_call(nic, 1)
        deadline = time.monotonic() + pc.limit(1)
        while p.state().generation == g or not take_signals(p):
            expect(time.monotonic() < deadline,
                   "an eventfd was replaced, and neither generation nor signal 0 says so")
            time.sleep(0.002)
        p.drain()
        if p.doorbells == had:
            raise NotTested("the daemon does not pass the driver VM's eventfd on")
        os.close(new)


def new_call(nic, q):
    fd = vu.eventfd()
    nic.tell(vu.SET_VRING_CALL, struct.pack("<Q", q), [fd])
    return fd


def old_doorbell(p, q):
    """Raises the call of queue @q as it is shown now."""
    bell = p.state().queues[q].doorbell
    if isinstance(p, pc.Ivshmem):
        return lambda: p.doorbell(bell or p.bell0 + 1 + q)
    fd = os.dup(p.doorbells[bell])
    return lambda: (pc.one(fd), os.close(fd))


# ---- section 6: windows and regions


@holds("D32", needs=("driver",))
def serial_is_new(c):
    c.only_fast()
    with c.attached() as p:
        have = set()
        for _ in range(3):
            with c.nic():
                for i, w in enumerate(p.wait(runs).windows):
                    expect(not w[3] or w[2] and (i, w[2]) not in have,
                           f"window {i} has serial {w[2]} again")
                    have.add((i, w[2]))
            p.wait(lambda s: not s.up)
            p.sync()


def more_memory(nic):
    m = vu.Memory(4 << 20, gpa=0x8_0000_0000, uva=0x7f66_0000_0000)
    nic.tell(vu.ADD_MEM_REG, struct.pack("<Q", 0) + nic.region(m), [m.fd])
    return m


def less_memory(nic, m):
    nic.tell(vu.REM_MEM_REG, struct.pack("<Q", 0) + nic.region(m), [])


def can_add(c, nic):
    c.only_fast()
    if not nic.protocol >> vu.PF_MEM_SLOTS & 1:
        raise NotTested("the daemon does not let this driver VM add memory")


@holds("D33", needs=("driver",))
def region_added(c):
    with c.up() as (p, nic):
        can_add(c, nic)
        before = p.state()
        m = more_memory(nic)
        s = p.wait(lambda s: len(s.regions) == 2 and runs(s) and ready(s))
        expect([q.run for q in s.queues] == [q.run for q in before.queues],
               "a run ended because memory was added")
        expect(s.regions_generation != before.regions_generation,
               "regions_generation did not change")
        m.map[100] = 77
        expect(p.view(m.gpa + 100, 1)[0] == 77, "the window does not show the memory")
        m.close()


@holds("D34", "D35", needs=("driver",))
def region_removed(c):
    """First the region; the window goes after SYNC, or after a bounded time."""
    with c.up() as (p, nic):
        can_add(c, nic)

        def seconds(sync):
            """For which the window of memory that has been removed is there."""
            m = more_memory(nic)
            s = p.wait(lambda s: len(s.regions) == 2 and runs(s) and ready(s))
            slot, serial = s.regions[1][3], s.windows[s.regions[1][3]][2]
            there = lambda s: slot < len(s.windows) and s.windows[slot][3] and (
                s.windows[slot][2] == serial)
            less_memory(nic, m)
            s = p.wait(lambda s: len(s.regions) == 1)
            expect(there(s), "the window went with its region")
            t = time.monotonic()
            if sync:
                p.sync()
            p.wait(lambda s: not there(s), 10)
            m.close()
            return time.monotonic() - t

        # A busy machine may be late, but not each time. Without SYNC a window stays for about a second.
        expect(any(seconds(True) < 0.7 for _ in range(4)), "SYNC did not release the window")
        seconds(False)


# ---- section 7: life


@holds("D36", needs=("driver",))
def driver_gone(c):
    """Link, runs and regions go in one update."""
    with c.attached() as p:
        with c.nic():
            before = p.wait(runs)
        while True:
            s = p.state()
            if not s.up:
                break
            expect(all(q.flags & pc.STARTED for q in s.queues) and s.regions,
                   "up with a part of what it was")
        expect(not s.regions and not any(q.flags & pc.STARTED for q in s.queues),
               "down with regions, or with runs")
        expect(s.reason == pc.NO_DRIVER, f"reason {s.reason}")
        expect(s.regions_generation != before.regions_generation,
               "regions_generation did not change")


@holds("D37", needs=("driver",))
def next_run_waits_for_sync(c):
    with c.attached() as p:
        with c.nic():
            old = p.wait(runs).regions_generation
        p.wait(lambda s: not s.up)
        with c.nic() as nic:
            p.wait(lambda s: s.up)
            p.command(pc.SYNC, old)
            nic.send_packet(vu.frame(0))
            time.sleep(0.2)
            expect(not any(q.flags & pc.STARTED for q in p.state().queues),
                   "a run began before the guest had let go of the last one")
            # In copy mode the daemon itself is at the driver VM's ring.
            expect(not c.fast or nic.mem.r("H", nic.rings[1].used + 2) == 0,
                   "the ring was touched while the guest might still be at it")
            p.sync()
            p.wait(runs)


@holds("D38", "D39", needs=("driver",))
def silent_guest_is_cut(c):
    with c.up() as (p, nic):
        t = time.monotonic()
        nic.send(vu.GET_VRING_BASE, struct.pack("<II", 1, 0), need_reply=False)
        stopped_at(nic)
        took = time.monotonic() - t
        expect(0.3 < took < 10, f"a guest that does not answer was cut after {took:.1f} s")
        s = p.wait(lambda s: not s.attached)
        expect(not s.up and s.reason == pc.TIMEOUT, f"up {s.up}, reason {s.reason}")
        s = p.wait(lambda s: not any(w[3] for w in s.windows))
        expect(not s.regions, "regions after the cut")
        nic.start_ring(1, nic.rings[1], base=0)
        expect(p.attach(c.features) == pc.OK, "the guest may not attach again")
        p.wait(runs)


@holds("D40")
def guest_dies(c):
    """Its end is a DETACH; the next life finds the port free."""
    with c.attached():
        pass
    deadline = time.monotonic() + pc.limit(5)
    with c.open() as p:
        if c.attachment == "ivshmem" and p.state().attached:
            p.command(pc.DETACH)
        while p.state().attached:
            expect(time.monotonic() < deadline, "ATTACHED, though the guest that attached is gone")
            p.idle()


# ---- section 8: bindings


@holds("D41", needs=("ivshmem",))
def ivshmem_handshake(c):
    """The client is as strict as QEMU: version 0, an id below 0x8000, the memory, a power of two;
    no vector before the memory."""
    with c.open() as p:
        expect(p.id < 0x8000 and p.bell0 >> 16 in p.peers,
               "the doorbell names a peer that was not introduced")
        expect(p.bell0 >> 16 != p.id, "the guest's doorbell is its own vector")


@holds("D42", needs=("ivshmem", "driver"))
def ivshmem_windows(c):
    c.only_fast()
    with c.up() as (p, nic):
        ids = [w[1] for w in p.state().windows if w[3] == 2]
        expect(ids and len(set(ids)) == len(ids) and all(0x8000 <= i <= 0xffff for i in ids),
               f"window ids {ids}")


@holds("D43", needs=("shmem",))
def shmem_mappings(c):
    """The client is as strict as QEMU: no request before the start, UNMAP as MAP, nothing after
    the answer to DETACH."""
    with c.open() as p:
        expect(p.log[0][:3] == (9, 0, 0), f"the first request is {p.log[0]}, not the control block")
        p.attach(c.features)
        p.command(pc.DETACH)
        expect(not select.select([p.back], [], [], 0.3)[0], "a request after the answer to DETACH")
        p.stop()
        expect(not select.select([p.back], [], [], 0.3)[0], "a request after the reset")


@holds("D44", needs=("shmem",))
def shmem_full_queue(c):
    """A signal that finds no buffer is left out; it comes when there is one."""
    with c.open() as p:
        for i in range(p.buffers + 20):
            p.command(99)
        expect(p.state().answer[2] == pc.UNKNOWN, "the daemon waits for buffers")
        take_signals(p)
        p.command(99)
        deadline = time.monotonic() + pc.limit(1)
        while not take_signals(p):
            expect(time.monotonic() < deadline, "no signal although buffers are there again")
            p.idle()


@holds("D45", needs=("local",))
def local_greeting(c):
    """HELLO, SIGNALS from 0, DOORBELLS from 0, READY."""
    with c.open() as p:
        n, = struct.unpack_from("<I", p.mem, 0x38)
        queues, = struct.unpack_from("<I", p.mem, 0x34)
        expect(len(p.signals) == n, f"{len(p.signals)} signals, {n} in the header")
        expect(len(p.doorbells) >= 1 + queues, f"{len(p.doorbells)} doorbells for {queues} queues")


@holds("D46", needs=("local",))
def local_second_process(c):
    with c.open(), pc.Local(c.port, expect_error=True) as q:
        expect(q.error == 16, f"the second process is told {q.error}, not EBUSY")


@holds("D47", needs=("local", "driver"))
def local_window_before_ready(c):
    c.only_fast()
    with c.attached() as p, c.nic():
        deadline = time.monotonic() + pc.limit(5)
        while not runs(p.state()):
            expect(time.monotonic() < deadline, "the link did not come up")
        keys = [w[1] for w in p.state().windows if w[3] == 4 and w[4] & 1]
        p.drain()
        expect(keys and all(k in p.windows for k in keys),
               "a window is READY whose memory was not passed")


# ---- section 12: device types


@holds("D48", "D49", needs=("driver",))
def net_queues(c):
    """Pairs only, and the first is what the driver VM receives with."""
    with c.up() as (p, nic):
        s = p.state()
        if s.type != NET:
            raise NotTested(f"the link serves a device of type {s.type}")
        expect(len(s.queues) % 2 == 0 and s.max_queues % 2 == 0,
               f"{len(s.queues)} queues, at most {s.max_queues}: no pairs")
        deadline = time.monotonic() + pc.limit(2)
        while not (got := p.take(s.queues[0], s.queues[0].base)) and time.monotonic() < deadline:
            p.idle()
        expect(got and all(w for _, _, w in got[0]),
               "queue 0 has no writable buffers: it is not what the driver receives with")
        nic.send_packet(vu.frame(3))
        packet = forward(p, 1, 1, s.queues[1].base)[0]
        expect(packet == bytes(nic.hdr) + vu.frame(3),
               "queue 1 does not bring header and packet as they were sent")


@holds("D50")
def net_config(c):
    with c.open() as p:
        s = p.state()
        if s.type != NET:
            raise NotTested(f"the link serves a device of type {s.type}")
        expect(len(s.config) >= 12,
               f"{len(s.config)} bytes of config space; mac, status, pairs and mtu are 12")
        pairs, = struct.unpack_from("<H", s.config, 8)
        expect(2 * pairs == s.max_queues, f"max_virtqueue_pairs {pairs}, max_queues {s.max_queues}")
