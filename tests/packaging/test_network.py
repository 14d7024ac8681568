# SPDX-License-Identifier: BSD-3-Clause
"""The files of packaging/network, in a container whose tap stands for the agent's."""
import os
import pathlib
import shutil
import tempfile

import debtree
import pytest
from box import Box, lacking

FILES = pathlib.Path(__file__).parents[2] / "packaging/network"


@pytest.fixture
def container():
    made = []

    def make(tree):
        tmp = pathlib.Path(tempfile.mkdtemp(prefix="vpnw"))
        root = [f"--directory={tree()}", "--volatile=overlay"]
        why = lacking(*root) or (None if os.path.exists("/dev/net/tun") else "there is no /dev/net/tun (modprobe tun)")
        if why:
            pytest.skip(why)
        b = Box(tmp, *root)
        made.append((b, tmp))
        return b
    try:
        yield make
    except debtree.Unavailable as e:
        pytest.skip(str(e))
    finally:
        for b, tmp in made:
            b.close()
            shutil.rmtree(tmp, ignore_errors=True)


def tree(*more):
    def get():
        try:
            return debtree.tree_with(debtree.SUITE, more[0], more) if more else debtree.tree(debtree.SUITE)
        except debtree.Unavailable as e:
            pytest.skip(str(e))
    return get


def has_address(box):
    return "inet 10.0.0.1/24" in box.do("ip", "addr", "show", "vhp0").stdout


def test_networkd(container):
    """The tap has its address before the agent gives it a carrier, when it was there before, and when it comes later."""
    box = container(tree())
    box.write("etc/systemd/network/50-vhp.network", (FILES / "50-vhp.network").read_text())
    box.ok("ip", "tuntap", "add", "dev", "vhp0", "mode", "tap", "vnet_hdr")
    box.ok("systemctl", "start", "systemd-networkd")
    box.wait(lambda: has_address(box), "no address")
    box.ok("ip", "link", "del", "vhp0")
    box.ok("ip", "tuntap", "add", "dev", "vhp0", "mode", "tap", "vnet_hdr")
    box.wait(lambda: has_address(box), "no address when it came later")


@pytest.mark.slow
def test_network_manager(container):
    """As above. NetworkManager makes the tap itself where the agent has not."""
    box = container(tree("network-manager"))
    box.write("etc/NetworkManager/conf.d/vhp.conf", (FILES / "vhp.conf").read_text())
    box.write("etc/NetworkManager/system-connections/vhp0.nmconnection", (FILES / "vhp0.nmconnection").read_text())
    box.ok("chmod", "600", "/etc/NetworkManager/system-connections/vhp0.nmconnection")
    box.ok("systemctl", "stop", "NetworkManager")
    box.ok("ip", "tuntap", "add", "dev", "vhp0", "mode", "tap", "vnet_hdr")
    box.ok("systemctl", "start", "NetworkManager")
    box.wait(lambda: has_address(box), "no address")
    box.ok("systemctl", "stop", "NetworkManager")
    box.ok("ip", "link", "del", "vhp0")
    box.ok("systemctl", "start", "NetworkManager")
    box.wait(lambda: has_address(box), "no address without the agent")
    assert "vnet_hdr on" in box.ok("ip", "-d", "link", "show", "vhp0")
