# SPDX-License-Identifier: BSD-3-Clause
"""vhost-pcid as a test sees it: a process, a directory of files and a control socket."""
import contextlib
import ctypes
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest

# The guest and the driver VM in Python: vu.py, portclient.py.
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "conformance"))

import portclient  # noqa: E402

portclient.SLOW = 6

BUILD = pathlib.Path(os.environ.get("VHOST_PCI_BUILD", pathlib.Path(__file__).parents[2] / "build"))


# Seconds: how long what must come is waited for. Ample: a machine may be slow, and a failure may come late.
PATIENCE = 60


def adopt_orphans():
    """From now on processes without a parent are children of this one."""
    assert not ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


class ControlError(Exception):
    def __init__(self, error):
        super().__init__(error["message"])
        self.code, self.message = error["code"], error["message"]


class Control:
    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(str(path))
        self.file = self.sock.makefile("r")
        self.n = 0

    def line(self):
        return json.loads(self.file.readline())

    def call(self, method, **params):
        self.n += 1
        self.sock.sendall(json.dumps({"version": 1, "id": self.n, "method": method, "params": params}).encode() + b"\n")
        answer = self.line()
        assert answer["version"] == 1 and answer["id"] == self.n
        if "error" in answer:
            raise ControlError(answer["error"])
        return answer["result"]

    def close(self):
        self.file.close()
        self.sock.close()


class Adopted:
    """A process that another one of ours started and left to init, whose place we take: as subprocess.Popen."""

    def __init__(self, pid):
        self.pid, self.returncode = pid, None

    def poll(self):
        if self.returncode is None and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def wait(self, timeout=None):
        deadline = time.monotonic() + (timeout or 3600)
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("vhost-pcid", timeout)
            time.sleep(0.005)
        return self.returncode

    def send_signal(self, sig):
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self):
        self.send_signal(signal.SIGKILL)


class Daemon:
    def __init__(self, tmp, args=()):
        self.tmp = pathlib.Path(tmp)
        self.conf = self.tmp / "conf"
        self.run = self.tmp / "run"
        self.conf.mkdir()
        self.args = list(args)
        self.proc = None
        self.control = None
        for vm in ("a", "b", "c", "d"):
            self.write(f"{vm}.vm", "[VM]\nTrustGroup=test\n")
        self.write("stranger.vm", "[VM]\nTrustGroup=other\n")

    def write(self, name, text):
        path = self.conf / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def link(self, name, driver="a", device="b", **keys):
        """keys as Section_Key=value."""
        sections = {"Link": {}, "Driver": {"VM": driver}, "Device": {"VM": device}, "Net": {}}
        for k, v in keys.items():
            section, key = k.split("_", 1)
            sections[section][key] = v
        self.write(f"{name}.link", "".join(f"[{s}]\n" + "".join(f"{k}={v}\n" for k, v in kv.items())
                                           for s, kv in sections.items() if kv))

    def command(self, *more):
        return [str(BUILD / "daemon/vhost-pcid"), "--config", str(self.conf), "--runtime-dir", str(self.run),
                "--log-level", "debug", *self.args, *more]

    def spawn(self, log):
        return subprocess.Popen(self.command(), stderr=log, stdin=subprocess.DEVNULL)

    def start(self):
        """May be called again when the process has ended; the log goes on."""
        self.log_path = self.tmp / "log"
        with open(self.log_path, "ab") as log:
            lives = self.log().count("ready:")
            self.proc = self.spawn(log)
        deadline = time.monotonic() + PATIENCE
        while self.log().count("ready:") == lives:
            assert self.proc.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.01)
        self.control = Control(self.run / "control.sock")
        return self

    def upgrade(self, **params):
        """A new daemon takes over; self is that one from now on. Its answer."""
        adopt_orphans()
        got = self.call("daemon.upgrade", **params)
        assert self.proc.wait(PATIENCE) == 0, self.log()
        self.proc = Adopted(got["pid"])
        return got

    def log(self):
        return self.log_path.read_text(errors="replace")

    def wait_log(self, text):
        self.wait(lambda: text in self.log(), why=f"not in the log: {text}")

    def sock(self, link, side):
        return str(self.run / f"{link}.{side}.sock")

    def listens(self, path):
        """A socket's file is there before somebody can connect to it."""
        sockets = (line.split() for line in pathlib.Path(f"/proc/{self.proc.pid}/net/unix").read_text().splitlines())
        return any(s[-1] == path and int(s[3], 16) & 0x10000 for s in sockets if len(s) == 8)  # SO_ACCEPTCON

    def call(self, method, **params):
        return self.control.call(method, **params)

    def show(self, link):
        return self.call("link.show", name=link)

    def stats(self, link):
        return self.call("link.stats", name=link)["links"][0]["sides"]

    def fds(self):
        return self.call("daemon.show")["open_fds"]

    def wait(self, what, timeout=PATIENCE, why="did not happen in time"):
        """Until what() is true; returns its value. @timeout is for what must not come later: what must come, comes."""
        deadline = time.monotonic() + timeout
        while True:
            v = what()
            if v:
                return v
            assert time.monotonic() < deadline, f"{why}\n{self.log()}"
            time.sleep(0.01)

    def stays(self, what, seconds):
        """what() is true now and for so long; returns its last value. For what must not happen."""
        deadline = time.monotonic() + seconds
        while True:
            v = what()
            assert v, "it did not stay so\n" + self.log()
            if time.monotonic() > deadline:
                return v
            time.sleep(0.005)

    def rest(self, what, seconds=0.3):
        """Until what() has been the same for so long; returns its value. For what goes on until it can go no further."""
        deadline = time.monotonic() + PATIENCE
        v, since = what(), time.monotonic()
        while time.monotonic() < since + seconds:
            assert time.monotonic() < deadline, "it does not come to rest\n" + self.log()
            time.sleep(0.01)
            if (now := what()) != v:
                v, since = now, time.monotonic()
        return v

    def wait_fds(self, n):
        # A moment with the right number is enough: what has leaked stays, and a client that goes away lags behind, also when n was counted.
        self.wait(lambda: self.fds() <= n)

    @contextlib.contextmanager
    def stopped(self):
        """It sees what is done here when all of it is done."""
        self.proc.send_signal(signal.SIGSTOP)
        stat = pathlib.Path(f"/proc/{self.proc.pid}/stat")
        try:
            self.wait(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
            yield
        finally:
            self.proc.send_signal(signal.SIGCONT)

    def alive(self):
        return self.proc.poll() is None

    def hang_up(self):
        if self.control:
            self.control.close()
            self.control = None

    def kill(self):
        self.proc.kill()
        self.proc.wait()
        self.hang_up()

    def stop(self):
        self.hang_up()
        if self.proc and self.alive():
            self.proc.send_signal(signal.SIGTERM)
            self.proc.wait(60)
        return self.proc.returncode if self.proc else 0


@pytest.fixture
def make_daemon():
    made = []

    def make(*args):
        tmp = tempfile.mkdtemp(prefix="vp")  # short: socket paths have a limit
        made.append(Daemon(tmp, args))
        return made[-1]

    yield make
    failures = []
    for d in made:
        if d.proc:
            code = d.stop()
            if code or "ERROR: AddressSanitizer" in d.log() or "runtime error:" in d.log():
                failures.append(f"exit status {code}\n{d.log()}")
        shutil.rmtree(d.tmp, ignore_errors=True)
    assert not failures, failures


@pytest.fixture
def daemon(make_daemon):
    """A running daemon with the links ab and cd."""
    d = make_daemon()
    d.link("ab")
    d.link("cd", driver="c", device="d")
    return d.start()


def pytest_sessionfinish(session, exitstatus):
    """Meson's sign for a skip, where a whole file was skipped: as a pass it would be counted."""
    stats = session.config.pluginmanager.getplugin("terminalreporter").stats
    if exitstatus == 0 and stats.get("skipped") and not stats.get("passed"):
        session.exitstatus = 77
