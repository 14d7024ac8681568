# SPDX-License-Identifier: BSD-3-Clause
"""vm-to-vm: what a packet costs from one VM to the other, all of the way: sender, what lies between, receiver.

Ours: the driver VM sends, the device VM receives with libvhostpci; nothing lies between. The peers: two driver VMs and
testpmd between two net_vhost ports, the least that the vSwitch way can cost, or Open vSwitch with DPDK. Packets circulate, so
each VM sends as many as it receives.
"""
import time

import harness
import middle
import ovs
from q_relay import BURSTS, PEER, RINGS, PeerMiddle
from testpmd import DriverVms

SIZES = [64, 512, 1518]


class Circle:
    """Driver VMs on one core, what joins them on the other; mode is what that does."""

    def __init__(self, name, serve, cpus, workdir, ring, order=None, **kw):
        self.serve, self.cpus = serve, cpus
        self.drv = DriverVms(name + "-drivers", cpus[0], order or serve.sockets, workdir, ring, **kw)
        if hasattr(serve, "wait_up"):
            serve.wait_up()
        if hasattr(serve, "check_format"):
            serve.check_format(ring)

    def sample(self, size, seconds, mode="io", bursts=BURSTS):
        """Counters of both sides over a sample: packets that the driver VMs received, busy cycles; the same of the others."""
        serve, drv = self.serve, self.drv
        serve.run(mode, size)
        drv.start(size, bursts)
        time.sleep(0.08 + seconds / 5)
        serve.mark()
        drv.mark()

        def read():
            p, c, lost = serve.since()
            s = drv.stats()
            return p, c, lost, s["rx"], s["cycles"], s["txdrop"]

        (packets, cycles, lost, rx, drv_cycles, dropped), dt, disturbed = harness.window(
            harness.Disturbance([serve.pid, drv.pid], self.cpus), seconds, read)
        drv.stop()
        serve.halt()
        if not packets or not rx:
            raise harness.BenchError("no packet came through %s; see %s" % (type(serve).__name__, drv.log.name))
        return {"packets": packets, "cycles": cycles, "rx": rx, "drv_cycles": drv_cycles, "seconds": dt,
                "lost": lost + dropped, "disturbed": disturbed,
                "serve_cpp": cycles / packets, "drv_cpp": drv_cycles / rx, "pps": rx / dt}

    def end(self):
        self.drv.end()


def direct(s):
    """A crossing between a driver VM and a device VM, which both receive and send: half of what both spend on a packet."""
    return dict(s, cpp=(s["drv_cpp"] + s["serve_cpp"]) / 2, pps=2 * s["pps"])


def switched(s):
    """A crossing between two driver VMs by way of a switch."""
    return dict(s, cpp=s["drv_cpp"] + s["serve_cpp"])


def run(opt):
    seconds, n = (0.3, 3) if opt.quick else (0.4, opt.pairs)
    cpus = harness.two_cpus()
    harness.need_hugepages(280)
    rings = [r for r in RINGS[:2] if opt.only in (None, r[0])]
    todo = [64] if opt.quick else SIZES
    progress = harness.Progress("vm-to-vm", len(rings) * len(todo) * n)
    results, host, why = [], [], None
    for ring_name, ring in rings:
        ends = []

        def join(name, serve):
            ends.append(serve)
            ends.append(Circle(name, serve, cpus, opt.workdir, ring))
            return ends[-1]

        try:
            ours = join("ours", middle.Vpload(opt, cpus[1]))
            peers = [(PEER, join("peer", PeerMiddle(cpus[1], opt.workdir)))]
            try:
                if not why:
                    peers.append((ovs.NAME, join("ovs", ovs.Ovs(opt, cpus[1], name="ovs-" + ring_name))))
                    ends[-2].halt()
            except harness.BenchError as e:
                why = str(e)
                if isinstance(ends[-1], ovs.Ovs):
                    ends.pop().end()
            for size in todo:
                case = "%s %d B" % (ring_name, size)
                t, c = time.monotonic(), harness.cpu_ns(ends[0].d.pid)
                got = harness.rounds([lambda: direct(ours.sample(size, seconds, "echo"))] +
                                     [lambda p=p: switched(p.sample(size, seconds)) for _, p in peers], n, lambda: progress.step(case))
                host.append((harness.cpu_ns(ends[0].d.pid) - c) / (time.monotonic() - t) / 1e7)
                for i, (peer, _) in enumerate(peers):
                    results += rows_of(case, harness.column(got, 0, i + 1), peer, size, ring_name)
        finally:
            for e in reversed(ends):
                e.end()
    results.append(harness.single("vm-to-vm", "host CPU of vhost-pcid meanwhile", "% of a core", host,
                                  note="no data passes through it"))
    if why:
        results.append({"question": "vm-to-vm", "case": ovs.NAME, "unit": "busy cycles/packet", "ours": None, "peer": None,
                        "peer_name": ovs.NAME, "ratio": None, "runs": 0, "spread": None, "note": "not measured: " + why})
    plot(opt, results)
    return results


def rows_of(case, got, peer, size, ring):
    more = {"size": size, "ring": ring, "lost": sum(a["lost"] for a, _ in got)}
    for k, who in (("drv_cpp", "driver"), ("serve_cpp", "device")):
        more["%s_cycles_ours" % who] = round(harness.middle_of([a[k] for a, _ in got]), 1)
        more["%s_cycles_peer" % ("switch" if k == "serve_cpp" else who)] = round(harness.middle_of([b[k] for _, b in got]), 1)
    return [harness.compare("vm-to-vm", case, "busy cycles/packet", got, "cpp", True, peer, **more),
            harness.compare("vm-to-vm", case, "packets/s", got, "pps", False, peer, **more)]


def plot(opt, results):
    """Three bars a case: ours, testpmd, Open vSwitch where it was measured."""
    rows = []
    for r in results:
        if r["unit"] != "busy cycles/packet" or not r["ours"]:
            continue
        if r["peer_name"] == PEER:
            rows.append([r["case"], r["ours"], r["device_cycles_ours"] / 2, r["peer"], r["switch_cycles_peer"], "nan", "nan"])
        else:
            rows[-1][-2:] = [r["peer"], r["switch_cycles_peer"]]
    text = "case ours device peer switch ovs ovs-switch\n" + "".join('"%s" %s\n' % (r[0], " ".join(str(v) for v in r[1:])) for r in rows)
    harness.gnuplot(opt.outdir, "vm-to-vm", """
set title "VM to VM: busy cycles per packet over the whole way (less is better)"
set style fill solid 0.8 border -1
set boxwidth 0.25
set ylabel "TSC cycles per packet"
set yrange [0:*]
set xrange [-0.6:*]
plot 'vm-to-vm.dat' every ::1 using ($0-0.27):2 with boxes title 'vhost-pci: driver VM' lc rgb '#80a8d0', \\
     '' every ::1 using ($0-0.27):3 with boxes title 'vhost-pci: device VM' lc rgb '#2060a0', \\
     '' every ::1 using 0:4:xtic(1) with boxes title 'testpmd between: both VMs' lc rgb '#e8c090', \\
     '' every ::1 using 0:5 with boxes title 'testpmd between: testpmd' lc rgb '#c08040', \\
     '' every ::1 using ($0+0.27):6 with boxes title 'Open vSwitch between: both VMs' lc rgb '#b0d8b0', \\
     '' every ::1 using ($0+0.27):7 with boxes title 'Open vSwitch between: the switch' lc rgb '#409040'
""", {"vm-to-vm.dat": text})
