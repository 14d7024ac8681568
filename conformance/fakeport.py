# SPDX-License-Identifier: BSD-3-Clause
"""The host's side of an ivshmem port for tests of the guest module: the control block, signals and hot-plugged windows.

It follows docs/spec.md and knows nothing of the daemon, so that both can be tested against a third party. Every call of
queue q is answered by one kick of queue q. Impossible QUEUE_STOPPED commands steer it from inside the guest: queue
0xfade takes the link and its window down for a moment, queue 0xdead unplugs the port, queue 0xdeaf has it do so instead of
answering the next DETACH, queue 0xcafe makes other signals carry the kicks: those of KICKS[run].
"""

import array
import fcntl
import mmap
import os
import queue
import select
import socket
import struct
import threading
import time

import hotplug

CTRL = 0x20000
COMMAND, STATE = 0x1000, 0x10000
POOL = 0x200000
F_ADD_SEALS, SEAL_SHRINK_GROW = 1033, 2 | 4
REQUIRED = 1 << 32
UP_REASON, R_NOT_ATTACHED, R_NO_DRIVER, R_WINDOW = 0, 2, 3, 5
K_POOL, K_IVSHMEM = 1, 2


def eventfd():
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def ring(fd):
    os.write(fd, struct.pack('<Q', 1))


def memory(size, name):
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, F_ADD_SEALS, SEAL_SHRINK_GROW)
    return fd


def fill(m, start, size):
    """The first word of each page says where it is."""
    for off in range(0, size, 4096):
        struct.pack_into('<QQ', m, start + off, off | 0x5a, 0)


class Server:
    """One ivshmem server socket: every connection gets the same id, memory, peers and vectors, at once and completely."""

    def __init__(self, path, ident, memfd, own=(), peers=()):
        self.path, self.ident, self.memfd, self.own, self.peers = path, ident, memfd, list(own), list(peers)
        self.conns = []
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(path)
        self.sock.listen(4)
        threading.Thread(target=self._run, daemon=True).start()

    @staticmethod
    def _send(s, value, fd=None):
        anc = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [fd]))] if fd is not None else []
        s.sendmsg([struct.pack('<q', value)], anc)

    def _run(self):
        while True:
            try:
                s, _ = self.sock.accept()
            except OSError:
                return
            self.conns.append(s)
            try:
                self._send(s, 0)
                self._send(s, self.ident)
                self._send(s, -1, self.memfd)
                for peer, fds in self.peers:
                    for fd in fds:
                        self._send(s, peer, fd)
                for fd in self.own:
                    self._send(s, self.ident, fd)
            except OSError:
                pass

    def close(self):
        for s in self.conns + [self.sock]:
            s.close()
        if os.path.exists(self.path):
            os.unlink(self.path)


# kick_signal of queues 0 to 3: all the same, each another queue's, beyond all queues and the state's; and the usual ones.
KICKS = [(1, 1, 1, 1), (4, 3, 2, 1), (5, 5, 0, 1), (1, 2, 3, 4)]


class FakePort:
    """@window: size of the hot-plugged window in bytes, 0 for the pool in BAR2. @signals: to the guest, 0 for as many as are needed."""

    next_window = 0x8001

    def __init__(self, dir, queues=4, window=0, name='fake', bar=4 << 20, bus='rp0', wbus='rp1', magic=b'VHOSTPCI',
                 header_size=0x80, signals=0):
        self.dir, self.queues, self.window, self.bus, self.wbus, self.name = dir, queues, window, bus, wbus, name
        self.vm = None
        self.lock = threading.RLock()
        self.fd = memory(bar, 'vhost-pci-control')
        self.m = mmap.mmap(self.fd, bar)
        pool = 0 if window else bar - POOL
        n = signals or 1 + queues
        self.signals, self.kicks, self.deaf = n, [1 + q for q in range(queues)], False
        self.kick = [eventfd() for _ in range(n)]
        self.call = [eventfd() for _ in range(1 + queues)]
        struct.pack_into('<IIIIIIQQIIII32s', self.m, 8, 1, header_size, STATE, 0x10000, COMMAND, 0x1000, POOL if pool else 0, pool,
                         1, queues, n, 1 << 16, name.encode())
        self.pool = pool
        if pool:
            fill(self.m, POOL, pool)
        self.m[0:8] = magic
        self.attached = self.up = False
        self.epoch = self.serial = self.regions = self.run = 0
        self.answered = 0
        self.commands = []
        self.detached = 0
        self.errors = []
        self.win = None
        self.state(reason=R_NOT_ATTACHED)
        self.path = os.path.join(dir, name + '.iv')
        self.server = Server(self.path, 0, self.fd, self.kick, [(1, self.call)])
        self.stop = threading.Event()
        self.calls = [0] * (1 + queues)
        self.work = queue.Queue()
        self.thread = threading.Thread(target=self._loop, daemon=True)
        self.thread.start()
        threading.Thread(target=self._worker, daemon=True).start()

    # -- QEMU

    def args(self):
        return ['-chardev', 'socket,id=c-%s,path=%s' % (self.name, self.path),
                '-device', 'ivshmem-doorbell,id=%s,chardev=c-%s,vectors=%d,bus=%s' % (self.name, self.name, self.signals, self.bus)]

    @staticmethod
    def ports(n=3, reserve='256M'):
        out = []
        for i in range(n):
            out += ['-device', 'pcie-root-port,id=rp%d,chassis=%d,pref64-reserve=%s' % (i, i + 1, reserve)]
        return out

    def add(self):
        hotplug.plug(self.vm, self.name, self.path, driver='ivshmem-doorbell', vectors=self.signals, bus=self.bus)

    def remove(self):
        hotplug.unplug(self.vm, self.name)

    # -- state

    def state(self, reason=0, answer=None):
        """Write the whole page from what is known."""
        with self.lock:
            m, s = self.m, STATE
            gen = struct.unpack_from('<I', m, s)[0]
            struct.pack_into('<I', m, s, gen + 1)
            struct.pack_into('<IIIIIQIIIIIIII', m, s + 4, 1, int(self.attached), int(self.up), reason, 3 if self.pool else 1,
                             self.epoch, 1, self.queues, self.queues if self.up else 0, int(self.up), int(self.win is not None), 12,
                             1, self.regions)
            struct.pack_into('<QQQQQQ', m, s + 0x40, REQUIRED if self.up else 0, 0, REQUIRED, 0, REQUIRED, 0)
            if answer:
                struct.pack_into('<IIIIQQ', m, s + 0x100, *answer)
            for q in range(self.queues):
                struct.pack_into('<QQQIIIIII', m, s + 0x1000 + 64 * q, 0, 0x1000, 0x2000, 256, 0, 3 if self.up else 0, self.run,
                                 self.kicks[q], (1 << 16) | (1 + q))
            if self.win:
                kind, locator, size = self.win
                struct.pack_into('<QQIIII', m, s + 0x8000, size, locator, self.serial, kind, 1, 0)
                struct.pack_into('<QQQII', m, s + 0xc000, 0, size, 0, 0, 3)
            else:
                m[s + 0x8000:s + 0x8020] = bytes(32)
                m[s + 0xc000:s + 0xc020] = bytes(32)
            struct.pack_into('<I', m, s, gen + 2)

    def link_up(self):
        if self.up or not self.attached:
            return
        self.serial += 1
        self.epoch += 1
        self.run += 1
        self.regions += 1
        if self.pool:
            self.win = (K_POOL, POOL, self.pool)
        else:
            ident = FakePort.next_window
            FakePort.next_window += 1
            self.wfd = memory(self.window, 'window')
            self.wm = mmap.mmap(self.wfd, self.window)
            fill(self.wm, 0, self.window)
            self.wid = 'w%x' % ident
            self.wserver = Server(os.path.join(self.dir, self.wid), ident, self.wfd, [eventfd()])
            self.win = (K_IVSHMEM, ident, self.window)
            self.state(reason=R_WINDOW)      # named before it is plugged
            hotplug.plug(self.vm, self.wid, self.wserver.path, driver='ivshmem-doorbell', vectors=1, bus=self.wbus)
        self.up = True
        self.state()
        ring(self.kick[0])
        if not self.attached:
            self.link_down(R_NOT_ATTACHED)

    def link_down(self, reason=R_NO_DRIVER):
        if not self.up:
            return
        self.withdraw(reason)
        self.unplug()

    def withdraw(self, reason):
        self.up, self.win = False, None
        self.regions += 1
        self.state(reason)
        ring(self.kick[0])

    def unplug(self):
        """Needs the guest's help, so nothing that the guest waits for may wait for it."""
        if not self.pool:
            time.sleep(0.05)
            try:
                hotplug.unplug(self.vm, self.wid)
            finally:
                self.wserver.close()
                self.wm.close()
                os.close(self.wfd)

    # -- the guest's signals

    def _loop(self):
        p = select.poll()
        for fd in self.call:
            p.register(fd, select.POLLIN)
        while not self.stop.is_set():
            for fd, _ in p.poll(200):
                n = self.call.index(fd)
                try:
                    self.calls[n] += struct.unpack('<Q', os.read(fd, 8))[0]
                except BlockingIOError:
                    continue
                if n:
                    ring(self.kick[self.kicks[n - 1]])
                else:
                    self._command()

    def _worker(self):
        """Plugs and unplugs, one after the other."""
        while True:
            w = self.work.get()
            if w is None:
                return
            try:
                w()
            except Exception as e:
                if not self.stop.is_set():
                    self.errors.append(repr(e))
            finally:
                self.work.task_done()

    def idle(self):
        """Nothing of this port is being plugged or unplugged: QEMU does not like both at once."""
        return not self.work.unfinished_tasks

    def _command(self):
        cmd = bytes(self.m[COMMAND:COMMAND + 128])
        seq, op, *args = struct.unpack('<II15Q', cmd)
        if not seq or seq == self.answered:
            return
        self.commands.append(op)
        status, value, later = 0, 0, None
        if op == 2 and self.deaf:
            self.deaf, self.answered = False, seq
            self.work.put(self.remove)
            return
        if op == 1:
            if REQUIRED & ~args[1]:
                status, value = 4, REQUIRED & ~args[1]
            else:
                self.attached = True
                later = self.link_up if not self.up else None
        elif op == 2:
            self.attached = False
            self.detached += 1
            if self.up:
                self.withdraw(R_NOT_ATTACHED)
                later = self.unplug
        elif op == 3 and args[0] == 0xfade:
            def later():
                self.link_down()
                time.sleep(0.2)
                self.link_up()
        elif op == 3 and args[0] == 0xdead:
            later = self.remove
        elif op == 3 and args[0] == 0xdeaf:
            self.deaf = True
        elif op == 3 and args[0] == 0xcafe:
            self.kicks = list(KICKS[args[1]][:self.queues])
        elif op not in (3, 4):
            status = 1
        self.answered = seq
        self.state(0 if self.up else R_NO_DRIVER if self.attached else R_NOT_ATTACHED, (seq, op, status, 0, value, 0))
        ring(self.kick[0])
        if later:
            self.work.put(later)

    def close(self):
        self.stop.set()
        self.work.put(None)
        self.thread.join()
        self.server.close()
