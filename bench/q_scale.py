# SPDX-License-Identifier: BSD-3-Clause
"""scale: what links cost that do nothing, how long adding one takes, and whether a busy link notices the idle ones, or the hostile."""
import json
import os
import resource
import subprocess
import time

import crowd
import harness
import middle
from frontend import IdleVm
from q_relay import RINGS, Setup
from q_vm_to_vm import Circle

ADD_TARGET_MS = 5.0
NEIGHBOUR_TARGET = 5.0   # times what honest pairs cost it
ANSWER_TARGET_MS = 50.0
CROWD_PAIRS = 64


def wakeups(pid):
    n = 0
    for tid in os.listdir("/proc/%d/task" % pid):
        for line in harness.read("/proc/%d/task/%s/status" % (pid, tid), "").splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                n += int(line.split()[1])
    return n


def rss_kib(pid):
    for line in harness.read("/proc/%d/status" % pid).splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    return 0


def kernel_objects(pid):
    return len(os.listdir("/proc/%d/fd" % pid))


def need_files(n):
    """For the harness (10 for each link) and the daemon (its side of the same), which inherits the limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(n, hard), max(n, hard)))
    except (OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        if hard < n:
            raise harness.BenchError("%d open files are needed, the limit is %d; raise it (ulimit -n)" % (n, hard))


def sockets(opt, i):
    return [os.path.join(opt.workdir, "l%d%s" % (i, side)) for side in "ab"]


def add(d, opt, i):
    """Seconds that the request took, as a client sees it."""
    a, b = sockets(opt, i)
    config = middle.relay_link(a, b)
    t = time.perf_counter()
    d.call("link.add", name="l%d" % i, config=config)
    return time.perf_counter() - t


def idle(d, seconds):
    """Percent of one CPU, wake-ups per second."""
    time.sleep(0.5)
    c, w, t = harness.cpu_ns(d.pid), wakeups(d.pid), time.monotonic()
    time.sleep(seconds)
    dt = time.monotonic() - t
    return (harness.cpu_ns(d.pid) - c) / dt / 1e7, (wakeups(d.pid) - w) / dt


def many(opt, n, seconds, results):
    d = middle.Daemon(opt, name="scale", daemon_keys={"MaxLinks": 65536}, nice=0)
    vms = []
    try:
        base, fds = rss_kib(d.pid), kernel_objects(d.pid)
        times = [add(d, opt, i) * 1000 for i in range(n)]
        q = sorted(times)
        results.append(harness.single("scale", "add a link, of %d" % n, "ms", times, target="< %g" % ADD_TARGET_MS,
                                      p99=q[int(0.99 * n)], max=q[-1], last_100=sum(times[-100:]) / len(times[-100:]),
                                      note="99 %%: %.2f, worst: %.2f, mean of the last 100: %.2f"
                                      % (q[int(0.99 * n)], q[-1], sum(times[-100:]) / len(times[-100:])),
                                      failed=q[n // 2] >= ADD_TARGET_MS))
        results.append(harness.single("scale", "memory per link, nobody connected", "KiB", [(rss_kib(d.pid) - base) / n],
                                      fds_per_link=(kernel_objects(d.pid) - fds) / n))
        cpu, wake = idle(d, seconds)
        results.append(harness.single("scale", "idle CPU, %d links, nobody connected" % n, "% of a core", [cpu],
                                      note="%.1f wake-ups/s" % wake))
        t = time.perf_counter()
        for i in range(n):
            vms += [IdleVm(s) for s in sockets(opt, i)]
        connect = (time.perf_counter() - t) / n * 1000
        results.append(harness.single("scale", "connect both VMs of a link", "ms", [connect]))
        results.append(harness.single("scale", "memory per link, both VMs connected", "KiB", [(rss_kib(d.pid) - base) / n],
                                      fds_per_link=(kernel_objects(d.pid) - fds) / n))
        cpu, wake = idle(d, seconds)
        results.append(harness.single("scale", "idle CPU, %d links, all connected" % n, "% of a core", [cpu],
                                      note="%.1f wake-ups/s" % wake))
    finally:
        for v in vms:
            v.close()
        d.end()


class Among:
    """A busy link among n - 1 idle ones, all connected."""
    kind = "vhost-pcid"

    def __init__(self, opt, cpu, n):
        self.mid = middle.DaemonRelay(opt, cpu, {"MaxLinks": 65536})
        self.sockets, self.pid, self.vms = self.mid.sockets, self.mid.pid, []
        for i in range(n - 1):
            add(self.mid.d, opt, i)
            self.vms += [IdleVm(s) for s in sockets(opt, i)]
        for name in ("start", "stop", "mark", "since"):
            setattr(self, name, getattr(self.mid, name))

    def end(self):
        for v in self.vms:
            v.close()
        self.mid.end()


def growth(opt, counts, n_pairs, seconds, results):
    """Busy cycles per 64 B packet of one link, with others around; the peer is the link alone."""
    cpus = harness.two_cpus()
    harness.need_hugepages(400)
    rows = []
    for n in counts:
        setups = []
        try:
            for name, k in (("many", n), ("alone", 1)):
                sub = argparse_copy(opt, name)
                m = Among(sub, cpus[1], k)
                setups.append((m, Setup(name, m, cpus, sub.workdir, RINGS[0][1])))
            got = harness.pairs(lambda: setups[0][1].sample(64, seconds), lambda: setups[1][1].sample(64, seconds), n_pairs)
            r = harness.compare("scale", "busy link among %d" % n, "busy cycles/packet", got, "cpp", True,
                                "the same link alone", links=n)
            rows.append(r)
        finally:
            for m, s in setups:
                s.end()
                m.end()
    results += rows


def queue_pairs(opt, counts, n_pairs, seconds, results):
    """One device-side thread that serves several queue pairs of one link; the peer is the same link with one."""
    cpus = harness.two_cpus()
    harness.need_hugepages(300)
    ring = RINGS[0][1]
    for k in counts:
        ends = []
        try:
            for name, q in (("pairs", k), ("single", 1)):
                ends.append(middle.Vpload(opt, cpus[1], queues=q, name="lib-" + name))
                ends.append(Circle(name, ends[-1], cpus, opt.workdir, ring + ",queues=%d" % q, mbufs=16384,
                                   args=["--rxq=%d" % q, "--txq=%d" % q]))
            got = harness.pairs(lambda: ends[1].sample(64, seconds, "echo", 1), lambda: ends[3].sample(64, seconds, "echo", 1), n_pairs)
            results.append(harness.compare("scale", "%d queue pairs, one thread" % k, "busy cycles/packet", got, "serve_cpp", True,
                                           "one queue pair", queue_pairs=k))
        finally:
            for e in reversed(ends):
                e.end()


def regions(opt, counts, n, ms, results):
    """Translation only: a ring whose buffers are in another region each time, against a table of one region."""
    cpu = harness.two_cpus()[1]

    def cycles(k, which):
        p = harness.spawn([middle.program(opt, "bench", "regions"), str(k), which, str(ms)], cpu=cpu, stdout=subprocess.PIPE, text=True)
        text = p.communicate()[0]
        harness.reap(p)
        if p.returncode:
            raise harness.BenchError("bench/regions ended with code %d" % p.returncode)
        return {"cpp": json.loads(text)["cycles"], "disturbed": 0}

    for k in counts:
        for which, case in (("one", "buffers in one"), ("all", "another one each time")):
            got = harness.pairs(lambda: cycles(k, which), lambda: cycles(1, which), n)
            results.append(harness.compare("scale", "%d memory regions, %s" % (k, case), "cycles/packet", got, "cpp", True,
                                           "one region", regions=k, which=which))


def percentile(values, p):
    v = sorted(values)
    return v[min(int(p * len(v)), len(v) - 1)]


def neighbour(opt, names, n, seconds, results):
    """A neighbour on the same data thread: its packets beside a link whose 64 pairs do what costs most, and beside one whose 64 pairs
    send as fast as they can. And the control socket, also while such a link leaves."""
    cpus = harness.two_cpus()
    home = os.sched_getaffinity(0)
    for name in names:
        sub = argparse_copy(opt, "crowd-%d" % names.index(name))
        at = {k: [os.path.join(sub.workdir, k + side) for side in "ab"] for k in ("honest", "hostile", "nb")}
        d = middle.Daemon(sub, cpus[1], [(k, middle.relay_link(*s, 1 if k == "nb" else CROWD_PAIRS)) for k, s in at.items()])
        ends, answers = [], []
        try:
            os.sched_setaffinity(0, {cpus[0]})
            ends.append(crowd.Crowd(at["honest"], CROWD_PAIRS, crowd.HONEST["1518 B"]))
            ends.append(crowd.Crowd(at["hostile"], CROWD_PAIRS, crowd.HOSTILE[name]))
            ends.append(crowd.Neighbour(at["nb"]))
            disturbance = harness.Disturbance([d.pid, os.getpid()], cpus)

            def sample(c, half_time=None):
                disturbance.start()
                times, asked = crowd.measure(c, ends[2], d.control, seconds, half_time=half_time)
                c.drain()
                answers.append(max(asked) / 1000)
                return {"p50": percentile(times, 0.5), "p99": percentile(times, 0.99), "disturbed": disturbance.share()}

            got = harness.pairs(lambda: sample(ends[1]), lambda: sample(ends[0]), n)
            r = harness.compare("scale", "neighbour of 64 hostile pairs: " + name, "us, 99 %", got, "p99", True,
                                "64 honest pairs, 1518 B", target="< %g x the peer" % NEIGHBOUR_TARGET)
            r["note"] = "median packet %.0f us, peer %.0f us; control socket at worst %.1f ms" % (
                harness.middle_of([a["p50"] for a, _ in got]), harness.middle_of([b["p50"] for _, b in got]),
                harness.middle_of(sorted(answers)))
            r["failed"] = r["ours"] > NEIGHBOUR_TARGET * r["peer"]
            results.append(r)
            del answers[:]
            sample(ends[1], half_time=ends[0].hang_up)
            results.append(harness.single("scale", "control socket while 64 pairs leave beside: " + name, "ms", answers,
                                          target="< %g" % ANSWER_TARGET_MS, failed=answers[0] >= ANSWER_TARGET_MS))
        finally:
            os.sched_setaffinity(0, home)
            for e in ends:
                e.close()
            d.end()


def argparse_copy(opt, name):
    """The options with a work directory below."""
    import copy
    o = copy.copy(opt)
    o.workdir = os.path.join(opt.workdir, name)
    os.makedirs(o.workdir, exist_ok=True)
    return o


def run(opt):
    n = 100 if opt.quick else 1000
    results = []
    need_files(16 * n + 1000)
    many(opt, n, 2 if opt.quick else 10, results)
    growth(opt, [16] if opt.quick else [2, 16, 64, 256], 3 if opt.quick else opt.pairs, 0.3 if opt.quick else 0.5, results)
    pairs = 3 if opt.quick else opt.pairs
    queue_pairs(opt, [8] if opt.quick else [2, 4, 8], pairs, 0.3 if opt.quick else 0.4, results)
    regions(opt, [509] if opt.quick else [2, 8, 64, 509], pairs, 50 if opt.quick else 200, results)
    hostile = list(crowd.HOSTILE)
    neighbour(opt, hostile[::4] if opt.quick else hostile, pairs, 0.5 if opt.quick else 1, results)
    plot(opt, results)
    return results


def plot(opt, results):
    def rows(key, **match):
        return "1 1.0\n" + "".join("%d %.4f\n" % (r[key], 1 / r["ratio"]) for r in results if r.get(key) and r["ratio"] and
                                   all(r.get(k) == v for k, v in match.items()))

    harness.gnuplot(opt.outdir, "scale", """
set title "How cost grows: per packet, relative to one"
set logscale xy 2
set xlabel "how many"
set ylabel "cycles per packet / with one"
set yrange [0.5:*]
plot 'scale.dat' using 1:2 with linespoints lw 2 pt 7 title 'connected links, one busy', \\
     'scale-pairs.dat' using 1:2 with linespoints lw 2 pt 5 title 'queue pairs of a link', \\
     'scale-one.dat' using 1:2 with linespoints lw 2 pt 9 title 'memory regions, buffers in one', \\
     'scale-all.dat' using 1:2 with linespoints lw 2 pt 11 title 'memory regions, another one each time'
""", {"scale.dat": rows("links"), "scale-pairs.dat": rows("queue_pairs"), "scale-one.dat": rows("regions", which="one"),
        "scale-all.dat": rows("regions", which="all")})
