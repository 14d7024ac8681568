# SPDX-License-Identifier: BSD-3-Clause
"""What a guest owes its daemon: checks of the rules G of docs/spec.md.

Each check plays the daemon and the driver VM behind it (fakedaemon.py). The guest serves a network
device. It takes every packet of the transmit queue and, unless --no-echo says otherwise, sends it back:
the receive queue is tested by what comes back.
"""
import contextlib
import os
import shutil
import struct
import subprocess
import tempfile
import time

import fakedaemon as fd
import portclient as pc
import vu
from checklist import expect, holds

RX, TX = fd.RX, fd.TX
F_BROKEN, F_NO_BASE = 1, 2
ATTACH_TIME = 60  # a VM may be booting


class Context:
    """@command: starts a guest, anew for each check; or @where: a guest that comes to KIND:PATH
    by itself, and stays."""

    def __init__(self, command, where, echo):
        self.dir = tempfile.mkdtemp(prefix="vp")
        self.command, self.echo, self.daemon, self.proc = command, echo, None, None
        self.kind, self.path = "local", os.path.join(self.dir, "port")
        if where:
            self.kind, _, self.path = where.partition(":")
            if self.kind not in ("local", "ivshmem") or not self.path:
                raise ValueError(f"{where}: local:PATH or ivshmem:PATH is expected")
        elif not command or not any("{port}" in a for a in command):
            raise ValueError("--guest wants a command with {port} in it")
        self.attachment = self.kind

    def lacks(self, need):
        if need == "restart" and not self.command:
            return "needs a guest that the run can start (--guest)"
        if need == "local" and self.kind != "local":
            return f"the port is attached by {self.kind}, not local"
        if need == "echo" and not self.echo:
            return "needs a guest that sends packets back"
        return None

    def launch(self):
        self.log = open(os.path.join(self.dir, "guest.log"), "ab")
        command = [a.replace("{port}", "unix:" + self.path) for a in self.command]
        self.proc = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=self.log, stderr=self.log)

    def end(self):
        """The guest of a check is gone when the check is over; it need not go by itself."""
        if self.proc:
            self.proc.kill()
            self.proc.wait()
            self.proc.stdin.close()
            self.log.close()
            self.proc = None
        if self.daemon and self.command:
            self.daemon.close()
            self.daemon = None

    @contextlib.contextmanager
    def fresh(self, prepare=None):
        """A daemon that a new guest has not found yet. @prepare is called before the guest
        starts."""
        self.end()
        self.daemon = d = fd.Daemon(self.path, self.kind)
        try:
            if prepare:
                prepare(d)
            self.launch()
            yield d
        finally:
            self.end()

    @contextlib.contextmanager
    def attached(self):
        """A daemon whose guest has attached. The guest that came by itself is used again: the
        last driver VM is gone."""
        if self.command:
            with self.fresh() as d:
                self.wait_attached(d)
                yield d
            return
        d = self.daemon = self.daemon or fd.Daemon(self.path, self.kind)
        self.wait_attached(d)
        n = len(d.commands)
        d.link_down()
        d.until(lambda: d.of(pc.SYNC, n),
                "no SYNC after the link had gone down: the guest is not ready for the next check")
        yield d

    def wait_attached(self, d):
        d.until(lambda: d.attached,
                lambda: f"no ATTACH that fits within {ATTACH_TIME} s; {self.says(d)}", ATTACH_TIME)

    def says(self, d):
        if self.proc and self.proc.poll() is not None:
            with open(os.path.join(self.dir, "guest.log"), errors="replace") as f:
                said = f.read()[-300:].strip()
            return f"the guest ended with status {self.proc.returncode}: {said!r}"
        return f"commands until then: {d.commands[-5:]}"

    @contextlib.contextmanager
    def up(self, queues=None):
        """A link that is up, with a driver VM and empty transmit queue."""
        with self.attached() as d:
            d.driver()
            d.link_up(queues)
            yield d
            expect(not self.proc or self.proc.poll() is None, self.says(d))

    def after(self, name, seconds):
        pass

    def close(self):
        self.end()
        if self.daemon:
            self.daemon.close()
        shutil.rmtree(self.dir, ignore_errors=True)


def consumed(d, n, timeout=5, seen=None):
    """The guest takes packets until the used index of the transmit queue is @n."""
    d.until(lambda: d.used(TX) == n & 0xffff, lambda: seen or
            f"the used index of the transmit queue is {d.used(TX)}, not {n}", timeout)


def untouched(d, before, seconds, seen):
    """The guest leaves the transmit queue alone."""
    d.idle(seconds)
    expect(d.used(TX) == before, f"{seen}: the used index went from {before} to {d.used(TX)}")


def look_at(d):
    """One more buffer in the transmit queue, and a kick: who still looks at it takes it."""
    d.rings[TX].add([(d.mem.alloc(100), 100, False)])
    pc.one(d.kick[1 + TX])


def stopped(d, q, since, timeout=1.0, seen="no QUEUE_STOPPED within 1 s"):
    """The QUEUE_STOPPED of queue @q that comes in time."""
    return d.until(lambda: [c for c in d.of(pc.QUEUE_STOPPED, since) if c.args[0] == q], seen,
                   timeout)[0]


def works(d, n=3):
    """Packets are taken."""
    at = d.used(TX)
    for i in range(n):
        d.send_packet(vu.frame(i))
    consumed(d, at + n)
    return at + n


# ---- section 2: the control block


def leaves_alone(c, prepare, seen):
    with c.fresh(prepare) as d:
        end = time.monotonic() + max(1, pc.limit(0.3))
        while time.monotonic() < end and c.proc.poll() is None and not d.commands:
            d.serve()
        expect(not d.commands, f"{seen}: the guest sent {d.commands[:1]}")


@holds("G1", needs=("restart",))
def no_magic(c):
    leaves_alone(c, lambda d: d.header(magic=b"NOTMAGIC"), "no magic")


@holds("G2", needs=("restart",))
def odd_header(c):
    for odd in (dict(size=0x60), dict(state=0x20000), dict(queues=0), dict(queues=129, signals=130),
                dict(signals=1)):
        leaves_alone(c, lambda d: d.header(**odd), f"a header with {odd}")


# ---- section 3: the state


@holds("G3")
def torn_state(c):
    """A page whose generation is odd says nothing."""
    with c.up() as d:
        works(d)
        d.idle(0.3)
        flags = d.queue[TX]["flags"]
        d.queue[TX]["flags"] = flags | pc.STOP
        d.hold, d.held = True, None  # an answer would make the page whole
        d.publish(torn=True)
        d.idle(0.5)
        d.hold = False
        expect(not d.held or fd.Command(d.held).op != pc.QUEUE_STOPPED,
               "a STOP was answered that was read under an odd generation")
        d.queue[TX]["flags"] = flags
        d.publish()
        d.look()
        works(d)


@holds("G4")
def unknown_link_status(c):
    with c.up() as d:
        at = works(d)
        d.status = 2
        d.publish()
        d.idle(0.3)
        look_at(d)
        untouched(d, at, 0.3, "the guest works while link_status is 2")


@holds("G5")
def not_enabled(c):
    with c.attached() as d:
        d.driver()
        d.start(RX)
        d.start(TX, flags=pc.STARTED)
        d.status, d.reason = 1, 0
        d.send_packet(vu.frame(0))
        d.publish()
        untouched(d, 0, 0.5, "a queue without ENABLED is processed")
        d.queue[TX]["flags"] |= pc.ENABLED
        d.publish()
        d.ring_kick(TX)
        consumed(d, 1, seen="the queue is not processed after ENABLED was set")


@holds("G6", "G7")
def stop(c):
    """It is answered within 1 s, with the run and the next index; then the queue is the driver
    VM's."""
    with c.up() as d:
        at = works(d)
        n = len(d.commands)
        d.queue[TX]["flags"] |= pc.STOP
        d.publish()
        s = stopped(d, TX, n)
        expect(s.args[1] == d.runs[TX],
               f"run {s.args[1]} is said to have stopped, run {d.runs[TX]} was asked")
        expect(s.args[3] & F_NO_BASE or s.args[2] == at,
               f"next index {s.args[2]}, the used index is {at}")
        look_at(d)
        untouched(d, at, 0.3, "the queue is processed after QUEUE_STOPPED")


@holds("G8")
def other_run(c):
    """The same flags, another run: other rings, another index."""
    with c.up() as d:
        works(d)
        d.rings[TX] = vu.SplitRing(d.mem, 32)
        d.start(TX, base=0)
        d.publish()
        d.idle(0.1)
        for i in range(3):
            d.send_packet(vu.frame(i))
        consumed(d, 3, seen="the queue of a new run is not processed where it starts")


@holds("G9")
def not_started(c):
    with c.attached() as d:
        d.driver()
        d.start(RX)
        d.start(TX, flags=pc.ENABLED)
        d.status, d.reason = 1, 0
        d.send_packet(vu.frame(0))
        d.publish()
        untouched(d, 0, 0.5, "a queue without STARTED is processed")


@holds("G10")
def stop_before_it_started(c):
    """Started and stopped before the guest looked."""
    with c.attached() as d:
        d.driver()
        n = len(d.commands)
        d.start(RX)
        d.start(TX, flags=pc.STARTED | pc.ENABLED | pc.STOP, base=5)
        d.status, d.reason = 1, 0
        d.publish()
        s = stopped(d, TX, n)
        expect(s.args[1] == d.runs[TX] and (s.args[2] == 5 or s.args[3] & F_NO_BASE),
               f"{s} instead of run {d.runs[TX]}, index 5")


# ---- section 4: commands


@holds("G11")
def command_form(c):
    with c.up() as d:
        works(d)
        a = d.of(pc.ATTACH)[-1]
        expect(a.args[0] == pc.ABI, f"ATTACH with version {a.args[0]:#x}")
        expect(a.args[3] in (0, fd.NET), f"ATTACH for a device of type {a.args[3]}")
        for k in d.commands:
            used = {pc.ATTACH: 4, pc.DETACH: 0, pc.QUEUE_STOPPED: 4, pc.SYNC: 1, pc.COUNTERS: 6}.get(k.op)
            expect(used is not None, f"opcode {k.op}")
            expect(not any(k.args[used:]), f"reserved arguments of {k} are not zero: {k.args}")


@holds("G48", "G49")
def counters_when_asked(c):
    with c.up() as d:
        works(d)
        d.idle(0.3)
        expect(not d.of(pc.COUNTERS), "COUNTERS, which nobody asked for")
        began, d.count = time.monotonic(), True
        d.publish()
        for _ in range(3):
            works(d)
            d.idle(0.7)
        n, took = len(d.of(pc.COUNTERS)), time.monotonic() - began
        expect(n <= took + 1, f"COUNTERS {n} times in {took:.1f} s")
        expect(all(k.args[0] and k.args[1] for k in d.of(pc.COUNTERS)), "counts of nothing, after packets")


@holds("G12")
def waits_for_the_answer(c):
    with c.up() as d:
        works(d)
        d.hold, d.held = True, None
        for q in (RX, TX):
            d.queue[q]["flags"] |= pc.STOP
        d.publish()
        d.until(lambda: d.held, "no command within 1 s of STOP", 1)
        first = d.held
        d.idle(0.5)
        now = bytes(d.mem.map[pc.COMMAND:pc.COMMAND + 128])
        d.hold = False
        expect(now == first,
               f"{fd.Command(now)} was written before {fd.Command(first)} was answered")
        d.look()
        d.until(lambda: not any(q["flags"] & pc.STOP for q in d.queue),
                "the second STOP was never answered")


@holds("G13", needs=("restart",))
def seq_is_new(c):
    """Other than what stands in the page and what was answered last, and not 0."""
    for written, answered in ((2, 1), (8, 9), (0xffffffff, 0xffffffff)):
        def prepare(d):
            d.answer = (answered, pc.SYNC, 0, 0, 0, 0)
            d.publish(signal=False)
            d.w32(pc.COMMAND, written)

        with c.fresh(prepare) as d:
            d.until(lambda: d.commands,
                    lambda: f"no command that is new after {written:#x}, {answered:#x}; {c.says(d)}")
            seq = d.commands[0].seq
            expect(seq not in (0, written, answered),
                   f"the first command has seq {seq:#x}, {written:#x} stood in the page")


@holds("G14", needs=("restart",))
def refused_attach(c):
    """A guest that was refused does not touch the link."""
    def prepare(d):
        d.status_of[pc.ATTACH] = pc.FEATURES, 1 << 40
        d.driver()

    with c.fresh(prepare) as d:
        d.until(lambda: d.of(pc.ATTACH), lambda: f"no ATTACH; {c.says(d)}", ATTACH_TIME)
        d.attached = False
        d.link_up()
        look_at(d)
        untouched(d, 0, 0.5, "a guest whose ATTACH was refused works on the rings")
        expect(not d.of(pc.QUEUE_STOPPED), "QUEUE_STOPPED of a guest that is not attached")


# ---- section 5: signals


@holds("G15")
def looks_without_a_kick(c):
    with c.attached() as d:
        d.driver()
        for i in range(3):
            d.send_packet(vu.frame(i), kick=False)
        d.link_up()
        consumed(d, 3, seen="buffers that were available before the run started wait for a kick")


@holds("G16")
def kick_on_any_signal(c):
    with c.up() as d:
        at = works(d)
        for signal in (3, 1, 0):
            d.queue[TX]["kick"] = signal
            d.publish()
            d.idle(0.2)
            d.send_packet(vu.frame(signal))
            at += 1
            consumed(d, at, seen=f"a kick by signal {signal} is not heard")


@holds("G17", "G18")
def calls(c):
    """Used buffers are called for; by the doorbell that the page shows."""
    with c.up() as d:
        d.idle(0.1)
        d.calls = [0] * len(d.calls)
        at = works(d, 1)
        d.until(lambda: d.calls[1 + TX], "no call for a used buffer", 1)
        d.queue[TX]["bell"] += 1
        d.publish()
        d.idle(0.3)
        d.calls = [0] * len(d.calls)
        d.send_packet(vu.frame(0))
        consumed(d, at + 1)
        d.until(lambda: d.calls[2 + TX], "the call does not follow queues[].doorbell", 1)


# ---- section 6: windows and regions


@holds("G19")
def unknown_kind_of_window(c):
    with c.up() as d:
        works(d)
        d.windows.append((1 << 20, 0x1234, 77, 99, 1))
        d.regions_generation += 1
        d.publish()
        d.idle(0.2)
        works(d)


@holds("G20")
def buffer_over_two_regions(c):
    """Contiguous for the driver, in two places of the window."""
    with c.attached() as d:
        d.driver()
        n, half = len(d.commands), 3 << 20
        d.regions = [(fd.GPA + fd.POOL, half - fd.POOL, 0, 0, 3),
                     (fd.GPA + half, 1 << 20, 4 << 20, 0, 3)]
        d.regions_generation += 1
        data = bytes(12) + vu.frame(5, 200)
        cut = 100
        d.mem.map[half - cut:half] = data[:cut]
        at = fd.POOL + (4 << 20)
        d.mem.map[at:at + len(data) - cut] = data[cut:]
        d.rings[TX].add([(half - cut, len(data), False)])
        d.link_up()
        consumed(d, 1, seen="a buffer over two regions is not taken")
        expect(not d.of(pc.QUEUE_STOPPED, n),
               "a buffer over two regions was taken for a broken ring")
        if c.echo:
            got = d.until(d.received, "the packet did not come back", 2)
            expect(got[1][14:] == data[26:], "the packet was not put together from both regions")


def broken(c, d, break_it, seen):
    """The ring is broken by the driver VM: the guest gives up this queue, and only this."""
    n = len(d.commands)
    break_it(d)
    d.ring_kick(TX)
    s = stopped(d, TX, n, 5, f"{seen}: no QUEUE_STOPPED")
    expect(s.args[3] & F_BROKEN and s.args[1] == d.runs[TX], f"{seen}: {s} does not say BROKEN")
    # the driver VM sets the queue up anew
    d.rings[TX] = vu.SplitRing(d.mem, 64)
    d.start(TX, base=0)
    d.publish()
    d.idle(0.1)
    works(d, 2)
    expect(not [k for k in d.of(pc.QUEUE_STOPPED, n) if k.args[0] != TX],
           f"{seen}: another queue was given up as well")


@holds("G21")
def address_outside_regions(c):
    with c.up() as d:
        works(d)

        def far(d):
            r = d.rings[TX]
            i = r.take()
            r.raw_desc(i, fd.GPA + (1 << 40), 100, 0, 0)
            r.expose(i)

        broken(c, d, far, "a buffer that no region covers")


@holds("G22", needs=("echo",))
def writes_stay_inside(c):
    """Bytes outside the buffers stay as they were."""
    with c.up() as d:
        works(d, 5)
        for _ in range(5):
            _, got = d.until(d.received, "a packet did not come back", 2)
            expect(len(got) == 64, f"a packet of 64 bytes came back with {len(got)}")
        free = d.mem.next + 65536
        last = d.buffers[-1]  # a receive buffer that was given and is not used yet
        for at in (free, last):
            d.mem.map[at:at + 1024] = b"\xa5" * 1024
        d.mem.map[free:] = b"\xa5" * (d.mem.size - free)
        works(d, 3)
        for _ in range(3):
            d.until(d.received, "a packet did not come back", 2)
        expect(d.mem.map[free:] == b"\xa5" * (d.mem.size - free),
               "memory that no descriptor names was written")
        expect(d.mem.map[last:last + 1024] == b"\xa5" * 1024,
               "a buffer was written that did not come back")


@holds("G23")
def sync_means_done(c):
    """After SYNC nothing older is in use: the memory may be somebody else's."""
    with c.up() as d:
        at = works(d)
        n = len(d.commands)
        d.link_down()
        # One of what was before may still be on its way.
        d.until(lambda: any(s.args[0] == d.regions_generation for s in d.of(pc.SYNC, n)),
                lambda: f"no SYNC of {d.regions_generation}, which the page says, within 1 s of the "
                f"end of all regions, but of {[s.args[0] for s in d.of(pc.SYNC, n)]}", 1)
        before = bytes(d.mem.map[fd.POOL:])
        look_at(d)
        after = bytes(d.mem.map[fd.POOL:])
        expect(before != after, "")
        d.idle(0.4)
        expect(bytes(d.mem.map[fd.POOL:]) == after, "memory was written after SYNC")
        expect(d.used(TX) == at, "the ring was processed after SYNC")


# ---- section 7: life


@holds("G24", needs=("restart",))
def attached_at_bind(c):
    """An earlier life of the guest left the port attached."""
    def prepare(d):
        d.attached = True
        d.driver()
        d.link_up()
        d.send_packet(vu.frame(0))
        d.hold = True

    with c.fresh(prepare) as d:
        d.until(lambda: d.held, f"no command; {c.says(d)}", ATTACH_TIME)
        op = fd.Command(d.held).op
        expect(op in (pc.DETACH, pc.ATTACH), f"the first command is {fd.Command(d.held)}")
        untouched(d, 0, 0.3, "the guest works on the rings of an earlier life")


@holds("G25")
def down_at_once(c):
    """STARTED and all regions are gone: nobody asks."""
    with c.up() as d:
        at = works(d)
        n = len(d.commands)
        d.link_down()
        d.until(lambda: d.of(pc.SYNC, n), "no SYNC within 1 s", 1)
        look_at(d)
        untouched(d, at, 0.3, "a queue is processed after the link went down")
        d.driver()
        d.link_up()
        works(d)


@holds("G26")
def down_with_stop(c):
    """The driver VM stays: each queue is asked first, the link goes down after that."""
    with c.up() as d:
        works(d)
        n = len(d.commands)
        for q in (RX, TX):
            d.queue[q]["flags"] |= pc.STOP
        d.publish()
        d.until(lambda: not any(q["flags"] & pc.STOP for q in d.queue),
                "STOP of both queues was not answered within 1 s", 1)
        asked = [k.args[0] for k in d.of(pc.QUEUE_STOPPED, n)]
        expect(sorted(asked) == [RX, TX], f"QUEUE_STOPPED of queues {asked}")


@holds("G27")
def cut(c):
    with c.up() as d:
        at = works(d)
        d.attached = False
        n = len(d.commands)
        d.link_down(pc.TIMEOUT)
        d.idle(0.3)
        look_at(d)
        untouched(d, at, 0.3, "the guest works on rings after it was cut")
        expect(all(k.op in (pc.ATTACH, pc.DETACH, pc.SYNC) for k in d.commands[n:]),
               f"{d.commands[n:]} after the cut")


@holds("G28")
def daemon_ends(c):
    """Reason 11 with ATTACHED: let go of all, say so."""
    with c.up() as d:
        at = works(d)
        n = len(d.commands)
        d.link_down(pc.DAEMON)
        d.until(lambda: d.of(pc.SYNC, n) or d.of(pc.DETACH, n),
                "neither SYNC nor DETACH within 1 s of the daemon's end", 1)
        look_at(d)
        untouched(d, at, 0.3, "the ring is processed after the daemon's end")


@holds("G29", "G30")
def hostile_rings(c):
    """The driver VM writes what it likes: one queue breaks, the guest lives."""
    with c.up() as d:
        works(d)

        def jump(d):
            d.rings[TX].set_avail_idx(d.rings[TX].avail_idx + 5000)

        def loop(d):
            r = d.rings[TX]
            i = r.take()
            r.raw_desc(i, fd.GPA + fd.POOL, 64, vu.DESC_NEXT, i)
            r.expose(i)

        def beyond(d):
            d.rings[TX].expose(1000)

        def wraps(d):
            r = d.rings[TX]
            i = r.take()
            r.raw_desc(i, (1 << 64) - 16, 100, 0, 0)
            r.expose(i)

        for what, seen in ((jump, "an available index too far ahead"),
                           (loop, "a chain without end"), (beyond, "a head out of range"),
                           (wraps, "a buffer that wraps around")):
            broken(c, d, what, seen)


@holds("G31")
def invalid_state(c):
    """Tables that contradict themselves are a link that is down."""
    with c.up() as d:
        at = works(d)
        good = d.regions
        for bad in ([(fd.GPA + fd.POOL, fd.SIZE, 0, 0, 3)], [(fd.GPA + fd.POOL, 4096, 0, 7, 3)],
                    good + good):
            d.regions = bad
            d.regions_generation += 1
            d.publish()
            d.idle(0.2)
            look_at(d)
            untouched(d, at, 0.2, "the guest works by a state page that contradicts itself")
            d.link_down()
            d.idle(0.2)
            d.driver()
            d.link_up()
            at = works(d)
            good = d.regions


# ---- sections 8 and 10


@holds("G32", needs=("local", "restart"))
def local_socket(c):
    """The process sends nothing on the socket; it skips messages that it does not know."""
    with c.up() as d:
        works(d)
        d.message(0x4712, 1, fds=[d.mem.fd])
        works(d)
        d.idle(0.2)
        expect(not d.said, f"the process sent {len(d.said)} bytes")


@holds("G33", needs=("local", "restart"))
def local_replaced_doorbell(c):
    """A new eventfd takes the old one's place."""
    with c.up() as d:
        works(d)
        new = vu.eventfd()
        old, d.bell[1 + TX] = d.bell[1 + TX], new
        d.message(pc.DOORBELLS, 1 + TX, fds=[new])
        d.publish()  # the state says nothing new, and is another generation
        d.idle(0.3)
        d.calls = [0] * len(d.calls)
        works(d, 1)
        d.until(lambda: d.calls[1 + TX], "the call does not come by the new eventfd", 1)
        os.close(old)


@holds("G34", needs=("restart",))
def other_version(c):
    for v in (0x10000, pc.ABI + 1):
        leaves_alone(c, lambda d: d.header(version=v), f"version {v:#x}")


# ---- section 12: device types


@holds("G35", "G36", needs=("echo",))
def net_packets(c):
    """Header and packet, out of queue 1 and into queue 0."""
    with c.up() as d:
        for size in (60, 61, 512, 1514):
            d.send_packet(vu.frame(size, size))
            head, got = d.until(d.received, f"a packet of {size} bytes did not come into queue 0",
                                2)
            expect(got[14:] == vu.frame(size, size)[14:],
                   f"a packet of {size} bytes came back changed")
            expect(struct.unpack_from("<H", head, 10)[0] == 1,
                   f"num_buffers is {struct.unpack_from('<H', head, 10)[0]}, one was used")
            expect(not head[1], f"an offload that was not negotiated: gso_type {head[1]}")
