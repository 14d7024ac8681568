# SPDX-License-Identifier: BSD-3-Clause
"""A device VM without a guest: QEMU 11.1 with a vhost-pci port, whose driver is played over QEMU's qtest protocol. No processor is emulated,
so that what is measured is the VMM's part: windows that come and go in its address space."""
import os
import socket
import struct
import subprocess
import sys
import time

TOP = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
sys.path[:0] = [os.path.join(TOP, d) for d in ("scripts/vm", "conformance")]

import portclient as pc  # noqa: E402
import vu  # noqa: E402

import harness  # noqa: E402

SLOT = 4
RAM_MB = 64
BARS_AT = 1 << 40      # addresses for the device's BARs
RINGS_AT = 1 << 20     # in the guest's RAM: 16 KiB for each queue
ENTRIES = 64
COMMON, NOTIFY, SHARED = 1, 2, 8


def binary():
    """QEMU 11.1 as (argv, environment), or BenchError. Nothing is fetched."""
    import machine
    try:
        q = machine.qemu("11", make=False)
    except machine.Unavailable as e:
        raise harness.BenchError(str(e))
    return q.cmd + q.data, dict(os.environ, **q.env), q.label


class Device:
    """The port at the socket @port of a daemon. state() is what its guest reads, command() what it sends."""

    def __init__(self, opt, port, nqueues, cpu=None):
        argv, env, self.label = binary()
        path = os.path.join(opt.workdir, "qtest")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(1)
        listener.settimeout(30)
        self.log = open(os.path.join(opt.workdir, "qemu.log"), "wb")
        self.p = harness.spawn(argv + [
            "-M", "q35,memory-backend=mem", "-accel", "qtest", "-m", "%d" % RAM_MB, "-nodefaults", "-no-user-config", "-display", "none",
            "-object", "memory-backend-memfd,id=mem,size=%dM,share=on" % RAM_MB, "-qtest", "unix:" + path, "-qtest-log", "none",
            "-chardev", "socket,id=c,path=" + port,
            "-device", "vhost-user-test-device-pci,id=port,chardev=c,virtio-id=22,num_vqs=%d,config_size=16,addr=%#x" % (nqueues, SLOT)],
            cpu=cpu, env=env, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        try:
            self.sock = listener.accept()[0]
        except TimeoutError:
            self.end()
            raise harness.BenchError("%s does not start; see %s" % (self.label, self.log.name))
        self.sock.settimeout(30)
        self.buf, self.seq, self.caps = b"", 0, {}
        self._bars()
        self._start(nqueues)

    # -- qtest

    def ask(self, text):
        self.sock.sendall(text.encode() + b"\n")
        while True:
            line, end, rest = self.buf.partition(b"\n")
            if end:
                self.buf = rest
                if line.startswith(b"OK"):
                    return line.split()[1:]
                if not line.startswith(b"IRQ"):
                    raise harness.BenchError("qtest: %s: %s" % (text[:80], line.decode()))
                continue
            more = self.sock.recv(1 << 20)
            if not more:
                raise harness.BenchError("%s ended; see %s" % (self.label, self.log.name))
            self.buf += more

    def read(self, at, size):
        return bytes.fromhex(self.ask("read %#x %#x" % (at, size))[0].decode()[2:])

    def write(self, at, data):
        self.ask("write %#x %#x 0x%s" % (at, len(data), data.hex()))

    def get(self, kind, at):
        """kind: b, w, l or q."""
        return int(self.ask("read%s %#x" % (kind, at))[0], 16)

    def set(self, kind, at, value):
        self.ask("write%s %#x %#x" % (kind, at, value))

    # -- PCI

    def _config(self, reg, value=None):
        self.ask("outl 0xcf8 %#x" % (1 << 31 | SLOT << 11 | reg))
        if value is None:
            return int(self.ask("inl 0xcfc")[0], 16)
        self.ask("outl 0xcfc %#x" % value)
        return value

    def _bars(self):
        """Each BAR gets an address; the structures of the device are where its capabilities say."""
        at, bars, n = BARS_AT, {}, 0
        while n < 6:
            reg = 0x10 + 4 * n
            kind = self._config(reg)
            self._config(reg, 0xffffffff)
            size, wide = self._config(reg) & ~0xf, kind & 7 == 4
            if wide:
                self._config(reg + 4, 0xffffffff)
                size |= self._config(reg + 4) << 32
            else:
                size |= size and 0xffffffff << 32
            size = -size & (1 << 64) - 1
            if size and wide:
                at = (at + size - 1) & -size
                bars[n] = at
                self._config(reg, at & 0xffffffff)
                self._config(reg + 4, at >> 32)
                at += size
            n += 2 if wide else 1
        self._config(0x04, 0x6)     # memory, bus master
        raw = b"".join(struct.pack("<I", self._config(r)) for r in range(0, 256, 4))
        p = raw[0x34]
        while p:
            if raw[p] == 9:
                kind, bar, ident = raw[p + 3:p + 6]
                offset, length = struct.unpack_from("<II", raw, p + 8)
                if kind == SHARED:
                    high = struct.unpack_from("<II", raw, p + 16)
                    self.caps[SHARED, ident] = bars[bar] + (offset | high[0] << 32)
                elif kind in (COMMON, NOTIFY):
                    self.caps[kind] = bars[bar] + offset
                    if kind == NOTIFY:
                        self.multiplier, = struct.unpack_from("<I", raw, p + 16)
            p = raw[p + 1]
        self.control, self.aperture = self.caps[SHARED, 0], self.caps[SHARED, 1]

    def _start(self, nqueues):
        c = self.caps[COMMON]
        self.set("b", c + 20, 0)
        self.set("b", c + 20, 3)    # ACKNOWLEDGE, DRIVER
        for word in (0, 1):
            self.set("l", c + 8, word)
            self.set("l", c + 12, word)     # VERSION_1 is bit 0 of word 1
        self.set("b", c + 20, 11)
        self.notify = []
        for q in range(nqueues):
            desc = RINGS_AT + (q << 14)
            avail, used, buf = desc + 0x1000, desc + 0x2000, desc + 0x3000
            for i in range(ENTRIES):
                self.write(desc + 16 * i, struct.pack("<QIHH", buf + 8 * i, 8, 2, 0))
            self.write(avail, struct.pack("<HH%dH" % ENTRIES, 0, ENTRIES - 1, *range(ENTRIES)))
            self.set("w", c + 22, q)
            self.set("w", c + 24, ENTRIES)
            for k, a in enumerate((desc, avail, used)):
                self.set("l", c + 32 + 8 * k, a)
                self.set("l", c + 36 + 8 * k, 0)
            self.notify.append(self.caps[NOTIFY] + self.multiplier * self.get("w", c + 30))
            self.set("w", c + 28, 1)
        self.set("b", c + 20, 15)
        self.wait(lambda: self.read(self.control, 8) == b"VHOSTPCI", "a control block")

    # -- the port

    def wait(self, what, name, timeout=10):
        end = time.monotonic() + timeout
        while not what():
            if time.monotonic() > end:
                raise harness.BenchError("the port shows no %s; see %s" % (name, self.log.name))

    def field(self, offset):
        """A word of the state page."""
        return self.get("l", self.control + pc.STATE + offset)

    def up(self):
        return self.field(0x0c) == 1

    def command(self, opcode, *args):
        """Its status. The daemon answers in the state page."""
        self.seq += 1
        at = self.control + pc.COMMAND
        self.write(at + 8, struct.pack("<15Q", *(list(args) + [0] * (15 - len(args)))))
        self.set("l", at + 4, opcode)
        self.set("l", at, self.seq)
        self.set("w", self.notify[0], 0)
        self.wait(lambda: self.field(0x100) == self.seq, "answer")
        return self.field(0x108)

    def attach(self, type=1):
        self.seq = self.field(0x100)
        return self.command(pc.ATTACH, pc.ABI, pc.ALL, 0, type, 0)

    def queues(self):
        n = self.field(0x28)
        return [pc.Queue(self.read(self.control + pc.STATE + 0x1000 + 64 * i, 64)) for i in range(n)]

    def let_go(self):
        """Requests to stop queues are answered. How many there were."""
        asked = [(i, q) for i, q in enumerate(self.queues()) if q.flags & pc.STOP]
        for i, q in asked:
            self.command(pc.QUEUE_STOPPED, i, q.run, q.base, 0)
        return len(asked)

    def sync(self):
        return self.command(pc.SYNC, self.field(0x3c))

    def windows(self):
        """(address, size) of each."""
        n = self.field(0x30)
        raw = self.read(self.control + pc.STATE + 0x8000, 32 * n) if n else b""
        got = [struct.unpack_from("<QQIII", raw, 32 * i) for i in range(n)]
        return [(self.aperture + locator, size) for size, locator, _, kind, _ in got if kind]

    def end(self):
        if self.p.poll() is None:
            self.p.terminate()
        harness.reap(self.p)
        self.log.close()
