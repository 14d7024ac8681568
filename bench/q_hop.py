# SPDX-License-Identifier: BSD-3-Clause
"""hop: packets from a driver VM to the device side, with libvhostpci, DPDK's net_vhost and memif.

One sender, one receiver, a core each; the receiver looks at nothing. Copy: packets arrive in the receiver's memory. In
place: it reads a word of each where it lies. The sender is DPDK's virtio driver with packets that were made before
(bench/send_dpdk); "testpmd sends": dpdk-testpmd makes each packet, as it must for memif. "written": the sender writes every byte
anew. The rooflines are memcpy of as many bytes from as many buffers, in the core's own cache, or just written by the sender's core.
"""
import time

import harness
import middle
from q_relay import PACKED, RINGS, SPLIT, verify_case
from roofline import Roof
from sender import Sender
from testpmd import RING, DriverVms, VhostPort, memif

SIZES = [64, 128, 256, 512, 1024, 1518, 9000]
MORE = (64, 1518)  # sizes at which everything is asked
BIG = ("--mbuf-size=9344",)
PEER = "testpmd, net_vhost"
MEMIF = "testpmd, memif"


def one_way(src, dst, src_mode, dst_mode, size, seconds, cpus):
    """A sample of packets that go from src to dst; counted by dst."""
    dst.run(dst_mode, size)
    src.run(src_mode, size)
    time.sleep(0.05 + seconds / 5)
    src.mark()
    dst.mark()
    (packets, cycles, sent, src_cycles), dt, disturbed = harness.window(
        harness.Disturbance([src.pid, dst.pid], cpus), seconds, lambda: dst.since()[:2] + src.since()[:2])
    src.halt()
    dst.halt()
    return {"pps": packets / dt, "cpp": cycles / packets if packets else 0, "disturbed": disturbed,
            "src_cpp": src_cycles / max(sent, 1), "busy": cycles / dt, "src_busy": src_cycles / dt}


class Hop:
    """Everything that takes part at one ring format and buffer size. What is not measured sleeps."""

    def __init__(self, opt, cpus, ring, big, with_memif):
        kw = {"args": BIG, "mem": 160} if big else {}
        self.cpus, self.all = cpus, []
        try:
            self.ours, self.peer = self._device_sides(opt, "", kw)
            self.drv = [self._keep(Sender(opt, n, cpus[0], s.sockets[0], ring)) for n, s in (("ours-sender", self.ours), ("peer-sender", self.peer))]
            self.hz = self.drv[0].first["hz"]
            self.t_ours, self.t_peer = self._device_sides(opt, "-testpmd", kw)
            self.t_drv = [self._keep(DriverVms(n, cpus[0], s.sockets, opt.workdir, ring, **kw))
                          for n, s in (("ours-driver", self.t_ours), ("peer-driver", self.t_peer))]
            self.ours.wait_up()
            self.t_ours.wait_up()
            for x in (self.ours, self.t_ours):
                x.check_format(ring)
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

    def _device_sides(self, opt, name, kw):
        return (self._keep(middle.Vpload(opt, self.cpus[1], name="lib" + name)),
                self._keep(VhostPort("vhost" + name, self.cpus[1], opt.workdir, **kw)))

    def samplers(self, size, seconds, everything):
        def way(src, dst, src_mode, dst_mode):
            def sample():
                r = one_way(src, dst, src_mode, dst_mode, size, seconds, self.cpus)
                return dict(r, busy=r["busy"] / self.hz, src_busy=r["src_busy"] / self.hz)
            return sample

        drv, t_drv = self.drv, self.t_drv
        s = {"copy": way(drv[0], self.ours, "send", "recv"), "in place": way(drv[0], self.ours, "send", "borrow"),
             "vhost": way(drv[1], self.peer, "send", "rxonly"), "roof": lambda: self._roof(size, seconds / 2)}
        if everything:
            s["written"] = way(drv[0], self.ours, "write", "recv")
            s["vhost written"] = way(drv[1], self.peer, "write", "rxonly")
            s["roof written"] = lambda: self._roof(size, seconds / 2, self.cpus[0])
            # The device side sends; it counts what it sent.
            s["send"] = way(drv[0], self.ours, "take", "send")
            s["vhost send"] = way(drv[1], self.peer, "take", "txonly")
        if everything or self.memif:
            s["t copy"] = way(t_drv[0], self.t_ours, "txonly", "recv")
        if everything:
            s["t vhost"] = way(t_drv[1], self.t_peer, "txonly", "rxonly")
        if self.memif:
            s["memif"] = way(self.memif[1], self.memif[0], "txonly", "rxonly")
        return s

    def _roof(self, size, seconds, writer=None):
        r = self.roof.sample(size, RING, 32, seconds, writer)
        r["cpp"] = r["cycles"]
        return r

    def end(self):
        for x in reversed(self.all):
            x.end()


def sizes(opt):
    return list(MORE) if opt.quick else SIZES


def limit(name, sample):
    """Who set the pace."""
    src, dst = sample["src_busy"], sample["busy"]
    return "%s by the %s (%.0f %% busy)" % (name, "sender" if src > dst else "receiver", 100 * min(max(src, dst), 1))


def rows_of(case, names, got, size, ring):
    def middle_sample(name):
        return sorted((g[names.index(name)] for g in got), key=lambda r: r["pps"])[len(got) // 2]

    def compare(what, unit, a, b, peer):
        col = harness.column(got, names.index(a), names.index(b))
        key, more = ("cpp", {}) if unit != "packets/s" else ("pps", {"driver_cycles": round(middle_sample(a)["src_cpp"], 1)})
        if key == "pps" and "send" not in a:
            more["note"] = "paced %s, %s" % (limit("ours", middle_sample(a)), limit("peer", middle_sample(b)))
        return harness.compare("hop", "%s %s" % (case, what), unit, col, key, key == "cpp", peer, size=size, ring=ring, **more)

    def both(what, a, b, peer):
        return [compare(what, unit, a, b, peer) for unit in ("packets/s", "busy cycles/packet")]

    out = both("copy", "copy", "vhost", PEER)
    out += [compare("in place", "busy cycles/packet", "in place", "vhost", PEER),
            compare("copy, roofline", "busy cycles/packet", "copy", "roof", "memcpy")]
    if "written" in names:
        out += both("copy, written", "written", "vhost written", PEER)
        out.append(compare("copy, written, roofline", "busy cycles/packet", "written", "roof written", "memcpy, written by the other core"))
        out += both("send", "send", "vhost send", PEER)
        out += both("copy, testpmd sends", "t copy", "t vhost", PEER)
    if "memif" in names:
        out += both("copy, testpmd sends", "t copy", "memif", MEMIF)
    return out


def run(opt):
    seconds, n = (0.2, 3) if opt.quick else (0.24, opt.pairs)
    cpus = harness.two_cpus()
    rings = [r for r in RINGS[:2] if opt.only in (None, r[0])]
    todo = sizes(opt)
    harness.need_hugepages(900 if 9000 in todo else 480)
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
                    s = hop.samplers(size, seconds, size in MORE)
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
        for name, ring in RINGS[:2]:
            case = ("%s, %s, frozen now and then" % (flavour, name), ring, ring, 1518, 1, 1, 0)
            if opt.only in (None, case[0]):
                results.append(verify_case(opt, cpus, case, packets // 20, "hop", Through(mode), stops=1))
    return results


def plot(opt, results):
    def value(ring, size, what, unit, peer, side):
        for r in results:
            if (r["case"], r["unit"], r["peer_name"]) == ("%s %d B %s" % (ring, size, what), unit, peer):
                return r[side]
        return None

    cols = [("libvhostpci copy, split", "split", "copy", PEER, "ours"), ("libvhostpci in place, split", "split", "in place", PEER, "ours"),
            ("libvhostpci copy, packed", "packed", "copy", PEER, "ours"), ("net_vhost, split", "split", "copy", PEER, "peer"),
            ("net_vhost, packed", "packed", "copy", PEER, "peer"), ("memif", "split", "copy, testpmd sends", MEMIF, "peer"),
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
