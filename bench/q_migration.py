# SPDX-License-Identifier: BSD-3-Clause
"""migration: for how long a driver VM is away when it moves live to another host, on a link and on a vhost port of testpmd.

A real VM under QEMU 11.1 with Linux moves to and fro between two hosts on this machine. Each kind has a VM of its own. The device side is
the same everywhere: one dpdk-testpmd that passes packets between a port for each host and a tap, and a bridge that joins the taps as the
network between the hosts would. Of the peer that port is net_vhost, with QEMU connected to it. Of ours each host has a daemon with a link
in between; a relay link ends at a net_virtio_user port, copy and fast links at net_vhost (Endpoint=vhost-user).

There are two figures of each move: what QEMU says (downtime of query-migrate), and the longest time without an answer that a program on the
network sees, to which the VM sends back 500 datagrams a second. All kinds move in turn; the processes of a kind whose turn it is not are
stopped.
"""
import ctypes
import os
import signal
import statistics
import subprocess
import sys
import time

import harness
import testpmd

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), "scripts", "vm"))

import image  # noqa: E402
import vhostpci_vm as v  # noqa: E402

PEER = "testpmd, one net_vhost port each"
KINDS = ["relay", "copy", "fast"]
TARGET = 1.2   # times the peer's
ADDR, HOST, MAC, PORT = "10.9.0.1", "10.9.0.2", "52:54:00:09:00:01", 5201
MIB_PER_S = 128
SECONDS, PPS = 3, 500
CLONE_NEWNET = 0x40000000
# testpmd passes packets on as they are: checksums have to be whole.
PLAIN = "csum=off,gso=off,guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off"

libc = ctypes.CDLL(None, use_errno=True)


class Network:
    """A network of its own for what this process starts, as long as it lives: one bridge, and who asks the VMs."""

    def __init__(self):
        self.before = os.open("/proc/self/ns/net", os.O_RDONLY)
        if libc.unshare(CLONE_NEWNET):
            raise harness.BenchError("a network namespace is needed: run as root")
        ip("link set lo up")

    def end(self):
        libc.setns(self.before, CLONE_NEWNET)
        os.close(self.before)


def ip(text):
    r = subprocess.run(["ip", *text.split()], capture_output=True, text=True)
    if r.returncode:
        raise harness.BenchError("ip %s: %s" % (text, r.stderr.strip()))


class Setup:
    """A VM that moves, and all that it moves between. kind: a mode, or None for the peer."""

    def __init__(self, opt, kind, cpu):
        self.kind, self.name = kind, kind or "peer"
        self.dir = os.path.join(opt.workdir, self.name)
        os.makedirs(self.dir)
        self.daemons, self.vm, self.at, self.n = [], None, 0, 0
        sides = [os.path.join(self.dir, "side%d" % i) for i in range(2)]
        if kind:
            self.socks = [self.daemon(opt, i, sides[i]) for i in range(2)]
        else:
            self.socks = sides
        if kind == "relay":
            self.start_daemons()
        vdevs = []
        for i, s in enumerate(sides):
            port = "net_virtio_user%d,path=%s,queue_size=256" if kind == "relay" else "net_vhost%d,iface=%s"
            vdevs += [port % (i, s), "net_tap%d,iface=%s%d" % (i, self.name, i)]
        # Ports 0 and 1 are joined, and 2 and 3.
        self.pmd = testpmd.Testpmd("pmd-" + self.name, cpu, vdevs, opt.workdir)
        self.pmd.cmd("start")
        if kind and kind != "relay":
            self.start_daemons()
        ip("link add br-%s type bridge forward_delay 0" % self.name)
        for i in range(2):
            ip("link set %s%d up master br-%s" % (self.name, i, self.name))
        ip("link set br-%s up" % self.name)

    def daemon(self, opt, i, side):
        d = v.Daemon(os.path.join(self.dir, "host%d" % i), opt.builddir)
        d.vm("a")
        d.vm("b")
        driver = os.path.join(self.dir, "driver%d" % i)
        relay = self.kind == "relay"
        d.write("link.link", {"Link": dict(Mode=self.kind, **({"Migration": "yes"} if self.kind == "fast" else {})),
                              "Driver": {"VM": "a", "Socket": driver},
                              "Device": dict(VM="b", Socket=side, Endpoint="virtio-net" if relay else "vhost-user",
                                             **({} if relay else {"SocketMode": "client"})),
                              **({} if relay else {"Net": {"Offloads": "csum mrgbuf"}})})
        d.write("vhost-pci.conf", {"Daemon": {"SocketDirectories": self.dir}})
        self.daemons.append(d)
        return driver

    def start_daemons(self):
        for d in self.daemons:
            d.start()

    def driver(self, host, incoming):
        self.n += 1
        vm = v.VM("a%d" % self.n, self.dir, qemu="11", cpu=None if v.accel() == "kvm" else "Nehalem", incoming=incoming,
                  nets=[v.Net(self.socks[host], mac=MAC, reconnect=1, vectors=0 if v.accel() == "tcg" else None, props=PLAIN)])
        vm.start(wait=False)
        return vm

    def boot(self):
        self.vm = self.driver(0, False)

    def ready(self):
        """The guest answers."""
        self.vm.wait_ready()
        self.vm.up(ADDR + "/24")
        self.vm.spawn("vmtool uecho %d 100000" % PORT, 100000)
        v.bound(self.vm, PORT)
        self.reach()
        end = time.monotonic() + v.limit(20)
        while not v.kv(self.ask(1).communicate()[0]).get("back"):
            if time.monotonic() > end:
                raise harness.BenchError("%s: the VM does not answer; see %s" % (self.name, "".join(d.tail(8) + "\n" for d in self.daemons)))

    def reach(self):
        """The program on the network reaches this VM, and no other's."""
        ip("addr flush to " + HOST)
        ip("addr replace %s/24 dev br-%s" % (HOST, self.name))

    def ask(self, seconds):
        argv = [image.vmtool(), "ugap", ADDR, str(PORT), str(seconds), str(PPS), "512"]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)

    def pids(self):
        return [self.pmd.pid] + [d.proc.pid for d in self.daemons] + ([self.vm.proc.pid] if self.vm else [])

    def stop(self, sig=signal.SIGSTOP):
        for pid in self.pids():
            os.kill(pid, sig)

    def move(self):
        """One sample."""
        self.stop(signal.SIGCONT)
        self.reach()
        to = self.driver(1 - self.at, True)
        time.sleep(0.5)
        p = self.ask(SECONDS)
        time.sleep(1)
        try:
            r = self.vm.migrate(to, mib_per_s=MIB_PER_S)
        except v.VMError as e:
            raise harness.BenchError("%s: %s" % (self.name, e))
        self.vm, self.at = to, 1 - self.at
        g = v.kv(p.communicate()[0])
        if not g.get("back") or g["bad"] or g["doubled"]:
            raise harness.BenchError("%s: datagrams are wrong: %r" % (self.name, g))
        self.stop()
        return {"downtime": r["downtime"], "gap": g["gap_ms"], "next": g["second_ms"], "lost": g["lost"], "total": r["total-time"]}

    def end(self):
        for pid in self.pids():
            os.kill(pid, signal.SIGCONT)
        if self.vm:
            self.vm.kill()
        for d in self.daemons:
            d.kill()
        self.pmd.end()


def spread(values):
    lo, mid, hi = harness.quartiles(values)
    return "%.0f (%.0f to %.0f)" % (mid, lo, hi)


def row(kind, what, key, got, peer):
    ours, theirs = [g[key] for g in got], [g[key] for g in peer]
    mid, other = statistics.median(ours), statistics.median(theirs)
    lo, _, hi = harness.quartiles(ours)
    return {"question": "migration", "case": "%s, %s" % (kind, what), "unit": "ms", "ours": mid, "peer": other, "peer_name": PEER,
            "ratio": round(other / mid, 2) if mid else None, "runs": len(ours), "spread": round((hi - lo) / mid, 3) if mid else None,
            "note": "middle half: %.0f to %.0f, peer %.0f to %.0f; at most %.1f times the peer's: %s" % (
                lo, hi, *harness.quartiles(theirs)[::2], TARGET, "met" if mid <= TARGET * other else "missed")}


def run(opt):
    n = 3 if opt.quick else 2 * opt.pairs
    cpu = harness.two_cpus()[1]
    harness.need_hugepages(40 * (1 + len(KINDS)))
    network, every, got = Network(), [], {}
    try:
        v.qemu("11")
        for kind in [None, *KINDS]:
            every.append(Setup(opt, kind, cpu))
            every[-1].boot()
            every[-1].ready()
            every[-1].stop()
        progress = harness.Progress("migration", n)
        for i in range(n):
            # Now this one first, now another.
            for s in every[i % len(every):] + every[:i % len(every)]:
                got.setdefault(s.kind, []).append(s.move())
            progress.step(", ".join("%s %s/%s ms" % (s.name, got[s.kind][-1]["downtime"], got[s.kind][-1]["gap"]) for s in every))
    except v.VMError as e:
        raise harness.BenchError(str(e))
    except v.Unavailable as e:
        raise harness.BenchError(str(e))
    finally:
        for s in every:
            s.end()
        network.end()
    results = []
    for kind in KINDS:
        results.append(row(kind, "QEMU says", "downtime", got[kind], got[None]))
        results.append(row(kind, "the network sees", "gap", got[kind], got[None]))
    for kind in [None, *KINDS]:
        s = got[kind]
        results.append(harness.single("migration", "%s, the next longest gap" % (kind or "peer"), "ms", [g["next"] for g in s],
                                      note="%.0f of %d datagrams lost a move, %.1f s a move" % (
                                          statistics.mean(g["lost"] for g in s), SECONDS * PPS, statistics.mean(g["total"] for g in s) / 1000)))
    harness.table(results)
    return results
