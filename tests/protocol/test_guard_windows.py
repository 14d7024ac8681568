# SPDX-License-Identifier: BSD-3-Clause
"""The daemon has gone, and a device VM has windows of a driver VM's memory over shmem: the guard has its VMM unmap them, and only then ends the
driver VM's connection (daemon/handover/unmap.h)."""
import array
import os
import select
import signal
import socket
import struct
import time

import pytest

import portclient as pc
import viommu
import vu
from test_grant_viommu import INVALIDATE, IOVA, PAGE, covers, free_page, send_later, sync, up, want
from test_guard import PATIENCE, gone, hung_up


class Vmm(pc.Shmem):
    """Refuses to unmap what is not mapped, as QEMU does."""

    def __init__(self, path):
        self.unmapped, self.refused = [], 0
        super().__init__(path)

    def serve(self):
        raw = self.back.recv(12 + 40, socket.MSG_PEEK)
        if raw and struct.unpack_from("<I", raw)[0] == 10:
            shmid, off = struct.unpack_from("<B15xQ", raw, 12)
            if (shmid, off) not in self.live:
                self.back.recv(52)
                self.refused += 1
                self.back.sendall(struct.pack("<IIIQ", 10, 1 | 4, 8, 1))
                return
            self.unmapped.append(off)
        super().serve()

    def asked(self):
        return bool(select.select([self.back], [], [], 0)[0])

    def windows(self):
        return [off for shmid, off in self.live if shmid == 1]


class Lab:
    def __init__(self, d, mode):
        self.d, self.mode = d, mode
        keys = {"Driver_Grant": "viommu"} if mode == "grant" else {}
        d.link("ab", Device_Endpoint="port", Device_Attachment="shmem", Device_ApertureSize="8G", Link_Mode=mode, **keys)
        d.start()
        self.guard = d.call("daemon.show")["guard_pid"]
        self.p = Vmm(d.sock("ab", "device"))
        assert self.p.attach() == pc.OK
        if mode == "grant":
            self.nic = viommu.Nic(d.sock("ab", "driver"), vu.BASIC | vu.bit(vu.NET_MRG_RXBUF))
            up(self.p, self.nic)
            self.page = free_page(self.nic) + 10
            for i in range(20):
                want(self.p, self.nic, IOVA + (self.page + 2 * i) * PAGE, 1)
        else:
            self.nic = vu.Nic(d.sock("ab", "driver"))
            self.p.wait(lambda s: s.up and s.queues[1].avail)
        self.p.drain = lambda: None
        self.p.idle = lambda: time.sleep(0.002)

    def kill(self, quiet=True):
        if quiet:
            sync(self.p)  # nothing is under way
        self.d.kill()
        self.p.wait(lambda s: s.reason == pc.DAEMON)
        self.since = time.monotonic()

    def let_go(self):
        seq = max(struct.unpack_from("<I", self.p.mem, pc.COMMAND)[0], self.p.state().answer[0]) + 1
        self.p.command_raw(seq, pc.SYNC, self.p.state().regions_generation)

    def ended(self):
        return hung_up(self.nic.sock)

    def close(self):
        self.nic.close()
        self.p.close()
        self.d.proc = None  # killed, as was meant


@pytest.fixture
def lab(make_daemon):
    made = []

    def make(mode):
        made.append(Lab(make_daemon(), mode))
        return made[-1]

    yield make
    for l in made:
        l.close()


@pytest.mark.parametrize("mode", ["fast", "grant"])
def test_windows_go_before_the_connection(lab, mode):
    l = lab(mode)
    windows = l.p.windows()
    assert len(windows) >= (20 if mode == "grant" else 1)
    l.kill()
    l.d.stays(lambda: not l.p.asked() and not l.ended(), 0.2)
    l.let_go()
    while l.p.windows():
        l.d.wait(l.p.asked, why="nobody asks its VMM")
        assert not l.ended()
        l.p.serve()
    assert sorted(l.p.unmapped) == sorted(windows) and not l.p.refused
    l.d.wait(l.ended)
    l.d.wait_log("has let go of %d windows after" % len(windows))
    l.d.wait(lambda: gone(l.guard))
    assert (0, 0) in l.p.live and not l.p.wait(lambda s: not s.attached).up


def test_guest_that_says_nothing(lab):
    """Its windows go all the same."""
    l = lab("grant")
    l.kill()
    l.d.wait(l.p.asked)
    assert time.monotonic() - l.since > PATIENCE - 0.5 and not l.ended()
    while l.p.windows():
        l.d.wait(l.p.asked)
        l.p.serve()
    l.d.wait(l.ended)
    assert "has not let go" in l.d.log() and not l.p.refused


def test_vmm_that_says_nothing(lab):
    """It is waited for, not for ever."""
    l = lab("fast")
    l.kill()
    l.let_go()
    l.d.wait(l.p.asked)
    l.d.stays(lambda: not l.ended(), 1)
    l.d.wait(l.ended)
    assert "has not said that it let all windows go" in l.d.log()
    l.d.wait(lambda: gone(l.guard))


def test_daemon_that_ends_while_windows_go(lab):
    """It has asked its VMM for one, and the answer finds nobody; nor does that of a MAP."""
    l = lab("grant")
    send_later(l.nic, INVALIDATE, l.page)
    l.p.wait(lambda s: not covers(s, IOVA + l.page * PAGE, 1))
    l.let_go()
    l.d.wait(l.p.asked)
    l.kill(quiet=False)
    l.let_go()
    n = len(l.p.windows())
    while l.p.windows() or l.p.asked():
        l.d.wait(l.p.asked)
        l.p.serve()
    l.d.wait(l.ended)
    assert l.p.refused == 1 and len(l.p.unmapped) == n and "not said" not in l.d.log()
    assert time.monotonic() - l.since < pc.limit(1.5)


def test_vmm_that_tells_its_memory(lab):
    """QEMU sends its memory table as a window goes, and waits for the answer."""
    l = lab("grant")
    l.kill()
    l.let_go()
    fe = l.p.fe
    while l.p.windows():
        l.d.wait(l.p.asked)
        fe.tell(vu.SET_MEM_TABLE, struct.pack("<II", 1, 0) + fe.region(fe.mem), [fe.mem.fd])
        l.p.serve()
    l.d.wait(l.ended)
    assert "not said" not in l.d.log()


def test_vmm_that_stops_the_device(lab):
    """It waits for an answer that nobody has, and to be asked for windows then would be its end: the connections end at once."""
    l = lab("grant")
    l.kill()
    l.p.fe.send(vu.GET_VRING_BASE, struct.pack("<II", 0, 0), need_reply=False)
    l.let_go()
    l.d.wait(l.ended)
    assert not l.p.asked() or not l.p.back.recv(1, socket.MSG_PEEK)
    assert "has not said that it let all windows go" in l.d.log()
    assert time.monotonic() - l.since < pc.limit(1.5)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a large socket buffer")
@pytest.mark.parametrize("where", ["connection", "channel"])
def test_vmm_that_sends_without_an_end(lab, where):
    """It takes the guard's time from nobody: another link's driver VM is let go of, and so is its own."""
    l = lab("fast")
    l.d.link("cd", driver="c", device="d", Device_Endpoint="port", Device_Attachment="local", Link_Mode="fast")
    l.d.call("daemon.reload")
    sock = l.p.fe.sock if where == "connection" else l.p.back
    # Beside what a VMM of few rights has to send fast for: there is always something to read.
    sock.setsockopt(socket.SOL_SOCKET, 32, 32 << 20)  # SO_SNDBUFFORCE
    # Neither answers a request for a window.
    said = struct.pack("<IIIQ", vu.SET_VRING_CALL, 1, 8, 0x100) if where == "connection" else struct.pack("<IIIQ", 9, 5, 8, 0)
    with pc.Local(l.d.sock("cd", "device")) as other, vu.Nic(l.d.sock("cd", "driver")) as nic:
        assert other.attach() == pc.OK
        other.wait(lambda s: s.up and s.queues[1].avail)
        l.kill()
        l.let_go()
        l.d.wait(l.p.asked)
        pid = os.fork()
        if not pid:
            try:
                sock.setblocking(True)
                while True:
                    sock.sendall(said * 50000)
            finally:
                os._exit(0)
        try:
            l.d.wait(lambda: hung_up(nic.sock), 20, why="the other driver VM is still held")
            l.d.wait(l.ended, 20)
            l.d.wait(lambda: gone(l.guard), 20)
            assert "has not said that it let all windows go" in l.d.log()
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.mark.parametrize("where", ["connection", "channel"])
def test_daemon_that_ends_within_a_message(lab, where):
    """Nobody can go on: the connections end."""
    l = lab("grant")
    sync(l.p)
    sock = l.p.fe.sock if where == "connection" else l.p.back
    if where == "channel":
        send_later(l.nic, INVALIDATE, l.page)
        l.p.wait(lambda s: not covers(s, IOVA + l.page * PAGE, 1))
        l.let_go()
        l.d.wait(l.p.asked)
    whole = struct.pack("<III", vu.GET_FEATURES, 1, 0) if where == "connection" else struct.pack("<IIIQ", 10, 5, 8, 0)
    sock.sendall(whole[:7])
    # The daemon has read it.
    l.d.call("daemon.version")
    queued = array.array("i", [0])
    import fcntl
    import termios
    l.d.wait(lambda: not fcntl.ioctl(sock, termios.TIOCOUTQ, queued) and not queued[0])
    l.kill(quiet=False)
    sock.sendall(whole[7:])
    l.let_go()
    l.d.wait(l.ended)
    assert "has not said that it let all windows go" in l.d.log()
    l.d.wait(lambda: gone(l.guard))


def test_driver_vm_that_has_gone(lab):
    """Its windows are on their way out when the daemon ends, too."""
    l = lab("grant")
    sync(l.p)
    l.nic.close()
    l.p.wait(lambda s: s.reason == pc.NO_DRIVER and not s.regions)
    assert l.p.windows()
    l.d.kill()
    l.p.wait(lambda s: s.reason == pc.DAEMON)
    l.let_go()
    while l.p.windows():
        l.d.wait(l.p.asked, why="nobody asks its VMM")
        l.p.serve()
    l.d.wait(lambda: gone(l.guard))
