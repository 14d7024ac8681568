# SPDX-License-Identifier: BSD-3-Clause
"""`make deb`, and what an administrator does with the packages, on a Debian that has systemd and nothing else."""
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile

import pytest

TOP = pathlib.Path(__file__).parents[2]
sys.path.append(str(TOP / "tests/protocol"))

import debtree  # noqa: E402
from debtree import APT, HERE, SUITE, newer  # noqa: E402
from box import PLAIN, Box, lacking, machine, run  # noqa: E402

PACKAGES = {"vhost-pcid", "vhost-pci-agent", "vhost-pci-dkms", "vhost-pci-grant", "libvhostpci0", "libvhostpci-dev", "vhost-pci-doc"}
LINK = "[Driver]\nVM=a\n[Device]\nVM=b\n"


@pytest.fixture(scope="module")
def box(debs):
    """A fresh Debian, with the packages and newer ones of them in /debs."""
    tmp = pathlib.Path(tempfile.mkdtemp(prefix="vpdeb"))
    b = None
    try:
        try:
            tree = debtree.tree(SUITE)
            # What is compiled at installation needs a compiler, which is tested elsewhere.
            mine = [p for n, p in debs.items() if n != "vhost-pci-dkms"]
            debtree.fetch_for(tree, mine)
        except debtree.Unavailable as e:
            pytest.skip(str(e))
        (tmp / "debs").mkdir()
        for p in mine:
            shutil.copy(p, tmp / "debs")
        (tmp / "next").mkdir()
        for p in mine:
            newer(p, tmp / "next")
        root = [f"--directory={tree}", "--volatile=overlay", f"--bind-ro={tmp}:/debs"]
        why = lacking(*root)
        if why:
            pytest.skip(why)
        b = Box(tmp, *root)
        yield b
    finally:
        if b:
            b.close()
        shutil.rmtree(tmp, ignore_errors=True)


def builder():
    """The root directory of the system that the packages are made in."""
    try:
        return "/" if SUITE == HERE else str(debtree.build_tree(SUITE))
    except debtree.Unavailable as e:
        pytest.skip(str(e))


def inside(where, debs, *cmd):
    """Runs there, with the directory @debs as /debs; what is written is thrown away."""
    root = ["--directory=/", "--volatile=yes", *(f"--overlay={d}::{d}" for d in ("/usr", "/etc", "/var"))]
    if where != "/":
        root = [f"--directory={where}", "--volatile=overlay"]
    why = lacking(*root)
    if why:
        pytest.skip(why)
    return run("systemd-nspawn", *PLAIN, *root, f"--bind-ro={debs}:/debs", "--pipe", machine(), *cmd)


def files(box):
    found = box.ok("find", "/etc", "/usr", "/lib/systemd", "/var/lib/systemd", "/run", "-xdev", "(", "-path", "/run/systemd", "-o", "-path", "/run/udev", ")",
                   "-prune", "-o", "-print")
    return {f for f in found.splitlines() if "vhost" in f}


def test_all_packages(debs):
    assert set(debs) == PACKAGES


def test_lintian(debs):
    """Overridden: a tag each in two packages, with the reason beside it."""
    if SUITE == HERE and not shutil.which("lintian"):
        pytest.skip("lintian is not installed (package lintian)")
    changes, = debs["vhost-pcid"].parent.glob("*.changes")
    how = "lintian", "--allow-root", "--no-cfg"
    r = run(*how, str(changes)) if SUITE == HERE else inside(builder(), changes.parent, *how, f"/debs/{changes.name}")
    said = [x for x in r.stdout.splitlines() if x[:2] in ("E:", "W:")]
    assert not r.returncode and not said, r.stdout
    overrides = (TOP / "packaging/debian").glob("*lintian-overrides*")
    assert sorted(p.name for p in overrides) == ["vhost-pci-agent.lintian-overrides", "vhost-pci-doc.lintian-overrides"]


def install(box, where):
    return box.ok(*APT, "install", *[f"/debs/{where}/{p.name}" for p in sorted((box.root / f"debs/{where}").iterdir())])


def test_installation_starts_the_service(box):
    install(box, "debs")
    assert box.unit("ActiveState") == "active" and box.unit("NRestarts") == "0"
    assert box.unit("UnitFileState") == "enabled"
    assert box.ctl("status")["pid"] == int(box.unit("MainPID"))
    assert box.ok("id", "-un", "vhost-pci").strip() == "vhost-pci"
    assert box.ok("stat", "-c", "%U %a", "/etc/vhost-pci").strip() == "root 755"
    assert "vhost-pci-fwd" in box.ok("vhost-pci-fwd", "--version")
    assert not box.ok("systemctl", "--failed", "--plain", "--no-legend").strip()
    for unit in ("vhost-pci-agent@0.service", "vhost-pci-grant@vport1p1.service"):
        assert box.ok("systemctl", "show", "-P", "LoadState", unit).strip() == "loaded"


def test_upgrade_of_the_agent(box):
    """systemd has read the new unit of an instance that it knows (here: because another unit comes after it; a container has no ports)."""
    if box.do("sh", "-c", "command -v vhost-pcictl").returncode:
        pytest.skip("the packages were not installed")
    box.ok("systemd-run", "--unit=after", "-p", "After=vhost-pci-agent@0.service", "sleep", "infinity")
    box.ok(*APT, "install", *[f"/debs/next/{p.name}" for p in (box.root / "debs/next").iterdir() if p.name.startswith(("vhost-pci-agent_", "libvhostpci"))])
    assert box.ok("systemctl", "show", "-P", "NeedDaemonReload", "vhost-pci-agent@0").strip() == "no"
    box.ok("systemctl", "stop", "after")


def test_upgrade_reloads_and_never_restarts(box):
    """The new program takes over from the old one, and who is connected stays so; a configuration that was written in between
    has been read."""
    if box.do("sh", "-c", "command -v vhost-pcictl").returncode:
        pytest.skip("the packages were not installed")
    for vm in "ab":
        box.write(f"etc/vhost-pci/{vm}.vm", "[VM]\n")
    box.write("etc/vhost-pci/before.link", LINK)
    box.ok("systemctl", "reload", "vhost-pcid")
    box.wait(lambda: not box.do("vhost-pcictl", "show", "before").returncode, "the reload made no link")
    pid = box.unit("MainPID")
    with socket.socket(socket.AF_UNIX) as vmm:
        vmm.connect(str(box.root / "run/vhost-pci/before.driver.sock"))
        box.wait(lambda: box.ctl("show", "before")["sides"]["driver"]["connected"], "not connected")
        box.write("etc/vhost-pci/during.link", LINK)
        said = install(box, "next")
        assert "+next" in box.ok("dpkg-query", "-W", "-f", "${Version}", "vhost-pcid"), said
        box.wait(lambda: not box.do("vhost-pcictl", "show", "during").returncode, "an upgrade did not reload")
        assert (box.unit("NRestarts"), box.unit("ActiveState")) == ("0", "active")
        assert box.unit("MainPID") != pid and box.ctl("status")["pid"] == int(box.unit("MainPID"))
        assert box.ctl("show", "during")["status"] == "waiting"
        assert box.ctl("show", "before")["sides"]["driver"]["sessions"] == 1 and box.ctl("show", "before")["sides"]["driver"]["connected"]
    assert "until it is restarted" not in said
    assert box.unit("NeedDaemonReload") == "no"


def test_upgrade_of_a_service_that_is_off(box):
    """Who has stopped and disabled it does not get it back with an upgrade."""
    if box.do("sh", "-c", "command -v vhost-pcictl").returncode:
        pytest.skip("the packages were not installed")
    box.ok("systemctl", "disable", "--now", "vhost-pcid")
    box.ok(*APT, "install", "--reinstall", *[f"/debs/next/{p.name}" for p in (box.root / "debs/next").glob("vhost-pcid_*")])
    assert box.unit("ActiveState") == "inactive" and box.unit("UnitFileState") == "disabled"
    box.ok("systemctl", "enable", "--now", "vhost-pcid")


def test_removal_and_purge(box):
    """Removal leaves the configuration, purge leaves nothing of it; the user stays, as Debian's do."""
    if box.do("sh", "-c", "command -v vhost-pcictl").returncode:
        pytest.skip("the packages were not installed")
    box.write("etc/vhost-pci/agent/0.conf", "AGENT_ARGS=--tap lan0\n")
    box.ok("systemctl", "enable", "vhost-pci-agent@0")
    names = sorted(PACKAGES - {"vhost-pci-dkms"})
    box.ok(*APT, "remove", *names)
    assert box.do("systemctl", "is-active", "vhost-pcid").stdout.strip() == "inactive"
    left = files(box)
    assert "/etc/vhost-pci/before.link" in left and not [f for f in left if f.startswith("/usr")]
    box.ok("dpkg", "--purge", *names)
    assert files(box) == set()


def test_module_is_built(debs):
    """vhost-pci-dkms, on a system with a compiler and a kernel's headers: installed means built, and removed means gone."""
    where = builder()
    if not shutil.which("dkms", path=f"{where}/usr/sbin"):
        pytest.skip("dkms is not installed (package dkms)")
    kernels = sorted(p.parents[1].name for p in pathlib.Path(where).glob("lib/modules/*/build/Makefile"))
    if not kernels:
        pytest.skip("no kernel headers are installed (package linux-headers-amd64)")
    deb = debs["vhost-pci-dkms"]
    script = f"""set -e
        dpkg -i /debs/{deb.name}
        dkms status -m vhost-pci
        modinfo -k {kernels[-1]} vhost_pci
        apt-get -q -y purge vhost-pci-dkms
        dkms status -m vhost-pci; find /usr/src /var/lib/dkms /lib/modules -name '*vhost[-_]pci*' | sed 's/^/LEFT /'"""
    r = inside(where, deb.parent, "sh", "-c", script)
    assert not r.returncode, r.stdout
    assert f"{kernels[-1]}, x86_64: installed" in r.stdout and "license:        GPL" in r.stdout, r.stdout
    assert "LEFT" not in r.stdout, r.stdout
