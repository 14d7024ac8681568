# SPDX-License-Identifier: BSD-3-Clause
"""The control socket, its clients good and bad, reload, and vhost-pcictl."""
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import time

import pytest

import conftest
import vu
from test_relay import both_ways


def raw(daemon, data, n=1):
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(30)
        s.connect(str(daemon.run / "control.sock"))
        s.sendall(data)
        f = s.makefile()
        return [json.loads(f.readline()) for _ in range(n)]


BAD = {
    "not json": (b"hello\n", "parse"),
    "not an object": (b"[1,2]\n", "parse"),
    "zero byte": (b'{"version":1,"id":1,"method":"a\\u0000b"}\n', "parse"),
    "not utf-8": (b'{"version":1,"id":1,"method":"\xff\xfe"}\n', "parse"),
    "deep": (b"[" * 60000 + b"\n", "parse"),
    "no version": (b'{"id":1,"method":"link.list"}\n', "invalid"),
    "other version": (b'{"version":2,"id":1,"method":"link.list"}\n', "version"),
    "duplicate member": (b'{"version":1,"version":1,"id":1,"method":"link.list"}\n', "parse"),
    "unknown member": (b'{"version":1,"id":1,"method":"link.list","x":1}\n', "invalid"),
    "id of odd type": (b'{"version":1,"id":[1],"method":"link.list"}\n', "invalid"),
    "no method": (b'{"version":1,"id":1}\n', "invalid"),
    "unknown method": (b'{"version":1,"id":1,"method":"link.burn"}\n', "method"),
    "params no object": (b'{"version":1,"id":1,"method":"link.list","params":[]}\n', "invalid"),
    "unknown param": (b'{"version":1,"id":1,"method":"link.list","params":{"a":1}}\n', "invalid"),
    "missing param": (b'{"version":1,"id":1,"method":"link.show"}\n', "invalid"),
    "name of wrong type": (b'{"version":1,"id":1,"method":"link.show","params":{"name":5}}\n', "invalid"),
    "no such link": (b'{"version":1,"id":1,"method":"link.show","params":{"name":"x"}}\n', "not-found"),
    "too long": (b"x" * 70000 + b"\n", "parse"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests(daemon, name):
    data, code = BAD[name]
    answer, = raw(daemon, data)
    assert answer["error"]["code"] == code, answer
    assert daemon.call("daemon.version")["protocol"] == 1


def test_pipelined(daemon):
    line = b'{"version":1,"id":"a","method":"link.list"}\n'
    assert all(len(a["result"]["links"]) == 2 for a in raw(daemon, line * 500, 500))


def test_slow_reader_is_bounded(daemon):
    """A client that asks and never reads: not read from any more, others are served, memory stays small."""
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(str(daemon.run / "control.sock"))
        s.setblocking(False)
        line = b'{"version":1,"id":1,"method":"link.stats"}\n' * 100
        sent = 0
        for _ in range(3000):
            try:
                sent += s.send(line)
            except BlockingIOError:
                break
        else:
            pytest.fail("the daemon swallowed everything")
        assert daemon.call("daemon.version")
    rss = [int(x.split()[1]) for x in open(f"/proc/{daemon.proc.pid}/status") if x.startswith("VmRSS")][0]
    assert rss < 200 * 1024


def test_too_many_clients(daemon):
    held = []
    for _ in range(70):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(30)
        s.connect(str(daemon.run / "control.sock"))
        held.append(s)
    assert json.loads(held[-1].makefile().readline())["error"]["code"] == "limit"
    for s in held:
        s.close()
    daemon.wait(lambda: raw(daemon, b'{"version":1,"id":1,"method":"daemon.version"}\n')[0].get("result"))


def test_subscriber_that_does_not_read(daemon):
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(30)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.connect(str(daemon.run / "control.sock"))
        s.sendall(b'{"version":1,"id":1,"method":"events.subscribe"}\n')
        assert json.loads(s.recv(4096).split(b"\n")[0])["result"] is not None
        pair = b"".join(b'{"version":1,"id":1,"method":"link.%s","params":{"name":"ab"}}\n' % m for m in (b"down", b"up"))
        for _ in range(200):
            raw(daemon, pair * 50, 100)
            if "did not read its events" in daemon.log():
                break
        else:
            pytest.fail("never cut off")


def test_events(daemon):
    sub = conftest.Control(daemon.run / "control.sock")
    sub.call("events.subscribe")
    daemon.call("link.add", name="x", config={"Driver": {"VM": "a"}, "Device": {"VM": "b"}})
    e = sub.line()
    assert e["event"] == "link.added" and e["data"]["link"] == "x"
    with vu.Frontend(daemon.sock("x", "driver")):
        assert sub.line()["data"]["why"] == "driver side connected"
    assert sub.line()["data"]["why"] == "the front-end went away"
    daemon.call("link.remove", name="x")
    e = sub.line()
    assert e["event"] == "link.removed" and e["data"] == {"link": "x"}
    sub.close()


def refused(daemon, code, method, **params):
    with pytest.raises(conftest.ControlError) as err:
        daemon.call(method, **params)
    assert err.value.code == code
    return err.value.message


def test_add_and_remove(daemon):
    before = daemon.fds()
    vms = {"Driver": {"VM": "a"}, "Device": {"VM": "b"}}
    daemon.call("link.add", name="x", config={**vms, "Net": {"MTU": 9000}})
    with vu.Nic(daemon.sock("x", "driver")) as a, vu.Nic(daemon.sock("x", "device")) as b:
        both_ways(a, b)
        daemon.call("link.remove", name="x")
        assert not a.alive()
    assert not os.path.exists(daemon.sock("x", "driver"))
    daemon.wait_fds(before)
    assert "already a link" in refused(daemon, "exists", "link.add", name="ab", config=vms)
    refused(daemon, "invalid", "link.add", name="../x", config=vms)
    refused(daemon, "invalid", "link.add", name="x", config={"Driver": {"VM": "nobody"}, "Device": {"VM": "b"}})
    refused(daemon, "invalid", "link.add", name="x", config={**vms, "Net": {"MTU": "many"}})
    refused(daemon, "invalid", "link.add", name="x", config={**vms, "Zoo": {"A": "b"}})
    refused(daemon, "exists", "link.add", name="x", config={**vms, "Driver": {"VM": "a", "Socket": "ab.driver.sock"}})
    message = refused(daemon, "denied", "link.add", name="x",
                      config={**vms, "Device": {"VM": "stranger", "Endpoint": "port"}, "Link": {"Mode": "fast"}})
    assert "fast-needs-one-trust-group" in message
    message = refused(daemon, "invalid", "link.add", name="x", config={"Driver": {"VM": "a", "Socket": "x" * 100}, "Device": {"VM": "b"}})
    assert "at most 107" in message
    daemon.wait_fds(before)


def test_reload(daemon):
    """Only what differs is touched; nonsense changes nothing."""
    with vu.Nic(daemon.sock("ab", "driver")) as a, vu.Nic(daemon.sock("ab", "device")) as b:
        both_ways(a, b)
        daemon.link("new", driver="a", device="c")
        (daemon.conf / "cd.link").unlink()
        assert daemon.call("daemon.reload").items() >= {"changed": 2, "vms": 0, "links": 2}.items()
        both_ways(a, b)  # the same sessions
        assert not os.path.exists(daemon.sock("cd", "driver")) and os.path.exists(daemon.sock("new", "driver"))
        daemon.write("bad.link", "[Link]\nMode=warp\n")
        assert "bad.link:2" in refused(daemon, "invalid", "daemon.reload")
        both_ways(a, b)
        (daemon.conf / "bad.link").unlink()
        daemon.link("ab", Net_MTU=1400)
        daemon.proc.send_signal(signal.SIGHUP)
        daemon.wait(lambda: daemon.show("ab")["mtu"] == 1400)
        assert not a.alive()
    with vu.Nic(daemon.sock("ab", "driver")) as a, vu.Nic(daemon.sock("ab", "device")) as b:
        both_ways(a, b)


def test_runtime_link_survives_reload(daemon):
    """What others are given does not disturb it."""
    daemon.call("link.add", name="x", config={"Driver": {"VM": "a"}, "Device": {"VM": "b"}})
    with vu.Nic(daemon.sock("x", "driver")) as a, vu.Nic(daemon.sock("x", "device")) as b:
        both_ways(a, b)
        daemon.link("new", driver="a", device="c")
        daemon.write("a.vm", "[VM]\nTrustGroup=another\nMaxLinks=3\n")
        (daemon.conf / "cd.link").unlink()
        assert daemon.call("daemon.reload").items() >= {"changed": 2, "vms": 1, "links": 3}.items()
        both_ways(a, b)  # the same sessions
        s = daemon.show("x")
        assert s["origin"] == "runtime" and s["sides"]["driver"]["sessions"] == 1
        # A file that says the same takes it over as it is.
        daemon.link("x")
        assert daemon.call("daemon.reload").items() >= {"changed": 0, "vms": 0, "links": 3}.items()
        both_ways(a, b)
        assert daemon.show("x")["origin"] == "file"


def test_drop_ins_and_precedence(make_daemon):
    d = make_daemon()
    d.link("ab", Net_MTU=1400)
    d.write("ab.link.d/10-mtu.conf", "[Net]\nMTU=2000\n")
    d.write("ab.link.d/20-queues.conf", "[Link]\nQueues=2\n")
    low = d.tmp / "low"
    low.mkdir()
    (low / "ab.link").write_text("[Link]\nQueues=7\n")
    (low / "hidden.link").write_text("[Driver]\nVM=a\n[Device]\nVM=b\n")
    d.write("hidden.link", "")
    (low / "extra.link").write_text("[Driver]\nVM=a\n[Device]\nVM=b\n")
    d.args = ["--config", str(low)]
    d.start()
    assert [x["name"] for x in d.call("link.list")["links"]] == ["ab", "extra"]
    assert d.show("ab")["mtu"] == 2000 and d.show("ab")["queue_pairs"] == 2


def test_limits(make_daemon):
    d = make_daemon()
    d.write("a.vm", "[VM]\nMaxLinks=1\n")
    d.link("ab")
    d.start()
    message = refused(d, "limit", "link.add", name="x", config={"Driver": {"VM": "a"}, "Device": {"VM": "b"}})
    assert "MaxLinks=1" in message


def test_control_peer_credentials(daemon):
    if os.geteuid():
        pytest.skip("needs root to become somebody else")
    os.chmod(daemon.tmp, 0o755)
    os.chmod(daemon.run / "control.sock", 0o666)  # even so
    pid = os.fork()
    if not pid:
        os.setuid(12345)
        try:
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(str(daemon.run / "control.sock"))
                ok = b'"denied"' in s.recv(4096)
        except OSError:
            ok = False
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_stop_unlinks_sockets(daemon):
    with vu.Nic(daemon.sock("ab", "driver")):
        assert daemon.stop() == 0
    assert list(daemon.run.iterdir()) == []


def test_restart_over_stale_sockets(daemon):
    daemon.kill()
    daemon.log_path.unlink()
    daemon.start()
    with vu.Nic(daemon.sock("ab", "driver")) as a, vu.Nic(daemon.sock("ab", "device")) as b:
        both_ways(a, b)


def test_second_daemon_keeps_off(daemon):
    r = subprocess.run(daemon.command(), capture_output=True, text=True, timeout=conftest.PATIENCE)
    assert r.returncode == 1 and "another process listens there" in r.stderr
    with vu.Nic(daemon.sock("ab", "driver")) as a, vu.Nic(daemon.sock("ab", "device")) as b:
        both_ways(a, b)


def test_socket_activation(make_daemon):
    """Listening sockets made by a service manager, found by name; READY=1 is sent."""
    d = make_daemon()
    d.link("ab")
    d.run.mkdir()
    paths = {"control": str(d.run / "control.sock"), "ab.driver": d.sock("ab", "driver")}
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(d.tmp / "notify"))
    notify.settimeout(conftest.PATIENCE)
    socks = []
    for p in paths.values():
        s = socket.socket(socket.AF_UNIX)
        s.bind(p)
        s.listen()
        socks.append(s)
    log = open(d.tmp / "log", "wb")
    d.log_path = d.tmp / "log"
    pid = os.fork()
    if not pid:
        fds = [os.dup(s.fileno()) for s in socks]
        fds = [os.dup2(fd, 20 + i) for i, fd in enumerate(fds)]
        for i, fd in enumerate(fds):
            os.dup2(fd, 3 + i, inheritable=True)
        os.dup2(log.fileno(), 2)
        os.closerange(5, 64)
        env = {**os.environ, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": ":".join(paths),
               "NOTIFY_SOCKET": str(d.tmp / "notify")}
        os.execve(d.command()[0], d.command(), env)
    try:
        assert b"READY=1" in notify.recv(4096)
        d.control = conftest.Control(paths["control"])
        with vu.Nic(paths["ab.driver"]) as a, vu.Nic(d.sock("ab", "device")) as b:
            both_ways(a, b)
        d.call("daemon.reload")
        # Behind what it gives the service manager to keep.
        while (said := notify.recv(4096)).startswith(b"FDSTORE"):
            pass
        assert b"RELOADING=1" in said
    finally:
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        for s in socks:
            s.close()
        notify.close()
    assert os.path.exists(paths["ab.driver"])  # not ours to unlink


def status(pid, key):
    return [int(x.split()[1]) for x in open(f"/proc/{pid}/status") if x.startswith(key)][0]


def test_thousand_links(make_daemon):
    """Idle links cost no CPU and little memory; one more is added in no time."""
    d = make_daemon()
    d.start()
    few = status(d.proc.pid, "VmRSS")
    for i in range(1000):
        d.link(f"l{i}")
    d.call("daemon.reload")
    each = (status(d.proc.pid, "VmRSS") - few) / 1000

    def cpu():
        """Milliseconds of CPU that the main thread has had: does not depend on what else the machine does."""
        return int(open(f"/proc/{d.proc.pid}/schedstat").read().split()[0]) / 1e6

    before = cpu()
    for i in range(10):
        d.call("link.add", name=f"more{i}", config={"Driver": {"VM": "a"}, "Device": {"VM": "b"}})
    add = (cpu() - before) / 10
    assert len(d.call("link.list")["links"]) == 1010
    before = cpu()
    time.sleep(2)
    idle = cpu() - before
    print(f"{each:.1f} KiB a link, {add:.2f} ms to add one, {idle:.2f} ms of CPU in 2 s")
    assert idle < 5
    if "asan" not in open(f"/proc/{d.proc.pid}/maps").read():
        assert add < 5
        assert each < 16


def ctl(d, *args, env=None):
    return subprocess.run([str(conftest.BUILD / "cli/vhost-pcictl"), "--control", str(d.run / "control.sock"), *args],
                          capture_output=True, text=True, timeout=conftest.PATIENCE)


def test_ctl(daemon):
    r = ctl(daemon, "list")
    assert r.returncode == 0 and r.stdout.splitlines()[0].split() == ["LINK", "TYPE", "MODE", "DRIVER", "DEVICE", "ENDPOINT", "STATUS"]
    assert json.loads(ctl(daemon, "--json", "list").stdout)["links"][0]["name"] == "ab"
    r = ctl(daemon, "add", "x", "Driver.VM=a", "Device.VM=b")
    assert r.returncode == 0 and "x.driver.sock" in r.stdout
    assert ctl(daemon, "down", "x").returncode == 0
    assert json.loads(ctl(daemon, "show", "x", "--json").stdout)["status"] == "down"
    assert ctl(daemon, "up", "x").returncode == 0
    with vu.Nic(daemon.sock("x", "driver")) as a, vu.Nic(daemon.sock("x", "device")) as b:
        both_ways(a, b)
        assert "queue 1    transmit, running" in ctl(daemon, "show", "x").stdout
        assert "x    driver" in ctl(daemon, "stats", "x").stdout
        assert "CYC/PKT" in ctl(daemon, "top", "--rounds", "1").stdout
    assert ctl(daemon, "remove", "x").returncode == 0
    assert "data thread 0" in ctl(daemon, "status").stdout
    assert ctl(daemon, "reload").returncode == 0
    assert "allowed: mode relay" in ctl(daemon, "explain", "ab").stdout
    r = ctl(daemon, "explain", "y", "Driver.VM=a", "Device.VM=stranger", "Device.Endpoint=port", "Link.Mode=fast")
    assert r.returncode == 1 and "fast-needs-one-trust-group" in r.stdout
    for args, code in ((["show", "nope"], 1), (["show"], 2), (["burn"], 2), (["list", "--frob"], 2), (["add", "x", "nonsense"], 2)):
        r = ctl(daemon, *args)
        assert r.returncode == code and r.stderr.startswith("vhost-pcictl"), (args, r)
    for cmd in "list show stats top add remove up down explain reload events status".split():
        r = ctl(daemon, cmd, "--help")
        assert r.returncode == 0 and r.stdout.startswith("Usage:")
    daemon.stop()
    r = ctl(daemon, "list")
    assert r.returncode == 3 and "is vhost-pcid running" in r.stderr


def test_check_config(make_daemon):
    d = make_daemon()

    def check():
        return subprocess.run(d.command("--check-config"), capture_output=True, text=True, timeout=conftest.PATIENCE)
    d.link("ab")
    assert check().returncode == 0
    d.link("zz", driver="ghost")
    d.write("yy.link", "[Link]\nMod=relay\nQueues=0\nQueues=2\n[Driver]\nVM=a\n[Bogus]\n[Device]\nVM=b\n")
    d.link("xx", Driver_Socket="ab.driver.sock")
    r = check()
    assert r.returncode == 1
    for text in ("zz.link: [Driver] VM=ghost is not configured; write a file ghost.vm", "yy.link:2: unknown key Mod in [Link]; known: Mode",
                 "yy.link:3: Queues=0 is not a number from 1", "yy.link:7: unknown section [Bogus]",
                 "already belongs to the driver side of link"):
        assert text in r.stderr, r.stderr


def test_too_many_requests(daemon):
    """1,000 a second, 5,000 at once: more is an error and the end, and nobody else's trouble."""
    other = daemon.control
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(60)
        s.connect(str(daemon.run / "control.sock"))
        f, answers = s.makefile("r"), 0
        with contextlib.suppress(OSError):
            for _ in range(200):
                s.sendall(b'{"version":1,"id":1,"method":"daemon.version"}\n' * 100)
                for _ in range(100):
                    line = f.readline()
                    if not line:
                        raise OSError
                    answers += "result" in line
        assert 5000 <= answers < 15000
    assert other.call("daemon.version")
    assert "more than 1000 requests a second" in daemon.log()


def test_out_of_fds(daemon):
    """LimitNOFILE= is used up: what exists goes on, what is new is refused, and taken again when there is room."""
    with vu.Nic(daemon.sock("ab", "driver")) as a, vu.Nic(daemon.sock("ab", "device")) as b:
        limits = resource.prlimit(daemon.proc.pid, resource.RLIMIT_NOFILE)
        top = max(int(fd) for fd in os.listdir(f"/proc/{daemon.proc.pid}/fd"))
        resource.prlimit(daemon.proc.pid, resource.RLIMIT_NOFILE, (top + 1, limits[1]))
        held = []
        for _ in range(top + 20):
            s = socket.socket(socket.AF_UNIX)
            s.connect(daemon.sock("cd", "driver") if len(held) % 2 else str(daemon.run / "control.sock"))
            held.append(s)
        daemon.wait_log("out of file descriptors; raise LimitNOFILE=")
        a.send_packet(vu.frame(1))
        assert b.recv_packet()[1] == vu.frame(1)
        assert daemon.call("daemon.version")
        for s in held:
            s.close()
        resource.prlimit(daemon.proc.pid, resource.RLIMIT_NOFILE, limits)
        with vu.Nic(daemon.sock("cd", "driver")) as c:
            assert c.alive()
