# SPDX-License-Identifier: BSD-3-Clause
"""relay: two virtio-net drivers joined by the relay, against a testpmd that forwards between two vhost ports.

Packets circulate: each driver sends back what it receives, so nothing is lost and the slower
core sets the pace. What counts is busy cycles per packet of the process in the middle.
"""
import json
import os
import subprocess
import time

import harness
import middle
from testpmd import DriverVms, VhostPort

PEER = "testpmd io, 2 x net_vhost"
BURSTS = 4  # of 32 packets in flight each way, half a ring

# As a Linux guest negotiates first; then the variants.
RINGS = [
    ("split", "packed_vq=0,mrg_rxbuf=1,in_order=0"),
    ("packed", "packed_vq=1,mrg_rxbuf=1,in_order=0"),
    ("split in-order", "packed_vq=0,mrg_rxbuf=1,in_order=1"),
    ("packed in-order", "packed_vq=1,mrg_rxbuf=1,in_order=1"),
    ("split no-mrgbuf", "packed_vq=0,mrg_rxbuf=0,in_order=0"),
    ("packed no-mrgbuf", "packed_vq=1,mrg_rxbuf=0,in_order=0"),
]
# The same with a keeper, as under systemd: the next daemon can finish what this one was doing.
KEPT = [(name + ", kept", ring) for name, ring in RINGS[:2]]
SIZES = [64, 512, 1518]


class PeerMiddle(VhostPort):
    """testpmd with two vhost ports."""

    def __init__(self, cpu, workdir, ports=2):
        super().__init__("peer-middle", cpu, workdir, ports)

    def start(self):
        self.cmd("start")

    def stop(self):
        self.cmd("stop")

    def since(self):
        s = self.stats()
        return s["tx"], s["cycles"], s["txdrop"]


class Setup:
    """A middle and its two driver VMs."""

    def __init__(self, name, mid, cpus, workdir, ring):
        self.mid, self.cpus = mid, cpus
        self.drv = DriverVms(name + "-drivers", cpus[0], mid.sockets, workdir, ring)

    def sample(self, size, seconds):
        self.mid.start()
        self.drv.start(size, BURSTS)
        time.sleep(0.1 + seconds / 5)
        self.drv.clear()
        self.mid.mark()

        def read():
            packets, cycles, drops = self.mid.since()
            drv = self.drv.stats()
            self.hz = drv["hz"] or 1
            return packets, cycles, drops, drv["rx"], drv["cycles"]

        (packets, cycles, drops, rx, drv_cycles), dt, disturbed = harness.window(
            harness.Disturbance([self.mid.pid, self.drv.p.pid], self.cpus), seconds, read)
        self.drv.stop()
        self.mid.stop()
        if not packets:
            raise harness.BenchError("no packet came through %s; see the logs in %s" %
                                     (type(self.mid).__name__, os.path.dirname(self.drv.log.name)))
        return {"cpp": cycles / packets, "pps": packets / dt, "drops": drops, "disturbed": disturbed,
                "mid_busy": cycles / dt / self.hz, "drv_busy": drv_cycles / dt / self.hz,
                "drv_cpp": drv_cycles / max(rx, 1), "per_burst": getattr(self.mid, "per_burst", None)}

    def end(self):
        self.drv.end()


def limit(samples, which):
    """Which core set the pace."""
    mid = sorted(s[which]["mid_busy"] for s in samples)[len(samples) // 2]
    drv = sorted(s[which]["drv_busy"] for s in samples)[len(samples) // 2]
    return {"bottleneck": "middle" if mid >= drv else "drivers",
            "busy_middle": round(mid, 2), "busy_drivers": round(drv, 2)}


def run(opt):
    kept = [] if opt.engine else KEPT
    rings = [r for r in (RINGS[:2] if opt.quick and not opt.only else RINGS + kept) if opt.only in (None, r[0])]
    if not rings:
        raise harness.BenchError("--only: choose one of " + ", ".join(r[0] for r in RINGS + kept))
    seconds = 0.3 if opt.quick else 0.5
    n = 3 if opt.quick else opt.pairs
    cpus = harness.two_cpus()
    harness.need_hugepages(160)
    results = []
    progress = harness.Progress("relay", len(rings) * len(SIZES) * n)
    for ring_name, ring in rings:
        ours = middle.relay(opt, cpus[1], (ring_name, ring) in kept)
        peer = PeerMiddle(cpus[1], opt.workdir)
        a = Setup("ours", ours, cpus, opt.workdir, ring)
        b = Setup("peer", peer, cpus, opt.workdir, ring)
        try:
            for size in SIZES:
                case = "%s %d B" % (ring_name, size)
                got = harness.pairs(lambda: a.sample(size, seconds), lambda: b.sample(size, seconds), n,
                                    lambda: progress.step(case))
                la, lb = limit(got, 0), limit(got, 1)
                more = {"limit_ours": la, "limit_peer": lb, "size": size, "ring": ring_name,
                        "middle": ours.kind, "drops": sum(s[0]["drops"] for s in got),
                        "per_burst": got[n // 2][0]["per_burst"],
                        "driver_cycles_ours": round(sorted(s[0]["drv_cpp"] for s in got)[n // 2], 1),
                        "driver_cycles_peer": round(sorted(s[1]["drv_cpp"] for s in got)[n // 2], 1)}
                results.append(harness.compare("relay", case, "busy cycles/packet", got, "cpp", True, PEER, **more))
                more["note"] = "paced by %s, peer by %s" % (la["bottleneck"], lb["bottleneck"])
                results.append(harness.compare("relay", case, "packets/s", got, "pps", False, PEER, **more))
        finally:
            a.end()
            b.end()
            ours.end()
            peer.end()
    harness.plot_cycles(opt.outdir, "relay", results, "Relay: busy cycles per packet of the process in the middle (less is better)",
                        "vhost-pcid relay", "set xtics rotate by -40")
    return results


# name, rings of the two sides, largest packet, queue pairs, descriptors per packet, microseconds of rest now and then
SPLIT, PACKED = RINGS[0][1], RINGS[1][1]
# Packets of several descriptors only from split rings: on packed rings DPDK's driver (22.11) writes the buffer id into the
# indirect table and leaves a stale one in the ring, where the device has to take it from (virtio 1.3, 2.8.7), and then
# frees the wrong packet.
VERIFY = [
    ("split", SPLIT, SPLIT, 1518, 1, 1, 0),
    ("packed", PACKED, PACKED, 1518, 1, 1, 0),
    ("split to packed", SPLIT, PACKED, 1518, 1, 1, 0),
    ("split in-order", RINGS[2][1], RINGS[2][1], 1518, 1, 1, 0),
    ("packed in-order", RINGS[3][1], RINGS[3][1], 1518, 1, 1, 0),
    ("no-mrgbuf, split to packed", RINGS[4][1], RINGS[5][1], 1518, 1, 1, 0),
    ("split 9000 B, chains", SPLIT, SPLIT, 9000, 1, 4, 0),
    ("split to packed, 2 queue pairs", SPLIT, PACKED, 1518, 2, 1, 0),
    ("split, falling asleep", SPLIT, SPLIT, 1518, 1, 2, 300),
    ("packed, falling asleep", PACKED, PACKED, 1518, 1, 1, 300),
]


def waited(side, pid):
    ran, wait = [sum(v) / 1e9 for v in zip(*harness.schedstat(pid).values())]
    return "%s ran %.1f s and waited %.1f s for a CPU" % (side, ran, wait)


def verify_case(opt, cpus, case, packets, question="relay", start=middle.DaemonRelay, stops=0):
    """stops: seconds for which either side is frozen at most, now and then."""
    name, ring_a, ring_b, size, queues, segs, idle = case
    ours = start(opt, cpus[1], queues=queues)
    argv = [middle.program(opt, "bench", "verify_dpdk"), "-l", str(cpus[0]), "--in-memory", "--no-pci", "-m",
            str(192 * queues), "--single-file-segments", "--file-prefix", "vpverify-%d" % os.getpid(), "--log-level", "4"]
    for i, (s, ring) in enumerate(zip(ours.sockets, (ring_a, ring_b))):
        argv += ["--vdev", "net_virtio_user%d,path=%s,queue_size=1024,queues=%d,%s" % (i, s, queues, ring)]
    argv += ["--", str(packets // (2 * queues)), str(size), str(queues), str(segs), str(idle)]
    try:
        ours.mark()
        p = harness.spawn(argv, cpu=cpus[0], stdout=subprocess.PIPE, text=True)
        freezer = harness.Stops([p.pid, ours.pid], stops) if stops else None
        text = p.communicate()[0]
        if freezer:
            freezer.end()
        dropped, cpu = ours.since()[2], waited("the device side", ours.pid)
    finally:
        ours.end()
    harness.reap(p)
    if p.returncode and hasattr(ours, "log"):
        with open(ours.log.name) as log, open(ours.d.log.name) as daemon:
            harness.say("%s: %s and said: %s; the daemon: %s" % (name, cpu, log.read()[-400:] or "nothing", daemon.read()[-800:]))
    if not text.strip():
        raise harness.BenchError("%s: verify_dpdk ended with code %d" % (name, p.returncode))
    r = json.loads(text.strip().splitlines()[-1])
    bad = {k: r[k] for k in ("lost", "late", "corrupt", "foreign") if r[k]}
    harness.say("%s verify: %-40s %s of %d packets%s" % (question, name, "FAILED," if p.returncode else "ok,", r["sent"],
                                                          " " + str(bad) if bad else ""))
    return {"question": question + "-verify", "case": name, "unit": "packets", "ours": r["received"], "peer": r["sent"],
            "peer_name": "sent", "ratio": None, "runs": 1, "spread": None, "failed": p.returncode != 0,
            "bytes": r["bytes"], "seconds": r["seconds"], "dropped": dropped, "cpu": cpu, "stops": freezer.count if freezer else 0,
            "note": "FAILED: " + (str(bad) or "incomplete") if p.returncode else "all once, whole, in order",
            **{k: r[k] for k in ("lost", "late", "corrupt", "foreign")}}


def verify(opt):
    cpus = harness.two_cpus()
    harness.need_hugepages(250)
    packets = opt.packets or (400000 if opt.quick else 20000000)
    def kept(opt, cpu, queues):
        return middle.DaemonRelay(opt, cpu, queues=queues, kept=True)

    cases = [(case, middle.DaemonRelay) for case in VERIFY] + [((name, ring, ring, 1518, 1, 1, 0), kept) for name, ring in KEPT]
    return [verify_case(opt, cpus, case, packets // 20 if case[6] else packets, start=start)
            for case, start in cases if opt.only in (None, case[0])]
