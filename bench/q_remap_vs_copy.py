# SPDX-License-Identifier: BSD-3-Clause
"""remap-vs-copy: is a window handed over faster by changing a mapping or by copying it?

"ours" is the copy, which every mode of the project uses; the peer is remapping. A ratio above 1 says that
copying is cheaper at that size.
"""
import json
import statistics
import subprocess

import harness
import middle


def size_name(n):
    return "%d MiB" % (n >> 20) if n >= 1 << 20 else "%d KiB" % (n >> 10)


def measure(opt):
    runs, ms = (3, 5) if opt.quick else (max(opt.pairs, 7), 30)
    p = harness.spawn([middle.program(opt, "bench", "remap"), str(runs), str(ms)], stdout=subprocess.PIPE, text=True)
    out = {}
    for line in p.stdout:
        r = json.loads(line)
        out[r["op"], r["size"]] = r["ns"]
        if r["op"] == "unmap":
            harness.say("remap-vs-copy: %s done" % size_name(r["size"]))
    harness.reap(p)
    if p.returncode:
        raise harness.BenchError("bench/remap ended with code %d" % p.returncode)
    return out


def pair(case, ours, peer, peer_name, size):
    """The runs of all ops were taken in turn, so the n-th of each belong together."""
    got = [({"ns": a, "disturbed": 0}, {"ns": b, "disturbed": 0}) for a, b in zip(ours, peer)]
    return harness.compare("remap-vs-copy", case, "ns/window", got, "ns", True, peer_name, size=size)


def crossover(sizes, out, copy, remap):
    """Smallest size from which on remapping is the cheaper one, or None."""
    best = None
    for s in sorted(sizes, reverse=True):
        if (remap, s) not in out or (copy, s) not in out:
            break
        if statistics.median(out[remap, s]) >= statistics.median(out[copy, s]):
            break
        best = s
    return best


def run(opt):
    try:
        harness.need_hugepages(140)
    except harness.BenchError as e:
        harness.say("remap-vs-copy: without 2 MiB pages: %s" % e)
    out = measure(opt)
    sizes = sorted({s for _, s in out})
    results = []
    for s in sizes:
        for copy in ("copy-hot", "copy-cold"):
            results.append(pair("%s %s" % (size_name(s), copy), out[copy, s], out["remap", s], "remap 4 KiB pages", s))
        results.append(pair("%s copy-cold, map+unmap" % size_name(s), out["copy-cold", s], out["unmap", s],
                            "mmap+munmap 4 KiB pages", s))
        if ("remap-huge", s) in out:
            results.append(pair("%s copy-cold, huge" % size_name(s), out["copy-cold", s], out["remap-huge", s],
                                "remap 2 MiB pages", s))
        if ("remap-32", s) in out:
            results.append(pair("%s x 32 copy-cold" % size_name(s), out["copy-32", s], out["remap-32", s],
                                "one remap of 32 adjacent", s))
            results.append(pair("%s x 32 at once" % size_name(s), out["remap-32", s], out["remap", s], "32 remaps, one by one", s))
    for copy in ("copy-hot", "copy-cold"):
        for remap in ("remap", "populate", "remap-huge"):
            at = crossover([s for s in sizes if (remap, s) in out], out, copy, remap)
            results.append({"question": "remap-vs-copy", "case": "crossover %s / %s" % (copy, remap), "unit": "bytes", "ours": at,
                            "peer": None, "peer_name": None, "ratio": None, "runs": 1, "spread": None,
                            "note": "copying is cheaper below it" if at else "copying is cheaper at every size measured"})
    plot(opt, out, sizes)
    return results


def plot(opt, out, sizes):
    ops = ["copy-hot", "copy-cold", "remap", "populate", "unmap", "remap-huge", "copy-32", "remap-32"]
    rows = ["size " + " ".join(ops)]
    for s in sizes:
        rows.append("%d " % s + " ".join("%.1f" % (statistics.median(out[o, s]) / s * 4096) if (o, s) in out else "nan"
                                         for o in ops))
    lines = ", \\\n     ".join("'remap.dat' using 1:%d with linespoints lw 2 title '%s'" % (i + 2, o) for i, o in enumerate(ops))
    harness.gnuplot(opt.outdir, "remap", """
set title "Handing over a window: remap against copy (less is better)"
set logscale x 2
set logscale y
set key top right
set format x "%%.0s%%cB"
set xlabel "window size"
set ylabel "ns per 4 KiB handed over"
plot %s
""" % lines, {"remap.dat": "\n".join(rows) + "\n"})
