# SPDX-License-Identifier: BSD-3-Clause
"""vhost-pci-agent --capture on a tap, in a network namespace of its own, and the counters that the agent reads of it."""
import pathlib
import re
import signal
import struct
import subprocess
import sys

import pytest

import conftest
import vu
from pcapng import File

AGENT = str(conftest.BUILD / "guest/agent/vhost-pci-agent")

# A tap as vhost-net has it: "in HEX" comes out of its file, "out HEX" is sent by this machine.
TAP = """
import fcntl, socket, struct, subprocess, sys
fd = open("/dev/net/tun", "r+b", buffering=0)
fcntl.ioctl(fd, 0x400454ca, struct.pack("16sH14x", b"vp0", 0x0002 | 0x1000 | 0x4000))
fcntl.ioctl(fd, 0x400454d0, 0x1)
subprocess.run("ip link set vp0 addrgenmode none; ip link set vp0 up", shell=True, check=True)
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
s.bind(("vp0", 0))
print("ready", flush=True)
for line in sys.stdin:
    way, data = line.split()
    (fd.write if way == "in" else s.send)(bytes.fromhex(data))
    print("done", flush=True)
"""


@pytest.fixture
def tap():
    p = subprocess.Popen(["unshare", "-n", sys.executable, "-c", TAP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def send(way, data):
        p.stdin.write(f"{way} {data.hex()}\n")
        p.stdin.flush()
        assert p.stdout.readline() == "done\n"
    p.send, p.inside = send, ["nsenter", "-n", "-t", str(p.pid)]
    try:
        assert p.stdout.readline() == "ready\n"
        yield p
    finally:
        p.kill()
        p.communicate()


def capture(tap, *args):
    p = subprocess.Popen([*tap.inside, AGENT, "--capture", "vp0", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    line = p.stderr.readline().decode()
    assert line == "capturing vp0\n", line + p.stderr.read().decode()
    return p


def end(p, sig=signal.SIGTERM):
    if sig:
        p.send_signal(sig)
    out, err = p.communicate(timeout=conftest.PATIENCE)
    assert p.returncode == 0, err
    return out, err.decode()


def test_file(tap, tmp_path):
    path = tmp_path / "x.pcapng"
    p = capture(tap, "--write", str(path), "--count", "3")
    tap.send("in", bytes(10) + vu.frame(1, 100))
    tap.send("out", vu.frame(2, 200))
    tap.send("in", struct.pack("<BBHHHH", 1, 0, 0, 0, 34, 16) + vu.frame(3, 300))
    assert "3 packets captured, of 3; 0 dropped" in end(p, None)[1]
    f = File(path.read_bytes())
    # The directions are the driver VM's, and what says that a checksum is missing is there.
    assert [(x.direction, x.data) for x in f.packets] == [("out", vu.frame(1, 100)), ("in", vu.frame(2, 200)), ("out", vu.frame(3, 300))]
    assert f.packets[0].comment is None and f.packets[2].comment == "checksum still to be filled in: from byte 34 on, into byte 50"
    assert f.packets[2].flags & 1 << 9 and f.interface[2] == b"vp0" and f.stats["dropped"] == 0
    assert [x.ns for x in f.packets] == sorted(x.ns for x in f.packets)


def test_filter_snaplen_and_standard_output(tap):
    p = capture(tap, "--write", "-", "--filter", "greater 150", "--snaplen", "30")
    for n in range(6):
        tap.send("in", bytes(10) + vu.frame(n, 200 if n % 2 else 100))
    data = b""
    while data.count(vu.frame(5, 200)[:30]) == 0:
        data += p.stdout.read1(4096)
    f = File(data + end(p)[0])
    assert [(x.data, x.length) for x in f.packets] == [(vu.frame(n, 200)[:30], 200) for n in (1, 3, 5)]
    assert f.stats["received"] == 6 and f.stats["accepted"] == 3


def test_usage(tap, tmp_path):
    def run(*args):
        return subprocess.run([*tap.inside, AGENT, *args], capture_output=True, text=True)
    assert run("--capture", "vp0").returncode == 2
    assert run("--write", "x").returncode == 2
    assert run("--capture", "vp0", "--tap", "vp0", "--write", "x").returncode == 2
    r = run("--capture", "nobody", "--write", "-")
    assert r.returncode == 1 and "there is no interface nobody" in r.stderr
    r = run("--capture", "vp0", "--write", "-", "--filter", "nonsense here")
    assert r.returncode == 1 and "pcap-filter(7)" in r.stderr
    assert re.search(r"--capture NAME", run("--help").stdout)
    assert not pathlib.Path(tmp_path / "x").exists()
