# SPDX-License-Identifier: BSD-3-Clause
"""A driver in user space behind a virtio-iommu, whose buffers come and go: a thousand times a window comes with a question of the device VM
and goes with the mapping, while root of the device VM reads all that it can reach."""

import os
import time

import image
import pytest
import vhostpci_vm as v
from test_grant import Program, bar
from test_grant_dpdk import CANARY, NIC, VIOMMU, as_vfio, comes, grant, link, modules

ROUNDS = 1000
SCANNED = 64        # MiB of the BAR: windows are given from its start
KERNELS = ['6.12', 'backports']


def behind_viommu(lab, kernel='6.12'):
    driver = dict(VIOMMU, append='iommu.strict=1', boot_modules=modules(kernel, 'virtio_iommu', 'vfio_iommu_type1'),
                  files=dict(CANARY, **{'bin/vfionet': (image.program(os.path.join(v.TOP, 'tests/vm/vfionet.c')), 0o755)}))
    return link(lab, 'shmem', driver, kernel=kernel, net=dict(props=NIC), driver_keys=dict(Grant='viommu'))


def run(l, dev, rounds, ms):
    l.driver.sh('(setsid vfionet %s %d %d %s %s >/run/vfionet.log 2>&1 &)' % (dev, rounds, ms, l.addr_driver, l.addr_device))


def said(l):
    out = l.driver.sh('tail -n 1 /run/vfionet.log')
    if 'error' in out:
        raise v.VMError('%s\n%s' % (out, l.story()))
    return v.kv(out)


def test_thousand_mappings(lab):
    """Canaries fill every page of the driver but those that are mapped, and these as soon as they are not."""
    l = behind_viommu(lab)
    l.start_agent()
    l.device.sh('echo 1 >/proc/sys/net/ipv6/conf/%s/disable_ipv6' % l.tap)
    dev = as_vfio(l)
    scan = Program(l.device, 'scan %s %d' % (bar(l.device), SCANNED))
    # No more than 63 in 10 s: a driver that takes mappings back more often than that is copied.
    start, ms = time.time(), 200
    before = l.show()['sides']['device']
    run(l, dev, ROUNDS, ms)
    at = 0
    while at < ROUNDS:
        comes(lambda: said(l).get('rounds', 0) > at, 120)
        got = said(l)
        at = got['rounds']
        assert got['bad'] == 0, got
    now, g = l.show()['sides']['device'], grant(l)
    v.note('%d mappings came and went in %.0f s; unmapped in %.1f ms each, %.1f ms at most' %
           (at, time.time() - start, got['unmap_us'] / 1000, got['most_us'] / 1000))
    v.note('%d MAPs and %d UNMAPs of windows; %s' % (now['maps'] - before['maps'], now['unmaps'] - before['unmaps'], g))
    assert g['state'] == 'granted' and g['copied'] == []
    assert now['unmaps'] - before['unmaps'] >= ROUNDS
    seen = scan.ask()
    v.note('the scanner: %s' % seen)
    assert seen['hits'] == 0 and seen['now'] > 0
    scan.end()
    l.driver.sh('kill -9 $(pidof vfionet)')
    comes(lambda: grant(l)['state'] == 'none', 30)
    for m in l.vms:
        assert not m.complaints()


@pytest.mark.parametrize('kernel', KERNELS)
def test_held(lab, kernel):
    """Who has windows, and answers nothing that the host asks, has nothing any more when the driver's program has been killed."""
    l = behind_viommu(lab, kernel)
    dev = as_vfio(l)
    run(l, dev, 0, 0)
    hold = Program(l.device, 'hold /dev/vhost-pci0')
    assert hold.first['windows'] >= 1 and hold.first['data'] >= 1, hold.first
    l.driver.sh('kill -9 $(pidof vfionet)')
    comes(lambda: grant(l)['state'] == 'none', 30)
    after = hold.ask()
    v.note('windows held: %s, then %s' % (hold.first, after))
    assert after['windows'] == hold.first['windows'] and after['data'] == 0
    hold.end()
    # The next program of the driver VM, and of the device VM.
    l.start_agent()
    run(l, dev, 3, 200)
    comes(lambda: said(l).get('rounds', 0) == 3, 60)
    assert grant(l)['state'] == 'granted' and said(l)['bad'] == 0
    for m in l.vms:
        assert not m.complaints()
