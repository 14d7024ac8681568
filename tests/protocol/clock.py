# SPDX-License-Identifier: BSD-3-Clause
"""How long something took the daemon, without what the scheduler took from it or from this process: a busy machine is not its doing."""
import contextlib
import os
import time


class Clock:
    def __init__(self, d):
        self.tasks = f"/proc/{d.proc.pid}/task"
        self.main = f"{self.tasks}/{d.proc.pid}/schedstat"
        self.data = [f"{self.tasks}/{t}/schedstat" for t in os.listdir(self.tasks)
                     if open(f"{self.tasks}/{t}/comm").read().startswith("vp-data")]

    def sample(self):
        """Now; the seconds for which the daemon's main and data threads have run; those for which they and this one waited for a CPU."""
        t = [[int(v) / 1e9 for v in open(p).read().split()[:2]] for p in [self.main, *self.data, "/proc/thread-self/schedstat"]]
        return time.monotonic(), t[0][0], sum(c for c, _ in t[1:-1]), sum(w for _, w in t)

    @contextlib.contextmanager
    def timed(self, took, work="either"):
        """Adds to the list how many seconds it was. @work: whose it is, main, data or either."""
        before = self.sample()
        yield
        all, main, data, waited = (b - a for a, b in zip(before, self.sample()))
        # They may have waited at the same time. What was done meanwhile was not waiting in any case.
        did = {"main": main, "data": data, "either": max(main, data)}[work]
        took.append(max(all - waited, min(did, all)))
