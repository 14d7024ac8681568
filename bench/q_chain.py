# SPDX-License-Identifier: BSD-3-Clause
"""chain: 2 to 5 VMs in a row, all packets through all of them, none lost.

Ours: driver VMs (their virtio driver forwards between two ports) and device VMs (libvhostpci forwards between two
driver VMs) in turn. The peer: driver VMs only, and testpmd with a pair of net_vhost ports between any two of them. What
leaves the last VM enters the first one again, so packets circulate in both directions.

All driver VMs are one process on the first core, all device VMs (or all of the switch) one process on the second, each
visiting its ports in turn. Busy cycles per hop do not depend on that; packets per second do: a longer chain shares the
same two cores.
"""
import harness
import middle
from q_relay import PEER, RINGS, PeerMiddle
from q_vm_to_vm import Circle

BURSTS = 1   # of 32 packets each way on each link
RING = 64    # twice what is in flight: with more, the drivers' receive buffers fill the cache as the chain grows


def in_order(sockets):
    """The ports of the driver VMs so that neighbours are one VM's; the last is the first VM's, which joins the ends."""
    return sockets[1:] + sockets[:1]


class Chain:
    def __init__(self, opt, cpus, vms, ring):
        self.vms, self.ends = vms, []
        try:
            self.lib = self._keep(middle.Vpload(opt, cpus[1], ports=vms - 1))
            self.switch = self._keep(PeerMiddle(cpus[1], opt.workdir, 2 * (vms - 1)))
            self.ours, self.peer = [self._keep(Circle(name, s, cpus, opt.workdir, ring, in_order(s.sockets), depth=RING))
                                    for name, s in (("ours", self.lib), ("peer", self.switch))]
        except Exception:
            self.end()
            raise

    def _keep(self, x):
        self.ends.append(x)
        return x

    def sample(self, flavour, size, seconds):
        if flavour == "switch":
            s = self.peer.sample(size, seconds, bursts=BURSTS)
            hops = s["rx"]
        else:
            s = self.ours.sample(size, seconds, flavour, BURSTS)
            hops = s["rx"] + s["packets"]  # a link is crossed when either end receives
        s["cpp"] = (s["cycles"] + s["drv_cycles"]) / hops
        s["pps"] = hops / (2 * (self.vms - 1)) / s["seconds"]  # each way, from end to end
        s["forwarder"] = s["serve_cpp"] if flavour != "switch" else s["cpp"]
        return s

    def end(self):
        for e in reversed(self.ends):
            e.end()


def run(opt):
    seconds, n = (0.3, 3) if opt.quick else (0.4, opt.pairs)
    cpus = harness.two_cpus()
    harness.need_hugepages(200)
    lengths = [2, 5] if opt.quick else [2, 3, 4, 5]
    rings = [r for r in RINGS[:1] if opt.only in (None, r[0])] if opt.quick else [r for r in RINGS[:2] if opt.only in (None, r[0])]
    flavours = ["fwd", "copy", "switch"]
    names = {"fwd": "forward", "copy": "copy"}
    progress = harness.Progress("chain", len(rings) * len(lengths) * n)
    results = []
    for ring_name, ring in rings:
        for vms in lengths:
            chain = Chain(opt, cpus, vms, ring)
            try:
                what = "%s, %d VMs" % (ring_name, vms)
                got = harness.rounds([lambda f=f: chain.sample(f, 64, seconds) for f in flavours], n, lambda: progress.step(what))
            finally:
                chain.end()
            for i, f in enumerate(flavours[:2]):
                pair = harness.column(got, i, 2)
                more = {"vms": vms, "ring": ring_name, "flavour": names[f], "lost": sum(g[i]["lost"] for g in got),
                        "lost_peer": sum(g[2]["lost"] for g in got)}
                more["note"] = "lost %d, peer %d" % (more["lost"], more["lost_peer"])
                case = "%s, %s" % (what, names[f])
                results.append(harness.compare("chain", case, "busy cycles/hop", pair, "cpp", True, PEER, **more))
                results.append(harness.compare("chain", case + ", forwarding VM", "busy cycles/packet", pair, "forwarder", True,
                                               PEER + " and the VM behind it", **more))
                results.append(harness.compare("chain", case, "packets/s each way", pair, "pps", False, PEER, **more))
        for depth in [RING] if opt.quick else [RING, 2 * RING, 4 * RING]:
            results += growth(opt, cpus, ring_name, ring, lengths, n, seconds, depth)
    plot(opt, results)
    return results


def growth(opt, cpus, ring_name, ring, lengths, n, seconds, depth):
    """Does a hop cost more in a long chain? The shortest and the longest, in turn. depth: entries of the driver VMs' rings; all of
    them are filled with receive buffers, and all driver VMs share one core's cache."""
    ends, chains, results = [], [], []
    try:
        for vms in (lengths[-1], lengths[0]):
            name = "lib%d-%d" % (vms, depth)
            ends.append(middle.Vpload(opt, cpus[1], ports=vms - 1, name=name))
            chains.append((vms, Circle(name, ends[-1], cpus, opt.workdir, ring, in_order(ends[-1].sockets), depth=depth)))
            ends.append(chains[-1][1])

        def sample(vms, circle, flavour):
            s = circle.sample(64, seconds, flavour, BURSTS)
            return dict(s, cpp=(s["cycles"] + s["drv_cycles"]) / (s["rx"] + s["packets"]))

        for flavour, name in (("fwd", "forward"), ("copy", "copy"))[:2 if depth == RING else 1]:
            got = harness.rounds([lambda c=c: sample(*c, flavour) for c in chains], n)
            results.append(harness.compare("chain", "%s, %s, %d VMs against %d, rings of %d" % (ring_name, name, lengths[-1], lengths[0], depth),
                                           "busy cycles/hop", got, "cpp", True, "the same with %d VMs" % lengths[0], ring=ring_name,
                                           note="drivers %s, with %d VMs %s; device VMs %s, %s" % (
                                               part(got, 0, "drv_cpp"), lengths[0], part(got, 1, "drv_cpp"), part(got, 0, "serve_cpp"),
                                               part(got, 1, "serve_cpp"))))
    finally:
        for e in reversed(ends):
            e.end()
    return results


def part(got, i, key):
    """One side's cycles per packet."""
    return "%.0f" % harness.middle_of([g[i][key] for g in got])


def plot(opt, results):
    series, rows = {}, []
    for r in results:
        if r["unit"] == "busy cycles/hop" and "vms" in r:
            series.setdefault(("vhost-pci %s, %s" % (r["flavour"], r["ring"])), {})[r["vms"]] = r["ours"]
            series.setdefault("vSwitch, %s" % r["ring"], {})[r["vms"]] = r["peer"]
    for vms in sorted({v for s in series.values() for v in s}):
        rows.append("%d " % vms + " ".join("%.1f" % s[vms] if vms in s else "nan" for s in series.values()))
    lines = ", \\\n     ".join("'chain.dat' using 1:%d with linespoints lw 2 %s title '%s'" %
                               (i + 2, "dt 2" if name.startswith("vSwitch") else "", name) for i, name in enumerate(series))
    harness.gnuplot(opt.outdir, "chain", """
set title "A chain of VMs, 64 B: busy cycles per packet and hop, all processes together (less is better)"
set xlabel "VMs"
set ylabel "TSC cycles per packet and hop"
set xtics 1
set yrange [0:*]
plot %s
""" % lines, {"chain.dat": "\n".join(rows) + "\n"})
