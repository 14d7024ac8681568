# SPDX-License-Identifier: BSD-3-Clause
"""vhost-pcictl capture: what is in the file, what is dropped and counted, and that nobody but its reader feels it."""
import array
import contextlib
import json
import mmap
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess

import pytest

import blk
import conftest
import vu
from bugclass import Lab, MRG
from pcapng import File
from test_control import ctl
from test_device import Serving, dev, drv, link as disk_link
from test_json import held_text

# From conformance/vu.py's point of view: what the driver may leave to the device.
OFFLOADS = MRG | vu.bit(0, 1, 7, 8, 11, 12)


class Capture:
    """The command, from the moment when it captures."""

    def __init__(self, d, *args, link="ab", stdout=subprocess.PIPE):
        self.d = d
        self.p = subprocess.Popen([str(conftest.BUILD / "cli/vhost-pcictl"), "--control", str(d.run / "control.sock"), "capture", link,
                                   *args], stdout=stdout, stderr=subprocess.PIPE)
        line = self.p.stderr.readline().decode()
        assert line == f"capturing link {link}\n", line + self.p.stderr.read().decode()

    def end(self, sig=signal.SIGINT, status=0):
        """What it has printed, and the last line that it says."""
        if sig:
            self.p.send_signal(sig)
        out, err = self.p.communicate(timeout=conftest.PATIENCE)
        assert self.p.returncode == status, err
        return out, err.decode()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.p.kill()
        self.p.communicate()


@pytest.fixture(params=["relay", "copy"])
def lab(make_daemon, request):
    with contextlib.ExitStack() as stack:
        lab = Lab(make_daemon("--log-level", "info"), request.param)
        stack.callback(lambda: lab.proc and (lab.proc.kill(), lab.proc.wait()))
        stack.enter_context(lab.stack)
        yield lab


def saved(path):
    return File(pathlib.Path(path).read_bytes())


def test_file(lab, tmp_path):
    """Both directions, whole, in order, with their queues; tcpdump reads it as well."""
    lab.driver()
    path = tmp_path / "x.pcapng"
    sizes = [60, 64, 128, 129, 1000, 1514]
    with Capture(lab.d, "-w", str(path)) as c:
        for n, size in enumerate(sizes):
            lab.there_and_back(n, size)
        assert f"{2 * len(sizes)} packets captured, of {2 * len(sizes)}; 0 dropped" in c.end()[1]
    f = saved(path)
    assert f.interface[2] == b"ab" and b"mode " + lab.mode.encode() in f.interface[3]
    for way in ("out", "in"):
        assert [p.data for p in f.packets if p.direction == way] == [vu.frame(n, s) for n, s in enumerate(sizes)]
    assert all(p.length == len(p.data) and p.comment is None and p.lost == 0 for p in f.packets)
    # The sender's queue: on a relay link the device side has one of its own.
    assert {(p.direction, p.queue) for p in f.packets} == {("out", 1), ("in", 1 if lab.mode == "relay" else 0)}
    assert [p.ns for p in f.packets] == sorted(p.ns for p in f.packets)
    assert f.stats == {"received": 2 * len(sizes), "dropped": 0, "accepted": 2 * len(sizes)}
    # When nobody captures, nothing is left of it.
    lab.there_and_back(99)


@pytest.mark.skipif(not shutil.which("tcpdump"), reason="no tcpdump")
def test_tcpdump_reads_it_as_it_comes(lab):
    lab.driver()
    with Capture(lab.d, "-w", "-") as c:
        t = subprocess.Popen(["tcpdump", "-Z", "root", "-nn", "-e", "-t", "-l", "-r", "-"], stdin=c.p.stdout, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
        c.p.stdout.close()
        lab.there_and_back(1, 100)
        line = t.stdout.readline()  # while the capture goes on
        assert "02:00:00:00:00:01 > 02:00:00:00:00:02" in line and "length 100" in line, line
        lab.there_and_back(2, 77)
        c.p.send_signal(signal.SIGINT)
        rest = t.stdout.read()
        assert len(re.findall(r"^\S.* length \d+: *$", rest, re.M)) == 3 and t.wait(conftest.PATIENCE) == 0, rest + t.stderr.read()
        t.stdout.close()
        t.stderr.close()


def test_offload_header(lab, tmp_path):
    """Packets that are not finished are there as they were handed over, and say so."""
    lab.driver(OFFLOADS, bufsize=66000 if lab.mode == "relay" else 2048)
    path = tmp_path / "x.pcapng"
    tcp = bytes([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0]) + struct.pack(">H", 3040) + bytes(4) + bytes([64, 6, 0, 0]) + \
        bytes([10, 0, 0, 1, 10, 0, 0, 2]) + struct.pack(">HHIIHHHH", 1, 2, 0, 0, 0x5010, 1000, 0, 0) + bytes(3000)
    with Capture(lab.d, "-w", str(path)) as c:
        lab.nic.send_packet(tcp, hdr=struct.pack("<BBHHHHH", 1, 1, 54, 1000, 34, 16, 0))
        lab.nic.send_packet(tcp[:200], hdr=struct.pack("<BBHHHHH", 1, 0, 0, 0, 34, 16, 0))
        lab.d.wait(lambda: lab.d.stats("ab")["driver"]["tx"]["packets"] == 2)
        c.end()
    big, small = [p for p in saved(path).packets if p.direction == "out"][:2]
    assert big.data == tcp and big.flags & 1 << 9 and big.flags & 1 << 11
    assert big.comment == "to be cut into TCPv4 segments of 1000 bytes; checksum still to be filled in: from byte 34 on, into byte 50"
    assert small.data == tcp[:200] and small.flags & 1 << 9 and not small.flags & 1 << 11
    assert small.comment == "checksum still to be filled in: from byte 34 on, into byte 50"


def test_filter_and_snaplen(lab, tmp_path):
    lab.driver()
    path = tmp_path / "x.pcapng"
    with Capture(lab.d, "-w", str(path), "--filter", "greater 500 and ether src 02:00:00:00:00:01", "--snaplen", "40") as c:
        for n in range(6):
            lab.there_and_back(n, 600 if n % 2 else 100)
        c.end()
    f = saved(path)
    assert [(p.data, p.length) for p in f.packets] == [(vu.frame(n, 600)[:40], 600) for n in (1, 1, 3, 3, 5, 5)]
    assert f.snaplen == 40 and f.interface[11] == b"\0greater 500 and ether src 02:00:00:00:00:01"
    assert f.stats["received"] == 12 and f.stats["accepted"] == 6
    r = ctl(lab.d, "capture", "ab", "--filter", "no such thing")
    assert r.returncode == 2 and "pcap-filter(7)" in r.stderr and "no such thing" in r.stderr


def test_dropped_packets_are_there_and_say_why(daemon, tmp_path):
    path = tmp_path / "x.pcapng"
    with vu.Nic(daemon.sock("ab", "driver")) as a, Capture(daemon, "-w", str(path), "--count", "2") as c:
        a.send_packet(vu.frame(1))
        daemon.wait(lambda: daemon.stats("ab")["driver"]["tx"]["drops"]["no-peer"] == 1)
        with vu.Nic(daemon.sock("ab", "device")):  # it has come since, and gets the next one
            daemon.wait(lambda: daemon.show("ab")["status"] == "up")
            a.send_packet(b"\1" * 13)
            c.end(sig=None)
    first, second = saved(path).packets
    assert first.data == vu.frame(1) and first.comment == "dropped by vhost-pcid: no-peer"
    assert second.data == b"\1" * 13 and second.comment == "dropped by vhost-pcid: bad-packet"


def test_front_end_comes_back(lab, tmp_path):
    """The capture stays with the link, whatever comes and goes at its ends."""
    path = tmp_path / "x.pcapng"
    with Capture(lab.d, "-w", str(path), "--count", "4") as c:
        for n in range(2):
            lab.driver()
            lab.there_and_back(n)
            lab.nic.close()
            lab.d.wait(lambda: lab.d.show("ab")["status"] != "up")
        c.end(sig=None)
    assert [p.data for p in saved(path).packets] == [vu.frame(n, 200) for n in (0, 0, 1, 1)]


def test_several_queues_and_threads(make_daemon, tmp_path):
    d = make_daemon("--threads", "3")
    d.link("ab", Link_Queues=4)
    d.start()
    path = tmp_path / "x.pcapng"
    with vu.Nic(d.sock("ab", "driver"), pairs=4) as a, vu.Nic(d.sock("ab", "device"), pairs=4) as b:
        d.wait(lambda: d.show("ab")["status"] == "up")
        with Capture(d, "-w", str(path), "--count", "80") as c:
            for n in range(20):
                for q in range(4):
                    a.send_packet(vu.frame(4 * n + q), pair=q)
                    assert b.recv_packet(pair=q)[1] == vu.frame(4 * n + q)
            c.end(sig=None)
    f = saved(path)
    for q in range(4):
        assert [p.data for p in f.packets if p.queue == 2 * q + 1] == [vu.frame(4 * n + q) for n in range(20)]
    assert [p.ns for p in f.packets] == sorted(p.ns for p in f.packets)


def test_reader_that_does_not_read(lab, tmp_path):
    """Its ring fills up and packets are missing there, counted, and nowhere else."""
    lab.driver()
    path = tmp_path / "x.pcapng"
    sent = 400  # of 1.5 kB, both ways: more than the smallest ring holds
    with Capture(lab.d, "-w", str(path), "--buffer", "256K") as c:
        c.p.send_signal(signal.SIGSTOP)
        for n in range(sent):
            lab.there_and_back(n, 1500)
        c.p.send_signal(signal.SIGCONT)
        # A packet behind the hole says how large it was.
        lab.d.wait(lambda: path.stat().st_size > 100000)
        lab.there_and_back(sent, 1500)
        lab.d.wait(lambda: vu.frame(sent, 1500) in path.read_bytes())
        said = c.end()[1]
    f = saved(path)
    assert f.stats["received"] == 2 * (sent + 1) and f.stats["dropped"] > 0
    assert len(f.packets) == f.stats["received"] - f.stats["dropped"] == f.stats["accepted"]
    assert sum(p.lost for p in f.packets) == f.stats["dropped"]
    assert f"{f.stats['dropped']} dropped for want of buffer: a larger --buffer" in said
    assert lab.d.stats("ab")["driver"]["tx"]["dropped"] == 0


def raw(d, **params):
    """link.capture by hand: (connection, answer, fd)."""
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(60)
    s.connect(str(d.run / "control.sock"))
    s.sendall(json.dumps({"version": 1, "id": 1, "method": "link.capture", "params": {"name": "ab", **params}}).encode() + b"\n")
    data, anc, _, _ = s.recvmsg(1, socket.CMSG_SPACE(16))
    fds = array.array("i")
    for level, kind, body in anc:
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        fds.frombytes(body)
    while not data.endswith(b"\n"):
        data += s.recv(65536)
    return s, json.loads(data), fds[0] if fds else -1


def test_hostile_reader(lab):
    """Whatever it writes into what it was given, and whatever it does to the file."""
    lab.driver()
    s, answer, fd = raw(lab.d, buffer=256 << 10)
    r = answer["result"]
    size = r["rings"] * (4096 + r["ring_size"])
    assert os.fstat(fd).st_size == size
    for n in (0, 4096, size + 4096):  # no page goes
        with pytest.raises(PermissionError):
            os.ftruncate(fd, n)
    with s, mmap.mmap(fd, size) as m:
        heads = [i * (4096 + r["ring_size"]) for i in range(r["rings"])]
        for n, tail in enumerate([0, 1, 7, 1 << 63, (1 << 64) - 1, 12345678, (1 << 64) - 4096, 8]):
            for h in heads:
                m[h:h + 4096] = os.urandom(4096)
                struct.pack_into("<Q", m, h + 128, tail)
            for k in range(8):
                lab.there_and_back(8 * n + k, 1500)
        for h in heads:
            m[h:h + 4096 + r["ring_size"]] = b"\xff" * (4096 + r["ring_size"])
        lab.there_and_back(1000)
    os.close(fd)
    lab.check()


def test_bounds(lab):
    d = lab.d
    held = [raw(d) for _ in range(4)]
    try:
        assert all(fd >= 0 and a["result"]["name"] == "ab" for _, a, fd in held)
        s, answer, fd = raw(d)
        s.close()
        assert fd < 0 and answer["error"]["code"] == "limit" and "4 captures" in answer["error"]["message"]
    finally:
        for s, _, fd in held:
            s.close()
            os.close(fd)
    fds = d.fds()
    for params, text in (({"snaplen": 1 << 20}, "snaplen"), ({"buffer": 1000}, "buffer"), ({"buffer": 1 << 40}, "buffer"),
                         ({"buffer": -1}, "number"), ({"snaplen": "x"}, "number")):
        with pytest.raises(conftest.ControlError, match=text):
            d.call("link.capture", name="ab", **params)
    with pytest.raises(conftest.ControlError, match="there is no link"):
        d.call("link.capture", name="nobody")
    # One for a connection, which ends with it; nothing is left of any.
    c = conftest.Control(d.run / "control.sock")
    c.call("link.capture", name="ab")
    with pytest.raises(conftest.ControlError, match="already"):
        c.call("link.capture", name="ab")
    c.close()
    d.wait_fds(fds)
    assert "link.capture" in d.log()  # audited


def test_capture_ends_with_its_link(make_daemon, tmp_path):
    d = make_daemon()
    d.link("ab")
    d.start()
    path = tmp_path / "x.pcapng"
    with Capture(d, "-w", str(path)) as c:
        d.call("link.remove", name="ab")
        assert "the link was removed" in c.end(sig=None, status=1)[1]
    assert saved(path).stats["received"] == 0
    d.call("link.add", name="ab", config={"Driver": {"VM": "a"}, "Device": {"VM": "b"}})
    with Capture(d, "-w", str(path)) as c:
        d.kill()
        c.end(sig=None, status=3)
    assert saved(path).stats is not None
    d.start()  # for who looks how it ends


def test_fast_link_says_where_to_look(make_daemon):
    d = make_daemon()
    d.link("ab", Device_Endpoint="port", Device_Attachment="local", Link_Mode="fast")
    d.start()
    r = ctl(d, "capture", "ab")
    assert r.returncode == 1 and "device VM" in r.stderr and "tcpdump" in r.stderr


def test_lines(lab):
    lab.driver()
    with Capture(lab.d, "--count", "2") as c:
        lab.there_and_back(1, 100)
        out = c.end(sig=None)[0].decode().splitlines()
    assert re.match(r"[0-9:.]+ out queue 1, 02:00:00:00:00:01 > 02:00:00:00:00:02, ethertype 0x88b5, length 100$", out[0]), out
    with Capture(lab.d, "--count", "2", "--json") as c:
        lab.there_and_back(1, 100)
        o, back = (held_text("capture", x) for x in c.end(sig=None)[0].decode().splitlines())
    assert (o["from"], o["queue"], o["length"], o["captured"], o["ethertype"], o["dropped"]) == ("driver", 1, 100, 100, 0x88b5, None)
    assert back["from"] == "device" and back["time_ns"] >= o["time_ns"]


def test_usage(daemon, tmp_path):
    for args in (["ab", "cd"], [], ["ab", "--count", "0"], ["ab", "--snaplen", "1M"], ["ab", "-w", "x", "--json"], ["ab", "--buffer", "x"]):
        assert ctl(daemon, "capture", *args).returncode == 2, args
    r = ctl(daemon, "capture", "ab", "-w", str(tmp_path / "no/x"))
    assert r.returncode == 1 and "No such file" in r.stderr
    assert "pcapng" in ctl(daemon, "capture", "--help").stdout


# ---- requests -----------------------------------------------------------------------------------


def test_trace_of_a_disk(make_daemon):
    d = make_daemon("--threads", "2")
    disk_link(d, Profile_Capacity="4M")
    d.start()
    with blk.Driver(drv(d)) as f, dev(d) as p:
        disk = blk.Disk(p).attach().up()
        with Capture(d, "--count", "4", "--json") as c:
            with Serving(disk):
                f.write(16, blk.pattern(4096))
                f.read(8, 512)
                f.wait(f.request(blk.DO_FLUSH, 0))
            t = f.request(blk.IN, 24, length=1024)
            disk.answer(disk.take(), status=1)
            assert f.wait(t)[0] == 1
            lines = [held_text("capture", x) for x in c.end(sig=None)[0].decode().splitlines()]
        got = [(x["type"], x["sector"], x["bytes"], x["status"], x["queue"]) for x in lines]
        assert got == [("write", 16, 4096, "ok", 0), ("read", 8, 512, "ok", 0), ("flush", None, None, "ok", 0), ("read", 24, 1024, "error", 0)]
        assert all(x["latency_ns"] > 0 and not x["failed"] for x in lines)
        # One that was taken before the trace began, and one behind it.
        first = f.request(blk.IN, 0, length=512)
        got = disk.take()
        with Capture(d, "--count", "2") as c:
            disk.answer(got)
            f.wait(first)
            t = f.request(blk.OUT, 2, blk.pattern(512))
            disk.answer(disk.take())
            f.wait(t)
            old, new = c.end(sig=None)[0].decode().splitlines()
        assert re.match(r"[0-9:.]+ queue 0 request, \d+ bytes out, 513 bytes in, ok$", old), old
        assert re.match(r"[0-9:.]+ queue 0 write, sector 2, 512 bytes, [0-9.]+ us, ok$", new), new
        r = ctl(d, "capture", "ab", "-w", "x")
        assert r.returncode == 2 and "requests" in r.stderr
