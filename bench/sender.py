# SPDX-License-Identifier: BSD-3-Clause
"""bench/send_dpdk: a driver VM that sends packets made before, or drops what it receives."""
import os

import harness
import middle
from testpmd import RING


class Sender(harness.Lines):
    # What dpdk-testpmd calls these.
    MODES = {"txonly": "send", "rxonly": "take"}

    def __init__(self, opt, name, cpu, socket, ring):
        self.s0 = None
        super().__init__([middle.program(opt, "bench", "send_dpdk"), "-l", str(cpu), "--in-memory", "--no-pci", "-m", "48",
                          "--single-file-segments", "--file-prefix", "vpsend-%d-%s" % (os.getpid(), name), "--log-level", "4",
                          "--force-max-simd-bitwidth=512", "--vdev",
                          "net_virtio_user0,path=%s,queue_size=%d,%s" % (socket, RING, ring)],
                         cpu, os.path.join(opt.workdir, name + ".log"))

    def run(self, mode, size):
        self.cmd("%s %d" % (self.MODES.get(mode, mode), size))

    def halt(self):
        self.cmd("stop")

    def mark(self):
        self.s0 = self.cmd("stats")

    def since(self):
        """Packets, busy cycles, dropped."""
        s = self.cmd("stats")
        return s["packets"] - self.s0["packets"], s["busy_cycles"] - self.s0["busy_cycles"], 0
