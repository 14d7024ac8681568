# SPDX-License-Identifier: BSD-3-Clause
"""Endpoint=vhost-user: a vhost-user back-end on the host as the device side, scripted. test_hostdev_real.py has real ones."""
import os
import select
import socket
import struct
import subprocess
import time

import pytest

import blk
import vu
from blk import Driver, pattern
from conftest import ControlError
from test_control import ctl
from vubackend import FEATURES, PF, PF_DEVICE_STATE, SET_DEVICE_STATE_FD, Backend

FORMATS = [0, vu.bit(vu.EVENT_IDX), vu.bit(vu.PACKED), vu.bit(vu.PACKED, vu.EVENT_IDX)]


def link(d, name="ab", **keys):
    kw = {"Link_Mode": "copy", "Link_Type": "blk", "Device_Endpoint": "vhost-user", "Device_SocketMode": "client", "Device_Socket": f"{name}.device.sock",
          "Device_PackedRings": "yes", **keys}
    d.link(name, **{k: v for k, v in kw.items() if v is not None and not k.startswith("Profile_")})
    profile = {k.split("_")[1]: v for k, v in kw.items() if k.startswith("Profile_")}
    if profile:
        with open(d.conf / f"{name}.link", "a") as f:
            f.write("[Profile]\n" + "".join(f"{k}={v}\n" for k, v in profile.items()))


@pytest.fixture
def make(make_daemon):
    def made(**keys):
        d = make_daemon()
        d.run.mkdir()
        link(d, **keys)
        return d.start()
    return made


def drv(d):
    d.wait(lambda: d.listens(d.sock("ab", "driver")))
    return d.sock("ab", "driver")


def dev(d):
    return d.sock("ab", "device")


def device(d, name="ab"):
    return d.show(name)["sides"]["device"]


def is_up(d):
    d.wait(lambda: d.show("ab")["status"] == "up")


# ---- data -------------------------------------------------------------------------------------


FAST = {"Link_Mode": "fast", "Device_PackedRings": "no"}
MODES = [{}, FAST]
NAMES = ["copy", "fast"]


@pytest.mark.parametrize("keys", MODES, ids=NAMES)
def test_kicks_before_a_ring_is_enabled(make, keys):
    """A back-end takes them and does nothing: what waits then is served all the same."""
    d = make(Profile_Capacity="4M", **keys)
    with Driver(drv(d)) as f:
        t = f.request(blk.IN, 0, length=512)
        b = (fast_backend if keys else Backend)(dev(d))
        b.drops_kicks = True
        with b:
            assert f.wait(t)[0] == blk.OK


# In fast mode the scripted back-end, which has no packed rings and no indirect tables, serves the driver's own.
@pytest.mark.parametrize("fmt,keys", [(f, {}) for f in FORMATS] + [(f, {**FAST, "Device_PlainRings": "yes" if not f else "no"}) for f in FORMATS[:2]])
@pytest.mark.parametrize("mode", ["client", "server"])
def test_read_back_what_was_written(make, mode, fmt, keys):
    d = make(Device_SocketMode=mode, **keys)
    # In fast mode it says that it has indirect tables; the driver makes no use of them.
    has = FEATURES | fmt & vu.bit(vu.EVENT_IDX) | (vu.bit(vu.INDIRECT) if keys else 0)
    with Backend(dev(d), connect=mode == "server", features=has) as b:
        with Driver(drv(d), vu.bit(vu.VERSION_1, vu.INDIRECT) | blk.FEATURES | fmt) as f:
            for i, n in enumerate([512, 4096, 65536, 1 << 20]):
                data = pattern(n, i)
                f.write(8 * i, data, cut=4096 if n <= 65536 else 16384)
                assert b.store[512 * 8 * i:512 * 8 * i + n] == data
                assert f.read(8 * i, n, cut=4096 if n <= 65536 else 16384) == data
            assert f.wait(f.request(blk.DO_FLUSH, 0))[0] == blk.OK
            show = device(d)
        assert show["attachment"] == "vhost-user" and show["connected"] and show["pid"] == os.getpid()


def test_it_gets_no_more_than_pool_kick_and_call(make):
    """The one file is the pool, and the pool alone; else eventfds, and a socket for its own requests."""
    d = make(Device_PoolSize="8M")
    with Backend(dev(d)) as b, Driver(drv(d)) as f:
        f.write(0, pattern(4096))
        assert b.file_size == 8 << 20
        kinds = {}
        for req, what in b.got_fds:
            kinds.setdefault(req, set()).add(what.split(":")[0].split(" (")[0])
        assert kinds == {vu.SET_MEM_TABLE: {"/memfd"}, vu.SET_VRING_KICK: {"anon_inode"}, vu.SET_VRING_CALL: {"anon_inode"},
                         vu.SET_BACKEND_REQ_FD: {"socket"}}
        assert all("pool" in what for req, what in b.got_fds if req == vu.SET_MEM_TABLE)
        # What the driver VM has beside its requests is nowhere in it.
        secret = os.urandom(32)
        at = f.mem.alloc(32)
        f.mem.map[at:at + 32] = secret
        f.write(8, pattern(4096, 1))
        assert all(m[:].find(secret) < 0 for _, _, _, m in b.regions)


def test_driver_comes_and_goes(make):
    d = make()
    with Backend(dev(d)) as b:
        for i in range(5):
            with Driver(drv(d)) as f:
                f.write(0, pattern(4096, i))
                assert f.read(0, 4096) == pattern(4096, i)
                f.stop_ring(0)
        assert b.sessions == 1 and device(d)["dropped"] == 0


def test_config_goes_both_ways(make):
    d = make()
    with Backend(dev(d)) as b, Driver(drv(d)) as f:
        f.read(0, 512)
        # WRITE CACHE, byte 32
        f.tell(vu.SET_CONFIG, struct.pack("<III", blk.WCE, 1, 0) + b"\0")
        d.wait(lambda: b.config[blk.WCE] == 0)
        b.config = blk.config(16384)
        b.config_change()
        d.wait(lambda: struct.unpack_from("<Q", f.ask(vu.GET_CONFIG, struct.pack("<III", 0, 60, 0) + bytes(60)), 12)[0] == 16384)


def test_config_change_waits_for_the_driver(make):
    """Nothing is sent to a suspended device ("Suspended device state"): the first ring that runs makes up for it."""
    d = make()
    mine, theirs = socket.socketpair()
    with mine, Backend(dev(d)) as b, Driver(drv(d), protocol=blk.PF | vu.bit(vu.PF_BACKEND_REQ)) as f:
        f.tell(vu.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
        theirs.close()
        f.read(0, 512)
        base = f.stop_ring(0)
        b.config = blk.config(16384)
        b.config_change()
        d.wait(lambda: struct.unpack_from("<Q", f.ask(vu.GET_CONFIG, struct.pack("<III", 0, 60, 0) + bytes(60)), 12)[0] == 16384)
        assert not select.select([mine], [], [], 0.2)[0]
        f.start_ring(0, f.rings[0], base=base)
        assert select.select([mine], [], [], 30)[0]
        assert struct.unpack("<III", mine.recv(12, socket.MSG_WAITALL))[0] == 2  # CONFIG_CHANGE
        f.read(0, 512)


def fast_backend(*a, features=FEATURES, **kw):
    return Backend(*a, features=features | vu.bit(vu.INDIRECT, vu.EVENT_IDX), **kw)


def test_fast_memory_and_eventfds_are_the_drivers(make):
    """As if the two were connected directly: no file of the daemon's, kicks and calls that pass it by, memory that comes later."""
    d = make(**FAST)
    with fast_backend(dev(d)) as b, Driver(drv(d)) as f:
        f.write(0, pattern(4096))
        assert [m[0] for m in b.regions] == [f.mem.gpa] and len(b.regions[0][3]) == f.mem.size
        before = device(d)["signals_forwarded"]
        for i in range(50):
            f.write(8, pattern(4096, i))
        # Kicks never; calls a few times at the start, when the fds had just been given.
        assert device(d)["kicks_direct"] == 1 and device(d)["calls_direct"] == 1
        assert device(d)["signals_forwarded"] - before <= 10
        # Another region: the back-end has it, and loses nothing.
        more = vu.Memory(4 << 20, gpa=1 << 33, uva=1 << 45)
        f.tell(vu.ADD_MEM_REG, struct.pack("<Q", 0) + f.region(more), [more.fd])
        d.wait(lambda: len(b.regions) == 2)
        f.write(16, pattern(4096, 99))
        assert f.read(16, 4096) == pattern(4096, 99)
        # The driver takes another eventfd for its calls while the ring runs, as QEMU does when it masks a vector.
        call = os.eventfd(0, os.EFD_NONBLOCK)
        f.tell(vu.SET_VRING_CALL, struct.pack("<Q", 0), [call])
        f.request(blk.OUT, 8, pattern(512))
        d.wait(lambda: select.select([call], [], [], 0.01)[0])
        os.close(call)


def test_fast_backend_while_the_driver_migrates(make):
    """Its queue is copied while writes are logged: it finds the ring and the requests at the addresses that it was told."""
    d = make(**FAST, Link_Migration="yes")
    with fast_backend(dev(d)) as b, Driver(drv(d), protocol=blk.PF | vu.bit(vu.PF_LOG_SHMFD)) as f:
        f.write(0, pattern(4096))
        for i in range(1, 3):
            log = os.memfd_create("log")
            os.ftruncate(log, 1 << 20)
            f.send(vu.SET_LOG_BASE, struct.pack("<QQ", 1 << 20, 0), [log], need_reply=False)
            f.recv_reply(vu.SET_LOG_BASE)
            f.tell_u64(vu.SET_FEATURES, f.features | vu.bit(vu.LOG_ALL))
            d.wait(lambda: device(d)["queues"][0]["state"] == "running")
            f.write(8, pattern(4096, i))
            assert f.read(8, 4096) == pattern(4096, i)
            assert any(os.pread(log, 1 << 20, 0)), "what it wrote was not logged"
            f.tell_u64(vu.SET_FEATURES, f.features)
            f.write(16, pattern(4096, 2 * i))
            assert f.read(16, 4096) == pattern(4096, 2 * i)
            os.close(log)
        assert b.sessions == 1 and device(d)["dropped"] == 0


def test_fast_backend_is_left_when_the_driver_goes(make):
    """It has no more of the next driver VM than it is given: a connection for each."""
    d = make(**FAST)
    with fast_backend(dev(d)) as b:
        for i in range(3):
            with Driver(drv(d)) as f:
                f.write(0, pattern(4096, i))
                assert f.read(0, 4096) == pattern(4096, i) and b.sessions == i + 1
            # Also when the next one is there before anybody has seen the end of the last one.
            if i:
                d.wait(lambda: b.sessions == i + 2)
        assert device(d)["dropped"] == 0


def test_fast_backend_stops_with_open_requests(make):
    """It says at once that the queue has stopped, and would return them in the ring that the same driver VM sets up next."""
    d = make(**FAST)
    with fast_backend(dev(d)) as b, Driver(drv(d)) as f:
        f.write(0, pattern(4096))
        held = []
        b.hook = lambda *what: held.append(what) or True
        for i in range(3):
            f.request(blk.OUT, 8 * i, pattern(4096, i))
        d.wait(lambda: len(held) == 3)
        f.stop_ring(0)
        b.hook = None
        d.wait(lambda: b.sessions == 2 and "connecting again" in device(d)["last"])
        f.open.clear()
        f.start_ring(0, vu.SplitRing(f.mem, f.size))
        f.write(0, pattern(4096, 9))
        assert f.read(0, 4096) == pattern(4096, 9)


@pytest.mark.parametrize("account", [True, False])
def test_fast_backend_dies(make, account):
    """With an account of open requests the next one goes on from it; without, the queue breaks by name."""
    d = make(**FAST)
    pf = PF | vu.bit(blk.PF_INFLIGHT) if account else PF
    store = bytearray(512 * 8192)
    with Driver.__new__(Driver) as f:
        with fast_backend(dev(d), store=store, pf=pf) as b:
            Driver.__init__(f, drv(d))
            f.write(0, pattern(4096))
            order = []
            # Some are answered out of order, the others never.
            b.hook = lambda r, head, chain: not order.append(head) and len(order) not in (3, 7)
            asked = [f.request(blk.OUT, 8 * i, pattern(4096, i)) for i in range(16)]
            d.wait(lambda: len(order) == 16)
            d.wait(lambda: f.reap() or len(f.open) == 14)
        if not account:
            d.wait(lambda: d.show("ab")["status"] == "broken")
            assert "had not answered" in d.show("ab")["sides"]["driver"]["queues"][0]["error"]
            return
        with fast_backend(dev(d), store=store, pf=pf):
            assert all(f.wait(t)[0] == blk.OK for t in asked)
            f.write(800, pattern(4096, 17))
        assert all(store[4096 * i:4096 * (i + 1)] == pattern(4096, i) for i in range(16))


def test_fast_eventfds_of_ours_that_block(make):
    """It got a kick and a call of ours, for the driver had none, and made both block. The daemon does not wait for it."""
    d = make(**FAST)
    with fast_backend(dev(d)) as b, Driver.__new__(Driver) as f:
        vu.Frontend.__init__(f, drv(d))
        f.negotiate(vu.bit(vu.VERSION_1, vu.INDIRECT) | blk.FEATURES, protocol=blk.PF)
        f.set_memory(vu.Memory(16 << 20))
        f.open, f.done = {}, {}
        ring = vu.SplitRing(f.mem, 128)
        f.tell_state(vu.SET_VRING_NUM, 0, 128)
        f.tell_u64(vu.SET_VRING_CALL, 0x100)
        f.tell(vu.SET_VRING_ADDR, f.addr_msg(0, ring))
        f.tell_u64(vu.SET_VRING_KICK, 0x100)
        f.tell_state(vu.SET_VRING_ENABLE, 0, 1)
        d.wait(lambda: 0 in b.rings and b.rings[0].enabled)
        kept = [os.dup(b.rings[0].kick), os.dup(b.rings[0].call)]
        f.stop_ring(0)
        for fd in kept:
            try:
                os.read(fd, 8)
            except BlockingIOError:
                pass
            os.write(fd, struct.pack("<Q", (1 << 64) - 2))
            os.set_blocking(fd, True)
        f.start_ring(0, ring)
        f.write(0, pattern(4096))
        # It goes on when the ring is enabled: it asks for what has changed.
        asked = b.seen.count(vu.GET_CONFIG)
        b.config_change()
        d.wait(lambda: b.seen.count(vu.GET_CONFIG) > asked)
        assert d.alive()
        for fd in kept:
            os.close(fd)


# ---- death ---------------------------------------------------------------------------------------


def test_a_backend_with_open_requests_of_a_driver_that_has_gone(make):
    """It says at once that the queue has stopped, as qemu-storage-daemon does, and would return them in the next run."""
    d = make()
    with Backend(dev(d)) as b:
        held = []
        with Driver(drv(d)) as f:
            f.write(0, pattern(4096))
            b.hook = lambda *what: held.append(what) or True
            for i in range(3):
                f.request(blk.OUT, 8 * i, pattern(4096, i))
            d.wait(lambda: len(held) == 3)
        # It is connected to anew, which it allows when it is done.
        d.wait(lambda: device(d)["connections"] == 2 and device(d)["connected"])
        b.hook = None
        with Driver(drv(d)) as f:
            f.write(0, pattern(4096, 9))
            assert f.read(0, 4096) == pattern(4096, 9)
            f.stop_ring(0)
        show = device(d)
        assert show["queues_spoiled"] == 0 and show["dropped"] == 0 and "connecting again" in show["last"]


@pytest.mark.parametrize("mode", ["client", "server"])
def test_requests_wait_for_the_next_backend(make, mode):
    d = make(Device_SocketMode=mode)
    store = bytearray(512 * 8192)
    server = mode == "server"
    with Backend(dev(d), store=store, connect=server) as b:
        f = Driver(drv(d))
        f.write(0, pattern(4096))
        b.serve = False
        asked = [f.request(blk.OUT, 8 * i, pattern(4096, i)) for i in range(16)]
        asked += [f.request(blk.IN, 0, length=4096)]
        d.wait(lambda: device(d)["requests_open"] == 17)
    d.wait(lambda: not device(d)["connected"])
    with Backend(dev(d), store=store, connect=server):
        assert all(f.wait(t)[0] == blk.OK for t in asked)
    assert all(store[4096 * i:4096 * (i + 1)] == pattern(4096, i) for i in range(16))
    assert device(d)["requests_given_again"] == 17 and device(d)["requests_failed"] == 0
    f.close()


def test_a_predecessor_cannot_touch_what_its_successor_has(make):
    """It was dropped, lives on, and writes over all that it ever had."""
    d = make()
    with Backend(dev(d)) as b, Driver(drv(d)) as f:
        for life in range(1, 4):
            f.write(0, pattern(4096, life))
            b.sock.shutdown(socket.SHUT_RDWR)
            d.wait(lambda: len(b.kept) == life)

            def meanwhile(r, head, chain):
                for m in b.kept:
                    m[:] = b"\xff" * len(m)
            b.hook = meanwhile
            assert f.read(0, 4096) == pattern(4096, life)
            f.write(8, pattern(65536, life))
            assert f.read(8, 65536) == pattern(65536, life)
        assert device(d)["queues_spoiled"] == 0 and device(d)["requests_failed"] == 0


# ---- what a back-end knows beyond its rings -----------------------------------------------------


STATE = PF | vu.bit(PF_DEVICE_STATE)


@pytest.mark.parametrize("keys", MODES, ids=NAMES)
@pytest.mark.parametrize("size", [0, 11, 3000000])
def test_state_goes_to_the_next_backend(make, keys, size):
    """The link is taken down, the back-end is left, and whoever comes has what it knew before a queue starts."""
    d = make(Profile_Capacity="4M", **keys)
    backend = fast_backend if keys else Backend
    state = os.urandom(size)
    with Driver(drv(d)) as f:
        with backend(dev(d), pf=STATE) as a:
            a.state = state
            f.write(0, pattern(4096, 1))
            assert SET_DEVICE_STATE_FD not in a.seen
            assert ctl(d, "down", "ab").returncode == 0
            # It listens, and is the next one, too; and goes before the link is up again.
            d.wait(lambda: a.loaded == [state] and device(d)["attached"])
            again = a.seen[a.seen.index(SET_DEVICE_STATE_FD) + 2:]
            assert a.sessions == 2 and again.count(SET_DEVICE_STATE_FD) == 1 and vu.SET_VRING_KICK not in again
        with backend(dev(d), store=a.store, pf=STATE) as b:
            d.wait(lambda: b.loaded == [state])
            assert vu.SET_VRING_KICK not in b.seen
            assert ctl(d, "up", "ab").returncode == 0
            assert f.read(0, 4096) == pattern(4096, 1)
        # It was killed when it had served: there is nothing to be given. What comes before that is seen counts as given to it.
        d.wait(lambda: not device(d)["connected"])
        with backend(dev(d), store=a.store, pf=STATE) as c:
            assert f.read(0, 4096) == pattern(4096, 1)
        assert not c.loaded and SET_DEVICE_STATE_FD not in c.seen and device(d)["dropped"] == 0


def test_state_of_another_driver(make):
    """The driver VM has gone meanwhile: the next back-end gets nothing of it."""
    d = make(Profile_Capacity="4M")
    with Backend(dev(d), pf=STATE) as a, Driver(drv(d)) as f:
        f.write(0, pattern(4096, 1))
        assert ctl(d, "down", "ab").returncode == 0
        d.wait(lambda: a.loaded)
    with Driver(drv(d)) as f, Backend(dev(d), pf=STATE) as b:
        d.wait(lambda: device(d)["attached"])
        assert ctl(d, "up", "ab").returncode == 0
        f.write(0, pattern(4096, 1))
    assert not b.loaded and SET_DEVICE_STATE_FD not in b.seen


def test_state_that_is_refused(make):
    """It is lost, which the log says; link and back-end go on."""
    d = make()
    with Backend(dev(d), pf=STATE) as a, Driver(drv(d)) as f:
        a.state_answer = 1
        f.write(0, pattern(4096, 1))
        assert ctl(d, "down", "ab").returncode == 0
        d.wait_log("is lost: it refuses")
        assert ctl(d, "up", "ab").returncode == 0
        assert f.read(0, 4096) == pattern(4096, 1)
    assert a.sessions == 1


def hold_one(b):
    """It keeps the next request. A function that answers it."""
    held = []

    def keep(r, head, chain):
        b.hook = None
        held.append((r, head, chain))
        return True

    b.hook = keep
    return held, lambda: b.back(held[0][0], held[0][1], b.request(held[0][2]))


def test_state_waits_for_what_is_under_way(make):
    """The link is taken down: no new request goes to the back-end, and when the last one is answered its state is saved."""
    d = make(Profile_Capacity="4M")
    state = os.urandom(4000)
    with Driver(drv(d)) as f, Backend(dev(d), pf=STATE) as a:
        a.state = state
        f.write(0, pattern(4096, 1))
        held, answer = hold_one(a)
        t = f.request(blk.OUT, 8, pattern(4096, 2))
        d.wait(lambda: held)
        assert ctl(d, "down", "ab").returncode == 0 and d.show("ab")["status"] == "down"
        late = f.request(blk.OUT, 16, pattern(4096, 3))
        d.stays(lambda: f.reap() or (late in f.open and vu.GET_VRING_BASE not in a.seen), 0.3)
        answer()
        assert f.wait(t)[0] == blk.OK
        # It listens, and is the next one, too.
        d.wait(lambda: a.loaded == [state])
        assert late in f.open and device(d)["requests_failed"] == device(d)["requests_given_again"] == 0
        assert ctl(d, "up", "ab").returncode == 0
        assert f.wait(late)[0] == blk.OK and f.read(8, 8192) == pattern(4096, 2) + pattern(4096, 3)
        # Up again before it is answered: nothing was stopped.
        held, answer = hold_one(a)
        t, gets = f.request(blk.OUT, 8, pattern(4096, 4)), a.seen.count(vu.GET_VRING_BASE)
        d.wait(lambda: held)
        assert ctl(d, "down", "ab").returncode == 0 and ctl(d, "up", "ab").returncode == 0
        assert f.read(0, 4096) == pattern(4096, 1) and a.seen.count(vu.GET_VRING_BASE) == gets
        answer()
        assert f.wait(t)[0] == blk.OK and a.loaded == [state]


def test_state_waits_no_longer_than_that(make):
    """It is under way for 5 s: the log says so, the back-end is left, and the next one gets the request again."""
    d = make(Profile_Capacity="4M")
    with Driver(drv(d)) as f, Backend(dev(d), pf=STATE) as a:
        a.state = b"state"
        f.write(0, pattern(4096, 1))
        held, _ = hold_one(a)
        t = f.request(blk.OUT, 8, pattern(4096, 2))
        d.wait(lambda: held)
        begun = time.monotonic()
        assert ctl(d, "down", "ab").returncode == 0
        d.wait_log("requests are still under way 5 s after the link was set down")
        assert time.monotonic() - begun > 4.9
        d.wait(lambda: a.sessions == 2)
        assert not a.loaded and t in f.open
        assert ctl(d, "up", "ab").returncode == 0
        assert f.wait(t)[0] == blk.OK and device(d)["requests_given_again"] == 1


def test_driver_goes_while_that_is_waited_for(make):
    """Its driver VM goes, or the back-end does: the link is down at once."""
    d = make(Profile_Capacity="4M")
    with Backend(dev(d), pf=STATE) as a:
        for who in ("driver", "back-end"):
            with Driver(drv(d)) as f:
                f.write(0, pattern(4096, 1))
                held, _ = hold_one(a)
                f.request(blk.OUT, 8, pattern(4096, 2))
                d.wait(lambda: held)
                n = a.sessions
                assert ctl(d, "down", "ab").returncode == 0
                if who == "back-end":
                    a.sock.shutdown(socket.SHUT_RDWR)
                    d.wait(lambda: a.sessions > n)
            assert ctl(d, "up", "ab").returncode == 0
    assert "still under way" not in d.log()


class EchoNic(Backend):
    """What the driver sends comes back to it."""

    HAS = vu.bit(vu.VERSION_1, vu.PROTOCOL, vu.NET_MRG_RXBUF, vu.NET_CSUM, vu.NET_GUEST_CSUM)

    def __init__(self, path, features=HAS, **kw):
        super().__init__(path, features=features, **kw)
        self.hook = self.echo
        self.free, self.packets = [], []

    def echo(self, r, head, chain):
        if r is self.rings[0]:
            self.free.append((head, chain))
        else:
            self.packets.append(b"".join(bytes(self.at(a, n)) for a, n, _ in chain))
            self.back(r, head, 0)
            self.process(0)
        while self.free and self.packets:
            head, chain = self.free.pop(0)
            packet = self.packets.pop(0)
            packet = packet[:10] + struct.pack("<H", 1) + packet[12:]
            self.at(chain[0][0], len(packet))[:] = packet
            self.back(self.rings[0], head, len(packet))
        return True

    def handle(self, req, data, fds):
        if req == vu.SET_VRING_BASE and not data[0]:
            self.free, self.packets = [], []
        return super().handle(req, data, fds)


def test_net(make):
    """A network device: packets go both ways, are dropped while nobody is there, and go on with the next back-end."""
    d = make(Link_Type="net", Net_Offloads="csum mrgbuf", Device_PackedRings=None)
    with vu.Nic(drv(d)) as nic:
        for life in range(2):
            with EchoNic(dev(d)):
                is_up(d)
                for i in range(200):
                    nic.send_packet(vu.frame(i, 60 + 7 * i))
                    assert nic.recv_packet()[1] == vu.frame(i, 60 + 7 * i)
            d.wait(lambda: not device(d)["connected"])
            for i in range(200):
                nic.send_packet(vu.frame(i))
            assert nic.recv_packet(0.2) is None


@pytest.mark.parametrize("features", [EchoNic.HAS, EchoNic.HAS & ~vu.bit(vu.PROTOCOL)], ids=["protocol features", "none"])
def test_started_ring_is_kicked(make, features):
    """For back-ends that start a ring with its first kick, one follows SET_VRING_KICK ("Ring states"): here no packet is sent."""
    d = make(Link_Type="net", Net_Offloads="csum mrgbuf", **FAST)
    with EchoNic(dev(d), features=features | vu.bit(vu.INDIRECT, vu.EVENT_IDX)) as b, vu.Nic(drv(d)) as nic:
        is_up(d)
        d.wait(lambda: b.kicked >= {0, 1})
        nic.send_packet(vu.frame(1))
        assert nic.recv_packet()[1] == vu.frame(1)
        assert (vu.SET_VRING_ENABLE in b.seen) == bool(features >> vu.PROTOCOL & 1)


# ---- what is said -----------------------------------------------------------------------------


def test_nobody_serves_yet(make):
    """The driver VM cannot come before a back-end that says what the disk is: show and doctor say so, and where the back-end is to listen."""
    d = make()
    d.wait(lambda: device(d)["last"])
    r = ctl(d, "show", "ab")
    assert "its socket is not there yet" in r.stdout and "start it, or write [Profile] in the link's file" in r.stdout
    assert f"last       {dev(d)}: cannot connect: No such file or directory" in r.stdout
    assert f"no back-end is connected: {dev(d)}: cannot connect" in ctl(d, "doctor", "ab").stdout
    with Backend(dev(d)):
        drv(d)
        r = ctl(d, "show", "ab")
        assert "not there yet" not in r.stdout and "  last " not in r.stdout and "[Profile]" not in r.stdout
        r = ctl(d, "doctor", "ab")
        assert "back-end" not in r.stdout and "GUEST_CSUM" not in r.stdout
        with Driver(drv(d)) as f:
            f.read(0, 512)
            r = ctl(d, "doctor", "ab")
            assert "GUEST_CSUM" not in r.stdout and "vhost-pci-agent" not in r.stdout


def test_a_backend_that_does_not_fit(make):
    d = make(Profile_Capacity="1G")
    with Backend(dev(d)):
        d.wait_log("Capacity= says 1073741824; enlarge the disk, or lower Capacity=")
        r = ctl(d, "doctor", "ab")
        assert "the last back-end that came does not fit: its disk has 4194304 bytes" in r.stdout and "vhost-pci-agent" not in r.stdout


@pytest.mark.parametrize("kind,said", [("fs", "the link 2; no Queues= fits that: it may serve another device than Type= says"), ("blk", "give the back-end more")])
def test_a_backend_with_too_few_queues(make, kind, said):
    d = make(Link_Type=kind, **({"Link_Queues": "2"} if kind == "blk" else {}))
    with Backend(dev(d)):
        d.wait_log(said)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it becomes another user")
@pytest.mark.parametrize("mode", ["client", "server"])
def test_a_backend_of_a_user_who_may_not(make, mode):
    """It was not there when the daemon first looked: what is wrong now is said all the same."""
    d = make(Device_SocketMode=mode)
    d.write("b.vm", "[VM]\nUser=daemon\n")
    d.call("daemon.reload")
    os.chmod(d.tmp, 0o755)
    os.chmod(d.run, 0o777)
    if mode == "client":
        d.wait_log("cannot connect: No such file")
    act = f"s.bind({dev(d)!r}); s.listen(); print(flush=True); input()" if mode == "client" else f"s.connect({dev(d)!r}); print(s.recv(1))"
    with subprocess.Popen(["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "/usr/bin/python3", "-c",
                           f"import socket; s = socket.socket(socket.AF_UNIX); {act}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as p:
        p.stdout.readline()
        d.wait_log("user 65534, who may not serve as b; add it to User= in b.vm")
        d.wait(lambda: "add it to User= in b.vm" in ctl(d, "show", "ab").stdout)
        p.communicate(b"\n")


def test_pool_that_became_too_small(make):
    """The link that runs is not taken away for one that cannot be."""
    d = make()
    with Backend(dev(d)), Driver(drv(d)) as f:
        f.read(0, 512)
        link(d, Link_Queues="8", Device_PoolSize="1M")
        with pytest.raises(ControlError, match="PoolSize=1M has no room for 8 queues"):
            d.call("daemon.reload")
        f.read(0, 512)
        assert d.show("ab")["queue_pairs"] == 1


def test_state_directory_that_cannot_be(make_daemon):
    d = make_daemon()
    d.run.mkdir()
    link(d)
    d.write("vhost-pci.conf", f"[Daemon]\nStateDirectory={d.tmp}/none/state\n")
    d.start()
    with Backend(dev(d)):
        d.wait_log(f"cannot be kept in {d.tmp}/none/state/ab.profile: No such file or directory; make the directory, or set StateDirectory=")
        drv(d)
