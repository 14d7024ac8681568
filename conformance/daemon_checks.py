# SPDX-License-Identifier: BSD-3-Clause
"""What a daemon owes its guest: the rules D of docs/spec.md, sections 2 to 4."""
import os
import select
import struct
import time

import portclient as pc
import vu
from checklist import NotTested, expect, holds
from daemon_side import (HEADER, FLAGS_NO_BASE, FLAGS_BROKEN, runs, raw_state, quiet, take_signals,
                         forward,
                         stop_asked, stopped_at, valid)


# ---- section 2: the control block


@holds("D1", "D2")
def header(c):
    with c.open() as p:
        (magic, version, size, state_off, state_size, cmd_off, cmd_size, pool_off, pool_size,
         attachment, queues, signals, bell,
         name) = HEADER.unpack_from(p.mem)
        expect(magic == b"VHOSTPCI" and version == pc.ABI, f"magic {magic}, version {version:#x}")
        expect((size, state_off, state_size, cmd_off, cmd_size) == (0x80, 0x10000, 0x10000, 0x1000,
                                                                    0x1000),
               "offsets and sizes are not those of section 2")
        expect(pool_off == (0x200000 if pool_size else 0),
               f"a pool of {pool_size:#x} bytes at {pool_off:#x}")
        expect(attachment == {"ivshmem": 1, "shmem": 2, "local": 3}[c.attachment],
               f"attachment {attachment}")
        expect(1 <= queues <= 128 and signals >= 1 + queues, f"{queues} queues, {signals} signals")
        expect(bool(bell) == (c.attachment == "ivshmem"), f"doorbell {bell:#x}")
        name.rstrip(b"\0").decode()
        expect(not any(p.mem[0x60:0x80]), "reserved bytes of the header are not zero")
        expect(not any(p.mem[0x2000:0x10000]), "reserved pages are not zero")


# Neither generation nor regions_generation nor the answer.
SCRIBBLED = (4, 0x3c), (0x40, 0x100), (0x200, 0x10000)


@holds("D3")
def scribbling_guest(c):
    """Header and state are write-only for the daemon: it goes on by what it knows. Afterwards the
    guest puts back what it broke."""
    def do(p, *command):
        seq = max(struct.unpack_from("<I", p.mem, at)[0] for at in (pc.COMMAND,
                                                                    pc.STATE + 0x100)) + 1
        p.command_raw(seq, *command)
        deadline = time.monotonic() + pc.limit(5)
        while struct.unpack_from("<I", p.mem, pc.STATE + 0x100)[0] != seq:
            expect(time.monotonic() < deadline, "commands are not answered any more")
            p.idle()
        return struct.unpack_from("<I", p.mem, pc.STATE + 0x108)[0]

    with c.open() as p:
        p.command(pc.DETACH)
        head, state = bytes(p.mem[:0x80]), raw_state(p)
        for _ in range(10):
            p.mem[0x8:0x80] = b"\xff" * 0x78
            for a, b in SCRIBBLED:
                p.mem[pc.STATE + a:pc.STATE + b] = os.urandom(b - a)
            expect(do(p, pc.QUEUE_STOPPED, 0, 1) == pc.NOT_ATTACHED,
                   "the daemon believed what the guest wrote into the state")
            expect(do(p, pc.ATTACH, pc.ABI, pc.ALL) == pc.OK,
                   "the daemon believed what the guest wrote into header or state")
            expect(do(p, pc.DETACH) == pc.OK, "DETACH was refused")
        p.mem[:0x80] = head
        for a, b in SCRIBBLED:
            p.mem[pc.STATE + a:pc.STATE + b] = state[a:b]
        valid(p.state(), 128)


# ---- section 3: the state


@holds("D4")
def generation(c):
    """Everything that changes changes under the lock."""
    with c.open() as p:
        g, before = quiet(p), raw_state(p)
        expect(not g & 1, "odd without a writer")
        p.command(99)
        s = p.state()
        expect(s.generation != g, "the answer changed, generation did not")
        before, g = raw_state(p), s.generation
        p.attach(c.features)
        if raw_state(p)[8:] != before[8:]:
            expect(p.state().generation != g, "the state changed, generation did not")


@holds("D5")
def reserved_is_zero(c):
    with c.attached() as p:
        raw = raw_state(p)
        s = p.state()
        for a, b in ((0x84, 0x100), (0x140, 0x200), (0x400, 0x1000), (0x3000, 0x8000),
                     (0xbfa0, 0xc000), (0xffa0, 0x10000),
                     (0x200 + len(s.config), 0x300)):
            expect(not any(raw[a:b]), f"bytes {a:#x} to {b:#x} of the state are not zero")
        expect(not any(raw[0x10c:0x110]), "the reserved word of the answer is not zero")


@holds("D6")
def state_is_valid(c):
    with c.open() as p:
        queues, = struct.unpack_from("<I", p.mem, 0x34)
        valid(p.state(), queues)
        p.attach(c.features)
        valid(p.state(), queues)
        if c.driver and not c.lacks("driver"):
            with c.nic():
                valid(p.wait(runs), queues)


@holds("D7")
def reason_when_down(c):
    with c.open() as p:
        s = p.state()
        expect(not s.up and s.reason,
               f"link_status {s.status}, reason {s.reason} without a data path")
        p.attach(c.features)
        s = p.state()
        expect(s.up or s.reason not in (0, pc.NO_ATTACH),
               f"link_status {s.status}, reason {s.reason} once attached")
        if c.driver and not c.lacks("driver"):
            with c.nic():
                s = p.wait(runs)
                expect(s.status == 1 and s.reason == 0,
                       f"link_status {s.status}, reason {s.reason} when up")


@holds("D8", needs=("driver",))
def no_driver_no_features(c):
    with c.attached() as p:
        s = p.wait(lambda s: s.reason == pc.NO_DRIVER)
        expect(not s.features, f"features {s.features:#x} without a driver VM")
        expect(not s.regions and not any(q.flags & pc.STARTED for q in s.queues),
               "regions or runs without a driver VM")
        with c.nic():
            s = p.wait(runs)
            expect(s.features >> vu.VERSION_1 & 1,
                   f"features {s.features:#x} of a driver that negotiated VERSION_1")


@holds("D9", needs=("driver",))
def epoch_counts(c):
    with c.attached() as p:
        before = p.state().epoch
        for i in range(1, 3):
            with c.nic():
                s = p.wait(runs)
                expect(s.epoch == before + i,
                       f"link_epoch {s.epoch} after {before} and {i} driver VMs")
            p.wait(lambda s: not s.up)
            p.sync()


@holds("D10", "D11", needs=("driver",))
def runs_count(c):
    """A run's fields stay; its number grows at each start."""
    def fields(q):
        return q.desc, q.avail, q.used, q.size, q.base, q.run

    with c.up() as (p, nic):
        q = p.state().queues[1]
        nic.send_packet(vu.frame(0))
        forward(p, 1, 1, q.base)
        expect(fields(p.state().queues[1]) == fields(q), "fields of a run changed while it went on")
        stop_asked(p, nic, 1)
        expect(fields(p.state().queues[1]) == fields(q),
               "fields of a run changed when it was to stop")
        p.stopped(1, q.run, q.base + 1)
        expect(stopped_at(nic) == 1, "the VMM was told another index than the guest's")
        nic.start_ring(1, nic.rings[1], base=1)
        new = p.wait(runs).queues[1]
        expect(new.run == q.run + 1, f"run {new.run} after {q.run}")


@holds("D12", "D13", needs=("driver",))
def stop_waits_for_the_guest(c):
    """STOP stays until it is answered, and the VMM is answered after that."""
    with c.up() as (p, nic):
        s = stop_asked(p, nic, 1)
        run = s.queues[1].run
        expect(s.queues[1].flags & pc.STARTED, "STOP without STARTED")
        t = time.monotonic()
        while time.monotonic() < t + 0.2:
            q = p.state().queues[1]
            expect(q.flags & pc.STOP and q.run == run, "STOP was withdrawn while its run went on")
            p.idle()
        expect(not select.select([nic.sock], [], [], 0)[0],
               "the VMM was answered before the guest had stopped")
        expect(p.stopped(1, run, s.queues[1].base) == pc.OK, "QUEUE_STOPPED was refused")
        expect(not p.state().queues[1].flags & (pc.STOP | pc.STARTED),
               "STARTED or STOP after QUEUE_STOPPED")
        stopped_at(nic)


@holds("D14", "D15", needs=("driver",))
def broken_queue(c):
    """It stays broken until the driver VM starts it anew; the others go on."""
    with c.up() as (p, nic):
        s = p.state()
        expect(p.stopped(1, s.queues[1].run, 0, FLAGS_BROKEN) == pc.OK,
               "QUEUE_STOPPED with BROKEN was refused")
        time.sleep(0.1)
        now = p.state()
        expect(now.queues[1].flags & pc.BROKEN and not now.queues[1].flags & pc.STARTED,
               "not shown as BROKEN, or handed over again")
        expect(now.up and now.queues[0].flags & pc.STARTED and now.queues[0].run == s.queues[0].run,
               "another queue's run ended")
        nic.stop_ring(1)
        nic.start_ring(1, nic.rings[1], base=0)
        p.wait(lambda s: s.queues[1].flags & pc.STARTED and not s.queues[1].flags & pc.BROKEN)


# ---- section 4: commands


@holds("D16")
def same_seq_again(c):
    """A seq that was answered, and 0, are no commands."""
    with c.attached() as p:
        seq = p.state().answer[0]
        for s in (seq, 0):
            before = p.state()
            p.command_raw(s, pc.DETACH)
            time.sleep(0.1)
            p.drain()
            now = p.state()
            expect(now.attached and now.answer == before.answer,
                   f"seq {s} was taken for a new command")
        struct.pack_into("<I", p.mem, pc.COMMAND, seq)


@holds("D17", "D18")
def answer(c):
    """Sequence, opcode, status and nothing else; then signal 0."""
    with c.open() as p:
        p.command(pc.DETACH)
        quiet(p)
        take_signals(p)
        seq = p.state().answer[0] + 7
        p.command_raw(seq, 0x4711, 1, 2, 3)
        s = p.wait(lambda s: s.answer[0] == seq)
        expect(s.answer[1] == 0x4711, f"the answer names opcode {s.answer[1]:#x}")
        expect(s.answer[2] == pc.UNKNOWN, f"status {s.answer[2]} to an unknown opcode")
        expect(not any(raw_state(p)[0x110:0x140]), "values in an answer that has none")
        deadline = time.monotonic() + pc.limit(1)
        while not take_signals(p):
            expect(time.monotonic() < deadline, "signal 0 was not raised after the answer")
            p.idle()


@holds("D19")
def attach_version(c):
    with c.open() as p:
        expect(p.attach(abi=0x10000) == pc.VERSION, "a guest of another major version was accepted")
        expect(p.state().answer[4] == pc.ABI, "the answer does not say the daemon's version")
        expect(p.attach(abi=pc.ABI + 1) == pc.VERSION,
               "a guest of another minor version of major 0 was accepted")
        expect(not p.state().attached, "ATTACHED after a refusal")


@holds("D20")
def attach_type(c):
    with c.open() as p:
        mine = p.state().type
        expect(p.attach(type=mine + 1) == pc.DEVICE_TYPE and p.state().answer[4] == mine,
               "a data path of another type was accepted")
        expect(p.attach(type=0) == pc.OK, "a data path of any type was refused")
        expect(p.attach(type=mine) == pc.OK, "a data path of the link's type was refused")


@holds("D21")
def attach_features(c):
    with c.open() as p:
        need = p.state().required
        if not need:
            raise NotTested("the link requires no feature")
        lack = need & -need
        expect(p.attach(features=pc.ALL & ~lack) == pc.FEATURES,
               f"a data path without {lack:#x} was accepted, {need:#x} is required")
        expect(p.state().answer[4] == lack,
               f"{p.state().answer[4]:#x} is said to be missing instead of {lack:#x}")
        expect(not p.state().attached and p.state().reason == pc.BAD_FEATURES,
               "attached, or another reason than 6")
        expect(p.attach(features=need) == pc.OK,
               "a data path with all that is required was refused")
        expect(p.state().attached, "ATTACHED is not set")


@holds("D22", needs=("driver",))
def attach_again(c):
    """It is a DETACH, and an ATTACH: the new data path gets new runs."""
    with c.up() as (p, nic):
        before = [q.run for q in p.state().queues]
        expect(p.attach(c.features) == pc.OK, "refused")
        after = [q.run for q in p.wait(runs).queues]
        expect(all(b == a + 1 for a, b in zip(before, after)), f"runs {after} after {before}")


@holds("D23", needs=("driver",))
def detach_withdraws(c):
    with c.up() as (p, nic):
        nic.send_packet(vu.frame(1))
        expect(p.command(pc.DETACH) == pc.OK, "DETACH was refused")
        s = p.state()
        expect(not s.attached and not s.up and s.reason == pc.NO_ATTACH,
               f"attached {s.attached}, up {s.up}, reason {s.reason}")
        expect(not s.regions and not any(w[3] for w in s.windows),
               "regions or windows after the answer")
        expect(not any(q.flags & pc.STARTED for q in s.queues), "runs after the answer")


@holds("D24", "D58")
def commands_that_need_attach(c):
    with c.open() as p:
        p.command(pc.DETACH)
        expect(p.stopped(0, 1) == pc.NOT_ATTACHED, "QUEUE_STOPPED of a guest that is not attached")
        expect(p.command(pc.COUNTERS, 1, 64) == pc.NOT_ATTACHED, "COUNTERS of a guest that is not attached")


@holds("D25", needs=("driver",))
def queue_stopped_arguments(c):
    with c.up() as (p, nic):
        s = p.state()
        run, n = s.queues[1].run, len(s.queues)
        expect(p.stopped(1, run + 1, 0) == pc.STALE, "a run that is not there")
        expect(p.stopped(n, run, 0) == pc.INVALID, "a queue that is not there")
        expect(p.stopped(1, run, 0x10000) == pc.INVALID,
               "an index of more than 16 bits for a split ring")
        expect(p.stopped(1, run, 0, 1 << 40) == pc.INVALID, "a flag that is not there")
        s = p.state()
        expect(s.queues[1].flags & pc.STARTED and s.queues[1].run == run,
               "a refused command ended the run")
        expect(p.stopped(1, run, 0) == pc.OK and p.stopped(1, run, 0) == pc.STALE,
               "the second QUEUE_STOPPED of a run")


@holds("D26", needs=("driver",))
def no_base(c):
    c.only_fast()  # in copy mode the daemon knows by itself
    with c.up() as (p, nic):
        for i in range(5):
            nic.send_packet(vu.frame(i))
        forward(p, 1, 3, p.state().queues[1].base)
        s = stop_asked(p, nic, 1)
        p.stopped(1, s.queues[1].run, 0, FLAGS_NO_BASE)
        at = stopped_at(nic)
        expect(at == 3, f"the queue goes on at {at}; 3 entries had been used")


@holds("D27", needs=("driver",))
def given_up_queue_goes_on(c):
    with c.up() as (p, nic):
        s = p.state()
        nic.send_packet(vu.frame(0))
        forward(p, 1, 1, s.queues[1].base)
        expect(p.stopped(1, s.queues[1].run, s.queues[1].base + 1) == pc.OK,
               "QUEUE_STOPPED without STOP was refused")
        time.sleep(0.1)
        expect(not p.state().queues[1].flags & pc.STARTED,
               "the queue was handed to the data path that had given it up")
        expect(p.attach(c.features) == pc.OK, "ATTACH was refused")
        base = p.wait(runs).queues[1].base
        expect(not c.fast or base == s.queues[1].base + 1, f"the next data path starts at {base}")


@holds("D28")
def sync_of_the_future(c):
    with c.attached() as p:
        g = p.state().regions_generation
        expect(p.command(pc.SYNC, g + 1 & 0xffffffff) == pc.INVALID,
               "SYNC of a generation that is to come")
        expect(p.command(pc.SYNC, g) == pc.OK, "SYNC of the present generation was refused")
