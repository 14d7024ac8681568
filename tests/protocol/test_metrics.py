# SPDX-License-Identifier: BSD-3-Clause
"""The metrics, as a scraper and as a textfile collector read them: held against two parsers, and against link.stats."""
import json
import pathlib
import re
import socket
import struct

import pytest

import portclient as pc
import vu
from portlab import PortLab
from test_control import ctl
from test_relay import SIZES, both_ways

openmetrics = pytest.importorskip("prometheus_client.openmetrics.parser")
prometheus = pytest.importorskip("prometheus_client.parser")

ROOT = pathlib.Path(__file__).parents[2]


def http(daemon, request=b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"):
    """Status line, headers, body."""
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(60)
        s.connect(str(daemon.run / "metrics.sock"))
        s.sendall(request)
        data = b"".join(iter(lambda: s.recv(65536), b""))
    head, body = data.decode().split("\r\n\r\n", 1)
    return head.split("\r\n")[0], head, body


def samples(text, parser=openmetrics):
    """{(name, (label, value)...): value}; no sample twice."""
    out = {}
    for f in parser.text_string_to_metric_families(text):
        for s in f.samples:
            key = (s.name, *sorted(s.labels.items()))
            assert key not in out, key
            out[key] = s.value
    return out


def of(s, name, **labels):
    return s[(name, *sorted(labels.items()))]


def test_what_is_counted(daemon):
    with vu.Nic(daemon.sock("ab", "driver")) as a, vu.Nic(daemon.sock("ab", "device")) as b:
        both_ways(a, b)
        status, head, body = http(daemon)
        assert status == "HTTP/1.1 200 OK" and "application/openmetrics-text" in head
        s = samples(body)
        stats = daemon.stats("ab")
        for side in ("driver", "device"):
            assert of(s, "vhost_pci_link_packets_total", link="ab", side=side) == stats[side]["tx"]["packets"] >= len(SIZES)
            assert of(s, "vhost_pci_link_bytes_total", link="ab", side=side) == stats[side]["tx"]["bytes"] >= sum(SIZES)
            assert of(s, "vhost_pci_queue_packets_total", link="ab", side=side, queue="1") == stats[side]["tx"]["packets"]
            for reason, n in stats[side]["tx"]["drops"].items():
                assert of(s, "vhost_pci_link_drops_total", link="ab", side=side, reason=reason) == n
            for q in "01":
                assert of(s, "vhost_pci_queue_broken", link="ab", side=side, queue=q) == 0
                assert 0 <= of(s, "vhost_pci_queue_depth", link="ab", side=side, queue=q) <= \
                    of(s, "vhost_pci_queue_size", link="ab", side=side, queue=q) == 256
        assert of(s, "vhost_pci_queue_depth", link="ab", side="driver", queue="0") > 0  # it waits with buffers
        assert of(s, "vhost_pci_link_up", link="ab") == 1
        assert of(s, "vhost_pci_link_up", link="cd") == 0
        assert of(s, "vhost_pci_link_info", link="ab", type="net", mode="relay", driver_vm="a", device_vm="b", endpoint="virtio-net") == 1
        assert of(s, "vhost_pci_link_state_seconds_total", link="ab", state="up") > 0
        assert of(s, "vhost_pci_link_kicks_total", link="ab", side="driver") > 0
        assert of(s, "vhost_pci_vm_memory_mapped_bytes", vm="a") > 0 == of(s, "vhost_pci_vm_memory_mapped_bytes", vm="c")
        assert of(s, "vhost_pci_vm_memory_limit_bytes", vm="a") == 1 << 40
        assert of(s, "vhost_pci_links") == 2
        assert of(s, "vhost_pci_thread_busy_seconds_total", thread="vp-data-0") > 0
        assert of(s, "vhost_pci_thread_cpu_seconds_total", thread="main") > 0
    # Counters outlive the front-ends.
    daemon.wait(lambda: daemon.show("ab")["status"] == "waiting")
    s = samples(http(daemon)[2])
    assert of(s, "vhost_pci_link_packets_total", link="ab", side="driver") >= len(SIZES)
    assert ("vhost_pci_queue_broken", ("link", "ab"), ("queue", "0"), ("side", "driver")) not in s
    assert of(s, "vhost_pci_link_state_seconds_total", link="ab", state="waiting") > 0


def test_broken_queue(daemon):
    with vu.Nic(daemon.sock("ab", "driver")) as a, vu.Nic(daemon.sock("ab", "device")):
        struct.pack_into("<H", a.mem.map, a.rings[1].avail + 2, 40000)
        a.kick(1)
        daemon.wait(lambda: daemon.show("ab")["status"] == "broken")
        assert of(samples(http(daemon)[2]), "vhost_pci_queue_broken", link="ab", side="driver", queue="1") == 1


def test_limits_of_a_vm(make_daemon):
    d = make_daemon()
    d.write("a.vm", "[VM]\nTrustGroup=test\nMaxMemory=2G\nMaxLinks=7\nPacketsPerSecond=1000\n")
    d.start()
    s = samples(http(d)[2])
    assert of(s, "vhost_pci_vm_memory_limit_bytes", vm="a") == 2 << 30
    assert of(s, "vhost_pci_vm_limit", vm="a", limit="MaxLinks") == 7
    assert of(s, "vhost_pci_vm_limit", vm="a", limit="PacketsPerSecond") == 1000


def test_formats(daemon):
    """The text file collector's format has the same samples, and the command prints either."""
    text, om = ctl(daemon, "metrics"), ctl(daemon, "metrics", "--openmetrics")
    assert text.returncode == om.returncode == 0, text.stderr + om.stderr
    assert om.stdout.endswith("# EOF\n") and "# EOF" not in text.stdout
    a, b = samples(text.stdout, prometheus), samples(om.stdout)
    assert set(a) == set(b)
    # No type that the collector's parser does not know, each metric with its own type and help.
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text.stdout, re.M))
    assert set(types.values()) == {"counter", "gauge"}
    assert {k[0] for k in a} <= set(types) and all(t == "counter" or not n.endswith("_total") for n, t in types.items())


def test_http(daemon):
    assert http(daemon, b"GET / HTTP/1.1\r\n\r\n")[0].split()[1] == "200"
    assert "version=0.0.4" in http(daemon, b"GET /metrics?x=1 HTTP/1.1\r\naccept: text/plain\r\n\r\n")[1]
    assert http(daemon, b"GET /other HTTP/1.1\r\n\r\n")[0].split()[1] == "404"
    assert http(daemon, b"POST /metrics HTTP/1.1\r\n\r\n")[0].split()[1] == "405"
    assert http(daemon, b"GET /\0 HTTP/1.1\r\n\r\n")[0].split()[1] == "400"
    assert http(daemon, b"GET /" + b"x" * 8186)[0].split()[1] == "431"


def test_slow_scraper(make_daemon):
    """One that reads nothing holds a piece and no more, and everybody else is served; links come and go under its answer."""
    d = make_daemon("--log-level", "info")
    vms = [f"vm{i:04}" + "x" * 50 for i in range(1200)]  # more than a piece and a socket's buffer hold
    for vm in vms:
        d.write(f"{vm}.vm", "[VM]\nMaxLinks=9\nMaxQueues=9\nMaxPool=8M\n")
    for i in range(100):
        d.link(f"l{i}")
    d.start()
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(60)
        s.connect(str(d.run / "metrics.sock"))
        s.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        data = s.recv(1000)
        for i in range(0, 100, 2):
            d.call("link.remove", name=f"l{i}")
        d.call("link.add", name="l0new", config={"Driver": {"VM": "a"}, "Device": {"VM": "b"}})
        data += b"".join(iter(lambda: s.recv(1 << 20), b""))
    body = data.decode().split("\r\n\r\n", 1)[1]
    assert body.endswith("# EOF\n")
    # Each once, whatever came and went. (The parsers above take seconds for this much.)
    up = re.findall(r'^vhost_pci_link_up\{link="(\w+)"\} ', body, re.M)
    assert sorted(up) == sorted([f"l{i}" for i in range(1, 100, 2)] + ["l0new"])
    limits = re.findall(r'^vhost_pci_vm_memory_limit_bytes\{vm="(\w+)"\} ', body, re.M)
    assert len(limits) == len(set(limits)) and set(limits) >= set(vms)


def test_scrapers_are_few(daemon):
    """The one that has been there longest is cut off when too many come."""
    held = []
    for _ in range(17):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(30)
        s.connect(str(daemon.run / "metrics.sock"))
        held.append(s)
    assert held[0].recv(1) == b""
    held[-1].sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    assert held[-1].recv(12) == b"HTTP/1.1 200"
    for s in held:
        s.close()


def test_every_metric_is_documented(daemon):
    with vu.Nic(daemon.sock("ab", "driver")) as a, vu.Nic(daemon.sock("ab", "device")) as b:
        both_ways(a, b, [60])
        text = http(daemon)[2]
    documented = set(re.findall(r"`(vhost_pci_\w+)`", (ROOT / "docs/control-api.md").read_text()))
    families = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    assert families == documented


def test_the_dashboard_finds_what_it_asks_for(make_daemon):
    """Every metric of the dashboard is one of the endpoint's samples, and has the labels that the expression or its legend names: with a link that
    the daemon counts, one that its device VM counts, and a packet dropped."""
    d = make_daemon()
    d.link("ab", driver="c", device="d")
    fast = PortLab(d, "fast", "local", name="near")
    d.start()
    with vu.Nic(d.sock("ab", "driver")) as a, vu.Nic(fast.drv()), fast.port() as p:
        a.send_packet(vu.frame(0, 60))  # to nobody
        d.wait(lambda: d.show("near")["status"] == "up")
        assert p.command(pc.COUNTERS, 10, 1000, 1, 20, 3000, 2) == pc.OK
        d.wait(lambda: d.stats("ab")["driver"]["tx"]["dropped"])
        labels = {}
        for name, *has in samples(http(d)[2]):
            labels.setdefault(name, set()).update(k for k, _ in has)
    panels = json.loads((ROOT / "packaging/grafana/vhost-pci.json").read_text())["panels"]
    assert len({x["id"] for x in panels}) == len(panels)
    places = [tuple(x["gridPos"][k] for k in "xy") for x in panels]
    assert len(set(places)) == len(places)
    asked = set()
    for t in (t for x in panels for t in x["targets"]):
        names = re.findall(r"vhost_pci_\w+", t["expr"])
        assert names, t
        for name in names:
            assert name in labels, f"{name}: the endpoint has no such sample"
            # "instance" is the scraper's.
            wants = set(re.findall(r"(\w+)(?:=~|!=|!~|=)\"", t["expr"])) - {"instance"} | set(re.findall(r"{{(\w+)}}", t["legendFormat"])) - {"instance"}
            assert wants <= labels[name], (name, wants - labels[name])
        asked.update(names)
    assert {n for n in labels if "_reported_" in n} <= asked
