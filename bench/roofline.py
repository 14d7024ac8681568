# SPDX-License-Identifier: BSD-3-Clause
"""bench/copyroof: what this machine's memcpy does with packets."""
import json
import subprocess
import time

import harness
import middle


class Roof:
    def __init__(self, opt, cpu):
        self.cpu = cpu
        self.p = harness.spawn([middle.program(opt, "bench", "copyroof")], cpu=cpu, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True, bufsize=1)

    def sample(self, size, buffers, to, seconds):
        """One copy after the other out of `buffers` packet buffers into `to`."""
        d = harness.Disturbance([self.p.pid], [self.cpu])
        d.start()
        t = time.monotonic()
        self.p.stdin.write("%d %d %d %d\n" % (size, buffers, seconds * 1000, to))
        r = json.loads(self.p.stdout.readline())
        r["disturbed"] = d.share() if time.monotonic() - t > 0.01 else 0
        return r

    def end(self):
        self.p.stdin.close()
        harness.reap(self.p)
