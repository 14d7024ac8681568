# SPDX-License-Identifier: BSD-3-Clause
"""The two sides that checks of a daemon play: the device VM's guest on its port, and the driver
VM on its vhost-user socket."""
import contextlib
import select
import socket
import struct
import time

import portclient as pc
import vu
from checklist import NotTested, expect

NET = 1
COPY = 3
HEADER = struct.Struct("<8sIIIIIIQQIIII32s")
FLAGS_NO_BASE, FLAGS_BROKEN = 2, 1


class Context:
    """@port, @driver, @qmp: paths; driver and qmp may be None."""

    def __init__(self, port, driver=None, qmp=None, attachment="auto"):
        self.port, self.driver = port, driver
        self.attachment = find_attachment(port) if attachment == "auto" else attachment
        self.vmm = pc.Qmp(qmp) if qmp else None
        with self.open() as p:
            s = p.state()
        self.fast = s.mode != COPY
        # Rings of the simpler format, where the daemon makes them.
        self.features = pc.ALL & ~vu.bit(vu.PACKED) | s.required

    def lacks(self, need):
        if need == "driver":
            if not self.driver:
                return "needs the driver VM's side of the link (--driver)"
            if self.attachment == "ivshmem" and not self.vmm and self.fast:
                return "a window of this link comes by hot-plug (--qmp)"
        if need in ("local", "ivshmem", "shmem") and self.attachment != need:
            return f"the port is attached by {self.attachment}, not {need}"
        return None

    def only_fast(self):
        """For rules about windows onto the driver VM's memory."""
        if not self.fast:
            raise NotTested("copy mode: the regions are the daemon's pool")

    def open(self):
        """A new life of the guest. The daemon may need a moment to see the end of the last one."""
        deadline = time.monotonic() + pc.limit(10)
        while True:
            try:
                p = {"local": pc.Local, "shmem": pc.Shmem,
                     "ivshmem": pc.Ivshmem}[self.attachment](self.port)
                if self.attachment == "ivshmem":
                    p.vmm = self.vmm
                return p
            except (AssertionError, OSError, pc.Gone, vu.Gone):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    @contextlib.contextmanager
    def attached(self):
        with self.open() as p:
            expect(p.attach(self.features) == pc.OK,
                   f"ATTACH with features {self.features:#x} was refused")
            yield p

    @contextlib.contextmanager
    def up(self, **kw):
        """(port, driver VM) of a link that is up."""
        with self.attached() as p, self.nic(**kw) as nic:
            p.wait(runs)
            yield p, nic

    def nic(self, **kw):
        """A driver VM. The daemon may need a moment to see the end of the last one."""
        deadline = time.monotonic() + pc.limit(10)
        while True:
            try:
                return vu.Nic(self.driver, **kw)
            except (OSError, vu.Gone):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def after(self, name, seconds):
        pass

    def close(self):
        if self.vmm:
            self.vmm.close()


def find_attachment(path):
    """By who speaks first, and what: an ivshmem server its version, the local attachment HELLO, a
    vhost-user back-end nobody."""
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(pc.limit(2))
        s.connect(path)
        if not select.select([s], [], [], pc.limit(1))[0]:
            return "shmem"
        return "ivshmem" if s.recv(48)[:8] == bytes(8) else "local"


def runs(s):
    """The link is up, and each queue has a run."""
    return s.up and s.queues and all(q.flags & pc.STARTED for q in s.queues)


def ready(s):
    return all(w[4] & 1 for w in s.windows if w[3])


def raw_state(p):
    return bytes(p.mem[pc.STATE:pc.STATE + 0x10000])


def quiet(p, seconds=0.2):
    """The generation, once nothing changes any more."""
    g, since = p.state().generation, time.monotonic()
    deadline = since + 5
    while time.monotonic() < since + seconds and time.monotonic() < deadline:
        p.idle()
        p.drain()
        if p.state().generation != g:
            g, since = p.state().generation, time.monotonic()
    return g


def take_signals(p):
    """Whether signal 0 was raised; takes it."""
    if isinstance(p, pc.Shmem):
        n = 0
        while p.rings[0].get() is not None:
            p.rings[0].add([(p.fe.mem.alloc(8, 8), 8, True)])
            n += 1
        return n > 0
    return pc.raised(p.signals[0], 0)


def forward(p, q, n, at):
    """Takes @n packets of queue @q from index @at, gives the buffers back, calls. Returns what
    was in them."""
    out, deadline = [], time.monotonic() + pc.limit(5)
    while len(out) < n:
        entry = p.state().queues[q]
        got = p.take(entry, at)
        if got is None:
            expect(time.monotonic() < deadline,
                   f"packet {len(out)} of {n} never became available in queue {q}")
            p.idle()
            continue
        bufs, head = got
        out.append(b"".join(bytes(p.view(a, size)) for a, size, _ in bufs))
        p.give_back(entry, at, head, 0)
        at += 1
    call(p, q)
    return out


def call(p, q):
    bell = p.state().queues[q].doorbell
    if isinstance(p, pc.Ivshmem):
        p.doorbell(bell or p.bell0 + 1 + q)
    else:
        pc.one(p.doorbells[bell])


def stop_asked(p, nic, q):
    """The driver VM's VMM stops queue @q; returns the state that asks the guest to."""
    nic.send(vu.GET_VRING_BASE, struct.pack("<II", q, 0), need_reply=False)
    return p.wait(lambda s: s.queues[q].flags & pc.STOP)


def stopped_at(nic):
    return struct.unpack("<II", nic.recv_reply(vu.GET_VRING_BASE))[1]


def valid(s, header_queues):
    """What the tables say of themselves."""
    expect(len(s.queues) <= s.max_queues <= header_queues,
           f"{len(s.queues)} queues, at most {s.max_queues} of {header_queues}")
    expect(len(s.config) <= 256 and len(s.windows) <= 509 and len(s.regions) <= 509,
           "a table is larger than the ABI's")
    end = 0
    for addr, size, off, win, _ in s.regions:
        expect(size > 0 and addr + size < 1 << 64 and addr >= end,
               f"region at {addr:#x} is empty, wraps, or is not in order")
        expect(win < len(s.windows) and s.windows[win][3],
               f"region at {addr:#x} lies in window {win}, which is not there")
        expect(off + size <= s.windows[win][0], f"region at {addr:#x} leaves its window")
        end = addr + size
    for i, (size, _, serial, kind, _) in enumerate(s.windows):
        expect(not kind or size and size % 4096 == 0 and serial,
               f"window {i}: size {size:#x}, serial {serial}")
    for i, q in enumerate(s.queues):
        expect(not q.flags & pc.STOP or q.flags & pc.STARTED, f"queue {i}: STOP without STARTED")
        expect(not q.flags & pc.STARTED or q.run, f"queue {i}: run 0")
