# SPDX-License-Identifier: BSD-3-Clause
"""operations: what an operation on a running daemon costs a busy link of each kind.

For how long an end gets no packet, how many packets are lost, and how often the two ends together connect again. The ends are those of the
fault campaign (tests/faults). Besides the results there is operations.json, of which scripts/operations makes the table in
docs/operations.md.
"""
import json
import os
import re
import signal
import statistics

import harness
from fleet import Fleet, rig

KINDS = [
    ("relay", "relay", None),
    ("copy/local", "copy", "local"),
    ("fast/local", "fast", "local"),
    ("copy/ivshmem", "copy", "ivshmem"),
    ("fast/shmem", "fast", "shmem"),
    ("grant/shmem", "grant", "shmem"),
]
ControlError = rig.conftest.ControlError


def reload(fleet, name, change):
    """change: of the file's text."""
    def what():
        path = fleet.d.conf / name
        path.write_text(change(path.read_text()))
        fleet.d.call("daemon.reload", replug="yes")
    return fleet.during(what)[0]


def rate(fleet, i):
    return reload(fleet, "l.link", lambda text: text.split("[Net]")[0] + "[Net]\nPacketsPerSecond=%d\n" % (100000 + i))


def owner(fleet, i):
    return reload(fleet, "l-drv.vm", lambda text: "[VM]\nTrustGroup=test\nUser=%d\n" % (i + 1))


def mode(fleet, i):
    other = {"copy": "fast", "fast": "copy"}
    return reload(fleet, "l.link", lambda text: re.sub("Mode=(copy|fast)", lambda m: "Mode=" + other[m[1]], text.split("[Net]")[0]))


OPERATIONS = [
    ("nothing", lambda fleet, i: fleet.nothing()[0]),
    ("upgrade", lambda fleet, i: fleet.upgrade()[0]),
    ("stop and start", lambda fleet, i: fleet.again(signal.SIGTERM)[0]),
    ("SIGKILL and start", lambda fleet, i: fleet.again(signal.SIGKILL)[0]),
    ("reload of a rate", rate),
    ("reload of an owner", owner),
    ("reload of a mode", mode),
]
# A relay link has no other mode, and what is granted is for that mode only. Of fast and grant links no packet passes the daemon.
LACKS = {
    ("reload of a mode", "relay"),
    ("reload of a mode", "grant"),
    ("reload of a rate", "fast"),
    ("reload of a rate", "grant"),
}


def row(operation, kind, seen):
    return {"operation": operation, "kind": kind, "runs": len(seen), "stall_ms": round(statistics.median(s.gap_ms for s in seen), 1),
            "worst_ms": round(max(s.gap_ms for s in seen), 1), "reconnects": max(s.reconnects for s in seen),
            "lost": max(s.lost for s in seen)}


def look(opt, kind, link_mode, attachment, n):
    rows = []
    fleet = Fleet(opt, kind.replace("/", "-"), [("l", link_mode, attachment, {"rate": 200 if attachment in ("ivshmem", "shmem") else 1000})])
    try:
        for operation, do in OPERATIONS:
            if (operation, link_mode) in LACKS:
                continue
            try:
                rows.append(row(operation, kind, [do(fleet, i)[0] for i in range(n)]))
            except (ControlError, harness.BenchError) as e:
                harness.say("%s, %s: %s" % (kind, operation, e))
                rows.append({"operation": operation, "kind": kind, "refused": str(e)[:200]})
    finally:
        fleet.end()
    return rows


def run(opt):
    rows = []
    n = 2 if opt.quick else 5
    for kind, link_mode, attachment in KINDS:
        rows += look(opt, kind, link_mode, attachment, n)
    with open(os.path.join(opt.outdir, "operations.json"), "w") as f:
        json.dump({"machine": harness.machine(), "runs": n, "rows": rows}, f, indent=1)
        f.write("\n")
    results = [harness.single("operations", "%s, %s" % (r["kind"], r["operation"]), "ms", [r["stall_ms"]], spread=None,
                              note="worst: %g, %d connected again, %d lost" % (r["worst_ms"], r["reconnects"], r["lost"]))
               for r in rows if "refused" not in r]
    harness.table(results)
    return results
