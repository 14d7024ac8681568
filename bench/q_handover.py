# SPDX-License-Identifier: BSD-3-Clause
"""handover: for how long a busy link stands still in an upgrade, against a restart of the same build.

Numbered packets go from driver to driver; the longest time between two that arrive is what an end sees. After a restart the
front-ends connect again as soon as they can, and, as QEMU does with reconnect=1, a second after they have lost the connection.
"""
import ctypes
import os
import signal
import sys
import threading
import time

import harness
import middle
from frontend import IdleVm
from q_scale import need_files

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), "conformance"))

import vu  # noqa: E402

TARGET_MS = {16: 10.0}
PEER = "restart of the same build"


class Busy(threading.Thread):
    """One link's two ends, and packets from the one to the other."""

    def __init__(self, paths, memory=8 << 20):
        super().__init__(daemon=True)
        self.paths, self.memory = paths, memory
        self.ending, self.wait_s, self.last = False, 0, None
        self.gap, self.wrong = 0.0, None
        self.connect()

    def connect(self):
        end = time.monotonic() + 30
        while True:
            try:
                self.a, self.b = (vu.Nic(p, mem=vu.Memory(self.memory)) for p in self.paths)
                for nic in (self.a, self.b):
                    nic.sock.settimeout(None)
                return
            except (OSError, vu.Gone):
                if time.monotonic() > end:
                    raise
                time.sleep(0.001)

    def lost(self):
        """A front-end sees the end of its connection; looked at now and then, and when nothing comes."""
        for nic in (self.a, self.b):
            try:
                if nic.sock.recv(1, 0x40) == b"":  # MSG_DONTWAIT
                    return True
            except BlockingIOError:
                pass
            except OSError:
                return True
        return False

    def run(self):
        try:
            self.packets()
        except Exception as err:  # pylint: disable=broad-except
            self.wrong = err

    def packets(self):
        sent = got = 0
        while not self.ending:
            if sent - got < 16:
                self.a.send_packet(vu.frame(sent, 64))
                sent += 1
            p = self.b.poll_packet()
            now = time.monotonic()
            if p is not None:
                if p[1] != vu.frame(got, 64):
                    raise harness.BenchError("packet %d did not arrive" % got)
                got += 1
                if self.last is not None:
                    self.gap = max(self.gap, now - self.last)
                self.last = now
            elif self.last is not None and now - self.last > 0.005:
                if self.lost():
                    time.sleep(self.wait_s)
                    self.a.close()
                    self.b.close()
                    self.connect()
                    sent = got = 0
                time.sleep(0.0005)
            else:
                time.sleep(0.00005)

    def end(self):
        self.ending = True
        self.join()
        self.a.close()
        self.b.close()
        if self.wrong:
            raise self.wrong


def links(opt, n):
    return {"l%d" % i: [os.path.join(opt.workdir, "l%d%s" % (i, s)) for s in "ab"] for i in range(n)}


class Lab:
    def __init__(self, opt, n, cpu):
        self.opt, self.cpu, self.paths = opt, cpu, links(opt, n)
        self.start()
        self.busy = Busy(self.paths["l0"])
        self.idle = [IdleVm(p) for name, pair in self.paths.items() if name != "l0" for p in pair]
        self.busy.start()

    def start(self):
        self.d = middle.Daemon(self.opt, self.cpu, [(name, middle.relay_link(*pair)) for name, pair in self.paths.items()],
                               {"MaxLinks": 4096})
        middle.wait_sockets(self.d.p, [p for pair in self.paths.values() for p in pair])

    def settle(self):
        mark = time.monotonic()
        while self.busy.last is None or self.busy.last < mark + 0.2:
            if self.busy.wrong or time.monotonic() > mark + 60:
                raise harness.BenchError("no packets: %s" % self.busy.wrong)
            time.sleep(0.01)
        self.busy.gap = 0.0

    def upgrade(self):
        self.settle()
        got = self.d.call("daemon.upgrade")
        time.sleep(0.3)
        self.d.pid = got["pid"]
        return self.busy.gap * 1000, got["stall_us"] / 1000

    def restart(self, wait_s):
        self.settle()
        self.busy.wait_s = wait_s
        self.end_daemon()
        self.start()
        mark = time.monotonic()
        while self.busy.last < mark:
            if self.busy.wrong or time.monotonic() > mark + 60:
                raise harness.BenchError("no packets after the restart: %s" % self.busy.wrong)
            time.sleep(0.01)
        return self.busy.gap * 1000

    def end_daemon(self):
        """It may be another process than the one that was started, and then it is our child by adoption."""
        os.kill(self.d.pid, signal.SIGTERM)
        os.waitpid(self.d.pid, 0)
        self.d.sock.close()

    def end(self):
        self.busy.end()
        for vm in self.idle:
            vm.close()
        self.end_daemon()


def run(opt):
    results = []
    # Successors have no parent: they are to be ours, so that they can be waited for.
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    cpus = harness.two_cpus()
    for n in [1, 16] if opt.quick else [1, 16, 200]:
        need_files(24 * n + 200)
        with_lab = Lab(opt, n, cpus[0])
        try:
            seen = [with_lab.upgrade() for _ in range(3 if opt.quick else opt.pairs)]
            peer = {w: [with_lab.restart(w) for _ in range(2 if opt.quick else 3)] for w in (0, 1)} if n == 1 else {}
        finally:
            with_lab.end()
        gaps = [g for g, _ in seen]
        target = TARGET_MS.get(n)
        note = "target at most %g ms: %s" % (target, "met" if sorted(gaps)[len(gaps) // 2] <= target else "missed") if target else None
        results.append(harness.single("handover", "%d links, an end sees" % n, "ms", gaps, note=note))
        results.append(harness.single("handover", "%d links, the daemon says" % n, "ms", [s for _, s in seen]))
        for w, values in peer.items():
            lo, mid, hi = harness.quartiles(values)
            ours = harness.quartiles(gaps)[1]
            results.append({"question": "handover", "case": "1 link, against a restart, reconnect %s" % ("after 1 s" if w else "at once"),
                            "unit": "ms", "ours": ours, "peer": mid, "peer_name": PEER, "ratio": mid / ours if ours else None,
                            "runs": len(values), "spread": round((hi - lo) / mid, 3) if mid else 0})
    harness.table(results)
    return results
