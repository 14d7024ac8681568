# SPDX-License-Identifier: BSD-3-Clause
"""What vhost-pcictl --json prints, held against docs/schema/vhost-pcictl.json in the states that there are."""
import json
import pathlib
import subprocess

import pytest

import conftest
import vu
from portlab import PortLab
from test_control import ctl
from test_relay import both_ways

jsonschema = pytest.importorskip("jsonschema")

SCHEMA = json.loads((pathlib.Path(__file__).parents[2] / "docs/schema/vhost-pcictl.json").read_text())
# Nothing that they print is of a form.
WITHOUT = {"metrics", "remove"}


def held(daemon, command, *args):
    r = ctl(daemon, command, *args, "--json")
    assert r.returncode == 0, r.stderr
    return held_text(command, r.stdout)


def held_text(command, text):
    o = json.loads(text)
    jsonschema.Draft7Validator({**SCHEMA, "$ref": f"#/definitions/{command}"}).validate(o)
    return o


def everything(daemon, link):
    o = held(daemon, "show", link)
    assert o["name"] == link
    held(daemon, "stats")
    assert [x["name"] for x in held(daemon, "stats", link)["links"]] == [link]
    brief = {x["name"]: x for x in held(daemon, "list")["links"]}
    assert {k: o[k] for k in brief[link]} == brief[link]
    for c in ("status", "doctor"):
        held(daemon, c)
    for c in ("explain", "up", "down", "up"):
        held(daemon, c, link)
    held_text("top", ctl(daemon, "top", link, "--rounds", "1", "--json").stdout)


def test_commands_are_all_there(daemon):
    usage = ctl(daemon, "--help").stdout
    commands = {x.split()[0] for x in usage.splitlines() if x.startswith("  ") and x[2].isalpha()}
    assert commands - WITHOUT == set(SCHEMA["definitions"])


def test_relay(daemon):
    everything(daemon, "ab")
    with vu.Nic(daemon.sock("ab", "driver")) as a, vu.Nic(daemon.sock("ab", "device")) as b:
        both_ways(a, b, [60])
        everything(daemon, "ab")


@pytest.mark.parametrize("mode", ["copy", "fast"])
@pytest.mark.parametrize("attachment", ["local", "shmem", "ivshmem"])
def test_port(make_daemon, mode, attachment):
    d = make_daemon()
    lab = PortLab(d, mode, attachment)
    d.start()
    try:
        held(d, "show", "ab")
        with vu.Nic(lab.drv()), lab.port():
            held(d, "show", "ab")
            held(d, "stats", "ab")
        if attachment != "local":
            held(d, "generate", "ab", "--qemu", "--driver")
    finally:
        lab.close()


def test_grant(make_daemon):
    d = make_daemon()
    d.link("ab", Device_Endpoint="port", Device_Attachment="shmem", Link_Mode="grant")
    d.start()
    held(d, "grant", "ab")
    with vu.Nic(d.sock("ab", "driver")) as nic:
        assert held(d, "grant", "ab", f"{nic.mem.gpa:#x}+4M")["state"] == "granted"
        everything(d, "ab")
        held(d, "generate", "ab", "--qemu", "--driver")
        held(d, "grant", "ab", "--drop")
    for bad in ("0x1000", "0x1000+", "+4M", "1+2x", "4M"):
        r = ctl(d, "grant", "ab", bad)
        assert r.returncode == 2 and "address and size like" in r.stderr


def test_disk(make_daemon):
    d = make_daemon()
    d.link("disk", Link_Type="blk", Device_Endpoint="port", Device_Attachment="local", Link_Mode="copy")
    d.link("host", Link_Type="blk", Device_Endpoint="vhost-user")
    d.start()
    for link in ("disk", "host"):
        held(d, "show", link)
        held(d, "stats", link)
        held(d, "profile", link)


def test_changes(daemon):
    held(daemon, "add", "new", "Driver.VM=a", "Device.VM=b")
    held(daemon, "reload")
    held(daemon, "log-level", "info")
    assert ctl(daemon, "remove", "new", "--json").returncode == 0
    conftest.adopt_orphans()
    pid = held(daemon, "upgrade")["pid"]
    assert daemon.proc.wait(conftest.PATIENCE) == 0
    daemon.proc = conftest.Adopted(pid)


def test_events(daemon):
    p = subprocess.Popen([str(conftest.BUILD / "cli/vhost-pcictl"), "--control", str(daemon.run / "control.sock"), "events", "--json"],
                         stdout=subprocess.PIPE, text=True)
    try:
        daemon.wait(lambda: len(list(pathlib.Path(f"/proc/{p.pid}/fd").iterdir())) > 3)
        for _ in range(200):
            daemon.call("link.down", name="ab")
            daemon.call("link.up", name="ab")
        assert held_text("events", p.stdout.readline())["event"] == "link.state"
    finally:
        p.kill()
        p.wait()


def test_numbers_are_numbers(daemon):
    """No string of digits anywhere."""
    def look(o, path):
        if isinstance(o, dict):
            for k, v in o.items():
                look(v, f"{path}.{k}")
        elif isinstance(o, list):
            for v in o:
                look(v, path)
        elif isinstance(o, str):
            assert not o.isdigit(), path
    with vu.Nic(daemon.sock("ab", "driver")), vu.Nic(daemon.sock("ab", "device")):
        for command in ("list", "stats", "status", "doctor"):
            look(json.loads(ctl(daemon, command, "--json").stdout), command)
        look(json.loads(ctl(daemon, "show", "ab", "--json").stdout), "show")
        look(json.loads(ctl(daemon, "top", "--rounds", "1", "--json").stdout), "top")


def test_doctor_finds_drops(daemon):
    """What happens while it watches, by name and with the way out; only of the link that was asked for."""
    p = None
    with vu.Nic(daemon.sock("ab", "driver")) as a:
        p = subprocess.Popen([str(conftest.BUILD / "cli/vhost-pcictl"), "--control", str(daemon.run / "control.sock"), "doctor", "ab", "--json"],
                             stdout=subprocess.PIPE, text=True)
        while p.poll() is None:
            a.send_packet(vu.frame(1))
        found = held_text("doctor", p.stdout.read())["findings"]
    drops, = [x for x in found if x["check"] == "drops"]
    assert drops["subject"] == "link ab" and drops["level"] == "problem" and "no-peer" in drops["what"] and "vhost-pcictl show" in drops["way_out"]
    assert [x["subject"] for x in found if x["check"] == "status"] == ["link ab"]
    assert "cd" not in {x["subject"].split()[-1] for x in found}
