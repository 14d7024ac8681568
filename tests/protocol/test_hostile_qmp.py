# SPDX-License-Identifier: BSD-3-Clause
"""QMP servers that mean harm: what one of them says costs little time, little memory and few log lines."""
import contextlib
import json
import socket
import threading
import time

import pytest

import conftest
import portclient as pc

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}
SLOW = 4 if "-fsanitize" in (conftest.BUILD / "build.ninja").read_text() else 1
KINDS = ["device", "carrier"]  # who talks QMP: the window devices of an ivshmem port, a link's carrier


class Server:
    """answer(command, connection's number) is the bytes that are sent for each command; None = the usual."""

    def __init__(self, path, answer, first=b""):
        self.answer, self.first, self.n, self.stop, self.commands = answer, first, 0, False, []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(4)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.stop:
            try:
                conn, _ = self.listener.accept()
            except OSError:
                return
            self.n += 1
            conn.settimeout(20)
            with conn, contextlib.suppress(OSError):
                self.serve(conn)

    def serve(self, conn):
        conn.sendall(json.dumps(GREETING).encode() + b"\n" + self.first)
        f = conn.makefile("rb")
        for line in f:
            m = json.loads(line)
            self.commands.append(m["execute"])
            data = self.answer(m, self.n)
            conn.sendall(json.dumps({"return": {}, "id": m["id"]}).encode() + b"\n" if data is None else data)
            if self.stop:
                return

    def close(self):
        self.stop = True
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def daemon_with(make_daemon, kind):
    d = make_daemon()
    path = str(d.tmp / "qmp")
    if kind == "device":
        d.link("ab", Device_Endpoint="port", Device_Attachment="ivshmem", Device_QMP=path, Device_HotplugBus="rp0 rp1")
    else:
        d.link("ab", Device_Endpoint="port", Device_Attachment="local", Link_Mode="fast", Driver_QMP=path, Driver_NIC="d0")
    return d, path


def cpu(d):
    """Seconds that the main thread has run."""
    return int(open(f"/proc/{d.proc.pid}/task/{d.proc.pid}/schedstat").read().split()[0]) / 1e9


def rss(d):
    return int(open(f"/proc/{d.proc.pid}/statm").read().split()[1]) * 4096


def watch(d, seconds):
    """What the main thread spent, as a share; and the longest that it kept the control socket waiting, without what the scheduler took."""
    end, worst = time.monotonic() + seconds, 0
    c0, t0 = cpu(d), time.monotonic()
    while time.monotonic() < end:
        c, t = cpu(d), time.monotonic()
        d.call("daemon.show")
        worst = max(worst, min(time.monotonic() - t, cpu(d) - c))
        time.sleep(0.005)
    return (cpu(d) - c0) / (time.monotonic() - t0), worst


def names(n):
    return ",".join('{"name":"vhp-ab-%04x"}' % (i & 0xffff) for i in range(n))


def listing(n):
    text = names(n)
    return lambda m, _: ('{"return":[%s],"id":%d}\n' % (text, m["id"])).encode() if m["execute"] == "qom-list" else None


def events(m, _):
    if m["execute"] == "qmp_capabilities":
        return None
    return b'{"event":"RESET","data":{}}\n' * 20000 + json.dumps({"return": {}, "id": m["id"]}).encode() + b"\n"


def deleted(m, _):
    if m["execute"] == "qmp_capabilities":
        return None
    return b'{"event":"DEVICE_DELETED","data":{"device":"vhp-ab-0001"}}\n' * 20000 + json.dumps({"return": [], "id": m["id"]}).encode() + b"\n"


def endless(m, _):
    return b'{"return":"' + b"x" * (6 << 20)


def refusals(m, n):
    if m["execute"] == "qmp_capabilities":
        return None
    return json.dumps({"error": {"class": "GenericError", "desc": "%d " % time.monotonic_ns() + "no" * 200000}, "id": m["id"]}).encode() + b"\n"


ANSWERS = {
    "1.4 MB of names": listing(60000),
    "as many names as a line holds": listing(21000),
    "the same name": lambda m, n: (b'{"return":[' + b",".join([b'{"name":"vhp-ab-0000"}'] * 21000) + b'],"id":%d}\n' % m["id"])
    if m["execute"] == "qom-list" else None,
    "numbers": lambda m, n: (b'{"return":[' + b",".join([b"0"] * 250000) + b'],"id":%d}\n' % m["id"])
    if m["execute"] != "qmp_capabilities" else None,
    "resets": events,
    "deletions": deleted,
    "an endless line": endless,
    "long refusals": refusals,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ANSWERS)
def test_costs_little(make_daemon, kind, what):
    """Also when it hangs up and starts anew, as often as it may."""
    d, path = daemon_with(make_daemon, kind)

    def answer(m, n):
        data = ANSWERS[what](m, n)
        if data is not None and server.commands[-1] != "qmp_capabilities":
            threading.Timer(0.3, lambda: [s.shutdown(socket.SHUT_RDWR) for s in [server.conn] if s.fileno() >= 0]).start()
        return data

    class Again(Server):
        def serve(self, conn):
            self.conn = conn
            super().serve(conn)

    server = Again(path, answer)
    d.start()
    d.wait(lambda: server.n)
    before = rss(d)
    share, worst = watch(d, 2)
    lines = d.log().count("\n")
    server.close()
    print(f"{kind}, {what}: {share:.0%} of the main thread, {worst * 1000:.0f} ms at once, {lines} lines, {server.n} connections")
    assert worst < 0.05 * SLOW, f"{worst:.3f} s at once"
    assert share < 0.25 * SLOW
    assert lines < 400, d.log()[:3000]
    assert rss(d) - before < 32 << 20 or SLOW > 1


def test_a_byte_at_a_time(make_daemon):
    """A long line in small pieces is not looked through again with each."""
    d, path = daemon_with(make_daemon, "device")
    server = Server(path, lambda m, n: None)

    def serve(conn):
        conn.sendall(json.dumps(GREETING).encode() + b"\n")
        conn.sendall(b'{"return":"' + b"x" * (400 << 10))
        end = time.monotonic() + 4
        while time.monotonic() < end:
            conn.sendall(b"x")
            time.sleep(0.00005)

    server.serve = serve
    d.start()
    d.wait(lambda: server.n)
    time.sleep(0.5)
    share, worst = watch(d, 2)
    server.close()
    print(f"{share:.0%} of the main thread, {worst * 1000:.0f} ms at once")
    assert worst < 0.05 * SLOW and share < 0.5 * SLOW


def test_left_behind_is_bounded(make_daemon):
    """The daemon removes no more devices of an earlier daemon than there can be, and logs once that a VMM lists more."""
    d, path = daemon_with(make_daemon, "device")
    server = Server(path, listing(3000))
    d.start()
    d.wait_log("of an earlier daemon")
    d.wait(lambda: len(d.show("ab")["sides"]["device"]["window_devices"]) == 64)
    d.stays(lambda: len(d.show("ab")["sides"]["device"]["window_devices"]) == 64, 1)
    assert server.commands.count("device_del") <= 2 * 64
    assert d.log().count("only the first 64 are removed") == 1
    server.close()


def test_large_answers_of_an_honest_vmm(make_daemon):
    """A VM with 300 devices: its answers of 300 KB are read, and the window is found in them."""
    import vu
    from test_port_ivshmem import Lab
    d = make_daemon()
    path = str(d.tmp / "qmp")
    lab = Lab(d, Device_QMP=path, Device_HotplugBus="rp0 rp1")

    class Large(pc.Qmp):
        def execute(self, cmd, a, fds):
            ret = super().execute(cmd, a, fds)
            more = [{"qdev_id": "other%d" % i, "name": "other%d" % i, "regions": [{"bar": b, "size": 4096, "address": 1 << 20, "type": "memory"}
                                                                               for b in range(6)]} for i in range(1000)]
            if cmd == "query-pci":
                ret[0]["devices"] = more[:300] + ret[0]["devices"]
            return more + ret if cmd == "qom-list" else ret

    lab.qmp = Large(path)
    lab.start()
    with vu.Nic(lab.drv()), pc.Ivshmem(lab.dev()) as p:
        p.vmm = lab.qmp
        p.attach()
        p.wait(lambda s: s.up)
        d.stays(lambda: not lab.error() and p.state().up, 1)
    lab.qmp.close()


@pytest.mark.parametrize("refused", [True, False])
def test_device_gone_before_it_came(make_daemon, refused):
    """A VMM says that a device was deleted while it still owes the answer to the command that adds it: that answer counts."""
    import vu
    from test_port_ivshmem import Lab
    d = make_daemon()
    path = str(d.tmp / "qmp")
    lab = Lab(d, Device_QMP=path, Device_HotplugBus="rp0 rp1")

    class Early(pc.Qmp):
        refuses = refused

        def execute(self, cmd, a, fds):
            if cmd == "device_add":
                self.event("DEVICE_DELETED", device=a["id"])
                if self.refuses:
                    raise KeyError("not today")
            return super().execute(cmd, a, fds)

    lab.qmp = Early(path)
    lab.start()
    with vu.Nic(lab.drv()), pc.Ivshmem(lab.dev()) as p:
        p.vmm = lab.qmp
        p.attach()
        if refused:
            d.wait(lambda: "not today" in (lab.error() or ""))
            lab.qmp.refuses = False
        p.wait(lambda s: s.up, 15)
        d.stays(lambda: not lab.error() and p.state().up, 0.5)
    lab.qmp.close()
