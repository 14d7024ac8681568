# SPDX-License-Identifier: BSD-3-Clause
"""One VM plays a trick; what other VMs and the administrator ask of the daemon meanwhile keeps its time limits.

A trick is a row of TRICKS: a generator that runs in a process of its own, as the hostile VMM(s) of link x (and x1, x2 ... where it
wants more). What comes before its first yield sets it up, each further step plays it once more; when the daemon
has cut it off it begins anew. The neighbours are honest:

packet   from VM c to VM d and back, on link cd
stop     GET_VRING_BASE of a running ring of VM c, which then starts again
memory   SET_MEM_TABLE, ADD_MEM_REG and REM_MEM_REG of VM e
start    a front-end of VM g connects, sets up its device and leaves
control  daemon.show and link.show

What the scheduler took from the daemon or from this process is not counted: a hostile VM that uses a whole core is not the daemon's doing.
"""
import contextlib
import mmap
import os
import signal
import socket
import struct
import time
import traceback

import pytest

import conftest
import portclient as pc
import viommu
import vu
from clock import Clock
from test_hostile_qmp import SLOW, Server, listing

# Seconds: nine of ten, and each.
LIMITS = {"packet": (0.02, 0.25), "stop": (0.05, 0.25), "memory": (0.05, 0.25), "start": (0.25, 0.5), "control": (0.05, 0.1)}
BLOCKED = dict(LIMITS, packet=(0.02, 1.3), stop=(0.05, 1.3), memory=(0.05, 1.3), start=(0.25, 1.5), control=(0.05, 1.3))  # threat model, 5
PLAY, PATIENCE = 2.0, 15.0  # seconds of measuring; and at most, when the neighbours are slow
LOG_LINES = 1000   # that all tricks of a row may have written, the honest neighbours' included
PF = vu.bit(vu.PF_REPLY_ACK, vu.PF_CONFIG, vu.PF_MEM_SLOTS, vu.PF_STATUS, vu.PF_BACKEND_REQ, vu.PF_RESET_DEVICE, vu.PF_LOG_SHMFD)
QUIET = PF & ~vu.bit(vu.PF_REPLY_ACK)
HOSTILE = (vu.Gone, vu.Refused, pc.Gone, OSError, AssertionError)  # what a trick may meet: it was found out


def message(request, payload=b"", flags=1):
    return struct.pack("<III", request, flags, len(payload)) + payload


def u64(v):
    return struct.pack("<Q", v)


class Links:
    """Where the hostile VM is: its sockets by link name."""

    def __init__(self, d):
        self.d = d

    def driver(self, link="x"):
        return self.d.sock(link, "driver")

    def device(self, link="x"):
        return self.d.sock(link, "device")


PORT = {"Device_Endpoint": "port", "Link_Mode": "copy", "Device_PoolSize": "64M"}
SHAPES = {
    "relay": {},
    "fast-local": dict(PORT, Device_Attachment="local", Link_Mode="fast", Device_PoolSize=None),
    "copy-local": dict(PORT, Device_Attachment="local"),
    "copy-shmem": dict(PORT, Device_Attachment="shmem", Device_ApertureSize="8G"),
    "fast-shmem": dict(PORT, Device_Attachment="shmem", Device_ApertureSize="8G", Link_Mode="fast", Device_PoolSize=None),
    "copy-ivshmem": dict(PORT, Device_Attachment="ivshmem"),
    "fast-ivshmem": dict(PORT, Device_Attachment="ivshmem", Link_Mode="fast", Device_PoolSize=None),
}
MODES = ["relay", "fast-local", "copy-local"]
PORTS = {"local": ["fast-local", "copy-local"], "shmem": ["fast-shmem", "copy-shmem"], "ivshmem": ["fast-ivshmem", "copy-ivshmem"]}


def port_of(r, shape):
    return {"local": pc.Local, "shmem": pc.Shmem, "ivshmem": pc.Ivshmem}[shape.split("-")[1]](r.device())


# ---- the tricks ----------------------------------------------------------------------------------------------------

def keep_channels(fe):
    kept = []
    while True:
        a, b = socket.socketpair()
        fe.tell(vu.SET_BACKEND_REQ_FD, b"", [b.fileno()])
        with contextlib.suppress(OSError):
            a.sendall(bytes(64))  # not vhost-user: the daemon closes its copy of b, ours stays
        kept = kept[-100:] + [(a, b)]
        fe.ask_u64(vu.GET_FEATURES)
        for c, _ in kept:
            with contextlib.suppress(OSError):
                c.send(b"\0", socket.MSG_DONTWAIT)
        yield


def request_channel_kept_open(r, shape):
    with vu.Frontend(r.driver()) as f:
        f.negotiate(vu.BASIC, PF)
        yield from keep_channels(f)


def port_channel_kept_open(r, shape):
    with pc.Shmem(r.device()) as p:
        yield from keep_channels(p.fe)


def port_kick_replaced(r, shape):
    old = []
    with pc.Shmem(r.device()) as p:
        assert p.attach() == pc.OK
        while True:
            old = old[-50:] + [p.doorbells[0]]
            p.doorbells[0] = vu.eventfd()
            p.fe.tell_u64(vu.SET_VRING_KICK, 0, [p.doorbells[0]])
            for fd in old:
                pc.one(fd)
            try:
                p.command(pc.SYNC, 0)
            except AssertionError as err:  # its right: the trick ends, and the test with it
                raise RuntimeError("commands by the new kick fd are not answered") from err
            yield


def kick_and_call_replaced(r, shape):
    old = []
    with vu.Nic(r.driver()) as nic:
        while True:
            for q, ring in enumerate(nic.rings.values()):
                for req in (vu.SET_VRING_KICK, vu.SET_VRING_CALL):
                    old = old[-50:] + [vu.eventfd()]
                    nic.tell_u64(req, q, [old[-1]])
            for fd in old:
                pc.one(fd)
            yield


def iotlb_invalidated_inside(r, shape):
    with vu.Frontend(r.driver()) as f:
        f.negotiate(vu.BASIC | vu.bit(viommu.ACCESS_PLATFORM), PF)
        mem = vu.Memory(16 << 20)
        f.set_memory(mem)
        while True:
            # As many entries as there is room for, with room between them; then a hole in each.
            for kind, off, size in ((viommu.UPDATE, 0, 0x3000), (viommu.INVALIDATE, 0x1000, 0x1000)):
                for i in range(0, 65536, 16):
                    f.raw(b"".join(message(vu.IOTLB_MSG, struct.pack("<QQQBB6x", (1 << 40) + (i + k) * 0x10000 + off, size, mem.uva, 3, kind))
                                   for k in range(16)))
                    f.recv_exact(20 * 16)
                    if kind == viommu.INVALIDATE and i % 1024 == 0:
                        yield


def refill(nic, queues):
    """All of these rings full of what their descriptors say, again."""
    for q in queues:
        ring = nic.rings[q]
        nic.mem.w("H", ring.avail + 2, (nic.mem.r("H", ring.used + 2) + ring.size) & 0xffff)
        nic.kick(q)


def fill_with_tables(nic, queues, entries=32768):
    table = nic.mem.alloc(16 * entries, 4096)
    nic.mem.map[table:table + 16 * entries] = b"".join(struct.pack("<QIHH", nic.mem.gpa + 4096, 0, vu.DESC_NEXT if i < entries - 1 else 0,
                                                                   i + 1 & 0xffff) for i in range(entries))
    for q in queues:
        ring = nic.rings[q]
        for i in range(ring.size):
            ring.raw_desc(i, nic.mem.gpa + table, 16 * entries, vu.DESC_INDIRECT, 0)
            nic.mem.w("H", ring.avail + 4 + 2 * i, i)


def empty_tables(r, shape):
    """32 tables of 32,768 empty entries, on 64 queue pairs."""
    with vu.Nic(r.driver(), pairs=64, size=32, mem=vu.Memory(64 << 20), fill=False) as nic:
        tx = range(1, 128, 2)
        fill_with_tables(nic, tx)
        while True:
            refill(nic, tx)
            yield


def many_pairs_leave(r, shape):
    """A front-end with 64 pairs comes and goes beside four queues of empty tables."""
    with vu.Nic(r.driver(), pairs=4, size=32, mem=vu.Memory(16 << 20), fill=False) as nic:
        fill_with_tables(nic, range(1, 8, 2))
        while True:
            refill(nic, range(1, 8, 2))
            with vu.Nic(r.driver("x1"), pairs=64, size=32, mem=vu.Memory(64 << 20), fill=False):
                refill(nic, range(1, 8, 2))
            yield


def segments_of_one_byte(r, shape):
    """TSO packets with an mss of 1 that become 32,000, for a receiver that takes no large ones and has as many buffers."""
    gso = vu.BASIC | vu.bit(vu.NET_CSUM, vu.NET_HOST_TSO4, vu.NET_MRG_RXBUF)
    head = bytes([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]) + struct.pack(">BBHHHBBH4s4s", 0x45, 0, 32040, 1, 0, 64, 6, 0, b"\n\0\0\1", b"\n\0\0\2")
    head += struct.pack(">HHIIBBHHH", 1, 2, 3, 4, 0x50, 0x10, 1000, 0, 0)
    hdr = struct.pack("<BBHHHHH", 1, 1, len(head), 1, 34, 16, 0)
    with vu.Nic(r.driver(), gso, size=256, fill=False) as nic, vu.Nic(r.device(), vu.BASIC | vu.bit(vu.NET_MRG_RXBUF), size=32768, fill=False) as far:
        rx, tx = far.rings[0], nic.rings[1]
        buf = far.mem.alloc(2048)
        for i in range(rx.size):
            rx.raw_desc(i, far.mem.gpa + buf, 2048, vu.DESC_WRITE, 0)
        far.mem.map[rx.avail + 4:rx.avail + 4 + 2 * rx.size] = b"".join(struct.pack("<H", i) for i in range(rx.size))
        buf = nic.mem.alloc(66000)
        packet = hdr + head + bytes(32000)
        nic.mem.map[buf:buf + len(packet)] = packet
        for i in range(tx.size):
            tx.raw_desc(i, nic.mem.gpa + buf, len(packet), 0, 0)
            nic.mem.w("H", tx.avail + 4 + 2 * i, i)
        while True:
            far.mem.w("H", rx.avail + 2, (far.mem.r("H", rx.used + 2) + rx.size - 1) & 0xffff)
            far.kick(0)
            refill(nic, [1])
            yield


def giant_answers(r, shape):
    """A QMP server that has 60,000 devices, or as many as a line may hold, and hangs up."""
    path = str(r.d.tmp / "qmp")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    servers = [listing(60000), listing(21000)]
    server = Server(path, lambda m, n: servers[n % 2](m, n))
    serve = server.serve

    def briefly(conn):
        conn.settimeout(0.3)
        serve(conn)

    server.serve = briefly
    while True:
        time.sleep(0.05)
        if server.n:
            yield


def notifiers_that_are_none(r, shape):
    """A kick fd that is no eventfd: the ring does not start, again and again."""
    with vu.Frontend(r.driver()) as f, os.fdopen(os.memfd_create("no eventfd"), "rb") as null:
        f.negotiate(vu.BASIC, QUIET)
        mem = vu.Memory(4 << 20)
        f.set_memory(mem)
        ring = vu.SplitRing(mem, 64)
        f.tell_state(vu.SET_VRING_NUM, 1, 64)
        f.tell(vu.SET_VRING_ADDR, f.addr_msg(1, ring))
        while True:
            for _ in range(64):
                f.raw(message(vu.SET_VRING_KICK, u64(1)), [null.fileno()])
                f.raw(message(vu.GET_VRING_BASE, struct.pack("<II", 1, 0)))
            f.recv_exact(64 * 20)
            yield


def refused_misses(r, shape):
    """Pages that its vIOMMU does not map, after all: every answer is a refusal, and every queue starts again."""
    with viommu.Nic(r.driver(), fill=False) as nic:
        nic.perm = {p: 0 for p in range(2048, 4096)}
        while True:
            for page in range(2048, 2048 + 40):
                nic.rings[1].raw_desc(0, viommu.IOVA + page * viommu.PAGE, 100, 0, 0)
                nic.rings[1].expose(0)
                nic.kick(1)
                nic.serve(0.002)
                nic.tell_state(vu.SET_VRING_ENABLE, 1, 0)
                nic.rings[1].avail_idx = nic.stop_ring(1) & 0xffff
                nic.tell_state(vu.SET_VRING_BASE, 1, nic.rings[1].avail_idx)
                nic.tell_u64(vu.SET_VRING_KICK, 1, [nic.rings[1].kick_fd])
                nic.tell_state(vu.SET_VRING_ENABLE, 1, 1)
                nic.serve()
            yield


def sparse_regions(r, shape):
    """Regions of a sparse file that take every address there is: 45 of them 128 TiB, then smaller ones."""
    size = (1 << 47) // 45 & ~((1 << 21) - 1)
    fd = os.memfd_create("sparse", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    with vu.Frontend(r.driver()) as f:
        f.negotiate(vu.BASIC, PF)
        at, n = 1 << 40, 0
        while size >= 1 << 20 and n < 500:
            try:
                f.tell(vu.ADD_MEM_REG, struct.pack("<QQQQQ", 0, at, size, at, 0), [fd])
                at, n = at + size, n + 1
            except vu.Refused:
                size = size // 2 & ~4095
        while True:
            time.sleep(0.01)
            yield


def all_mappings(r, shape):
    """Nine VMMs that register as many regions as they may."""
    fd = os.memfd_create("small", os.MFD_CLOEXEC)
    os.ftruncate(fd, 4096)
    with contextlib.ExitStack() as stack:
        for name in ["x"] + ["x%d" % i for i in range(1, 9)]:
            f = stack.enter_context(vu.Frontend(r.driver(name)))
            f.negotiate(vu.BASIC, PF)
            with contextlib.suppress(vu.Refused):
                for i in range(509):
                    f.tell(vu.ADD_MEM_REG, struct.pack("<QQQQQ", 0, (2 * i + 2) << 20, 4096, (2 * i + 2) << 20, 0), [fd])
        while True:
            time.sleep(0.01)
            yield


def block(fd):
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        os.write(fd, u64((1 << 64) - 2))
    os.set_blocking(fd, True)  # the flag is shared with the daemon's duplicate


def blocking_call_fds(r, shape):
    with vu.Nic(r.driver(), fill=False) as nic, contextlib.ExitStack() as stack:
        if shape == "relay":
            stack.enter_context(vu.Nic(r.device()))
        elif shape == "copy-local":
            stack.enter_context(port_of(r, shape)).attach()
        while True:
            block(nic.rings[1].call_fd)
            nic.send_packet(vu.frame(1))
            time.sleep(0.05)
            nic.tell_state(vu.SET_VRING_ENABLE, 1, 0)
            nic.stop_ring(1)
            nic.tx_free = nic.tx_free or [4096]
            nic.rings[1].reset()
            nic.start_ring(1, nic.rings[1])
            yield


def call_fd_of_the_driver_vm(r, shape):
    """The device VM of a fast link makes what it was given block: a call eventfd of VM c, which is honest."""
    with vu.Nic(r.driver()) as nic:
        while True:
            with pc.Local(r.device()) as p:
                bell = os.dup(p.doorbells[1])  # the daemon's own, which it passes on
                p.attach()
                p.wait(lambda s: s.up)
                end = time.monotonic() + 0.3
                while time.monotonic() < end:
                    p.idle()  # doorbell 1 becomes the driver VM's eventfd
                block(p.doorbells[1])
                pc.one(bell)
                time.sleep(1.2)
                os.set_blocking(p.doorbells[1], False)
                os.close(bell)
                yield
            nic.alive()


def reconnect_storm(r, shape):
    while True:
        for i in range(20):
            with vu.Frontend(r.driver()) as f:
                f.raw(message(vu.GET_FEATURES)[:12 - i % 3])
        yield


def port_reconnect_storm(r, shape):
    while True:
        for i in range(20):
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(r.device())
                if i % 2:
                    s.settimeout(0.01)
                    with contextlib.suppress(TimeoutError):
                        s.recv(100)
        yield


def half_messages(r, shape):
    with vu.Frontend(r.driver()) as f:
        f.negotiate(vu.BASIC, PF)
        text = message(vu.SET_VRING_NUM, struct.pack("<II", 0, 64)) * 50 + message(vu.SET_CONFIG, bytes(100))
        while True:
            for b in text[:-50]:
                f.raw(bytes([b]))
            f.raw(text[-50:-20])
            time.sleep(0.01)
            f.raw(text[-20:])
            yield


def answers_not_read(r, shape):
    with vu.Frontend(r.driver()) as f:
        f.sock.settimeout(0.2)
        while True:
            f.raw(message(vu.GET_FEATURES) * 200)
            yield


def surplus_fds(r, shape):
    with vu.Frontend(r.driver()) as f, open("/dev/null", "rb") as null:
        f.negotiate(vu.BASIC, QUIET)
        while True:
            for n in range(1, 9):
                f.raw(message(vu.SET_VRING_CALL, u64(0)), [null.fileno()] * n)
            f.raw(message(vu.SET_MEM_TABLE, struct.pack("<II", 8, 0) + bytes(256)), [null.fileno()] * 200)
            f.ask_u64(vu.GET_FEATURES)
            yield


def broken_rings(r, shape):
    with vu.Nic(r.driver(), fill=False) as nic:
        while True:
            for _ in range(20):
                nic.rings[1].raw_desc(0, 0xdead0000, 100, 0, 0)
                nic.rings[1].expose(0)
                nic.kick(1)
                nic.stop_ring(1)
                nic.rings[1].reset()
                nic.tell_state(vu.SET_VRING_BASE, 1, 0)
                nic.tell_u64(vu.SET_VRING_KICK, 1, [nic.rings[1].kick_fd])
            yield


def file_truncated(r, shape):
    with vu.Nic(r.driver(), mem=vu.Memory(16 << 20, seal=False), fill=False) as nic:
        while True:
            nic.send_packet(vu.frame(1))
            os.ftruncate(nic.mem.fd, 0)
            for _ in range(20):
                nic.kick(0)
                nic.kick(1)
            os.ftruncate(nic.mem.fd, nic.mem.size)
            nic.alive()
            yield
            raise vu.Gone()


def tables_replaced(r, shape):
    """Memory tables and eight regions, as fast as they are answered, under running rings."""
    with vu.Nic(r.driver()) as nic:
        more = vu.Memory(4 << 20)
        while True:
            for i in range(7):
                nic.tell(vu.ADD_MEM_REG, struct.pack("<QQQQQ", 0, (i + 1) << 40, more.size, (i + 1) << 40, 0), [more.fd])
            nic.kick(1)
            nic.tell(vu.SET_MEM_TABLE, struct.pack("<II", 1, 0) + nic.region(nic.mem), [nic.mem.fd])
            yield


def port_commands(r, shape):
    with port_of(r, shape) as p:
        seq = 1
        while True:
            for opcode in (pc.ATTACH, pc.SYNC, pc.DETACH, pc.QUEUE_STOPPED, 99):
                for _ in range(50):
                    seq += 1
                    p.command_raw(seq, opcode, 1, pc.ALL, 0, 1)
            if isinstance(p, pc.Shmem):
                while select_now(p.back):
                    p.serve()
            else:
                with contextlib.suppress(BlockingIOError):
                    p.sock.send(b"unasked", socket.MSG_DONTWAIT)
                p.drain()
            yield


def select_now(s):
    import select
    return bool(select.select([s], [], [], 0)[0])


ONE, PAIRS = {}, {"Link_Queues": 64}
ALL_PORTS = [s for shapes in PORTS.values() for s in shapes]
# trick, the shapes of link x, further keys of its, number of links (x, x1 ...), limits, VM of its driver side
TRICKS = [
    (request_channel_kept_open, MODES, ONE, 1, LIMITS),
    (port_channel_kept_open, PORTS["shmem"], ONE, 1, LIMITS),
    (port_kick_replaced, PORTS["shmem"], ONE, 1, LIMITS),
    (kick_and_call_replaced, MODES, ONE, 1, LIMITS),
    (iotlb_invalidated_inside, ["relay", "copy-local"], ONE, 1, LIMITS),
    (empty_tables, ["relay", "copy-local"], PAIRS, 1, LIMITS),
    (many_pairs_leave, ["relay", "copy-local"], PAIRS, 2, LIMITS),
    (segments_of_one_byte, ["relay"], ONE, 1, LIMITS),
    (giant_answers, PORTS["ivshmem"], {"Device_QMP": True, "Device_HotplugBus": "rp0 rp1"}, 1, LIMITS),
    (notifiers_that_are_none, MODES, ONE, 1, LIMITS),
    (refused_misses, ["relay", "copy-local"], ONE, 1, LIMITS),
    (sparse_regions, MODES, ONE, 1, LIMITS),
    (all_mappings, ["relay"], ONE, 9, LIMITS),
    (blocking_call_fds, MODES, ONE, 1, BLOCKED),
    (call_fd_of_the_driver_vm, ["fast-local"], {"Driver_VM": "c"}, 1, BLOCKED),
    (reconnect_storm, MODES, ONE, 1, LIMITS),
    (port_reconnect_storm, ALL_PORTS, ONE, 1, LIMITS),
    (half_messages, MODES, ONE, 1, LIMITS),
    (answers_not_read, MODES, ONE, 1, LIMITS),
    (surplus_fds, MODES, ONE, 1, LIMITS),
    (broken_rings, MODES, ONE, 1, LIMITS),
    (file_truncated, MODES, ONE, 1, LIMITS),
    (tables_replaced, MODES, ONE, 1, LIMITS),
    (port_commands, ALL_PORTS, ONE, 1, LIMITS),
]


# ---- playing it ------------------------------------------------------------------------------------------------------

class Player:
    """The trick, in a process of its own."""

    def __init__(self, trick, links, shape):
        self.count = mmap.mmap(-1, 16)
        self.why = open(links.d.tmp / "trick", "w+")
        self.pid = os.fork()
        if self.pid:
            return
        pc.SLOW = 1  # it tries again
        os.nice(5)  # a VM has CPUs of its own; here it must not have the neighbours'
        try:
            self.run(trick, links, shape)
        except BaseException:
            traceback.print_exc(file=self.why)
            self.why.flush()
        os._exit(1)

    def run(self, trick, links, shape):
        while True:
            with contextlib.suppress(*HOSTILE):
                for _ in trick(links, shape):
                    self.more(0)
            self.more(8)
            time.sleep(0.002)

    def more(self, at):
        struct.pack_into("<Q", self.count, at, struct.unpack_from("<Q", self.count, at)[0] + 1)

    def played(self):
        return sum(struct.unpack_from("<QQ", self.count))  # also where it was cut off

    def ended(self):
        return self.pid is None or os.waitpid(self.pid, os.WNOHANG)[0] != 0

    def stop(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.why.close()


class Neighbours:
    def __init__(self, d):
        self.d, self.took = d, {k: [] for k in LIMITS}
        self.stack = contextlib.ExitStack()
        self.c = self.stack.enter_context(vu.Nic(d.sock("cd", "driver")))
        self.dd = self.stack.enter_context(vu.Nic(d.sock("cd", "device")))
        self.e = self.stack.enter_context(vu.Frontend(d.sock("ef", "driver")))
        self.e.negotiate(vu.BASIC, PF)
        self.e.set_memory(vu.Memory())
        self.more = vu.Memory(4 << 20)
        self.n = 0
        self.clock = Clock(d)

    def timed(self, what):
        return self.clock.timed(self.took[what], {"packet": "data", "stop": "either"}.get(what, "main"))

    def packet(self):
        for a, b in ((self.c, self.dd), (self.dd, self.c)):
            self.n += 1
            with self.timed("packet"):
                a.send_packet(vu.frame(self.n))
                got = b.recv_packet()
            assert got is not None and got[1] == vu.frame(self.n), "the neighbour's packet was lost"

    def stop(self):
        with self.timed("stop"):
            base = self.c.stop_ring(1)
        self.c.tell_state(vu.SET_VRING_BASE, 1, base)
        self.c.tell_u64(vu.SET_VRING_KICK, 1, [self.c.rings[1].kick_fd])

    def memory(self):
        with self.timed("memory"):
            self.e.tell(vu.SET_MEM_TABLE, struct.pack("<II", 1, 0) + self.e.region(self.e.mem), [self.e.mem.fd])
            region = struct.pack("<QQQQQ", 0, 1 << 40, self.more.size, 1 << 40, 0)
            self.e.tell(vu.ADD_MEM_REG, region, [self.more.fd])
            self.e.tell(vu.REM_MEM_REG, region)

    def start(self):
        with self.timed("start"), vu.Nic(self.d.sock("gh", "driver"), size=64):
            pass

    def control(self):
        with self.timed("control"):
            self.d.call("daemon.show")
            self.d.show("x")

    def round(self):
        for _ in range(5):
            self.packet()
            self.control()
        self.stop()
        self.memory()
        self.start()

    def report(self):
        out = {}
        for what, took in self.took.items():
            took.sort()
            out[what] = took[len(took) * 9 // 10], took[-1]
        return out

    def close(self):
        self.stack.close()
        self.more.close()


def write_links(d, shape, keys, n):
    for vm in "cdefghxy":
        d.write(f"{vm}.vm", "[VM]\nTrustGroup=%s\n" % ("hostile" if vm in "xy" else "test"))
    keys = {k: v for k, v in dict(SHAPES[shape], **keys).items() if v is not None}
    if keys.get("Device_QMP"):
        keys["Device_QMP"] = str(d.tmp / "qmp")
    driver = keys.pop("Driver_VM", "x")
    for i in range(n):
        name = "x%d" % i if i else "x"
        d.link(name, driver="x" if i == 0 and driver == "x" else driver if i == 0 else name, device="f" if driver == "c" else "y", **keys)
        if i:
            d.write(f"{name}.vm", "[VM]\nTrustGroup=hostile\n")
    for pair in ("cd", "ef", "gh"):
        d.link(pair, driver=pair[0], device=pair[1])


@pytest.mark.parametrize("trick, shape, keys, n, limits", [pytest.param(t, s, k, n, l, id=f"{t.__name__}-{s}")
                                                           for t, shapes, k, n, l in TRICKS for s in shapes])
def test_neighbours_keep_their_limits(make_daemon, trick, shape, keys, n, limits):
    d = make_daemon("--log-level", "info", "--threads", "1")
    write_links(d, shape, keys, n)
    d.start()
    before = d.fds()
    hood = Neighbours(d)
    hood.round()
    player = Player(trick, Links(d), shape)
    try:
        d.wait(lambda: player.played() > 1 or player.ended() or not d.alive())
        assert d.alive(), d.log()[-3000:]
        for took in hood.took.values():
            took.clear()
        end = time.monotonic() + PLAY
        while time.monotonic() < end or len(hood.took["start"]) < 3 and time.monotonic() < end + PATIENCE:
            hood.round()
            assert d.alive(), d.log()[-3000:]
        assert not player.ended(), "the trick ended: " + open(d.tmp / "trick").read()
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            player.stop()
    got = hood.report()
    lines = d.log().count("\n")
    print(f"\n{trick.__name__}-{shape}: played {player.played()}, {lines} lines; " +
          ", ".join(f"{k} {a * 1000:.1f} {b * 1000:.1f}" for k, (a, b) in got.items()))
    late = {k: got[k] for k, (most, each) in limits.items() if got[k][0] > most * SLOW or got[k][1] > each * SLOW}
    assert not late, f"in seconds, nine of ten and the last: {late}"
    assert lines <= LOG_LINES, d.log()[-2000:]
    hood.round()
    hood.close()
    d.wait(lambda: d.fds() <= before)


def test_every_trick_has_a_row():
    rows = {row[0] for row in TRICKS}
    import inspect
    here = [f for _, f in inspect.getmembers(__import__(__name__), inspect.isgeneratorfunction) if list(inspect.signature(f).parameters) == ["r", "shape"]]
    assert set(here) == rows
