# SPDX-License-Identifier: BSD-3-Clause
"""Many links under a daemon that is upgraded or started anew: busy ones, whose ends are those of the fault campaign (tests/faults),
and idle ones. Of each busy link it tells for how long an end got no packet, how many were lost and how often an end connected."""
import os
import pathlib
import signal
import sys
import time

import harness
from frontend import IdleVm

TOP = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "tests" / "faults"))

import rig  # noqa: E402

QUIET = 0.2   # seconds of traffic before and behind what is looked at


class Seen:
    """What the ends of one link saw of an operation."""

    def __init__(self, link):
        self.link = link
        for e in link.ends:
            e.put("max_gap_ns", 0)
        self.sessions, self.lost = self._sum("sessions"), self._sum("lost")

    def _sum(self, field):
        return sum(e.get(field) for e in self.link.ends)

    def close(self):
        self.gap_ms = max(e.get("max_gap_ns") for e in self.link.ends) / 1e6
        self.reconnects = self._sum("sessions") - self.sessions
        self.lost = self._sum("lost") - self.lost


class Fleet:
    """links: (name, mode, attachment, keywords of rig.Link) each. idle: how many links more, half relay, half copy; the VMs of the relay
    links are there, and the driver VMs of the copy links, and do nothing. build: another build's daemon."""

    def __init__(self, opt, name, links, idle=0, rate=500, build=None):
        tmp = os.path.join(opt.workdir, name)
        os.makedirs(tmp)
        self.rig = rig.Rig(tmp, opt.builddir)
        self.build = pathlib.Path(build or opt.builddir)
        rig.conftest.BUILD = self.build
        d = self.d = self.rig.daemon
        d.write("vhost-pci.conf", "[Daemon]\nMaxLinks=8192\n")
        for link, mode, attachment, more in links:
            self.rig.link(link, mode, attachment, via=False, **{"rate": rate, **more})
        self.idle, sockets = [], []
        for i in range(idle):
            n = "idle%d" % i
            if i % 2:
                d.link(n, Link_Mode="copy", Device_Endpoint="port", Device_Attachment="local", Device_PoolSize="4M")
            else:
                d.link(n, Link_Mode="relay", Device_Endpoint="virtio-net")
                sockets.append(d.sock(n, "device"))
            sockets.append(d.sock(n, "driver"))
        self.rig.start()
        self.idle = [IdleVm(s) for s in sockets]
        self.settle()

    @property
    def links(self):
        return self.rig.links

    def settle(self, patience=60):
        """Until packets go both ways on every busy link, and for a moment longer."""
        epochs = [(link, link.raise_epoch()) for link in self.links]
        end = time.monotonic() + patience
        while not all(link.arrived(e) for link, e in epochs):
            if time.monotonic() > end:
                raise harness.BenchError("no packets on %s; the end of the daemon's log:\n%s" % (
                    ", ".join(link.name for link, e in epochs if not link.arrived(e)), self.d.log()[-1500:]))
            time.sleep(0.005)
        time.sleep(QUIET)

    def during(self, what):
        """Seen of every busy link, and what what() gave."""
        rig.conftest.BUILD = self.build
        self.settle()
        seen = [Seen(link) for link in self.links]
        got = what()
        self.settle()
        for s in seen:
            s.close()
        return seen, got

    def upgrade(self):
        """Milliseconds for which the daemon says that traffic stood still, last of both."""
        return self.during(lambda: self.d.upgrade()["stall_us"] / 1000)

    def again(self, sig=signal.SIGTERM):
        return self.during(lambda: self.d.again(sig))

    def nothing(self):
        """What a moment without any operation looks like."""
        return self.during(lambda: time.sleep(QUIET))

    def violations(self):
        return ["%s: %s" % (link.name, e.violations()) for link in self.links for e in link.ends if e.violations()]

    def end(self):
        for vm in self.idle:
            vm.close()
        bad = self.violations()
        code = self.rig.stop()
        if bad or code:
            raise harness.BenchError("packets are wrong: %s; the daemon's status is %s" % ("; ".join(bad), code))
