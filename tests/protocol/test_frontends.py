# SPDX-License-Identifier: BSD-3-Clause
"""What front-ends other than QEMU do, or QEMU seldom does: each was reported of some back-end, and each is asked in every mode."""
import contextlib
import os
import select
import socket
import struct
import time

import pytest

import portclient as pc
import vu
from bugclass import MODES, MRG, Lab, lab_of

PF = vu.bit(vu.PF_REPLY_ACK, vu.PF_CONFIG, vu.PF_BACKEND_REQ, vu.PF_STATUS)
CSUM, HOST_TSO4, GUEST_CSUM, GUEST_TSO4 = 0, 11, 1, 7
HDR = "<BBHHHHH"


@pytest.fixture(params=MODES)
def lab(make_daemon, request):
    yield from lab_of(Lab, make_daemon, request.param)


# ---- a transmit queue that is disabled

@pytest.mark.parametrize("ring", [0, vu.bit(vu.EVENT_IDX), vu.bit(vu.PACKED)], ids=["split", "event-idx", "packed"])
def test_disabled_transmit_ring(lab, ring):
    """Its packets are taken and discarded (vhost-user, "Ring states"), and do not leave when it is enabled again. Nor does a stop lose its place."""
    nic = lab.driver(MRG | ring)
    n = 0
    for _ in range(4):
        for _ in range(10):
            lab.there_and_back(n)
            n += 1
        nic.reclaim()
        for q in (0, 1):
            nic.tell_state(vu.SET_VRING_ENABLE, q, 0)
        before = lab.drops()
        for i in range(30):
            nic.send_packet(vu.frame(5000 + i))
        lab.d.wait(lambda: nic.reclaim() or not nic.rings[1].chains)
        lab.d.wait(lambda: lab.drops() >= before + 30)
        for q in (0, 1):
            nic.tell_state(vu.SET_VRING_ENABLE, q, 1)
        lab.d.wait(lambda: lab.d.show("ab")["status"] == "up")
    lab.there_and_back(n)
    assert lab.answer(0.3) is None
    # Enabled and disabled faster than anybody answers, and stopped in either state.
    for i in range(20):
        nic.tell_state(vu.SET_VRING_ENABLE, 1, i & 1)
    nic.tell_state(vu.SET_VRING_ENABLE, 1, 0)
    nic.send_packet(vu.frame(6000))
    lab.d.wait(lambda: nic.reclaim() or not nic.rings[1].chains)
    assert nic.stop_ring(1) == nic.rings[1].base()
    nic.start_ring(1, nic.rings[1])
    lab.d.wait(lambda: lab.d.show("ab")["status"] == "up")
    lab.there_and_back(n + 1)


def test_disabled_from_the_start(lab):
    """A second queue pair that is set up and never enabled, as QEMU sets up all that there are."""
    nic = lab.driver()
    nic.stop_ring(1)
    nic.rings[1].reset()
    nic.tell_state(vu.SET_VRING_ENABLE, 1, 0)
    nic.start_ring(1, nic.rings[1], enable=False)
    nic.tx_free = [nic.mem.alloc(2048) for _ in range(8)]
    for i in range(8):
        nic.send_packet(vu.frame(i))
    lab.d.wait(lambda: nic.reclaim() or not nic.rings[1].chains)
    nic.tell_state(vu.SET_VRING_ENABLE, 1, 1)
    lab.d.wait(lambda: lab.d.show("ab")["status"] == "up")
    lab.there_and_back(9)
    assert lab.answer(0.3) is None


# ---- how rings start and stop

@pytest.mark.parametrize("ring", [0, vu.bit(vu.EVENT_IDX), vu.bit(vu.PACKED)], ids=["split", "event-idx", "packed"])
def test_started_without_a_kick(lab, ring):
    """A ring starts with SET_VRING_KICK: what lies in it then is processed, and no kick has to follow ("Ring states")."""
    nic = lab.driver(MRG | ring)
    lab.there_and_back(0)
    for n in range(1, 6):
        base = nic.stop_ring(1)
        nic.send_packet(vu.frame(n), kick=False)
        nic.start_ring(1, nic.rings[1], base=base)
        assert lab.answer() == vu.frame(n)


@pytest.mark.parametrize("ring", [0, vu.bit(vu.EVENT_IDX), vu.bit(vu.PACKED)], ids=["split", "event-idx", "packed"])
def test_no_kick_fd(lab, ring):
    """SET_VRING_KICK with the invalid FD flag: the ring is polled."""
    nic = lab.driver(MRG | ring)
    lab.there_and_back(0)
    base = nic.stop_ring(1)
    nic.start_ring(1, nic.rings[1], base=base)
    nic.tell_u64(vu.SET_VRING_KICK, 1 | 0x100)
    for n in range(1, 6):
        time.sleep(0.02)
        nic.send_packet(vu.frame(n), kick=False)
        assert lab.answer() == vu.frame(n)


def test_features_without_protocol_features_enable(lab):
    """SET_FEATURES without VHOST_USER_F_PROTOCOL_FEATURES enables all rings immediately, also those that run ("Ring states")."""
    nic = lab.driver()
    for q in (0, 1):
        nic.tell_state(vu.SET_VRING_ENABLE, q, 0)
    before = lab.drops()
    nic.send_packet(vu.frame(1))
    lab.d.wait(lambda: lab.drops() > before)
    nic.tell_u64(vu.SET_FEATURES, nic.features & ~vu.bit(vu.PROTOCOL))
    lab.d.wait(lambda: lab.d.show("ab")["status"] == "up")
    lab.there_and_back(2)


def test_reset_owner_changes_nothing(lab):
    """Deprecated; to be ignored, or to disable all rings."""
    nic = lab.driver()
    lab.there_and_back(1)
    nic.tell(vu.RESET_OWNER)
    lab.there_and_back(2)


# ---- config space

def test_read_only_config(lab):
    """SET_CONFIG of a read-only field is refused, unless it is a migration's. GET_CONFIG answers in the size asked for."""
    nic = lab.driver()

    def get(off, n):
        got = nic.ask(vu.GET_CONFIG, struct.pack("<III", off, n, 0) + bytes(n))
        assert len(got) == 12 + n and struct.unpack_from("<II", got) == (off, n)
        return got[12:]
    for off, n in ((0, 12), (6, 2), (0, 1), (0, 256)):
        assert get(off, n) == get(0, 256)[off:off + n]
    was = get(0, 12)
    with pytest.raises(vu.Refused):
        nic.tell(vu.SET_CONFIG, struct.pack("<III", 6, 2, 0) + b"\xff\xff")
    nic.tell(vu.SET_CONFIG, struct.pack("<III", 6, 2, 1) + b"\xff\xff")
    assert get(0, 12) == was
    lab.there_and_back(1)


# ---- features

NEED = {7: [1], 8: [1], 9: [7, 8], 10: [1], 11: [0], 12: [0], 13: [11, 12], 14: [0], 18: [17], 19: [17], 20: [17], 21: [17], 22: [17],
        23: [17], 52: [7, 8], 54: [1], 55: [1], 56: [0], 57: [17], 60: [17]}
PF_NEED = {10: [5], 5: [3], 22: [5]}  # BACKEND_SEND_FD, BACKEND_REQ (its misses want answers), SHMEM


@pytest.mark.parametrize("keys", [{}, {"Link_Queues": 4}, *({"Net_Offloads": o} for o in ("none", "csum", "csum tso4", "csum tso6 ecn", "mrgbuf", "all"))],
                         ids=lambda k: "-".join(str(v) for v in k.values()).replace(" ", "+") or "plain")
@pytest.mark.parametrize("mode", MODES)
def test_no_feature_without_what_it_needs(make_daemon, mode, keys):
    """virtio 1.2, 2.2.2 and 5.1.3.1. Linux refuses a device that offers one without the other."""
    d = make_daemon()
    port = {} if mode == "relay" else dict(device="b" if mode == "fast" else "stranger", Device_Endpoint="port", Device_Attachment="local",
                                           Link_Mode=mode)
    d.link("ab", **port, **keys)
    d.start()
    for side in ("driver", "device") if mode == "relay" else ("driver",):
        with vu.Frontend(d.sock("ab", side)) as f:
            for offered, need in ((f.ask_u64(vu.GET_FEATURES), NEED), (f.ask_u64(vu.GET_PROTOCOL_FEATURES), PF_NEED)):
                bad = {b for b, any_of in need.items() if offered >> b & 1 and not any(offered >> n & 1 for n in any_of)}
                assert not bad, f"{bad} without what they require in {offered:#x}"


def test_fast_offers_no_log(make_daemon):
    """Nobody logs what a device VM writes: a VMM must not believe that it can migrate."""
    d = make_daemon()
    d.link("ab", Device_Endpoint="port", Device_Attachment="local", Link_Mode="fast")
    d.start()
    with vu.Frontend(d.sock("ab", "driver")) as f:
        assert not f.ask_u64(vu.GET_FEATURES) >> vu.LOG_ALL & 1
        assert not f.ask_u64(vu.GET_PROTOCOL_FEATURES) >> vu.PF_LOG_SHMFD & 1
        with pytest.raises((vu.Refused, vu.Gone)):
            f.negotiate(MRG)
            f.tell_u64(vu.SET_FEATURES, f.features | vu.bit(vu.LOG_ALL))


# ---- hdr_len

@pytest.mark.parametrize("cut", [None, [12], [5]], ids=["one piece", "own descriptor", "header in two"])
@pytest.mark.parametrize("hdr_len", [0, 1, 54, 215, 54321, 65535])
def test_hdr_len_is_a_hint(lab, cut, hdr_len):
    """It must not be relied on (virtio 1.2, 5.1.6.2.2)."""
    nic = lab.driver()
    lab.there_and_back(1, 200, hdr=struct.pack(HDR, 0, 0, hdr_len, 7, 99, 99, 0), cut=cut)


@pytest.mark.parametrize("hdr_len", [0, 1, 54, 66, 3000, 54321])
def test_hdr_len_of_a_large_segment(lab, hdr_len):
    """A segment crosses, with a hint that a receiver may have: not less than the headers, not more than the packet."""
    want = MRG | vu.bit(CSUM, HOST_TSO4, GUEST_CSUM, GUEST_TSO4)
    if lab.mode == "relay":
        lab.far = lab.stack.enter_context(vu.Nic(lab.d.sock("ab", "device"), want, bufsize=16000))
    nic = lab.driver(want, bufsize=16000)
    ip = struct.pack(">BBHHHBBHII", 0x45, 0, 2986, 1, 0, 64, 6, 0, 0x0a000001, 0x0a000002)
    tcp = struct.pack(">HHIIBBHHH", 1, 2, 3, 4, 5 << 4, 0x10, 999, 0, 0)
    packet = (vu.frame(0, 14)[:12] + b"\x08\x00" + ip + tcp + bytes(i & 0xff for i in range(3000)))[:3000]
    nic.send_packet(packet, hdr=struct.pack(HDR, 1, 1, hdr_len, 1000, 34, 16, 0), cut=[12])
    if lab.mode != "relay":
        # What the device side makes of the segment is its business: it got it.
        lab.d.wait(lambda: nic.reclaim() or not nic.rings[1].chains)
        if lab.mode == "copy":
            assert lab.d.stats("ab")["driver"]["tx"]["dropped"] == 0
        return
    hdr, got = lab.far.recv_packet()
    assert got == packet
    flags, gso, hint, mss, start, off, _ = struct.unpack(HDR, hdr)
    assert (flags, gso, mss, start, off) == (1, 1, 1000, 34, 16) and 54 <= hint <= 3000
    assert hint == hdr_len or not 54 <= hdr_len <= 3000


# ---- where a ring starts

class Baseless(vu.Nic):
    """Sends no SET_VRING_BASE."""

    def tell_state(self, request, q, num):
        if request != vu.SET_VRING_BASE:
            super().tell_state(request, q, num)


@pytest.mark.parametrize("ring", [0, vu.bit(vu.EVENT_IDX), vu.bit(vu.PACKED)], ids=["split", "event-idx", "packed"])
def test_no_vring_base(lab, ring):
    """A ring of which nobody says where it starts starts at 0, a packed one with both wrap counters 1. Also with the next driver, whose
    rings are of the other format."""
    with use(Baseless):
        for features in (ring, ring ^ vu.bit(vu.PACKED), ring):
            if lab.nic:
                lab.nic.close()
                lab.d.wait(lambda: lab.d.show("ab")["status"] != "up")
            lab.driver(MRG | features)
            for n in range(300):
                lab.there_and_back(n)


def test_no_vring_base_after_a_stop(lab):
    """One session: rings are stopped, and others of the other format follow, without a word of where they start."""
    with use(Baseless):
        nic = lab.driver(MRG)
    for features in (vu.bit(vu.PACKED), 0, vu.bit(vu.PACKED)):
        for n in range(20):
            lab.there_and_back(n)
        for q in (0, 1):
            nic.stop_ring(q)
        nic.features = nic.features & ~vu.bit(vu.PACKED) | features
        nic.tell_u64(vu.SET_FEATURES, nic.features)
        nic.tx_free = [nic.mem.alloc(2048) for _ in range(16)]
        for q in (0, 1):
            nic.start_ring(q, (vu.PackedRing if features else vu.SplitRing)(nic.mem, 64))
        nic.fill_rx(32)
        lab.d.wait(lambda: lab.d.show("ab")["status"] == "up")
        for n in range(100):
            lab.there_and_back(n)


@contextlib.contextmanager
def use(kind):
    plain, vu.Nic = vu.Nic, kind
    try:
        yield
    finally:
        vu.Nic = plain


@pytest.mark.parametrize("ring", [0, vu.bit(vu.PACKED)], ids=["split", "packed"])
def test_reconnect_with_the_drivers_index(lab, ring):
    """
    Cloud Hypervisor: the connection is lost, and the next one gives the available index as the base. Buffers that lay in the ring
    are nobody's then: they are used as if they had just come.
    """
    nic = lab.driver(MRG | ring)
    for n in range(50):
        lab.there_and_back(n)
    for _ in range(3):
        lab.d.wait(lambda: nic.reclaim() or not nic.rings[1].chains)
        nic.sock.close()
        lab.d.wait(lambda: lab.d.show("ab")["status"] != "up")
        reconnect(nic, lab.path())
        lab.d.wait(lambda: lab.d.show("ab")["status"] == "up")
        for n in range(50):
            lab.there_and_back(100 + n)


def reconnect(nic, path):
    nic.sock = socket.socket(socket.AF_UNIX)
    nic.sock.connect(path)
    nic.sock.settimeout(30)
    nic.reply_ack = False
    nic.negotiate(nic.features)
    nic.set_memory(nic.mem)
    for q, ring in nic.rings.items():
        base = ring.base()
        if ring.packed:  # the used half as it is in memory, the available one where the driver is
            base = base & 0xffff | (ring.next_used | ring.used_wrap << 15) << 16
        nic.start_ring(q, ring, base=base)
        nic.kick(q)


# ---- a suspended device

def far_side(lab):
    """Comes, and goes with the `with`: the carrier changes."""
    if lab.mode == "relay":
        return vu.Nic(lab.d.sock("ab", "device"))
    far = pc.Local(lab.d.sock("ab", "device"))
    far.attach()
    return contextlib.closing(far)


@pytest.fixture(params=MODES)
def bare(make_daemon, request):
    lab = Lab(make_daemon(), request.param, start_port=False)
    yield lab
    lab.check()
    lab.close()


def messages(channel, timeout=0.3):
    got = []
    while select.select([channel], [], [], timeout)[0]:
        req, flags, size = struct.unpack("<III", channel.recv(12, socket.MSG_WAITALL))
        data = channel.recv(size, socket.MSG_WAITALL) if size else b""
        got.append(req)
        if flags & 8:
            channel.sendall(struct.pack("<IIIQ", req, 1 | 4, 8, 0))
    return got


@pytest.mark.parametrize("ring", [0, vu.bit(vu.PACKED)], ids=["split", "packed"])
def test_suspended_device_touches_nothing(lab, ring):
    """While all rings are stopped no guest memory is written and no notification sent; messages are still answered."""
    nic = lab.driver(MRG | ring)
    lab.there_and_back(0)
    for n in range(20):
        nic.send_packet(vu.frame(n))
    for q in (0, 1):
        nic.stop_ring(q)
    for q in (0, 1):
        with contextlib.suppress(BlockingIOError):
            os.read(nic.rings[q].call_fd, 8)
        nic.kick(q)
    before = nic.mem.map[:]
    if lab.far:
        lab.echo()
        lab.far.send_packet(vu.frame(99))
    calls = [nic.rings[q].call_fd for q in (0, 1)]
    assert select.select(calls, [], [], 0.3)[0] == []
    assert nic.mem.map[:] == before
    assert nic.alive() and nic.ask_u64(vu.GET_STATUS) is not None


CONFIG_CHANGE = 2


def carrier(f):
    return f.ask(vu.GET_CONFIG, struct.pack("<III", 0, 12, 0) + bytes(12))[12 + 6] & 1


@pytest.mark.parametrize("when", ["never started", "stopped", "reset"])
def test_no_message_to_a_suspended_device(bare, when):
    """While no ring runs nothing is sent (QEMU, "Suspended device state"). The first that runs makes up for it, once."""
    pf = PF | vu.bit(vu.PF_RESET_DEVICE)
    mine, theirs = socket.socketpair()
    with mine, vu.Frontend(bare.path()) as f:
        f.negotiate(MRG, pf)
        f.tell(vu.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
        theirs.close()
        f.set_memory(vu.Memory(16 << 20))
        rings = {q: vu.SplitRing(f.mem, 256) for q in (0, 1)}

        def start():
            for q, ring in rings.items():
                ring.reset()
                f.start_ring(q, ring)

        def stop():
            if when == "reset":
                f.tell(vu.RESET_DEVICE)
            else:
                f.stop_ring(0)
                told.extend(messages(mine))  # a far side that is cut off because it does not stop: one ring runs still
                f.stop_ring(1)

        told = []
        if when != "never started":
            start()
            assert messages(mine) == [], "there is no carrier, and none was said to be"
            stop()
        for _ in range(2):
            with far_side(bare):
                assert messages(mine) == []
            assert messages(mine) == []
        with far_side(bare):
            assert messages(mine) == []
            start()
            # A port is up when the first ring runs; so is the other side of a relay link.
            got = []
            bare.d.wait(lambda: got.extend(messages(mine)) or got)
            assert got == [CONFIG_CHANGE] and carrier(f)
            stop()
            assert messages(mine) == []
        assert messages(mine) == []
        start()
        bare.d.wait(lambda: told.extend(messages(mine)) or told)
        assert told == [CONFIG_CHANGE] and not carrier(f)
