# SPDX-License-Identifier: BSD-3-Clause
"""The daemon is killed under traffic, again and again, and the guests hear nothing of it (docs/handover.md)."""

import os
import signal
import time

import image
import pytest
import test_fast
import test_upgrade
import vhostpci_vm as v

FLOW = os.path.join(v.TOP, 'tests/faults/vmflow.c')
ADDRS = '10.7.0.1', '10.7.0.2'
HOLD = 30   # seconds that a daemon may take to come
MORE = 20   # packets that come to each end behind a crash
# Between two stores of a burst (virtq/place.h). At the second and third, a packed receiver's buffers are written and nobody has been told:
# their guest gets them back without a byte.
NOTED, HALF, WRITTEN, INTENT, SENT = 1, 2, 3, 4, 5
# None: at any moment.
# A vIOMMU as in test_viommu.py.
STRICT = dict(extra=['-device', 'intel-iommu,device-iotlb=on,intremap=off'], append='intel_iommu=on iommu.strict=1')
NIC = dict(props='iommu_platform=on,ats=on,disable-legacy=on')
KILLS = [None, WRITTEN, None, HALF, None, INTENT, None, WRITTEN, SENT, None]


def rest(daemon, name='link'):
    """Until all that was said is kept."""
    end = time.time() + v.limit(10)
    while not daemon.ctl('show', name)['kept']:
        assert time.time() < end, daemon.tail()
        time.sleep(0.02)


class Held:
    """
    Two VMs on a relay link, traffic both ways, and a daemon with a holder. @rings 'split' or 'packed' of each VM. @viommu: the first one's
    guest maps each buffer for itself, and takes it back behind each packet.
    """

    def __init__(self, lab, rings, viommu=False):
        d = self.daemon = lab.daemon
        d.args = ['--hold=%d' % HOLD]
        socks = d.link('link', 'a', 'b')
        self.vms = []
        for i, (name, sock) in enumerate(zip('ab', socks)):
            d.vm(name)
            self.vms.append(lab.vm(name, qemu='11', files={'bin/vmflow': (image.program(FLOW), 0o755)},
                                   nets=[v.Net(sock, mac='52:54:00:07:00:0%d' % (i + 1), reconnect=1, packed=rings[i] == 'packed',
                                               **(NIC if viommu and not i else {}))],
                                   **(dict(STRICT) if viommu and not i else {})))
        d.start()
        lab.boot(*self.vms)
        for m, addr in zip(self.vms, ADDRS):
            m.up(addr + '/24')
        v.wait_ping(self.vms[0], ADDRS[1])

    def begin(self):
        for end, m in enumerate(self.vms):
            m.sh('(setsid vmflow 1 %d %s 4701 100 /run/flow >/run/flow.log 2>&1 &)' % (end, ADDRS[1 - end]))
        self.streams = []
        for end, m in enumerate(self.vms):
            port = v.next_port()
            rx = self.vms[1 - end].spawn('vmtool rx %d' % port, 300)
            self.streams.append((m, rx, m.spawn('vmtool tx %s %d mib=1000@0.3 & echo $! >/run/tx.pid; wait $!' % (ADDRS[1 - end], port), 300)))

    def end_streams(self):
        """What came of each, every byte checked by the receiver."""
        for m, _, tx in self.streams:
            m.sh('kill $(cat /run/tx.pid)')
            tx.result(check=False)
        return [v.kv(rx.result()) for _, rx, _ in self.streams]

    def counts(self):
        got = []
        for m in self.vms:
            line = m.sh('cat /run/flow 2>/dev/null', check=False)
            got.append({k: float(n) for k, n in (x.split('=') for x in line.split())})
        return got

    def wait_more(self, since):
        end = time.time() + v.limit(30)
        while any(now.get('rx', 0) < old.get('rx', 0) + MORE for now, old in zip(self.counts(), since)):
            assert time.time() < end, 'no traffic: %s\n%s' % (self.counts(), self.daemon.tail())
            time.sleep(0.05)

    def heard(self):
        """What the guests have heard of their link."""
        return [m.sh('cat /sys/class/net/eth0/carrier_changes; dmesg | grep -E "eth0|virtio"', check=False) for m in self.vms]

    def too_short(self):
        """Frames that each driver has dropped, for they have no header."""
        return [int(m.sh('cat /sys/class/net/eth0/statistics/rx_length_errors')) for m in self.vms]

    def sessions(self):
        sides = self.daemon.ctl('show', 'link')['sides']
        return [(sides[s]['connected'], sides[s]['sessions'], sides[s]['pid']) for s in ('driver', 'device')]

    def rest(self):
        rest(self.daemon)

    def dies_at(self, point, n):
        """The next daemon passes that point for the nth time, and is killed there."""
        with pytest.MonkeyPatch.context() as env:
            env.setenv('VHOST_PCI_CRASH_AT', '%d,%d' % (point, n))
            try:
                self.daemon.start()
            except v.VMError:
                pass        # it has been killed already
        p, self.daemon.proc = self.daemon.proc, None
        assert p.wait(v.limit(20)) == -signal.SIGKILL, self.daemon.tail()


# Of an IOTLB message, a miss and its answer (vhostuser/journal.h).
DONE, READ, ANSWERED, ASKED, HEARD = 100, 101, 102, 103, 104
VIOMMU_KILLS = [None, READ, None, ANSWERED, ASKED, None, HEARD, SENT, DONE, None, None, WRITTEN]

RINGS = [('packed', 'split'), ('split', 'split'), ('packed', 'packed')]


@pytest.mark.parametrize('rings', RINGS, ids=['-'.join(r) for r in RINGS])
def test_killed_under_traffic(lab, rings):
    """Ten times. Datagrams are numbered and at most 32 are under way: none is lost, changed or doubled."""
    killed(Held(lab, rings), rings, KILLS)


@pytest.mark.parametrize('rings', RINGS[:2], ids=['-'.join(r) for r in RINGS[:2]])
def test_killed_with_a_viommu(lab, rings):
    """The same, with a vIOMMU that tells the daemon of each packet's buffers; each daemon learns anew what it maps."""
    link = Held(lab, rings, viommu=True)
    killed(link, rings, VIOMMU_KILLS)
    iommu = link.daemon.ctl('show', 'link')['sides']['driver']['iommu']
    assert iommu['invalidations'] > 0, iommu
    v.note('IOTLB of the last daemon: %s' % iommu)


def killed(link, rings, kills):
    """At these points, one behind the other."""
    link.begin()
    link.wait_more([{}, {}])
    link.rest()
    first, heard, before, short, took = link.counts(), link.heard(), link.sessions(), link.too_short(), []
    for i, point in enumerate(kills):
        link.daemon.kill()
        if point and (point != HALF or 'packed' in rings):
            link.dies_at(point, 1 + 7 * i % 5)
        t = time.time()
        link.daemon.start()
        took.append(time.time() - t)
        # Not before: QEMU stands still when it has to tell a back-end of its vIOMMU that is not there.
        link.wait_more(link.counts())
        link.rest()
    streams = link.end_streams()
    assert all(s['bad'] == 0 and s['err'] == 0 and s['bytes'] for s in streams), streams
    for m, old, now in zip(link.vms, first, link.counts()):
        bad = {k: now[k] - old[k] for k in ('lost', 'dup', 'bad', 'stale', 'foreign') if now[k] != old[k]}
        assert not bad, '%s VM: %s\n%s' % (m.name, bad, link.daemon.tail())
    dropped = [b - a for a, b in zip(short, link.too_short())]
    v.note('packets: %s, TCP: %s bytes, frames without a byte that the driver dropped: %s; the daemons took %s s' %
           ([int(c['rx']) for c in link.counts()], [int(s['bytes']) for s in streams], dropped, ', '.join('%.2f' % t for t in took)))
    assert link.sessions() == before and [s[:2] for s in before] == [(True, 1), (True, 1)]
    assert link.heard() == heard
    # A split ring shows nothing of what was not given back.
    assert all(kind == 'packed' or not n for kind, n in zip(rings, dropped)), (rings, dropped)
    assert any(dropped) or 'packed' not in rings or kills != KILLS, (rings, dropped)
    for m in link.vms:
        assert not m.complaints(), m.complaints()


PORTS = [('fast', 'ivshmem', 'system'), ('fast', 'ivshmem', '11'), ('copy', 'ivshmem', 'system'), ('copy', 'shmem', '11')]
ENDS = ['kill'] * 5 + ['stop'] + ['kill'] * 5 + ['stop']


@pytest.mark.parametrize('mode,attachment,qemu', PORTS, ids=['-'.join(x) for x in PORTS])
def test_port_killed_under_traffic(lab, mode, attachment, qemu):
    """Ten times killed, twice stopped. Numbered packets: none is lost, changed or doubled. What is plugged stays plugged, and nobody hears of it."""
    lab.daemon.args = ['--hold=%d' % HOLD]
    files = dict(files={'bin/vmflow': (image.program(FLOW), 0o755)})
    link = test_fast.Fixture(lab, mode, attachment, qemu, driver=files, device=files).ensure()
    test_upgrade.begin_flow(link.driver, 0, link.addr_device)
    test_upgrade.begin_flow(link.device, 1, link.addr_driver)
    test_upgrade.wait_flow(link, [0, 0])
    rest(link.daemon)

    def plugged():
        side = link.show()['sides']['device']
        return {k: side.get(k) for k in ('window_devices', 'plugged', 'unplugged', 'connections', 'doorbells_used', 'windows', 'qmp')}

    first, said, took = [test_upgrade.flow(m) for m in link.vms], test_upgrade.heard(link), []
    before, devices = test_upgrade.kept(link), plugged()
    assert before['driver', 'sessions'] == 1 and (mode == 'copy' or devices['window_devices'])
    for how in ENDS:
        getattr(link.daemon, how)()
        at, t = [test_upgrade.flow(m)['rx'] for m in link.vms], time.time()
        link.daemon.start()
        took.append(time.time() - t)
        test_upgrade.wait_flow(link, at)
        rest(link.daemon)
    for m, old in zip(link.vms, first):
        now = test_upgrade.flow(m)
        bad = {k: now[k] - old[k] for k in ('lost', 'dup', 'bad', 'stale', 'foreign') if now[k] != old[k]}
        assert not bad, '%s VM: %s\n%s' % (m.name, bad, link.story())
    v.note('packets: %s; the daemons took %s s' % ([int(test_upgrade.flow(m)['rx']) for m in link.vms], ', '.join('%.2f' % t for t in took)))
    assert test_upgrade.heard(link) == said
    assert test_upgrade.kept(link) == before and plugged() == devices
    for m in link.vms:
        assert not m.complaints(), m.complaints()
