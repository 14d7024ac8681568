# SPDX-License-Identifier: BSD-3-Clause
"""viommu: what a driver VM's vIOMMU costs, by the way in which the guest maps its packets.

bench/viommu plays a driver VM that sends 64 B packets with 64 in flight: strict maps and unmaps each page and waits for each
invalidation, lazy shares one among 256, pooled maps its buffers once in 2 MiB pages, as DPDK does. The peer of
relay and copy links is the same link without a vIOMMU ("identity"), not another program; the cases
"testpmd" have DPDK's vhost library (net_vhost, iommu-support=1) in our place, under the same front-end.
"""
import json
import os
import resource
import subprocess
import time

import harness
import middle
from testpmd import Testpmd

MODES = ["strict", "lazy", "pooled"]
SIZE = 64


class Ours:
    def __init__(self, opt, cpu, kind):
        s = [os.path.join(opt.workdir, "%s-viommu%d.sock" % (kind, i)) for i in range(2)]
        link = middle.relay_link(*s) if kind == "relay" else {
            "Link": {"Mode": kind}, "Driver": {"VM": "a", "Socket": s[0]},
            "Device": {"VM": "c" if kind == "fast" else "b", "Endpoint": "port", "Attachment": "local", "Socket": s[1]}}
        # The data thread has its core; whoever answers IOTLB messages runs where there is room.
        self.d = middle.Daemon(opt, None, [("bench", link)], {"CPUs": cpu}, name="pcid-viommu-" + kind)
        middle.wait_sockets(self.d.p, s)
        self.args = [s[0], s[1] if kind == "relay" else "unix:" + s[1]]
        self.pid = self.d.pid

    def end(self):
        self.d.end()


class Peer:
    """testpmd that forwards between two vhost ports, the first with IOMMU support."""

    def __init__(self, opt, cpu):
        self.args = [os.path.join(opt.workdir, "peer-viommu%d.sock" % i) for i in range(2)]
        self.t = Testpmd("peer-viommu", cpu, ["net_vhost%d,iface=%s,queues=1,iommu-support=%d" % (i, s, 1 - i)
                                              for i, s in enumerate(self.args)], opt.workdir)
        self.t.cmd("start")
        self.pid = self.t.p.pid
        # As ours: the thread that answers IOTLB messages does not wait for the polling one.
        for tid in os.listdir("/proc/%d/task" % self.pid):
            if harness.read("/proc/%d/task/%s/comm" % (self.pid, tid)).startswith("vhost"):
                os.sched_setaffinity(int(tid), harness.two_cpus())

    def end(self):
        self.t.cmd("stop")
        self.t.end()


def child_ns():
    """CPU time of children that have ended."""
    u = resource.getrusage(resource.RUSAGE_CHILDREN)
    return int((u.ru_utime + u.ru_stime) * 1e9)


def sample(opt, cpus, where, mode, ms, size=SIZE):
    argv = [middle.program(opt, "bench", "viommu"), *where.args, mode, str(size), str(ms)]
    ends, host = child_ns(), harness.cpu_ns(where.pid)
    p = harness.spawn(argv, cpu=cpus[0], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    d = harness.Disturbance([where.pid, p.pid], cpus)
    try:
        d.start()
        time.sleep(ms / 1000)
        disturbed = d.share()
    except OSError:
        disturbed = 0
    out, err = p.communicate(timeout=30)
    harness.reap(p)
    if p.returncode:
        raise harness.BenchError(err.strip() or "bench/viommu ended with code %d" % p.returncode)
    r = json.loads(out)
    n = max(r["packets"], 1)
    ends, host = child_ns() - ends, harness.cpu_ns(where.pid) - host
    return {"pps": r["packets"] / r["seconds"], "ends": ends / n, "host": host / n, "cpu": (ends + host) / n, "misses": r["misses"] / n, "invalidations": r["invalidations"] / n,
            "disturbed": disturbed}


def median(samples, key):
    return round(sorted(s[key] for s, _ in samples)[len(samples) // 2], 4)


def measure(opt, cpus, kind, where, ms, n, results, step):
    for mode in MODES:
        got = harness.pairs(lambda: sample(opt, cpus, where, mode, ms), lambda: sample(opt, cpus, where, "identity", ms), n, step)
        more = {"misses": median(got, "misses"), "invalidations": median(got, "invalidations"), "mode": mode, "link": kind}
        more["note"] = "%s misses and %s invalidations per packet" % (more["misses"], more["invalidations"])
        results.append(harness.compare("viommu", "%s %s" % (kind, mode), "packets/s", got, "pps", False, kind + " without vIOMMU", **more))


def run(opt):
    ms, n = (300, 3) if opt.quick else (1000, opt.pairs)
    cpus = harness.two_cpus()
    kinds = [k for k in ("relay", "copy", "testpmd") if opt.only in (None, k)]
    progress = harness.Progress("viommu", len(kinds) * len(MODES) * n)
    results = []
    for kind in kinds:
        where = None
        try:
            if kind == "testpmd":
                harness.need_hugepages(40)
            where = Peer(opt, cpus[1]) if kind == "testpmd" else Ours(opt, cpus[1], kind)
            measure(opt, cpus, kind, where, ms, n, results, lambda: progress.step(kind))
        except harness.BenchError as e:
            if kind != "testpmd":
                raise
            harness.say("viommu: no figures of testpmd: %s" % e)
        finally:
            if where:
                where.end()
    plot(opt, results)
    return results


def plot(opt, results):
    rows = ["case pps"] + ['"%s" %.0f' % (r["case"], r["ours"]) for r in results]
    harness.gnuplot(opt.outdir, "viommu", """
set title "Packets per second through a vIOMMU, 64 B"
set style data histograms
set style fill solid 0.8 border -1
set boxwidth 0.9
set logscale y
set xtics rotate by -40
set ylabel "packets/s"
plot 'viommu.dat' using 2:xtic(1) notitle lc rgb '#2060a0'
""", {"viommu.dat": "\n".join(rows) + "\n"})
