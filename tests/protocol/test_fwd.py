# SPDX-License-Identifier: BSD-3-Clause
"""vhost-pci-fwd on local ports that come, go and come back."""
import contextlib
import json
import signal
import subprocess

import pytest

import conftest
import vu
from portlab import PortLab

FWD = conftest.BUILD / "fwd/vhost-pci-fwd"


class Fwd:
    def __init__(self, tmp, *args):
        self.log = tmp / "fwd.log"
        with open(self.log, "w") as log:
            self.p = subprocess.Popen([str(FWD), *args], stdout=subprocess.PIPE, stderr=log, text=True)

    def said(self, text, times=1):
        return self.log.read_text().count(text) >= times

    def stats(self):
        """Ends it; its counters of the end, one object for each port."""
        self.p.send_signal(signal.SIGTERM)
        out, _ = self.p.communicate(timeout=conftest.PATIENCE)
        assert self.p.returncode == 0, self.log.read_text()
        text = self.log.read_text()
        assert "ERROR: AddressSanitizer" not in text and "runtime error:" not in text, text
        return json.loads(out.splitlines()[-1])


@pytest.fixture
def fwd(tmp_path):
    with contextlib.ExitStack() as ends:
        def start(*args):
            f = Fwd(tmp_path, *args)
            ends.callback(lambda: (f.p.kill(), f.p.wait(), f.p.stdout.close()))
            return f
        yield start


def echoes(d, nic, numbers):
    """Of --mode macswap."""
    for n in numbers:
        nic.send_packet(vu.frame(n, 100))
        _, got = nic.recv_packet()
        want = vu.frame(n, 100)
        assert got == want[6:12] + want[:6] + want[12:]


def test_ends_with_its_port(make_daemon, fwd):
    d = make_daemon()
    lab = PortLab(d, "fast", "local")
    d.start()
    f = fwd("--mode", "macswap", "unix:" + lab.dev())
    d.wait(lambda: d.show("ab")["sides"]["device"]["attached"])
    d.call("link.remove", name="ab")
    assert f.p.wait(conftest.PATIENCE) == 0


@pytest.mark.parametrize("mode", ["fast", "copy"])
def test_attaches_again(make_daemon, fwd, mode):
    """When a reload has made the link anew, and when the daemon was started anew; the counters go on."""
    d = make_daemon()
    lab = PortLab(d, mode, "local")
    d.start()
    f = fwd("--mode", "macswap", "--reconnect", "--stats", "1000", "--json", "unix:" + lab.dev())
    up = lambda: d.wait(lambda: d.show("ab")["status"] == "up")
    with vu.Nic(lab.drv()) as nic:
        up()
        echoes(d, nic, range(5))
    PortLab(d, mode, "local", Link_Queues="2")
    assert d.call("daemon.reload", replug="yes")["anew"] == ["ab"]
    d.wait(lambda: f.said("attached"))
    with vu.Nic(lab.drv()) as nic:
        up()
        echoes(d, nic, range(3))
    d.stop()
    d.wait(lambda: f.said("waiting for it"))
    d.start()
    d.wait(lambda: f.said("attached", 2))
    with vu.Nic(lab.drv()) as nic:
        up()
        echoes(d, nic, range(2))
        d.wait(lambda: f.said("link up", 3))
    port, = f.stats()
    assert (port["recv_packets"], port["send_packets"]) == (10, 10)
    # It says once why it waits, not every second.
    assert f.log.read_text().count("waiting for it") < 5


def test_waits_from_the_start_and_serves_the_others(make_daemon, fwd):
    """A port whose daemon is not there yet; then one of two that are joined is gone, and what is sent to it is lost and counted."""
    d = make_daemon()
    a, b = PortLab(d, "fast", "local"), PortLab(d, "fast", "local", name="cd", driver="c", device="d")
    f = fwd("--reconnect", "--stats", "1000", "--json", "unix:" + a.dev(), "unix:" + b.dev())
    d.wait(lambda: f.said("waiting for it", 2))
    d.start()
    d.wait(lambda: f.said("attached", 2))
    with vu.Nic(a.drv()) as nic, vu.Nic(b.drv()) as other:
        d.wait(lambda: all(d.show(x)["status"] == "up" for x in ("ab", "cd")))
        nic.send_packet(vu.frame(1, 100))
        assert other.recv_packet()[1] == vu.frame(1, 100)
        d.call("link.remove", name="cd")
        d.wait(lambda: f.said("link down: gone"))
        nic.reclaim(0)
        free = len(nic.tx_free)
        for n in range(4):
            nic.send_packet(vu.frame(n, 100))

        def all_back():
            nic.reclaim(0)
            return len(nic.tx_free) == free
        d.wait(all_back)
        d.call("daemon.reload")
        d.wait(lambda: f.said("attached", 3))
    with vu.Nic(a.drv()) as nic, vu.Nic(b.drv()) as other:
        d.wait(lambda: all(d.show(x)["status"] == "up" for x in ("ab", "cd")))
        nic.send_packet(vu.frame(2, 100))
        assert other.recv_packet()[1] == vu.frame(2, 100)
    first, second = f.stats()
    assert first["recv_packets"] == 6 and second["send_packets"] == 2 and second["lost"] == 4


def test_what_is_refused(fwd, tmp_path):
    f = fwd("--reconnect", "--protect", "unix:/none")
    assert f.p.wait(conftest.PATIENCE) == 2 and f.said("--reconnect: a program that is sealed")
    f = fwd("unix:" + str(tmp_path / "none"))
    assert f.p.wait(conftest.PATIENCE) == 1 and not f.said("waiting")
