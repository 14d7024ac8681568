# SPDX-License-Identifier: BSD-3-Clause
"""One link in any mode, seen from its driver VM, with a far end that answers: what the bug-class tests share.

relay  a second scripted driver       rings are processed by vhost-pcid
fast   a program on libvhostpci       rings are processed by that program, in the driver VM's memory
copy   the same program               rings are processed by vhost-pcid, the program sees the pool
"""
import contextlib
import subprocess

import conftest
import vu

MODES = ["relay", "fast", "copy"]
MRG = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF)


class Lab:
    def __init__(self, daemon, mode, start_port=True):
        self.d, self.mode, self.stack = daemon, mode, contextlib.ExitStack()
        if mode == "relay":
            daemon.link("ab")
        else:
            daemon.link("ab", device="b" if mode == "fast" else "stranger", Device_Endpoint="port", Device_Attachment="local",
                        Link_Mode=mode, **({"Device_PackedRings": "yes"} if mode == "fast" else {"Device_PoolSize": "4M"}))
        daemon.link("cd", driver="c", device="d")
        daemon.start()
        self.far = self.proc = self.nic = None
        if start_port:
            self.start_port()

    def start_port(self):
        if self.mode != "relay":
            self.proc = subprocess.Popen([str(conftest.BUILD / "tests/faults/fault-device"), "--port", "unix:" + self.d.sock("ab", "device"),
                                          "--echo"], stdin=subprocess.DEVNULL)
            self.d.wait(lambda: self.d.show("ab")["sides"]["device"]["attached"])

    def path(self):
        return self.d.sock("ab", "driver")

    def driver(self, features=MRG, **kw):
        """A driver that is up, with its far end."""
        if self.mode == "relay" and self.far is None:
            self.far = self.stack.enter_context(vu.Nic(self.d.sock("ab", "device")))
        self.nic = self.stack.enter_context(vu.Nic(self.path(), features, **kw))
        self.d.wait(lambda: self.d.show("ab")["status"] == "up")
        return self.nic

    def echo(self):
        """Relay: the far end sends back what it gets now."""
        while self.far and (got := self.far.poll_packet()) is not None:
            self.far.send_packet(got[1])

    def answer(self, timeout=30):
        """The next packet that comes back, or None."""
        end = conftest.time.monotonic() + timeout
        while conftest.time.monotonic() < end:
            self.echo()
            got = self.nic.recv_packet(timeout=0.01)
            if got is not None:
                return got[1]
        return None

    def there_and_back(self, n, size=200, **kw):
        self.nic.send_packet(vu.frame(n, size), **kw)
        got = self.answer()
        assert got == vu.frame(n, size), f"packet {n}: {got and len(got)} bytes came back\n{self.d.call('link.stats', name='ab')}\n{self.d.show('ab')}\n{self.d.log()[-4000:]}"

    def queue(self, q):
        return self.d.show("ab")["sides"]["driver"]["queues"][q]

    def drops(self):
        return self.d.stats("ab")["driver"]["tx"]["dropped"]

    def check(self):
        """Nothing but the one queue suffered: daemon, far end, the other link."""
        assert self.d.alive(), self.d.log()
        assert self.proc is None or self.proc.poll() is None, "the device side's program ended"
        with vu.Nic(self.d.sock("cd", "driver")) as c, vu.Nic(self.d.sock("cd", "device")) as d:
            for n in range(3):
                c.send_packet(vu.frame(n))
                assert d.recv_packet()[1] == vu.frame(n)

    def close(self):
        self.stack.close()
        if self.proc:
            self.proc.terminate()
            self.proc.wait(20)


def lab_of(kind, make_daemon, mode):
    """What a fixture yields from: a lab that is well at the end, and leaves no fd behind."""
    one = kind(make_daemon(), mode)
    before = one.d.fds()
    yield one
    one.check()
    one.stack.close()
    one.d.wait(lambda: one.d.fds() <= before)
    one.close()
