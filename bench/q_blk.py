# SPDX-License-Identifier: BSD-3-Clause
"""blk: what it costs that a disk's back-end does not see the driver VM's memory.

bench/blkload plays the driver VM: random reads and writes, one or 32 at a time. The back-end is qemu-storage-daemon, unmodified. Ours
is a link with Endpoint=vhost-user, where the daemon copies each request through its pool ("copy"), or passes the driver VM's memory whole
("fast"), or a fast link whose port has the attachment "local" ("local"; a script joins the back-end to it). The peer is the same driver
and the same back-end joined directly, on the same cores:

  one-core    everything shares one core
  host-core   the driver has a core, as a VM has; back-end and daemon share the other
  own-core    driver and back-end share a core; the daemon has the other

"us CPU/request" is what all threads of the three processes ran for, in user space and in the kernel, and in the notes who of them.
Latency is one request at a time: with interrupts the driver sleeps until its call comes, polled it looks at its ring, and yields
its core between looks.

Two disks: "ram" is a file in memory, through io_uring; "null" is QEMU's null-co, which does nothing: it shows the fixed cost of
a link, and is no disk that anybody has. Of the data nobody looks at a byte, but for the copies.

Run under a real-time policy (chrt -f 20), a loop of the lowest real-time priority keeps everything else off both cores.
"""
import json
import os
import subprocess
import time

import harness
import localagent
import middle

SIZES = [4096, 65536]
DISK = 256 << 20
DIRECT = "joined directly"
CASES = ["ram one-core", "ram host-core", "ram own-core", "null one-core"]
IDLE = 100
KEYS = {}  # of the daemon


def layout(name, cpus):
    """The driver's, the back-end's, the daemon's core."""
    a, b = cpus
    return {"one-core": (a, a, a), "host-core": (a, b, b), "own-core": (a, a, b)}[name]


def fillers(cpus):
    if os.sched_getscheduler(0) != os.SCHED_FIFO:
        return []
    return [harness.spawn(["chrt", "-f", "1", "sh", "-c", "while :; do :; done"], cpu=c) for c in cpus]


def process_ns(pid):
    """CPU time of all threads of a process, those that have ended as well."""
    return time.clock_gettime_ns((~pid << 3) | 2)  # CPUCLOCK_SCHED of the process, as clock_getcpuclockid() makes it


class Storage:
    """qemu-storage-daemon with one export, or several of the same disk."""

    def __init__(self, opt, cpu, disk, name, exports=1):
        self.sockets = [os.path.join(opt.workdir, "%s.qsd%d.sock" % (name, i)) for i in range(exports)]
        self.socket = self.sockets[0]
        blockdev = {"ram": {"driver": "file", "filename": image(opt), "aio": "io_uring"},
                    "null": {"driver": "null-co", "size": DISK, "read-zeroes": True}}[disk]
        argv = ["qemu-storage-daemon", "--blockdev", json.dumps(dict(blockdev, **{"node-name": "f"}))]
        for i, at in enumerate(self.sockets):
            argv += ["--export", "vhost-user-blk,id=e%d,node-name=f,addr.type=unix,addr.path=%s,writable=%s"
                     % (i, at, "on" if exports == 1 else "off")]
        self.log = open(os.path.join(opt.workdir, name + ".qsd.log"), "wb")
        try:
            self.p = harness.spawn(argv, cpu=cpu, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        except FileNotFoundError:
            raise harness.BenchError("qemu-storage-daemon is not installed (Debian: qemu-system-common)")
        self.pid = self.p.pid
        middle.wait_sockets(self.p, self.sockets)

    def end(self):
        self.p.terminate()
        harness.reap(self.p)
        self.log.close()


def image(opt):
    """The disk in memory; written, so that its pages are there."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else opt.workdir
    path = os.path.join(where, "vp-bench-%d.img" % os.getpid())
    if not os.path.exists(path):
        with open(path, "wb") as f:
            for i in range(DISK >> 20):
                f.write(bytes([i & 255 or 1]) * (1 << 20))
    return path


class Direct:
    def __init__(self, opt, cpus, disk):
        """cpus: the driver's, the back-end's, the daemon's."""
        self.name, self.cpus = "direct", cpus
        self.store = Storage(opt, cpus[1], disk, "direct-" + disk)
        self.parts = [self.store]
        self.load = Load(opt, cpus[0], self.store.socket, "direct-" + disk)

    def sample(self, kind, size, depth, wait, ms):
        self.load.cmd("run %s %d %d %s %d" % (kind, size, depth, wait, ms // 10))
        d = harness.Disturbance([], self.cpus)
        d.start()
        before = [process_ns(p.pid) for p in self.parts]
        r = self.load.cmd("run %s %d %d %s %d" % (kind, size, depth, wait, ms))
        spent = [process_ns(p.pid) - b for p, b in zip(self.parts, before)]
        n = r["requests"]
        return {"iops": n / r["seconds"], "p50": r["p50"], "p99": r["p99"], "cpu": (r["cpu"] + sum(spent)) / n / 1000,
                "driver": r["cpu"] / n / 1000, "backend": spent[0] / n / 1000, "daemon": sum(spent[1:]) / n / 1000,
                "waits": r["waits"] / n, "kicks": r["kicks"] / n,
                # Nothing here stands still for long by itself: whose core it was taken.
                "disturbed": max(d.share(), r["max"] / 1e6 / r["seconds"])}

    def end(self):
        self.load.end()
        for p in reversed(self.parts):
            p.end()


class Load(harness.Lines):
    def __init__(self, opt, cpu, socket, name):
        super().__init__([middle.program(opt, "bench", "blkload"), socket], cpu, os.path.join(opt.workdir, name + ".blkload.log"))


def link(driver, socket, mode):
    return {"Link": {"Mode": mode, "Type": "blk"}, "Driver": {"VM": "a", "Socket": driver},
            "Device": {"VM": "c" if mode == "fast" else "b", "Endpoint": "vhost-user", "SocketMode": "client", "Socket": socket}}


def local_link(driver, socket):
    return {"Link": {"Mode": "fast", "Type": "blk"}, "Driver": {"VM": "a", "Socket": driver},
            "Device": {"VM": "c", "Endpoint": "port", "Attachment": "local", "Socket": socket}}


class Link(Direct):
    """The same through a link."""

    def __init__(self, opt, cpus, disk, mode):
        self.name, self.cpus = mode, cpus
        self.store = Storage(opt, cpus[1], disk, mode + "-" + disk)
        self.driver = os.path.join(opt.workdir, "%s-%s.driver.sock" % (mode, disk))
        port = os.path.join(opt.workdir, disk + ".port.sock")
        of = local_link(self.driver, port) if mode == "local" else link(self.driver, self.store.socket, mode)
        self.d = middle.Daemon(opt, cpus[2], [("bench", of)], KEYS, name="pcid-%s-%s" % (mode, disk))
        self.parts = [self.store, self.d]
        policy = self.d.call("link.show", name="bench")["policy"]
        if not policy["allowed"]:
            self.d.end()
            self.store.end()
            raise harness.BenchError(policy["why"])
        if mode == "local":
            middle.wait_sockets(self.d.p, [port])
            self.agent = localagent.Agent(port, self.store.socket)
        middle.wait_sockets(self.d.p, [self.driver])
        end = time.monotonic() + 10
        while not self.d.call("link.show", name="bench")["sides"]["device"].get("connected"):
            if time.monotonic() > end:
                raise harness.BenchError("the back-end of the %s link is not connected; see %s" % (mode, self.d.dir))
            time.sleep(0.02)
        self.load = Load(opt, cpus[0], self.driver, "%s-%s" % (mode, disk))
        if mode == "local":
            self.agent.up()

    def end(self):
        if self.name == "local":
            self.agent.end()
        super().end()


def med(got, i, key):
    return round(harness.middle_of([g[i][key] for g in got]), 3)


def words(got, i):
    return "driver %.2f, back-end %.2f, daemon %.2f" % tuple(med(got, i, k) for k in ("driver", "backend", "daemon"))


def rows(results, case, got, subjects, what, **more):
    """what: [(name, unit, key, smaller is better)]"""
    for i, s in enumerate(subjects[:-1]):
        pairs = harness.column(got, i, len(subjects) - 1)
        for name, unit, key, smaller in what:
            note = {"note": "%s; direct: %s" % (words(got, i), words(got, -1))} if key == "cpu" else {}
            results.append(harness.compare("blk", "%s, %s%s" % (s.name, case, name), unit, pairs, key, smaller, DIRECT, mode=s.name,
                                           **more, **note))


THROUGHPUT = [("", "requests/s", "iops", False), ("", "us CPU/request", "cpu", True)]
LATENCY = [(", 50 %", "us latency", "p50", True), (", 99 %", "us latency", "p99", True)]


def measure(case, subjects, ms, n, results, step):
    for size in SIZES:
        for kind in ("read", "write"):
            for depth, wait in (1, "sleep"), (1, "poll"), (32, "sleep"):
                if wait == "poll" and not case.endswith("one-core"):
                    continue
                name = "%s, %s %d KiB, %s" % (case, kind, size // 1024, "depth 32" if depth > 1 else "interrupts" if wait == "sleep" else "polled")
                got = harness.rounds([lambda s=s: s.sample(kind, size, depth, wait, ms) for s in subjects], n, lambda: step(name))
                what = THROUGHPUT if depth > 1 else LATENCY + THROUGHPUT[1:] if wait == "sleep" else LATENCY
                rows(results, name, got, subjects, what, kind=kind, size=size, depth=depth, wait=wait, layout=case)
    if case == "ram own-core":
        name = case + ", read 64 KiB, depth 64, pool of 8 MiB"
        got = harness.rounds([lambda s=s: s.sample("read", 65536, 64, "sleep", ms) for s in subjects], n, lambda: step(name))
        rows(results, name, got, subjects, THROUGHPUT[:1], kind="read", size=65536, depth=64, layout=case)


def try_links(opt, cpus, disk):
    """Those that there are: fast mode for a back-end on the host is not everybody's policy."""
    links = [Link(opt, cpus, disk, "copy")]
    for mode in "fast", "local":
        try:
            links.append(Link(opt, cpus, disk, mode))
        except harness.BenchError as e:
            harness.say("blk: no figures of %s: %s" % (mode, e))
    return links


def memory(pid):
    """KiB of this process: its own or of files in memory that it has touched; and its share, where others have them, too."""
    words = [line.split() for line in harness.read("/proc/%d/status" % pid).splitlines()]
    rolled = [line.split() for line in harness.read("/proc/%d/smaps_rollup" % pid).splitlines()]
    return sum(int(w[1]) for w in words if w[0] in ("RssAnon:", "RssShmem:")), next(int(w[1]) for w in rolled if w[0] == "Pss:")


def idle(opt, cpus):
    """What a link takes whose driver and back-end are there, and whose pool nobody has used yet."""
    got = []
    for n in (1, 1 + IDLE):
        loads, parts = [], []
        try:
            parts.append(Storage(opt, cpus[1], "null", "idle%d" % n, exports=n))
            drivers = [os.path.join(opt.workdir, "idle%d-%d.driver.sock" % (n, i)) for i in range(n)]
            of = [("idle%d" % i, link(drivers[i], at, "copy")) for i, at in enumerate(parts[0].sockets)]
            parts.append(middle.Daemon(opt, cpus[2], of, name="pcid-idle%d" % n))
            middle.wait_sockets(parts[1].p, drivers)
            loads = [Load(opt, cpus[0], s, "idle%d-%d" % (n, i)) for i, s in enumerate(drivers)]
            time.sleep(0.5)
            got.append(memory(parts[1].pid))
        finally:
            for x in loads + parts[::-1]:
                x.end()
    return [harness.single("blk", "copy, each of %d idle links with a driver and a back-end" % IDLE, "KiB of the daemon's, " + what,
                           [(got[1][i] - got[0][i]) / IDLE]) for i, what in enumerate(("resident", "PSS"))]


def run(opt):
    ms, n = (150, 3) if opt.quick else (250, opt.pairs)
    cpus = harness.two_cpus()
    cases = [c for c in CASES if opt.only in (None, c)]
    if not cases:
        raise harness.BenchError("--only: choose one of " + ", ".join(CASES))
    progress = harness.Progress("blk", sum(12 if c.endswith("one-core") else 9 if "own" in c else 8 for c in cases) * n)
    results, fill = [], []
    try:
        for case in cases:
            disk, where = case.split()
            subjects = []
            try:
                at = layout(where, cpus)
                subjects += try_links(opt, at, disk)
                subjects.append(Direct(opt, at, disk))
                fill = fillers(cpus)
                measure(case, subjects, ms, n, results, progress.step)
            finally:
                for s in subjects + [Ended(f) for f in fill]:
                    s.end()
                fill = []
        if not opt.only:
            results += idle(opt, layout("host-core", cpus))
    finally:
        if os.path.exists(image(opt)):
            os.unlink(image(opt))
    plot(opt, results)
    return results


class Ended:
    def __init__(self, p):
        self.p = p

    def end(self):
        self.p.kill()
        harness.reap(self.p)


def plot(opt, results):
    by = {}
    for r in results:
        if r["unit"] == "us CPU/request" and r["ratio"] and r["layout"] == "ram one-core":
            by.setdefault("%s %d KiB depth %d" % (r["kind"], r["size"] // 1024, r["depth"]), {})[r["mode"]] = 1 / r["ratio"]
    if not by:
        return
    data = ["case copy fast"] + ['"%s" %s %s' % (c, v.get("copy", "nan"), v.get("fast", "nan")) for c, v in by.items()]
    fast = any("fast" in v for v in by.values())
    harness.gnuplot(opt.outdir, "blk", """
set title "A disk in memory, one core: CPU per request, as a multiple of driver and back-end joined directly (less is better)"
set style data histograms
set style fill solid 0.8 border -1
set ylabel "times direct"
set yrange [0:*]
set xtics rotate by -20
plot 'blk.dat' using 2:xtic(1) title 'copy' lc rgb '#2060a0'%s, 1 notitle lc rgb '#404040'
""" % (", '' using 3 title 'fast' lc rgb '#c08040'" if fast else ""), {"blk.dat": "\n".join(data) + "\n"})
