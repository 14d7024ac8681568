# SPDX-License-Identifier: BSD-3-Clause
"""What the campaign breaks: a daemon, links, and the processes that stand for VMs at their ends."""
import collections
import ctypes
import mmap
import os
import pathlib
import re
import signal
import struct
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "protocol"))

import conftest  # noqa: E402  (vhost-pcid as tests see it)
import proxy  # noqa: E402

# struct end_page of traffic.h, at 1024 * (1 + end)
FIELDS = ["life", "tx", "rx", "rx_bytes", "lost", "dup", "corrupt", "stale", "foreign", "broken", "probes", "sessions", "errors",
          "max_gap_ns", "last_rx_ns", "peer_life", "peer_seq"]
DRIVER_MEMORY_MB = 8  # of driver.c
VIOLATIONS = ["dup", "corrupt", "stale", "foreign", "broken"]
OFFSET = {f: 8 * i for i, f in enumerate(FIELDS)}
EPOCH_SEEN, RUNNING, MSG = 8 * len(FIELDS), 8 * len(FIELDS) + 4, 8 * len(FIELDS) + 8


class Process:
    """What the kernel says of self.proc."""

    def resources(self):
        """(fds, mappings of files that may be shared)"""
        pid = self.proc.pid
        with open(f"/proc/{pid}/maps") as f:
            maps = sum(1 for line in f if line.split()[1][3] == "s")
        return len(os.listdir(f"/proc/{pid}/fd")), maps

    def fds(self):
        """How many fds there are of each kind, by what they are called less numbers."""
        kinds = collections.Counter()
        for f in os.listdir(f"/proc/{self.proc.pid}/fd"):
            try:
                kinds[re.sub("[0-9]+", "N", os.readlink(f"/proc/{self.proc.pid}/fd/{f}"))] += 1
            except OSError:
                pass
        return kinds

    def sanitized(self):
        with open(f"/proc/{self.proc.pid}/maps") as f:
            return "libasan" in f.read()

    def memory_kib(self):
        with open(f"/proc/{self.proc.pid}/status") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("RssAnon"))


class Daemon(Process, conftest.Daemon):
    """One that is killed and started anew, again and again."""

    def command(self, *more):
        c = super().command(*more)
        c[c.index("debug")] = "info"
        return c

    def launch(self):
        with open(self.tmp / "log", "ab") as log:
            # It ends with us, however we end.
            self.proc = subprocess.Popen(self.command(), stderr=log, stdin=subprocess.DEVNULL,
                                         preexec_fn=lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL))

    def start(self):
        self.log_path = self.tmp / "log"
        self.launch()
        end = time.monotonic() + 60
        while True:
            try:
                self.control = conftest.Control(self.run / "control.sock")
                self.call("daemon.show")
                return self
            except (OSError, ValueError):
                if self.proc.poll() is not None or time.monotonic() > end:
                    raise RuntimeError("vhost-pcid does not start; the end of its log:\n" + self.log()[-2000:]) from None
                time.sleep(0.005)

    def again(self, sig):
        """End it by a signal, start the next."""
        self.control.close()
        self.proc.send_signal(sig)
        code = self.proc.wait(30)
        self.start()
        return code


class End:
    """A process at one end of a link; its page outlives it."""

    def __init__(self, link, index, command):
        self.link, self.index, self.base_command = link, index, command
        self.proc = None
        self.log = open(link.rig.tmp / f"{link.name}.{index}.log", "ab")

    @property
    def pid(self):
        return self.proc.pid

    def get(self, field):
        return struct.unpack_from("<Q", self.link.pages, 1024 * (1 + self.index) + OFFSET[field])[0]

    def put(self, field, v):
        struct.pack_into("<Q", self.link.pages, 1024 * (1 + self.index) + OFFSET[field], v)

    def began(self):
        """Has the process come as far as its page? A starved machine takes long to start one."""
        return self.get("life") == self.life

    def epoch_seen(self):
        return struct.unpack_from("<I", self.link.pages, 1024 * (1 + self.index) + EPOCH_SEEN)[0]

    def msg(self):
        at = 1024 * (1 + self.index) + MSG
        return bytes(self.link.pages[at:at + 256]).split(b"\0")[0].decode(errors="replace")

    def violations(self):
        return {v: self.get(v) for v in VIOLATIONS if self.get(v)}

    def start(self):
        self.link.rig.lives += 1
        self.life = self.link.rig.lives
        self.proc = subprocess.Popen(self.base_command + ["--pages", str(self.link.file), "--link", str(self.link.number),
                                                          "--end", str(self.index), "--life", str(self.link.rig.lives)],
                                     stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def signal(self, sig):
        self.proc.send_signal(sig)

    def kill(self):
        self.proc.send_signal(signal.SIGKILL)

    def start_again(self):
        """After kill() by a proxy."""
        try:
            self.proc.wait(0.5)
        except subprocess.TimeoutExpired:
            return
        self.start()

    def end(self, sig):
        """True unless it did not end in time (then it is killed)."""
        self.proc.send_signal(sig)
        try:
            self.proc.wait(15)
            return True
        except subprocess.TimeoutExpired:
            self.proc.kill()
            self.proc.wait()
            return False


def run_delay(pid):
    """Seconds that each thread of the process has waited for a CPU so far."""
    waited = {}
    try:
        for t in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{t}/schedstat") as f:
                waited[t] = int(f.read().split()[1]) / 1e9
    except OSError:
        pass
    return waited


def stolen():
    """Seconds that the host of this machine took from its CPUs: the most from any."""
    with open("/proc/stat") as f:
        return max(int(line.split()[8]) for line in f if line.startswith("cpu") and line[3].isdigit()) / os.sysconf("SC_CLK_TCK")


class Link:
    """A link of the daemon with both its ends."""

    def __init__(self, rig, name, mode, attachment=None, driver=(), device=(), packed_fast=False, via=True, rate=300):
        self.rig, self.name, self.mode, self.attachment = rig, name, mode, attachment
        self.number = len(rig.links) + 1
        self.packed_fast = packed_fast
        self.in_place = mode in ("fast", "grant")  # the device side works in the driver VM's memory
        self.file = rig.tmp / f"{name}.pages"
        self.file.write_bytes(bytes(4096))
        with open(self.file, "r+b") as f:
            self.pages = mmap.mmap(f.fileno(), 4096)
        d = rig.daemon
        keys = {"Link_Mode": mode}
        if attachment:
            keys.update(Device_Endpoint="port", Device_Attachment=attachment)
        if packed_fast:
            keys["Device_PackedRings"] = "yes"
        if mode == "copy":
            keys["Device_PoolSize"] = "4M"
        if mode == "grant":
            keys.update(Driver_Grant="memory", Driver_GrantSize="%dM" % DRIVER_MEMORY_MB)
        for vm in ("drv", "dev"):
            d.write(f"{name}-{vm}.vm", "[VM]\nTrustGroup=test\n")
        d.link(name, driver=name + "-drv", device=name + "-dev", **keys)
        self.proxies = {}
        driver_sock, device_sock = d.sock(name, "driver"), d.sock(name, "device")
        if via:
            driver_sock = self.between(0, driver_sock, proxy.VHOST_USER)
            if not attachment or attachment == "local":
                device_sock = self.between(1, device_sock, proxy.LOCAL if attachment else proxy.VHOST_USER)
        rate = ["--rate", str(rate)]
        prog = str(rig.build / "tests/faults/fault-driver")
        self.ends = [End(self, 0, [prog, "--socket", driver_sock, *rate, *driver])]
        if not attachment:
            self.ends.append(End(self, 1, [prog, "--socket", device_sock, *rate, *device]))
        elif attachment == "local":
            self.ends.append(End(self, 1, [str(rig.build / "tests/faults/fault-device"), "--port", "unix:" + device_sock, *rate, *device]))
        else:
            self.ends.append(End(self, 1, ["/usr/bin/python3", "-B", str(HERE / "portdouble.py"), "--attachment", attachment,
                                           "--port", device_sock, *rate, *device]))
        if self.in_place and 1 in self.proxies:
            # A process that lives on without its socket would write into rings that are the daemon's again: it has the driver VM's
            # memory, and these modes trust a process with that. Devices lose their connection by dying.
            self.proxies[1].before_cut = self.ends[1].kill
        self.cut_at = [0, 0]      # the next message boundary to cut at
        self.cut_round = [0, 0]   # how many times all were cut

    def between(self, end, target, framing):
        path = str(self.rig.tmp / f"{self.name}.{end}.sock")
        self.proxies[end] = proxy.Proxy(self.rig.loop, path, target, framing)
        return path

    def start(self):
        for e in self.ends:
            e.start()

    def raise_epoch(self):
        v = (struct.unpack_from("<I", self.pages, 0)[0] + 1) & 0xffffffff
        struct.pack_into("<I", self.pages, 0, v)
        return v

    def arrived(self, epoch):
        return all(e.epoch_seen() == epoch for e in self.ends)

    def status(self):
        return self.rig.daemon.show(self.name)["status"]

    def stop(self):
        for e in self.ends:
            if e.proc and e.proc.poll() is None:
                e.proc.send_signal(signal.SIGCONT)
                e.proc.terminate()
        for e in self.ends:
            try:
                e.proc and e.proc.wait(5)
            except subprocess.TimeoutExpired:
                e.proc.kill()
                e.proc.wait()


class Storage(End):
    """qemu-storage-daemon. It knows of no pages: that it serves shows at the driver."""

    def start(self):
        self.link.rig.lives += 1
        self.life = self.link.rig.lives
        self.proc = subprocess.Popen(self.base_command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                     preexec_fn=lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL))
        self.put("life", self.life)
        self.put("sessions", super().get("sessions") + 1)

    def get(self, field):
        driver = self.link.ends[0]
        if field == "sessions":
            return super().get(field) + driver.get(field)
        return driver.get(field) if field in ("max_gap_ns", "last_rx_ns") else super().get(field)

    def epoch_seen(self):
        return self.link.ends[0].epoch_seen()


class DiskLink(Link):
    """A disk in copy mode with Endpoint=vhost-user; what its driver knows of its sectors is in a file that outlives everybody."""

    def __init__(self, rig, name, rate=200):
        self.rig, self.name, self.mode, self.attachment = rig, name, "copy", None
        self.number, self.packed_fast, self.in_place = len(rig.links) + 1, False, False
        self.file, ledger, image = (rig.tmp / f"{name}.{x}" for x in ("pages", "ledger", "img"))
        self.file.write_bytes(bytes(4096))
        ledger.write_bytes(bytes(16 * 256))
        image.write_bytes(bytes(256 * 4096))
        with open(self.file, "r+b") as f:
            self.pages = mmap.mmap(f.fileno(), 4096)
        d, disk = rig.daemon, rig.daemon.sock(name, "device")
        for vm in ("drv", "dev"):
            d.write(f"{name}-{vm}.vm", "[VM]\nTrustGroup=test\n")
        d.link(name, driver=name + "-drv", device=name + "-dev", Link_Mode="copy", Link_Type="blk", Device_Endpoint="vhost-user",
               Device_SocketMode="client", Device_Socket=disk, Device_PoolSize="4M")
        with open(d.conf / f"{name}.link", "a") as f:
            f.write("[Profile]\nCapacity=1M\n")
        self.proxies = {}
        self.ends = [
            End(self, 0, ["/usr/bin/python3", "-B", str(HERE / "diskdriver.py"), "--socket", self.between(0, d.sock(name, "driver"), proxy.VHOST_USER),
                          "--ledger", str(ledger), "--rate", str(rate)]),
            Storage(self, 1, ["qemu-storage-daemon", "--blockdev", f"file,node-name=f,filename={image}", "--export",
                              f"vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={disk},writable=on"]),
        ]
        self.cut_at, self.cut_round = [0, 0], [0, 0]


class Rig:
    def __init__(self, tmp, build):
        self.tmp, self.build = pathlib.Path(tmp), pathlib.Path(build)
        conftest.BUILD = self.build
        self.daemon = Daemon(self.tmp)
        self.daemon.run.mkdir()
        self.loop = proxy.Loop()
        self.links = []
        self.lives = 0

    def link(self, *args, **kw):
        self.links.append(Link(self, *args, **kw))
        return self.links[-1]

    def disk(self, *args, **kw):
        self.links.append(DiskLink(self, *args, **kw))
        return self.links[-1]

    def log(self):
        return self.daemon.log()

    def start(self):
        self.daemon.start()
        for link in self.links:
            link.start()

    def stop(self):
        for link in self.links:
            link.stop()
        return self.daemon.stop()
