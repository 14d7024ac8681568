# SPDX-License-Identifier: BSD-3-Clause
"""What every question shares: the machine, paired runs, statistics, results.

Two subjects are compared by alternating short samples A B A B on the same
cores; the result is the median of the pairs' ratios, so that a drift of the machine
(clock, neighbours) hits both. Every sample also says how much of its CPU time was
taken away (run-queue waits, hypervisor steal); disturbed samples are repeated, and
what stays too noisy is reported as such instead of as a number.
"""
import atexit
import ctypes
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time

HUGE_TOTAL = "/proc/sys/vm/nr_hugepages"
NICE = -19
MAX_DISTURBED = 0.04   # share of a sample's time that others may take
MAX_SPREAD = 0.25      # interquartile range of the pairs' ratios over their median


class BenchError(Exception):
    """Something that the user can do something about; the message says what."""


def say(text):
    print(text, file=sys.stderr, flush=True)


class Progress:
    """One line on a terminal, sparse lines elsewhere."""

    def __init__(self, title, total):
        self.title, self.total, self.done = title, total, 0
        self.tty = sys.stderr.isatty()
        self.t0 = time.monotonic()

    def step(self, what):
        self.done += 1
        left = (time.monotonic() - self.t0) / self.done * (self.total - self.done)
        line = "%s: %d/%d %s (about %d s left)" % (self.title, self.done, self.total, what, left)
        if self.tty:
            print("\r\033[K" + line, end="", file=sys.stderr, flush=True)
            if self.done >= self.total:
                print(file=sys.stderr)
        else:
            say(line)


# ---- machine -------------------------------------------------------------------

def read(path, default=None):
    try:
        with open(path) as f:
            return f.read()
    except OSError:
        if default is None:
            raise
        return default


_children = []


def raise_priority(nice=NICE):
    """Of this process: the harness sleeps between samples, and must not be late for the next among pollers."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
        # Where the scheduler groups by session, nice counts inside the session only.
        with open("/proc/self/autogroup", "w") as f:
            f.write(str(nice))
    except OSError:
        pass


def _child_setup(cpu, nice):
    libc = ctypes.CDLL(None, use_errno=True)

    def setup():
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: nothing outlives the harness
        os.setsid()
        if cpu is not None:
            os.sched_setaffinity(0, {cpu} if isinstance(cpu, int) else set(cpu))
        raise_priority(nice)
    return setup


def spawn(argv, cpu=None, nice=NICE, **kw):
    """Start a process that dies with the harness, pinned to cpu (a number or a set)."""
    p = subprocess.Popen(argv, preexec_fn=_child_setup(cpu, nice), **kw)
    _children.append(p)
    return p


def reap(p, timeout=5):
    if p.poll() is None:
        try:
            p.wait(timeout)
        except subprocess.TimeoutExpired:
            p.kill()
            p.wait()
    if p in _children:
        _children.remove(p)


@atexit.register
def _end_children():
    for p in list(_children):
        if p.poll() is None:
            p.kill()
            p.wait()


class Lines:
    """A program of ours that takes commands on standard input, one a line, and answers each by one line of JSON."""

    def __init__(self, argv, cpu, log=None, greets=True):
        """log: a file for what it complains of; greets: it prints a first line by itself when it is ready."""
        self.log = open(log, "wb") if log else None
        self.p = spawn(argv, cpu=cpu, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, bufsize=1)
        self.pid = self.p.pid
        self.first = self._answer() if greets else None

    def _answer(self):
        line = self.p.stdout.readline()
        if not line:
            raise BenchError("%s ended%s" % (os.path.basename(self.p.args[0]), "; see " + self.log.name if self.log else ""))
        return json.loads(line)

    def cmd(self, line):
        try:
            self.p.stdin.write(line + "\n")
        except BrokenPipeError:
            pass  # the answer says so
        return self._answer()

    def end(self):
        if self.p.poll() is None:
            self.p.stdin.close()
        reap(self.p)
        if self.log:
            self.log.close()


def meminfo(key):
    for line in read("/proc/meminfo").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    return 0


def need_hugepages(n):
    """At least n free 2 MiB pages until the harness ends; what was set before comes back then."""
    if meminfo("Hugepagesize") != 2048:
        raise BenchError("the default huge page size is not 2 MiB; boot with default_hugepagesz=2M")
    have, free = int(read(HUGE_TOTAL)), meminfo("HugePages_Free")
    if free >= n:
        return
    want = have + n - free
    try:
        with open(HUGE_TOTAL, "w") as f:
            f.write(str(want))
    except OSError as e:
        raise BenchError("%d huge pages of 2 MiB are needed: run as root, or sysctl vm.nr_hugepages=%d (%s)"
                         % (n, want, e))
    atexit.register(_restore_hugepages, have, want)
    if meminfo("HugePages_Free") < n:
        raise BenchError("only %d of %d huge pages could be had; free some memory" %
                         (meminfo("HugePages_Free"), n))


def _restore_hugepages(old, ours):
    try:
        if int(read(HUGE_TOTAL)) == ours:  # somebody else may have changed it meanwhile
            with open(HUGE_TOTAL, "w") as f:
                f.write(str(old))
    except OSError:
        pass


def machine():
    model = "unknown CPU"
    for line in read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return {"cpu": model, "cpus": os.cpu_count(), "kernel": os.uname().release,
            "virtual": "hypervisor" in read("/proc/cpuinfo"), "memory_mib": meminfo("MemTotal") // 1024}


def two_cpus():
    """The driver's core and the middle's."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        raise BenchError("two CPUs are needed, this process may use only CPU %d" % cpus[0])
    return cpus[0], cpus[1]


def schedstat(pid):
    """{thread: (ns that it ran, ns that it waited for a CPU)}"""
    out = {}
    for tid in os.listdir("/proc/%d/task" % pid):
        f = read("/proc/%d/task/%s/schedstat" % (pid, tid), "0 0 0").split()
        out[tid] = int(f[0]), int(f[1])
    return out


def cpu_ns(pid):
    """CPU time of all threads in ns."""
    return sum(run for run, _ in schedstat(pid).values())


class Stops(threading.Thread):
    """Freezes one of these processes at a time, at random: whatever waits for the other side must get over it."""

    def __init__(self, pids, longest):
        super().__init__(daemon=True)
        self.pids, self.longest, self.over, self.count = pids, longest, threading.Event(), 0
        self.start()

    def run(self):
        rng = random.Random(1)
        while not self.over.wait(rng.uniform(0.001, 0.02)):
            pid = rng.choice(self.pids)
            try:
                os.kill(pid, signal.SIGSTOP)
                self.over.wait(self.longest * rng.random() ** 8)
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                return
            self.count += 1

    def end(self):
        self.over.set()
        self.join()


class Disturbance:
    """Share of the time since start() that the pollers of these processes wanted to run and could not."""

    def __init__(self, pids, cpus):
        self.pids, self.cpus = pids, cpus

    def _wait_ns(self):
        total = {}
        for pid in self.pids:
            total.update({tid: wait for tid, (_, wait) in schedstat(pid).items()})
        return total

    def _steal(self):
        hz = os.sysconf("SC_CLK_TCK")
        out = {}
        for line in read("/proc/stat").splitlines():
            f = line.split()
            if f[0].startswith("cpu") and f[0] != "cpu" and int(f[0][3:]) in self.cpus:
                out[f[0]] = int(f[8]) / hz
        return out

    def start(self):
        self.t0, self.w0, self.s0 = time.monotonic(), self._wait_ns(), self._steal()

    def share(self):
        dt = time.monotonic() - self.t0
        w1, s1 = self._wait_ns(), self._steal()
        wait = max([w1[t] - self.w0.get(t, w1[t]) for t in w1] or [0]) / 1e9
        steal = max(s1[c] - self.s0[c] for c in s1)
        return max(wait, steal) / dt


def window(disturbance, seconds, read, slice_s=0.08):
    """What read() (a tuple of counters) grew by in `seconds` of undisturbed slices, how long those were, and the share of
    disturbance that remained. A slice that was disturbed is left out, unless there are too few others."""
    clean, dirty = [], []
    last = read()
    t0 = time.monotonic()
    end = t0 + 3 * seconds
    disturbance.start()
    while not clean + dirty or sum(c[0] for c in clean) < seconds and time.monotonic() < end:
        time.sleep(slice_s)
        now = read()
        t = time.monotonic()
        share = disturbance.share()
        grown = tuple(b - a for a, b in zip(last, now))
        (clean if share <= MAX_DISTURBED else dirty).append((t - t0, grown, share))
        last, t0 = now, t
        disturbance.start()
    if sum(c[0] for c in clean) < seconds / 4:
        clean += dirty
    took = sum(c[0] for c in clean)
    return tuple(sum(v) for v in zip(*(c[1] for c in clean))), took, sum(c[0] * c[2] for c in clean) / took


# ---- paired runs ------------------------------------------------------------------

def quartiles(v):
    v = sorted(v)
    if len(v) < 2:
        return v[0], v[0], v[0]
    q = statistics.quantiles(v, n=4, method="inclusive")
    return q[0], q[1], q[2]


class Noisy(Exception):
    pass


def rounds(samplers, n, on_step=None):
    """n rounds of one sample of each, in turn. A sample is a dict of numbers with 'disturbed'."""
    out, spare = [], max(n // 2, 1)  # repetitions
    while len(out) < n:
        got = tuple(s() for s in samplers)
        if max(g["disturbed"] for g in got) > MAX_DISTURBED and spare > 0:
            spare -= 1
            continue
        out.append(got)
        if on_step:
            on_step()
    return out


def pairs(sample_a, sample_b, n, on_step=None):
    return rounds((sample_a, sample_b), n, on_step)


def column(got, a, b):
    """The pairs of subjects a and b out of rounds."""
    return [(g[a], g[b]) for g in got]


def middle_of(values):
    return sorted(values)[len(values) // 2]


def compare(question, case, unit, samples, key, smaller_is_better, peer_name, **more):
    """One result out of pairs of samples: medians, the ratio (> 1 = ours is better) and its spread."""
    ours = [a[key] for a, _ in samples]
    peer = [b[key] for _, b in samples]
    ratios = [(p / o if smaller_is_better else o / p) for o, p in zip(ours, peer) if o > 0 and p > 0]
    disturbed = max(max(a["disturbed"], b["disturbed"]) for a, b in samples)
    r = {"question": question, "case": case, "unit": unit, "ours": statistics.median(ours),
         "peer": statistics.median(peer), "peer_name": peer_name, "ratio": None, "runs": len(samples),
         "spread": None, "disturbed": round(disturbed, 3)}
    r.update(more)
    if len(ratios) < len(samples):
        r["refused"] = "a side measured nothing"
        return r
    lo, mid, hi = quartiles(ratios)
    r["spread"] = round((hi - lo) / mid, 3)
    r["ratio_min"], r["ratio_max"] = round(min(ratios), 3), round(max(ratios), 3)
    if r["spread"] > MAX_SPREAD:
        r["refused"] = "too noisy: the middle half of the ratios spans %.2f to %.2f" % (lo, hi)
    else:
        r["ratio"] = round(mid, 3) or float("%.2g" % mid)
    return r


def single(question, case, unit, values, **more):
    """A figure without a peer."""
    lo, mid, hi = quartiles(values)
    r = {"question": question, "case": case, "unit": unit, "ours": mid, "peer": None, "peer_name": None,
         "ratio": None, "runs": len(values), "spread": round((hi - lo) / mid, 3) if mid else 0}
    r.update(more)
    return r


# ---- results --------------------------------------------------------------------------

def number(v):
    if v is None:
        return "-"
    if isinstance(v, str):
        return v
    if abs(v) >= 1000000:
        return "%.2f M" % (v / 1e6)
    if abs(v) >= 1000:
        return "%.0f" % v
    if abs(v) >= 10:
        return "%.1f" % v
    return "%.3g" % v


def times(ratio):
    return "%.2f" % ratio if ratio >= 0.01 else "%.1g" % ratio


def table(results, out=sys.stdout):
    head = ["question", "case", "unit", "ours", "peer", "ratio", "spread", "n", ""]
    rows = []
    for r in results:
        ratio = times(r["ratio"]) + "x" if r["ratio"] is not None else "refused" if r.get("refused") else "-"
        note = [r.get("refused") or "", r.get("note") or ""]
        rows.append([r["question"], r["case"], r["unit"], number(r["ours"]), number(r["peer"]), ratio,
                     "-" if r["spread"] is None else "%.0f %%" % (100 * r["spread"]), str(r["runs"]),
                     "; ".join(n for n in note if n)])
    width = [max(len(row[i]) for row in [head] + rows) for i in range(len(head))]
    for row in [head] + rows:
        cells = [c.rjust(w) if 3 <= i <= 7 else c.ljust(w) for i, (c, w) in enumerate(zip(row, width))]
        print("  ".join(cells).rstrip(), file=out)
    out.flush()


def markdown(results):
    """The same as tables to paste into a document, one for each question."""
    out = []
    for q in dict.fromkeys(r["question"] for r in results):
        rows = [r for r in results if r["question"] == q]
        notes = any(r.get("note") for r in rows)
        head = ["case", "unit", "ours", "peer", "ratio", "spread", "pairs"] + ["note"] * notes
        out += ["### `%s`" % q, "", "| %s |" % " | ".join(head), "|" + " --- |" * len(head)]
        for r in rows:
            ratio = "-"
            if r["ratio"] is not None:
                ratio = "**%s**" % times(r["ratio"])
            elif r.get("refused"):
                ratio = "refused" + (" (%.2f to %.2f)" % (r["ratio_min"], r["ratio_max"]) if r.get("ratio_min") is not None else "")
            cells = [r["case"], r["unit"], number(r["ours"]), ", ".join(x for x in (number(r["peer"]), r["peer_name"]) if x), ratio,
                     "-" if r["spread"] is None else "%.0f %%" % (100 * r["spread"]), str(r["runs"])] + [r.get("note") or ""] * notes
            out.append("| %s |" % " | ".join(cells))
        out.append("")
    return "\n".join(out)


def store(outdir, question, results):
    """results.json holds all questions' newest results; those of this question are replaced. results.md shows them."""
    path = os.path.join(outdir, "results.json")
    old = json.loads(read(path, "[]"))
    new = [r for r in old if r["question"] != question] + results
    with open(path + ".new", "w") as f:
        json.dump(new, f, indent=1)
        f.write("\n")
    os.rename(path + ".new", path)
    with open(os.path.join(outdir, "results.md"), "w") as f:
        f.write(markdown(new))


def gnuplot(outdir, name, script, files):
    """files: {name: text} of data next to the script. False when gnuplot is not there."""
    for n, text in files.items():
        with open(os.path.join(outdir, n), "w") as f:
            f.write(text)
    path = os.path.join(outdir, name + ".gp")
    with open(path, "w") as f:
        f.write("set terminal pngcairo noenhanced size 1000,600 font 'sans,11'\nset output '%s.png'\n" % name)
        f.write("set grid ytics\nset key top left\n" + script)
    try:
        r = subprocess.run(["gnuplot", os.path.basename(path)], cwd=outdir, capture_output=True, text=True)
    except FileNotFoundError:
        say("gnuplot is not installed: no plot for " + name)
        return False
    if r.returncode:
        say("gnuplot: " + r.stderr.strip())
    return r.returncode == 0


def plot_cycles(outdir, name, results, title, ours, more="", unit="busy cycles/packet",
                peer="testpmd io between two net_vhost"):
    """Bars of ours beside the peer's for all cases of results in that unit."""
    rows = ["case ours peer ratio"]
    for r in results:
        if r["unit"] == unit:
            rows.append('"%s" %.1f %.1f %s' % (r["case"], r["ours"], r["peer"], r["ratio"] or "nan"))
    gnuplot(outdir, name, """
set title "%s"
set style data histograms
set style fill solid 0.8 border -1
set boxwidth 0.9
%s
set ylabel "TSC cycles per packet"
set yrange [0:*]
plot '%s.dat' using 2:xtic(1) title '%s' lc rgb '#2060a0', \\
     '' using 3 title '%s' lc rgb '#c08040', \\
     '' using 0:($2 > $3 ? $2 : $3):(sprintf("%%.2fx", $4)) with labels offset 0,0.7 notitle
""" % (title, more, name, ours, peer), {name + ".dat": "\n".join(rows) + "\n"})
