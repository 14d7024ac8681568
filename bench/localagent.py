# SPDX-License-Identifier: BSD-3-Clause
"""What vhost-pci-agent --vhost-user does in a device VM, for a port of attachment `local`: it joins a vhost-user back-end
to the driver VM's rings. Once it has, it is in no request's way."""
import os
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), "conformance"))

import portclient as pc  # noqa: E402
import vu  # noqa: E402

import harness  # noqa: E402

BLK, CONFIG, BACKEND = 2, 7, 8
CONFIG_BYTES = 60
PART = 104  # bytes of a config space in one command


class Agent:
    def __init__(self, port, backend):
        self.p, self.f = pc.Local(port), vu.Frontend(backend)
        self.offered = self.f.ask_u64(vu.GET_FEATURES)
        self.f.tell(vu.SET_OWNER)
        self.f.ask_u64(vu.GET_PROTOCOL_FEATURES)
        self.f.tell_u64(vu.SET_PROTOCOL_FEATURES, vu.bit(vu.PF_REPLY_ACK, vu.PF_CONFIG))
        self.f.reply_ack = True
        cfg = self.f.ask(vu.GET_CONFIG, struct.pack("<III", 0, CONFIG_BYTES, 0) + bytes(CONFIG_BYTES))[12:]
        self._ok(self.p.command(CONFIG, 0, len(cfg), *struct.unpack("<13Q", cfg.ljust(PART, b"\0"))))
        # No account of open requests: none has to survive.
        self._ok(self.p.command(BACKEND, self.offered, 0, BLK, 1, len(cfg)))
        self._ok(self.p.attach(self.offered, type=BLK))

    def _ok(self, status):
        if status != pc.OK:
            raise harness.BenchError("the port refuses the back-end: %d" % status)

    def up(self):
        """The driver is there: its memory, its ring, its notifiers go to the back-end."""
        s = self.p.wait(lambda s: s.up and s.queues and s.queues[0].flags & (pc.STARTED | pc.ENABLED) == pc.STARTED | pc.ENABLED)
        self.p.drain()
        self.f.tell_u64(vu.SET_FEATURES, s.features & self.offered | vu.bit(vu.PROTOCOL))
        table, fds = struct.pack("<II", len(s.regions), 0), []
        for addr, size, off, win, _ in s.regions:
            fd, start, _ = self.p.windows[s.windows[win][1]]
            table += struct.pack("<QQQQ", addr, size, addr, start + off)
            fds.append(fd)
        self.f.tell(vu.SET_MEM_TABLE, table, fds)
        e = s.queues[0]
        self.f.tell_state(vu.SET_VRING_NUM, 0, e.size)
        self.f.tell_state(vu.SET_VRING_BASE, 0, e.base)
        self.f.tell(vu.SET_VRING_ADDR, struct.pack("<IIQQQQ", 0, 0, e.desc, e.used, e.avail, 0))
        self.f.tell_u64(vu.SET_VRING_CALL, 0, [self.p.doorbells[e.doorbell]])
        self.f.tell_u64(vu.SET_VRING_KICK, 0, [self.p.signals[e.kick_signal]])
        self.f.tell_state(vu.SET_VRING_ENABLE, 0, 1)

    def end(self):
        self.f.close()
        self.p.close()
