# SPDX-License-Identifier: BSD-3-Clause
"""loopback: a driver VM whose packets come back to it, by each of the ten paths of DPDK's virtio driver.

The cases are those of DPDK's own test plans for vhost and virtio-user: split and packed rings, with and without mergeable buffers,
in order and not, vectorized, 64 to 1518 B. One virtio-user port of dpdk-testpmd forwards to itself; the other side gives
back what it got: libvhostpci (it copies out and in), or dpdk-testpmd with one net_vhost port.
"""
import harness
import middle
from q_vm_to_vm import Circle
from testpmd import VhostPort

PEER = "testpmd, one net_vhost port"
SIZES = [64, 128, 256, 512, 1024, 1280, 1518]
PATHS = [
    ("split mergeable in-order", "packed_vq=0,mrg_rxbuf=1,in_order=1"),
    ("split in-order", "packed_vq=0,mrg_rxbuf=0,in_order=1"),
    ("split mergeable", "packed_vq=0,mrg_rxbuf=1,in_order=0"),
    ("split", "packed_vq=0,mrg_rxbuf=0,in_order=0"),
    ("split vectorized", "packed_vq=0,mrg_rxbuf=0,in_order=0,vectorized=1"),
    ("packed mergeable in-order", "packed_vq=1,mrg_rxbuf=1,in_order=1"),
    ("packed in-order", "packed_vq=1,mrg_rxbuf=0,in_order=1"),
    ("packed mergeable", "packed_vq=1,mrg_rxbuf=1,in_order=0"),
    ("packed", "packed_vq=1,mrg_rxbuf=0,in_order=0"),
    ("packed vectorized", "packed_vq=1,mrg_rxbuf=0,in_order=1,vectorized=1"),
]
WIDE = ("--force-max-simd-bitwidth=512",)  # without it the driver of packed rings is never vectorized


def whole(s):
    """What driver and device side spend on a packet that went there and came back."""
    return dict(s, cpp=s["drv_cpp"] + s["serve_cpp"])


def path(opt, cpus, name, ring, sizes, seconds, n, progress):
    ends, results = [], []
    try:
        for who, serve in (("ours", middle.Vpload(opt, cpus[1])), ("peer", VhostPort("vhost", cpus[1], opt.workdir))):
            ends.append(serve)
            ends.append(Circle(who, serve, cpus, opt.workdir, ring, eal=WIDE))
        for size in sizes:
            case = "%s %d B" % (name, size)
            got = harness.pairs(lambda: whole(ends[1].sample(size, seconds, "echo")), lambda: whole(ends[3].sample(size, seconds, "io")), n,
                                lambda: progress.step(case))
            more = {"size": size, "ring": name, "lost": sum(a["lost"] for a, _ in got)}
            results += [harness.compare("loopback", case, "busy cycles/packet", got, "cpp", True, PEER, **more),
                        harness.compare("loopback", case, "packets/s", got, "pps", False, PEER, **more)]
    finally:
        for e in reversed(ends):
            e.end()
    return results


def run(opt):
    seconds, n = (0.2, 3) if opt.quick else (0.4, opt.pairs)
    cpus = harness.two_cpus()
    harness.need_hugepages(280)
    paths = [p for p in PATHS if opt.only in (None, p[0], "all " + p[0].split()[0])]
    if not paths:
        raise harness.BenchError("--only %s: the paths are %s; or all split, all packed" % (opt.only, ", ".join(p[0] for p in PATHS)))
    sizes = [64, 1518] if opt.quick else SIZES
    progress = harness.Progress("loopback", len(paths) * len(sizes) * n)
    results = []
    for name, ring in paths:
        results += path(opt, cpus, name, ring, sizes, seconds, n, progress)
    plot(opt, results)
    return results


def plot(opt, results):
    rows = [r for r in results if r["unit"] == "packets/s" and r["size"] == 64 and r["ours"] and r["peer"]]
    text = "path ours peer\n" + "".join('"%s" %.2f %.2f\n' % (r["ring"], r["ours"] / 1e6, r["peer"] / 1e6) for r in rows)
    harness.gnuplot(opt.outdir, "loopback", """
set title "Loopback of 64 B packets, by the driver's path (more is better)"
set style data histograms
set style fill solid 0.8 border -1
set boxwidth 0.9
set ylabel "million packets a second"
set yrange [0:*]
set xtics rotate by -25
plot 'loopback.dat' using 2:xtic(1) title 'libvhostpci' lc rgb '#2060a0', \\
     '' using 3 title 'testpmd with net_vhost' lc rgb '#c08040'
""", {"loopback.dat": text})
