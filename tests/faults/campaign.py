# SPDX-License-Identifier: BSD-3-Clause
"""Break things at random while numbered traffic runs, and see that everything comes back, and nothing else was touched.

One daemon serves links of every mode; their ends are host processes (driver.c: a front-end with a driver, device.c: a program on
libvhostpci, portdouble.py: a port over ivshmem or shmem). All send all the time. A cycle picks a link and a fault, and then asks:

  recovered    both ends get packets that were sent after the fault was over, within --bound seconds
  intact       no packet was changed, came twice, out of order, from a former life or from another link: on any link
  undisturbed  the other links (the neighbours, and all that were not meant) lost nothing and had no long gap
  no leak      the daemon has as many fds and shared mappings as before the first fault, and at most MEMORY_KIB more memory
"""
import json
import os
import random
import shutil
import signal
import statistics
import tempfile
import time

from rig import FIELDS, Rig, run_delay, stolen

GAP_BOUND = 0.5      # seconds without a packet on a link that nobody touched
FRESH = 1.0          # seconds for which losses of a link may be those of its own last fault
QUIET_BOUND = 5.0    # until fds and mappings are back where they were
SANITIZERS = ["ERROR: AddressSanitizer", "runtime error:"]
MEMORY_KIB = 4096    # anonymous memory that a daemon may gain in its life; 300 cycles without its end cost about 100


def default_links(rig, quick=False):
    """Every mode, ring format and attachment; the first two are the neighbours that no fault is meant for."""
    ev = ["--event-idx"]
    rig.link("near-relay", "relay", driver=["--packed", *ev], device=ev, via=False, rate=400)
    rig.link("near-copy", "copy", "local", driver=ev, via=False, rate=400)
    rig.link("relay", "relay", driver=ev, device=["--rx-len", "600"])
    rig.link("relay-packed", "relay", driver=["--packed"], device=["--packed", "--in-order", *ev])
    rig.link("copy", "copy", "local", driver=[])
    rig.link("copy-packed", "copy", "local", driver=["--packed", *ev], device=["--in-place"])
    rig.link("fast", "fast", "local", driver=ev)
    rig.link("fast-poll", "fast", "local", driver=["--poll"], device=["--in-place", "--poll"])
    rig.link("fast-packed", "fast", "local", driver=["--packed", *ev], packed_fast=True)
    rig.link("grant-packed", "grant", "local", driver=["--packed", *ev], packed_fast=True)
    if shutil.which("qemu-storage-daemon"):
        rig.disk("disk")
    if not quick:
        rig.link("copy-ivshmem", "copy", "ivshmem", driver=ev, rate=100)
        rig.link("fast-shmem", "fast", "shmem", driver=[], rate=100)
        rig.link("grant-shmem", "grant", "shmem", driver=[], rate=100)


# ---- faults --------------------------------------------------------------------------------------------------------
#
# A fault is a generator: what it does until its first yield is the damage, what it does afterwards (the restart of
# what was killed, SIGCONT) is up to others. Outages are counted from the end of the whole.

def nap(rnd, most):
    time.sleep(rnd.random() * most)


def kill(c, link, end):
    e = link.ends[end]
    e.end(signal.SIGKILL)
    yield
    nap(c.rnd, 0.05)
    e.start()


def restart(c, link, end):
    e = link.ends[end]
    if not e.end(signal.SIGTERM):
        c.violation(link, "wedged", "end %d did not stop within 15 s of SIGTERM" % end)
    yield
    nap(c.rnd, 0.03)
    e.start()


def freeze(c, link, end):
    e = link.ends[end]
    e.signal(signal.SIGSTOP)
    # Mostly short; sometimes longer than the daemon's patience (a second).
    time.sleep(c.rnd.choice([0.005, 0.02, 0.05, 0.1, 0.2, 0.2, 0.3, 1.4]))
    yield
    e.signal(signal.SIGCONT)


def tell(sig):
    def fault(c, link, end):
        link.ends[end].signal(sig)
        nap(c.rnd, 0.02)
        yield
    return fault


def dies(link, end):
    return end == 1 and link.in_place


def cut_now(c, link, end):
    link.proxies[end].cut()
    yield
    if dies(link, end):
        link.ends[end].start_again()


def cut_setup(c, link, end, half=False):
    """At each message boundary of the set-up in turn; with half, in the middle of the message behind it."""
    p = link.proxies[end]
    if p.last_count > c.setup[link, end]:
        c.setup[link, end] = min(p.last_count, c.most[link, end])
    k = link.cut_at[end]
    link.cut_at[end] += 1
    if link.cut_at[end] > c.setup[link, end]:
        link.cut_at[end] = 0
        link.cut_round[end] += 1
    p.cut((k, half))
    if dies(link, end):
        link.ends[end].start_again()
    if not p.fired.wait(3):
        c.not_fired += 1
        p.forget()
        # A connection that lives on has more messages than its set-up. Or there were fewer this time, for the other end was away: once more.
        if c.missed.get((link, end)) == k:
            c.setup[link, end] = c.most[link, end] = max(k - 1, 1)
        else:
            c.missed[link, end] = link.cut_at[end] = k
    yield
    if dies(link, end):
        link.ends[end].start_again()


def cut_half(c, link, end):
    yield from cut_setup(c, link, end, half=True)


def daemon_kill(c, link, end):
    c.rig.daemon.again(signal.SIGKILL)
    yield


def daemon_restart(c, link, end):
    code = c.rig.daemon.again(signal.SIGTERM)
    if code:
        c.violation(link, "daemon", "ended with status %d after SIGTERM" % code)
    yield


def daemon_freeze(c, link, end):
    c.rig.daemon.proc.send_signal(signal.SIGSTOP)
    time.sleep(c.rnd.choice([0.01, 0.05, 0.2, 0.4, 1.5]))
    yield
    c.rig.daemon.proc.send_signal(signal.SIGCONT)


def down_up(c, link, end):
    c.rig.daemon.call("link.down", name=link.name)
    nap(c.rnd, 0.03)
    yield
    c.rig.daemon.call("link.up", name=link.name)


DAEMON_ENDS = {"daemon-kill", "daemon-restart"}
DAEMON_WIDE = DAEMON_ENDS | {"daemon-freeze"}
# name: (weight, end or None, fault)
FAULTS = {
    "driver-kill": (4, 0, kill),
    "driver-restart": (2, 0, restart),
    "driver-freeze": (2, 0, freeze),
    "driver-reset": (3, 0, tell(signal.SIGUSR1)),
    "driver-suspend": (3, 0, tell(signal.SIGUSR2)),
    "driver-cut": (2, 0, cut_now),
    "driver-cut-message": (6, 0, cut_setup),
    "driver-cut-half": (3, 0, cut_half),
    "device-kill": (4, 1, kill),
    "device-restart": (2, 1, restart),
    "device-freeze": (2, 1, freeze),
    "device-cut": (2, 1, cut_now),
    "device-cut-message": (4, 1, cut_setup),
    "device-cut-half": (2, 1, cut_half),
    "agent-restart": (4, 1, tell(signal.SIGUSR1)),
    "daemon-kill": (2, None, daemon_kill),
    "daemon-restart": (1, None, daemon_restart),
    "daemon-freeze": (1, None, daemon_freeze),
    "link-down-up": (1, None, down_up),
}
# After these an end begins a new session: before that, traffic may still be the old one's.
RENEWS = {k for k in FAULTS if k.startswith(("driver-", "device-", "agent-")) and not k.endswith("-freeze")}
TWICE = 0.15         # share of cycles with two faults on one link at the same time


def possible(link, kind):
    end = FAULTS[kind][1]
    if kind.startswith(("driver-cut", "device-cut")):
        return end in link.proxies
    if kind == "agent-restart":
        return link.attachment is not None
    return True


class Campaign:
    faults = FAULTS
    neighbours = 2       # links that no fault is meant for: the first ones
    report_every = 10.0  # seconds
    possible = staticmethod(possible)

    def __init__(self, rig, seed, bound=20.0, say=None, max_violations=20):
        self.rig, self.seed, self.bound = rig, seed, bound
        self.rnd = random.Random(seed)
        self.say = say or (lambda line: None)
        self.targets = rig.links[self.neighbours:]
        self.setup = {(link, e): 8 for link in rig.links for e in (0, 1)}
        self.most = {x: 64 for x in self.setup}
        self.missed = {}
        self.violations, self.max_violations = [], max_violations
        self.kinds, self.by_mode = {}, {}
        self.allowed = set(self.faults)
        self.cycle = self.recoveries = self.not_fired = self.excused = self.resets = 0
        self.worst_gap = 0
        self.memory = {}     # pid of the daemon: KiB when it was well for the first time, and the most that it gained
        self.near_lost = 0
        self.healed = {}     # link: when it came back from its own last fault
        self.blamed = {}

    def note(self, line):
        with open(self.rig.tmp / "history.log", "a") as f:
            f.write("%.3f %s\n" % (time.monotonic(), line))

    # -- what is wrong

    def violation(self, link, what, text):
        v = {"cycle": self.cycle, "link": link.name if link else None, "what": what, "fault": self.doing, "text": text}
        self.violations.append(v)
        self.note("VIOLATION %s" % json.dumps(v))
        if link:
            self.describe(link)
        self.say("VIOLATION in cycle %d (%s on %s): %s: %s" % (self.cycle, self.doing, v["link"], what, text))

    def describe(self, link):
        self.note("  daemon: %s" % json.dumps(self.rig.daemon.show(link.name)))
        self.note("  counters: %s" % json.dumps(self.rig.daemon.stats(link.name)))
        for e in link.ends:
            self.note("  end %d: %s" % (e.index, json.dumps({f: e.get(f) for f in FIELDS})))

    def look_at_packets(self):
        for link in self.rig.links:
            for e in link.ends:
                for kind, n in e.violations().items():
                    old = self.blamed.get((e, kind), 0)
                    if n > old:
                        self.blamed[e, kind] = n
                        self.violation(link, kind, "%d packets at the %s end; the first: %s" % (n - old, ("driver", "device")[e.index], e.msg()))
                if e.proc.poll() is not None:
                    self.violation(link, "ended", "the process at end %d ended with status %s" % (e.index, e.proc.returncode))
                    e.start()
        if self.rig.daemon.proc.poll() is not None:
            self.violation(None, "daemon", "vhost-pcid ended with status %s" % self.rig.daemon.proc.returncode)
            self.rig.daemon.start()

    # -- one cycle

    def recover(self, links, since, renewed=()):
        """
        Wait for new packets at all ends. renewed: [(end, sessions before)] that begin a session first.
        Seconds since; None when some link is wedged.
        """
        first, helped, epoch, resets = since, since, {}, {}
        while True:
            now = time.monotonic()
            if not epoch and (all(e.get("sessions") > n for e, n in renewed) or now - since > self.bound):
                epoch = {l: l.raise_epoch() for l in links}
            # A reset that was asked for belongs to this cycle, however late the driver comes to it; traffic of before it does not count.
            for l in [l for l, n in resets.items() if l.ends[0].get("sessions") > n]:
                del resets[l]
                if epoch:
                    epoch[l] = l.raise_epoch()
            missing = [l for l in links if not epoch or l in resets or not l.arrived(epoch[l])]
            if not missing:
                return now - since
            if now - first < 120 and not all(e.began() for l in missing for e in l.ends):
                since = max(since, now - self.bound / 2)  # not the daemon's time
            elif epoch and now - since > self.bound:
                for l in missing:
                    self.violation(l, "wedged", "no traffic %.0f s after the fault; status %s, epochs seen %s of %d; %s | %s" % (
                        self.bound, l.status(), [e.epoch_seen() for e in l.ends], epoch[l], l.ends[0].msg(), l.ends[1].msg()))
                    # So that the next cycles tell something new.
                    for e in l.ends:
                        e.end(signal.SIGKILL)
                        e.start()
                return None
            if now - helped > 0.3:
                helped = now
                for l in missing:
                    # A packed ring in the hands of a device VM that died: only its driver can start it anew (docs/testing.md).
                    if l.packed_fast and "device-" in self.doing and l not in resets:
                        resets[l] = l.ends[0].get("sessions")
                        l.ends[0].signal(signal.SIGUSR1)
                        self.resets += 1
            time.sleep(0.002)

    def settle(self, link, base):
        """No more fds and mappings than at the start."""
        end = time.monotonic() + QUIET_BOUND
        while True:
            fds, maps = self.rig.daemon.resources()
            if fds <= base[0] and maps <= base[1]:
                return
            if time.monotonic() > end:
                more, less = self.rig.daemon.fds() - self.fds, self.fds - self.rig.daemon.fds()
                self.violation(link, "leak", "%d fds instead of %d, %d shared mappings instead of %d; more: %s, less: %s" % (
                    fds, base[0], maps, base[1], dict(more), dict(less)))
                self.base = fds, maps
                return
            time.sleep(0.005)

    def weigh(self, link):
        """Each life of the daemon on its own. Not under a sanitizer, which keeps freed memory for a while."""
        daemon = self.rig.daemon
        now, pid = daemon.memory_kib(), daemon.proc.pid
        first, most = self.memory.setdefault(pid, (now, 0))
        most = max(most, now - first)
        if now - first > MEMORY_KIB and not daemon.sanitized():
            self.violation(link, "leak", "%d KiB of memory instead of %d" % (now, first))
            first = now
        self.memory[pid] = first, most

    def choose(self):
        """A link and the faults that it is to suffer: mostly one."""
        self.cycle += 1
        link = self.rnd.choice(self.targets)
        end = {k: f[1] for k, f in self.faults.items()}
        kinds = [k for k in self.faults if self.possible(link, k) and k in self.allowed]
        chosen = [self.rnd.choices(kinds, [self.faults[k][0] for k in kinds])[0]]
        if self.rnd.random() < TWICE:
            more = [k for k in kinds if k not in DAEMON_WIDE and end[k] is not None and end[k] != end[chosen[0]]]
            chosen += [self.rnd.choice(more)] if more else []
        self.doing = "+".join(chosen)
        return link, chosen

    def strike(self, link, chosen):
        """When the damage began, and when all was repaired that is up to others."""
        self.note("cycle %d: %s on %s" % (self.cycle, self.doing, link.name))
        began = time.monotonic()
        running = [self.faults[k][2](self, link, self.faults[k][1]) for k in chosen]
        for f in running:
            next(f)
        for f in running:
            next(f, None)
        return began, time.monotonic()

    def count(self, link, chosen, back):
        """back: seconds until the links were well, or None."""
        k = self.kinds.setdefault(self.doing if len(chosen) == 1 else "two at once", {"cycles": 0, "recovered": 0, "outages": []})
        k["cycles"] += 1
        m = self.by_mode.setdefault(link.name, {"cycles": 0, "outages": []})
        m["cycles"] += 1
        if back is not None:
            self.recoveries += 1
            k["recovered"] += 1
            k["outages"].append(back)
            m["outages"].append(back)

    def one(self):
        link, chosen = self.choose()
        wide = bool(set(chosen) & DAEMON_WIDE)
        others = [l for l in self.rig.links if l is not link]
        # What a link's own last fault cost may show a moment later: a cut session is noticed at the next message.
        fresh = {l for l in others if time.monotonic() - self.healed.get(l, 0) < FRESH}
        lost = {(l, i): l.ends[i].get("lost") for l in others for i in (0, 1)}
        pids = [self.rig.daemon.proc.pid] + [e.pid for l in others for e in l.ends]
        delay = {p: run_delay(p) for p in pids}
        steal = stolen()
        for l in others:
            for e in l.ends:
                e.put("max_gap_ns", 0)

        renewed = [(e, e.get("sessions")) for l in self.rig.links for e in l.ends if wide and set(chosen) & DAEMON_ENDS]
        renewed += [(link.ends[self.faults[k][1]], link.ends[self.faults[k][1]].get("sessions")) for k in chosen if k in RENEWS]
        began, over = self.strike(link, chosen)
        back = self.recover(self.rig.links if wide else [link], over, renewed)

        self.note("  over after %.3f s, recovered %s s later" % (over - began, back and round(back, 3)))
        self.count(link, chosen, back)
        self.healed.update({l: time.monotonic() for l in (self.rig.links if wide else [link])})
        self.look_at_packets()
        if not wide:
            for l in others:
                gap = max(max(e.get("max_gap_ns") / 1e9, min(time.monotonic() - e.get("last_rx_ns") / 1e9, time.monotonic() - began))
                          for e in l.ends)
                # The end of its own last outage may be noted only now.
                gap = min(gap, time.monotonic() - self.healed.get(l, 0))
                if gap > GAP_BOUND:
                    wait = sum(max([run_delay(p).get(t, d) - d for t, d in delay[p].items()] or [0])
                               for p in [self.rig.daemon.proc.pid] + [e.pid for e in l.ends]) + stolen() - steal
                    if gap - wait > GAP_BOUND:
                        self.violation(l, "disturbed", "no packet for %.2f s during a fault of link %s" % (gap, link.name))
                    else:
                        self.excused += 1
                else:
                    self.worst_gap = max(self.worst_gap, gap)
                gone = sum(l.ends[i].get("lost") - lost[l, i] for i in (0, 1))
                if gone and l not in fresh:
                    self.near_lost += gone
                    self.violation(l, "disturbed", "%d packets lost during a fault of link %s" % (gone, link.name))
        self.settle(link, self.base)
        self.weigh(link)

    def progress(self, cycles, seconds):
        return "%5d of %d cycles, %d recoveries, %d violations, %.2f s a cycle" % (
            self.cycle, cycles, self.recoveries, len(self.violations), seconds / self.cycle)

    def warm_up(self):
        self.doing = "start"
        bound, self.bound = self.bound, 90  # a busy machine takes its time to start so many processes
        if self.recover(self.rig.links, time.monotonic()) is None:
            raise RuntimeError("the links do not come up")
        self.bound = bound
        # Every way once that keeps something for good: a client of the control socket, the log.
        time.sleep(0.3)
        self.base, self.fds = self.rig.daemon.resources(), self.rig.daemon.fds()
        self.weigh(None)

    def run(self, cycles, seconds=None):
        self.warm_up()
        start = shown = time.monotonic()
        while self.cycle < cycles and (not seconds or time.monotonic() - start < seconds):
            self.one()
            if len(self.violations) >= self.max_violations:
                self.say("too many violations, giving up")
                break
            now = time.monotonic()
            if now - shown > self.report_every:
                shown = now
                self.say(self.progress(cycles, now - start))
        self.seconds = time.monotonic() - start
        return self.result()

    def result(self):
        def summary(v):
            o = v.pop("outages")
            v["worst_outage_s"] = round(max(o, default=0), 3)
            v["median_outage_s"] = round(statistics.median(o), 3) if o else 0
            return v
        links = {l.name: dict(summary(self.by_mode.get(l.name, {"cycles": 0, "outages": []})),
                              packets=sum(e.get("rx") for e in l.ends), lost=sum(e.get("lost") for e in l.ends)) for l in self.rig.links}
        kinds = {k: summary(v) for k, v in sorted(self.kinds.items())}
        return {
            "seed": self.seed, "cycles": self.cycle, "recoveries": self.recoveries, "seconds": round(self.seconds, 1),
            "packets": sum(l["packets"] for l in links.values()),
            "worst_outage_s": max((k["worst_outage_s"] for k in kinds.values()), default=0),
            "neighbours": {"packets": sum(links[n.name]["packets"] for n in self.rig.links[:self.neighbours]),
                           "lost_undisturbed": self.near_lost, "worst_gap_s": round(self.worst_gap, 3)},
            "resources": {"fds": self.base[0], "mappings": self.base[1], "memory_kib": self.rig.daemon.memory_kib(),
                          "memory_gained_kib": max(most for _, most in self.memory.values())},
            "faults_not_fired": self.not_fired,
            "resets_of_packed_fast": self.resets, "gaps_for_want_of_cpu": self.excused,
            "boundaries": {"%s.%s" % (l.name, ("driver", "device")[e]): {"messages": self.setup[l, e], "rounds": l.cut_round[e], "next": l.cut_at[e]}
                           for l in self.targets for e in l.proxies},
            "kinds": kinds, "links": links, "violations": self.violations,
        }


def table(r):
    rows = [["fault", "cycles", "recovered", "worst s", "median s"]]
    rows += [[k, v["cycles"], v["recovered"], "%.3f" % v["worst_outage_s"], "%.3f" % v["median_outage_s"]] for k, v in r["kinds"].items()]
    rows += [[""] * 5, ["link", "cycles", "packets", "worst s", "median s"]]
    rows += [[k, v["cycles"], v["packets"], "%.3f" % v["worst_outage_s"], "%.3f" % v["median_outage_s"]] for k, v in r["links"].items()]
    width = [max(len(str(row[i])) for row in rows) for i in range(5)]
    for row in rows:
        print("  ".join(str(c).rjust(w) if i else str(c).ljust(w) for i, (c, w) in enumerate(zip(row, width))).rstrip())


def campaign(build, cycles, seed=None, seconds=None, quick=False, say=None, keep=None, only=None, faults=None, vms=False):
    """Run one; the result as a dictionary. keep: a directory for the logs when there were violations."""
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    tmp = tempfile.mkdtemp(prefix="vpf")
    if vms:
        import vms
        rig, kind = vms.Rig(tmp, build, quick, say, only), vms.Campaign
    else:
        rig, kind = Rig(tmp, build), Campaign
        default_links(rig, quick)
    try:
        rig.start()
        c = kind(rig, seed, say=say)
        if only:
            c.targets = [l for l in c.targets if l.name in only]
        c.allowed &= set(faults or c.allowed)
        r = c.run(cycles, seconds)
    finally:
        code = rig.stop()
        bad = code or any(x in rig.log() for x in SANITIZERS)
        if keep and (bad or "r" not in locals() or r["violations"]):
            shutil.rmtree(keep, ignore_errors=True)
            os.makedirs(keep, exist_ok=True)
            for f in os.listdir(tmp):
                if f == "log" or f.endswith((".log", ".pages", ".console", ".qemu")):
                    shutil.copy(os.path.join(tmp, f), keep)
        shutil.rmtree(tmp, ignore_errors=True)
    if bad:
        r["violations"].append({"cycle": r["cycles"], "link": None, "what": "daemon", "fault": "end",
                                "text": "status %d, or a sanitizer's report in its log" % code})
    return r


def store(path, r):
    with open(path, "w") as f:
        json.dump(r, f, indent=1)
        f.write("\n")
