# SPDX-License-Identifier: BSD-3-Clause
"""vm-to-vm: what a packet costs from one VM to the other, all of the way: sender, what lies between, receiver.

Ours: the driver VM sends, the device VM receives with libvhostpci; nothing lies between. The peer: two driver VMs and
testpmd between two net_vhost ports, the vSwitch way. Packets circulate, so each VM sends as many as it receives.
"""
import shutil
import time

import harness
import middle
from q_relay import BURSTS, PEER, RINGS, PeerMiddle
from testpmd import DriverVms

SIZES = [64, 512, 1518]
OVS = "Open vSwitch with DPDK"


class Circle:
    """Driver VMs on one core, what joins them on the other; mode is what that does."""

    def __init__(self, name, serve, cpus, workdir, ring, order=None, **kw):
        self.serve, self.cpus = serve, cpus
        self.drv = DriverVms(name + "-drivers", cpus[0], order or serve.sockets, workdir, ring, **kw)
        if hasattr(serve, "wait_up"):
            serve.wait_up()

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
    harness.need_hugepages(200)
    rings = [r for r in RINGS[:2] if opt.only in (None, r[0])]
    todo = [64] if opt.quick else SIZES
    progress = harness.Progress("vm-to-vm", len(rings) * len(todo) * n)
    results, host = [], []
    for ring_name, ring in rings:
        ends = []
        try:
            for make in (lambda: middle.Vpload(opt, cpus[1]), lambda: PeerMiddle(cpus[1], opt.workdir)):
                ends.append(make())
                ends.append(Circle("ours" if len(ends) == 1 else "peer", ends[-1], cpus, opt.workdir, ring))
            lib, ours, _, peer = ends
            for size in todo:
                case = "%s %d B" % (ring_name, size)
                t, c = time.monotonic(), harness.cpu_ns(lib.d.pid)
                got = harness.rounds([lambda: direct(ours.sample(size, seconds, "echo")),
                                      lambda: switched(peer.sample(size, seconds))], n, lambda: progress.step(case))
                host.append((harness.cpu_ns(lib.d.pid) - c) / (time.monotonic() - t) / 1e7)
                more = {"size": size, "ring": ring_name, "lost": sum(g[0]["lost"] for g in got)}
                for k, who in (("drv_cpp", "driver"), ("serve_cpp", "device")):
                    more["%s_cycles_ours" % who] = round(harness.middle_of([g[0][k] for g in got]), 1)
                    more["%s_cycles_peer" % ("switch" if k == "serve_cpp" else who)] = round(
                        harness.middle_of([g[1][k] for g in got]), 1)
                results.append(harness.compare("vm-to-vm", case, "busy cycles/packet", got, "cpp", True, PEER, **more))
                results.append(harness.compare("vm-to-vm", case, "packets/s", got, "pps", False, PEER, **more))
        finally:
            for e in reversed(ends):
                e.end()
    results.append(harness.single("vm-to-vm", "host CPU of vhost-pcid meanwhile", "% of a core", host,
                                  note="no data passes through it"))
    results.append({"question": "vm-to-vm", "case": "64 B, " + OVS, "unit": "busy cycles/packet", "ours": None, "peer": None,
                    "peer_name": OVS, "ratio": None, "runs": 0, "spread": None,
                    "note": "not measured: " + ("this program does not drive it" if shutil.which("ovs-vswitchd") else
                                                "openvswitch-switch-dpdk is not installed")})
    plot(opt, results)
    return results


def plot(opt, results):
    rows = ["case driver device driver switch ratio"]
    for r in results:
        if r["unit"] == "busy cycles/packet" and r["ours"]:
            rows.append('"%s" %.1f %.1f %.1f %.1f %s %.1f %.1f' % (
                r["case"], r["driver_cycles_ours"] / 2, r["device_cycles_ours"] / 2, r["driver_cycles_peer"],
                r["switch_cycles_peer"], r["ratio"] or "nan", r["ours"], r["peer"]))
    harness.gnuplot(opt.outdir, "vm-to-vm", """
set title "VM to VM: busy cycles per packet over the whole way (less is better)"
set style fill solid 0.8 border -1
set boxwidth 0.35
set ylabel "TSC cycles per packet"
set yrange [0:*]
set xrange [-0.6:*]
plot 'vm-to-vm.dat' every ::1 using ($0-0.2):7:xtic(1) with boxes title 'vhost-pci: driver VM' lc rgb '#80a8d0', \\
     '' every ::1 using ($0-0.2):3 with boxes title 'vhost-pci: device VM' lc rgb '#2060a0', \\
     '' every ::1 using ($0+0.2):8 with boxes title 'vSwitch: both VMs' lc rgb '#e8c090', \\
     '' every ::1 using ($0+0.2):5 with boxes title 'vSwitch: testpmd' lc rgb '#c08040', \\
     '' every ::1 using ($0-0.2):7:(sprintf("%.2fx", $6)) with labels offset 0,0.7 notitle
""", {"vm-to-vm.dat": "\n".join(rows) + "\n"})
