# SPDX-License-Identifier: BSD-3-Clause
"""Devices that come and go while their VM runs, over QMP."""

import re
import time

from machine import VMError, limit


def devices(buses):
    """All entries of query-pci's answer, those behind bridges too."""
    for bus in buses:
        for d in bus['devices']:
            yield d
            if 'pci_bridge' in d:
                yield from devices([{'devices': d['pci_bridge'].get('devices', [])}])


def plug(vm, id, sock, char=None, **device):
    """A chardev (@char, else "c-ID") that connects to @sock, and the device @id on top of it: @device as for device_add."""
    char = char or 'c-' + id
    vm.qmp('chardev-add', id=char,
           backend={'type': 'socket', 'data': {'addr': {'type': 'unix', 'data': {'path': sock}}, 'server': False}})
    vm.qmp('device_add', id=id, chardev=char, **device)


def wait_unplugged(vm, id, timeout=20, ask=None):
    """Wait until the guest has let go of device @id. @ask is called every 5 s, the first time at once."""
    timeout = limit(timeout)
    start = asked = time.time()
    while any(d['qdev_id'] == id for d in devices(vm.qmp('query-pci'))):
        now = time.time()
        if now > start + timeout:
            raise VMError('%s: the guest did not release %s within %d s\n%s' % (vm.name, id, timeout, vm.tail()))
        if ask and now >= asked:
            ask()
            asked = now + 5
        time.sleep(0.05)


def unplug(vm, id, timeout=20, char=None):
    """The opposite of plug(). Returns the seconds until the guest has let go of the device."""
    def ask():
        try:
            vm.qmp('device_del', id=id)
        except VMError as e:
            # A slot that has just been plugged, or is being unplugged, does not listen; a guest may miss a request.
            if not re.search('busy|in the process of unplug|not found', str(e)):
                raise

    t0 = time.time()
    wait_unplugged(vm, id, timeout, ask)
    t = time.time() - t0
    # The device lets go of its chardev a moment after it was unplugged (QEMU frees it in an RCU callback).
    end = time.time() + limit(5)
    while True:
        try:
            vm.qmp('chardev-remove', id=char or 'c-' + id)
            return t
        except VMError as e:
            if 'busy' not in str(e) or time.time() > end:
                raise
            time.sleep(0.05)
