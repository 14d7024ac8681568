# SPDX-License-Identifier: BSD-3-Clause
"""examples/template: a stranger copies it, builds it against an installed library, and it is a data path."""
import os
import pathlib
import shutil
import signal
import subprocess

import pytest

import vu
from conftest import BUILD

TEMPLATE = pathlib.Path(__file__).parents[2] / "examples/template"
FEATURES = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment of one who has installed the library below another root."""
    root = tmp_path_factory.mktemp("root")
    subprocess.run(["meson", "install", "-C", str(BUILD), "--no-rebuild", "--quiet", "--tags", "devel,runtime",
                    "--destdir", str(root)], check=True, stdout=subprocess.DEVNULL)
    pc, = root.rglob("libvhostpci.pc")
    lib, = {str(p.parent) for p in root.rglob("libvhostpci.so*")}
    return dict(os.environ, PKG_CONFIG_PATH=str(pc.parent), PKG_CONFIG_SYSROOT_DIR=str(root), LD_LIBRARY_PATH=lib)


@pytest.fixture(scope="module", params=["make", "meson"])
def program(request, installed, tmp_path_factory):
    """A copy of the directory, built as its README says."""
    own = tmp_path_factory.mktemp("own") / "mine"
    shutil.copytree(TEMPLATE, own)
    if request.param == "make":
        subprocess.run(["make", "CFLAGS=-O1 -Wall -Wextra -Werror"], cwd=own, env=installed, check=True)
        return own / "template", installed
    subprocess.run(["meson", "setup", "--werror", "build"], cwd=own, env=installed, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["ninja", "-C", "build"], cwd=own, env=installed, check=True, stdout=subprocess.DEVNULL)
    return own / "build/template", installed


def answers(nic, packets, pair=0):
    """Each packet comes back with its addresses exchanged."""
    for n in range(packets):
        data = vu.frame(n, 60 + 29 * n)
        nic.send_packet(data, pair=pair)
        got = nic.recv_packet(pair=pair)
        assert got is not None and got[1] == data[6:12] + data[:6] + data[12:], (n, got)


def test_template(program, make_daemon):
    """It follows a driver VM that goes and another one that comes, on more than one pair, and ends when it is told to."""
    path, env = program
    d = make_daemon()
    d.link("nf", Device_Endpoint="port", Device_Attachment="local", Link_Mode="fast", Link_Queues="2")
    d.start()
    p = subprocess.Popen([str(path), "unix:" + d.sock("nf", "device")], env=env, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(2):
            with vu.Nic(d.sock("nf", "driver"), features=FEATURES | vu.bit(vu.NET_MQ), pairs=2) as nic:
                d.wait(lambda: d.show("nf")["status"] == "up")
                answers(nic, 20)
                answers(nic, 20, pair=1)
            d.wait(lambda: d.show("nf")["status"] != "up")
        p.send_signal(signal.SIGTERM)
        out, said = p.communicate(timeout=60)
    finally:
        p.kill()
        p.wait()
    assert (p.returncode, out) == (0, "received 80, sent 80\n"), said
    assert "template: the link is up" in said, said


def test_template_says_what_is_wrong(program, tmp_path):
    path, env = program
    p = subprocess.run([str(path), "unix:%s/none" % tmp_path], env=env, capture_output=True, text=True, timeout=60)
    assert p.returncode == 1 and "none: No such file or directory" in p.stderr, p.stderr
    p = subprocess.run([str(path)], env=env, capture_output=True, text=True, timeout=60)
    assert p.returncode == 2 and "usage: template PORT" in p.stderr
