# SPDX-License-Identifier: BSD-3-Clause
"""dpdk-testpmd as a driver VM (net_virtio_user ports) or as the vSwitch (net_vhost ports)."""
import glob
import os
import re
import select
import shutil
import subprocess
import time

import harness

# As a VMM sets a NIC up by default. Few buffers in all, so that drivers and switch turn round in cache, not in memory.
RING = 256
MBUFS = 4096

PROMPT = b"testpmd> "

TREE = None  # a Debian system below a directory, whose dpdk-testpmd is used instead of this one's (scripts/bench --dpdk)


def program():
    """How dpdk-testpmd is started, and the EAL options that it needs there."""
    if not TREE:
        if not shutil.which("dpdk-testpmd"):
            raise harness.BenchError("dpdk-testpmd is missing: install the package dpdk-dev (or run make setup)")
        return ["dpdk-testpmd"], []
    libs = glob.glob(TREE + "/usr/lib/*-linux-gnu")
    loader = glob.glob(TREE + "/usr/lib64/ld-linux-*") + glob.glob(TREE + "/usr/lib/ld-linux-*")
    drivers = [d for lib in libs for d in glob.glob(lib + "/dpdk/pmds-*")]
    path = TREE + "/usr/bin/dpdk-testpmd"
    if not os.path.exists(path) or not loader or not drivers:
        raise harness.BenchError("%s has no dpdk-testpmd: scripts/qemu11-tree --add dpdk-dev makes a tree that has" % TREE)
    return [loader[0], "--library-path", ":".join(libs), path], ["-d", drivers[0]]


def version():
    """Of DPDK, as its testpmd says it; None without one."""
    try:
        argv, more = program()
        r = subprocess.run(argv + more + ["-v", "--help"], capture_output=True, text=True)
    except (OSError, harness.BenchError):
        return None
    m = re.search(r"DPDK (\d[\w.-]*)", r.stdout + r.stderr)
    return m and m.group(1)


class Testpmd:
    def __init__(self, name, cpu, vdevs, workdir, mem=64, args=(), mbufs=MBUFS, depth=RING, eal=()):
        start, more = program()
        self.name, self.buf = name, b""
        self.log = open(os.path.join(workdir, name + ".log"), "ab")
        # Main and forwarding thread on one CPU: the main one sleeps in its prompt.
        argv = ["stdbuf", "-oL", *start, *more, *eal, "--lcores", "0@%d,1@%d" % (cpu, cpu), "--in-memory", "--no-pci",
                "-m", str(mem), "--single-file-segments", "--file-prefix", "vpbench-%d-%s" % (os.getpid(), name)]
        for v in vdevs:
            argv += ["--vdev", v]
        argv += ["--", "-i", "--forward-mode=io", "--record-core-cycles", "--no-mlockall",
                 "--total-num-mbufs=%d" % mbufs, "--rxd=%d" % depth, "--txd=%d" % depth, *args]
        # Its vhost library logs each connection, between commands too: a pipe that nobody reads would fill, and its thread stop.
        self.p = harness.spawn(argv, cpu=cpu, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, bufsize=0)
        self.poll = select.poll()
        self.poll.register(self.p.stdout, select.POLLIN)
        self._until_prompt(30)

    def _until_prompt(self, timeout):
        end = time.monotonic() + timeout
        while PROMPT not in self.buf:
            left = end - time.monotonic()
            if left <= 0 or not self.poll.poll(left * 1000):
                raise harness.BenchError("%s does not answer; see %s" % (self.name, self.log.name))
            data = os.read(self.p.stdout.fileno(), 65536)
            if not data:
                raise harness.BenchError("%s ended; see %s" % (self.name, self.log.name))
            self.log.write(data)
            self.log.flush()
            self.buf += data
        text, self.buf = self.buf.split(PROMPT, 1)
        return text.decode(errors="replace")

    def cmd(self, line, timeout=10):
        self.p.stdin.write(line.encode() + b"\n")
        return self._until_prompt(timeout)

    def stats(self):
        """Packets received, sent, dropped and busy cycles since the last clear()."""
        text = self.cmd("show fwd stats all")
        acc = text[text.find("Accumulated"):]
        out = {}
        for key, pat in (("rx", r"RX-packets: (\d+)"), ("tx", r"TX-packets: (\d+)"),
                         ("txdrop", r"TX-dropped: (\d+)"), ("cycles", r"(?:total|busy) cycles=(\d+)")):
            m = re.search(pat, acc)
            out[key] = int(m.group(1)) if m else 0
        m = re.search(r"at (\d+) MHz", acc)
        out["hz"] = int(m.group(1)) * 1e6 if m else 0
        return out

    def clear(self):
        self.cmd("clear fwd stats all")

    # ---- one direction: it sends, or takes what comes ----

    def run(self, mode, size):
        self.cmd("set fwd " + mode)
        self.cmd("set txpkts %d" % size)
        self.cmd("start")

    def halt(self):
        self.cmd("stop")

    def mark(self):
        self.clear()

    def since(self):
        """Packets, busy cycles, dropped."""
        s = self.stats()
        return s["rx"] or s["tx"], s["cycles"], s["txdrop"]

    @property
    def pid(self):
        return self.p.pid

    def end(self):
        if self.p.poll() is None:
            try:
                self.cmd("stop")
                self.p.stdin.write(b"quit\n")
                self.p.stdout.close()
            except (OSError, harness.BenchError):
                self.p.kill()
        harness.reap(self.p, 5)
        self.log.close()


class VhostPort(Testpmd):
    """The peer's device side: net_vhost ports."""

    def __init__(self, name, cpu, workdir, ports=1, queues=1, **kw):
        self.sockets = [os.path.join(workdir, "%s%d.sock" % (name, i)) for i in range(ports)]
        for s in self.sockets:
            if os.path.exists(s):
                os.unlink(s)
        super().__init__(name, cpu, ["net_vhost%d,iface=%s,queues=%d" % (i, s, queues)
                                     for i, s in enumerate(self.sockets)], workdir, **kw)


def memif(name, cpu, workdir, server, room=2048, **kw):
    """One end of a shared-memory interface; the server first."""
    return Testpmd(name, cpu, ["net_memif0,role=%s,id=0,socket=%s,socket-abstract=no,bsize=%d,rsize=8" %
                               ("server" if server else "client", os.path.join(workdir, "memif-%d.sock" % room), room)], workdir, **kw)


class DriverVms(Testpmd):
    """virtio-user ports in one process; in io mode packets circulate through what joins them."""

    def __init__(self, name, cpu, sockets, workdir, ring, **kw):
        vdevs = ["net_virtio_user%d,path=%s,queue_size=%d,%s" % (i, s, kw.get("depth", RING), ring) for i, s in enumerate(sockets)]
        super().__init__(name, cpu, vdevs, workdir, **kw)

    def start(self, size, bursts):
        self.cmd("set txpkts %d" % size)
        self.cmd("start tx_first %d" % bursts)

    def stop(self):
        """Stop, and take what is still in flight out of the rings."""
        self.cmd("stop")
        self.cmd("set fwd rxonly")
        self.cmd("start")
        time.sleep(0.05)
        self.cmd("stop")
        self.cmd("set fwd io")
