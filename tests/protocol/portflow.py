# SPDX-License-Identifier: BSD-3-Clause
"""A link with a port under traffic, whose daemon is upgraded."""
import contextlib
import threading
import time

import conftest
import portclient as pc
import portlab
import vu

PATH = pc.ALL & ~vu.bit(vu.PACKED)  # the scripted device side knows split rings


def quick(port):
    """As port.view, of a port whose regions stay as they are."""
    regions = [(a, size, memoryview(port.window(win))[off:off + size]) for a, size, off, win, _ in port.state().regions]

    def view(addr, length):
        for a, size, mem in regions:
            if a <= addr and addr + length <= a + size:
                return mem[addr - a:addr - a + length]
        raise KeyError(hex(addr))
    return view


class Ends(threading.Thread):
    """
    Numbered packets both ways between a driver and a device side: each arrives once, in order, unchanged. The device
    side has some of them, and some empty buffers, in its hands all the time.
    """

    def __init__(self, nic, port, pair=0, window=24, hold=6, size=200):
        super().__init__(daemon=True)
        self.nic, self.port, self.pair, self.window, self.hold, self.size = nic, port, pair, window, hold, size
        state = port.state()
        port.view = quick(port)
        self.rx, self.tx = state.queues[2 * pair:2 * pair + 2]
        self.taken, self.given = [self.tx.base, self.rx.base], [self.tx.base, self.rx.base]
        self.held, self.empty = [], []
        self.sent, self.got = [0, 0], [0, 0]  # driver to device, device to driver
        self.ending, self.wrong = False, None

    def frame(self, n):
        return vu.frame(n + 100000 * self.pair, self.size)

    def take(self, which, into):
        q = (self.tx, self.rx)[which]
        got = self.port.take(q, self.taken[which])
        if got:
            self.taken[which] += 1
            into.append(got)
        return got

    def give_back(self, which, head, length):
        q = (self.tx, self.rx)[which]
        self.port.give_back(q, self.given[which], head, length)
        self.given[which] += 1

    def ring(self, q):
        pc.one(self.port.doorbells[q.doorbell])

    def device_takes(self):
        while self.take(0, self.held):
            pass
        moved = False
        while len(self.held) > (0 if self.ending else self.hold):
            bufs, head = self.held.pop(0)
            data = b"".join(bytes(self.port.view(a, l)) for a, l, w in bufs)[12:]
            assert data == self.frame(self.got[0]), f"packet {self.got[0]} did not arrive, or not as sent"
            self.give_back(0, head, 0)
            self.got[0] += 1
            moved = True
        if moved:
            self.ring(self.tx)
        return moved

    def device_sends(self):
        while len(self.empty) <= self.hold and self.take(1, self.empty):
            pass
        moved = False
        while not self.ending and self.sent[1] - self.got[1] < self.window and (self.empty or self.take(1, self.empty)):
            bufs, head = self.empty.pop(0)
            whole = bytes(10) + b"\1\0" + self.frame(self.sent[1])
            self.port.view(bufs[0][0], len(whole))[:] = whole
            self.give_back(1, head, len(whole))
            self.sent[1] += 1
            moved = True
        if moved:
            self.ring(self.rx)
        return moved

    def driver(self):
        moved = False
        self.nic.reclaim(self.pair)
        if not self.ending and self.sent[0] - self.got[0] < self.window:
            self.nic.send_packet(self.frame(self.sent[0]), pair=self.pair)
            self.sent[0] += 1
            moved = True
        while (p := self.nic.poll_packet(self.pair)) is not None:
            assert p[1] == self.frame(self.got[1]), f"packet {self.got[1]} did not come back, or not as sent"
            self.got[1] += 1
            moved = True
        return moved

    def run(self):
        try:
            idle = time.monotonic()
            while not self.ending or self.got != self.sent:
                moved = self.driver() | self.device_takes() | self.device_sends()
                now = time.monotonic()
                if moved:
                    idle = now
                elif now - idle > conftest.PATIENCE:
                    raise AssertionError(f"nothing moves: {self.sent} sent, {self.got} arrived")
                else:
                    time.sleep(0.0002)
        except Exception as err:  # pylint: disable=broad-except
            self.wrong = err

    def more(self, n=50):
        want = [g + n for g in self.got]
        deadline = time.monotonic() + conftest.PATIENCE
        while any(g < w for g, w in zip(self.got, want)):
            assert not self.wrong, repr(self.wrong)
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def end(self):
        self.ending = True
        self.join()
        assert not self.wrong, repr(self.wrong)
        assert self.nic.poll_packet(self.pair) is None and not self.take(0, []), "a packet came twice"
        self.port.__dict__.pop("view", None)


@contextlib.contextmanager
def ends(nic, port, **more):
    e = Ends(nic, port, **more)
    e.start()
    e.more()
    try:
        yield e
        e.more()
    finally:
        e.end()


@contextlib.contextmanager
def lab(make_daemon, mode, attachment, conf="", path=PATH, nic=None, **more):
    d = make_daemon()
    if conf:
        d.write("vhost-pci.conf", conf)
    x = portlab.PortLab(d, mode, attachment, **more)
    d.start()
    try:
        with vu.Nic(x.drv(), **nic or {}) as nic, x.connect() as p:
            assert p.attach(path) == pc.OK
            portlab.started(p)
            if (mode, attachment) == ("fast", "ivshmem"):
                # The page names other doorbells when the device has read that there are some.
                d.wait(lambda: d.show("ab")["sides"]["device"]["calls_direct"] == 2)
            yield d, nic, p
    finally:
        x.close()
