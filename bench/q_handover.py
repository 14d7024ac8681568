# SPDX-License-Identifier: BSD-3-Clause
"""handover: for how long busy links stand still in an upgrade, against a restart.

Numbered packets go both ways on every busy link; the longest time between two that arrive is what an end sees. The peer is what had to be
done before there was an upgrade: the daemon ends and is started again, with the same links, front-ends and traffic. Its front-ends connect
again after 10 ms; the second table row of a restart adds the second that QEMU waits with reconnect=1 before it tries. --before names the
build of a revision that had no upgrade; without it this build is restarted.
"""
import statistics

import harness
from fleet import Fleet
from q_scale import need_files

RELAY, COPY = ("relay", None, {}), ("copy", "local", {})
TARGET_MS = {16: 10.0, 1000: 100.0}
RATIO_TARGET = 50
BUSY = 16
QEMU_WAITS_MS = 1000.0


def busy_links():
    return [("busy%d" % i, *(COPY if i % 2 else RELAY)) for i in range(BUSY)]


def gaps(seen, mode):
    return max(s.gap_ms for s in seen if s.link.mode == mode)


def percentiles(v):
    v = sorted(v)
    return {"p50": round(statistics.median(v), 2), "p90": round(v[len(v) * 9 // 10], 2), "worst": round(v[-1], 2)}


def note(values, target=None):
    p = percentiles(values)
    text = "90 %%: %.3g, worst: %.3g" % (p["p90"], p["worst"])
    if target:
        text += "; target %g: %s" % (target, "met" if p["p50"] <= target else "missed")
    return text


def figure(case, values, target=None):
    return harness.single("handover", case, "ms", values, note=note(values, target), **percentiles(values))


def look(opt, links, results, samples, ours_gap):
    """This build: upgrades."""
    what = "%d links, %d busy" % (links, BUSY)
    need_files(20 * max(links, 100))
    fleet = Fleet(opt, "ours%d" % links, busy_links(), links - BUSY)
    try:
        still = [fleet.nothing()[0] for _ in range(3)]
        seen = [fleet.upgrade() for _ in range(3 if opt.quick else max(20, opt.pairs))]
    finally:
        fleet.end()
    stalls = [s for _, s in seen]
    samples["%d links" % links] = stalls
    results.append(figure(what + ", the daemon says", stalls, TARGET_MS[links]))
    for mode in ("relay", "copy"):
        ours_gap[links, mode] = [gaps(s, mode) for s, _ in seen]
        results.append(figure("%s, an end of %s sees" % (what, mode), ours_gap[links, mode]))
        results.append(figure("%s, an end of %s sees without an upgrade" % (what, mode), [gaps(s, mode) for s in still]))
    lost, again = (sum(getattr(s, f) for seen_one, _ in seen for s in seen_one) for f in ("lost", "reconnects"))
    results.append(harness.single("handover", what + ", packets lost, reconnects", "count", [lost + again],
                                  note="%d lost, %d connected again in %d upgrades" % (lost, again, len(seen))))


def peer(opt, links, results, ours_gap):
    fleet = Fleet(opt, "peer%d" % links, busy_links(), links - BUSY, build=opt.before)
    try:
        seen = [fleet.again()[0] for _ in range(2 if opt.quick else 5)]
    finally:
        fleet.end()
    name = "restart of the build before" if opt.before else "restart of the same build"
    for mode in ("relay", "copy"):
        ours = statistics.median(ours_gap[links, mode])
        for text, more in ("front-ends connect at once", 0), ("QEMU, reconnect=1", QEMU_WAITS_MS):
            values = [gaps(s, mode) + more for s in seen]
            lo, mid, hi = harness.quartiles(values)
            target = "; target %d: %s" % (RATIO_TARGET, "met" if mid / ours >= RATIO_TARGET else "missed") if mode == "relay" else ""
            results.append({"question": "handover", "case": "%d links, %d busy, %s, %s" % (links, BUSY, mode, text), "unit": "ms",
                            "ours": ours, "peer": mid, "peer_name": name, "ratio": round(mid / ours, 1), "runs": len(values),
                            "spread": round((hi - lo) / mid, 3), "note": note(values) + target})


def plot(opt, samples):
    rows = {name: "".join("%g %g\n" % (v, (i + 1) / len(s)) for i, v in enumerate(sorted(s))) for name, s in samples.items()}
    parts = ["'handover-%d.dat' using 1:(100*$2) with steps lw 2 title '%s'" % (i, name) for i, name in enumerate(rows)]
    harness.gnuplot(opt.outdir, "handover", """
set title "For how long traffic stands still in an upgrade, %d links busy"
set logscale x
set xlabel "ms"
set ylabel "%% of the upgrades"
set yrange [0:100]
plot %s
""" % (BUSY, ", ".join(parts)), {"handover-%d.dat" % i: text for i, text in enumerate(rows.values())})


def run(opt):
    results, samples, ours = [], {}, {}
    for links in [BUSY] if opt.quick else [BUSY, 1000]:
        look(opt, links, results, samples, ours)
        peer(opt, links, results, ours)
    plot(opt, samples)
    harness.table(results)
    return results
