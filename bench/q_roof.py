# SPDX-License-Identifier: BSD-3-Clause
"""roof: how far the relay is from the bare copy of its packets (this machine's memcpy over rings of the same size).

The peer here is a roofline, not a competitor: a ratio of 0.8 means that four fifths of the relay's busy
time would be spent even if everything but the copy were free.
"""
import json
import subprocess
import time

import harness
import middle
from q_relay import RINGS, Setup

SIZES = [64, 128, 256, 512, 1024, 1518]
BUFFERS = 512  # the receive rings of both sides


class Roof:
    def __init__(self, opt, cpu):
        self.cpu, self.opt = cpu, opt
        self.p = harness.spawn([middle.program(opt, "bench", "copyroof")], cpu=cpu, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True, bufsize=1)

    def sample(self, size, buffers, seconds):
        d = harness.Disturbance([self.p.pid], [self.cpu])
        d.start()
        t = time.monotonic()
        self.p.stdin.write("%d %d %d\n" % (size, buffers, seconds * 1000))
        r = json.loads(self.p.stdout.readline())
        r["disturbed"] = d.share() if time.monotonic() - t > 0.01 else 0
        r["gbps"] = size / r["ns"]
        return r

    def end(self):
        self.p.stdin.close()
        harness.reap(self.p)


def run(opt):
    seconds, n = (0.3, 3) if opt.quick else (0.7, opt.pairs)
    cpus = harness.two_cpus()
    harness.need_hugepages(330)
    results, rows = [], ["size relay-split relay-packed walk hot"]
    roof = Roof(opt, cpus[1])
    rings = RINGS[:2]
    progress = harness.Progress("roof", len(rings) * len(SIZES) * n)
    cols = {}
    try:
        for ring_name, ring in rings:
            ours = middle.relay(opt, cpus[1])
            s = Setup("ours", ours, cpus, opt.workdir, ring)
            try:
                for size in SIZES:
                    def relay():
                        r = s.sample(size, seconds)
                        r["gbps"] = size / (r["cpp"] / s.hz) / 1e9
                        return r
                    got = harness.pairs(relay, lambda: roof.sample(size, BUFFERS, seconds), n,
                                        lambda: progress.step("%s %d B" % (ring_name, size)))
                    hot = sorted(roof.sample(size, 1, 0.05)["gbps"] for _ in range(3))[1]
                    r = harness.compare("roof", "relay %s %d B" % (ring_name, size), "GB/s while busy", got, "gbps", False,
                                        "memcpy over rings", size=size, roof_in_cache_gbps=round(hot, 2))
                    results.append(r)
                    cols.setdefault(size, {}).update({ring_name: r["ours"], "walk": r["peer"], "hot": hot})
            finally:
                s.end()
                ours.end()
    finally:
        roof.end()
    for size in SIZES:
        c = cols[size]
        rows.append("%d %.3f %.3f %.3f %.3f" % (size, c["split"], c["packed"], c["walk"], c["hot"]))
    harness.gnuplot(opt.outdir, "roof", """
set title "Bytes moved per busy second: the relay against bare memcpy"
set xlabel "packet size"
set ylabel "GB/s"
set logscale y
set xtics (64, 256, 512, 1024, 1518)
plot 'roof.dat' using 1:2 with linespoints lw 2 title 'relay, split rings', \\
     '' using 1:3 with linespoints lw 2 title 'relay, packed rings', \\
     '' using 1:4 with linespoints lw 2 dt 2 title 'memcpy over rings of 512 buffers', \\
     '' using 1:5 with linespoints lw 2 dt 3 title 'memcpy in the first-level cache'
""", {"roof.dat": "\n".join(rows) + "\n"})
    return results
