# SPDX-License-Identifier: BSD-3-Clause
"""The daemon is upgraded under traffic, again and again, and its port stays plugged into a device VM (docs/handover.md)."""

import os
import time

import image
import pytest
import test_fast
import vhostpci_vm as v

LINKS = [('copy', 'ivshmem', 'system'), ('fast', 'ivshmem', 'system'), ('copy', 'shmem', '11'), ('fast', 'shmem', '11')]
TIMES = 10
MORE = 20   # packets that come to each end between two upgrades
FLOW = os.path.join(v.TOP, 'tests/faults/vmflow.c')


def begin_flow(m, end, peer):
    m.sh('(setsid vmflow 1 %d %s 4701 100 /run/flow >/run/flow.log 2>&1 &)' % (end, peer))


def flow(m):
    """What the program at this end has counted."""
    line = m.sh('cat /run/flow 2>/dev/null', check=False)
    return {k: float(n) for k, n in (x.split('=') for x in line.split())}


def wait_flow(link, since):
    """Wait until MORE packets have come to each end."""
    end = time.time() + v.limit(30)
    for m, before in zip(link.vms, since):
        while flow(m).get('rx', 0) < before + MORE:
            assert time.time() < end, 'no traffic: %s\n%s' % ([flow(x) for x in link.vms], link.story())
            time.sleep(0.05)


def heard(link):
    """What the guests have heard of their link."""
    return [m.sh('cat /sys/class/net/%s/carrier_changes; dmesg' % nic) for m, nic in ((link.driver, link.eth), (link.device, link.tap))]


def kept(link):
    """What the daemon says of the link that no upgrade changes."""
    sides = link.show()['sides']
    return {(side, k): sides[side][k] for side, keys in (('driver', ('pid', 'sessions', 'features')), ('device', ('pid', 'attaches', 'cuts')))
            for k in keys}


@pytest.mark.parametrize('mode,attachment,qemu', LINKS, ids=['%s-%s' % x[:2] for x in LINKS])
def test_upgrades_under_traffic(lab, mode, attachment, qemu):
    """Numbered packets: none is lost, changed or doubled. Neither guest hears of it, and nobody connects again."""
    files = dict(files={'bin/vmflow': (image.program(FLOW), 0o755)})
    link = test_fast.Fixture(lab, mode, attachment, qemu, driver=files, device=files).ensure()
    begin_flow(link.driver, 0, link.addr_device)
    begin_flow(link.device, 1, link.addr_driver)
    wait_flow(link, [0, 0])
    first, said, before, stalls = [flow(m) for m in link.vms], heard(link), kept(link), []
    assert before['driver', 'sessions'] == 1 and before['device', 'attaches'] == 1
    for _ in range(TIMES):
        at = [flow(m)['rx'] for m in link.vms]
        stalls.append(link.daemon.upgrade()['stall_us'] / 1000)
        wait_flow(link, at)
    for m, old in zip(link.vms, first):
        now = flow(m)
        bad = {k: now[k] - old[k] for k in ('lost', 'dup', 'bad', 'stale', 'foreign') if now[k] != old[k]}
        assert not bad, '%s VM: %s\n%s' % (m.name, bad, link.story())
    v.note('traffic stood still for %s ms; packets: %s' % (', '.join('%.1f' % x for x in stalls), [int(flow(m)['rx']) for m in link.vms]))
    assert heard(link) == said
    assert kept(link) == before
    assert link.daemon.ctl('status')['upgrades'] == TIMES
    for m in link.vms:
        assert not m.complaints(), m.complaints()
