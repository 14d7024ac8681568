# SPDX-License-Identifier: BSD-3-Clause
"""Our process in the middle: the daemon with one relay link, or the relay engine alone."""
import json
import os
import signal
import socket
import subprocess
import time

import harness


def relay(opt, cpu, kept=False):
    """What the options ask for: vhost-pcid, or with --engine the loop without a daemon around it. kept: with a keeper (docs/handover.md),
    for whom the data thread writes down where each ring is."""
    return RelayHost(opt, cpu) if opt.engine else DaemonRelay(opt, cpu, kept=kept)


def program(opt, *parts):
    path = os.path.join(opt.builddir, *parts)
    if not os.path.exists(path):
        raise harness.BenchError("%s is missing: build first (make)" % path)
    return path


def wait_sockets(p, paths, timeout=10):
    end = time.monotonic() + timeout
    while not all(os.path.exists(s) for s in paths):
        if p.poll() is not None:
            raise harness.BenchError("%s ended with code %d" % (p.args[0], p.returncode))
        if time.monotonic() > end:
            raise harness.BenchError("%s does not offer its sockets" % p.args[0])
        time.sleep(0.02)


class Daemon:
    """vhost-pcid with a configuration of the benchmark's own."""

    def __init__(self, opt, cpu=None, links=(), daemon_keys=None, nice=harness.NICE, name="pcid", args=()):
        self.dir = os.path.join(opt.workdir, name)
        self.conf = os.path.join(self.dir, "conf")
        self.control = os.path.join(self.dir, "control")
        os.makedirs(self.conf, exist_ok=True)
        keys = {"Threads": 1, "RuntimeDirectory": self.dir, "SocketDirectories": opt.workdir}
        if cpu is not None:
            keys["CPUs"] = cpu
        keys.update(daemon_keys or {})
        self._write("vhost-pci.conf", {"Daemon": keys})
        for vm, group in (("a", "red"), ("b", "blue"), ("c", "red")):
            self._write(vm + ".vm", {"VM": {"TrustGroup": group, "User": os.getuid()}})
        for link, sections in links:
            self._write(link + ".link", sections)
        self.log = open(os.path.join(self.dir, "log"), "wb")
        self.p = harness.spawn([program(opt, "daemon", "vhost-pcid"), "--config", self.conf, "--control", self.control,
                                "--runtime-dir", self.dir, *args], cpu=cpu, nice=nice, stdin=subprocess.DEVNULL,
                               stdout=self.log, stderr=self.log)
        self.pid = self.p.pid
        wait_sockets(self.p, [self.control])
        self.sock = socket.socket(socket.AF_UNIX)
        end = time.monotonic() + 10
        while True:
            try:
                self.sock.connect(self.control)
                break
            except OSError as e:
                if time.monotonic() > end or self.p.poll() is not None:
                    raise harness.BenchError("vhost-pcid does not answer on its control socket: %s" % e)
                time.sleep(0.02)
        self.rx = self.sock.makefile("r")

    def _write(self, name, sections):
        with open(os.path.join(self.conf, name), "w") as f:
            for section, keys in sections.items():
                f.write("[%s]\n" % section + "".join("%s=%s\n" % kv for kv in keys.items()))

    def call(self, method, **params):
        request = {"version": 1, "id": 1, "method": method, "params": params}
        self.sock.sendall(json.dumps(request).encode() + b"\n")
        line = self.rx.readline()
        if not line:
            raise harness.BenchError("vhost-pcid closed its control socket")
        answer = json.loads(line)
        if "error" in answer:
            raise harness.BenchError("vhost-pcid: %s" % answer["error"].get("message"))
        return answer["result"]

    def end(self):
        if self.p.poll() is None:
            self.p.terminate()
        harness.reap(self.p)
        self.log.close()


def check_format(daemon, link, ring):
    """Has every ring of the link the format that the driver's options (virtio-user's) ask for? A daemon that does not offer packed rings
    gets split ones, and nothing else tells."""
    want = "packed" if "packed_vq=1" in ring else "split"
    for side in daemon.call("link.show", name=link)["sides"].values():
        for q in side.get("queues", []):
            if q.get("format", want) != want:
                raise harness.BenchError("a ring of %s is %s, and %s was asked for" % (link, q["format"], want))


def relay_link(a, b, queues=1):
    return {"Link": {"Mode": "relay", "Queues": queues}, "Driver": {"VM": "a", "Socket": a},
            "Device": {"VM": "b", "Endpoint": "virtio-net", "Socket": b}}


def fast_link(driver, port, queues=1):
    return {"Link": {"Mode": "fast", "Queues": queues}, "Driver": {"VM": "a", "Socket": driver},
            "Device": {"VM": "c", "Endpoint": "port", "Attachment": "local", "PackedRings": "yes", "Socket": port}}


class Vpload(harness.Lines):
    """The device side on libvhostpci: links of mode fast with local ports, and one program that serves them all."""
    kind = "libvhostpci"

    def __init__(self, opt, cpu, ports=1, queues=1, name="lib"):
        at = [os.path.join(opt.workdir, "%s%d" % (name, i)) for i in range(ports)]
        self.sockets, self.name = [a + ".driver" for a in at], name
        # The daemon has nothing to do, and no CPU of its own; what it does at the start must not wait behind the pollers.
        self.d = Daemon(opt, None, [("%s%d" % (name, i), fast_link(a + ".driver", a + ".port", queues))
                                    for i, a in enumerate(at)], name=name)
        wait_sockets(self.d.p, [a + ".port" for a in at])
        super().__init__([program(opt, "bench", "vpload"), *("unix:" + a + ".port" for a in at)], cpu,
                         os.path.join(opt.workdir, name + ".log"))
        if queues > 1:
            self.cmd("pairs %d" % queues)

    def wait_up(self, timeout=10):
        end = time.monotonic() + timeout
        while self.cmd("stats")["up"] < len(self.sockets):
            if time.monotonic() > end:
                raise harness.BenchError("a driver VM did not come up; see %s" % self.log.name)
            time.sleep(0.05)

    def check_format(self, ring):
        for i in range(len(self.sockets)):
            check_format(self.d, "%s%d" % (self.name, i), ring)

    def run(self, mode, size=0):
        self.cmd("%s %d" % (mode, size))

    def halt(self):
        self.cmd("stop")

    def mark(self):
        self.s0 = self.cmd("stats")

    def since(self):
        """Packets, busy cycles, packets given up."""
        s = self.cmd("stats")
        d = {k: s[k] - self.s0[k] for k in s}
        self.per_burst = d["packets"] / max(d["bursts"], 1)
        return d["packets"], d["busy_cycles"], d["unsent"]

    def end(self):
        super().end()
        self.d.end()


class DaemonRelay:
    """One relay link; the data thread sleeps by itself when nothing comes."""
    kind = "vhost-pcid"

    def __init__(self, opt, cpu, daemon_keys=None, queues=1, kept=False):
        self.sockets = [os.path.join(opt.workdir, "ours%d.sock" % i) for i in range(2)]
        # The holder ends a second after this daemon, which no other one follows.
        self.d = Daemon(opt, cpu, [("bench", relay_link(*self.sockets, queues))], daemon_keys, args=("--hold=1",) if kept else ())
        self.pid = self.d.pid
        wait_sockets(self.d.p, self.sockets)
        self.per_burst = None

    def _stats(self):
        link = self.d.call("link.stats", name="bench")["links"][0]
        sides = [s["tx"] for s in link["sides"].values()]
        return {k: sum(s[k] for s in sides) for k in ("packets", "busy_cycles", "dropped", "bursts")}

    def start(self):
        pass

    def stop(self):
        pass

    def mark(self):
        self.s0 = self._stats()

    def since(self):
        s = self._stats()
        d = {k: s[k] - self.s0[k] for k in s}
        self.per_burst = d["packets"] / max(d["bursts"], 1)
        return d["packets"], d["busy_cycles"], d["dropped"]

    def end(self):
        self.d.end()


class RelayHost(harness.Lines):
    """The relay engine without a daemon; nothing in it sleeps, so signals stop it while the peer runs."""
    kind = "engine"

    def __init__(self, opt, cpu):
        self.sockets = [os.path.join(opt.workdir, "ours%d.sock" % i) for i in range(2)]
        super().__init__([program(opt, "bench", "relay_host"), *self.sockets], cpu, greets=False)
        self.per_burst = None
        wait_sockets(self.p, self.sockets)

    def _stats(self):
        return self.cmd("stats")

    def start(self):
        os.kill(self.pid, signal.SIGCONT)

    def stop(self):
        os.kill(self.pid, signal.SIGSTOP)

    def mark(self):
        self.s0 = self._stats()

    def since(self):
        s = self._stats()
        self.per_burst = (s["packets"] - self.s0["packets"]) / max(s["bursts"] - self.s0["bursts"], 1)
        return tuple(s[k] - self.s0[k] for k in ("packets", "busy_cycles", "drops"))

    def end(self):
        self.start()
        super().end()
