# SPDX-License-Identifier: BSD-3-Clause
"""A new daemon takes over from the running one: nobody notices, or the old one goes on (docs/handover.md)."""
import os
import pathlib
import socket
import stat
import struct
import threading
import time

import conftest
import pytest
import vu
from test_relay import both_ways


@pytest.fixture
def nics(daemon):
    with vu.Nic(daemon.sock("ab", "driver")) as a, vu.Nic(daemon.sock("ab", "device")) as b:
        both_ways(a, b, (64,))
        yield daemon, a, b


def test_nobody_notices(nics):
    d, a, b = nics
    before = d.show("ab")
    got = d.upgrade()
    assert got["links"] == 2 and got["pid"] == d.proc.pid
    both_ways(a, b)
    after = d.show("ab")
    for side in before["sides"]:
        for key in ("pid", "sessions", "features", "regions", "last"):
            assert before["sides"][side][key] == after["sides"][side][key], (side, key)
    assert d.call("daemon.show")["upgrades"] == 1
