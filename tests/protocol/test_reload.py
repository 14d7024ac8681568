# SPDX-License-Identifier: BSD-3-Clause
"""A reload changes what changed: what each key does to a link that runs is what the table of keys says."""
import os
import pathlib
import re
import signal
import subprocess

import pytest

import conftest
import portclient as pc
import vu
from portlab import started
from test_control import ctl
from test_copy import PATH, Device
from test_relay import both_ways

TOP = pathlib.Path(__file__).parents[2]
EFFECTS = {(s, k): e for s, k, e in
           re.findall(r'\{ "(\w+)", "(\w+)", E\((\w+)\)', (TOP / "daemon/conf/keys.c").read_text())}

# Whose links became what.
NOTHING = {"added": [], "removed": [], "anew": [], "altered": [], "kept": []}
RELAY = {}
PORT = {"Link.Mode": "copy", "Device.Endpoint": "port", "Device.Attachment": "local"}
QMP = {"Driver.QMP": "/nowhere/a", "Driver.NIC": "net0"}
IVSHMEM = {**PORT, "Device.Attachment": "ivshmem", "Device.QMP": "/nowhere/b", "Device.HotplugBus": "rp0"}
BLK = {**PORT, "Link.Type": "blk", "Profile.Capacity": "1G"}
OTHER = {**PORT, "Link.Type": "25", "Profile.Features": "0x1"}
GRANT = {**PORT, "Link.Mode": "grant", "Driver.Grant": "memory", "Driver.GrantSize": "128M"}

# What there is before, and then: where it differs by more than one key, the first of the second dictionary is the one.
CASES = [
    (RELAY, {"Link.Mode": "relay"}), (PORT, {"Link.Mode": "auto"}),
    (BLK, {"Link.Type": "25", "Profile.Capacity": None, "Profile.Features": "0x1"}), (BLK, {"Link.DeviceType": "blk", "Link.Type": None}),
    (RELAY, {"Link.Migration": "no"}), (PORT, {"Link.Migration": "no"}),
    (RELAY, {"Link.Queues": "2"}), (PORT, {"Link.Queues": "2"}),
    (RELAY, {"Link.State": "down"}), (PORT, {"Link.State": "down"}),
    (RELAY, {"Link.Description": "x"}), (PORT, {"Link.Description": "x"}), (IVSHMEM, {"Link.Description": "x"}),
    (RELAY, {"Driver.VM": "c"}), (PORT, {"Driver.VM": "c"}),
    (RELAY, {"Driver.Socket": "other"}), (RELAY, {"Driver.SocketMode": "client", "Driver.Socket": "other"}),
    (GRANT, {"Driver.Grant": "swiotlb", "Driver.GrantSize": None}), (GRANT, {"Driver.GrantSize": "256M"}),
    ({**GRANT, "Driver.Grant": "swiotlb", "Driver.GrantSize": None}, {"Driver.GrantSocket": "other"}),
    (PORT, {"Driver.QMP": "/nowhere/a", "Driver.NIC": "net0"}), ({**PORT, **QMP}, {"Driver.QMP": None, "Driver.NIC": None}),
    ({**PORT, **QMP}, {"Driver.QMP": "/nowhere/c"}), ({**PORT, **QMP}, {"Driver.NIC": "net1"}),
    ({**PORT, **QMP}, {"Driver.QMPMode": "server", "Driver.QMP": "a.qmp"}),
    (RELAY, {"Device.VM": "c"}), (PORT, {"Device.VM": "c"}),
    (RELAY, {"Device.Socket": "other"}), (PORT, {"Device.Socket": "other"}),
    (RELAY, {"Device.SocketMode": "client", "Device.Socket": "other"}),
    (PORT, {"Device.Endpoint": "vhost-user", "Device.Attachment": None}), (PORT, {"Device.Attachment": "shmem"}),
    (IVSHMEM, {"Device.QMP": "/nowhere/c"}), (IVSHMEM, {"Device.QMPMode": "server", "Device.QMP": "b.qmp"}),
    (IVSHMEM, {"Device.HotplugBus": "rp1 rp0"}),
    ({**PORT, "Device.Attachment": "shmem", "Device.ApertureSize": "1G"}, {"Device.ApertureSize": "2G"}),
    (PORT, {"Device.PoolSize": "16M"}), (PORT, {"Device.PackedRings": "yes"}), (PORT, {"Device.PlainRings": "yes"}),
    (BLK, {"Profile.Capacity": "2G"}), (BLK, {"Profile.BlockSize": "4096"}), (BLK, {"Profile.ReadOnly": "yes"}),
    ({**PORT, "Link.Type": "fs"}, {"Profile.Tag": "data"}),
    ({**PORT, "Link.Type": "vsock", "Profile.CID": "5"}, {"Profile.CID": "6"}),
    ({**OTHER, "Profile.Features": "0x1"}, {"Profile.ConfigSize": "8"}), (OTHER, {"Profile.Features": "0x3"}),
    (RELAY, {"Net.DriverMAC": "52:54:00:00:00:01"}), (PORT, {"Net.DriverMAC": "52:54:00:00:00:01"}),
    (IVSHMEM, {"Net.DriverMAC": "52:54:00:00:00:01"}), (RELAY, {"Net.DeviceMAC": "52:54:00:00:00:02"}),
    (RELAY, {"Net.MTU": "9000"}), (PORT, {"Net.MTU": "9000"}), (IVSHMEM, {"Net.MTU": "9000"}),
    (RELAY, {"Net.PacketsPerSecond": "1000"}), (PORT, {"Net.PacketsPerSecond": "1000"}),
    (RELAY, {"Net.BitsPerSecond": "1G"}), (PORT, {"Net.BitsPerSecond": "1G"}), (PORT, {"Net.Offloads": "csum"}),
    (RELAY, {"Net.Offloads": "csum"}),
]


def name(case):
    key = next(iter(case[1]))
    return f"{key}-{case[0].get('Device.Attachment', 'relay')}-{case[1][key]}"


def write(d, keys):
    sections = {}
    for k, v in {"Driver.VM": "a", "Device.VM": "b", **keys}.items():
        section, key = k.split(".")
        if v is not None:
            sections.setdefault(section, []).append(f"{key}={v}\n")
    d.write("ab.link", "".join(f"[{s}]\n" + "".join(lines) for s, lines in sections.items()))


def test_every_key_has_a_case():
    keys = {k for k in EFFECTS if k[0] not in ("Daemon", "Control", "Metrics", "VM")}
    assert keys == {tuple(next(iter(after)).split(".")) for _, after in CASES}
    assert len(keys) > 35


@pytest.mark.parametrize("case", CASES, ids=map(name, CASES))
def test_effect_of_a_key(make_daemon, case):
    before, after = case
    key = tuple(next(iter(after)).split("."))
    effect = EFFECTS[key]
    d = make_daemon()
    write(d, before)
    d.start()
    client = {None: vu.Frontend, "local": pc.Local, "shmem": pc.Shmem, "ivshmem": pc.Ivshmem}[before.get("Device.Attachment")]
    device = lambda: d.show("ab")["sides"]["device"]
    with vu.Frontend(d.sock("ab", "driver")) as drv, client(d.sock("ab", "device")) as dev:
        assert drv.alive()
        there = dev.alive if client is vu.Frontend else lambda: device()["online"]
        d.wait(there)
        since = None if client is vu.Frontend else device()["epoch"]
        write(d, {**before, **after})
        got = d.call("daemon.reload", replug="yes")
        # Two names of one key, and the mode that is so anyway, change nothing.
        assert got["changed"] == (key not in (("Link", "DeviceType"), ("Link", "State"))), d.log()
        if got["changed"]:
            assert {k: got[k] for k in NOTHING} == {**NOTHING, "anew" if effect == "ANEW" else "altered": ["ab"]}
        if key == ("Link", "DeviceType"):
            effect = "LIVE"
        if effect == "ANEW":
            assert not drv.alive() and not there()
            return
        if effect != "AGAIN" or client is not vu.Frontend:
            assert there(), f"{key}: the device side is not there any more"
        if effect == "AGAIN":
            d.wait(lambda: not drv.alive())
            if client is vu.Frontend:
                d.wait(lambda: not dev.alive())
        else:
            assert drv.alive() and d.show("ab")["sides"]["driver"]["sessions"] == 1
            if since is not None:
                assert device()["epoch"] == since
    if key == ("Net", "MTU"):
        assert d.show("ab")["mtu"] == 9000
        with vu.Frontend(d.sock("ab", "driver")) as drv:
            assert drv.ask_u64(vu.GET_FEATURES) & vu.bit(3), "VIRTIO_NET_F_MTU"
    # The next one has nothing left to do.
    assert d.call("daemon.reload") == {"changed": 0, "vms": 0, "links": 1, "warnings": [], **NOTHING}


def test_rates_of_a_link_that_runs(daemon):
    """They come, change and go while packets flow, and nobody connects again."""
    with vu.Nic(daemon.sock("ab", "driver")) as a, vu.Nic(daemon.sock("ab", "device")) as b:
        both_ways(a, b)

        def sent(n):
            """How many of n packets were dropped for a rate."""
            was = daemon.stats("ab")["driver"]["tx"]
            for i in range(n):
                a.send_packet(vu.frame(i, 100))
                while b.poll_packet():
                    pass
            now = lambda: daemon.stats("ab")["driver"]["tx"]
            daemon.wait(lambda: now()["packets"] + now()["dropped"] == was["packets"] + was["dropped"] + n)
            return now()["drops"]["rate"] - was["drops"]["rate"]

        assert sent(10) == 0
        daemon.link("ab", Net_PacketsPerSecond=1)
        assert daemon.call("daemon.reload")["changed"] == 1
        assert sent(120) >= 40
        daemon.link("ab")
        assert daemon.call("daemon.reload")["changed"] == 1
        assert sent(100) == 0
        assert daemon.show("ab")["packets_per_second"] is None
        assert daemon.show("ab")["sides"]["driver"]["sessions"] == 1


def test_links_are_named(daemon):
    """What became of which link, for people and for programs. A link added at run time is none of a reload's, until a file has its name."""
    for link in ("ef", "gh", "ij"):
        daemon.link(link)
    assert daemon.call("daemon.reload")["added"] == ["ef", "gh", "ij"]
    for link in ("mine", "soon"):
        daemon.call("link.add", name=link, config={"Driver": {"VM": "a"}, "Device": {"VM": "b"}})
    (daemon.conf / "cd.link").unlink()
    (daemon.conf / "ef.link").unlink()
    daemon.link("gh", Net_PacketsPerSecond=7)
    daemon.link("ij", Link_Queues=2)
    daemon.link("kl")
    daemon.link("soon", Net_PacketsPerSecond=7)
    r = ctl(daemon, "reload")
    head, *rest = r.stdout.splitlines()
    assert head == "6 links changed, 0 VMs changed, 6 links in all" and r.stderr == ""
    assert {line.partition(": ")[0]: set(line.partition(": ")[2].split(", ")) for line in rest} == {
        "added": {"kl"}, "removed": {"cd", "ef"}, "made anew": {"ij"}, "changed as they ran": {"gh", "soon"}}
    assert ctl(daemon, "reload").stdout == "0 links changed, 0 VMs changed, 6 links in all\n"


def test_mode_of_a_runtime_link(make_daemon):
    """It is named, too, when policy has another mode for it now."""
    d = make_daemon()
    d.start()
    d.call("link.add", name="mine", config={"Driver": {"VM": "a"}, "Device": {"VM": "b", "Endpoint": "port", "Attachment": "local"}})
    assert d.show("mine")["mode"] == "fast"
    d.write("b.vm", "[VM]\nTrustGroup=elsewhere\n")
    assert d.call("daemon.reload")["anew"] == ["mine"] and d.show("mine")["mode"] == "copy"


STRAY = ["disk.lnk", "a.vm.txt", "cd.LINK", "extra.conf", "vhost-pci.config", "cd.lnk.d/x.conf", "cd.link.d/10-rate.cnf", "disk"]
LEFT = [".ab.link.swp", "ab.link~", "#ab.link#", "ab.link.dpkg-old", "b.vm.dpkg-dist", "ab.link.ucf-dist", "ab.link.bak", "README", "README.md",
        "agent/0.conf", "cd.link.d/README", "cd.link.d/x.conf~"]


def test_misspelt_names(daemon):
    """Each is named with what is expected, at the start, by a reload and by --check-config; what lies there by habit is not."""
    for name in LEFT:
        daemon.write(name, "")
    check = lambda: subprocess.run(daemon.command("--check-config"), capture_output=True, text=True, timeout=conftest.PATIENCE)
    assert daemon.call("daemon.reload")["warnings"] == [] and check().stderr == ""
    for name in STRAY:
        daemon.write(name, "[Link]\n")
    expected = {f"{daemon.conf / (n.partition('/')[0] if '.lnk.d/' in n else n)} is not read: " +
                ("a drop-in is called NAME.conf" if ".link.d/" in n else
                 "a directory of drop-ins is called NAME.link.d, NAME.vm.d or vhost-pci.conf.d" if "/" in n else
                 "a file here is called NAME.link, NAME.vm or vhost-pci.conf") + "; rename it, or move it away" for n in STRAY}
    got = daemon.call("daemon.reload")
    assert set(got["warnings"]) == expected and len(got["warnings"]) == len(expected) and got["changed"] == 0
    r = ctl(daemon, "reload")
    assert r.returncode == 0 and set(r.stderr.splitlines()) == {f"vhost-pcictl: reload: warning: {x}" for x in expected}
    r = check()
    assert r.returncode == 0 and set(r.stderr.splitlines()) == {f"warning: {x}" for x in expected}
    daemon.stop()
    before = daemon.log().count("is not read")
    daemon.start()
    assert daemon.log().count("is not read") == before + len(expected)
    # Also beside an error, which it may be the reason of.
    daemon.write("cd.link", "[Driver]\nVM=a\n[Device]\nVM=disk\n")
    r = check()
    assert r.returncode == 1 and "write a file disk.vm" in r.stderr and f"{daemon.conf}/disk is not read" in r.stderr


def test_many_misspelt_names(daemon):
    for i in range(50):
        daemon.write(f"{i}.lnk", "")
    warnings = daemon.call("daemon.reload")["warnings"]
    assert len(warnings) == 21 and warnings[-1] == f"{daemon.conf} has 30 more files that are not read"


def test_limits_of_a_vm_are_reported(daemon):
    """A reload that only put other limits of VMs in force says that it did something."""
    daemon.write("a.vm", "[VM]\nTrustGroup=test\nPacketsPerSecond=5000\nMaxMemory=1G\n")
    r = ctl(daemon, "reload")
    assert r.returncode == 0 and r.stdout == "0 links changed, 1 VMs changed, 2 links in all\n"
    assert "VM a: MaxMemory= changed" in daemon.log()
    assert daemon.call("daemon.reload")["vms"] == 0


def test_keys_of_the_daemon_stay(daemon):
    daemon.write("vhost-pci.conf", "[Daemon]\nThreads=3\nMaxLinks=100\n[Control]\nGroup=root\n")
    for _ in range(2):
        warning, = daemon.call("daemon.reload")["warnings"]
        assert warning.startswith("[Daemon] Threads=, [Control] Group=: no reload changes that")
    assert daemon.log().count("reload: [Daemon] Threads=, [Control] Group=: no reload changes that") == 2


PLUGGED = {"ivshmem": {**IVSHMEM, "Device.PoolSize": "4M"},
           "shmem": {**PORT, "Device.Attachment": "shmem", "Device.ApertureSize": "8G", "Device.PoolSize": "4M"}}


@pytest.mark.parametrize("attachment", PLUGGED)
def test_device_that_must_be_plugged_anew(make_daemon, attachment):
    """It is not ended without being asked for: reload refuses and names it, SIGHUP leaves it and says so, --yes does it."""
    d = make_daemon()
    write(d, PLUGGED[attachment])
    d.start()
    client = {"ivshmem": pc.Ivshmem, "shmem": pc.Shmem}[attachment]
    with vu.Nic(d.sock("ab", "driver")) as nic, client(d.sock("ab", "device")) as p:
        assert p.attach(PATH) == pc.OK
        started(p)
        device = Device(p, 1)

        def runs(i):
            nic.send_packet(vu.frame(i, 100))
            assert device.packet() == vu.frame(i, 100)
            assert d.show("ab")["sides"]["driver"]["sessions"] == 1

        runs(0)
        write(d, {**PLUGGED[attachment], "Device.PoolSize": "8M", "Link.Description": "new"})
        d.link("cd", driver="c", device="d")
        for how in ([], ["--json"]):
            r = ctl(d, "reload", *how)
            assert r.returncode == 1
            assert "[Device] PoolSize= of link ab" in r.stderr and "--yes" in r.stderr and "nothing was applied" in r.stderr
        with pytest.raises(conftest.ControlError) as err:
            d.call("daemon.reload")
        assert err.value.code == "in-use"
        assert len(d.call("link.list")["links"]) == 1
        runs(1)
        d.proc.send_signal(signal.SIGHUP)
        d.wait(lambda: len(d.call("link.list")["links"]) == 2)
        d.wait_log("link ab: it goes on as it was: [Device] PoolSize= changed")
        assert d.log().count("it goes on as it was") == 1 and "vhost-pcictl reload --yes" in d.log()
        runs(2)
        r = ctl(d, "reload", "--keep")
        assert r.returncode == 0 and r.stdout.endswith("\nleft as they were: ab\n")
        assert d.log().count("it goes on as it was") == 2
        runs(3)
        # What may change in place does.
        write(d, {**PLUGGED[attachment], "Net.MTU": "1400"})
        assert ctl(d, "reload").returncode == 0
        d.wait(lambda: not nic.alive())
        assert d.show("ab")["sides"]["device"]["attached"]
        write(d, {**PLUGGED[attachment], "Device.PoolSize": "8M", "Net.MTU": "1400"})
        assert ctl(d, "reload", "--yes").returncode == 0
        d.wait(lambda: not d.show("ab")["sides"]["device"]["online"])
    assert d.show("ab")["config"]["Device"]["PoolSize"] == "8M"


def test_nobody_is_plugged_in(make_daemon):
    """Then nothing has to be plugged anew, and nothing is asked."""
    d = make_daemon()
    write(d, PLUGGED["ivshmem"])
    d.start()
    write(d, {**PLUGGED["ivshmem"], "Device.PoolSize": "8M"})
    assert d.call("daemon.reload")["changed"] == 1
    assert d.show("ab")["config"]["Device"]["PoolSize"] == "8M"


def test_less_trust_is_not_put_off(make_daemon):
    """A link of fast mode whose VMs have parted: asked about by reload, but SIGHUP does not leave it as it runs."""
    d = make_daemon()
    qmp = pc.Qmp(str(d.tmp / "qmp"))
    write(d, {**PORT, "Link.Mode": "auto", "Device.Attachment": "ivshmem", "Device.QMP": str(d.tmp / "qmp"),
              "Device.HotplugBus": "rp0 rp1"})
    d.start()
    with vu.Nic(d.sock("ab", "driver")), pc.Ivshmem(d.sock("ab", "device")) as p:
        p.vmm = qmp
        assert p.attach() == pc.OK
        p.wait(lambda s: s.up)
        # Another bus and the same QMP: nothing is unplugged.
        write(d, {**PORT, "Link.Mode": "auto", "Device.Attachment": "ivshmem", "Device.QMP": str(d.tmp / "qmp"),
                  "Device.HotplugBus": "rp7"})
        assert d.call("daemon.reload")["changed"] == 1
        assert len(qmp.devices) == 1 and p.state().up and "device_del" not in qmp.log
        assert d.show("ab")["sides"]["device"]["window_devices"][0]["bus"] == "?"
        d.write("b.vm", "[VM]\nTrustGroup=elsewhere\n")
        r = ctl(d, "reload")
        assert r.returncode == 1 and "the mode (fast, which becomes copy by rule auto-across-groups)" in r.stderr
        assert d.show("ab")["mode"] == "fast"
        d.proc.send_signal(signal.SIGHUP)
        d.wait(lambda: d.show("ab")["mode"] == "copy")
    qmp.close()


def test_qmp_socket_of_the_daemon_moves(make_daemon):
    d = make_daemon()
    keys = {**IVSHMEM, "Device.QMPMode": "server", "Device.QMP": "one.qmp"}
    write(d, keys)
    d.start()
    with pc.Ivshmem(d.sock("ab", "device")):
        assert os.path.exists(d.run / "one.qmp")
        write(d, {**keys, "Device.QMP": "two.qmp"})
        d.call("daemon.reload")
        assert os.path.exists(d.run / "two.qmp") and not os.path.exists(d.run / "one.qmp")
        assert d.show("ab")["sides"]["device"]["online"]


def test_a_name_that_begins_another_one(make_daemon):
    """Files sort as "x-y.link", "x.link"; links and VMs are found all the same, and are not taken for others."""
    d = make_daemon()
    for vm in ("x", "x-y", "x.y", "x-"):
        d.write(f"{vm}.vm", "[VM]\nTrustGroup=test\n")
    names = ("x", "x-y", "x-y-z", "x.y", "x0", "x-")
    for name in names:
        d.link(name, driver="x", device="x-y", Link_Mode="relay", Device_Endpoint="virtio-net")
    d.start()
    assert [link["name"] for link in d.call("link.list")["links"]] == sorted(names)
    assert d.call("daemon.reload")["changed"] == 0
