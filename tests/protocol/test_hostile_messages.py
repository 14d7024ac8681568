# SPDX-License-Identifier: BSD-3-Clause
"""Messages that no honest front-end sends, over the real socket.

Each case: the offender is told or cut off with a line in the log, the other
link goes on, and the daemon holds no more fds than before.
"""
import os
import socket
import struct
import time

import pytest

import vu
from test_relay import both_ways


@pytest.fixture
def guarded(daemon):
    """The daemon; afterwards link cd must work and no fd may have been leaked."""
    before = daemon.fds()
    yield daemon
    assert daemon.alive(), daemon.log()
    daemon.wait_fds(before)
    with vu.Nic(daemon.sock("cd", "driver")) as c, vu.Nic(daemon.sock("cd", "device")) as d:
        both_ways(c, d)
    daemon.wait_fds(before)


def start(daemon, features=vu.BASIC):
    f = vu.Frontend(daemon.sock("ab", "driver"))
    f.negotiate(features)
    return f


def refused(f, fn):
    """fn() is answered with an error or ends the session."""
    with pytest.raises((vu.Refused, vu.Gone)):
        fn()
        f.ask_u64(vu.GET_FEATURES)  # a message without an answer: is the session still there?
        raise AssertionError("accepted")


RAW = {
    "empty header": b"\0" * 12,
    "huge size": struct.pack("<III", vu.SET_MEM_TABLE, 1, 0xffffffff),
    "wrong version": struct.pack("<III", vu.GET_FEATURES, 2, 0),
    "reply flag": struct.pack("<III", vu.GET_FEATURES, 5, 0),
    "unknown message": struct.pack("<III", 9999, 1 | 8, 0),
    "too short": struct.pack("<IIII", vu.SET_VRING_NUM, 1 | 8, 4, 0),
    "too long": struct.pack("<III", vu.SET_VRING_NUM, 1 | 8, 16) + bytes(16),
    "table cut": struct.pack("<IIIII", vu.SET_MEM_TABLE, 1 | 8, 8, 3, 0),
    "unasked postcopy": struct.pack("<III", vu.POSTCOPY_ADVISE, 1, 0),
    "inflight": struct.pack("<III", vu.GET_INFLIGHT_FD, 1, 24) + bytes(24),
}


@pytest.mark.parametrize("name", RAW)
def test_raw(guarded, name):
    with start(guarded) as f:
        f.raw(RAW[name])
        f.sock.settimeout(0.3)
        try:
            f.sock.recv(4096)
        except (TimeoutError, ConnectionResetError):
            pass


def test_cut_off_anywhere(guarded):
    """The connection ends after any number of bytes of the usual dialogue, fds under way included."""
    mem = vu.Memory()
    dialogue = [
        (struct.pack("<III", vu.SET_OWNER, 1, 0), []),
        (struct.pack("<IIII", vu.SET_VRING_NUM, 1, 8, 0) + struct.pack("<I", 256), []),
        (struct.pack("<IIIII", vu.SET_MEM_TABLE, 1, 40, 1, 0) + struct.pack("<QQQQ", mem.gpa, mem.size, mem.uva, 0), [mem.fd]),
    ]
    for step in range(sum(len(data) for data, _ in dialogue) + 1):
        with vu.Frontend(guarded.sock("ab", "driver")) as f:
            left = step
            for data, fds in dialogue:
                part = data[:left]
                if part:
                    f.raw(part, fds)
                left -= len(part)
                if left <= 0:
                    break
    mem.close()


class Cut(Exception):
    pass


class Limited(vu.Nic):
    """Says so many messages and no more."""

    def __init__(self, left, path):
        self.left, self.path = left, path

    def life(self):
        super().__init__(self.path)
        for q in (0, 1):
            self.stop_ring(q)

    def send(self, *args, **kw):
        if not self.left:
            raise Cut
        self.left -= 1
        return super().send(*args, **kw)


def test_cut_at_every_message(guarded):
    """A driver's set-up, and its going, end after any number of messages."""
    messages, over = 0, False
    while not over:
        nic = Limited(messages, guarded.sock("ab", "driver"))
        try:
            nic.life()
            over = True
        except Cut:
            messages += 1
        finally:
            nic.close()
    assert messages >= 20


def test_half_a_message_then_silence(guarded):
    """Does not hold up anybody; the connection just waits."""
    mem = vu.Memory()
    with vu.Frontend(guarded.sock("ab", "driver")) as f:
        f.raw(struct.pack("<II", vu.SET_MEM_TABLE, 1), [mem.fd])
        with vu.Nic(guarded.sock("cd", "driver")) as c, vu.Nic(guarded.sock("cd", "device")) as d:
            both_ways(c, d)
    mem.close()


def test_surplus_fds(guarded):
    for n in (1, 8, 9, 100, 253):
        r, w = os.pipe()
        with start(guarded) as f:
            try:
                f.send(vu.SET_OWNER, fds=[r] * n)
                f.ask_u64(vu.GET_FEATURES)
            except (vu.Gone, OSError, TimeoutError):
                pass
        os.close(r)
        os.close(w)


def test_flood_of_fds(guarded):
    """Thousands of fd-carrying messages, none read back."""
    mem = vu.Memory()
    with start(guarded) as f:
        f.reply_ack = False
        try:
            for q in range(3000):
                f.tell_u64(vu.SET_VRING_CALL, q % 2, [mem.fd if q % 3 else vu_eventfd(f)])
        except (vu.Gone, OSError):
            pass
        assert guarded.fds() < 100
    mem.close()


def vu_eventfd(f):
    if not f.fds:
        f.fds.append(vu.eventfd())
    return f.fds[0]


def test_does_not_read_answers(guarded):
    """Questions without end, no answer read: cut off, memory bounded."""
    with start(guarded) as f:
        f.sock.settimeout(3)
        try:
            for _ in range(200000):
                f.raw(struct.pack("<III", vu.GET_FEATURES, 1, 0))
        except (vu.Gone, OSError, TimeoutError):
            pass
        with vu.Nic(guarded.sock("cd", "driver")) as c, vu.Nic(guarded.sock("cd", "device")) as d:
            both_ways(c, d)


def test_ring_index_out_of_range(guarded):
    for msg in (vu.SET_VRING_NUM, vu.SET_VRING_BASE, vu.SET_VRING_ENABLE):
        with start(guarded) as f:
            refused(f, lambda: f.tell_state(msg, 77, 1))
    with start(guarded) as f:
        refused(f, lambda: f.ask(vu.GET_VRING_BASE, struct.pack("<II", 2, 0)))


@pytest.mark.parametrize("num", [0, 3, 65536, 0xffffffff])
def test_queue_sizes(guarded, num):
    with start(guarded) as f:
        f.set_memory(vu.Memory())

        def go():
            f.tell_state(vu.SET_VRING_NUM, 1, num)
            ring = vu.SplitRing(f.mem, 256)
            f.tell(vu.SET_VRING_ADDR, f.addr_msg(1, ring))
            f.fds.append(vu.eventfd())
            f.tell_u64(vu.SET_VRING_KICK, 1, [f.fds[-1]])
        refused(f, go)


REGIONS = {
    "zero size": lambda m: [(m.gpa, 0, m.uva, 0)],
    "beyond the file": lambda m: [(m.gpa, m.size + 4096, m.uva, 0)],
    "offset beyond the file": lambda m: [(m.gpa, 4096, m.uva, m.size)],
    "offset + size wraps": lambda m: [(m.gpa, 8192, m.uva, (1 << 64) - 4096)],
    "address wraps": lambda m: [((1 << 64) - 4096, 8192, m.uva, 0)],
    "user address wraps": lambda m: [(m.gpa, 8192, (1 << 64) - 4096, 0)],
    "overlap": lambda m: [(m.gpa, 8192, m.uva, 0), (m.gpa + 4096, 8192, m.uva + (1 << 30), 0)],
}


@pytest.mark.parametrize("name", REGIONS)
def test_bad_regions(guarded, name):
    with start(guarded) as f:
        mem = f.mem = vu.Memory()
        regions = REGIONS[name](mem)
        refused(f, lambda: f.tell(vu.SET_MEM_TABLE, struct.pack("<II", len(regions), 0) +
                                  b"".join(struct.pack("<QQQQ", *r) for r in regions), [mem.fd] * len(regions)))


@pytest.mark.parametrize("count,fds", [(2, 1), (1, 2), (9, 8), (0xffffffff, 1)])
def test_table_announces_other_than_it_holds(guarded, count, fds):
    with start(guarded) as f:
        mem = f.mem = vu.Memory()
        refused(f, lambda: f.tell(vu.SET_MEM_TABLE, struct.pack("<II", count, 0) + f.region(mem) * min(count, 8), [mem.fd] * fds))


def test_region_fd_that_is_no_memory(guarded):
    r, w = os.pipe()
    s = socket.socketpair()
    for fd in (r, s[0].fileno(), vu.eventfd()):
        with start(guarded) as f:
            refused(f, lambda: f.tell(vu.SET_MEM_TABLE, struct.pack("<IIQQQQ", 1, 0, 1 << 32, 4096, 1 << 32, 0), [fd]))
    os.close(r)
    os.close(w)


def test_notifiers_that_are_no_eventfds(guarded):
    r, w = os.pipe()
    for msg in (vu.SET_VRING_KICK, vu.SET_VRING_CALL):
        with start(guarded) as f:
            mem = vu.Memory()
            f.set_memory(mem)
            ring = vu.SplitRing(mem, 64)
            f.tell_state(vu.SET_VRING_NUM, 1, 64)
            f.tell(vu.SET_VRING_ADDR, f.addr_msg(1, ring))
            if msg == vu.SET_VRING_CALL:
                f.tell_u64(vu.SET_VRING_CALL, 1, [w])
                f.fds.append(vu.eventfd())
                refused(f, lambda: f.tell_u64(vu.SET_VRING_KICK, 1, [f.fds[-1]]))
            else:
                refused(f, lambda: f.tell_u64(msg, 1, [r]))
    assert "is not an eventfd" in guarded.log()
    os.close(r)
    os.close(w)


def test_ring_addresses_outside_memory(guarded):
    for desc, used, avail in ((0, 0, 0), (1 << 60, 4096, 8192), ((1 << 64) - 16, 4096, 8192)):
        with start(guarded) as f:
            mem = vu.Memory()
            f.set_memory(mem)
            f.tell_state(vu.SET_VRING_NUM, 1, 256)
            f.fds.append(vu.eventfd())

            def go():
                f.tell(vu.SET_VRING_ADDR, struct.pack("<IIQQQQ", 1, 0, mem.uva + desc & (1 << 64) - 1, mem.uva + used,
                                                      mem.uva + avail if avail else 0, 0))
                f.tell_u64(vu.SET_VRING_KICK, 1, [f.fds[-1]])
            refused(f, go)


def test_ring_at_the_end_of_memory(guarded):
    """The last byte of an area one beyond the region."""
    with start(guarded) as f:
        mem = vu.Memory()
        f.set_memory(mem)
        ring = vu.SplitRing(mem, 256)
        ring.desc = mem.size - 16 * 256 + 16
        f.fds.append(vu.eventfd())

        def go():
            f.tell_state(vu.SET_VRING_NUM, 1, 256)
            f.tell(vu.SET_VRING_ADDR, f.addr_msg(1, ring))
            f.tell_u64(vu.SET_VRING_KICK, 1, [f.fds[-1]])
        refused(f, go)


def test_features_not_offered(guarded):
    with start(guarded) as f:
        refused(f, lambda: f.tell_u64(vu.SET_FEATURES, vu.bit(63, vu.VERSION_1)))
    with start(guarded) as f:
        refused(f, lambda: f.tell_u64(vu.SET_PROTOCOL_FEATURES, vu.bit(50)))


def test_features_changed_while_running(guarded):
    with vu.Nic(guarded.sock("ab", "driver")) as a:
        refused(a, lambda: a.tell_u64(vu.SET_FEATURES, a.features ^ vu.bit(vu.PACKED)))


def test_memory_removed_under_a_running_ring(guarded):
    """The rings break with a line in show, the session goes on."""
    with vu.Nic(guarded.sock("ab", "driver")) as a, vu.Nic(guarded.sock("ab", "device")) as b:
        both_ways(a, b)
        other = vu.Memory(gpa=0x9_0000_0000, uva=0x7f99_0000_0000)
        a.tell(vu.SET_MEM_TABLE, struct.pack("<II", 1, 0) + a.region(other), [other.fd])
        q = guarded.wait(lambda: (q := guarded.show("ab")["sides"]["driver"]["queues"][1])["state"] == "broken" and q)
        assert "does not lie inside" in q["error"]
        assert "link ab, driver side: queue 1" in guarded.log()
        assert all(q["state"] == "running" for q in guarded.show("ab")["sides"]["device"]["queues"])
        assert a.alive()
        other.close()


def test_memory_replaced_under_traffic(guarded):
    """The same memory announced again and again while packets run."""
    with vu.Nic(guarded.sock("ab", "driver")) as a, vu.Nic(guarded.sock("ab", "device")) as b:
        for n in range(100):
            a.send_packet(vu.frame(n))
            a.tell(vu.SET_MEM_TABLE, struct.pack("<II", 1, 0) + a.region(a.mem), [a.mem.fd])
            b.tell(vu.SET_MEM_TABLE, struct.pack("<II", 1, 0) + b.region(b.mem), [b.mem.fd])
            assert b.recv_packet()[1] == vu.frame(n)


def test_memory_slots(guarded):
    """ADD_MEM_REG and REM_MEM_REG while traffic runs, up to the limit and beyond."""
    with vu.Nic(guarded.sock("ab", "driver")) as a, vu.Nic(guarded.sock("ab", "device")) as b:
        slots = a.ask_u64(vu.GET_MAX_MEM_SLOTS)
        extra = vu.Memory(size=1 << 20)

        def region(i):
            return struct.pack("<QQQQQ", 0, 0x10_0000_0000 + i * 4096, 4096, 0x7a00_0000_0000 + i * 4096, 0)
        for i in range(slots - 1):
            a.tell(vu.ADD_MEM_REG, region(i), [extra.fd])
        both_ways(a, b)
        with pytest.raises(vu.Refused):
            a.tell(vu.ADD_MEM_REG, region(slots), [extra.fd])
        with pytest.raises(vu.Refused):
            a.tell(vu.REM_MEM_REG, region(slots + 5))
        for i in range(slots - 1):
            a.tell(vu.REM_MEM_REG, region(i))
        both_ways(a, b)
        assert guarded.show("ab")["sides"]["driver"]["regions"] == 1
        extra.close()


@pytest.mark.parametrize("seal", [False])
def test_file_truncated_after_mapping(guarded, seal):
    """Only this link suffers."""
    mem = vu.Memory(16 << 20, seal=False)
    with vu.Nic(guarded.sock("ab", "driver"), mem=mem) as a, vu.Nic(guarded.sock("ab", "device")) as b:
        both_ways(a, b)
        # The rings stay, the buffers' end of the file goes: the driver still can kick.
        off = a.tx_free[-1]
        os.ftruncate(mem.fd, off & ~4095)  # first: a data thread that is still awake takes the packet at once
        a.rings[1].add([(off, 100, False)], off)
        a.kick(1)
        guarded.wait(lambda: guarded.show("ab")["status"] == "broken")
        assert "truncated" in guarded.log()
        with vu.Nic(guarded.sock("cd", "driver")) as c, vu.Nic(guarded.sock("cd", "device")) as d:
            both_ways(c, d)
        os.ftruncate(mem.fd, mem.size)  # so that Python may touch its own mapping again


def test_dirty_log_too_small(guarded):
    with start(guarded) as f:
        f.set_memory(vu.Memory())
        log = os.memfd_create("log")
        os.ftruncate(log, 4096)
        with pytest.raises((vu.Refused, vu.Gone)):
            f.tell(vu.SET_LOG_BASE, struct.pack("<QQ", 4096, 0), [log])
        os.close(log)


def test_log_marks_written_pages(guarded):
    """Live migration: the receive buffer and the used ring are logged."""
    with vu.Nic(guarded.sock("ab", "driver")) as a, \
            vu.Nic(guarded.sock("ab", "device"), mem=vu.Memory(16 << 20, gpa=0)) as b:
        log = os.memfd_create("log")
        os.ftruncate(log, 4096)
        b.send(vu.SET_LOG_BASE, struct.pack("<QQ", 4096, 0), [log], need_reply=False)
        b.recv_reply(vu.SET_LOG_BASE)
        b.tell_u64(vu.SET_FEATURES, b.features | vu.bit(vu.LOG_ALL))
        b.tell(vu.SET_VRING_ADDR, b.addr_msg(0, b.rings[0], flags=1, log=b.mem.gpa + b.rings[0].used))
        assert guarded.show("ab")["sides"]["device"]["dirty_log"]
        a.send_packet(vu.frame(5, 500))
        ring = b.rings[0]
        guarded.wait(lambda: b.mem.r("H", ring.used + 2) != ring.used_idx)
        head, = struct.unpack_from("<I", b.mem.map, ring.used + 4 + 8 * (ring.used_idx % ring.size))
        buf = ring.chains[head][1]
        assert b.recv_packet()[1] == vu.frame(5, 500)
        bits = os.pread(log, 4096, 0)
        dirty = {i * 8 + k for i, v in enumerate(bits) for k in range(8) if v >> k & 1}
        assert buf // 4096 in dirty and ring.used // 4096 in dirty
        assert len(dirty) <= 4
        os.close(log)


def test_reset_device(guarded):
    with vu.Nic(guarded.sock("ab", "driver")) as a, vu.Nic(guarded.sock("ab", "device")) as b:
        both_ways(a, b)
        a.tell(vu.RESET_DEVICE)
        assert all(q["state"] == "stopped" for q in guarded.show("ab")["sides"]["driver"]["queues"])
        assert a.alive()


def test_second_frontend(guarded):
    """Refused while the first lives; served at once when the first has died."""
    with vu.Nic(guarded.sock("ab", "driver")) as a:
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(guarded.sock("ab", "driver"))
            s.settimeout(30)
            assert s.recv(1) == b""  # closed after the two seconds of grace
        guarded.wait_log("refused a second front-end")
        assert a.alive()
    took = []
    for _ in range(3):
        with vu.Frontend(guarded.sock("ab", "driver")) as a, socket.socket(socket.AF_UNIX) as s:
            assert a.alive()
            s.connect(guarded.sock("ab", "driver"))
            a.sock.close()
            s.settimeout(30)
            t = time.monotonic()
            s.sendall(struct.pack("<III", vu.GET_FEATURES, 1, 0))
            assert len(s.recv(20)) == 20
            took.append(time.monotonic() - t)
        # The next one is the first again.
        guarded.wait(lambda: guarded.show("ab")["status"] == "waiting")
    # A busy machine may be late, but not each time.
    assert min(took) < 1.5, took


def test_reconnect_storm(guarded):
    for _ in range(200):
        with vu.Frontend(guarded.sock("ab", "driver")) as f:
            f.raw(struct.pack("<III", vu.GET_FEATURES, 1, 0))


def test_wrong_user(make_daemon):
    """SO_PEERCRED decides, not the mode of the file."""
    if os.geteuid():
        pytest.skip("needs root to become somebody else")
    d = make_daemon()
    d.write("a.vm", "[VM]\nTrustGroup=test\nUser=12345\n")
    d.link("ab")
    d.start()
    os.chmod(d.tmp, 0o755)

    def try_as(uid):
        pid = os.fork()
        if pid:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        code = 1
        try:
            os.setuid(uid)
            with vu.Frontend(d.sock("ab", "driver")) as f:
                f.ask_u64(vu.GET_FEATURES)
                code = 0
        except Exception:  # any failure is the answer
            pass
        os._exit(code)
    assert try_as(12345) == 0
    assert try_as(54321) == 1
    d.wait_log("of user 54321, who may not run VM a")
    # The other VM has no User=: the file is not even open to others.
    assert os.stat(d.sock("ab", "device")).st_mode & 0o777 == 0o600
