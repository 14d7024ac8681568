# SPDX-License-Identifier: BSD-3-Clause
"""Open vSwitch with DPDK as the vSwitch: a database, a vswitchd and sockets of the benchmark's own; no service is touched."""
import json
import os
import re
import signal
import socket
import subprocess
import time

import harness

# Installed, or only unpacked there by scripts/setup --bench. Debian keeps the DPDK build beside the ordinary one.
ROOTS = ["", os.path.join(os.environ.get("VHOST_PCI_CACHE", "/var/cache/vhost-pci"), "openvswitch")]
PARTS = ["usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk", "usr/sbin/ovsdb-server", "usr/bin/ovsdb-tool", "usr/bin/ovs-vsctl",
         "usr/bin/ovs-ofctl", "usr/share/openvswitch/vswitch.ovsschema"]
NAME = "Open vSwitch with DPDK"


class Ovs:
    """`ports` vhost-user ports that are joined in pairs by two flows each, one polling thread on the given CPU.

    It polls while it lives: halt() freezes it while others are measured, once its drivers are connected.
    """

    def __init__(self, opt, cpu, ports=2, name="ovs"):
        self.dir = os.path.join(opt.workdir, name)
        self.parts, self.log, self.sock = [], None, None
        root = next((r for r in ROOTS if all(os.path.exists(os.path.join(r + "/", f)) for f in PARTS)), None)
        if root is None:
            raise harness.BenchError("openvswitch-switch-dpdk is not there: scripts/setup --bench fetches it")
        vswitchd, server, tool, self.vsctl, self.ofctl, schema = [os.path.join(root + "/", f) for f in PARTS]
        os.makedirs(self.dir)
        self.env = dict(os.environ, OVS_RUNDIR=self.dir, OVS_LOGDIR=self.dir, OVS_DBDIR=self.dir, OVS_SYSCONFDIR=self.dir)
        self.db = "unix:" + self._at("db.sock")
        self.log = open(self._at("log"), "wb")
        try:
            self._call([tool, "create", self._at("conf.db"), schema])
            self._start([server, self._at("conf.db"), "--remote=p" + self.db, "--unixctl=" + self._at("db.ctl")], "db.sock")
            # In memory: no mounted hugetlbfs is needed, and nothing stays behind. Its buffers are halved until they fit.
            self._vs("--no-wait", "init", "--", "set", "Open_vSwitch", ".", "other_config:dpdk-init=true",
                     "other_config:dpdk-lcore-mask=0x%x" % (1 << cpu), "other_config:pmd-cpu-mask=0x%x" % (1 << cpu),
                     "other_config:dpdk-socket-limit=128", 'other_config:dpdk-extra="--in-memory --no-pci"')
            self.p = self._start([vswitchd, self.db, "--unixctl=" + self._at("ctl")], "ctl")
            self.pid = self.p.pid
            self._wait_dpdk()
            self._vs("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev", "fail-mode=secure")
            for i in range(ports):
                self._vs("add-port", "br0", "v%d" % i, "--", "set", "Interface", "v%d" % i, "type=dpdkvhostuser",
                         "ofport_request=%d" % (i + 1))
            self.sockets = [self._at("v%d" % i) for i in range(ports)]
            self._wait(self.p, self.sockets)
            for i in range(ports):
                self._call([self.ofctl, "add-flow", "unix:" + self._at("br0.mgmt"), "in_port=%d,actions=output:%d" % (i + 1, (i ^ 1) + 1)])
        except Exception:
            self.end()
            raise

    def _at(self, name):
        return os.path.join(self.dir, name)

    def _say(self):
        self.log.flush()
        lines = [li for li in harness.read(self.log.name, "").splitlines() if "|ERR|" in li or "|EMER|" in li or "error" in li.lower()]
        return "; ".join(lines[-3:]) or "see " + self.log.name

    def _call(self, argv):
        r = subprocess.run(argv, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if r.returncode:
            raise harness.BenchError("%s: %s (%s)" % (os.path.basename(argv[0]), r.stdout.strip()[-300:], self._say()))
        return r.stdout

    def _vs(self, *args):
        return self._call([self.vsctl, "--db=" + self.db, "--timeout=20", *args])

    def _start(self, argv, until):
        p = harness.spawn(argv, env=self.env, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        self.parts.append(p)
        self._wait(p, [self._at(until)])
        return p

    def _wait(self, p, paths):
        end = time.monotonic() + 20
        while not all(os.path.exists(s) for s in paths):
            if p.poll() is not None or time.monotonic() > end:
                raise harness.BenchError("%s does not start: %s" % (os.path.basename(p.args[0]), self._say()))
            time.sleep(0.05)

    def _wait_dpdk(self):
        end = time.monotonic() + 20
        while self._vs("get", "Open_vSwitch", ".", "dpdk_initialized").strip() != "true":
            if self.p.poll() is not None or time.monotonic() > end:
                raise harness.BenchError("DPDK does not start in ovs-vswitchd: " + self._say())
            time.sleep(0.1)

    def _ask(self, method, *params):
        """What ovs-appctl does, without a process for each question."""
        if not self.sock:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(10)
            self.sock.connect(self._at("ctl"))
        self.sock.sendall(json.dumps({"id": 0, "method": method, "params": list(params)}).encode())
        text = b""
        while True:
            more = self.sock.recv(65536)
            if not more:
                raise harness.BenchError("ovs-vswitchd closed its control socket: " + self._say())
            text += more
            try:
                answer = json.loads(text)
            except ValueError:
                continue
            if answer.get("error"):
                raise harness.BenchError("ovs-vswitchd: %s" % answer["error"])
            return answer["result"]

    def _stats(self):
        """Packets and busy cycles of the polling thread, packets that it gave up."""
        text = self._ask("dpif-netdev/pmd-stats-show")
        text = text[text.find("pmd thread"):]

        def value(pat):
            m = re.search(pat + r":\s*(\d+)", text)
            return int(m.group(1)) if m else 0

        return value("packets received"), value("processing cycles"), value("miss with failed upcall")

    def run(self, _mode, _size):
        os.kill(self.pid, signal.SIGCONT)

    def halt(self):
        os.kill(self.pid, signal.SIGSTOP)

    def mark(self):
        self.s0 = self._stats()

    def since(self):
        return tuple(b - a for a, b in zip(self.s0, self._stats()))

    def end(self):
        if self.sock:
            self.sock.close()
        for p in reversed(self.parts):
            if p.poll() is None:
                p.send_signal(signal.SIGCONT)
                p.terminate()
            harness.reap(p)
        self.log.close()
