# SPDX-License-Identifier: BSD-3-Clause
"""The fault campaign with real VMs at both ends of the links: what campaign.py does to processes is done here to QEMUs, their guests
and the agents in them, while numbered traffic (vmflow.c) and now and then a bulk transfer run.

Everything starts by itself, as it would under systemd: a guest's boot brings up its interface and its traffic, an agent that ended is
started again, the daemon gets back the fds that it had kept. What cannot come back is helped as docs/testing.md says: a port of
attachment shmem does not outlive the daemon, so its VM is started anew.
"""
import json
import os
import pathlib
import re
import signal
import sys
import time

import campaign
import rig

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parents[1] / "scripts" / "vm"))

import fdstore                 # noqa: E402
import image                   # noqa: E402
import portlink                # noqa: E402
import vhostpci_vm as v        # noqa: E402
from machine import COMPLAINT  # noqa: E402

GAP_BOUND = 2.0                # seconds without a packet on a link that nobody touched, beyond what its processes waited for a CPU
# Fds and mappings that a daemon without a leak may have beyond what it had at the start: one that took ports over has some signals wired
# in another way (3, 1); of each queue of a fast link over ivshmem it remembers up to four call fds instead of one (6).
VARIES = 9, 1
PPS = 25
# name, mode, attachment, device VM; links into one device VM are each other's nearest neighbours
LINKS = [("copy-ivshmem", "copy", "ivshmem", "near"), ("fast-ivshmem", "fast", "ivshmem", "near"),
         ("fast-shmem", "fast", "shmem", "far"), ("copy-shmem", "copy", "shmem", "far")]
QEMU = {"ivshmem": "system", "shmem": "11"}

BOOT = "flow() { (setsid vmflow $1 $2 $3 $((4700 + $1)) %d /run/flow-$4 >/run/flow-$4.log 2>&1 & echo $! >/run/flow-$4.pid); }\n" % PPS

DRIVER_BOOT = BOOT + """
until [ -e /sys/class/net/eth0 ]; do sleep 0.05; done
ip link set eth0 up; ip addr replace %(addr_driver)s/24 dev eth0
flow %(number)d 0 %(addr_device)s %(name)s
"""

DEVICE_BOOT = """
serve_%(number)d() {
	while :; do
		%(agent)s
		pid=$!
		echo $pid >%(pid)s
		until ip addr replace %(addr_device)s/24 dev %(tap)s || ! kill -0 $pid; do sleep 0.05; done 2>/dev/null
		wait $pid
		echo "the agent ended with status $?" >>%(log)s
		sleep 0.2
	done
}
serve_%(number)d &
flow %(number)d 1 %(addr_driver)s %(name)s
"""


class Daemon(rig.Process, v.Daemon):
    def again(self, sig):
        code = self.stop(sig, 15)
        self.start()
        return code

    def start(self, *args):
        self.since = time.time()
        super().start(*args)

    def show(self, name):
        return self.ctl("show", name, check=False)


class End:
    """What the traffic of a link's end says of itself; counters go on over the guest's restarts."""

    def __init__(self, link, index):
        self.link, self.index = link, index
        self.total, self.last = {}, {}

    @property
    def vm(self):
        return self.link.device if self.index else self.link.driver

    def ask(self, new_gap=False):
        """A job for read(). new_gap: the longest gap is looked for from here on."""
        f = "/run/flow-" + self.link.name
        return self.vm.spawn("%secho agent=$(cat %s 2>/dev/null) $(cat %s 2>/dev/null)" % (
            "kill -USR1 $(cat %s.pid); " % f if new_gap else "", self.link.pid, f))

    def read(self, job=None):
        """The counters now, None where there are none yet."""
        now = v.kv((job or self.ask()).result(check=False))
        if "peer_seq" not in now:
            return None
        for k in ("rx", "lost", "dup", "bad", "stale", "foreign"):
            before = self.last.get(k, 0) if self.last.get("life") == now["life"] else 0
            self.total[k] = self.total.get(k, 0) + int(now[k] - before)
        now["at"] = time.monotonic()
        self.last = now
        return now

    def get(self, field):
        return self.total.get(field, 0)

    def gap(self, old):
        """Seconds of ours, not of a guest whose clock runs fast; old: what was read at the start."""
        rate = 1
        if old and old["life"] == self.last["life"]:
            rate = (self.last["clock"] - old["clock"]) / max(self.last["at"] - old["at"], 0.5)
        return self.last["gap_ms"] / 1e3 / max(rate, 1)


def reading(ends, **kw):
    jobs = [e.ask(**kw) for e in ends]
    return [e.read(j) for e, j in zip(ends, jobs)]


class Link(portlink.Link):
    proxies = {}

    def __init__(self, number, *args):
        super().__init__(*args, net=number)
        self.number = number
        self.ends = [End(self, 0), End(self, 1)]
        self.cut_at = self.cut_round = [0, 0]

    def since(self):
        """When the link came up, by the daemon's clock: another time after each time that it was down."""
        return self.show()["sides"]["device"].get("up_us")


class Rig:
    def __init__(self, tmp, build, quick=False, say=None, only=None):
        self.tmp = pathlib.Path(tmp)
        self.daemon = Daemon(tmp, str(build), manager=fdstore.Manager(os.path.join(tmp, "notify")))
        self.links, self.vms, self.expected = [], [], {}
        links = [(n, l) for n, l in enumerate(LINKS, 1) if l[0] in (only or [x[0] for x in LINKS]) and (only or not quick or l[2] != "shmem")]
        for number, (name, mode, attachment, where) in links:
            try:
                q = v.qemu(QEMU[attachment], make=False)
            except v.Unavailable as e:
                say and say("%s is left out: %s" % (name, e))
                continue
            device = next((m for m in self.vms if m.name == where), None) or self.guest(
                where, "blue", True, BOOT + "modprobe tun; modprobe vhost_net\n" + "".join(
                    DEVICE_BOOT % self.words(n, l[0]) for n, l in links if l[3] == where), q)
            driver = self.guest("d%d" % number, "blue" if mode == "fast" else "red", False, DRIVER_BOOT % self.words(number, name))
            self.links.append(Link(number, self.daemon, name, driver, device, mode, attachment))
        if not self.links:
            raise SystemExit("faults --vms: no link is left; there are %s" % ", ".join(l[0] for l in LINKS))

    def words(self, number, name):
        a = portlink.Addresses(number)
        log, pid = portlink.agent_files(name)
        return dict(vars(a), number=number, name=name, log=log, pid=pid, agent=portlink.agent_command(name, a.tap, a.mac_tap))

    def guest(self, name, group, device, rc, qemu="system"):
        files = {"bin/vmflow": (image.program(str(HERE / "vmflow.c")), 0o755)}
        self.vms.append(portlink.guest(self.daemon, name, group, device, qemu=qemu, files=files, rc=rc))
        return self.vms[-1]

    # -- VMs, and how often each should have booted

    def begin(self, vm):
        if vm.proc is None:
            vm.start(wait=False)
            self.expected[vm] = (vm.proc.pid, 1)

    def reset(self, vm):
        vm.reset(wait=False)
        pid, boots = self.expected[vm]
        self.expected[vm] = (pid, boots + 1)

    def ready(self):
        for vm in self.vms:
            # All of them may boot at once, with what others leave of the CPUs.
            vm.wait_ready(self.expected[vm][1], 400)

    def log(self):
        with open(self.daemon.log, errors="replace") as f:
            return f.read()

    def start(self):
        self.daemon.start()
        for vm in self.vms:
            self.begin(vm)
        self.ready()

    def stop(self):
        for vm in self.vms:
            if vm.alive():
                vm.proc.send_signal(signal.SIGCONT)
            vm.kill()
        code = self.daemon.stop(timeout=15)
        self.daemon.manager.close()
        return code


# ---- faults: generators as in campaign.py

def end_vm(sig):
    def fault(c, link, end):
        vm = link.ends[end].vm
        vm.kill(sig)
        yield
        campaign.nap(c.rnd, 0.5)
        c.rig.begin(vm)
    return fault


def reset(c, link, end):
    c.rig.reset(link.ends[end].vm)
    yield


def freeze(c, link, end):
    vm = link.ends[end].vm
    vm.proc.send_signal(signal.SIGSTOP)
    # Mostly longer than the daemon's patience (a second).
    time.sleep(c.rnd.choice([0.3, 1.5, 3.0]))
    yield
    vm.proc.send_signal(signal.SIGCONT)


def end_agent(sig):
    def fault(c, link, end):
        link.end_agent(sig)
        yield
    return fault


def end_daemon(fault):
    def and_shmem(c, link, end):
        yield from fault(c, link, end)
        # QEMU does not connect such a device a second time (and ends, when its driver had not started).
        for vm in {l.device for l in c.rig.links if l.attachment == "shmem"}:
            if vm.started < c.rig.daemon.since:
                vm.kill()
            c.rig.begin(vm)
    return and_shmem


class Campaign(campaign.Campaign):
    faults = {
        "driver-kill": (3, 0, end_vm(signal.SIGKILL)),
        "driver-restart": (1, 0, end_vm(signal.SIGTERM)),
        "driver-reset": (3, 0, reset),
        "driver-freeze": (2, 0, freeze),
        "device-kill": (3, 1, end_vm(signal.SIGKILL)),
        "device-restart": (1, 1, end_vm(signal.SIGTERM)),
        "device-reset": (3, 1, reset),
        "device-freeze": (2, 1, freeze),
        "agent-kill": (3, 1, end_agent("KILL")),
        "agent-restart": (3, 1, end_agent("TERM")),
        "daemon-kill": (2, None, end_daemon(campaign.daemon_kill)),
        "daemon-restart": (2, None, end_daemon(campaign.daemon_restart)),
        "daemon-freeze": (1, None, campaign.daemon_freeze),
    }
    neighbours = 0
    report_every = 0

    def __init__(self, rig, seed, **kw):
        super().__init__(rig, seed, bound=30.0, **kw)
        self.said, self.read_to, self.pids = {}, {}, {}

    @staticmethod
    def possible(link, kind):
        return True

    def choose(self):
        link, chosen = super().choose()
        if chosen[0] == "daemon-freeze":
            # A QEMU that waits for the daemon answers no QMP, and is not awaited either.
            self.doing, chosen = chosen[0], chosen[:1]
        return link, chosen

    def describe(self, link):
        self.note("  daemon: %s" % json.dumps(self.rig.daemon.show(link.name)))
        for e in link.ends:
            self.note("  end %d: %s" % (e.index, json.dumps(e.last)))
        try:
            self.note(link.story())
        except v.VMError as e:
            self.note(str(e))

    # -- one cycle

    def load(self, link):
        """Bulk transfers both ways; what they look like after the fault is of no interest but for changed bytes."""
        jobs = []
        for src, dst, addr in ((link.driver, link.device, link.addr_device), (link.device, link.driver, link.addr_driver)):
            port = v.next_port()
            jobs.append(dst.spawn("vmtool rx %d" % port, 60))
            src.spawn("vmtool tx %s %d secs=2" % (addr, port), 60)
        return jobs

    def unload(self, link, jobs, patience):
        end = time.monotonic() + patience
        while not all(j.event.is_set() for j in jobs) and time.monotonic() < end:
            time.sleep(0.05)
        for vm in (link.driver, link.device) if jobs else ():
            vm.sh("killall vmtool", check=False)
        for j in jobs:
            if v.kv(j.out).get("bad"):
                self.violation(link, "corrupt", "a TCP stream that the fault met: %s" % j.out.strip())

    def recover(self, links, since, renewed=()):
        """Wait for packets, at all ends, that were sent from now on. Seconds since; None when some link is wedged."""
        marks, missing = {}, list(links)
        while True:
            for l in list(missing):
                now = reading(l.ends)
                if None in now:
                    continue
                for e, n in zip(l.ends, now):
                    if marks.get(e, (None,))[0] != n["life"]:
                        marks[e] = n["life"], n["tx"]
                if all(now[1 - e.index]["peer_life"] == marks[e][0] and now[1 - e.index]["peer_seq"] > marks[e][1] for e in l.ends):
                    missing.remove(l)
            if not missing:
                return time.monotonic() - since
            if time.monotonic() - since > self.bound * v.patience():
                for l in missing:
                    self.violation(l, "wedged", "no traffic %.0f s after the fault: %s" % (time.monotonic() - since, [e.last for e in l.ends]))
                self.anew(missing)
                return None
            time.sleep(0.02)

    def anew(self, links):
        """So that the next cycles tell something new."""
        vms = {vm for l in links for vm in (l.driver, l.device)}
        if not self.rig.daemon.alive():
            self.rig.daemon.start()
        for vm in vms:
            vm.kill()
            self.rig.begin(vm)
        self.rig.ready()

    def streams(self, links):
        """Fresh TCP streams, every byte checked."""
        for l in links:
            for r in l.tcp("mib=1"):
                if r["bytes"] != 1 << 20:
                    self.violation(l, "stream", "a fresh TCP stream: %r" % r)

    def one(self):
        link, chosen = self.choose()
        wide = set(chosen) & campaign.DAEMON_WIDE
        whole = any(k.startswith("device-") for k in chosen)
        hit = [l for l in self.rig.links if wide or l is link or (whole and l.device is link.device)]
        others = [l for l in self.rig.links if l not in hit]
        before, jobs, steal = {}, [], 0
        try:
            before = {l: (l.since(), reading(l.ends, new_gap=True), [e.get("lost") for e in l.ends]) for l in others}
            self.watch()
            steal = rig.stolen()
            jobs = self.load(link) if self.rnd.random() < 0.5 else []
            if jobs:
                time.sleep(0.3 + 0.7 * self.rnd.random())
            self.strike(link, chosen)
            self.note("  damage done")
            self.rig.ready()
            self.note("  VMs are there")
            back = self.recover(hit, time.monotonic())
            self.note("  recovered %s s later" % (back and round(back, 3)))
            if back is not None:
                self.streams(hit)
            self.note("  streams done")
            # A stream whose other end is gone waits for ever.
            self.unload(link, jobs, 0 if any(re.match("(driver|device)-(kill|restart|reset)", k) for k in chosen) else 3)
        except v.VMError as e:
            back = None
            self.violation(link, "vm", str(e))
            self.anew(hit)
        self.note("  looking around")
        self.count(link, chosen, back)
        self.last = "%s%s on %s: %s" % (self.doing, " under load" if jobs else "", link.name, "back after %.2f s" % back if back is not None else "not back")
        try:
            self.look_at_vms()
            self.look_at_packets()
            self.undisturbed(link, before, steal)
        except v.VMError as e:
            self.violation(link, "vm", str(e))
            self.anew(self.rig.links)
        self.settle(link, self.base)
        self.weigh(link)

    def warm_up(self):
        super().warm_up()
        self.base = tuple(n + more for n, more in zip(self.base, VARIES))

    # -- what is wrong

    def violation(self, link, what, text):
        """With what part of the cycle its VMs waited for a CPU: a guest that gets none meets every time limit."""
        waited = ["%s %.1f s" % (name, max([t - self.delay[pid].get(k, t) for k, t in rig.run_delay(pid).items()] or [0]))
                  for name, pid in self.pids.items()]
        super().violation(link, what, "%s (for want of CPU stood still in this cycle: %s)" % (text, ", ".join(waited)))

    def watch(self):
        """What violation() looks at."""
        self.pids = {vm.name: vm.proc.pid for vm in self.rig.vms}
        self.pids["vhost-pcid"] = self.rig.daemon.proc.pid
        self.delay = {p: rig.run_delay(p) for p in self.pids.values()}

    def look_at_vms(self):
        jobs = {vm: vm.complain() for vm in self.rig.vms if vm.alive()}
        for vm in self.rig.vms:
            if not vm.alive():
                self.violation(None, "ended", "QEMU of %s ended with status %s\n%s" % (vm.name, vm.proc and vm.proc.returncode, vm.tail()))
                vm.kill()
                self.rig.begin(vm)
                self.rig.ready()
            elif (vm.proc.pid, vm.boots) != self.rig.expected[vm]:
                self.violation(None, "ended", "%s restarted by itself\n%s" % (vm.name, vm.tail()))
                self.rig.expected[vm] = vm.proc.pid, vm.boots
            life = vm, self.rig.expected[vm]
            bad = self.fresh(vm.console, COMPLAINT.search)
            bad += [x for x in vm.complaints(jobs.get(vm)) if x not in self.said.get(life, ()) and x not in bad]
            if bad:
                self.said.setdefault(life, set()).update(bad)
                self.violation(None, "guest", "%s: %s" % (vm.name, "\n".join(bad[:20])))
        d = self.rig.daemon
        if not d.alive():
            self.violation(None, "daemon", "vhost-pcid ended with status %s\n%s" % (d.proc and d.proc.returncode, d.tail()))
            d.start()
        for line in self.fresh(d.log, self.serious):
            self.violation(None, "daemon", line)
        for one in d.ctl("list")["links"]:
            if one["status"] == "broken":
                self.violation(None, "broken", json.dumps(one))

    @staticmethod
    def serious(line):
        return line.startswith(("<3>", "<2>", "<1>", "<0>")) or any(x in line for x in campaign.SANITIZERS)

    def fresh(self, path, bad):
        """Lines of a log that @bad finds, of those that were not there the last time."""
        try:
            with open(path, "rb") as f:
                f.seek(self.read_to.get(path, 0))
                text = f.read()
        except FileNotFoundError:
            return []
        whole = text[:text.rfind(b"\n") + 1]
        self.read_to[path] = self.read_to.get(path, 0) + len(whole)
        return [x.strip() for x in whole.decode(errors="replace").splitlines() if bad(x)]

    def look_at_packets(self):
        reading([e for l in self.rig.links for e in l.ends])
        for l in self.rig.links:
            for e in l.ends:
                for kind in ("dup", "bad", "stale", "foreign"):
                    n = e.get(kind) - self.blamed.get((e, kind), 0)
                    if n:
                        self.blamed[e, kind] = e.get(kind)
                        self.violation(l, "corrupt" if kind == "bad" else kind, "%d packets at the %s end" % (n, ("driver", "device")[e.index]))

    def undisturbed(self, link, before, steal):
        """The links of before (with what was read from them) noticed nothing of a fault of another link."""
        for l, (since, old, lost) in before.items():
            if l.since() != since:
                self.violation(l, "disturbed", "it was down during a fault of link %s" % link.name)
            if old[1] and l.ends[1].last["agent"] != old[1]["agent"]:
                self.violation(l, "disturbed", "another agent serves it after a fault of link %s" % link.name)
            gone = sum(e.get("lost") - n for e, n in zip(l.ends, lost))
            if gone:
                self.near_lost += gone
                self.violation(l, "disturbed", "%d packets lost during a fault of link %s" % (gone, link.name))
            gap = max(e.gap(o) for e, o in zip(l.ends, old))
            if gap > GAP_BOUND:
                pids = [self.rig.daemon.proc.pid, l.driver.proc.pid, l.device.proc.pid]
                wait = sum(max([rig.run_delay(p).get(t, d) - d for t, d in self.delay.get(p, {}).items()] or [0]) for p in pids) + rig.stolen() - steal
                if gap - wait > GAP_BOUND:
                    self.violation(l, "disturbed", "no packet for %.2f s during a fault of link %s" % (gap, link.name))
                else:
                    self.excused += 1
            else:
                self.worst_gap = max(self.worst_gap, gap)

    def progress(self, cycles, seconds):
        return "%4d of %d  %5.0f s  %s, %d violations" % (self.cycle, cycles, seconds, self.last, len(self.violations))
