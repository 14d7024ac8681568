# SPDX-License-Identifier: BSD-3-Clause
"""A driver VM's connection ends only when the device VM has let go of its rings, however the link ends (daemon/handover/guard.h): a VMM that loses
its back-end goes to work on them itself."""
import contextlib
import os
import select
import signal
import socket
import struct
import threading
import time

import pytest

import portclient as pc
import vu
from conftest import ControlError
from portside import forward

CLASSES = {"local": pc.Local, "ivshmem": pc.Ivshmem, "shmem": pc.Shmem}
PATIENCE = 3.0


class Lab:
    """A fast link of one attachment whose device VM has the queues, and a copy link beside it."""

    def __init__(self, d, attachment):
        self.d, self.attachment, self.qmp = d, attachment, None
        keys = {}
        if attachment == "ivshmem":
            self.qmp = pc.Qmp(str(d.tmp / "qmp"))
            keys = {"Device_QMP": str(d.tmp / "qmp"), "Device_HotplugBus": "rp0 rp1"}
        d.link("ab", Device_Endpoint="port", Device_Attachment=attachment, Link_Mode="fast", **keys)
        d.link("cd", driver="c", device="d", Device_Endpoint="port", Device_Attachment="local", Link_Mode="copy")
        d.start()
        self.guard = d.call("daemon.show")["guard_pid"]
        self.p = CLASSES[attachment](d.sock("ab", "device"))
        self.p.vmm = self.qmp
        assert self.p.attach() == pc.OK
        self.nic = vu.Nic(d.sock("ab", "driver"))
        self.p.wait(lambda s: s.up and s.queues[1].avail)
        self.nic.send_packet(vu.frame(1))
        self.index = forward(self.p, 1)[1] if attachment != "shmem" else None
        self.thread = None

    def end(self, how):
        d = self.d
        deaf(self.p)
        if how == "kill":
            d.kill()
        elif how == "stop":
            # It ends when the guard has.
            self.thread = threading.Thread(target=d.stop)
            self.thread.start()
        elif how == "remove":
            d.call("link.remove", name="ab")
        else:
            (d.conf / "ab.link").unlink()
            d.call("daemon.reload")
        self.since = time.monotonic()

    def ended(self):
        return hung_up(self.nic.sock)

    def told(self):
        """The state that the guest finds when it has been told."""
        return self.p.wait(lambda s: s.reason == pc.DAEMON)

    def wait_ended(self):
        def ended():
            if self.attachment == "shmem" and select.select([self.p.back], [], [], 0)[0]:
                with contextlib.suppress(pc.Gone, BrokenPipeError):
                    self.p.serve()
            return self.ended()
        self.d.wait(ended, why="the driver VM is still held")
        return time.monotonic() - self.since

    def wait_let_go(self):
        """It ended because the guest has let go, and not because that was waited for long enough."""
        self.wait_ended()
        assert "has not let go" not in self.d.log()
        self.d.wait_log("the device VM has let go after")

    def close(self):
        if self.thread:
            self.thread.join()
        self.nic.close()
        self.p.close()
        if self.qmp:
            self.qmp.close()
        if not self.d.alive() and not self.thread:
            self.d.proc = None  # killed, as was meant


def deaf(p):
    """From now on the control block is all that @p knows of the daemon. A VMM serves its back-end all the same."""
    p.drain = lambda: None
    if not isinstance(p, pc.Shmem):
        p.idle = lambda: time.sleep(0.002)


def hung_up(sock):
    p = select.poll()
    p.register(sock, select.POLLRDHUP)
    return bool(p.poll(0))


def listens(path):
    """Somebody accepts connections there; a daemon that was killed leaves the socket's file."""
    with socket.socket(socket.AF_UNIX) as s:
        return s.connect_ex(path) == 0


def gone(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture
def lab(make_daemon):
    made = []

    def make(attachment):
        made.append(Lab(make_daemon(), attachment))
        return made[-1]

    yield make
    for l in made:
        l.close()


@contextlib.contextmanager
def neighbour(d):
    """A second fast link, and both its ends."""
    d.link("ef", driver="a", device="c", Device_Endpoint="port", Device_Attachment="local", Link_Mode="fast")
    d.call("daemon.reload")
    with pc.Local(d.sock("ef", "device")) as p, vu.Nic(d.sock("ef", "driver")) as nic:
        p.attach()
        p.wait(lambda s: s.up and s.queues[1].avail)
        yield p, nic


def drain_signals(p):
    fd = p.signals[0]
    while select.select([fd], [], [], 0)[0]:
        os.read(fd, 8)


@pytest.mark.parametrize("how", ["kill", "stop", "remove", "reload"])
@pytest.mark.parametrize("attachment", list(CLASSES))
def test_held_until_let_go(lab, attachment, how):
    l = lab(attachment)
    drain_signals(l.p)
    l.end(how)
    s = l.told()
    assert s.attached and not s.up and not s.regions and not any(q.flags & pc.STARTED for q in s.queues)
    assert pc.raised(l.p.signals[0]), "the guest was not told"
    if attachment == "shmem":
        assert not hung_up(l.p.fe.sock), "its VMM would not listen to signals any more"
    # The driver VM's VMM is not set loose on rings that the guest may be at work on, and the daemon waits.
    l.d.stays(lambda: not l.ended() and (not l.thread or l.thread.is_alive()), 0.4)
    l.p.sync()
    l.wait_let_go()
    # Nobody is there any more: the guest may look for the next daemon.
    assert not l.p.wait(lambda s: not s.attached).up
    if how in ("kill", "stop"):
        l.d.wait(lambda: gone(l.guard))
    else:
        assert l.d.alive() and not gone(l.guard)


@pytest.mark.parametrize("how", ["kill", "stop", "remove"])
def test_guest_that_does_not_let_go(lab, how):
    l = lab("local")
    l.end(how)
    l.told()
    assert PATIENCE - 0.5 < l.wait_ended() < pc.limit(PATIENCE + 1.5)
    if how != "remove":
        l.d.wait(lambda: gone(l.guard))
    assert "has not let go" in l.d.log()


def test_process_that_closes_its_port(lab):
    """A local port's process that hears of the end by its socket lets go without a word."""
    l = lab("local")
    l.end("kill")
    l.told()
    with pytest.raises(pc.Gone):
        while True:
            l.p.read_message()
    assert not l.ended()
    l.p.sock.close()
    l.wait_let_go()


@pytest.mark.parametrize("opcode", [pc.ATTACH, pc.DETACH])
def test_who_attaches_or_detaches_has_let_go(lab, opcode):
    l = lab("ivshmem")
    l.end("kill")
    l.told()
    l.p.command_raw(9999, opcode, pc.ABI, pc.ALL, 0, 1)
    l.wait_let_go()


def test_commands_meanwhile(lab):
    """A guest that waits for an answer does not look at its state: it gets one. What is older than the end says nothing."""
    l = lab("ivshmem")
    os.kill(l.d.proc.pid, signal.SIGSTOP)
    s = l.p.state()
    l.p.command_raw(1000, pc.SYNC, s.regions_generation)
    l.end("kill")
    assert l.p.wait(lambda s: s.answer[0] == 1000).answer[2] == pc.OK
    assert l.p.command(pc.QUEUE_STOPPED, 1, s.queues[1].run, 1, 0) == pc.STALE
    assert l.p.command(77) == pc.UNKNOWN
    l.d.stays(lambda: not l.ended(), 0.2)
    l.p.sync()
    l.wait_let_go()


def test_daemon_that_ends_while_it_writes(lab):
    """The page stays readable: the guard finishes what the daemon began."""
    l = lab("ivshmem")
    os.kill(l.d.proc.pid, signal.SIGSTOP)
    g, = struct.unpack_from("<I", l.p.mem, pc.STATE)
    struct.pack_into("<I", l.p.mem, pc.STATE, g + 1)
    l.end("kill")
    assert l.told().generation > g
    l.p.sync()
    l.wait_let_go()


def test_driver_vm_that_goes_too(lab):
    l = lab("local")
    l.end("kill")
    l.nic.sock.close()
    l.d.wait(lambda: gone(l.guard))
    assert "the driver VM has gone after" in l.d.log()


def test_signal_that_blocks(lab):
    """A device VM's VMM that fills its eventfd and makes it block keeps nobody else waiting."""
    l = lab("local")
    d = l.d
    with neighbour(d) as (p, nic):
        fd = l.p.signals[0]
        os.set_blocking(fd, True)
        os.kill(d.proc.pid, signal.SIGSTOP)
        drain_signals(l.p)
        os.write(fd, struct.pack("<Q", (1 << 64) - 2))
        l.end("kill")
        deaf(p)
        p.wait(lambda s: s.reason == pc.DAEMON)
        p.sync()
        d.wait(lambda: hung_up(nic.sock))
        assert "link ef: the device VM has let go after" in d.log()
        assert not l.ended() or time.monotonic() - l.since > PATIENCE - 0.5
        os.read(fd, 8)
        l.p.sync()
        l.wait_ended()


def test_only_what_the_guest_has(lab):
    """Copy links, and fast ones whose queues the guest has given back, are nobody's to hold."""
    l = lab("local")
    with pc.Local(l.d.sock("cd", "device")) as p, vu.Nic(l.d.sock("cd", "driver")) as copy:
        p.attach()
        p.wait(lambda s: s.up and s.queues[1].avail)
        for q in range(2):
            s = l.p.state().queues[q]
            assert l.p.stopped(q, s.run, 0, 2) == pc.OK
        l.end("kill")
        l.wait_ended()
        l.d.wait(lambda: hung_up(copy.sock))
    l.d.wait(lambda: gone(l.guard))
    assert "has not let go" not in l.d.log()


def test_neighbour_goes_on(lab):
    """One link is taken away; the device VM of another hears nothing of it, and its traffic runs."""
    l = lab("local")
    d = l.d
    with neighbour(d) as (p, nic):
        generation = p.state().generation
        l.end("remove")
        l.told()
        nic.send_packet(vu.frame(7))
        assert forward(p, 1)[0] == [vu.frame(7)]
        l.p.sync()
        l.wait_ended()
        assert p.state().generation == generation
        # The name is free at once, also while the old one is seen off.
        d.call("daemon.reload")
        with pc.Local(d.sock("ab", "device")) as again:
            assert again.attach() == pc.OK


@pytest.mark.parametrize("attachment", list(CLASSES))
def test_front_end_that_is_cut_off(lab, attachment):
    """The daemon ends the session of a front-end that breaks the protocol: for its VMM that is a lost back-end, too."""
    l = lab(attachment)
    l.since = time.monotonic()
    l.nic.raw(struct.pack("<III", 9999, 1, 4) + bytes(4))
    l.p.wait(lambda s: s.reason == pc.NO_DRIVER and not s.regions)
    # The driver VM's VMM is not set loose on rings that the guest may be at work on.
    l.d.stays(lambda: not l.ended(), 0.3)
    l.p.sync()
    l.wait_ended()
    s = l.p.state()
    assert s.attached and s.reason == pc.NO_DRIVER, "it was waited for until it was cut"
    # A new one is served as ever.
    with vu.Nic(l.d.sock("ab", "driver")) as nic:
        l.p.wait(lambda s: s.up and s.queues[1].avail)
        nic.send_packet(vu.frame(3))
        assert forward(l.p, 1)[0] == [vu.frame(3)]


def test_front_end_that_is_cut_off_and_a_guest_that_does_not_let_go(lab):
    l = lab("local")
    l.since = time.monotonic()
    l.nic.raw(struct.pack("<III", 9999, 1, 4) + bytes(4))
    assert 0.8 < l.wait_ended() < pc.limit(3)
    l.p.wait(lambda s: s.reason == pc.TIMEOUT)


def test_guard_that_dies(lab):
    l = lab("local")
    os.kill(l.guard, signal.SIGKILL)
    l.d.wait_log("the guard (pid")
    assert l.d.call("daemon.show")["guard_pid"] is None
    l.nic.send_packet(vu.frame(2))
    assert forward(l.p, 1, l.index)[0] == [vu.frame(2)]
    l.end("remove")
    l.wait_ended()
    assert l.d.alive()


def test_guard_that_is_stopped(lab):
    """Somebody's debugger: the daemon does not hang with it."""
    l = lab("local")
    os.kill(l.guard, signal.SIGSTOP)
    try:
        assert l.d.stop() == 0
        assert not l.ended()
    finally:
        os.kill(l.guard, signal.SIGCONT)
    deaf(l.p)
    l.p.sync()
    l.d.wait(lambda: gone(l.guard))


def test_no_upgrade_without_the_guard(lab):
    """A guard that does not hear of the next daemon would part the VMs when this one has gone: it stays, until the guard listens again."""
    l = lab("local")
    os.kill(l.guard, signal.SIGSTOP)
    try:
        while "takes no messages" not in l.d.log():
            l.nic.close()
            l.p.wait(lambda s: not s.up)
            l.p.sync()
            l.nic = vu.Nic(l.d.sock("ab", "driver"))
            l.p.wait(lambda s: s.up and s.queues[1].avail)
        with pytest.raises(ControlError) as err:
            l.d.call("daemon.upgrade")
        assert "takes no messages" in err.value.message
    finally:
        os.kill(l.guard, signal.SIGCONT)
    l.d.upgrade()
    l.d.wait(lambda: gone(l.guard))
    assert not l.ended()
    l.nic.send_packet(vu.frame(2))
    assert forward(l.p, 1)[0] == [vu.frame(2)]


def test_guard_ends_with_a_daemon_that_has_nothing(daemon):
    pid = daemon.call("daemon.show")["guard_pid"]
    daemon.kill()
    daemon.wait(lambda: gone(pid))
    daemon.proc = None


def test_what_the_guard_has(daemon):
    """Nothing of the daemon's: no listening socket that clients would wait at, no file, no right."""
    pid = daemon.call("daemon.show")["guard_pid"]
    fds = {int(n): os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")}
    assert {n for n in fds if n > 2} == {3} and fds[3].startswith("socket:")
    with open(f"/proc/{pid}/status") as f:
        status = dict(line.split(":", 1) for line in f.read().splitlines())
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    if "seccomp" in {s["name"]: s["what"] for s in daemon.call("daemon.show")["isolation"]}["calls"]:
        assert int(status["Seccomp"]) == 2
    assert int(status["NoNewPrivs"]) == 1
    # What ends everything that a service has left behind does not end it before its time.
    os.kill(pid, signal.SIGTERM)
    daemon.stays(lambda: not gone(pid), 0.1)
