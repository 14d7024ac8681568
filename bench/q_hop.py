# SPDX-License-Identifier: BSD-3-Clause
"""hop: packets from a driver VM to the device side, with libvhostpci, DPDK's net_vhost and memif.

One sender, one receiver, a core each; the receiver looks at nothing. Copy: packets arrive in the receiver's memory. In
place: it reads a word of each where it lies. The roofline is this machine's memcpy of as many bytes from as many buffers.
"""
import time

import harness
import middle
from q_relay import PACKED, RINGS, SPLIT, verify_case
from roofline import Roof
from testpmd import RING, DriverVms, VhostPort, memif

SIZES = [64, 128, 256, 512, 1024, 1518, 9000]
BIG = ("--mbuf-size=9344",)
PEER = "testpmd, net_vhost"
MEMIF = "testpmd, memif"


def one_way(src, dst, src_mode, dst_mode, size, seconds, cpus):
    """A sample of packets that go from src to dst; counted by dst."""
    dst.run(dst_mode, size)
    src.run(src_mode, size)
    time.sleep(0.08 + seconds / 5)
    src.mark()
    dst.mark()
    (packets, cycles, sent, src_cycles), dt, disturbed = harness.window(
        harness.Disturbance([src.pid, dst.pid], cpus), seconds, lambda: dst.since()[:2] + src.since()[:2])
    src.halt()
    dst.halt()
    return {"pps": packets / dt, "cpp": cycles / packets if packets else 0, "disturbed": disturbed,
            "src_cpp": src_cycles / max(sent, 1)}


class Hop:
    """Everything that takes part at one ring format and buffer size."""

    def __init__(self, opt, cpus, ring, big, with_memif):
        kw = {"args": BIG, "mem": 160} if big else {}
        self.cpus, self.all = cpus, []
        try:
            self.ours = self._keep(middle.Vpload(opt, cpus[1]))
            self.peer = self._keep(VhostPort("vhost", cpus[1], opt.workdir, **kw))
            self.drv = [self._keep(DriverVms(n, cpus[0], s.sockets, opt.workdir, ring, **kw))
                        for n, s in (("ours-driver", self.ours), ("peer-driver", self.peer))]
            self.ours.wait_up()
            self.memif = None
            if with_memif:
                room = 9216 if big else 2048
                self.memif = [self._keep(memif("memif-b", cpus[1], opt.workdir, True, room, **kw)),
                              self._keep(memif("memif-a", cpus[0], opt.workdir, False, room, **kw))]
                time.sleep(1)  # they find each other
            self.roof = self._keep(Roof(opt, cpus[1]))
        except Exception:
            self.end()
            raise

    def _keep(self, x):
        self.all.append(x)
        return x

    def samplers(self, size, seconds, both_ways):
        def ours(mode):
            return lambda: one_way(self.drv[0], self.ours, "txonly", mode, size, seconds, self.cpus)

        def back(drv, dst, mode):
            # The device side sends; it counts what it sent.
            def sample():
                return one_way(drv, dst, "rxonly", mode, size, seconds, self.cpus)
            return sample

        s = {"copy": ours("recv"), "in place": ours("borrow"),
             "vhost": lambda: one_way(self.drv[1], self.peer, "txonly", "rxonly", size, seconds, self.cpus),
             "roof": lambda: self._roof(size, seconds / 2)}
        if both_ways:
            s["send"] = back(self.drv[0], self.ours, "send")
            s["vhost send"] = back(self.drv[1], self.peer, "txonly")
        if self.memif:
            s["memif"] = lambda: one_way(self.memif[1], self.memif[0], "txonly", "rxonly", size, seconds, self.cpus)
        return s

    def _roof(self, size, seconds):
        r = self.roof.sample(size, RING, 32, seconds)
        r["cpp"] = r["cycles"]
        return r

    def end(self):
        for x in reversed(self.all):
            x.end()


def sizes(opt):
    return [64, 1518] if opt.quick else SIZES


def rows_of(case, names, got, size, ring):
    def compare(what, unit, a, b, key, peer, **more):
        col = harness.column(got, names.index(a), names.index(b))
        return harness.compare("hop", "%s %s" % (case, what), unit, col, key, key == "cpp", peer, size=size, ring=ring, **more)

    out = [compare("copy", "packets/s", "copy", "vhost", "pps", PEER,
                   driver_cycles=round(harness.middle_of([g[names.index("copy")]["src_cpp"] for g in got]), 1)),
           compare("copy", "busy cycles/packet", "copy", "vhost", "cpp", PEER),
           compare("in place", "busy cycles/packet", "in place", "vhost", "cpp", PEER),
           compare("copy, roofline", "busy cycles/packet", "copy", "roof", "cpp", "memcpy")]
    if "send" in names:
        out += [compare("send", "packets/s", "send", "vhost send", "pps", PEER),
                compare("send", "busy cycles/packet", "send", "vhost send", "cpp", PEER)]
    if "memif" in names:
        out += [compare("copy", "packets/s", "copy", "memif", "pps", MEMIF),
                compare("copy", "busy cycles/packet", "copy", "memif", "cpp", MEMIF)]
    return out


def run(opt):
    seconds, n = (0.25, 3) if opt.quick else (0.3, opt.pairs)
    cpus = harness.two_cpus()
    rings = [r for r in RINGS[:2] if opt.only in (None, r[0])]
    todo = sizes(opt)
    harness.need_hugepages(600 if 9000 in todo else 330)
    progress = harness.Progress("hop", len(rings) * len(todo) * n)
    results = []
    for ring_name, ring in rings:
        for big in (False, True):
            here = [s for s in todo if (s > 2000) == big]
            if not here:
                continue
            hop = Hop(opt, cpus, ring, big, ring_name == rings[0][0])
            try:
                for size in here:
                    case = "%s %d B" % (ring_name, size)
                    s = hop.samplers(size, seconds, size in (64, 1518))
                    got = harness.rounds(list(s.values()), n, lambda: progress.step(case))
                    results += rows_of(case, list(s), got, size, ring_name)
            finally:
                hop.end()
    plot(opt, results)
    return results


class Through:
    """What a packet crosses in a verification: two ports joined by the library, in one flavour."""

    def __init__(self, mode):
        self.mode = mode

    def __call__(self, opt, cpu, queues=1):
        lib = middle.Vpload(opt, cpu, ports=2, queues=queues)
        lib.run(self.mode)
        return lib


def verify(opt):
    """Every flavour, both ring formats: numbered, checksummed packets of all sizes."""
    cpus = harness.two_cpus()
    harness.need_hugepages(250)
    packets = opt.packets or (400000 if opt.quick else 100000000)
    results = []
    for mode, flavour in (("copy", "copy"), ("place", "in place"), ("fwd", "forward")):
        cases = [("%s, %s" % (flavour, name), ring, ring, 1518, 1, 1, 0) for name, ring in RINGS[:2]]
        cases += [("%s, split 9000 B, chains" % flavour, SPLIT, SPLIT, 9000, 1, 4, 0),
                  ("%s, 2 queue pairs" % flavour, SPLIT, PACKED, 1518, 2, 1, 0)]
        for case in cases:
            if opt.only in (None, case[0]):
                few = case[3] > 2000 or case[4] > 1
                results.append(verify_case(opt, cpus, case, packets // 20 if few else packets, "hop", Through(mode)))
    return results


def plot(opt, results):
    def value(ring, size, what, unit, peer, side):
        for r in results:
            if (r["case"], r["unit"], r["peer_name"]) == ("%s %d B %s" % (ring, size, what), unit, peer):
                return r[side]
        return None

    cols = [("libvhostpci copy, split", "split", "copy", PEER, "ours"), ("libvhostpci in place, split", "split", "in place", PEER, "ours"),
            ("libvhostpci copy, packed", "packed", "copy", PEER, "ours"), ("net_vhost, split", "split", "copy", PEER, "peer"),
            ("net_vhost, packed", "packed", "copy", PEER, "peer"), ("memif", "split", "copy", MEMIF, "peer"),
            ("memcpy alone", "split", "copy, roofline", "memcpy", "peer")]
    rows = []
    for size in sorted({r["size"] for r in results}):
        v = [value(ring, size, what, "busy cycles/packet", peer, side) for _, ring, what, peer, side in cols]
        rows.append("%d " % size + " ".join("nan" if x is None else "%.1f" % x for x in v))
    lines = ", \\\n     ".join("'hop.dat' using 1:%d with linespoints lw 2 %s title '%s'" %
                               (i + 2, "dt 2" if c[4] == "peer" else "", c[0]) for i, c in enumerate(cols))
    harness.gnuplot(opt.outdir, "hop", """
set title "One hop: busy cycles per packet of the receiver (less is better)"
set xlabel "packet size"
set ylabel "TSC cycles per packet"
set logscale xy 2
set xtics (64, 128, 256, 512, 1024, 1518, 9000)
plot %s
""" % lines, {"hop.dat": "\n".join(rows) + "\n"})
