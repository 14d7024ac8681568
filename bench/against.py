# SPDX-License-Identifier: BSD-3-Clause
"""This tree against another revision of itself: both built, both measured A B A B by their own scripts, rows compared."""
import json
import os
import statistics
import subprocess
import sys
import tempfile

import harness

MARGIN = 0.03  # what is less is no difference, however steady


def key(row):
    return tuple(str(row.get(k)) for k in ("question", "case", "unit", "peer_name", "size", "ring"))


def larger_is_better(unit):
    return "/s" in unit


def value(rows):
    """Of one row in each round: {"goodness": [...], "spread": widest of the rounds}; goodness grows with what is better.

    The ratio to the peer where every round has one: the machine's mood is in it twice, and goes out."""
    spread = max((r.get("spread") or 0) for r in rows)
    if all(r.get("ratio") for r in rows):
        return {"by": "ratio", "goodness": [r["ratio"] for r in rows], "spread": spread}
    if any(r.get("refused") for r in rows) or not all(r.get("ours") for r in rows):
        return None
    return {"by": "figure", "goodness": [r["ours"] if larger_is_better(r["unit"]) else 1 / r["ours"] for r in rows],
            "spread": spread}


def width(v):
    """How far apart the rounds of one side are, relative to their middle."""
    return (max(v) - min(v)) / statistics.median(v)


def verdict(ours, theirs):
    """Rows of one key, a row a round each. {"change": ours over theirs (> 1 = faster), "noise", "verdict"}."""
    a, b = value(ours), value(theirs)
    if (a or b) and (not a or not b or a["by"] != b["by"]):
        # One side lost its ratio in some round: what both have is the figure itself.
        a, b = (value([dict(r, ratio=None, refused=None) for r in rows]) for rows in (ours, theirs))
    if not a or not b:
        return {"change": None, "noise": None, "verdict": "no result"}
    change = statistics.median(x / y for x, y in zip(a["goodness"], b["goodness"]))
    # Pairs within a round are many, so their middle is steadier than they are: half of how far they spread.
    noise = max(MARGIN, width(a["goodness"]), width(b["goodness"]), a["spread"] / 2, b["spread"] / 2)
    if noise > harness.MAX_SPREAD:
        word = "too noisy"
    elif change < 1 - noise:
        word = "slower"
    elif change > 1 + noise:
        word = "faster"
    else:
        word = "same"
    return {"change": round(change, 3), "noise": round(noise, 3), "verdict": word}


def compare(ours, theirs):
    """Lists of rounds, each a list of rows. One entry for each row that any round has, in the order of ours."""
    out = []
    keys = dict.fromkeys(key(r) for rounds in (ours, theirs) for rows in rounds for r in rows)
    for k in keys:
        a, b = ([[r for r in rows if key(r) == k] for rows in rounds] for rounds in (ours, theirs))
        entry = {"question": k[0], "case": k[1], "unit": k[2], "peer_name": None if k[3] == "None" else k[3]}
        if all(a) and all(b):
            entry.update(verdict([rows[0] for rows in a], [rows[0] for rows in b]))
            entry["ours"], entry["theirs"] = ([rows[0]["ours"] for rows in side] for side in (a, b))
        else:
            entry.update(change=None, noise=None, verdict="only here" if all(a) else "only there" if all(b) else "not always")
        out.append(entry)
    return out


def table(entries, rev, out=sys.stdout):
    rows = [["question", "case", "unit", "peer", "change", "noise", "against " + rev]]
    rows += [[e["question"], e["case"], e["unit"], e["peer_name"] or "-", "-" if e["change"] is None else "%.2fx" % e["change"],
              "-" if e["noise"] is None else "%.0f %%" % (100 * e["noise"]), e["verdict"]] for e in entries]
    wide = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    for r in rows:
        print("  ".join(c.ljust(w) for c, w in zip(r, wide)).rstrip(), file=out)
    out.flush()


def build(top, rev, where):
    """The revision as a work tree below `where`, built; its folder."""
    tree = os.path.join(where, "tree")
    ccache = "/usr/lib/ccache"
    env = dict(os.environ, PATH=ccache + ":" + os.environ["PATH"]) if os.path.isdir(ccache) else None
    for argv in (["git", "-C", top, "worktree", "add", "--quiet", "--detach", tree, rev],
                 ["meson", "setup", os.path.join(tree, "build"), tree], ["ninja", "-C", os.path.join(tree, "build")]):
        r = subprocess.run(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if r.returncode:
            raise harness.BenchError("%s failed for %s:\n%s" % (" ".join(argv[:2]), rev, r.stdout[-2000:]))
    return tree


def run(top, opt, questions):
    """The status to exit with: 1 when something is slower."""
    rev = subprocess.run(["git", "-C", top, "rev-parse", "--verify", "--quiet", opt.against + "^{commit}"],
                         capture_output=True, text=True).stdout.strip()
    if not rev:
        raise harness.BenchError("--against %s: there is no such revision in %s (git log names them)" % (opt.against, top))
    with tempfile.TemporaryDirectory(prefix="vp-against-") as where:
        try:
            harness.say("building %s" % opt.against)
            tree = build(top, rev, where)
            sides = {"here": (top, opt.builddir), "there": (tree, os.path.join(tree, "build"))}
            got = {side: [] for side in sides}
            for k in range(opt.rounds):
                for side, (source, builddir) in sides.items():
                    harness.say("round %d of %d, %s" % (k + 1, opt.rounds, side))
                    got[side].append(one(source, builddir, opt, questions, os.path.join(where, "%s-%d" % (side, k))))
        finally:
            subprocess.run(["git", "-C", top, "worktree", "remove", "--force", os.path.join(where, "tree")],
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    entries = compare(got["here"], got["there"])
    with open(os.path.join(opt.outdir, "against.json"), "w") as f:
        json.dump({"against": opt.against, "revision": rev, "machine": harness.machine(), "rows": entries}, f, indent=1)
    table(entries, opt.against)
    slower = [e for e in entries if e["verdict"] == "slower"]
    print("%d rows, %d slower than %s; results: %s" % (len(entries), len(slower), opt.against,
                                                       os.path.join(opt.outdir, "against.json")))
    return 1 if slower or not any(e["change"] for e in entries) else 0


def one(source, builddir, opt, questions, outdir):
    """The rows of one round. Each side is measured by the scripts of its own revision."""
    argv = [sys.executable, os.path.join(source, "scripts", "bench"), "--builddir", builddir, "--outdir", outdir,
            "--pairs", str(opt.pairs)]
    argv += [a for q in questions for a in ("--question", q)] + ["--quick"] * opt.quick + ["--engine"] * opt.engine
    argv += (["--only", opt.only] if opt.only else []) + (["--dpdk", opt.dpdk] if opt.dpdk else [])
    # What a question could not measure it says itself, and its rows are missing on that side.
    subprocess.run(argv, stdout=subprocess.DEVNULL)
    return json.loads(harness.read(os.path.join(outdir, "results.json"), "[]"))
