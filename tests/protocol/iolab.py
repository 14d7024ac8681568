# SPDX-License-Identifier: BSD-3-Clause
"""A link whose driver VM has a vIOMMU, in relay or copy mode, with a far end that answers."""
import pytest

import vu
from bugclass import MRG, Lab, lab_of
from viommu import Nic


class IoLab(Lab):
    def driver(self, features=MRG, wait=True, far={}, **kw):
        if self.mode == "relay" and self.far is None:
            self.far = self.stack.enter_context(vu.Nic(self.d.sock("ab", "device"), **far))
        self.nic = self.stack.enter_context(Nic(self.path(), features, **kw))
        if wait:
            self.wait_up()
        return self.nic

    def wait(self, what):
        return self.d.wait(lambda: self.nic.serve() or what())

    def wait_up(self):
        self.wait(lambda: self.d.show("ab")["status"] == "up")

    def there_and_back(self, n, size=200, others=False, **kw):
        """A relay does not wait for ever for a translation: on a busy machine it drops and counts, and the packet goes again.
        @others: what was on its way may come before it."""
        got = []

        def came():
            got.append(self.answer(0.05))
            return got[-1] is not None and (not others or got[-1] == vu.frame(n, size))

        while not got or got[-1] is None or others and got[-1] != vu.frame(n, size):
            lost = self.lost()
            self.nic.send_packet(vu.frame(n, size), **kw)
            self.d.wait(lambda: came() or self.lost() > lost)
        assert got[-1] == vu.frame(n, size)

    def lost(self):
        """Packets that a relay has dropped, either way."""
        st = self.d.stats("ab")
        return sum(st[s]["tx"]["dropped"] for s in st) if self.mode == "relay" else 0

    def tx_from(self, off):
        """The next packet is sent from that buffer."""
        self.wait(lambda: self.nic.reclaim() or not self.nic.rings[1].chains)
        self.nic.tx_free.append(off)

    def until_receive_breaks(self):
        """Packets until the receive queue is looked at (see there_and_back()) and broken."""
        def broke():
            self.echo()
            self.nic.reclaim()
            if len(self.nic.tx_free) > 60:
                self.nic.send_packet(vu.frame(1))
            return self.queue(0)["state"] == "broken"
        self.wait(broke)
        self.broken(0)

    def iommu(self):
        return self.d.show("ab")["sides"]["driver"]["iommu"]

    def broken(self, q):
        """That queue stops and says why, nothing else does."""
        entry = self.wait(lambda: (e := self.queue(q))["state"] == "broken" and e)
        assert entry["error"] and self.queue(1 - q)["state"] == "running"


@pytest.fixture(params=["relay", "copy"])
def lab(make_daemon, request):
    yield from lab_of(IoLab, make_daemon, request.param)
