# SPDX-License-Identifier: BSD-3-Clause
"""copy: what a copy link costs the host, against a testpmd that forwards between two vhost ports, and against fast.

A packet's way is from one VM to the other, either direction. "busy cycles/packet" is what the process between
the VMs spends on it: vhost-pcid's data thread, or testpmd's. "cycles/packet, whole path" adds what both VMs spend, the driver
VM in its driver and the device VM in libvhostpci, receiving into and sending from buffers of its own. Its peer is the
fast link, which has no process between: 0.5 means twice its cost. "cycles/packet without the driver VM" is the same but for
what the driver VM spends.

In those rows nobody looks at a packet's payload, but for the copies themselves: the driver VM sends back the buffer that it
received, whose bytes thus never leave one core's cache on a fast link. "cycles/packet, whole path, ends that use their packets"
is the whole path once more, on both links, with ends that use what they get (bench/use.h): each VM reads every byte of each packet
that it received (a sum over 8-byte words), then writes every byte of it anew (memset), and sends it. The device VM does so in its
own buffers, between copying in and copying out, the driver VM in the buffers of its ring. Cycles of using are part of the busy
cycles of the end that uses, on both sides of the comparison: on each way one VM writes a packet and the other reads it. What that takes when the bytes lie in the own
cache is measured beside it and given with the row ("using"): take it off both numbers to see what remains, the links and the
misses. It cannot be taken off a sample exactly, as the misses overlap with it.

Both ends run on one core and the process between on the other, so that every line that changes hands crosses between
cores, as it would with three. On a fast link the device VM has the second core.
"""
import os
import time

import harness
import middle
from q_relay import BURSTS, PEER, RINGS, PeerMiddle, Setup
from testpmd import RING

SIZES = [64, 1518]
MEMORY_MB = 64  # of a driver VM


class Ends(harness.Lines):
    """bench/ends_dpdk: a driver VM, and with a port a device VM."""

    def __init__(self, opt, cpu, name, socket, ring, port=None):
        argv = [middle.program(opt, "bench", "ends_dpdk"), "-l", str(cpu), "--in-memory", "--no-pci", "-m", str(MEMORY_MB),
                "--single-file-segments", "--file-prefix", "vpends-%d-%s" % (os.getpid(), name), "--log-level", "4",
                "--vdev", "net_virtio_user0,path=%s,queue_size=%d,%s" % (socket, RING, ring), "--"]
        super().__init__(argv + ([port] if port else []), cpu, os.path.join(opt.workdir, name + ".log"))


class Load(harness.Lines):
    """bench/vpload: a device VM alone, that sends back what it receives."""

    def __init__(self, opt, cpu, port):
        super().__init__([middle.program(opt, "bench", "vpload"), port], cpu)


class PortLink:
    """vhost-pcid with one link of the given mode, a local port at its device side, and both its ends."""

    def __init__(self, opt, mode, cpus, ring):
        """In mode grant the driver VM grants a memory device: all that DPDK has."""
        name, self.mode, self.cpus = "pcid-" + mode, mode, cpus
        copy = mode == "copy"
        self.sockets = [os.path.join(opt.workdir, "%s%d.sock" % (mode, i)) for i in range(2)]
        link = {"Link": {"Mode": mode}, "Driver": {"VM": "a", "Socket": self.sockets[0]},
                "Device": {"VM": "b" if copy else "c", "Endpoint": "port", "Attachment": "local", "PackedRings": "yes",
                           "Socket": self.sockets[1]}}
        if mode == "grant":
            link["Driver"].update(Grant="memory", GrantSize="%dM" % MEMORY_MB)
        self.d = middle.Daemon(opt, cpus[1], [("bench", link)], name=name)
        middle.wait_sockets(self.d.p, self.sockets)
        port = "unix:" + self.sockets[1]
        self.load = None
        self.ends = Ends(opt, cpus[0], mode + "-ends", self.sockets[0], ring, port if copy else None)
        if not copy:
            self.load = Load(opt, cpus[1], port)
        end = time.monotonic() + 10
        while not (self.load.cmd("stop") if self.load else self.ends.cmd("stats"))["up"]:
            if time.monotonic() > end:
                raise harness.BenchError("the %s link does not come up; see %s" % (mode, self.d.dir))
            time.sleep(0.05)
        middle.check_format(self.d, "bench", ring)

    def _mark(self):
        link = self.d.call("link.stats", name="bench")["links"][0]
        sides = [s["tx"] for s in link["sides"].values()] if self.mode == "copy" else []
        m = self.ends.cmd("stats")
        m.update({k: sum(s[k] for s in sides) for k in ("packets", "busy_cycles", "dropped", "bursts")}, sent=m["packets"])
        if self.load:
            v = self.load.cmd("stats")
            m.update(device_packets=v["packets"], device_cycles=v["busy_cycles"])
        return m

    def sample(self, size, seconds, use=False, bounce=False):
        """use: the ends use their packets. bounce: that too, and the driver VM bounces them through its buffers."""
        if self.load:
            self.load.cmd("use-echo" if use or bounce else "echo")
        self.ends.cmd("%s %d %d" % ("bounce" if bounce else "use" if use else "start", size, BURSTS))
        time.sleep(0.1 + seconds / 5)
        dist = harness.Disturbance([self.d.pid, self.ends.pid] + ([self.load.pid] if self.load else []), self.cpus)
        dist.start()
        a, t0 = self._mark(), time.monotonic()
        time.sleep(seconds)
        b, dt = self._mark(), time.monotonic() - t0
        disturbed = dist.share()
        self.ends.cmd("stop")
        if self.load:
            self.load.cmd("stop")
        d = {k: b[k] - a[k] for k in b}
        if not d["device_packets"] or not d["sent"]:
            raise harness.BenchError("no packet went through the %s link; see %s" % (self.mode, self.d.dir))
        # The device VM counts a packet once that crosses twice, once in each direction.
        ways = 2 * d["device_packets"]
        host = d["busy_cycles"] / d["packets"] if d["packets"] else 0
        device, driver = d["device_cycles"] / ways, d["driver_cycles"] / (2 * d["sent"])
        return {"cpp": host, "device": device, "driver": driver, "served": host + device, "whole": host + device + driver,
                "pps": ways / dt, "drops": d["dropped"], "disturbed": disturbed, "unsent": d["unsent"],
                "per_burst": d["packets"] / max(d["bursts"], 1)}

    def end(self):
        for x in (self.load, self.ends, self.d):
            if x:
                x.end()


def middle_of(samples, side, key):
    return round(sorted(s[side][key] for s in samples)[len(samples) // 2], 1)


def parts(got, more):
    """Who spends what: into more, and in words."""
    for k in ("device", "driver"):
        more[k], more[k + "_fast"] = middle_of(got, 0, k), middle_of(got, 1, k)
    return "driver VM %s, host %s, device VM %s; fast: %s and %s" % (
        more["driver"], more["host"], more["device"], more["driver_fast"], more["device_fast"])


def measure(opt, ring_name, ring, seconds, n, cpus, step):
    results = []
    ours, peer = PortLink(opt, "copy", cpus, ring), PeerMiddle(cpus[1], opt.workdir)
    fast = PortLink(opt, "fast", cpus, ring)
    b = Setup("peer", peer, cpus, opt.workdir, ring)
    try:
        for size in SIZES:
            case = "%s %d B" % (ring_name, size)
            got = harness.pairs(lambda: ours.sample(size, seconds), lambda: b.sample(size, seconds), n, lambda: step(case))
            more = {"size": size, "ring": ring_name, "drops": sum(s[0]["drops"] for s in got),
                    "per_burst": middle_of(got, 0, "per_burst")}
            results.append(harness.compare("copy", case, "busy cycles/packet", got, "cpp", True, PEER, **more))
            got = harness.pairs(lambda: ours.sample(size, seconds), lambda: fast.sample(size, seconds), n, lambda: step(case))
            more = {"size": size, "ring": ring_name, "host": middle_of(got, 0, "cpp")}
            note = parts(got, more)
            results.append(harness.compare("copy", case, "cycles/packet, whole path", got, "whole", True, "fast link", note=note, **more))
            results.append(harness.compare("copy", case, "cycles/packet without the driver VM", got, "served", True, "fast link", **more))
            got = harness.pairs(lambda: ours.sample(size, seconds, True), lambda: fast.sample(size, seconds, True), n, lambda: step(case))
            cost = ours.ends.cmd("cost %d" % size)
            more = {"size": size, "ring": ring_name, "host": middle_of(got, 0, "cpp"), "using": cost}
            note = "%s; of both, using in the own cache takes %.1f (write) and %.1f (read)" % (
                parts(got, more), cost["write"], cost["read"])
            results.append(harness.compare("copy", case, "cycles/packet, whole path, ends that use their packets", got, "whole", True,
                                           "fast link", note=note, **more))
    finally:
        for x in (b, peer, ours, fast):
            x.end()
    return results


def rings_of(opt):
    """Split and packed, or the one that the options name."""
    rings = [r for r in RINGS[:2] if opt.only in (None, r[0])]
    if not rings:
        raise harness.BenchError("--only: choose one of " + ", ".join(r[0] for r in RINGS[:2]))
    return rings


def run(opt):
    rings = rings_of(opt)
    seconds, n = (0.4, 3) if opt.quick else (1.0, opt.pairs)
    cpus = harness.two_cpus()
    harness.need_hugepages(230)
    progress = harness.Progress("copy", len(rings) * len(SIZES) * 3 * n)
    results = []
    for ring_name, ring in rings:
        results += measure(opt, ring_name, ring, seconds, n, cpus, progress.step)
    harness.plot_cycles(opt.outdir, "copy", results, "Copy link: busy cycles per packet of the process between the VMs (less is better)",
                        "vhost-pcid, copy link")
    return results
