# SPDX-License-Identifier: BSD-3-Clause
"""isolation: what it costs that a device VM reaches only a part of the driver VM's memory.

Three tables, each with every party's CPU in it; --only takes one (a kind of ring, such as split; viommu; blk).

1. Cycles per packet of the whole path (driver VM, host, device VM) against a fast link, whose device VM reaches everything.
   The ends use their packets (bench/use.h):

  grant, memory    the driver VM keeps rings and buffers in a memory device and grants that: nobody copies anything
  grant, swiotlb   the driver VM bounces each packet through the pool that it grants, on its own core: one copy there (the
                   allocation of slots, which Linux adds, is not counted)
  copy             the daemon copies, on the host's core

   "bare ends" do not look at their packets, as in the other questions. So do the ends of "relay", where the device VM has a
   network card like the driver VM, in the place of a port. "packets/s" is that of the grant link over memory against the fast link:
   no byte and no signal of it passes the daemon. The device VM is a process on the local attachment; a driver VM is DPDK's
   virtio-user port. Both ends of a copy or relay link run on one core and the daemon on the other, those of fast and grant links on a
   core each, as in the question `copy`.

2. "viommu": a driver VM whose vIOMMU shows the device side no page but those of the packets that are under way: strict and lazy, as
   in the question `viommu` (bench/viommu.c, both ends in one process, which polls). What is counted is all CPU time of that
   process and of the daemon, against a fast link without a vIOMMU under the same program.

3. "blk": a disk, qemu-storage-daemon behind a link against the same joined directly, as in the question `blk` with a file in
   memory: CPU time of the driver, the back-end and the daemon for a request.
"""
import os

import harness
import middle
import q_blk
import q_viommu
from q_copy import SIZES, PortLink, parts
from q_relay import RINGS, Setup

FAST = "fast link"
WHOLE = "cycles/packet, whole path"
ALL_CPU = "ns CPU/packet, all parties"
VIOMMU = [("fast", "identity"), ("copy", "identity"), ("copy", "lazy"), ("copy", "strict"), ("relay", "identity"), ("relay", "lazy"),
          ("relay", "strict")]
BLK = [("read", 4096), ("write", 4096), ("read", 65536), ("write", 65536)]


class Relay(Setup):
    """A relay link between two driver VMs with bare ends."""

    def __init__(self, opt, cpus, ring):
        super().__init__("relay", middle.DaemonRelay(opt, cpus[1]), cpus, opt.workdir, ring)

    def whole(self, size, seconds):
        s = self.sample(size, seconds)
        # Of a packet's way: one driver VM sends it, the other receives it.
        return dict(s, whole=s["cpp"] + s["drv_cpp"], driver=s["drv_cpp"] / 2, device=s["drv_cpp"] / 2)

    def end(self):
        super().end()
        self.mid.end()


def rows(opt, ring_name, ring, seconds, n, cpus, step):
    results = []
    fast, copy, grant = (PortLink(opt, m, cpus, ring) for m in ("fast", "copy", "grant"))
    relay = Relay(opt, cpus, ring)
    ways = [("grant, memory", grant, {"use": True}), ("grant, swiotlb", grant, {"bounce": True}), ("copy", copy, {"use": True})]
    try:
        for size in SIZES:
            def against(name, what, ours, other, peer, note=True):
                case = "%s, %s %d B" % (name, ring_name, size)
                got = harness.pairs(ours, other, n, lambda: step(case))
                more = {"size": size, "ring": ring_name, "way": name}
                if note:
                    more["host"] = round(harness.middle_of([s[0]["cpp"] for s in got]), 1)
                    more["note"] = parts(got, more)
                for unit, key, smaller in what:
                    results.append(harness.compare("isolation", case, unit, got, key, smaller, peer, **more))

            for name, link, how in ways:
                what = [(WHOLE, "whole", True)] + ([("packets/s", "pps", False)] if name == "grant, memory" else [])
                against(name, what, lambda: link.sample(size, seconds, **how), lambda: fast.sample(size, seconds, True), FAST)
            for name, sample in ("copy, bare ends", lambda: copy.sample(size, seconds)), ("relay, bare ends", lambda: relay.whole(size, seconds)):
                against(name, [(WHOLE, "whole", True)], sample, lambda: fast.sample(size, seconds), FAST)
            for name, how, use in ("grant, swiotlb", {"bounce": True}, True), ("grant, memory, bare ends", {}, False):
                against(name, [(WHOLE, "whole", True)], lambda: grant.sample(size, seconds, **how), lambda: copy.sample(size, seconds, use),
                        "copy link", False)
    finally:
        for x in (relay, fast, copy, grant):
            x.end()
    return results


def viommu(opt, cpus, ms, n, progress):
    at, results = {}, []
    try:
        for kind in ("fast", "copy", "relay"):
            at[kind] = q_viommu.Ours(opt, cpus[1], kind)
        for size in SIZES:
            samplers = [lambda k=k, m=m: q_viommu.sample(opt, cpus, at[k], m, ms, size) for k, m in VIOMMU]
            got = harness.rounds(samplers, n, lambda: progress.step("viommu %d B" % size))
            for i, (kind, mode) in enumerate(VIOMMU[1:], 1):
                way = "%s, %s" % (kind, "no vIOMMU" if mode == "identity" else mode + " vIOMMU")
                case, pairs = "%s, %d B" % (way, size), harness.column(got, i, 0)
                more = {"size": size, "way": way, "misses": q_viommu.median(pairs, "misses"), "invalidations": q_viommu.median(pairs, "invalidations")}
                middle_of = lambda g, key: harness.middle_of([s[g][key] for s in pairs])
                note = "ends %.0f, daemon %.0f; %s misses and %s invalidations a packet; fast: %.0f and %.0f" % (
                    middle_of(0, "ends"), middle_of(0, "host"), more["misses"], more["invalidations"], middle_of(1, "ends"), middle_of(1, "host"))
                results += [harness.compare("isolation", case, ALL_CPU, pairs, "cpu", True, FAST, note=note, **more),
                            harness.compare("isolation", case, "packets/s", pairs, "pps", False, FAST, **more)]
    finally:
        for x in at.values():
            x.end()
    return results


def blk(opt, cpus, ms, n, progress):
    subjects, results = [], []
    at = q_blk.layout("own-core", cpus)
    try:
        subjects += q_blk.try_links(opt, at, "ram")
        subjects.append(q_blk.Direct(opt, at, "ram"))
        for kind, size in BLK:
            got = harness.rounds([lambda s=s: s.sample(kind, size, 32, "sleep", ms) for s in subjects], n, lambda: progress.step("blk " + kind))
            for i, s in enumerate(subjects[:-1]):
                note = "%s; direct: %s" % (q_blk.words(got, i), q_blk.words(got, -1))
                case = "disk, %s, %s %d KiB, depth 32" % (s.name, kind, size // 1024)
                results.append(harness.compare("isolation", case, "us CPU/request", harness.column(got, i, len(subjects) - 1), "cpu", True,
                                               q_blk.DIRECT, note=note, way="disk, " + s.name, kind=kind, size=size))
    finally:
        for s in subjects:
            s.end()
        if os.path.exists(q_blk.image(opt)):
            os.unlink(q_blk.image(opt))
    return results


def run(opt):
    rings = [r for r in RINGS[:2] if opt.only in (None, r[0])]
    tables = [t for t in ("viommu", "blk") if opt.only in (None, t)]
    if not rings and not tables:
        raise harness.BenchError("--only: choose one of split, packed, viommu, blk")
    # Short samples: what the machine does to a core lasts for seconds, and should hold for both halves of a pair.
    seconds, n = (0.1, 3) if opt.quick else (0.25, opt.pairs)
    cpus = harness.two_cpus()
    progress = harness.Progress("isolation", n * (len(rings) * len(SIZES) * 7 + ("viommu" in tables) * len(SIZES) + ("blk" in tables) * len(BLK)))
    results = []
    if rings:
        harness.need_hugepages(390)
    for ring_name, ring in rings:
        results += rows(opt, ring_name, ring, seconds, n, cpus, progress.step)
    if "viommu" in tables:
        results += viommu(opt, cpus, 150 if opt.quick else 400, n, progress)
    if "blk" in tables:
        results += blk(opt, cpus, 150 if opt.quick else 250, n, progress)
    plot(opt.outdir, results)
    return results


def plot(outdir, results):
    """All of it as a multiple of what is not isolated: one bar for small packets or requests, one for large ones."""
    by, small = {}, min(SIZES)
    for r in results:
        if r["ratio"] and r["peer_name"] in (FAST, q_blk.DIRECT) and r["unit"] in (WHOLE, ALL_CPU, "us CPU/request") and r.get("kind") != "write":
            name = r["way"] + (", " + r["ring"] if r.get("ring") else "")
            by.setdefault(name, {})["small" if r["size"] in (small, 4096) else "large"] = 1 / r["ratio"]
    if not by:
        return
    rows = "".join('"%s" %s %s\n' % (k, v.get("small", "nan"), v.get("large", "nan")) for k, v in by.items())
    harness.gnuplot(outdir, "isolation", """
set title "The price of isolation: CPU of all parties, as a multiple of a fast link's, or of a disk's joined directly (less is better)"
set style data histograms
set style fill solid 0.8 border -1
set boxwidth 0.9
set logscale y
set yrange [0.5:*]
set xtics rotate by -40
set ylabel "times not isolated"
plot 'isolation.dat' using 2:xtic(1) title '64 B, reads of 4 KiB' lc rgb '#2060a0', \\
     '' using 3 title '1518 B, reads of 64 KiB' lc rgb '#c08040', 1 notitle lc rgb '#404040'
""", {"isolation.dat": "way small large\n" + rows})
