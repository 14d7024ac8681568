# SPDX-License-Identifier: BSD-3-Clause
"""Packets across a relay link, pushed and checked by two scripted drivers."""
import itertools
import time

import pytest

import vu

SIZES = [14, 60, 64, 128, 1499, 1514]


def both_ways(a, b, sizes=SIZES):
    for n, size in enumerate(sizes):
        data = vu.frame(n, size)
        a.send_packet(data)
        _, got = b.recv_packet()
        assert got == data
        b.send_packet(data[::-1])
        _, got = a.recv_packet()
        assert got == data[::-1]


FORMATS = {"split": 0, "packed": vu.bit(vu.PACKED), "split-event": vu.bit(vu.EVENT_IDX),
           "packed-event": vu.bit(vu.PACKED, vu.EVENT_IDX), "packed-inorder": vu.bit(vu.PACKED, vu.IN_ORDER),
           "split-inorder": vu.bit(vu.IN_ORDER)}


@pytest.mark.parametrize("fa,fb", itertools.product(["split", "packed"], FORMATS))
def test_formats(daemon, fa, fb):
    base = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF)
    with vu.Nic(daemon.sock("ab", "driver"), base | FORMATS[fa]) as a, \
            vu.Nic(daemon.sock("ab", "device"), base | FORMATS[fb]) as b:
        assert daemon.show("ab")["status"] == "up"
        both_ways(a, b)
        # Packets are counted when they have gone.
        daemon.wait(lambda: (s := daemon.stats("ab"))["driver"]["tx"]["packets"] == len(SIZES) == s["device"]["rx"]["packets"] and
                    s["driver"]["tx"]["bytes"] == sum(SIZES))


@pytest.mark.parametrize("features", [vu.bit(vu.ANY_LAYOUT), vu.bit(vu.NET_MRG_RXBUF), vu.BASIC])
def test_header_lengths(daemon, features):
    """Legacy 10-byte header on one side, 12 bytes on the other."""
    with vu.Nic(daemon.sock("ab", "driver"), features) as a, vu.Nic(daemon.sock("ab", "device")) as b:
        both_ways(a, b)


def test_without_protocol_features(daemon):
    with vu.Nic(daemon.sock("ab", "driver"), protocol=0) as a, vu.Nic(daemon.sock("ab", "device")) as b:
        both_ways(a, b)


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("ring", [0, vu.bit(vu.PACKED)])
def test_scattered(daemon, ring, indirect):
    """Header split over descriptors, packet in many pieces."""
    f = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF) | ring
    with vu.Nic(daemon.sock("ab", "driver"), f, indirect=indirect) as a, vu.Nic(daemon.sock("ab", "device")) as b:
        for cut in ([1], [5, 9], [12], [12, 26], [12, 40, 41, 900], list(range(1, 30))):
            data = vu.frame(1, 1000)
            a.send_packet(data, cut=cut)
            assert b.recv_packet()[1] == data


def test_mergeable_buffers(daemon):
    """A 9000 byte packet over small receive buffers."""
    f = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF, vu.PACKED)
    with vu.Nic(daemon.sock("ab", "driver"), f) as a, vu.Nic(daemon.sock("ab", "device"), bufsize=700) as b:
        data = vu.frame(3, 9000)
        a.send_packet(data)
        assert b.recv_packet()[1] == data
        both_ways(a, b)


def test_too_big_for_receiver(daemon):
    with vu.Nic(daemon.sock("ab", "driver")) as a, vu.Nic(daemon.sock("ab", "device"), vu.BASIC, bufsize=1600) as b:
        a.send_packet(vu.frame(1, 3000))
        a.send_packet(vu.frame(2, 100))
        assert b.recv_packet()[1] == vu.frame(2, 100)
        daemon.wait(lambda: daemon.stats("ab")["driver"]["tx"]["drops"]["too-big"] == 1)


def test_order_and_wrap(daemon):
    """More packets than fit a ring many times over, at the 16 bit wrap of the index."""
    f = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF)
    with vu.Nic(daemon.sock("ab", "driver"), f | vu.bit(vu.PACKED), size=64) as a, \
            vu.Nic(daemon.sock("ab", "device"), f, size=64) as b:
        sent = got = 0
        while got < 3000:
            while sent < 3000 and sent - got < 32:
                a.send_packet(vu.frame(sent, 60 + sent % 500), kick=sent % 8 == 7)
                sent += 1
            a.kick(1)
            while (p := b.poll_packet()) is not None:
                assert p[1] == vu.frame(got, 60 + got % 500)
                got += 1


def test_split_index_wraps(daemon):
    """Rings that start just below 65536."""
    with vu.Nic(daemon.sock("ab", "driver"), fill=False) as a, vu.Nic(daemon.sock("ab", "device")) as b:
        ring = a.rings[1]
        assert a.stop_ring(1) == 0
        ring.reset()
        ring.avail_idx = ring.used_idx = 65530
        a.mem.w("H", ring.avail + 2, 65530)
        a.mem.w("H", ring.used + 2, 65530)
        a.start_ring(1, ring)
        for n in range(20):
            a.send_packet(vu.frame(n))
            assert b.recv_packet()[1] == vu.frame(n)


def test_absent_peer_drops(daemon):
    """The device side is not there: the driver runs, its packets are dropped and counted."""
    with vu.Nic(daemon.sock("ab", "driver")) as a:
        for n in range(500):
            a.send_packet(vu.frame(n))
        daemon.wait(lambda: daemon.stats("ab")["driver"]["tx"]["drops"]["no-peer"] == 500)
        assert daemon.show("ab")["status"] == "partial"
        with vu.Nic(daemon.sock("ab", "device")) as b:
            both_ways(a, b)
        daemon.wait(lambda: daemon.show("ab")["status"] == "partial")
        a.send_packet(vu.frame(1))
        daemon.wait(lambda: daemon.stats("ab")["driver"]["tx"]["drops"]["no-peer"] == 501)
        with vu.Nic(daemon.sock("ab", "device"), vu.BASIC | vu.bit(vu.PACKED)) as b:
            both_ways(a, b)


def test_receiver_without_buffers(daemon):
    """A receiver that stopped offering buffers does not stop the sender for long."""
    with vu.Nic(daemon.sock("ab", "driver")) as a, vu.Nic(daemon.sock("ab", "device"), fill=False) as b:
        for n in range(200):
            a.send_packet(vu.frame(n))
        daemon.wait(lambda: daemon.stats("ab")["driver"]["tx"]["drops"]["no-buffer"] == 200)
        b.fill_rx(16)
        both_ways(a, b)


def test_admin_down_and_up(daemon):
    with vu.Nic(daemon.sock("ab", "driver")) as a, vu.Nic(daemon.sock("ab", "device")) as b:
        both_ways(a, b)
        daemon.call("link.down", name="ab")
        assert daemon.show("ab")["status"] == "down"
        a.send_packet(vu.frame(1))
        daemon.wait(lambda: daemon.stats("ab")["driver"]["tx"]["drops"]["no-peer"] == 1)
        daemon.call("link.up", name="ab")
        both_ways(a, b)


def test_stop_and_restart_ring(daemon):
    """GET_VRING_BASE says where the ring stood; it goes on from there."""
    for ring in (0, vu.bit(vu.PACKED)):
        f = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF) | ring
        with vu.Nic(daemon.sock("ab", "driver"), f) as a, vu.Nic(daemon.sock("ab", "device"), f) as b:
            for n in range(10):
                both_ways(a, b)
            for q in (0, 1):
                base = a.stop_ring(q)
                assert q == 0 or base == a.rings[q].base()
                a.start_ring(q, a.rings[q], base=base)
            both_ways(a, b)


def test_disabled_ring(daemon):
    """Started but disabled: transmit is drained, receive gets nothing."""
    with vu.Nic(daemon.sock("ab", "driver")) as a, vu.Nic(daemon.sock("ab", "device")) as b:
        a.tell_state(vu.SET_VRING_ENABLE, 1, 0)
        a.send_packet(vu.frame(1))
        daemon.wait(lambda: daemon.stats("ab")["driver"]["tx"]["dropped"] == 1)
        assert b.poll_packet() is None
        a.tell_state(vu.SET_VRING_ENABLE, 1, 1)
        both_ways(a, b)


def test_multiqueue(make_daemon):
    d = make_daemon("--threads", "2")
    d.link("mq", Link_Queues=4)
    d.start()
    f = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF, vu.NET_MQ)
    pf = vu.bit(vu.PF_MQ, vu.PF_REPLY_ACK)
    with vu.Nic(d.sock("mq", "driver"), f, pairs=4, protocol=pf) as a:
        assert a.ask_u64(vu.GET_QUEUE_NUM) >= 4
        with vu.Nic(d.sock("mq", "device"), f, pairs=4, protocol=pf) as b:
            for p in range(4):
                a.send_packet(vu.frame(p), pair=p)
                assert b.recv_packet(pair=p)[1] == vu.frame(p)
                b.send_packet(vu.frame(p + 10), pair=p)
                assert a.recv_packet(pair=p)[1] == vu.frame(p + 10)
        # Fewer queues on the other side: all four transmit queues feed the two receive queues.
        with vu.Nic(d.sock("mq", "device"), f, pairs=2, protocol=pf) as b:
            for p in range(4):
                a.send_packet(vu.frame(p), pair=p)
                assert b.recv_packet(pair=p % 2)[1] == vu.frame(p)
            for p in range(2):
                b.send_packet(vu.frame(p), pair=p)
                assert a.recv_packet(pair=p)[1] == vu.frame(p)


def test_client_mode(make_daemon, tmp_path):
    """The daemon connects to the VMM's socket, and again when the VMM is restarted."""
    import os
    import socket
    d = make_daemon()
    path = str(d.tmp / "vmm.sock")
    d.link("ab", Driver_Socket=path, Driver_SocketMode="client")
    d.start()
    with vu.Nic(d.sock("ab", "device")) as b:
        for _ in range(2):
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
                listener.listen()
                with vu.Nic(None, listen=listener) as a:
                    both_ways(a, b)
            os.unlink(path)


def test_rate_limit(make_daemon):
    d = make_daemon()
    d.link("ab", Net_PacketsPerSecond=100)
    d.start()
    with vu.Nic(d.sock("ab", "driver")) as a, vu.Nic(d.sock("ab", "device")) as b:
        t = time.monotonic()
        for n in range(400):
            a.send_packet(vu.frame(n))
            while b.poll_packet() is not None:
                pass
        allowed = 64 + 100 * (time.monotonic() - t) + 10  # a burst, and what the time allows
        tx = d.wait(lambda: (t := d.stats("ab")["driver"]["tx"])["packets"] + t["dropped"] == 400 and t)
        assert 64 <= tx["packets"] <= allowed and tx["drops"]["rate"] == 400 - tx["packets"]


def test_config_space(make_daemon):
    import struct
    d = make_daemon()
    d.link("ab", Net_MTU=1400, Net_DriverMAC="52:54:00:00:00:01")
    d.start()
    with vu.Nic(d.sock("ab", "driver")) as a:
        data = a.ask(vu.GET_CONFIG, struct.pack("<III", 0, 12, 0) + bytes(12))
        mac, status, pairs, mtu = struct.unpack("<6sHHH", data[12:])
        assert mac == bytes.fromhex("525400000001") and mtu == 1400 and pairs == 1 and status == 0
        with vu.Nic(d.sock("ab", "device")) as b:
            assert not b.offered >> vu.NET_MAC & 1
            data = a.ask(vu.GET_CONFIG, struct.pack("<III", 6, 2, 0) + bytes(2))
            assert struct.unpack("<H", data[12:]) == (1,)
