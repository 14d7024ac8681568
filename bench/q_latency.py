# SPDX-License-Identifier: BSD-3-Clause
"""latency: one 64 byte packet at a time, from a driver VM to the device side and back.

Polled on both sides, and asleep on both sides until the other's interrupt comes. Peers: DPDK's net_vhost (testpmd, which
always polls), and the least that two cores can do: one cache line bounced, a 64 byte message bounced, the
same found through the lines that a split ring has, two eventfds.
"""
import json
import os
import subprocess

import harness
import middle
from q_relay import RINGS, PeerMiddle

COUNT = 100000
PERCENTILES = [("p50", "50 %"), ("p99", "99 %"), ("p999", "99.9 %")]
UNIT = "ns, round trip"


def _json(argv, cpu=None):
    p = harness.spawn(argv, cpu=cpu, stdout=subprocess.PIPE, text=True)
    text = p.communicate()[0]
    harness.reap(p)
    if p.returncode or not text.strip():
        raise harness.BenchError("%s ended with code %d" % (os.path.basename(argv[0]), p.returncode))
    r = json.loads(text.strip().splitlines()[-1])
    return dict({k: r[k] * 1e9 / r["hz"] for k in ("p50", "p99", "p999", "tx", "rx") if k in r}, hz=r["hz"], disturbed=0)


def ping(opt, cpus, serve, mode, ring, intr, count):
    """A driver VM that sends one packet and waits for it."""
    argv = [middle.program(opt, "bench", "ping_dpdk"), "-l", str(cpus[0]), "--in-memory", "--no-pci", "-m", "64",
            "--single-file-segments", "--file-prefix", "vpping-%d" % os.getpid(), "--log-level", "4",
            "--vdev", "net_virtio_user0,path=%s,queue_size=256,%s" % (serve.sockets[0], ring), "--", str(count), "64"]
    serve.run(mode, 64)
    serve.mark()
    try:
        r = _json(argv + (["intr"] if intr else []), cpus[0])
        packets, cycles, _ = serve.since()
    finally:
        serve.halt()
    return dict(r, device=cycles / max(packets, 1) * 1e9 / r["hz"])


def bare(opt, cpus, kind, count):
    return _json([middle.program(opt, "bench", "pingpong"), str(cpus[0]), str(cpus[1]), kind, str(count)])


def run(opt):
    count, n = (20000, 3) if opt.quick else (COUNT, opt.pairs)
    cpus = harness.two_cpus()
    harness.need_hugepages(150)
    results = []
    rings = [r for r in RINGS[:2] if opt.only in (None, r[0])]
    progress = harness.Progress("latency", 2 * len(rings) * n)
    ends = []
    try:
        lib = middle.Vpload(opt, cpus[1])
        ends.append(lib)
        peer = PeerMiddle(cpus[1], opt.workdir, 1)
        ends.append(peer)
        for ring_name, ring in rings:
            def ours(mode, intr, k):
                return lambda: ping(opt, cpus, lib, mode, ring, intr, k)

            def vhost(intr, k):
                return lambda: ping(opt, cpus, peer, "io", ring, intr, k)

            case = ring_name + " polled"
            got = harness.rounds([ours("echo", False, count), vhost(False, count), lambda: bare(opt, cpus, "spin", count),
                                  lambda: bare(opt, cpus, "message", count), lambda: bare(opt, cpus, "ring", count)], n, lambda: progress.step(case))
            add(results, case, got, [(1, "testpmd, net_vhost"), (2, "a cache line bounced"), (3, "a 64 B message bounced"),
                                     (4, "the lines of a split ring bounced")])
            parts(results, case, got)
            case, few = ring_name + " interrupts", count // 20
            got = harness.rounds([ours("sleep-echo", True, few), vhost(True, few), lambda: bare(opt, cpus, "eventfd", few)], n,
                                 lambda: progress.step(case))
            add(results, case, got, [(1, "testpmd, net_vhost (which polls)"), (2, "two eventfds")])
    finally:
        for e in reversed(ends):
            e.end()
    plot(opt, results)
    return results


def add(results, case, got, peers):
    for i, name in peers:
        for key, text in PERCENTILES:
            results.append(harness.compare("latency", "%s, %s" % (case, text), UNIT, harness.column(got, 0, i), key, True, name,
                                           percentile=key, kind=case))


def parts(results, case, got):
    """Where a round trip's time goes: the calls that moved the packet on either side, and waiting in between."""
    for who, text in (("tx", "driver sends"), ("device", "device side receives and sends"), ("rx", "driver receives")):
        results.append(harness.compare("latency", "%s, of these: %s" % (case, text), UNIT, got_parts(got), who, True,
                                       "testpmd, net_vhost", part=who))
    results.append(harness.compare("latency", case + ", of these: lines on their way, and noticing them", UNIT, got_parts(got), "rest",
                                   True, "testpmd, net_vhost", part="rest"))


def got_parts(got):
    return [tuple(dict(r, rest=r["p50"] - r["tx"] - r["device"] - r["rx"]) for r in g[:2]) for g in got]


def plot(opt, results):
    """Bars of the three percentiles, one group per subject."""
    groups = {}
    for r in (r for r in results if "percentile" in r):
        groups.setdefault("%s: libvhostpci" % r["kind"], {})[r["percentile"]] = r["ours"]
        groups.setdefault("%s: %s" % (r["kind"], r["peer_name"].split(" (")[0]), {})[r["percentile"]] = r["peer"]
    rows = ["subject p50 p99 p999"] + ['"%s" %s' % (g, " ".join("%.0f" % v[k] for k, _ in PERCENTILES)) for g, v in groups.items()]
    harness.gnuplot(opt.outdir, "latency", """
set title "Round trip of one 64 B packet (less is better)"
set style data histograms
set style fill solid 0.8 border -1
set logscale y
set ylabel "ns"
set xtics rotate by -30 font ',8'
set rmargin 12
plot 'latency.dat' using 2:xtic(1) title '50 %', '' using 3 title '99 %', '' using 4 title '99.9 %'
""", {"latency.dat": "\n".join(rows) + "\n"})
