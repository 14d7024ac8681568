# SPDX-License-Identifier: BSD-3-Clause
"""What the daemon has given up, what it refuses and who may ask how often: isolation stages, limits, policy, audit log."""
import json
import os
import pathlib
import pwd
import shutil
import socket
import stat
import subprocess
import tempfile
import time

import pytest

import conftest
import portclient as pc
import vu
from test_relay import both_ways

SANITIZED = b"this build is instrumented" in (conftest.BUILD / "daemon/vhost-pcid").read_bytes()
needs_filters = pytest.mark.skipif(SANITIZED, reason="sanitizers and coverage read files and make system calls of their own")


def status(path):
    return dict(line.split(":\t", 1) for line in pathlib.Path(path, "status").read_text().splitlines() if ":\t" in line)


def threads(daemon):
    """{name: status} of every thread."""
    out = {}
    for t in pathlib.Path(f"/proc/{daemon.proc.pid}/task").iterdir():
        out[(t / "comm").read_text().strip()] = status(t)
    return out


def stages(daemon):
    return {s["name"]: s for s in daemon.call("daemon.show")["isolation"]}


def cli(daemon, *args):
    return subprocess.run([str(conftest.BUILD / "cli/vhost-pcictl"), "--control", str(daemon.run / "control.sock"), *args],
                          capture_output=True, text=True, timeout=60)


def audit_lines(daemon):
    return [json.loads(x.split("audit: ", 1)[1]) for x in daemon.log().splitlines() if "audit: " in x]


# ---- isolation ------------------------------------------------------------------------------------------------------------


@needs_filters
def test_every_stage_is_in_force(make_daemon):
    d = make_daemon()
    d.link("ab")
    d.link("p", Device_Endpoint="port", Device_Attachment="local", Link_Mode="copy")  # the forwarder's threads too
    d.start()
    # A thread has its maker's name until it has run for the first time.
    d.wait(lambda: {"vp-data-0", "vp-watch", "vp-signal"} <= set(threads(d)))
    got = threads(d)
    for name, s in got.items():
        assert s["NoNewPrivs"] == "1", name
        assert s["Seccomp"] == "2", name
        # What is left to root: chown, dac_override. Otherwise nothing.
        assert int(s["CapEff"], 16) & ~0x3 == 0 and int(s["CapPrm"], 16) & ~0x3 == 0 and int(s["CapInh"], 16) == 0, name
        # One filter for the control thread; the others have one more, on top.
        if "Seccomp_filters" in s:
            assert int(s["Seccomp_filters"]) == (1 if name == "vhost-pcid" else 2), name
    if os.geteuid() == 0:
        assert int(got["vhost-pcid"]["CapBnd"], 16) == 0
        for ns in ("net", "ipc", "uts"):
            assert os.readlink(f"/proc/{d.proc.pid}/ns/{ns}") != os.readlink(f"/proc/self/ns/{ns}")
    in_force = stages(d)
    assert [s for s in in_force] == ["process", "namespaces", "identity", "files", "calls"]
    assert in_force["process"]["in_force"] and in_force["identity"]["in_force"] and in_force["calls"]["in_force"]
    assert "isolation" in cli(d, "status").stdout
    limits = pathlib.Path(f"/proc/{d.proc.pid}/limits").read_text()
    core = [x.split() for x in limits.splitlines() if x.startswith("Max core")][0]
    assert core[4] == core[5] == "0"


@needs_filters
def test_sockets_only_where_configured(make_daemon):
    with tempfile.TemporaryDirectory(prefix="vp") as other, tempfile.TemporaryDirectory(prefix="vp") as named:
        d = make_daemon()
        d.link("ab")
        d.write("vhost-pci.conf", f"[Daemon]\nSocketDirectories={named}\n")
        d.start()
        if not stages(d)["files"]["in_force"]:
            pytest.skip(stages(d)["files"]["what"])
        vms = {"Driver": {"VM": "a"}, "Device": {"VM": "b"}}
        with pytest.raises(conftest.ControlError) as err:
            d.call("link.add", name="x", config={**vms, "Driver": {"VM": "a", "Socket": f"{other}/x.sock"}})
        assert "SocketDirectories=" in err.value.message
        d.call("link.add", name="x", config={**vms, "Driver": {"VM": "a", "Socket": f"{named}/x.sock"}})
        assert stat.S_ISSOCK(os.stat(f"{named}/x.sock").st_mode)
        d.call("link.remove", name="x")
        assert not os.listdir(named)
        # Files that are none of its business cannot be read, not even by naming them as configuration.
        d.call("daemon.reload")


@needs_filters
def test_reload_with_names_of_users(make_daemon):
    """User= is looked up at a reload, when no library can be loaded any more."""
    d = make_daemon()
    d.link("ab")
    d.start()
    d.write("a.vm", "[VM]\nTrustGroup=test\nUser=nobody root\n")
    d.write("n.link", "[Driver]\nVM=a\n[Device]\nVM=b\n")
    assert d.call("daemon.reload")["changed"] >= 1
    d.write("a.vm", "[VM]\nTrustGroup=test\nUser=no-such-user-here\n")
    with pytest.raises(conftest.ControlError) as err:
        d.call("daemon.reload")
    assert "no-such-user-here" in err.value.message
    assert d.alive()


@needs_filters
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_another_user(make_daemon):
    d = make_daemon("--runas", "nobody")
    os.chmod(d.tmp, 0o755)
    d.link("ab", Driver_VM="a")
    # The runtime directory is made for that user.
    d.start()
    for name, s in threads(d).items():
        assert set(s["Uid"].split()) == {str(pwd.getpwnam("nobody").pw_uid)}, name
        assert int(s["CapEff"], 16) == 0 and int(s["CapPrm"], 16) == 0 and int(s["CapBnd"], 16) == 0, name
    assert os.stat(d.run).st_uid == pwd.getpwnam("nobody").pw_uid
    with vu.Nic(d.sock("ab", "driver")) as a, vu.Nic(d.sock("ab", "device")) as b:
        both_ways(a, b)
    d.call("daemon.reload")


def test_required_stage_or_no_start(make_daemon):
    d = make_daemon()
    d.write("vhost-pci.conf", "[Daemon]\nRequireIsolation=calls\nSystemCallFilter=no\n")
    r = subprocess.run(d.command(), capture_output=True, text=True, timeout=60)
    assert r.returncode == 1 and "RequireIsolation=" in r.stderr, r.stderr
    # Not required: it starts, and says so.
    d.write("vhost-pci.conf", "[Daemon]\nSystemCallFilter=no\n")
    d.start()
    assert not stages(d)["calls"]["in_force"]
    if not SANITIZED:
        assert "SystemCallFilter=no" in d.log()
        assert all(s["Seccomp"] == "0" for s in threads(d).values())


# ---- limits -----------------------------------------------------------------------------------------------------------------


def test_flood_of_requests(daemon):
    """One client that asks without end is told and cut off; others go on."""
    before = daemon.fds()
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(30)
        s.connect(str(daemon.run / "control.sock"))
        f = s.makefile()
        line = b'{"version":1,"id":1,"method":"daemon.version"}\n'
        answers, error = 0, None
        try:
            for _ in range(200):
                s.sendall(line * 100)
                for _ in range(100):
                    answer = json.loads(f.readline())
                    error = answer.get("error")
                    assert not error or error["code"] == "limit"
                    if error:
                        break
                    answers += 1
                if error:
                    break
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert error and "requests a second" in error["message"]
        assert answers >= 5000  # a burst is nobody's fault
    assert daemon.call("daemon.version")
    daemon.wait_fds(before)


def test_flood_of_connections(daemon):
    """Strangers at a VM's socket: each costs an accept, one line a second, and no fd."""
    before = daemon.fds()
    with vu.Nic(daemon.sock("ab", "driver")) as a, vu.Nic(daemon.sock("ab", "device")) as b:
        both_ways(a, b)
        for _ in range(500):
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(daemon.sock("ab", "driver"))
        both_ways(a, b)
    assert daemon.log().count("refused a further front-end") <= 20
    daemon.wait_fds(before)


MESSAGES = 200000  # a second: daemon/front/vdev.c


def test_flood_of_messages(daemon):
    """A front-end beyond its messages a second loses its session, and only its own."""
    with vu.Nic(daemon.sock("cd", "driver")) as c, vu.Nic(daemon.sock("cd", "device")) as dd:
        both_ways(c, dd)
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(30)
            s.connect(daemon.sock("ab", "driver"))
            set_owner = bytes([3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
            start, sent, cut = time.monotonic(), 0, False
            try:
                while (took := time.monotonic() - start) < 10:
                    s.sendall(set_owner * 5000)
                    sent += 5000
            except (BrokenPipeError, ConnectionResetError):
                cut = True
        # On a machine that is too busy for so many of them there is nothing to cut off.
        assert cut or sent < MESSAGES * (took + 1), f"{sent} messages in {took:.1f} s"
        if cut:
            daemon.wait_log("messages a second")
        both_ways(c, dd)


def test_flood_at_a_port(make_daemon):
    """What a device side sends without being asked costs the daemon no more than a bounded share."""
    d = make_daemon()
    d.link("p", Device_Endpoint="port", Device_Attachment="local", Link_Mode="copy")
    d.link("ab")
    d.start()
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(d.sock("p", "device"))
        s.setblocking(False)
        end, sent = time.monotonic() + 2, 0
        cpu = cpu_seconds(d)
        while time.monotonic() < end:
            try:
                sent += s.send(b"x" * 4096)
            except BlockingIOError:
                time.sleep(0.001)
        assert cpu_seconds(d) - cpu < 1.5
        with vu.Nic(d.sock("ab", "driver")) as a, vu.Nic(d.sock("ab", "device")) as b:
            both_ways(a, b)
    assert sent < 64 << 20  # 5000 reads of 256 bytes a second


def cpu_seconds(daemon):
    f = pathlib.Path(f"/proc/{daemon.proc.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(f[11]) + int(f[12])) / os.sysconf("SC_CLK_TCK")


# ---- policy -----------------------------------------------------------------------------------------------------------------


PORT = {"Driver": {"VM": "a"}, "Device": {"VM": "b", "Endpoint": "port", "Attachment": "local"}}


def explained(daemon, name, **config):
    return daemon.call("policy.explain", name=name, **({"config": config} if config else {}))


def test_explain_names_rule_and_line(make_daemon):
    d = make_daemon()
    d.write("a.vm", "[VM]\n# who it trusts\nTrustGroup=test\nMaxLinks=2\n")
    d.write("a.vm.d/10-more.conf", "[VM]\nMaxLinks=1\n")
    d.link("ab", Link_Mode="relay")
    d.start()
    e = explained(d, "ab")
    assert e["allowed"] and e["rule"] == "relay-asked"
    rules = {r["rule"]: r for r in e["rules"]}
    assert rules["relay-asked"]["where"] == [f"{d.conf}/ab.link:2"]
    # The drop-in decides, not the file under it.
    assert rules["vm-max-links"]["where"] == [f"{d.conf}/a.vm.d/10-more.conf:2"] and rules["vm-max-links"]["allowed"]
    # One more is too many.
    e = explained(d, "x", Driver={"VM": "a"}, Device={"VM": "b"})
    assert not e["allowed"] and e["rule"] == "vm-max-links" and "MaxLinks=1" in e["why"]
    with pytest.raises(conftest.ControlError) as err:
        d.call("link.add", name="x", config={"Driver": {"VM": "a"}, "Device": {"VM": "b"}})
    assert err.value.code == "limit" and "refused by rule vm-max-links" in err.value.message
    # Default deny between groups, with the lines that say who is in which.
    fast = {"Driver": {"VM": "c"}, "Device": {"VM": "stranger", "Endpoint": "port"}, "Link": {"Mode": "fast"}}
    e = explained(d, "x", **fast)
    assert not e["allowed"] and e["rule"] == "fast-needs-one-trust-group"
    assert e["rules"][0]["where"] == [f"{d.conf}/c.vm:2", f"{d.conf}/stranger.vm:2"]
    r = cli(d, "explain", "x", "Driver.VM=c", "Device.VM=stranger", "Device.Endpoint=port", "Link.Mode=fast")
    assert r.returncode == 1 and f"{d.conf}/stranger.vm:2" in r.stdout and "fast-needs-one-trust-group" in r.stdout, r.stdout
    # auto across groups is copy.
    e = explained(d, "x", **{**fast, "Link": {"Mode": "auto"}})
    assert e["allowed"] and e["mode"] == "copy"


def test_pool_quota(make_daemon):
    d = make_daemon()
    d.write("a.vm", "[VM]\nMaxPool=16M\n")
    d.start()
    copy = {**PORT, "Link": {"Mode": "copy"}}
    d.call("link.add", name="p1", config=copy)
    d.call("link.add", name="p2", config=copy)
    with pytest.raises(conftest.ControlError) as err:
        d.call("link.add", name="p3", config=copy)
    assert "refused by rule vm-max-pool" in err.value.message and "MaxPool=16M" in err.value.message
    d.call("link.remove", name="p1")
    d.call("link.add", name="p3", config=copy)


def test_rate_of_a_vm_over_its_links(make_daemon):
    """PacketsPerSecond= of a VM holds for all its links together, from the moment of a reload, and only for what it sends."""
    d = make_daemon()
    d.link("ab")
    d.link("ac", driver="a", device="c")
    d.start()
    with vu.Nic(d.sock("ab", "driver")) as a1, vu.Nic(d.sock("ab", "device")) as b, \
            vu.Nic(d.sock("ac", "driver")) as a2, vu.Nic(d.sock("ac", "device")) as c:
        both_ways(a1, b)
        both_ways(a2, c)
        sessions = d.show("ab")["sides"]["driver"]["sessions"]
        d.write("a.vm", "[VM]\nTrustGroup=test\nPacketsPerSecond=100\n")
        d.call("daemon.reload")
        before = [d.stats(x)["driver"]["tx"]["packets"] for x in ("ab", "ac")]
        start = time.monotonic()
        while time.monotonic() - start < 2:
            for nic, peer in ((a1, b), (a2, c)):
                nic.send_packet(vu.frame(0))
                while peer.poll_packet() is not None:
                    pass
                nic.reclaim()
        took = time.monotonic() - start
        passed = sum(d.stats(x)["driver"]["tx"]["packets"] for x in ("ab", "ac")) - sum(before)
        assert passed <= 64 + 100 * (took + 1), (passed, took)
        assert passed >= 100
        # No new session was needed for it.
        assert d.show("ab")["sides"]["driver"]["sessions"] == sessions
        d.write("a.vm", "[VM]\nTrustGroup=test\n")
        d.call("daemon.reload")
        # What is under way comes before this one, or never.
        a1.send_packet(vu.frame(77))
        while b.recv_packet()[1] != vu.frame(77):
            pass
        both_ways(a1, b)


def test_fast_cannot_hold_a_rate(make_daemon):
    d = make_daemon()
    d.write("a.vm", "[VM]\nTrustGroup=test\nPacketsPerSecond=1000\n")
    d.start()
    e = explained(d, "x", **{**PORT, "Link": {"Mode": "fast"}})
    assert not e["allowed"] and e["rule"] == "fast-has-no-rate-limit" and e["rules"][0]["where"] == [f"{d.conf}/a.vm:3"]
    e = explained(d, "x", **PORT)
    assert e["allowed"] and e["mode"] == "copy" and e["rule"] == "auto-rate-limited"


# ---- runtime links at a reload ----------------------------------------------------------------------------------------------


SPLIT = pc.ALL & ~vu.bit(vu.PACKED)


def lasting(p):
    """The port runs, and its guest has what it needs."""
    return p.wait(lambda s: s.up and all(q.flags & pc.STARTED and q.flags & pc.ENABLED for q in s.queues))


def cut_off(p):
    """The daemon has let go of this device side; it may have said things before."""
    with pytest.raises((pc.Gone, OSError)):
        while True:
            p.read_message()
    return True


def partly(d):
    """A reload that is applied, but says what it removed."""
    with pytest.raises(conftest.ControlError) as err:
        d.call("daemon.reload")
    assert err.value.code == "invalid" and "applied, but not all" in err.value.message
    return err.value.message


def names(d):
    return [x["name"] for x in d.call("link.list")["links"]]


def move(d, vm, group):
    d.write(f"{vm}.vm", f"[VM]\nTrustGroup={group}\n")


@pytest.mark.parametrize("why", ["group", "rate"])
def test_reload_decides_a_runtime_link_anew(make_daemon, why):
    """What was allowed to see all memory no longer is: the link goes on as a copy link, with new sessions."""
    d = make_daemon()
    d.start()
    d.call("link.add", name="p", config={**PORT, "Net": {"MTU": 1400}})
    with vu.Nic(d.sock("p", "driver")) as nic, pc.Local(d.sock("p", "device")) as p:
        assert p.attach(SPLIT) == pc.OK
        assert lasting(p).mode == 1 and d.show("p")["policy"]["rule"] == "auto-same-group"
        if why == "group":
            move(d, "b", "elsewhere")
        else:
            d.write("a.vm", "[VM]\nTrustGroup=test\nPacketsPerSecond=1000\n")
        assert d.call("daemon.reload").items() >= {"changed": 1, "vms": 1, "links": 1}.items()
        assert not nic.alive() and cut_off(p)
    s = d.show("p")
    assert s["mode"] == s["policy"]["mode"] == "copy" and s["policy"]["asked"] == "auto" and s["policy"]["allowed"]
    assert s["policy"]["rule"] == ("auto-across-groups" if why == "group" else "auto-rate-limited")
    assert s["origin"] == "runtime" and s["up"] and s["mtu"] == 1400
    with vu.Nic(d.sock("p", "driver")) as nic, pc.Local(d.sock("p", "device")) as p:
        assert p.attach(SPLIT) == pc.OK
        state = lasting(p)
        assert state.mode == 3 and [w[3] for w in state.windows if w[0]] == [1], "the pool and nothing else"
        # Back again; what is set down stays down.
        d.call("link.down", name="p")
        for vm in "ab":
            move(d, vm, "test")
        assert d.call("daemon.reload").items() >= {"changed": 1, "vms": 1, "links": 1}.items()
        assert not nic.alive()
    s = d.show("p")
    assert s["mode"] == "fast" and s["origin"] == "runtime" and not s["up"] and s["status"] == "down"
    # A reload that changes nothing for it leaves it alone.
    d.call("link.up", name="p")
    with vu.Nic(d.sock("p", "driver")) as nic, pc.Local(d.sock("p", "device")) as p:
        assert p.attach(SPLIT) == pc.OK
        before = lasting(p)
        for vm in "ab":
            move(d, vm, "renamed")
        d.link("cd", driver="c", device="d")
        got = d.call("daemon.reload")
        assert got.items() >= {"changed": 1, "vms": 2, "links": 2}.items()
        assert nic.alive() and lasting(p).epoch == before.epoch
        s = d.show("p")
        assert s["sides"]["driver"]["sessions"] == 1 and "trust group renamed" in s["policy"]["why"]


@pytest.mark.parametrize("why", ["group", "rate"])
def test_reload_removes_a_runtime_link_that_is_not_allowed(make_daemon, why):
    d = make_daemon()
    d.start()
    d.call("link.add", name="p", config={**PORT, "Link": {"Mode": "fast"}})
    before = d.fds()
    d.call("link.add", name="q", config={**PORT, "Link": {"Mode": "fast"}, "Device": {**PORT["Device"], "VM": "c"}})
    with vu.Nic(d.sock("p", "driver")) as keeps, vu.Nic(d.sock("q", "driver")) as nic, pc.Local(d.sock("q", "device")) as p:
        assert p.attach(SPLIT) == pc.OK
        lasting(p)
        sub = conftest.Control(d.run / "control.sock")
        sub.call("events.subscribe")
        if why == "group":
            move(d, "c", "elsewhere")
        else:
            d.write("c.vm", "[VM]\nTrustGroup=test\nPacketsPerSecond=1000\n")
        rule = "fast-needs-one-trust-group" if why == "group" else "fast-has-no-rate-limit"
        message = partly(d)
        assert "link q, added at run time, is removed" in message and f"refused by rule {rule}" in message
        assert not nic.alive() and cut_off(p) and keeps.alive()
        assert not os.path.exists(d.sock("q", "driver"))
        assert names(d) == ["p"] and d.show("p")["sides"]["driver"]["sessions"] == 1
        while (e := sub.line())["event"] == "link.state":
            pass
        assert e["event"] == "link.removed" and e["data"] == {"link": "q"}
        assert sub.line()["event"] == "daemon.reloaded"
        sub.close()
    x = [x for x in audit_lines(d) if x["action"] == "link.keep"]
    assert len(x) == 1 and x[0]["link"] == "q" and x[0]["rule"] == rule and not x[0]["allowed"]
    assert f"{d.conf}/c.vm:{2 if why == 'group' else 3}" in x[0]["where"]
    d.wait_fds(before)
    d.call("daemon.reload")  # nothing is left to say


def test_reload_puts_limits_in_force_on_runtime_links(make_daemon):
    """Links of files first, then the others by name, each that has room."""
    d = make_daemon()
    d.link("zz")
    d.start()
    for name, pairs in (("x2", 1), ("x1", 4), ("x0", 2)):
        d.call("link.add", name=name, config={"Driver": {"VM": "a"}, "Device": {"VM": "c"}, "Link": {"Queues": pairs}})
    with vu.Nic(d.sock("x0", "driver")) as nic:
        d.write("a.vm", "[VM]\nTrustGroup=test\nMaxQueues=4\n")
        message = partly(d)
        assert "link x1" in message and "refused by rule vm-max-queues" in message
        assert names(d) == ["x0", "x2", "zz"]
        # A file's link that comes with the lower limit has a place before those that are there.
        d.link("zy", driver="a", device="d")
        d.write("a.vm", "[VM]\nTrustGroup=test\nMaxLinks=3\n")
        message = partly(d)
        assert "link x2" in message and "refused by rule vm-max-links" in message
        assert names(d) == ["x0", "zy", "zz"] and nic.alive()
        # Those of files have to have room together, or nothing changes.
        d.write("a.vm", "[VM]\nTrustGroup=test\nMaxLinks=1\n")
        with pytest.raises(conftest.ControlError) as err:
            d.call("daemon.reload")
        assert "was not applied" in err.value.message and "vm-max-links" in err.value.message
        assert names(d) == ["x0", "zy", "zz"] and nic.alive()
        # The daemon's own limit.
        d.write("a.vm", "[VM]\nTrustGroup=test\n")
        d.write("vhost-pci.conf", "[Daemon]\nMaxLinks=2\n")
        assert "refused by rule daemon-max-links" in partly(d)
        assert names(d) == ["zy", "zz"] and not nic.alive()


def test_reload_counts_the_pool_of_a_link_that_becomes_copy(make_daemon):
    """Two fast links have no pools. As copy links they have, and there is room for one."""
    d = make_daemon()
    d.write("a.vm", "[VM]\nTrustGroup=test\nMaxPool=8M\n")
    d.start()
    d.call("link.add", name="p1", config=PORT)
    d.call("link.add", name="p2", config=PORT)
    move(d, "b", "elsewhere")
    message = partly(d)
    assert "link p2" in message and "refused by rule vm-max-pool" in message
    assert names(d) == ["p1"] and d.show("p1")["mode"] == "copy"


def test_reload_cannot_set_a_runtime_link_up_anew(make_daemon):
    """The place of its socket is gone by then: so is the link, and the reload says so. It does not go on in the old mode."""
    d = make_daemon()
    place = d.tmp / "place"
    place.mkdir()
    d.write("vhost-pci.conf", f"[Daemon]\nSocketDirectories={place}\n")
    d.start()
    d.call("link.add", name="p1", config={**PORT, "Driver": {"VM": "a", "Socket": f"{place}/p1.sock"}})
    d.call("link.add", name="p2", config=PORT)
    shutil.rmtree(place)
    place.touch()  # else a daemon that may makes it again
    move(d, "b", "elsewhere")
    assert "link p1, added at run time, is removed" in partly(d)
    assert names(d) == ["p2"] and d.show("p2")["mode"] == "copy"


def test_reload_without_the_vm_of_a_runtime_link(make_daemon):
    d = make_daemon()
    d.start()
    d.call("link.add", name="x", config={"Driver": {"VM": "a"}, "Device": {"VM": "d"}})
    (d.conf / "d.vm").unlink()
    assert "VM d is not configured any more" in partly(d)
    x = [x for x in audit_lines(d) if x["action"] == "link.keep"][0]
    assert x["link"] == "x" and x["rule"] is None and not x["allowed"]
    assert names(d) == []


# ---- audit log ----------------------------------------------------------------------------------------------------------------


def test_audit_in_the_log(make_daemon):
    d = make_daemon()
    d.link("ab")
    d.start()
    with pytest.raises(conftest.ControlError):
        d.call("link.add", name="x", config={"Driver": {"VM": "c"}, "Device": {"VM": "stranger", "Endpoint": "port"},
                                             "Link": {"Mode": "fast"}})
    d.call("link.down", name="ab")
    lines = audit_lines(d)
    assert lines[0]["who"] == {"by": "configuration"} and lines[0]["link"] == "ab" and lines[0]["allowed"]
    no = lines[1]
    assert no["who"] == {"by": "control", "uid": os.geteuid(), "pid": os.getpid()}
    assert no["action"] == "link.add" and not no["allowed"] and no["rule"] == "fast-needs-one-trust-group"
    assert no["where"] == [f"{d.conf}/c.vm:2", f"{d.conf}/stranger.vm:2"]
    assert no["time"].endswith("Z") and abs(time.time() - time.mktime(time.strptime(no["time"][:19], "%Y-%m-%dT%H:%M:%S")) + time.timezone) < 600
    assert lines[2]["action"] == "link.down" and lines[2]["link"] == "ab"


def test_audit_file_and_rotation(make_daemon):
    d = make_daemon()
    log = d.tmp / "audit.log"
    d.write("vhost-pci.conf", f"[Daemon]\nAuditLog={log}\n")
    d.link("ab")
    d.start()
    assert stat.S_IMODE(log.stat().st_mode) & 0o007 == 0
    assert not audit_lines(d)
    log.rename(d.tmp / "audit.log.1")
    d.call("link.down", name="ab")  # still into the old one
    d.call("daemon.reload")
    d.call("link.up", name="ab")
    old = [json.loads(x) for x in (d.tmp / "audit.log.1").read_text().splitlines()]
    new = [json.loads(x) for x in log.read_text().splitlines()]
    assert [x["action"] for x in old] == ["link.add", "link.down"]
    assert [x["action"] for x in new] == ["daemon.reload", "link.up"]


def test_audit_of_a_stranger(make_daemon):
    """A process that may not be the VM's VMM."""
    if os.geteuid():
        pytest.skip("needs root to be somebody else")
    d = make_daemon()
    os.chmod(d.tmp, 0o755)
    d.write("a.vm", "[VM]\nTrustGroup=test\nUser=65533\n")
    d.link("ab")
    d.start()
    subprocess.run(["/usr/bin/python3", "-c", "import os, socket, sys; os.setgid(65532); os.setuid(65532); "
                    "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)", d.sock("ab", "driver")], check=False, timeout=30)
    d.wait(lambda: any(x["action"] == "vmm.connect" for x in audit_lines(d)))
    x = [x for x in audit_lines(d) if x["action"] == "vmm.connect"][0]
    assert x["who"]["by"] == "vmm" and x["who"]["uid"] == 65532 and x["vm"] == "a" and x["rule"] == "vm-user" and not x["allowed"]


def test_completion_and_manual_know_every_key():
    top = pathlib.Path(__file__).parents[2]
    out = subprocess.run([str(conftest.BUILD / "daemon/vhost-pcid"), "--help"], capture_output=True, text=True)
    assert out.returncode == 0
    source = (top / "daemon/conf/keys.c").read_text()
    completion = (top / "packaging/completion/vhost-pcictl").read_text()
    import re
    keys = re.findall(r'\{ "(\w+)", "(\w+)", E\(\w+\), parse_', source)
    assert len(keys) > 30
    pages = {n: (top / "docs/man" / n).read_text() for n in ("vhost-pci.conf.5", "vhost-pci.vm.5", "vhost-pci.link.5")}
    for section, key in keys:
        page = {"Daemon": "vhost-pci.conf.5", "Control": "vhost-pci.conf.5", "Metrics": "vhost-pci.conf.5", "VM": "vhost-pci.vm.5"}.get(section, "vhost-pci.link.5")
        if (section, key) != ("Driver", "VM"):
            assert f"{key}=" in pages[page], f"{page} does not know {key}="
        if page == "vhost-pci.link.5" and key != "DeviceType":
            assert f"{section}.{key}=" in completion, f"the completion does not know {section}.{key}="
    for flag in re.findall(r"--[a-z-]+", out.stdout):
        assert flag.replace("-", r"\-") in (top / "docs/man/vhost-pcid.8").read_text() or flag in ("--help", "--version"), flag
