# SPDX-License-Identifier: BSD-3-Clause
"""What a scripted guest does on any port, and how often the daemon is woken by it."""
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

import portclient as pc


def forward(p, n=1, base=None):
    """Take n packets from queue 1, return them; give the buffers back."""
    s = p.state()
    q, out = s.queues[1], []
    i = q.base if base is None else base
    while len(out) < n:
        got = p.take(q, i)
        if got is None:
            assert pc.raised(p.signals[q.kick_signal], pc.limit(2)), "no kick"
            continue
        bufs, head = got
        out.append(b"".join(bytes(p.view(a, l)) for a, l, w in bufs)[12:])
        p.give_back(q, i, head, 0)
        i += 1
    pc.one(p.doorbells[q.doorbell])
    return out, i & 0xffff


def answer_stop(p, q, base, flags=0):
    s = p.wait(lambda s: s.queues[q].flags & pc.STOP)
    assert p.stopped(q, s.queues[q].run, base & 0xffff, flags) == pc.OK
    return p.wait(lambda s: not s.queues[q].flags & pc.STOP)


def eventfd_id(fd):
    return next(int(l.split()[1]) for l in open(f"/proc/self/fdinfo/{fd}") if l.startswith("eventfd-id"))


def same(a, b):
    return eventfd_id(a) == eventfd_id(b)


def settled(d, kicks, calls):
    """Until the daemon says that so many signals go straight through."""
    def now():
        s = d.show("ab")["sides"]["device"]
        return s["kicks_direct"] == kicks and s["calls_direct"] == calls
    d.wait(now)


class Strace:
    """System calls of the daemon, of all its threads or of one."""

    def __init__(self, d, thread=None):
        if not shutil.which("strace"):
            pytest.skip("strace is not installed")
        self.out = str(d.tmp / "strace")
        pid = d.proc.pid
        self.threads = pathlib.Path(f"/proc/{pid}/task")
        which = ["-f", "-p", str(pid)]
        if thread:
            self.threads, = [t for t in self.threads.iterdir() if (t / "comm").read_text().strip() == thread]
            which = ["-p", self.threads.name]
        self.proc = subprocess.Popen(["strace", "-q", "-e", "trace=!futex", *which, "-o", self.out], stderr=subprocess.PIPE)
        d.wait(lambda: self.proc.poll() is not None or self.traced())
        if self.proc.poll() is not None:
            pytest.skip("strace may not attach: " + self.proc.stderr.read().decode())

    def traced(self):
        """strace has got hold of all that it was told to: from now on it misses no call."""
        of = [self.threads] if (self.threads / "status").exists() else list(self.threads.iterdir())
        return all(f"TracerPid:\t{self.proc.pid}\n" in (t / "status").read_text() for t in of)

    def end(self):
        time.sleep(0.1)  # what comes of the last one
        self.proc.send_signal(signal.SIGINT)
        self.proc.wait()
        return [l for l in open(self.out) if "(" in l and "resumed" not in l]


SIGNALS = 200


def count(d, what, thread=None):
    """Calls of the daemon for SIGNALS times what()."""
    st = Strace(d, thread)
    for _ in range(SIGNALS):
        what()
    calls = st.end()
    print(len(calls), "system calls for", SIGNALS, "signals")
    return calls
