# SPDX-License-Identifier: BSD-3-Clause
"""Upgrades in a row under the campaign's traffic: nobody connects again, no packet is lost, and nothing gathers in the daemons.

The links are those of the campaign and one more (docs/handover.md); no fault comes in between.
"""
import os
import shutil
import statistics
import tempfile
import time

import campaign
import conftest
from rig import Rig

BOUND = 3.5   # seconds without a packet: what a successor that hangs costs at most, and the machine's part


def links(rig):
    """All of the campaign's, since all of them are handed over, and a mode of an attachment that it lacks."""
    campaign.default_links(rig)
    rig.link("copy-shmem", "copy", "shmem", driver=[], rate=100)


def counts(daemon):
    fds, maps = daemon.resources()
    return {"fds": fds, "mappings": maps, "threads": len(os.listdir(f"/proc/{daemon.proc.pid}/task"))}


class Upgrades(campaign.Campaign):
    neighbours = 0
    doing = "upgrade"

    def sums(self):
        return {(l, f): sum(e.get(f) for e in l.ends) for l in self.rig.links for f in ("lost", "sessions")}

    def one(self, before):
        old = self.sums()
        for l in self.rig.links:
            for e in l.ends:
                e.put("max_gap_ns", 0)
        stall = self.rig.daemon.upgrade()["stall_us"] / 1e6
        back = self.recover(self.rig.links, time.monotonic())
        self.look_at_packets()
        for (l, f), n in self.sums().items():
            if n != old[l, f]:
                self.violation(l, "disturbed", "%d %s" % (n - old[l, f], {"lost": "packets lost", "sessions": "ends connected again"}[f]))
        for l in self.rig.links:
            gap = max(e.get("max_gap_ns") for e in l.ends) / 1e9
            self.worst_gap = max(self.worst_gap, gap)
            if gap > BOUND:
                self.violation(l, "disturbed", "no packet for %.2f s" % gap)
        self.recoveries += back is not None
        self.settle_all(before)
        return stall

    def settle_all(self, before):
        """What the daemon before and its end leave for a moment goes."""
        end = time.monotonic() + campaign.QUIET_BOUND
        while True:
            now = counts(self.rig.daemon)
            more = {k: (before[k], n) for k, n in now.items() if n > before[k]}
            if not more:
                return
            if time.monotonic() > end:
                self.violation(None, "leak", "before and now: %s" % more)
                before.update(now)
                return
            time.sleep(0.01)

    def run(self, cycles, seconds=None):
        self.warm_up()
        before = counts(self.rig.daemon)
        first, memory, stalls, start = dict(before), self.rig.daemon.memory_kib(), [], time.monotonic()
        shown = start
        while self.cycle < cycles and (not seconds or time.monotonic() - start < seconds) and len(self.violations) < self.max_violations:
            self.cycle += 1
            stalls.append(self.one(before))
            if time.monotonic() - shown > self.report_every:
                shown = time.monotonic()
                self.say(self.progress(cycles, shown - start))
        stalls.sort()
        return {"upgrades": self.cycle, "seconds": round(time.monotonic() - start, 1), "violations": self.violations,
                "packets": sum(e.get("rx") for l in self.rig.links for e in l.ends), "worst_gap_s": round(self.worst_gap, 3),
                "stall_ms": {"median": round(1000 * statistics.median(stalls), 2), "p90": round(1000 * stalls[len(stalls) * 9 // 10], 2),
                             "worst": round(1000 * stalls[-1], 2)},
                "before": dict(first, memory_kib=memory),
                "after": dict(counts(self.rig.daemon), memory_kib=self.rig.daemon.memory_kib()),
                "links": [l.name for l in self.rig.links]}


def run(build, n, seconds=None, say=None, keep=None):
    """n upgrades; the result as a dictionary. keep: as campaign.campaign()."""
    tmp = tempfile.mkdtemp(prefix="vpf")
    conftest.adopt_orphans()
    rig = Rig(tmp, build)
    links(rig)
    try:
        rig.start()
        r = Upgrades(rig, 0, say=say).run(n, seconds)
    finally:
        code = rig.stop()
        bad = code or any(x in rig.log() for x in campaign.SANITIZERS)
        if keep and (bad or "r" not in locals() or r["violations"]):
            shutil.rmtree(keep, ignore_errors=True)
            shutil.copytree(tmp, keep, ignore=lambda top, names: [x for x in names if not x.endswith((".log", ".pages")) and x != "log"])
        shutil.rmtree(tmp, ignore_errors=True)
    if bad:
        r["violations"].append({"cycle": n, "link": None, "what": "daemon", "fault": "end", "text": "status %d, or a sanitizer's report" % code})
    return r


def report(r, say):
    for v in r["violations"]:
        say("violation in upgrade %s on %s: %s: %s" % (v["cycle"], v["link"], v["what"], v["text"]))
    say("links: %s" % ", ".join(r["links"]))
    say("%d packets; traffic stood still for %.1f ms (90 %%: %.1f, worst: %.1f); an end saw %.0f ms at most" % (
        r["packets"], r["stall_ms"]["median"], r["stall_ms"]["p90"], r["stall_ms"]["worst"], 1000 * r["worst_gap_s"]))
    say("before and after: " + ", ".join("%s %d, %d" % (k, n, r["after"][k]) for k, n in r["before"].items()))
    say("%d upgrades in %.0f s, %d violations" % (r["upgrades"], r["seconds"], len(r["violations"])))
