# SPDX-License-Identifier: BSD-3-Clause
"""remap-vs-copy: is a window handed over faster by changing a mapping or by copying it?

"ours" is the copy, which every mode of the project uses; the peer is remapping. A ratio above 1 says that
copying is cheaper at that size.

The rows with "window" go the whole way of a grant, if there is QEMU 11.1: vhost-pcid with a link of mode grant, and a device VM at a
shmem port (bench/qemuport.py). A range of that size is granted and dropped, over and over; a driver VM's front-end has its rings beside it.

  MAP + UNMAP      what QEMU takes to put one window into the device VM's address space, and out of it, from the daemon's request to the
                   answer
  grant + revoke   from the word that grants it until the link is up, and from the word that drops it until it is gone. Three windows
                   (pool and two rings), and the device VM's answers: it stops its queues and says SYNC

QEMU runs without KVM and without a guest: what KVM takes for a memory slot, and a guest's processor for its first access to each page, are
not in these rows; "remap" and "populate" show the latter on this machine.
"""
import json
import os
import statistics
import subprocess
import time

import harness
import middle
import qemuport
import vu

WINDOWS = [4096 << i for i in range(15)]     # as bench/remap.c
POOL = 64 << 20     # in the driver VM's memory, which is twice as large
MARK = b"granted!"


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


class Granted:
    """A link of mode grant: its daemon, a front-end that has rings and no buffers, and a device VM's VMM."""

    def __init__(self, opt):
        sockets = [os.path.join(opt.workdir, n + ".sock") for n in ("driver", "port")]
        self.d = middle.Daemon(opt, links=[("bench", {
            "Link": {"Mode": "grant"}, "Driver": {"VM": "a", "Grant": "swiotlb", "Socket": sockets[0]},
            "Device": {"VM": "c", "Endpoint": "port", "Attachment": "shmem", "ApertureSize": "512M", "Socket": sockets[1]}})], name="pcid-grant")
        middle.wait_sockets(self.d.p, sockets)
        self.vm = self.nic = None
        try:
            self.vm = qemuport.Device(opt, sockets[1], 3)
            if self.vm.attach():
                raise harness.BenchError("the port refuses the device VM")
            self.nic = vu.Nic(sockets[0], mem=vu.Memory(2 * POOL), fill=False)
        except BaseException:
            self.end()
            raise
        self.nic.mem.map[POOL:POOL + len(MARK)] = MARK

    def counts(self):
        side = self.d.call("link.show", name="bench")["sides"]
        return side["driver"]["grant"]["state"], {k: side["device"][k] for k in ("maps", "map_us", "unmaps", "unmap_us")}

    def cycle(self, size):
        """Nanoseconds of a grant, and of taking it back."""
        t0 = time.monotonic_ns()
        self.d.call("link.grant", name="bench", address=self.nic.mem.gpa + POOL, size=size)
        self.vm.wait(self.vm.up, "link that is up")
        t1 = time.monotonic_ns()
        at = {n: a for a, n in self.vm.windows()}
        if self.vm.read(at[size], len(MARK)) != MARK:
            raise harness.BenchError("the window does not show what is granted")
        t2 = time.monotonic_ns()
        self.d.call("link.grant", name="bench", drop=True)
        while self.vm.up():
            self.vm.let_go()
        self.vm.sync()
        self.vm.wait(lambda: self.counts()[0] == "none", "end of the grant")
        t3 = time.monotonic_ns()
        if self.vm.read(at[size], len(MARK)) != bytes(len(MARK)):
            raise harness.BenchError("what was granted is there after the grant's end")
        return t1 - t0 + t3 - t2

    def run(self, size, cycles):
        """(MAP + UNMAP, grant + revoke), nanoseconds each."""
        before = self.counts()[1]
        whole = statistics.median(self.cycle(size) for _ in range(cycles))
        d = {k: v - before[k] for k, v in self.counts()[1].items()}
        return 1000 * (d["map_us"] / d["maps"] + d["unmap_us"] / d["unmaps"]), whole

    def end(self):
        if self.nic:
            self.nic.close()
        if self.vm:
            self.vm.end()
        self.d.end()


def windows(opt, runs, cycles, out):
    """Into out, where there is a QEMU that can. In turn, size by size."""
    try:
        g = Granted(opt)
    except harness.BenchError as e:
        harness.say("remap-vs-copy: no rows of windows: %s" % e)
        return
    try:
        for size in WINDOWS:
            g.run(size, 1)
        for _ in range(runs):
            for size in WINDOWS:
                one, whole = g.run(size, cycles)
                out.setdefault(("window", size), []).append(one)
                out.setdefault(("grant", size), []).append(whole)
    finally:
        g.end()
    harness.say("remap-vs-copy: windows done")


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
    windows(opt, len(next(iter(out.values()))), 3 if opt.quick else 10, out)
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
        if ("window", s) in out:
            results.append(pair("%s copy-cold, window" % size_name(s), out["copy-cold", s], out["window", s], "MAP + UNMAP by QEMU", s))
            results.append(pair("%s copy-cold, grant" % size_name(s), out["copy-cold", s], out["grant", s], "grant + revoke", s))
    for copy in ("copy-hot", "copy-cold"):
        for remap in ("remap", "populate", "remap-huge", "window", "grant"):
            if remap not in {op for op, _ in out}:
                continue
            at = crossover([s for s in sizes if (remap, s) in out], out, copy, remap)
            results.append({"question": "remap-vs-copy", "case": "crossover %s / %s" % (copy, remap), "unit": "bytes", "ours": at,
                            "peer": None, "peer_name": None, "ratio": None, "runs": 1, "spread": None,
                            "note": "copying is cheaper below it" if at else "copying is cheaper at every size measured"})
    plot(opt, out, sizes)
    return results


def plot(opt, out, sizes):
    ops = ["copy-hot", "copy-cold", "remap", "populate", "unmap", "remap-huge", "copy-32", "remap-32", "window", "grant"]
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
