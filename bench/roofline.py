# SPDX-License-Identifier: BSD-3-Clause
"""bench/copyroof: what this machine's memcpy does with packets."""
import time

import harness
import middle


class Roof(harness.Lines):
    def __init__(self, opt, cpu):
        self.cpu = cpu
        super().__init__([middle.program(opt, "bench", "copyroof")], cpu, greets=False)

    def sample(self, size, buffers, to, seconds, writer=None):
        """One copy after the other out of `buffers` packet buffers into `to`; writer: the CPU that writes them first."""
        d = harness.Disturbance([self.p.pid], [self.cpu])
        d.start()
        t = time.monotonic()
        r = self.cmd("%d %d %d %d%s" % (size, buffers, seconds * 1000, to, "" if writer is None else " %d" % writer))
        r["disturbed"] = d.share() if time.monotonic() - t > 0.01 else 0
        return r
