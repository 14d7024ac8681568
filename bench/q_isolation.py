# SPDX-License-Identifier: BSD-3-Clause
"""isolation: what it costs that a device VM reaches only a part of the driver VM's memory.

Cycles per packet of the whole path (driver VM, host, device VM), all ends using their packets (bench/use.h), each against a
fast link, whose device VM reaches everything:

  grant, memory    the driver VM keeps rings and buffers in a memory device and grants that: nobody copies anything
  grant, swiotlb   the driver VM bounces each packet through the pool that it grants, on its own core: one copy there (the
                   allocation of slots, which Linux adds, is not counted)
  copy             the daemon copies, on the host's core

"bare ends" do not look at their packets, as in the other questions. "packets/s" is that of the grant link over memory against the fast link: no byte and no signal of it passes the daemon. The
device VM is a process on the local attachment; a driver VM is DPDK's virtio-user port. Both ends of a copy link run on one
core and the daemon on the other, those of fast and grant links on a core each, as in the question `copy`.
"""
import harness
from q_copy import SIZES, PortLink, parts, rings_of


def rows(opt, ring_name, ring, seconds, n, cpus, step):
    results = []
    fast, copy, grant = (PortLink(opt, m, cpus, ring) for m in ("fast", "copy", "grant"))
    ways = [("grant, memory", grant, {"use": True}), ("grant, swiotlb", grant, {"bounce": True}), ("copy", copy, {"use": True})]
    try:
        for size in SIZES:
            for name, link, how in ways:
                case = "%s, %s %d B" % (name, ring_name, size)
                got = harness.pairs(lambda: link.sample(size, seconds, **how), lambda: fast.sample(size, seconds, True), n,
                                    lambda: step(case))
                more = {"size": size, "ring": ring_name, "host": round(sorted(s[0]["cpp"] for s in got)[len(got) // 2], 1)}
                note = parts(got, more)
                results.append(harness.compare("isolation", case, "cycles/packet, whole path", got, "whole", True, "fast link",
                                               note=note, **more))
                if name == "grant, memory":
                    results.append(harness.compare("isolation", case, "packets/s", got, "pps", False, "fast link", **more))
            against = [("grant, swiotlb", {"bounce": True}, True), ("grant, memory, bare ends", {}, False)]
            for name, how, use in against:
                case = "%s, %s %d B" % (name, ring_name, size)
                got = harness.pairs(lambda: grant.sample(size, seconds, **how), lambda: copy.sample(size, seconds, use), n,
                                    lambda: step(case))
                results.append(harness.compare("isolation", case, "cycles/packet, whole path", got, "whole", True, "copy link",
                                               size=size, ring=ring_name))
    finally:
        for x in (fast, copy, grant):
            x.end()
    return results


def run(opt):
    rings = rings_of(opt)
    seconds, n = (0.3, 3) if opt.quick else (1.0, opt.pairs)
    cpus = harness.two_cpus()
    harness.need_hugepages(230)
    progress = harness.Progress("isolation", len(rings) * len(SIZES) * 5 * n)
    results = []
    for ring_name, ring in rings:
        results += rows(opt, ring_name, ring, seconds, n, cpus, progress.step)
    harness.plot_cycles(opt.outdir, "isolation", [r for r in results if r["peer_name"] == "fast link"],
                        "The price of isolation: cycles per packet of the whole path (less is better)", "isolated",
                        unit="cycles/packet, whole path", peer="fast link")
    return results
