# SPDX-License-Identifier: BSD-3-Clause
"""A new daemon takes over links with a port: neither end of one notices (docs/handover.md)."""
import contextlib
import json
import os
import pathlib
import struct
import threading
import time

import conftest
import portclient as pc
import portlab
import pytest
import vu
from portflow import PATH, Ends, ends, lab
from portside import answer_stop
from test_upgrade import fd_kinds, real



def same_but_for(before, after, *keys):
    for side in ("driver", "device"):
        for k, v in before["sides"][side].items():
            if k not in keys:
                assert after["sides"][side].get(k) == v, (side, k, v, after["sides"][side].get(k))


@pytest.mark.parametrize("mode,attachment", portlab.ALL, ids=portlab.IDS)
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


@pytest.mark.parametrize("mode,attachment", portlab.ALL, ids=portlab.IDS)
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


@pytest.mark.parametrize("mode,attachment", portlab.ALL, ids=portlab.IDS)
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


@pytest.mark.parametrize("mode,attachment", portlab.ALL, ids=portlab.IDS)
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


@pytest.mark.parametrize("mode,attachment", portlab.ALL, ids=portlab.IDS)
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


FORMATS = {"packed": vu.bit(vu.PACKED), "packed-event": vu.bit(vu.PACKED, vu.EVENT_IDX), "split-event": vu.bit(vu.EVENT_IDX),
           "packed-inorder": vu.bit(vu.PACKED, vu.IN_ORDER)}


@pytest.mark.parametrize("attachment", portlab.ATTACHMENTS)
@pytest.mark.parametrize("ring", FORMATS)
def test_ring_formats_of_the_driver(make_daemon, attachment, ring):
    """Small ones, which wrap all the time; and it is known where they stop."""
    features = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF) | FORMATS[ring]
    with lab(make_daemon, "copy", attachment, nic={"features": features, "size": 32}) as (d, nic, p):
        with ends(nic, p, window=12) as e:
            for _ in range(2):
                d.upgrade()
                e.more(100)
        at = [e.got[1], e.got[0]]
        for q in (0, 1):
            stop = threading.Thread(target=lambda q=q: answer_stop(p, q, 0))
            stop.start()
            base = nic.stop_ring(q)
            stop.join()
            if FORMATS[ring] & vu.bit(vu.PACKED):
                assert base >> 16 & 0x7fff == at[q] % 32, (hex(base), at[q])
            else:
                assert nic.mem.r("H", nic.rings[q].used + 2) == at[q]


@pytest.mark.parametrize("attachment", portlab.ATTACHMENTS)
def test_queue_pairs(make_daemon, attachment):
    """Each queue goes on where it was, with its own area of the pool."""
    with lab(make_daemon, "copy", attachment, nic={"pairs": 3}, Link_Queues=3) as (d, nic, p):
        with ends(nic, p, window=8, hold=5) as e, ends(nic, p, pair=1, window=12) as f, \
                ends(nic, p, pair=2, window=8, hold=0) as g:
            for _ in range(3):
                d.upgrade()
                for x in (e, f, g):
                    x.more()
        d.wait(lambda: d.stats("ab")["device"]["tx"]["packets"] == sum(x.sent[1] for x in (e, f, g)))


def test_rates_go_on(make_daemon):
    """Limits do not begin anew with each daemon, in neither direction. What is over the limit is dropped, or waits."""
    with lab(make_daemon, "copy", "local", Net_PacketsPerSecond=100) as (d, nic, p):
        e = Ends(nic, p, window=400, hold=0)
        began = time.monotonic()
        for _ in range(8):
            for _ in range(40):
                nic.send_packet(vu.frame(0))
                while e.take(0, e.held):
                    e.give_back(0, e.held.pop()[1], 0)
            e.device_sends()
            while nic.poll_packet() is not None:
                e.got[1] += 1
            d.upgrade()
        took = time.monotonic() - began
        stats = d.stats("ab")
        for side in ("driver", "device"):
            got = stats[side]["tx"]["packets"]
            print(side, got, took)
            # 64 at once, and 100 a second; anew each time it would be most of the first 64s.
            assert 64 <= got <= 64 + 100 * took + 10, (side, got, took)


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_dirty_log(make_daemon, ring):
    """A migration goes on: what the next daemon writes to the driver VM's memory is marked, too."""
    features = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF) | (vu.bit(vu.PACKED) if ring == "packed" else 0)
    with lab(make_daemon, "copy", "ivshmem", nic={"features": features}) as (d, nic, p):
        with contextlib.closing(vu.Memory(1 << 20)) as log, ends(nic, p) as e:
            nic.ask(vu.SET_LOG_BASE, struct.pack("<QQ", log.size, 0), [log.fd])
            nic.tell_u64(vu.SET_FEATURES, nic.features | vu.bit(vu.LOG_ALL))
            for q in (0, 1):
                nic.tell(vu.SET_VRING_ADDR, nic.addr_msg(q, nic.rings[q], flags=1, log=nic.mem.gpa + nic.rings[q].used))
            e.more()
            for _ in range(2):
                d.upgrade()
                log.map[:] = bytes(log.size)
                e.more(100)
                bits, page = log.map[:], nic.mem.gpa >> 12
                dirty = {i * 8 + k - page for i, v in enumerate(bits) if v for k in range(8) if v >> k & 1}
                assert nic.rings[0].used >> 12 in dirty, "what the ring says is not marked"
                # Each of its buffers has come by.
                assert {(nic.rings[0].used >> 12), } < dirty and len(dirty) >= 16, sorted(dirty)


@pytest.mark.parametrize("attachment", portlab.ATTACHMENTS)
@pytest.mark.parametrize("side", ["driver", "device"])
def test_side_leaves_meanwhile(make_daemon, attachment, side, tmp_path):
    """It hangs up while the records are on their way: the next daemon sees it, and serves who comes then."""
    path = tmp_path / "slow"
    path.write_text(f'#!/bin/sh\nsleep 0.3; exec {real()} "$@"\n')
    path.chmod(0o755)
    d = make_daemon()
    d.write("vhost-pci.conf", f"[Daemon]\nUpgradeBinaries={path}\n")
    x = portlab.PortLab(d, "copy", attachment)
    d.start()
    with contextlib.ExitStack() as stays:
        nic, p = vu.Nic(x.drv()), x.connect()
        assert p.attach(PATH) == pc.OK
        portlab.started(p)
        with ends(nic, p):
            pass
        goes, other = (nic, p) if side == "driver" else (p, nic)
        stays.enter_context(other)
        t = threading.Timer(0.15, goes.close)
        t.start()
        d.upgrade(binary=str(path))
        t.join()
        key = "connected" if side == "driver" else "online"
        d.wait(lambda: not d.show("ab")["sides"][side][key])
        if side == "driver":
            p.wait(lambda s: not s.up)
            p.sync()
            nic = stays.enter_context(vu.Nic(x.drv()))
        else:
            p = stays.enter_context(x.connect())
            assert p.attach(PATH) == pc.OK
        portlab.started(p)
        with ends(nic, p):
            d.upgrade()


@pytest.mark.parametrize("attachment", portlab.ATTACHMENTS)
def test_stopped_meanwhile(make_daemon, attachment, tmp_path):
    """SIGTERM while a new one starts: the daemon ends as ever, the new one with it, and the guest is told."""
    path = tmp_path / "slow"
    path.write_text(f'#!/bin/sh\necho $$ > {tmp_path}/pid; sleep 60; exec {real()} "$@"\n')
    path.chmod(0o755)
    with lab(make_daemon, "copy", attachment, conf=f"[Daemon]\nUpgradeBinaries={path}\n") as (d, nic, p):
        mem = p.mem
        c = conftest.Control(d.run / "control.sock")
        c.sock.sendall(json.dumps({"version": 1, "id": 1, "method": "daemon.upgrade",
                                   "params": {"binary": str(path)}}).encode() + b"\n")
        d.wait(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        pid = int((tmp_path / "pid").read_text())
        assert d.stop() == 0
        d.wait(lambda: not pathlib.Path(f"/proc/{pid}").exists() or
               "Z" in pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0])
        state = pc.State(bytes(mem[pc.STATE:pc.STATE + 0x10000]))
        assert state.reason == pc.DAEMON and not state.up
        c.close()


def signals_pass(nic, p):
    """Both ways: the driver is told of what the device side returns, and the device side of what the driver sends."""
    s = p.state()
    for q in s.queues:
        while pc.raised(p.signals[q.kick_signal], 0):
            pass
    while pc.raised(nic.rings[1].call_fd, 0):
        pass
    nic.send_packet(vu.frame(7, 100))
    assert pc.raised(p.signals[s.queues[1].kick_signal]), "no kick"
    avail, = struct.unpack_from("<H", p.view(s.queues[1].avail, 4), 2)
    bufs, head = p.take(s.queues[1], avail - 1)
    assert b"".join(bytes(p.view(a, l)) for a, l, w in bufs)[12:] == vu.frame(7, 100)
    p.give_back(s.queues[1], avail - 1, head, 0)
    pc.one(p.doorbells[s.queues[1].doorbell])


@pytest.mark.parametrize("mode,attachment", portlab.ALL, ids=portlab.IDS)
def test_signals(make_daemon, mode, attachment):
    # In copy mode the shadow ring would have event indices, which the scripted device side does not write.
    path = PATH & ~vu.bit(vu.EVENT_IDX) if mode == "copy" else PATH
    with lab(make_daemon, mode, attachment, path=path) as (d, nic, p):
        for _ in range(3):
            d.upgrade()
            signals_pass(nic, p)
            assert pc.raised(nic.rings[1].call_fd), "the driver is not told"
            p.sync()  # signal 0 from the guest, and
            while pc.raised(p.signals[0], 0):
                pass
            nic.tell_state(vu.SET_VRING_ENABLE, 0, 0)
            assert pc.raised(p.signals[0]), "the guest is not told of the page"
            nic.tell_state(vu.SET_VRING_ENABLE, 0, 1)
            portlab.started(p)
