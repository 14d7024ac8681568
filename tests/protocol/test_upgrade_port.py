# SPDX-License-Identifier: BSD-3-Clause
"""A new daemon takes over links with a port: neither end of one notices (docs/handover.md)."""
import contextlib
import os
import pathlib
import threading
import time

import conftest
import portclient as pc
import portlab
import pytest
import vu
from test_upgrade import fd_kinds, real, refused

PATH = pc.ALL & ~vu.bit(vu.PACKED)  # the scripted device side knows split rings
DONE = [
    ("copy", "local"),
    ("fast", "local"),
]
IDS = [f"{m}-{a}" for m, a in DONE]


class Ends(threading.Thread):
    """Numbered packets both ways between a driver and a device side: each arrives once, in order, unchanged."""

    def __init__(self, nic, port, window=24, size=200):
        super().__init__(daemon=True)
        self.nic, self.port, self.window, self.size = nic, port, window, size
        state = port.state()
        self.tx, self.rx = state.queues[1], state.queues[0]
        self.tx_at, self.rx_at = self.tx.base, self.rx.base
        self.sent, self.got = [0, 0], [0, 0]  # driver to device, device to driver
        self.ending, self.wrong, self.seen = False, None, state.generation

    def device_takes(self):
        moved = False
        while (got := self.port.take(self.tx, self.tx_at)) is not None:
            bufs, head = got
            data = b"".join(bytes(self.port.view(a, l)) for a, l, w in bufs)[12:]
            assert data == vu.frame(self.got[0], self.size), f"packet {self.got[0]} did not arrive, or not as sent"
            self.port.give_back(self.tx, self.tx_at, head, 0)
            self.tx_at += 1
            self.got[0] += 1
            moved = True
        if moved:
            pc.one(self.port.doorbells[self.tx.doorbell_at])
        return moved

    def device_sends(self):
        moved = False
        while not self.ending and self.sent[1] - self.got[1] < self.window:
            got = self.port.take(self.rx, self.rx_at)
            if got is None:
                break
            bufs, head = got
            whole = bytes(10) + b"\1\0" + vu.frame(self.sent[1], self.size)
            self.port.view(bufs[0][0], len(whole))[:] = whole
            self.port.give_back(self.rx, self.rx_at, head, len(whole))
            self.rx_at += 1
            self.sent[1] += 1
            moved = True
        if moved:
            pc.one(self.port.doorbells[self.rx.doorbell_at])
        return moved

    def driver(self):
        moved = False
        self.nic.reclaim()
        if not self.ending and self.sent[0] - self.got[0] < self.window:
            self.nic.send_packet(vu.frame(self.sent[0], self.size))
            self.sent[0] += 1
            moved = True
        while (p := self.nic.poll_packet()) is not None:
            assert p[1] == vu.frame(self.got[1], self.size), f"packet {self.got[1]} did not come back, or not as sent"
            self.got[1] += 1
            moved = True
        return moved

    def run(self):
        try:
            for q in (self.tx, self.rx):
                q.doorbell_at = q.doorbell & 0xffff
            idle = time.monotonic()
            while not self.ending or self.got != self.sent:
                moved = self.driver() | self.device_takes() | self.device_sends()
                now = time.monotonic()
                if moved:
                    idle = now
                elif now - idle > conftest.PATIENCE:
                    raise AssertionError(f"nothing moves: {self.sent} sent, {self.got} arrived")
                else:
                    time.sleep(0.0002)
        except Exception as err:  # pylint: disable=broad-except
            self.wrong = err

    def more(self, n=50):
        want = [g + n for g in self.got]
        deadline = time.monotonic() + conftest.PATIENCE
        while any(g < w for g, w in zip(self.got, want)):
            assert not self.wrong, repr(self.wrong)
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def end(self):
        self.ending = True
        self.join()
        assert not self.wrong, repr(self.wrong)
        assert self.nic.poll_packet() is None and self.port.take(self.tx, self.tx_at) is None, "a packet came twice"


@contextlib.contextmanager
def ends(nic, port):
    e = Ends(nic, port)
    e.start()
    e.more()
    try:
        yield e
        e.more()
    finally:
        e.end()


@contextlib.contextmanager
def lab(make_daemon, mode, attachment, conf="", **more):
    d = make_daemon()
    if conf:
        d.write("vhost-pci.conf", conf)
    x = portlab.PortLab(d, mode, attachment, **more)
    d.start()
    try:
        with vu.Nic(x.drv()) as nic, x.connect() as p:
            assert p.attach(PATH) == pc.OK
            portlab.started(p)
            yield d, nic, p
    finally:
        x.close()


def same_but_for(before, after, *keys):
    for side in ("driver", "device"):
        for k, v in before["sides"][side].items():
            if k not in keys:
                assert after["sides"][side].get(k) == v, (side, k, v, after["sides"][side].get(k))


@pytest.mark.parametrize("mode,attachment", DONE, ids=IDS)
def test_nobody_notices(make_daemon, mode, attachment):
    with lab(make_daemon, mode, attachment) as (d, nic, p):
        before, page = d.show("ab"), bytes(p.mem[pc.STATE:pc.STATE + 0x10000])
        with ends(nic, p) as e:
            for _ in range(4):
                got = d.upgrade()
                print("stall_us", got["stall_us"])
                e.more()
        assert bytes(p.mem[pc.STATE:pc.STATE + 0x10000]) == page, "the guest sees that"
        after = d.show("ab")
        same_but_for(before, after, "updates", "signals_forwarded", "commands")
        assert after["status"] == "up" and d.call("daemon.show")["upgrades"] == 4
        assert "went away" not in d.log() and "has left" not in d.log()
        # It is a port like any other still: commands, a driver that stops and starts, a guest that leaves.
        p.sync()
        s = p.state()
        assert p.command(pc.DETACH) == pc.OK
        d.wait(lambda: not p.state().up)
        assert p.attach(PATH) == pc.OK
        s2 = portlab.started(p)
        assert all(b.run > a.run for a, b in zip(s.queues, s2.queues))
        with ends(nic, p):
            pass


@pytest.mark.parametrize("mode,attachment", DONE, ids=IDS)
def test_counters_go_on(make_daemon, mode, attachment):
    if mode != "copy":
        pytest.skip("the daemon does not see the packets")
    with lab(make_daemon, mode, attachment) as (d, nic, p):
        with ends(nic, p) as e:
            d.upgrade()
            e.more()
            d.upgrade()
        d.wait(lambda: d.stats("ab")["driver"]["tx"]["packets"] == e.sent[0] and
               d.stats("ab")["device"]["tx"]["packets"] == e.sent[1])


TIMES = int(os.environ.get("VHOST_PCI_UPGRADES", 20))


@pytest.mark.parametrize("mode,attachment", DONE, ids=IDS)
def test_again_and_again(make_daemon, mode, attachment):
    """What one daemon has open, the next one has, and nothing more."""
    with lab(make_daemon, mode, attachment) as (d, nic, p):
        d.upgrade()
        fds = d.fds()
        maps = len(pathlib.Path(f"/proc/{d.proc.pid}/maps").read_text().splitlines())
        with ends(nic, p) as e:
            d.upgrade()
            e.more(20)
            kinds = fd_kinds(d.proc.pid)
            for _ in range(TIMES):
                d.upgrade()
                e.more(20)
            assert fd_kinds(d.proc.pid) == kinds
        d.wait_fds(fds)
        assert len(pathlib.Path(f"/proc/{d.proc.pid}/maps").read_text().splitlines()) <= maps + 8


@pytest.mark.parametrize("mode,attachment", DONE, ids=IDS)
def test_new_one_dies_at_each_point(make_daemon, mode, attachment, tmp_path):
    """Whatever it had done by then, the old one goes on, and the guest sees nothing of that."""
    path = tmp_path / "dies"
    path.write_text(f'#!/bin/sh\nn=$(cat {tmp_path}/n); VHOST_PCI_TAKEOVER_EXIT=$n exec {real()} "$@"\n')
    path.chmod(0o755)
    with lab(make_daemon, mode, attachment, conf=f"[Daemon]\nUpgradeBinaries={path}\n") as (d, nic, p):
        page = bytes(p.mem[pc.STATE:pc.STATE + 0x10000])
        with ends(nic, p) as e:
            fds = d.fds()
            for n in range(1, 100):
                (tmp_path / "n").write_text(str(n))
                pid = d.proc.pid
                try:
                    d.upgrade(binary=str(path))
                    break
                except conftest.ControlError:
                    assert d.alive() and d.proc.pid == pid
                    e.more(10)
                    d.wait_fds(fds)
            assert n >= 6, "there are more points than that"
        assert bytes(p.mem[pc.STATE:pc.STATE + 0x10000]) == page


@pytest.mark.parametrize("mode,attachment", DONE, ids=IDS)
def test_before_and_between(make_daemon, mode, attachment):
    """A port that nobody has, one with a guest and no driver, and one with a driver and no guest."""
    d = make_daemon()
    x = portlab.PortLab(d, mode, attachment)
    d.start()
    try:
        d.upgrade()
        with x.connect() as p:
            assert p.attach(PATH) == pc.OK
            d.upgrade()
            assert p.state().attached and not p.state().up
            with vu.Nic(x.drv()) as nic:
                portlab.started(p)
                with ends(nic, p):
                    d.upgrade()
            d.wait(lambda: not p.state().up)
            d.upgrade()
        d.wait(lambda: not d.show("ab")["sides"]["device"]["connected"])
        with vu.Nic(x.drv()) as nic:
            d.upgrade()
            # Nobody serves: what it sends is dropped, and counted.
            dropped = d.stats("ab")["driver"]["tx"]["dropped"]
            nic.send_packet(vu.frame(0))
            d.wait(lambda: d.stats("ab")["driver"]["tx"]["dropped"] == dropped + 1)
            with x.connect() as p:
                assert p.attach(PATH) == pc.OK
                portlab.started(p)
                with ends(nic, p):
                    d.upgrade()
        assert d.stop() == 0
    finally:
        x.close()


@pytest.mark.parametrize("mode,attachment", [x for x in portlab.ALL if x not in DONE],
                         ids=[f"{m}-{a}" for m, a in portlab.ALL if (m, a) not in DONE])
def test_others_are_refused(make_daemon, mode, attachment):
    """What cannot be handed over yet is named, and nothing happens."""
    d = make_daemon()
    x = portlab.PortLab(d, mode, attachment)
    d.start()
    try:
        pid = d.proc.pid
        refused(d, "link ab cannot be handed over")
        assert d.alive() and d.proc.pid == pid
    finally:
        x.close()
