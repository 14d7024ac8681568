# SPDX-License-Identifier: BSD-3-Clause
"""Sockets in between: pass messages and fds on, count them, and cut the connection where a test wants it cut.

A connection's messages are counted in both directions together. The next connection of a proxy can be given a plan (k, half):
cut it after its k-th message, or (half) in the middle of the one behind it.
"""
import array
import os
import selectors
import socket
import struct
import threading

VHOST_USER, LOCAL = "vhost-user", "local"
LOCAL_MESSAGE = 48


class Side:
    """One direction: what has come of the present message."""

    def __init__(self, sock, framing):
        self.sock, self.framing = sock, framing
        self.data, self.fds = b"", []

    def want(self):
        if self.framing == LOCAL:
            return LOCAL_MESSAGE
        return 12 if len(self.data) < 12 else 12 + min(struct.unpack_from("<I", self.data, 8)[0], 65536)

    def read(self):
        """True: a whole message is there. None: the end. False: not yet."""
        try:
            part, anc, _, _ = self.sock.recvmsg(self.want() - len(self.data), socket.CMSG_SPACE(4 * 64), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return None
        for _, _, raw in anc:
            fds = array.array("i")
            fds.frombytes(raw[:len(raw) // 4 * 4])
            self.fds += fds
        if not part:
            return None
        self.data += part
        return len(self.data) == self.want()

    def drop(self):
        for fd in self.fds:
            os.close(fd)
        self.data, self.fds = b"", []


class Connection:
    def __init__(self, proxy, client, server):
        self.proxy = proxy
        self.client, self.server = client, server
        # A local port's process sends nothing that has a form.
        self.sides = {client: Side(client, proxy.framing), server: Side(server, proxy.framing)}
        self.count = 0
        self.plan, proxy.next_plan = proxy.next_plan, None
        self.open = True

    def other(self, sock):
        return self.server if sock is self.client else self.client

    def pass_on(self, side, data):
        anc = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", side.fds))] if side.fds else []
        try:
            self.other(side.sock).sendmsg([data], anc)
        except OSError:
            return False
        finally:
            side.drop()
        return True

    def readable(self, sock):
        """False: to be closed."""
        side = self.sides[sock]
        whole = side.read()
        if whole is None:
            return False
        if not whole:
            return True
        if self.plan and self.plan[1] and self.count == self.plan[0]:
            self.pass_on(side, side.data[:max(len(side.data) // 2, 1)])
            self.proxy.before_cut()
            self.proxy.fired.set()
            return False
        if not self.pass_on(side, side.data):
            return False
        self.count += 1
        self.proxy.last_count = self.count
        if self.plan and not self.plan[1] and self.count >= self.plan[0]:
            self.proxy.before_cut()
            self.proxy.fired.set()
            return False
        return True

    def close(self):
        self.open = False
        for s in self.sides.values():
            s.drop()
            s.sock.close()


class Proxy:
    def __init__(self, loop, path, target, framing=VHOST_USER):
        self.path, self.target, self.framing, self.loop = path, target, framing, loop
        self.next_plan = None
        self.fired = threading.Event()
        self.last_count = 0
        self.connections = []
        self.before_cut = lambda: None   # what is at the client's end may have to die with its connection
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(16)
        self.listener.setblocking(False)
        loop.do(lambda: loop.sel.register(self.listener, selectors.EVENT_READ, (self, None)))

    def accept(self):
        try:
            client, _ = self.listener.accept()
        except OSError:
            return
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self.target)
        except OSError:
            client.close()
            server.close()
            return
        c = Connection(self, client, server)
        if c.plan and not c.plan[1] and c.plan[0] == 0:
            self.before_cut()
            self.fired.set()
            c.close()
            return
        self.connections.append(c)
        for s in c.sides:
            self.loop.sel.register(s, selectors.EVENT_READ, (self, c))

    def end(self, c):
        if not c.open:
            return
        for s in c.sides:
            self.loop.sel.unregister(s)
        c.close()
        self.connections.remove(c)

    def cut(self, plan=None):
        """Cut what is open; with a plan the next connection as well, and wait with .fired for that."""
        done = threading.Event()

        def go():
            self.fired.clear()
            self.next_plan = plan
            if self.connections:
                self.before_cut()
            for c in list(self.connections):
                self.end(c)
            done.set()
        self.loop.do(go)
        done.wait(10)

    def forget(self):
        """No plan any more, neither for the next connection nor for the present one."""
        def go():
            self.next_plan = None
            for c in self.connections:
                c.plan = None
        self.loop.do(go)


class Loop(threading.Thread):
    """All proxies' thread."""

    def __init__(self):
        super().__init__(daemon=True)
        self.sel = selectors.DefaultSelector()
        self.wake_r, self.wake_w = os.pipe()
        self.todo = []
        self.lock = threading.Lock()
        self.sel.register(self.wake_r, selectors.EVENT_READ, (None, None))
        self.start()

    def do(self, fn):
        with self.lock:
            self.todo.append(fn)
        os.write(self.wake_w, b"x")

    def run(self):
        while True:
            for key, _ in self.sel.select():
                proxy, c = key.data
                if proxy is None:
                    os.read(self.wake_r, 4096)
                    with self.lock:
                        todo, self.todo = self.todo, []
                    for fn in todo:
                        fn()
                elif c is None:
                    proxy.accept()
                elif c.open and not c.readable(key.fileobj):
                    proxy.end(c)
