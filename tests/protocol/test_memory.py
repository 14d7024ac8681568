# SPDX-License-Identifier: BSD-3-Clause
"""Which memory is taken from a VM, how much of it, and what becomes of that which goes away."""
import contextlib
import os
import socket
import struct
import tempfile
import time

import pytest

import conftest
import portclient as pc
import vu
from bugclass import MODES, MRG, Lab, lab_of
from clock import Clock
from silentfs import SilentFs

FAR = 1 << 40


@pytest.fixture(params=MODES)
def lab(make_daemon, request):
    yield from lab_of(Lab, make_daemon, request.param)


def region(i, size, gpa=FAR):
    """A region of that size, the i-th of them."""
    at = gpa + i * size
    return struct.pack("<QQQQQ", 0, at, size, at, 0)


def add(f, fd, i=0, size=1 << 20):
    f.tell(vu.ADD_MEM_REG, region(i, size), [fd])


def other_file(size=1 << 20):
    """An open file on a file system that is not tmpfs, and where it lies."""
    import fcntl
    for where in (str(conftest.BUILD), "/var/tmp", "/"):
        f = tempfile.TemporaryFile(dir=where)
        try:
            fcntl.fcntl(f, 1034)  # F_GET_SEALS: only tmpfs and hugetlbfs know it
        except OSError:
            f.truncate(size)
            return f, where
        f.close()
    pytest.skip("every file system here is tmpfs")


# ---- files that shrink

def test_buffers_truncated(lab):
    """The rings stay, the file that the buffers lie in goes: the queue stops, and that is said."""
    nic = lab.driver()
    lab.there_and_back(1)
    fd = os.memfd_create("buffers")  # nobody can seal it
    os.ftruncate(fd, 1 << 20)
    add(nic, fd)
    lab.d.wait(lambda: lab.d.show("ab")["status"] == "up")
    lab.there_and_back(2)
    os.ftruncate(fd, 0)
    ring = nic.rings[1]
    for _ in range(8):
        head = ring.take()
        ring.raw_desc(head, FAR + 4096 * head, 100, 0, 0)
        ring.chains[head] = ([head], None, [])
        ring.expose(head)
    nic.kick(1)
    lab.d.wait(lambda: lab.queue(1)["state"] == "broken")
    if lab.mode != "fast":
        assert "truncated" in lab.queue(1)["error"]
        lines = [s for s in lab.d.log().splitlines() if "link ab, driver side: queue 1:" in s and "truncated" in s]
        assert len(lines) == 1, lines
    lab.check()
    os.close(fd)


@pytest.mark.parametrize("lab", ["relay", "copy"], indirect=True)
def test_dirty_log_truncated(lab):
    """Marks that are lost would be pages that are not migrated: the queues stop."""
    nic = lab.driver(mem=vu.Memory(16 << 20, gpa=0))
    log = os.memfd_create("log")
    os.ftruncate(log, 4096)
    nic.send(vu.SET_LOG_BASE, struct.pack("<QQ", 4096, 0), [log], need_reply=False)
    nic.recv_reply(vu.SET_LOG_BASE)
    nic.tell_u64(vu.SET_FEATURES, nic.features | vu.bit(vu.LOG_ALL))
    for q in (0, 1):
        nic.tell(vu.SET_VRING_ADDR, nic.addr_msg(q, nic.rings[q], flags=1, log=nic.rings[q].used))
    lab.there_and_back(1)
    os.ftruncate(log, 0)
    nic.send_packet(vu.frame(2))
    lab.echo()
    lab.d.wait(lambda: lab.queue(1)["state"] == "broken")
    lab.check()
    os.close(log)


@pytest.mark.parametrize("attachment", ["shmem", "ivshmem"])
@pytest.mark.parametrize("sealable", [False, True])
def test_huge_pages_are_handed_on_sealed(make_daemon, attachment, sealable):
    """Huge pages shrink like others: sealed, or not given to a device VM, whose VMM would die of it."""
    import fcntl
    try:
        fd = os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_HUGETLB | (os.MFD_ALLOW_SEALING if sealable else 0))
        os.ftruncate(fd, 64 << 20)
    except OSError as err:
        pytest.skip(f"no hugetlbfs: {err}")
    d, stack = make_daemon(), contextlib.ExitStack()
    more = {}
    if attachment == "ivshmem":
        more = {"Device_QMP": str(d.tmp / "qmp"), "Device_HotplugBus": "rp0 rp1"}
        qmp = pc.Qmp(more["Device_QMP"])
        stack.callback(qmp.close)
    d.link("ab", Device_Endpoint="port", Device_Attachment=attachment, **more)
    d.start()
    nic = stack.enter_context(vu.Nic(d.sock("ab", "driver")))
    add(nic, fd, size=64 << 20)
    p = stack.enter_context((pc.Shmem if attachment == "shmem" else pc.Ivshmem)(d.sock("ab", "device")))
    if attachment == "ivshmem":
        p.vmm = qmp
    if sealable:
        assert fcntl.fcntl(fd, 1034) & 2  # F_SEAL_SHRINK
        if attachment == "ivshmem":  # the other double would map it, for which there may be no huge pages
            p.attach()
            p.wait(lambda s: s.up)
    else:
        p.attach()
        p.wait(lambda s: s.reason == pc.WINDOW)
        assert any("truncated" in w["error"] for w in d.show("ab")["sides"]["device"]["windows"] if w["error"])
        assert nic.alive()
    stack.close()
    os.close(fd)


# ---- files whose pages may have to wait

def test_other_files_are_refused(lab):
    """Nobody knows who serves such a file: refused by name, with the way out, and nothing else suffers."""
    nic = lab.driver()
    f, _ = other_file()
    with open("/dev/zero", "r+b") as dev, f:
        for fd, what in ((f.fileno(), "neither on tmpfs nor on hugetlbfs"), (dev.fileno(), "device")):
            with pytest.raises(vu.Refused):
                add(nic, fd)
            assert any(what in s and "MemoryFrom= of a.vm" in s for s in lab.d.log().splitlines()), lab.d.log()
            with pytest.raises(vu.Refused):
                nic.tell(vu.SET_MEM_TABLE, struct.pack("<II", 2, 0) + nic.region(nic.mem) + region(0, 1 << 20)[8:], [nic.mem.fd, fd])
        if lab.mode != "fast":
            nic.send(vu.SET_LOG_BASE, struct.pack("<QQ", 1 << 20, 0), [f.fileno()], need_reply=False)
            with contextlib.suppress(vu.Gone):
                nic.recv_reply(vu.SET_LOG_BASE)
            assert not nic.alive() or not lab.d.show("ab")["sides"]["driver"]["dirty_log"]
    if nic.alive():
        lab.there_and_back(1)


def test_device_side_of_shmem(make_daemon):
    """Its rings may lie in memory of the device VM only that nobody can keep waiting."""
    f, _ = other_file()
    d = make_daemon()
    d.link("ab", Device_Endpoint="port", Device_Attachment="shmem")
    d.start()
    with f, vu.Frontend(d.sock("ab", "device")) as p:
        p.negotiate(vu.BASIC)
        mem = vu.Memory()
        p.mem = mem
        p.tell(vu.SET_MEM_TABLE, struct.pack("<II", 1, 0) + struct.pack("<QQQQ", mem.gpa, 1 << 20, mem.uva, 0), [f.fileno()])
        with pytest.raises((vu.Refused, vu.Gone)):
            p.start_ring(0, vu.SplitRing(mem, 64))
        d.wait_log("MemoryFrom= of b.vm")


@pytest.mark.parametrize("mode", MODES)
def test_what_the_administrator_names(make_daemon, mode):
    f, where = other_file(16 << 20)
    d = make_daemon()
    d.write("a.vm", f"[VM]\nTrustGroup=test\nMemoryFrom=/dev/zero {where}\n")
    one = Lab(d, mode)
    nic = one.driver()
    add(nic, f.fileno())
    with open("/dev/zero", "r+b") as dev:
        add(nic, dev.fileno(), 1)
    one.there_and_back(1)
    ring = nic.rings[1]
    head = ring.take()
    packet = bytes(12) + vu.frame(2, 200)
    os.pwrite(f.fileno(), packet, 0)
    ring.raw_desc(head, FAR, len(packet), 0, 0)
    ring.chains[head] = ([head], None, [])
    ring.expose(head)
    nic.kick(1)
    assert one.answer() == vu.frame(2, 200)
    # Another VM's is another matter.
    with vu.Frontend(d.sock("cd", "driver")) as c:
        c.negotiate(vu.BASIC)
        with pytest.raises(vu.Refused):
            add(c, f.fileno())
    one.check()
    one.close()
    f.close()


@pytest.fixture
def silent():
    """After the daemon: a process that is started meanwhile waits when it closes what it inherited."""
    try:
        fs = SilentFs()
    except OSError as err:
        pytest.skip(str(err))
    yield fs
    fs.close()


def answers_promptly(d):
    """The control socket answers, and another link carries packets: while the server is silent, and that is for ever."""
    d.show("ab")
    with vu.Nic(d.sock("cd", "driver")) as c, vu.Nic(d.sock("cd", "device")) as e:
        c.send_packet(vu.frame(1))
        assert e.recv_packet()[1] == vu.frame(1)


# All that may carry a file descriptor, with one that must not be asked anything, and must not even be closed.
TRICKS = {
    "region": lambda f, fd: add(f, fd),
    "table": lambda f, fd: f.tell(vu.SET_MEM_TABLE, struct.pack("<II", 1, 0) + region(0, 1 << 20)[8:], [fd]),
    "log": lambda f, fd: f.tell(vu.SET_LOG_BASE, struct.pack("<QQ", 4096, 0), [fd]),
    "kick": lambda f, fd: f.tell_u64(vu.SET_VRING_KICK, 0, [fd]),
    "call": lambda f, fd: f.tell_u64(vu.SET_VRING_CALL, 0, [fd]),
    "err": lambda f, fd: f.tell_u64(vu.SET_VRING_ERR, 0, [fd]),
    "channel": lambda f, fd: f.tell(vu.SET_BACKEND_REQ_FD, b"", [fd]),
    "surplus": lambda f, fd: f.tell(vu.SET_OWNER, b"", [fd] * 3),
}


@pytest.fixture(params=[*MODES, "shmem"])
def victim(make_daemon, request):
    """A daemon with link ab of each kind, and the side that plays tricks."""
    d = make_daemon()
    keys = {"relay": {}, "fast": {"Device_Attachment": "local"}, "copy": {"Device_Attachment": "local", "Link_Mode": "copy"},
            "shmem": {"Device_Attachment": "shmem"}}[request.param]
    d.link("ab", **({"Device_Endpoint": "port"} if keys else {}), **keys)
    d.link("cd", driver="c", device="d")
    d.start()
    return d, d.sock("ab", "device" if request.param == "shmem" else "driver")


@pytest.mark.parametrize("trick", TRICKS)
def test_file_whose_server_is_silent(victim, silent, trick):
    """Whoever looks at it, touches it or closes it waits for ever: nobody of the daemon's who is needed does."""
    d, path = victim
    before = d.fds()
    with vu.Frontend(path) as f:
        f.negotiate(vu.BASIC, vu.bit(vu.PF_REPLY_ACK, vu.PF_MEM_SLOTS, vu.PF_LOG_SHMFD, vu.PF_BACKEND_REQ))
        with contextlib.suppress(vu.Refused, vu.Gone):
            TRICKS[trick](f, silent.fd)
        answers_promptly(d)
    answers_promptly(d)
    # Its front-end may come back: it has not done it often.
    with vu.Frontend(path) as f:
        f.negotiate(vu.BASIC)
    silent.close()
    silent.close = lambda: None
    d.wait_fds(before)


def test_many_files_whose_server_is_silent(daemon, silent):
    """Each costs a descriptor and a thread until the server ends: a VM gets to send a few."""
    d = daemon
    before = d.fds()
    for i in range(40):
        with contextlib.suppress(vu.Gone, OSError), vu.Frontend(d.sock("ab", "driver"), timeout=5) as f:
            f.negotiate(vu.BASIC)
            for _ in range(4):
                if i % 2:
                    f.raw(struct.pack("<III", vu.SET_OWNER, 1, 0), [silent.fd] * 8)
                    f.ask_u64(vu.GET_FEATURES)
                else:
                    with contextlib.suppress(vu.Refused):
                        add(f, silent.fd)
    assert d.fds() - before < 40
    answers_promptly(d)
    d.wait_log("end that")
    silent.close()
    silent.close = lambda: None
    d.wait_fds(before)
    # And then it is served again.
    with vu.Nic(d.sock("ab", "driver")) as a, vu.Nic(d.sock("ab", "device")) as b:
        a.send_packet(vu.frame(1))
        assert b.recv_packet()[1] == vu.frame(1)


# ---- how much

def test_max_memory(make_daemon):
    """Over all links of a VM, and on either side; a table that replaces another is not counted beside it."""
    d = make_daemon()
    d.write("a.vm", "[VM]\nTrustGroup=test\nMaxMemory=48M\n")
    d.link("ab")
    d.link("ca", driver="c", device="a")
    d.link("cd", driver="c", device="d")
    d.start()
    with vu.Nic(d.sock("ab", "driver")) as a, vu.Nic(d.sock("ca", "device")) as a2, vu.Nic(d.sock("ab", "device")) as b:
        sparse = os.memfd_create("sparse")
        os.ftruncate(sparse, 1 << 46)
        for size in (17 << 20, 1 << 40, 1 << 45):
            with pytest.raises(vu.Refused):
                add(a, sparse, size=size)
        assert "MaxMemory=48M; raise it in a.vm" in d.log()
        add(a, sparse, size=16 << 20)
        with pytest.raises(vu.Refused):
            add(a2, sparse, size=4096)
        add(b, sparse, size=1 << 38)  # another VM
        # The same again, as one table.
        a.tell(vu.SET_MEM_TABLE, struct.pack("<II", 2, 0) + a.region(a.mem) + region(0, 16 << 20)[8:], [a.mem.fd, sparse])
        a.tell(vu.REM_MEM_REG, region(0, 16 << 20))
        add(a2, sparse, size=16 << 20)
        a.send_packet(vu.frame(1))
        assert b.recv_packet()[1] == vu.frame(1)
        d.write("a.vm", "[VM]\nTrustGroup=test\nMaxMemory=64M\n")
        d.call("daemon.reload")
        add(a, sparse, size=16 << 20)
        os.close(sparse)


@pytest.mark.parametrize("what", ["regions", "bytes"])
def test_each_vm_has_its_share(make_daemon, what):
    """Nine VMs take all the memory regions and address space that they get; a tenth still adds memory."""
    d = make_daemon()
    greedy = [f"g{i}" for i in range(9)]
    for vm in [*greedy, "last"]:
        d.write(f"{vm}.vm", "[VM]\nMaxMemory=32T\n")
        d.link(f"l{vm}", driver=vm, device="b")
    plain = d.command
    d.command = lambda *more: ["prlimit", "--nofile=2048:2048", *plain(*more)]
    d.start()
    size, most = (1 << 20, 509) if what == "regions" else (1 << 40, 60)
    fd = os.memfd_create("sparse")
    os.ftruncate(fd, size)
    with contextlib.ExitStack() as stack:
        got = []
        for vm in greedy:
            f = stack.enter_context(vu.Frontend(d.sock(f"l{vm}", "driver")))
            f.negotiate(vu.BASIC)
            n = 0
            with contextlib.suppress(vu.Refused):
                while n < most:
                    add(f, fd, n, size)
                    n += 1
            got.append(n)
        assert "kept for other VMs" in d.log(), got
        assert sum(got) <= (1024 if what == "regions" else 64) and got[0] > got[8] > 0, got
        last = stack.enter_context(vu.Frontend(d.sock("llast", "driver")))
        last.negotiate(vu.BASIC)
        for n in range(got[8]):
            add(last, fd, n, size)
        # Sockets have their part, too.
        with vu.Nic(d.sock("lg8", "device")) as b:
            assert b.alive()
    os.close(fd)


# ---- how long it takes to be freed

GONE = {
    "mapped": lambda f, fd, n: f.tell(vu.SET_MEM_TABLE, struct.pack("<IIQQQQ", 1, 0, 0, n, 0, 0), [fd]),
    "refused": lambda f, fd, n: f.raw(struct.pack("<IIIQ", vu.SET_VRING_KICK, 1, 8, 0), [fd]),
}


@pytest.mark.parametrize("how", GONE)
@pytest.mark.parametrize("mode", MODES)
def test_large_memory_goes_with_its_vm(make_daemon, mode, how):
    """The daemon has the last descriptor when a VMM ends: its main thread is not the one that frees all the pages."""
    daemon = make_daemon()
    port = {"Device_Endpoint": "port", "Device_Attachment": "local", "Link_Mode": mode}
    daemon.link("ab", **(port if mode != "relay" else {}))
    daemon.start()
    n = 2 << 30
    with open("/proc/meminfo") as f:
        if int(next(x for x in f if x.startswith("MemAvailable")).split()[1]) << 10 < 2 * n:
            pytest.skip("too little memory")
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        fd = os.memfd_create("large")
        os.ftruncate(fd, n)
        os.posix_fallocate(fd, 0, n)
        f = vu.Frontend(daemon.sock("ab", "driver"))
        f.negotiate(vu.BASIC)
        GONE[how](f, fd, n)
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        os._exit(0)
    # A child that ends before it is ready is seen, not waited for.
    os.close(ready[1])
    os.close(go[0])
    assert os.read(ready[0], 1) == b"x", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    daemon.call("daemon.version")
    took, clock = [], Clock(daemon)
    os.write(go[1], b"x")
    end = time.monotonic() + 2
    while time.monotonic() < end:
        with clock.timed(took, "main"):
            daemon.call("daemon.version")
        time.sleep(0.001)
    os.waitpid(pid, 0)
    os.close(ready[0])
    os.close(go[1])
    assert max(took) < 0.2, f"{max(took):.3f} s"
