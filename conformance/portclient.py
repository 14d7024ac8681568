# SPDX-License-Identifier: BSD-3-Clause
"""The device side of a port in Python: reads the state, sends commands, drives rings in windows.

Written from docs/spec.md and docs/local-attachment.md, not from the C code.
"""
import array
import contextlib
import json
import mmap
import os
import select
import socket
import struct
import threading
import time

import vu

CTRL, COMMAND, STATE = 0x20000, 0x1000, 0x10000
ATTACH, DETACH, QUEUE_STOPPED, SYNC, COUNTERS = 1, 2, 3, 4, 9
OK, UNKNOWN, INVALID, VERSION, FEATURES, DEVICE_TYPE, NOT_ATTACHED, STALE = range(8)
ABI = 0x1
ENABLED, STARTED, STOP, BROKEN = 1, 2, 4, 8
(UP, NO_LINK, NO_ATTACH, NO_DRIVER, NOT_READY, WINDOW, BAD_FEATURES, POLICY, ADMIN, TIMEOUT, PROTOCOL, DAEMON,
 LIMIT) = range(13)
HELLO, SIGNALS, DOORBELLS, READY, MSG_WINDOW, WINDOW_GONE, ERROR = range(1, 8)
ALL = (1 << 64) - 1

SLOW = 1


def limit(seconds):
    """How long to wait for what a machine that has nothing else to do shows within @seconds. Whoever runs this
    elsewhere sets SLOW: that makes a failure come later, and nothing fail that is well."""
    return seconds * SLOW


class Gone(Exception):
    pass


def one(fd):
    os.write(fd, struct.pack("<Q", 1))


def raised(fd, timeout=None):
    """Is the eventfd raised, now or within @timeout seconds? Takes the count."""
    if timeout is None:
        timeout = limit(1)
    if not select.select([fd], [], [], timeout)[0]:
        return False
    os.read(fd, 8)
    return True


class Queue:
    def __init__(self, raw):
        (self.desc, self.avail, self.used, self.size, self.base, self.flags, self.run, self.kick_signal,
         self.doorbell) = struct.unpack("<QQQIIIIII", raw[:0x30])


class State:
    def __init__(self, raw):
        (self.generation, self.version, self.flags, self.status, self.reason, self.mode, self.epoch, self.type,
         self.max_queues, nqueues, nregions, nwindows, config_size, self.config_generation,
         self.regions_generation) = struct.unpack_from("<IIIIIIQIIIIIIII", raw)
        self.features, _, self.required, _, self.offered, _ = struct.unpack_from("<6Q", raw, 0x40)
        self.inflight_queues, self.inflight_entries = struct.unpack_from("<II", raw, 0x7c)
        self.answer = struct.unpack_from("<IIIIQQ", raw, 0x100)
        self.config = raw[0x200:0x200 + config_size]
        self.queues = [Queue(raw[0x1000 + 64 * i:]) for i in range(nqueues)]
        # size, locator, serial, kind, flags
        self.windows = [struct.unpack_from("<QQIII", raw, 0x8000 + 32 * i) for i in range(nwindows)]
        # addr, size, offset, window, flags
        self.regions = [struct.unpack_from("<QQQII", raw, 0xc000 + 32 * i) for i in range(nregions)]
        self.attached = bool(self.flags & 1)
        self.up = self.status == 1


class Port:
    """What all attachments share: self.mem is the control block."""

    def state(self, torn=False):
        """@torn: as it is, even if a writer that is gone left it in the middle of a change."""
        deadline = time.monotonic() + limit(1)
        while True:
            g = struct.unpack_from("<I", self.mem, STATE)[0]
            raw = bytes(self.mem[STATE:STATE + 0x10000])
            if torn or not g & 1 and struct.unpack_from("<I", self.mem, STATE)[0] == g:
                return State(raw)
            assert time.monotonic() < deadline, "the state is always being written"

    def wait(self, what, timeout=5):
        deadline = time.monotonic() + limit(timeout)
        while True:
            s = self.state()
            self.drain()
            if what(s):
                return s
            assert time.monotonic() < deadline, f"did not come: status {s.status} reason {s.reason} attached {s.attached}"
            self.idle()

    def idle(self):
        time.sleep(0.002)

    def drain(self):
        """Take in messages that came before the state that was just read."""

    def command_raw(self, seq, opcode, *args):
        args = list(args) + [0] * (15 - len(args))
        struct.pack_into("<15Q", self.mem, COMMAND + 8, *args)
        struct.pack_into("<I", self.mem, COMMAND + 4, opcode)
        struct.pack_into("<I", self.mem, COMMAND, seq)
        self.ring_command()

    def command(self, opcode, *args, timeout=5):
        seq = max(struct.unpack_from("<I", self.mem, COMMAND)[0], self.state().answer[0]) + 1
        self.command_raw(seq, opcode, *args)
        a = self.wait(lambda s: s.answer[0] == seq, timeout).answer
        assert a[1] == opcode
        return a[2]

    def attach(self, features=ALL, abi=ABI, type=1, flags=0):
        return self.command(ATTACH, abi, features, 0, type, flags)

    def stopped(self, q, run, base=0, flags=0):
        return self.command(QUEUE_STOPPED, q, run, base, flags)

    def sync(self):
        """Nothing older than what is published now is in use any more."""
        assert self.command(SYNC, self.state().regions_generation) == OK

    def let_go(self):
        """Answer the requests to stop queues; returns how many there were."""
        asked = [(q, e) for q, e in enumerate(self.state().queues) if e.flags & STOP]
        for q, e in asked:
            assert self.stopped(q, e.run, e.base) == OK
        return len(asked)

    def view(self, addr, length):
        """A view of [addr, addr + length) of the driver VM's memory, through regions[]."""
        for a, size, off, win, _ in self.state().regions:
            if a <= addr and addr + length <= a + size:
                return memoryview(self.window(win))[addr - a + off:addr - a + off + length]
        raise KeyError(hex(addr))

    # a split ring's device side, just enough to move packets

    def take(self, q, index):
        """Buffers of chain number index: [(addr, len, writable)], head."""
        avail = self.view(q.avail, 6 + 2 * q.size)
        if struct.unpack_from("<H", avail, 2)[0] == index & 0xffff:
            return None
        head, = struct.unpack_from("<H", avail, 4 + 2 * (index % q.size))
        return self.chain(q, head), head

    def chain(self, q, head):
        desc, bufs, i = self.view(q.desc, 16 * q.size), [], head
        while True:
            addr, length, flags, nxt = struct.unpack_from("<QIHH", desc, 16 * i)
            bufs.append((addr, length, bool(flags & 2)))
            if not flags & 1:
                return bufs
            i = nxt

    def give_back(self, q, index, head, length):
        used = self.view(q.used, 6 + 8 * q.size)
        struct.pack_into("<II", used, 4 + 8 * (index % q.size), head, length)
        used.cast("H")[1] = (index + 1) & 0xffff


class Local(Port):
    def __init__(self, path, expect_error=False):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(limit(20))
        self.sock.connect(path)
        self.signals, self.doorbells, self.windows, self.maps = [], [], {}, {}
        self.gone = []
        self.mem = None
        self.error = None
        while self.read_message() not in (READY, ERROR):
            pass
        assert self.error is not None or self.mem[:8] == b"VHOSTPCI"
        assert expect_error == (self.error is not None)

    def read_message(self):
        fds = array.array("i")
        data, anc, _, _ = self.sock.recvmsg(48, socket.CMSG_SPACE(32 * 4))
        if not data:
            raise Gone()
        for level, kind, d in anc:
            fds.frombytes(d[:len(d) - len(d) % 4])
        assert len(data) == 48
        kind, nfds, *arg = struct.unpack("<II5Q", data)
        assert nfds == len(fds)
        if kind == HELLO:
            self.hello(fds, arg)
            assert arg[0] == 1 and arg[1] == ABI
        elif kind in (SIGNALS, DOORBELLS):
            l = self.signals if kind == SIGNALS else self.doorbells
            for fd in l[arg[0]:arg[0] + nfds]:
                os.close(fd)
            l[arg[0]:arg[0] + nfds] = fds
        elif kind == MSG_WINDOW:
            self.windows[arg[0]] = (fds[0], arg[1], arg[2])
        elif kind == WINDOW_GONE:
            fd, _, _ = self.windows.pop(arg[0])
            self.gone.append(arg[0])
            os.close(fd)
        elif kind == ERROR:
            self.error = arg[0]
        else:
            for fd in fds:
                os.close(fd)
        return kind

    def hello(self, fds, arg):
        self.fd, self.size = fds[0], arg[2]
        self.mem = mmap.mmap(self.fd, self.size)

    def idle(self):
        if select.select([self.sock], [], [], 0.002)[0]:
            self.read_message()

    def poll(self, timeout=0.05):
        while select.select([self.sock], [], [], timeout)[0]:
            self.read_message()

    def drain(self):
        self.poll(0)

    def ring_command(self):
        one(self.doorbells[0])

    def window(self, slot):
        size, locator, serial, kind, _ = self.state().windows[slot]
        if kind == 1:
            return memoryview(self.mem)[locator:locator + size]
        assert kind == 4
        if locator not in self.maps:
            while locator not in self.windows:
                self.read_message()
            fd, off, size = self.windows[locator]
            self.maps[locator] = mmap.mmap(fd, size, offset=off)
        return self.maps[locator]

    def close(self):
        self.sock.close()
        for fd in self.signals + self.doorbells + [f for f, _, _ in self.windows.values()]:
            os.close(fd)
        self.windows = {}
        if self.mem:
            os.close(self.fd)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self.close()


class Shmem(Port):
    """Stands in for QEMU's generic device and its guest driver: a front-end with shared memory regions."""

    PF = vu.bit(0, vu.PF_REPLY_ACK, vu.PF_BACKEND_REQ, vu.PF_CONFIG, vu.PF_BACKEND_SEND_FD, 22)

    def __init__(self, path, nqueues=None, buffers=60, start=True):
        self.fe = vu.Frontend(path)
        self.fe.negotiate(vu.bit(vu.VERSION_1), self.PF)
        assert self.fe.protocol == self.PF, hex(self.fe.protocol)
        assert not self.fe.offered_protocol >> vu.PF_MEM_SLOTS & 1, "a trap: QEMU crashes with it"
        raw = self.fe.ask(44)
        self.nregions, _, r0, r1 = struct.unpack_from("<IIQQ", raw)
        assert self.nregions == 2 and r0 == CTRL and (r0 + r1) & (r0 + r1 - 1) == 0
        self.sizes = r0, r1
        cfg = self.fe.ask(vu.GET_CONFIG, struct.pack("<III", 0, 16, 0) + bytes(16))[12:]
        assert cfg[:8] == b"VHOSTPCI"
        self.nsignals = struct.unpack_from("<I", cfg, 12)[0]
        self.nq = nqueues or self.nsignals
        self.back, other = socket.socketpair()
        self.back.settimeout(limit(20))
        self.fe.tell(vu.SET_BACKEND_REQ_FD, b"", [other.fileno()])
        other.close()
        self.fe.set_memory(vu.Memory())
        self.live = {}      # (shmid, offset) -> (length, mmap, file offset)
        self.log = []
        self.mem = None
        self.started = False
        self.buffers = buffers
        self.refuse = False
        if start:
            self.start()

    def start(self):
        self.rings = [vu.SplitRing(self.fe.mem, 64) for _ in range(self.nq)]
        for q, r in enumerate(self.rings):
            self.fe.start_ring(q, r, enable=False)
            for _ in range(self.buffers):
                r.add([(self.fe.mem.alloc(8, 8), 8, True)])
        assert not select.select([self.back], [], [], 0.05)[0], "a request before the device was started"
        for q in range(self.nq):
            self.fe.tell_state(vu.SET_VRING_ENABLE, q, 1)
        self.started = True
        self.signals = [r.call_fd for r in self.rings]
        self.doorbells = [r.kick_fd for r in self.rings]
        while (0, 0) not in self.live:
            self.serve()
        self.mem = self.live[0, 0][1]

    def stop(self):
        for q in range(self.nq):
            self.fe.tell_state(vu.SET_VRING_ENABLE, q, 0)
        for q in range(self.nq):
            self.fe.stop_ring(q)
        self.started = False
        self.live.clear()
        self.mem = None

    def serve(self):
        fds = array.array("i")
        data, anc, _, _ = self.back.recvmsg(12 + 40, socket.CMSG_SPACE(8))
        if not data:
            raise Gone()
        assert self.started, "a request while the device is not started: QEMU would crash"
        for _, _, d in anc:
            fds.frombytes(d[:4])
        req, flags, size, shmid, fd_off, off, length, mflags = struct.unpack("<IIIB7xQQQQ", data)
        assert flags & 8 and size == 40
        self.log.append((req, shmid, off, length))
        status = 0
        if self.refuse:
            status = 1
        elif req == 9:
            assert mflags & 1 and off + length <= self.sizes[shmid]
            assert not any(s == shmid and o < off + length and off < o + l for (s, o), (l, _, _) in self.live.items())
            self.live[shmid, off] = (length, mmap.mmap(fds[0], length, offset=fd_off), fd_off)
        else:
            assert req == 10 and self.live[shmid, off][0] == length, "UNMAP must match MAP"
            del self.live[shmid, off]
        for fd in fds:
            os.close(fd)
        self.back.sendall(struct.pack("<IIIQ", req, 1 | 4, 8, status))

    def idle(self):
        if select.select([self.back], [], [], 0.002)[0]:
            self.serve()

    def poll(self):
        while select.select([self.back], [], [], 0.05)[0]:
            self.serve()

    def ring_command(self):
        one(self.doorbells[0])

    def window(self, slot):
        size, locator, serial, kind, _ = self.state().windows[slot]
        assert kind == 3 and self.live[1, locator][0] == size
        return self.live[1, locator][1]

    def close(self):
        self.fe.close()
        self.back.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Ivshmem(Port):
    """The client's side of an ivshmem server, as QEMU's ivshmem-doorbell is."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(limit(20))
        self.sock.connect(path)
        assert self.message() == (0, None), "protocol version"
        self.id, fd = self.message()
        assert fd is None and 0 <= self.id < 0x8000
        got, self.fd = self.message()
        assert got == -1 and self.fd is not None
        self.size = os.fstat(self.fd).st_size
        assert self.size & (self.size - 1) == 0
        self.mem = mmap.mmap(self.fd, self.size)
        assert self.mem[:8] == b"VHOSTPCI"
        nsig, self.bell0 = struct.unpack_from("<II", self.mem, 0x38)
        self.peers = {}
        while len(self.peers.get(self.id, [])) < nsig:
            peer, fd = self.message()
            assert fd is not None, "a disconnect: QEMU would be corrupted"
            self.peers.setdefault(peer, []).append(fd)
        self.signals = self.peers[self.id]
        self.signals_ids = set(self.peers)
        self.maps = {}
        self.vmm = None

    def message(self):
        fds = array.array("i")
        data, anc, _, _ = self.sock.recvmsg(8, socket.CMSG_SPACE(4))
        if not data:
            raise Gone()
        for _, _, d in anc:
            fds.frombytes(d[:4])
        return struct.unpack("<q", data)[0], fds[0] if fds else None

    def drain(self):
        """Peers that were added at run time."""
        while select.select([self.sock], [], [], 0)[0]:
            peer, fd = self.message()
            assert fd is not None, "a disconnect: QEMU would be corrupted"
            assert peer not in self.signals_ids, "a vector that a device cannot take at run time"
            self.peers.setdefault(peer, []).append(fd)
            assert len(self.peers[peer]) <= len(self.signals), "more vectors than the device has"

    def doorbell(self, value):
        one(self.peers[value >> 16][value & 0xffff])

    def ring_command(self):
        self.doorbell(self.bell0)

    @property
    def doorbells(self):
        return {peer << 16 | v: fd for peer, fds in self.peers.items() for v, fd in enumerate(fds)}

    def window(self, slot):
        size, locator, serial, kind, _ = self.state().windows[slot]
        if kind == 1:
            return memoryview(self.mem)[locator:locator + size]
        assert kind == 2 and locator >= 0x8000
        return self.vmm.window(locator, size)

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Qmp:
    """As much of QEMU as hot-plugs ivshmem devices."""

    def __init__(self, path, buses=("rp0", "rp1"), connects=False):
        """@connects: as a chardev with reconnect=, else it listens."""
        self.path, self.listener = path, None if connects else socket.socket(socket.AF_UNIX)
        if self.listener:
            self.listener.bind(path)
            self.listener.listen(4)
        self.buses, self.devices, self.chardevs, self.fds = list(buses), {}, {}, {}
        self.bar, self.release, self.log, self.conn = True, True, [], None
        self.carrier, self.occupied = {"d0": []}, {}
        self.stop = False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.stop:
            try:
                self.conn = self.listener.accept()[0] if self.listener else self.connect()
            except OSError:
                return
            with contextlib.suppress(OSError):
                self.serve(self.conn)

    def connect(self):
        while True:
            s = socket.socket(socket.AF_UNIX)
            try:
                s.connect(self.path)
                return s
            except OSError:
                s.close()
                if self.stop:
                    raise
                time.sleep(0.05)

    def say(self, o):
        self.conn.sendall(json.dumps(o).encode() + b"\r\n")

    def event(self, name, **data):
        self.say({"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 2}})

    def serve(self, conn):
        self.say({"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}})
        buf, fds = b"", []
        while True:
            data, anc, _, _ = conn.recvmsg(65536, socket.CMSG_SPACE(16))
            if not data:
                return
            for _, _, d in anc:
                a = array.array("i")
                a.frombytes(d[:4])
                fds += a
            buf += data
            while b"\n" in buf:
                line, _, buf = buf.partition(b"\n")
                m = json.loads(line)
                self.log.append(m["execute"])
                try:
                    ret = self.execute(m["execute"], m.get("arguments", {}), fds)
                    self.say({"return": ret, "id": m["id"]})
                except KeyError as err:
                    self.say({"error": {"class": "GenericError", "desc": str(err.args[0])}, "id": m["id"]})
                for d in [d for d, v in self.devices.items() if v["leaving"] and self.release]:
                    del self.devices[d]
                    self.event("DEVICE_DELETED", device=d, path="/machine/peripheral/" + d)

    def execute(self, cmd, a, fds):
        if cmd == "getfd":
            self.fds[a["fdname"]] = fds.pop(0)
        elif cmd == "chardev-add":
            addr = a["backend"]["data"]["addr"]
            assert addr["type"] == "fd"
            self.chardevs[a["id"]] = self.fds.pop(addr["data"]["str"])
        elif cmd == "chardev-remove":
            os.close(self.chardevs.pop(a["id"]))
        elif cmd == "device_add":
            assert a["driver"] == "ivshmem-doorbell"
            if a["bus"] in self.occupied:
                assert a.get("addr") == "0", "QEMU takes a second device into an occupied root port"
                raise KeyError("PCI: slot 0 function 0 not available for ivshmem-doorbell, in use by %s" % self.occupied[a["bus"]])
            if a["bus"] not in self.buses or any(d["bus"] == a["bus"] for d in self.devices.values()):
                raise KeyError("Bus '%s' not found or in use" % a["bus"])
            s = socket.socket(fileno=os.dup(self.chardevs[a["chardev"]]))
            s.setblocking(False)  # all has to be there already: QEMU would freeze
            got = []
            for _ in range(3):
                d, anc, _, _ = s.recvmsg(8, socket.CMSG_SPACE(4))
                got.append((struct.unpack("<q", d)[0], array.array("i", anc[0][2][:4])[0] if anc else None))
            assert got[0][0] == 0 and got[1][0] >= 0x8000 and got[2][0] == -1
            size = os.fstat(got[2][1]).st_size
            assert size & (size - 1) == 0, "QEMU would abort"
            self.devices[a["id"]] = {"bus": a["bus"], "pos": got[1][0], "fd": got[2][1], "size": size, "leaving": False}
        elif cmd == "device_del":
            if a["id"] not in self.devices:
                raise KeyError("Device '%s' not found" % a["id"])
            self.devices[a["id"]]["leaving"] = True
        elif cmd == "query-pci":
            return [{"bus": 0, "devices": [{"qdev_id": d["bus"], "regions": [], "pci_bridge": {"devices": [
                {"qdev_id": i, "regions": [{"bar": 2, "address": 1 << 32 if self.bar else -1, "size": d["size"]}]}]}}
                for i, d in self.devices.items()]}]
        elif cmd == "qom-list":
            return [{"name": i, "type": "child<ivshmem-doorbell>"} for i in self.devices] + [{"name": "type", "type": "string"}]
        elif cmd == "set_link":
            if a["name"] not in self.carrier:
                raise KeyError("Device '%s' not found" % a["name"])
            self.carrier[a["name"]].append(a["up"])
        elif cmd != "qmp_capabilities":
            raise KeyError("The command %s has not been found" % cmd)
        return {}

    def window(self, pos, size):
        d = next(d for d in self.devices.values() if d["pos"] == pos)
        assert d["size"] == size
        if "map" not in d:
            d["map"] = mmap.mmap(d["fd"], size)
        return d["map"]

    def close(self):
        self.stop = True
        if self.listener:
            self.listener.close()
        if self.conn:
            with contextlib.suppress(OSError):
                self.conn.shutdown(socket.SHUT_RDWR)  # a thread may be reading it
            self.conn.close()
