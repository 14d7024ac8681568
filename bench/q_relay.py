# SPDX-License-Identifier: BSD-3-Clause
"""relay: two virtio-net drivers joined by the relay, against a testpmd that forwards between two vhost ports.

Packets circulate: each driver sends back what it receives, so nothing is lost and the slower
core sets the pace. What counts is busy cycles per packet of the process in the middle.
"""
import os
import time

import harness
import middle
from testpmd import DriverVms, Testpmd

PEER = "testpmd io, 2 x net_vhost"
BURSTS = 8  # of 32 packets in flight each way

# As a Linux guest negotiates first; then the variants.
RINGS = [
    ("split", "packed_vq=0,mrg_rxbuf=1,in_order=0"),
    ("packed", "packed_vq=1,mrg_rxbuf=1,in_order=0"),
    ("split in-order", "packed_vq=0,mrg_rxbuf=1,in_order=1"),
    ("packed in-order", "packed_vq=1,mrg_rxbuf=1,in_order=1"),
    ("split no-mrgbuf", "packed_vq=0,mrg_rxbuf=0,in_order=0"),
    ("packed no-mrgbuf", "packed_vq=1,mrg_rxbuf=0,in_order=0"),
]
SIZES = [64, 512, 1518]


class PeerMiddle:
    """testpmd with two vhost ports."""
    def __init__(self, cpu, workdir):
        self.sockets = [os.path.join(workdir, "peer%d.sock" % i) for i in range(2)]
        for s in self.sockets:
            if os.path.exists(s):
                os.unlink(s)
        self.t = Testpmd("peer-middle", cpu, ["net_vhost%d,iface=%s,queues=1" % (i, s)
                                              for i, s in enumerate(self.sockets)], workdir, mem=128)
        self.pid = self.t.p.pid

    def start(self):
        self.t.cmd("start")

    def stop(self):
        self.t.cmd("stop")

    def mark(self):
        self.t.clear()

    def since(self):
        s = self.t.stats()
        return s["tx"], s["cycles"], s["txdrop"]

    def end(self):
        self.t.end()


class Setup:
    """A middle and its two driver VMs."""

    def __init__(self, name, mid, cpus, workdir, ring):
        self.mid, self.cpus = mid, cpus
        self.drv = DriverVms(name + "-drivers", cpus[0], mid.sockets, workdir, ring)

    def sample(self, size, seconds):
        self.mid.start()
        self.drv.start(size, BURSTS)
        time.sleep(0.1 + seconds / 5)
        d = harness.Disturbance([self.mid.pid, self.drv.p.pid], self.cpus)
        d.start()
        self.drv.clear()
        t0 = time.monotonic()
        self.mid.mark()
        time.sleep(seconds)
        packets, cycles, drops = self.mid.since()
        dt = time.monotonic() - t0
        drv = self.drv.stats()
        disturbed = d.share()
        self.drv.stop()
        self.mid.stop()
        if not packets:
            raise harness.BenchError("no packet came through %s; see the logs in %s" %
                                     (type(self.mid).__name__, os.path.dirname(self.drv.log.name)))
        hz = drv["hz"] or 1
        return {"cpp": cycles / packets, "pps": packets / dt, "drops": drops, "disturbed": disturbed,
                "mid_busy": cycles / dt / hz, "drv_busy": drv["cycles"] / dt / hz,
                "drv_cpp": drv["cycles"] / max(drv["rx"], 1), "per_burst": getattr(self.mid, "per_burst", None)}

    def end(self):
        self.drv.end()


def limit(samples, which):
    """Which core set the pace."""
    mid = sorted(s[which]["mid_busy"] for s in samples)[len(samples) // 2]
    drv = sorted(s[which]["drv_busy"] for s in samples)[len(samples) // 2]
    return {"bottleneck": "middle" if mid >= drv else "drivers",
            "busy_middle": round(mid, 2), "busy_drivers": round(drv, 2)}


def run(opt):
    rings = [r for r in (RINGS[:2] if opt.quick and not opt.only else RINGS) if opt.only in (None, r[0])]
    if not rings:
        raise harness.BenchError("--only: choose one of " + ", ".join(r[0] for r in RINGS))
    seconds = 0.4 if opt.quick else 1.0
    n = 3 if opt.quick else opt.pairs
    cpus = harness.two_cpus()
    harness.need_hugepages(400)
    results = []
    progress = harness.Progress("relay", len(rings) * len(SIZES) * n)
    for ring_name, ring in rings:
        ours = middle.relay(opt, cpus[1])
        peer = PeerMiddle(cpus[1], opt.workdir)
        a = Setup("ours", ours, cpus, opt.workdir, ring)
        b = Setup("peer", peer, cpus, opt.workdir, ring)
        try:
            for size in SIZES:
                case = "%s %d B" % (ring_name, size)
                got = harness.pairs(lambda: a.sample(size, seconds), lambda: b.sample(size, seconds), n,
                                    lambda: progress.step(case))
                la, lb = limit(got, 0), limit(got, 1)
                more = {"limit_ours": la, "limit_peer": lb, "size": size, "ring": ring_name,
                        "middle": ours.kind, "drops": sum(s[0]["drops"] for s in got),
                        "per_burst": got[n // 2][0]["per_burst"],
                        "driver_cycles_ours": round(sorted(s[0]["drv_cpp"] for s in got)[n // 2], 1),
                        "driver_cycles_peer": round(sorted(s[1]["drv_cpp"] for s in got)[n // 2], 1)}
                results.append(harness.compare("relay", case, "busy cycles/packet", got, "cpp", True, PEER, **more))
                more["note"] = "paced by %s, peer by %s" % (la["bottleneck"], lb["bottleneck"])
                results.append(harness.compare("relay", case, "packets/s", got, "pps", False, PEER, **more))
        finally:
            a.end()
            b.end()
            ours.end()
            peer.end()
    plot(opt, results)
    return results


def plot(opt, results):
    rows = ["case ours peer ratio"]
    for r in results:
        if r["unit"] == "busy cycles/packet":
            rows.append('"%s" %.1f %.1f %s' % (r["case"], r["ours"], r["peer"], r["ratio"] or "nan"))
    harness.gnuplot(opt.outdir, "relay", """
set title "Relay: busy cycles per packet of the process in the middle (less is better)"
set style data histograms
set style fill solid 0.8 border -1
set boxwidth 0.9
set xtics rotate by -40
set ylabel "TSC cycles per packet"
set yrange [0:*]
plot 'relay.dat' using 2:xtic(1) title 'vhost-pcid relay' lc rgb '#2060a0', \\
     '' using 3 title 'testpmd io between two net_vhost' lc rgb '#c08040', \\
     '' using 0:($2 > $3 ? $2 : $3):(sprintf("%.2fx", $4)) with labels offset 0,0.7 notitle
""", {"relay.dat": "\n".join(rows) + "\n"})
