# SPDX-License-Identifier: BSD-3-Clause
"""Counters of fast links: what the device VM says of them, whose word that is, and that nothing depends on it."""
import json
import subprocess

import pytest

import conftest
import portclient as pc
import vu
from portlab import PortLab
from test_control import ctl
from test_json import held
from test_metrics import http, of, samples

COUNT = 2  # state.flags
MAX = (1 << 63) - 1


@pytest.fixture
def lab(make_daemon):
    d = make_daemon()
    lab = PortLab(d, "fast", "local")
    d.start()
    yield lab
    lab.close()


def stats(d):
    return d.call("link.stats", name="ab")["links"][0]


def sent(d):
    s = stats(d)["sides"]
    return [(s[side]["tx"]["packets"], s[side]["tx"]["bytes"]) for side in ("driver", "device")]


def test_what_the_device_vm_says(lab):
    d = lab.d
    with vu.Nic(lab.drv()), lab.connect() as p:
        assert p.state().flags & COUNT
        assert p.command(pc.COUNTERS, 1, 2) == pc.NOT_ATTACHED
        assert p.attach() == pc.OK
        d.wait(lambda: d.show("ab")["status"] == "up")
        # Nobody has said anything: not a zero, nothing.
        s = held(d, "stats", "ab")["links"][0]
        assert (s["counted_by"], s["reported"]) == ("nobody", None)
        assert ctl(d, "stats", "ab").stdout.splitlines()[1].split() == ["ab", "driver", "-", "-", "0", "-", "-"]
        assert not any(k[0].startswith("vhost_pci_link_reported") for k in samples(http(d)[2]))
        assert p.command(pc.COUNTERS, 10, 1000, 1, 20, 3000, 2) == pc.OK
        s = held(d, "stats", "ab")["links"][0]
        assert s["counted_by"] == "device-vm" and sent(d) == [(10, 1000), (20, 3000)]
        assert s["sides"]["driver"]["rx"] == {"packets": 20, "bytes": 3000} and s["sides"]["device"]["rx"] == {"packets": 10, "bytes": 1000}
        assert s["reported"] == {"driver": {"packets": 10, "bytes": 1000, "dropped": 1}, "device": {"packets": 20, "bytes": 3000, "dropped": 2}}
        # What it drops is not dropped here, for a reason of ours.
        assert s["sides"]["driver"]["tx"]["dropped"] == 0
        assert held(d, "show", "ab")["reported"] == s["reported"]
        text = ctl(d, "stats", "ab").stdout
        assert text.splitlines()[1].split() == ["ab", "driver*", "10", "1000", "0", "-", "-"] and "as the link's device VM says" in text
        assert "counted    by the device VM: driver VM sent 10 packets, device VM 20" in ctl(d, "show", "ab").stdout
        m = samples(http(d)[2])
        for what, v in (("packets", (10, 20)), ("bytes", (1000, 3000)), ("drops", (1, 2))):
            assert (of(m, f"vhost_pci_link_reported_{what}_total", link="ab", side="driver"),
                    of(m, f"vhost_pci_link_reported_{what}_total", link="ab", side="device")) == v
        # The trusted counters do not take it over.
        assert ("vhost_pci_link_packets_total", ("link", "ab"), ("side", "driver")) not in m


def test_they_go_on_counting(lab):
    """Over attachments, and whatever is said."""
    d = lab.d
    with vu.Nic(lab.drv()), lab.connect() as p:
        p.attach()
        p.command(pc.COUNTERS, 10, 1000)
        p.command(pc.COUNTERS, 15, 1500)
        p.attach()  # counts from 0
        p.command(pc.COUNTERS, 1, 60)
        assert sent(d)[0] == (16, 1560)
        p.command(pc.DETACH)
        assert p.command(pc.COUNTERS, 100, 100) == pc.NOT_ATTACHED
        assert sent(d)[0] == (16, 1560)
    with lab.connect() as p:
        p.attach()
        p.command(pc.COUNTERS, 4, 40, 0, 1 << 63, (1 << 64) - 1)
        assert sent(d) == [(20, 1600), (MAX, MAX)]
        p.command(pc.COUNTERS, 2, 20, 0, 0, 0)  # smaller: begun anew
        assert sent(d) == [(22, 1620), (MAX, MAX)]
        held(d, "stats", "ab")
        samples(http(d)[2])


def test_as_often_as_it_likes(lab):
    """A guest that says it all the time delays nobody's request."""
    with lab.connect() as p:
        p.attach()
        for n in range(500):
            assert p.command(pc.COUNTERS, n, n) == pc.OK
        assert sent(lab.d)[0] == (499, 499)


def test_copy_links_are_counted_by_the_daemon(make_daemon):
    d = make_daemon()
    lab = PortLab(d, "copy", "local")
    d.start()
    with vu.Nic(lab.drv()), lab.port() as p:
        assert not p.state().flags & COUNT
        assert p.command(pc.COUNTERS, 10, 1000) == pc.OK  # and is not believed
        assert stats(d)["counted_by"] == "daemon" and stats(d)["reported"] is None and sent(d) == [(0, 0), (0, 0)]


def test_a_program_on_the_library(lab):
    """vhost-pci-fwd says what it has moved."""
    d = lab.d
    p = subprocess.Popen([str(conftest.BUILD / "fwd/vhost-pci-fwd"), "--mode", "macswap", "unix:" + lab.dev()], stderr=subprocess.DEVNULL)
    try:
        with vu.Nic(lab.drv()) as nic:
            d.wait(lambda: d.show("ab")["status"] == "up")
            for n in range(5):
                nic.send_packet(vu.frame(n, 100))
                assert nic.recv_packet()
            d.wait(lambda: stats(d)["counted_by"] == "device-vm" and sent(d) == [(5, 500), (5, 500)])
            top = json.loads(ctl(d, "top", "ab", "--rounds", "1", "--json").stdout)
            assert top["links"][0]["counted_by"] == "device-vm"
    finally:
        p.kill()
        p.wait()
