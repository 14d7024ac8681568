# SPDX-License-Identifier: BSD-3-Clause
"""The installed unit under a real systemd, in a container whose /etc and /var are empty and whose /usr/local is our `make install`.

What the service manager promises the daemon elsewhere in these tests (test_restart.py plays it), it must keep itself here.
"""
import contextlib
import os
import pathlib
import shutil
import tempfile
import time

import pytest

import portclient as pc
import test_guard
import vu
from box import Box, lacking, run
from conftest import BUILD
from portside import forward

DROP_IN = "etc/systemd/system/vhost-pcid.service.d/test.conf"
LIMIT = "etc/systemd/system/vhost-pcid.service.d/limit.conf"


@pytest.fixture(scope="module")
def box():
    why = lacking("--directory=/", "--volatile=yes")
    if why:
        pytest.skip(why)
    tmp = pathlib.Path(tempfile.mkdtemp(prefix="vpsd"))
    made = run("env", f"DESTDIR={tmp}/d", "meson", "install", "-C", str(BUILD), "--no-rebuild")
    assert not made.returncode, made.stdout
    b = Box(tmp, "--directory=/", "--volatile=yes", f"--bind-ro={tmp / 'd/usr/local'}:/usr/local")
    try:
        # More restarts in ten seconds than systemd takes from a service by default.
        b.write(LIMIT, "[Unit]\nStartLimitIntervalSec=0\n")
        b.ok("systemctl", "daemon-reload")
        b.ok("systemctl", "start", "vhost-pcid")
        yield b
    finally:
        b.close()
        shutil.rmtree(tmp, ignore_errors=True)


def test_as_installed(box):
    """The user comes from sysusers.d, the directories from the unit, and all of the sandbox is in force."""
    status = box.ctl("status")
    assert box.unit("ActiveState") == "active" and int(box.unit("MainPID"))
    assert box.unit("NRestarts") == "0"
    assert status["guard_pid"]
    off = [s for s in status["isolation"] if not s["in_force"]]
    kernel = [s for s in off if s["name"] == "files" and "no landlock" in s["what"]]
    assert off == kernel, off
    main = f"/proc/{box.unit('MainPID')}/status"
    seen = dict(line.split(":\t", 1) for line in box.ok("cat", main).splitlines() if ":\t" in line)
    assert seen["Uid"].split()[0] == box.ok("id", "-u", "vhost-pci").strip() != "0"
    assert int(seen["CapPrm"], 16) == int(seen["CapBnd"], 16) == 0 and seen["NoNewPrivs"].strip() == "1"
    score = box.ok("systemd-analyze", "security", "--no-pager", "vhost-pcid").splitlines()[-1]
    assert float(score.split(":")[1].split()[0]) < 1.0, score
    warned = [x for x in box.do("systemd-analyze", "verify", "--man=no", "vhost-pcid.service").stdout.splitlines() if "vhost-pci" in x]
    assert not warned


def test_reload_says_no(box):
    """systemctl reload fails with a configuration that is not valid, and the journal has what was said under the link's name."""
    box.write("etc/vhost-pci/jrn.vm", "[VM]\n")
    box.write("etc/vhost-pci/jrn.link", "[Link]\n[Driver]\nVM=jrn\n[Device]\nVM=jrn\n")
    box.ok("systemctl", "reload", "vhost-pcid")
    box.wait(lambda: "link.add" in box.ok("journalctl", "-u", "vhost-pcid", "LINK=jrn", "VM=jrn", "RULE=auto-virtio-net", "-o", "cat"),
             "not in the journal")
    box.write("etc/vhost-pci/jrn.link", "[Link]\nMode=warp\n[Driver]\nVM=jrn\n[Device]\nVM=jrn\n")
    r = box.do("systemctl", "reload", "vhost-pcid")
    assert r.returncode, "a broken configuration was reloaded"
    assert "jrn" in [x["name"] for x in box.ctl("list")["links"]]
    box.do("rm", "-f", "/etc/vhost-pci/jrn.link", "/etc/vhost-pci/jrn.vm")
    box.ok("systemctl", "reload", "vhost-pcid")


def test_reload_takes_over(box):
    """A reload is an upgrade: another main process, the same service, and no front-end notices."""
    for vm in ("e", "f"):
        box.write(f"etc/vhost-pci/{vm}.vm", "[VM]\nTrustGroup=blue\n")
    box.write("etc/vhost-pci/ef.link", "[Link]\nMode=relay\n[Driver]\nVM=e\n[Device]\nVM=f\nEndpoint=virtio-net\n")
    box.ok("systemctl", "reload", "vhost-pcid")
    a, b = (str(box.root / f"run/vhost-pci/ef.{side}.sock") for side in ("driver", "device"))
    box.wait(lambda: os.path.exists(a) and os.path.exists(b), "the reload made no sockets")
    restarts = box.unit("NRestarts")
    with vu.Nic(a) as a, vu.Nic(b) as b:
        for n in range(3):
            pid, upgrades = box.unit("MainPID"), box.ctl("status")["upgrades"]
            a.send_packet(vu.frame(n))
            assert b.recv_packet()[1] == vu.frame(n)
            box.ok("systemctl", "reload", "vhost-pcid")
            box.wait(lambda was=pid: box.unit("MainPID") not in (was, "0"), "the main process is the same")
            status = box.ctl("status")
            assert str(status["pid"]) and status["upgrades"] == upgrades + 1
            b.send_packet(vu.frame(n + 100))
            assert a.recv_packet()[1] == vu.frame(n + 100)
        assert box.unit("ActiveState") == "active" and box.unit("NRestarts") == restarts
    box.do("rm", "-f", "/etc/vhost-pci/ef.link", "/etc/vhost-pci/e.vm", "/etc/vhost-pci/f.vm")
    box.ok("systemctl", "reload", "vhost-pcid")


def test_relay_outlives_the_daemon(box):
    """A restart, SIGKILL, a hang that the watchdog ends: front-ends of a relay link stay connected. After a stop they do not."""
    for vm in ("g", "h"):
        box.write(f"etc/vhost-pci/{vm}.vm", "[VM]\nTrustGroup=blue\n")
    box.write("etc/vhost-pci/gh.link", "[Link]\nMode=relay\n[Driver]\nVM=g\n[Device]\nVM=h\nEndpoint=virtio-net\n")
    box.write(DROP_IN, "[Service]\nWatchdogSec=8\nRestartSec=100ms\n")
    box.ok("systemctl", "daemon-reload")
    box.ok("systemctl", "restart", "vhost-pcid")
    paths = [str(box.root / f"run/vhost-pci/gh.{side}.sock") for side in ("driver", "device")]
    box.wait(lambda: all(os.path.exists(p) for p in paths), "no sockets")
    features = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF)
    with vu.Nic(paths[0], features | vu.bit(vu.PACKED)) as a, vu.Nic(paths[1], features) as b:
        for n, how in enumerate(("restart", "SIGKILL", "restart", "SIGSTOP")):
            a.send_packet(vu.frame(n))
            assert b.recv_packet()[1] == vu.frame(n)
            box.wait(lambda: box.ctl("show", "gh")["kept"], "it is not kept")
            pid = box.unit("MainPID")
            if how == "restart":
                box.ok("systemctl", "restart", "vhost-pcid")
            else:
                box.ok("systemctl", "kill", "--kill-whom=main", "-s", how, "vhost-pcid")
            box.wait(lambda was=pid: box.unit("MainPID") not in (was, "0") and box.unit("ActiveState") == "active", f"not up after {how}")
            b.send_packet(vu.frame(n + 100))
            assert a.recv_packet()[1] == vu.frame(n + 100)
            assert box.ctl("show", "gh")["sides"]["driver"]["sessions"] == 1
            assert int(box.unit("NFileDescriptorStore")) < 8
        box.ok("systemctl", "stop", "vhost-pcid")
        box.wait(lambda: test_guard.hung_up(a.sock) and test_guard.hung_up(b.sock), "after the stop they are still connected")
    box.ok("systemctl", "start", "vhost-pcid")
    assert [x["name"] for x in box.ctl("list")["links"]] == ["gh"], "the control socket went with the service"
    box.do("rm", "-f", "/etc/vhost-pci/gh.link", "/etc/vhost-pci/g.vm", "/etc/vhost-pci/h.vm")
    box.ok("systemctl", "reload", "vhost-pcid")


def test_port_outlives_the_daemon(box):
    """Reload, traffic, SIGKILL, a hang that the watchdog ends: the device VM's port goes on through all of it."""
    for vm, group in (("a", "blue"), ("b", "red")):
        box.write(f"etc/vhost-pci/{vm}.vm", f"[VM]\nTrustGroup={group}\n")
    box.write("etc/vhost-pci/ab.link", "[Link]\nMode=copy\n[Driver]\nVM=a\n[Device]\nVM=b\nEndpoint=port\nAttachment=ivshmem\n")
    box.ok("systemctl", "reload", "vhost-pcid")
    driver, device = (str(box.root / f"run/vhost-pci/ab.{side}.sock") for side in ("driver", "device"))
    box.wait(lambda: os.path.exists(driver) and os.path.exists(device), "the reload made no sockets")
    # A watchdog that a test can wait for.
    box.write(DROP_IN, "[Service]\nWatchdogSec=8\nRestartSec=100ms\n")
    box.ok("systemctl", "daemon-reload")
    box.ok("systemctl", "restart", "vhost-pcid")
    with pc.Ivshmem(device) as p:
        for life, sign in enumerate((None, "SIGKILL", "SIGSTOP")):
            if sign:
                box.ok("systemctl", "kill", "--kill-whom=main", "-s", sign, "vhost-pcid")
                box.wait(lambda: box.unit("NRestarts") == str(life), f"no restart after {sign}")
                box.wait(lambda: box.unit("ActiveState") == "active", f"not up again after {sign}")
            assert p.attach(pc.ALL & ~vu.bit(vu.PACKED)) == pc.OK
            assert int(box.unit("NFileDescriptorStore")) > 3
            box.wait(lambda: not run("test", "-S", driver).returncode and test_guard.listens(driver), "no driver socket")
            with vu.Nic(driver) as nic:
                p.wait(lambda s: s.up and s.queues[1].avail)
                nic.send_packet(vu.frame(life, 100))
                assert forward(p, 1)[0] == [vu.frame(life, 100)]
            p.wait(lambda s: not s.up)
    assert "Watchdog timeout" in box.ok("journalctl", "--no-pager", "-q", "-o", "cat")


def fast_link(box):
    for vm in ("c", "d"):
        box.write(f"etc/vhost-pci/{vm}.vm", "[VM]\nTrustGroup=green\n")
    box.write("etc/vhost-pci/cd.link", "[Link]\nMode=fast\n[Driver]\nVM=c\n[Device]\nVM=d\nEndpoint=port\nAttachment=local\n")
    return [str(box.root / f"run/vhost-pci/cd.{side}.sock") for side in ("driver", "device")]


@contextlib.contextmanager
def fast_ends(box, paths):
    driver, device = paths
    box.wait(lambda: not run("test", "-S", driver).returncode and test_guard.listens(driver), "no driver socket")
    with pc.Local(device) as p, vu.Nic(driver) as nic:
        p.attach()
        p.wait(lambda s: s.up and s.queues[1].avail)
        box.wait(lambda: box.ctl("show", "cd")["kept"], "it is not kept")
        yield p, nic


def test_fast_outlives_the_daemon(box):
    """A restart, SIGKILL, a hang that the watchdog ends: neither end of a fast link notices."""
    paths = fast_link(box)
    box.write(DROP_IN, "[Unit]\nStartLimitIntervalSec=0\n[Service]\nWatchdogSec=8\nRestartSec=100ms\n")
    box.ok("systemctl", "daemon-reload")
    box.ok("systemctl", "restart", "vhost-pcid")
    with fast_ends(box, paths) as (p, nic):
        was, base, sessions = p.state(), p.state().queues[1].base, box.ctl("show", "cd")["sides"]["driver"]["sessions"]
        for n, how in enumerate(("restart", "SIGKILL", "restart", "SIGSTOP")):
            box.wait(lambda: box.ctl("show", "cd")["kept"], "it is not kept")
            pid = box.unit("MainPID")
            if how == "restart":
                box.ok("systemctl", "restart", "vhost-pcid")
            else:
                box.ok("systemctl", "kill", "--kill-whom=main", "-s", how, "vhost-pcid")
            nic.send_packet(vu.frame(n))
            got, base = forward(p, 1, base)
            assert got == [vu.frame(n)], f"after {how}"
            box.wait(lambda: box.unit("MainPID") not in (pid, "0") and box.unit("ActiveState") == "active", f"not up after {how}")
            assert box.ctl("show", "cd")["sides"]["driver"]["sessions"] == sessions, box.journal()
            s = p.state()
            assert (s.flags, s.reason, [q.run for q in s.queues]) == (was.flags, was.reason, [q.run for q in was.queues]), f"after {how}"
        assert not test_guard.hung_up(nic.sock)


def test_guard_outlives_the_daemon(box):
    """Where no next daemon comes, what the service manager ends does not end the guard before the device VM has let go."""
    paths = fast_link(box)
    box.write(DROP_IN, "[Unit]\nStartLimitIntervalSec=0\n[Service]\nWatchdogSec=8\nRestart=no\n")
    box.ok("systemctl", "daemon-reload")
    box.ok("systemctl", "restart", "vhost-pcid")
    for sign in ("SIGKILL", "SIGSTOP"):
        with fast_ends(box, paths) as (p, nic):
            test_guard.deaf(p)
            box.ok("systemctl", "kill", "--kill-whom=main", "-s", sign, "vhost-pcid")
            p.wait(lambda s: s.reason == pc.DAEMON, timeout=20)
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                assert not test_guard.hung_up(nic.sock), f"after {sign} the driver VM was set loose"
            p.sync()
            box.wait(lambda: test_guard.hung_up(nic.sock), "the driver VM is still held")
        box.wait(lambda: box.unit("ActiveState") == "failed", f"not ended after {sign}")
        box.do("systemctl", "reset-failed", "vhost-pcid")
        box.ok("systemctl", "start", "vhost-pcid")
    box.write(DROP_IN, "[Service]\nRestartSec=100ms\n")
    box.ok("systemctl", "daemon-reload")


def test_stop(box):
    """An end that is asked for is a success; nobody listens any more but the socket unit."""
    box.ok("systemctl", "stop", "vhost-pcid")
    assert (box.unit("ActiveState"), box.unit("Result"), box.unit("ExecMainStatus")) == ("inactive", "success", "0")
    assert [p.name for p in (box.root / "run/vhost-pci").glob("*.sock") if test_guard.listens(str(p))] == ["control.sock"]
