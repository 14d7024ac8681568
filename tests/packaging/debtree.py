# SPDX-License-Identifier: BSD-3-Clause
"""A fresh Debian with systemd and nothing else, and what packages need that are to be installed there: both cached, so that a test has no use
for the network."""
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

TOP = pathlib.Path(__file__).parents[2]
sys.path.append(str(TOP / "scripts/vm"))

from deb import Lock, Unavailable, cache_dir, mirrors, progress  # noqa: E402

# Packages are made for, and in, the Debian that this runs on, or another one.
HERE = dict(x.split("=", 1) for x in open("/etc/os-release").read().split() if "=" in x).get("VERSION_CODENAME")
SUITE = os.environ.get("VHOST_PCI_DEB_SUITE") or HERE
APT = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", "--no-install-recommends"]


def _run(*cmd, **how):
    r = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", stdin=subprocess.DEVNULL, **how)
    if r.returncode:
        raise Unavailable(f"{' '.join(cmd[:3])} failed: {r.stdout.strip()[-300:]}")
    return r.stdout


def _apt(tree, *args):
    env = {k: v for k, v in os.environ.items() if k.endswith("_proxy")}
    return _run("chroot", str(tree), "apt-get", "-q", "-y", *args,
                env={**env, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"})


def tree(suite):
    """Its directory, made when it is not there. Never written to by those who boot it."""
    where = pathlib.Path(cache_dir()) / f"{suite}-systemd"
    with Lock(where.name):
        if (where / ".complete").exists():
            return where
        if not shutil.which("debootstrap"):
            raise Unavailable("debootstrap is not installed (package debootstrap)")
        base, _ = mirrors()
        if not base:
            raise Unavailable("apt's configuration names no Debian mirror")
        progress(f"making {where} (one to three minutes)")
        shutil.rmtree(where, ignore_errors=True)
        script = f"/usr/share/debootstrap/scripts/{suite}"
        include = "systemd,systemd-sysv,iproute2" + (",ca-certificates" if base.startswith("https:") else "")
        _run("debootstrap", "--variant=minbase", f"--include={include}", suite, str(where), base,
             script if os.path.exists(script) else "/usr/share/debootstrap/scripts/sid")
        (where / "etc/apt/sources.list").write_text(f"deb {base} {suite} main\n")
        _apt(where, "update")
        _run("chroot", str(where), "apt-get", "clean")
        (where / ".complete").touch()
    return where


def tree_with(suite, name, packages, how="install"):
    """As tree(), with these packages installed; @name is short for them. @how: apt-get's command."""
    base = tree(suite)
    where = pathlib.Path(cache_dir()) / f"{suite}-{name}"
    with Lock(where.name):
        if (where / ".complete").exists():
            return where
        progress(f"making {where} (a minute)")
        shutil.rmtree(where, ignore_errors=True)
        _run("cp", "-a", "--reflink=auto", str(base), str(where))
        (where / ".complete").unlink()
        _apt(where, "update")
        _apt(where, "-o", "Dpkg::Options::=--force-unsafe-io", "--no-install-recommends", how, *packages)
        _run("chroot", str(where), "apt-get", "clean")
        for mark in where.glob(".fetched-*"):
            mark.unlink()
        (where / ".complete").touch()
    return where


def build_tree(suite):
    """As tree(), with what the packages are made of and checked with, also the kernel module's."""
    control = (TOP / "packaging/debian/control").read_text()
    wanted = re.search(r"^Build-Depends:\n((?: .*\n)+)", control, re.M)[1].rstrip("\n,") + ", build-essential, dkms, linux-headers-amd64, lintian"
    wanted = " ".join(wanted.replace("<!nocheck>", "").split())
    return tree_with(suite, "build-" + hashlib.sha256(wanted.encode()).hexdigest()[:12], [wanted], "satisfy")


def needs(debs):
    """Names of packages that @debs depend on, the first of alternatives, without themselves."""
    own = {d.name.split("_")[0] for d in debs}
    names = set()
    for d in debs:
        fields = _run("dpkg-deb", "-f", str(d), "Depends", "Pre-Depends")
        for dep in re.sub(r"^[A-Za-z-]+: ", "", fields, flags=re.M).replace("\n", ",").split(","):
            first = re.split(r"[ (|:]", dep.strip())[0]
            if first and first not in own:
                names.add(first)
    return sorted(names)


def fetch_for(where, debs):
    """Fetch what @debs need into the tree's apt cache: installed it is not."""
    names = needs(debs)
    mark = where / (".fetched-" + hashlib.sha256(" ".join(names).encode()).hexdigest()[:12])
    with Lock(where.name):
        if not mark.exists():
            _apt(where, "update")
            _apt(where, "--no-install-recommends", "--download-only", "install", *names)
            mark.touch()


def newer(deb, where):
    """The same package again, of the next version: Debian's tools take it for an upgrade."""
    raw = where / "raw"
    subprocess.run(["dpkg-deb", "-R", deb, raw], check=True)
    control = raw / "DEBIAN/control"
    old = subprocess.run(["dpkg-deb", "-f", deb, "Version"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    control.write_text(control.read_text().replace(old, old + "+next"))
    for unit in raw.rglob("*.service"):
        os.utime(unit)  # systemd compares times
    out = where / (deb.name.replace(old, old + "+next"))
    subprocess.run(["dpkg-deb", "-b", "--root-owner-group", raw, out], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(raw)
    return out
