# SPDX-License-Identifier: BSD-3-Clause
"""A service manager that keeps fds for a service, for tests without one."""

import array
import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading


class Manager:
    """What systemd does of a service's fd store: FDSTORE=1, FDSTOREREMOVE=1, LISTEN_FDS at the next start.

    As with NotifyAccess=main, a process is listened to once it is the main one: it was started here, or the last one named it (MAINPID=).
    """

    def __init__(self, path, but_for=()):
        """@but_for: what it does not keep, by the ends of its names."""
        self.path, self.but_for = path, tuple(but_for)
        self.store = []          # (name, fd)
        self.refused = []        # what others said
        self.mains = {os.getpid()}
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.sock.bind(self.path)
        self.lock = threading.Lock()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                # A service has those that spawn() places, and no others.
                data, ctl, _, _ = self.sock.recvmsg(4096, socket.CMSG_SPACE(64 * 4) + socket.CMSG_SPACE(12), socket.MSG_CMSG_CLOEXEC)
            except OSError:
                return
            fds, pid = array.array("i"), 0
            for level, kind, raw in ctl:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds.frombytes(raw[:len(raw) - len(raw) % fds.itemsize])
                if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                    pid = int.from_bytes(raw[:4], sys.byteorder)
            words = dict(line.split("=", 1) for line in data.decode().splitlines() if "=" in line)
            with self.lock:
                if pid not in self.mains:
                    self.refused.append(words)
                    words = {}
                if "MAINPID" in words:
                    self.mains.add(int(words["MAINPID"]))
                if words.get("FDSTORE") == "1" and not words["FDNAME"].endswith(self.but_for):
                    self.store += [(words["FDNAME"], fd) for fd in fds]
                elif words.get("FDSTOREREMOVE") == "1":
                    for name, fd in [e for e in self.store if e[0] == words["FDNAME"]]:
                        self.store.remove((name, fd))
                        os.close(fd)
                else:
                    for fd in fds:
                        os.close(fd)

    def names(self):
        with self.lock:
            return sorted(name for name, _ in self.store)

    def close(self):
        with self.lock:
            self.sock.close()
            for _, fd in self.store:
                os.close(fd)
            self.store = []

    def spawn(self, command, **kw):
        """Start the service with what is kept for it. @kw as for Popen, without env, close_fds and preexec_fn."""
        with self.lock:
            store = list(self.store)
        env = dict(os.environ, NOTIFY_SOCKET=self.path)
        if store:
            env.update(LISTEN_FDS=str(len(store)), LISTEN_FDNAMES=":".join(name for name, _ in store))

        def place():
            # It ends with us, however we end.
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
            # Out of the way first: they go to 3, 4, 5, ...
            for i, fd in enumerate([fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 200) for _, fd in store]):
                os.dup2(fd, 3 + i)

        command = ["sh", "-c", 'export LISTEN_PID=$$; exec "$@"', "sh", *command]
        with self.lock:
            proc = subprocess.Popen(command, env=env, close_fds=False, preexec_fn=place, **kw)
            self.mains.add(proc.pid)
        return proc
