# SPDX-License-Identifier: BSD-3-Clause
"""Bug classes of rings, regions, headers, notifications and information, in every mode (docs/testing.md has the table)."""
import os
import signal
import struct
import threading
import time

import pytest

import vu
from bugclass import MODES, MRG, Lab, lab_of
from clock import Clock
from test_hostile_rings import CASES, HEADERS

PACKED = vu.bit(vu.PACKED)
FORMATS = pytest.mark.parametrize("ring", [0, PACKED], ids=["split", "packed"])


@pytest.fixture(params=MODES)
def lab(make_daemon, request):
    yield from lab_of(Lab, make_daemon, request.param)


def broken(lab, q):
    """Queue q stops with one line in the log; everything else of the link goes on."""
    entry = lab.d.wait(lambda: (e := lab.queue(q))["state"] == "broken" and e)
    assert entry["error"]
    lines = [s for s in lab.d.log().splitlines() if f"link ab, driver side: queue {q}:" in s and "stays stopped" in s]
    assert len(lines) <= 1, lines
    assert lab.queue(1 - q)["state"] == "running"


def restart(lab, q):
    nic = lab.nic
    nic.stop_ring(q)
    nic.rings[q].reset()
    nic.start_ring(q, nic.rings[q])
    if q == 0:
        nic.fill_rx(16)
    else:
        nic.tx_free = list(nic.tx_all)


def mend(lab, q):
    """Set up again, it works again."""
    restart(lab, q)
    lab.d.wait(lambda: lab.d.show("ab")["status"] == "up")


# In relay mode these are test_hostile_rings.py's.
@pytest.mark.parametrize("lab", ["fast", "copy"], indirect=True)
@pytest.mark.parametrize("ring,case", CASES, ids=[c.__name__ for _, c in CASES])
@pytest.mark.parametrize("q", [1, 0], ids=["transmit", "receive"])
def test_broken_ring(lab, ring, case, q):
    nic = lab.driver(MRG | ring, fill=q == 1)
    case(nic, nic.rings[q])
    nic.kick(q)
    if q == 0:
        nic.send_packet(vu.frame(1))  # whose answer makes the device side look at the receive ring
    broken(lab, q)
    if q == 0:
        nic.send_packet(vu.frame(2))
        lab.d.wait(lambda: nic.reclaim() or len(nic.tx_free) == 64)
    mend(lab, q)
    # What the far end still had of the first packets comes before, or never.
    nic.send_packet(vu.frame(7))
    while (got := lab.answer()) != vu.frame(7):
        assert q == 0 and got in (vu.frame(1), vu.frame(2))


def test_regions_not_contiguous(lab):
    """A buffer, and the descriptors of a ring, over two regions that are neighbours for the guest only."""
    nic = lab.driver()
    mem, low = nic.mem, vu.Memory(1 << 20, gpa=nic.mem.gpa - (1 << 20), uva=nic.mem.uva - (1 << 30))
    nic.tell(vu.ADD_MEM_REG, struct.pack("<Q", 0) + nic.region(low), [low.fd])
    lab.there_and_back(1)
    data = bytes(12) + vu.frame(2, 1000)
    low.map[-300:] = data[:300]
    mem.map[0:len(data) - 300] = data[300:]
    # A chain's buffer at low.gpa + 1 MiB - 300: its second part is in the other file.
    off = nic.tx_free.pop()
    nic.rings[1].add([(-300, len(data), False)], off)
    nic.kick(1)
    assert lab.answer() == vu.frame(2, 1000)
    low.close()


def test_ring_over_two_regions(lab):
    """A ring whose descriptors lie in two files is refused or works; it never reads beside the first."""
    nic = lab.driver()
    nic.stop_ring(1)
    mem, ring = nic.mem, nic.rings[1]
    low = vu.Memory(1 << 20, gpa=mem.gpa - (1 << 20), uva=mem.uva - (1 << 20))
    nic.tell(vu.ADD_MEM_REG, struct.pack("<Q", 0) + nic.region(low), [low.fd])
    ring.desc, old = -2048, ring.desc
    with pytest.raises(vu.Refused):
        nic.start_ring(1, ring)
    assert lab.queue(1)["error"]
    ring.desc = old
    nic.stop_ring(1)
    ring.reset()
    nic.start_ring(1, ring)
    lab.d.wait(lambda: lab.d.show("ab")["status"] == "up")
    lab.there_and_back(1)
    low.close()


@FORMATS
def test_ring_unaligned(lab, ring):
    nic = lab.driver(MRG | ring)
    nic.stop_ring(1)
    r = nic.rings[1]
    for area, by in (("desc", 8), ("avail", 1), ("used", 2 if not ring else 1)):
        was = getattr(r, area)
        setattr(r, area, was + by)
        with pytest.raises((vu.Refused, AssertionError)):
            nic.start_ring(1, r)
            assert lab.queue(1)["state"] == "running"
            raise AssertionError("accepted")
        setattr(r, area, was)
        nic.stop_ring(1)
    r.reset()
    nic.start_ring(1, r)
    lab.d.wait(lambda: lab.d.show("ab")["status"] == "up")
    lab.there_and_back(1)


def test_split_index_wraps(lab):
    nic = lab.driver()
    r = nic.rings[1]
    nic.stop_ring(1)
    r.reset()
    r.avail_idx = r.used_idx = 65530
    nic.mem.w("H", r.avail + 2, 65530)
    nic.mem.w("H", r.used + 2, 65530)
    nic.start_ring(1, r)
    lab.d.wait(lambda: lab.d.show("ab")["status"] == "up")
    for n in range(20):
        lab.there_and_back(n)


def test_packed_wrap_mismatch(lab):
    """A wrap counter that does not fit: an empty ring, or a broken one; never packets of a lap that was not sent."""
    nic = lab.driver(MRG | PACKED)
    lab.there_and_back(1)
    nic.stop_ring(1)
    r = nic.rings[1]
    r.reset()
    nic.start_ring(1, r, base=0)  # both counters 0: the driver's first lap has 1
    nic.send_packet(vu.frame(2))
    assert lab.answer(0.2) is None
    mend(lab, 1)
    lab.there_and_back(3)


def test_size_changed_while_running(lab):
    nic = lab.driver()
    lab.there_and_back(1)
    with pytest.raises((vu.Refused, vu.Gone)):
        nic.tell_state(vu.SET_VRING_NUM, 1, 128)
        raise vu.Gone() if lab.queue(1)["size"] == 256 else AssertionError("the size of a running ring was changed")


def test_region_replaced_under_traffic(lab):
    nic = lab.driver()
    for n in range(30):
        nic.send_packet(vu.frame(n))
        nic.tell(vu.SET_MEM_TABLE, struct.pack("<II", 1, 0) + nic.region(nic.mem), [nic.mem.fd])
        lab.d.wait(lambda: lab.d.show("ab")["status"] == "up")
    # While the memory is away a link drops, as a cable that is out. What did not get lost comes once.
    nic.send_packet(vu.frame(99))
    last = -1
    while (got := lab.answer()) != vu.frame(99):
        n, = struct.unpack_from("<I", got, 14)
        assert last < n < 30 and got == vu.frame(n)
        last = n


def test_region_removed(lab):
    nic = lab.driver()
    lab.there_and_back(1)
    other = vu.Memory(gpa=0x9_0000_0000, uva=0x7f99_0000_0000)
    nic.tell(vu.SET_MEM_TABLE, struct.pack("<II", 1, 0) + nic.region(other), [other.fd])
    lab.d.wait(lambda: lab.queue(1)["state"] == "broken")
    assert nic.alive()
    other.close()


@FORMATS
def test_zero_length_descriptors(lab, ring):
    """Skipped, or the queue breaks; never a wrong packet."""
    nic = lab.driver(MRG | ring)
    off = nic.tx_free.pop()
    data = bytes(12) + vu.frame(1)
    nic.mem.map[off:off + len(data)] = data
    nic.rings[1].add([(off, 0, False), (off, 12, False), (off, 0, False), (off + 12, len(data) - 12, False)], off)
    nic.kick(1)
    assert lab.d.wait(lambda: lab.answer(0.05) or lab.queue(1)["state"] == "broken") in (True, vu.frame(1))


@FORMATS
@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
def test_header_over_descriptors(lab, ring, indirect):
    nic = lab.driver(MRG | ring, indirect=indirect)
    for n, cut in enumerate(([1], [5, 9], [12], [12, 26], list(range(1, 30)))):
        lab.there_and_back(n, 900, cut=cut)


@pytest.mark.parametrize("size", [1, 11, 12])
def test_shorter_than_the_header(lab, size):
    nic = lab.driver()
    off = nic.tx_free.pop()
    nic.rings[1].add([(off, size, False)], off)
    nic.kick(1)
    lab.there_and_back(2)
    assert lab.queue(1)["state"] == "running"


@pytest.mark.parametrize("name", HEADERS)
def test_bad_offload_header(lab, name):
    """Given up; the next packet passes."""
    f = MRG | vu.bit(vu.NET_CSUM) | (vu.bit(vu.NET_HOST_TSO4) if name in ("gso without checksum", "gso size zero") else 0)
    nic = lab.driver(f)
    nic.send_packet(vu.frame(1, 200), hdr=HEADERS[name])
    nic.send_packet(vu.frame(2, 200))
    assert lab.answer() == vu.frame(2, 200)
    assert lab.queue(1)["state"] == "running"


def test_no_call_fd(lab):
    """A masked vector: nobody is notified, everything else works."""
    nic = lab.driver()
    for q in (0, 1):
        nic.tell_u64(vu.SET_VRING_CALL, q | 0x100)
    for n in range(5):
        lab.there_and_back(n)


def blocks(call):
    os.set_blocking(call, False)
    os.write(call, struct.pack("<Q", 1))
    os.read(call, 8)
    os.write(call, struct.pack("<Q", (1 << 64) - 2))
    os.set_blocking(call, True)


def test_blocking_call_fd(lab):
    """An eventfd that is full and blocks costs its own queue only, and not for ever."""
    nic = lab.driver()
    call = nic.rings[0].call_fd
    blocks(call)
    for n in range(4):
        nic.send_packet(vu.frame(n))
    lab.check()
    assert lab.d.show("cd")
    os.read(call, 8)
    lab.echo()


def test_blocking_again_and_again(lab):
    """Twice it costs others a moment; then its VM is held off, and nobody waits for it. After a while it works again."""
    nic, clock = lab.driver(), Clock(lab.d)
    with vu.Nic(lab.d.sock("cd", "driver")) as c, vu.Nic(lab.d.sock("cd", "device")) as d:
        for k in range(5):
            if k:
                restart(lab, 0)
                restart(lab, 1)
            call = nic.rings[0].call_fd
            blocks(call)
            nic.send_packet(vu.frame(k))
            # It is held off for two seconds after the second time: all the further ones fall into these.
            took, end = [], time.monotonic() + (1.5 if k < 2 else 0.2)
            while time.monotonic() < end:
                with clock.timed(took, "data"):
                    lab.echo()
                    c.send_packet(vu.frame(k))
                    c.reclaim()
                    assert d.recv_packet()[1] == vu.frame(k)
                time.sleep(0.01)
            assert max(took) < (2 if k < 2 else 0.3), (k, max(took))
            os.read(call, 8)

    def works():
        restart(lab, 1)
        restart(lab, 0)
        nic.send_packet(vu.frame(77))
        # While the VM is held off, whichever of them has something to tell breaks first.
        while all(lab.queue(i)["state"] != "broken" for i in (0, 1)):
            if lab.answer(0.1) == vu.frame(77):
                return True
        time.sleep(0.1)
        return False

    lab.d.wait(works)


def test_neighbouring_bytes(lab):
    """Not a byte beside a buffer is read or written: neither towards the far end nor back."""
    nic = lab.driver(fill=False)
    size, room = 100, 400
    nic.bufsize = room
    at = nic.mem.alloc(4096 * 8, 4096)
    nic.mem.map[at:at + 4096 * 8] = b"\xc5" * (4096 * 8)
    rx = [at + 4096 * i + 1000 for i in range(4)]
    for off in rx:
        nic.rings[0].add([(off, room, True)], off)
    nic.kick(0)
    tx = at + 4096 * 6 + 500
    whole = bytes(12) + vu.frame(1, size)
    nic.mem.map[tx:tx + len(whole)] = whole
    nic.rings[1].add([(tx, len(whole), False)], tx)
    nic.kick(1)
    deadline = time.monotonic() + 10
    while (got := nic.rings[0].get()) is None:
        lab.echo()
        assert time.monotonic() < deadline
    off, _, length = got
    assert length == len(whole) and nic.mem.map[off + 12:off + length] == vu.frame(1, size)
    page = nic.mem.map[at:at + 4096 * 8]
    for i, b in enumerate(page):
        inside = any(o - at <= i < o - at + (length if o == off else 0) for o in rx) or tx - at <= i < tx - at + len(whole)
        assert b == 0xc5 or inside, f"byte {i:#x} beside the buffers was written"


def test_file_truncated(lab):
    """Memory without seals whose file shrinks: only this link suffers."""
    mem = vu.Memory(16 << 20, seal=False)
    nic = lab.driver(mem=mem)
    lab.there_and_back(1)
    off = nic.tx_free[-1]
    try:
        os.ftruncate(mem.fd, off & ~4095)
    except PermissionError:
        assert lab.mode == "fast"  # a file that is handed on is sealed first
        return
    nic.rings[1].add([(off, 100, False)], off)
    nic.kick(1)
    lab.d.wait(lambda: lab.d.show("ab")["status"] != "up")
    lab.check()
    os.ftruncate(mem.fd, mem.size)


@pytest.mark.parametrize("lab", ["fast", "copy"], indirect=True)
def test_data_path_too_slow(lab):
    """A device side that does not let go of a queue is cut in time, and comes back when it runs again."""
    nic = lab.driver()
    lab.there_and_back(1)
    lab.proc.send_signal(signal.SIGSTOP)
    nic.stop_ring(1)
    lab.proc.send_signal(signal.SIGCONT)
    nic.rings[1].reset()
    nic.start_ring(1, nic.rings[1])
    lab.d.wait(lambda: lab.d.show("ab")["status"] == "up")
    lab.there_and_back(2)


@pytest.mark.parametrize("lab", ["fast", "copy"], indirect=True)
def test_started_and_stopped_unseen(lab):
    """A queue that is stopped before the device side has seen it start: the answer comes, nobody is cut."""
    nic = lab.driver()
    lab.there_and_back(1)
    nic.stop_ring(1)
    lab.proc.send_signal(signal.SIGSTOP)
    nic.rings[1].reset()
    nic.start_ring(1, nic.rings[1])
    threading.Timer(0.3, lab.proc.send_signal, [signal.SIGCONT]).start()
    assert nic.stop_ring(1) == 0
    assert lab.d.show("ab")["sides"]["device"]["cuts"] == 0
    nic.start_ring(1, nic.rings[1])
    lab.d.wait(lambda: lab.d.show("ab")["status"] == "up")
    lab.there_and_back(2)
