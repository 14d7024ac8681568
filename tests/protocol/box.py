# SPDX-License-Identifier: BSD-3-Clause
"""A container with systemd as process 1, whose root directory is thrown away."""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

NSPAWN = shutil.which("systemd-nspawn")
PLAIN = ("--quiet", "--register=no", "--keep-unit", "--private-network", "--link-journal=no")
_number = [0]


def run(*cmd, **how):
    return subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", **how)


def machine():
    _number[0] += 1
    return f"--machine=vhost-pci-{os.getpid()}-{_number[0]}"


class Box:
    """@root: what systemd-nspawn is told of its root directory and of what is bound into it."""

    def __init__(self, tmp, *root):
        self.log = open(tmp / "container.log", "w+")
        # Of the calls that the container's own filter holds back by default, the daemon needs landlock's.
        self.proc = subprocess.Popen(
            [NSPAWN, *PLAIN, *root, "--console=pipe", "--boot", machine(),
             "--system-call-filter=landlock_create_ruleset landlock_add_rule landlock_restrict_self", "systemd.unit=basic.target"],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT)
        self.init = None
        self.wait(self.booted, "the container did not boot")
        self.root = pathlib.Path(f"/proc/{self.init}/root")

    def said(self):
        self.log.flush()
        return pathlib.Path(self.log.name).read_text(errors="replace")

    def wait(self, what, why, timeout=90):
        end = time.monotonic() + timeout
        while not what():
            assert self.proc.poll() is None, "the container ended\n" + self.said()
            assert time.monotonic() < end, f"{why}\n{self.said()}\n{self.journal() if self.init else ''}"
            time.sleep(0.1)

    def booted(self):
        kids = pathlib.Path(f"/proc/{self.proc.pid}/task/{self.proc.pid}/children").read_text().split()
        for kid in kids:
            self.init = int(kid)
            if self.do("systemctl", "is-active", "basic.target").stdout.strip() == "active":
                return True
        return False

    def do(self, *cmd, **how):
        return run("nsenter", "-t", str(self.init), "-m", "-u", "-i", "-n", "-p", "-C", *cmd, **how)

    def ok(self, *cmd):
        r = self.do(*cmd)
        assert not r.returncode, f"{cmd}: {r.stdout}\n{self.journal()}"
        return r.stdout

    def journal(self):
        return self.do("journalctl", "--no-pager", "-q", "-u", "vhost-pcid", "-o", "cat").stdout

    def unit(self, name):
        return self.ok("systemctl", "show", "-P", name, "vhost-pcid").strip()

    def ctl(self, *args):
        return json.loads(self.ok("vhost-pcictl", "--json", *args))

    def write(self, path, text):
        path = self.root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def close(self):
        self.proc.send_signal(signal.SIGTERM)  # an orderly shutdown
        try:
            self.proc.wait(30)
        except subprocess.TimeoutExpired:
            self.proc.kill()
            self.proc.wait()
        self.log.close()


def lacking(*root):
    """Why there can be no such container here; None when it can."""
    if os.geteuid():
        return "containers need root"
    if not NSPAWN:
        return "systemd-nspawn is not installed (package systemd-container)"
    if not os.path.islink("/sbin"):
        return "/usr is not merged"
    # Whether this machine lets anybody make such a container at all: asked without systemd in it.
    r = run(NSPAWN, *PLAIN, *root, "--pipe", machine(), "true")
    return f"systemd-nspawn does not work here: {r.stdout.strip()[-200:]}" if r.returncode else None
