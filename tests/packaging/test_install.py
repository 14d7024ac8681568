# SPDX-License-Identifier: BSD-3-Clause
"""`make install` on a host, and `make uninstall`: in a container that is this machine, what is written thrown away."""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pytest

TOP = pathlib.Path(__file__).parents[2]
sys.path.append(str(TOP / "tests/protocol"))

from box import Box, lacking  # noqa: E402

BUILD = pathlib.Path(os.environ.get("VHOST_PCI_BUILD") or TOP / "build").resolve()
# Written on top of, not into: neither this machine's system nor this tree changes.
WRITTEN = [pathlib.Path("/usr"), pathlib.Path("/etc"), pathlib.Path("/var"), TOP] + [BUILD] * (TOP not in BUILD.parents)
ABOVE = sorted({p for d in WRITTEN for p in d.parents} - {pathlib.Path("/")} - set(WRITTEN))
HOST = ["--directory=/", "--volatile=yes", *(f"--tmpfs={p}" for p in ABOVE), *(f"--overlay={d}::{d}" for d in WRITTEN)]
# What adding a user leaves beside the files that it changes.
ASIDE = {"/etc/.pwd.lock", "/etc/passwd-", "/etc/shadow-", "/etc/group-", "/etc/gshadow-", "/etc/subuid-", "/etc/subgid-"}


@pytest.fixture(scope="module")
def box():
    why = lacking(*HOST)
    if why:
        pytest.skip(why)
    tmp = pathlib.Path(tempfile.mkdtemp(prefix="vpin"))
    b = Box(tmp, *HOST)
    b.ok("rm", "-rf", "/etc/vhost-pci")  # of the container
    b.ok("ldconfig")  # removes links that lead nowhere, whoever left them
    try:
        yield b
    finally:
        b.close()
        shutil.rmtree(tmp, ignore_errors=True)


def files(box):
    """Of the system: what there is, without what belongs to packages that are not ours."""
    found = box.ok("find", "/etc", "/usr", "-xdev", "(", "-path", "/usr/share", "-o", "-path", "/usr/local/cuda*", ")", "-prune", "-o", "-print")
    return set(found.splitlines()) - ASIDE


def make(box, what):
    return box.ok("make", "-C", str(TOP), f"BUILDDIR={BUILD}", what)


def test_builds_only_what_it_installs(tmp_path):
    """All that is installed is built, and no test: in a new build directory, by what Ninja would do."""
    build = tmp_path / "build"
    subprocess.run(["meson", "setup", build, TOP], check=True, stdout=subprocess.PIPE)
    # It ends with an error: there is nothing to install yet.
    said = subprocess.run(["make", "-C", TOP, f"BUILDDIR={build}", f"DESTDIR={tmp_path}/root", "NINJA=ninja -n", "install"],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    steps = [line for line in said.splitlines() if line.startswith("[")]
    assert not [s for s in steps if any(f" {d}/" in s for d in ("tests", "bench", "examples", "conformance"))]
    installed = json.loads(subprocess.run(["meson", "introspect", build, "--installed"], check=True, stdout=subprocess.PIPE).stdout)
    todo = [os.path.relpath(f, build) for f in installed if f.startswith(f"{build}/") and not os.path.exists(f)]
    assert len(todo) > 4
    assert not [f for f in todo if not any(s.endswith(f" target {f}") for s in steps)], steps


def test_install_and_uninstall(box):
    """Nothing but the two commands of INSTALL.md is needed; what was not there before is not there afterwards."""
    before = files(box)
    said = make(box, "install")
    assert "systemctl enable --now vhost-pcid" in said

    box.ok("systemctl", "enable", "--now", "vhost-pcid")
    assert box.unit("ActiveState") == "active" and box.unit("NRestarts") == "0"
    assert box.ctl("status")["pid"] == int(box.unit("MainPID"))
    assert box.ok("id", "-un", "vhost-pci").strip() == "vhost-pci"
    assert "libvhostpci.so.0" in box.ok("ldd", "/usr/local/bin/vhost-pci-fwd") and "not found" not in box.ok("ldd", "/usr/local/bin/vhost-pci-fwd")
    assert "vhost-pci-fwd" in box.ok("vhost-pci-fwd", "--version")
    for unit in ("vhost-pcid.service", "vhost-pcid.socket", "vhost-pci-agent@0.service", "vhost-pci-grant@vport1p1.service"):
        assert box.ok("systemctl", "show", "-P", "LoadState", unit).strip() == "loaded", unit
    rule = "/usr/local/lib/udev/rules.d/60-vhost-pci.rules"
    assert 'SUBSYSTEM!="vhost-pci"' in box.ok("cat", rule)

    # A second installation over a daemon that runs does not touch it.
    pid = box.unit("MainPID")
    assert "systemctl restart vhost-pcid" in make(box, "install")
    assert box.unit("MainPID") == pid

    box.write("etc/vhost-pci/a.vm", "[VM]\n")
    assert "/etc/vhost-pci is not empty" in make(box, "uninstall")
    assert box.do("systemctl", "is-active", "vhost-pcid").stdout.strip() == "inactive"
    assert box.do("systemctl", "show", "-P", "LoadState", "vhost-pcid").stdout.strip() == "not-found"
    after = files(box)
    assert after - before == {"/etc/vhost-pci", "/etc/vhost-pci/a.vm"}
    assert before - after == set(), "more than was installed is gone"


def test_module_from_what_is_installed(box):
    """The command of INSTALL.md that gives the module to DKMS: everything that it compiles is there."""
    if shutil.which("dkms") is None:
        pytest.skip("dkms is not installed (package dkms)")
    kernels = sorted(p.parents[1].name for p in pathlib.Path("/lib/modules").glob("*/build/Makefile"))
    if not kernels:
        pytest.skip("no kernel headers are installed (package linux-headers-amd64)")
    make(box, "install")
    source, = (box.root / "usr/local/src").glob("vhost-pci-*")
    box.ok("dkms", "build", "-k", kernels[-1], f"/usr/local/src/{source.name}")
    assert f"{kernels[-1]}, x86_64: built" in box.ok("dkms", "status", "-m", "vhost-pci")
    assert "DKMS has a module" in make(box, "uninstall")


def test_destdir(box):
    """Below another root files are put and removed, and this system is left alone."""
    root = "/tmp/below"
    before = files(box)
    box.ok("make", "-C", str(TOP), f"BUILDDIR={BUILD}", f"DESTDIR={root}", "install")
    assert box.ok("find", root, "-name", "vhost-pcid").split() == [f"{root}/usr/local/sbin/vhost-pcid"]
    assert files(box) == before
    box.ok("make", "-C", str(TOP), f"BUILDDIR={BUILD}", f"DESTDIR={root}", "uninstall")
    assert not box.ok("find", root, "-type", "f", "-o", "-type", "l").split()
