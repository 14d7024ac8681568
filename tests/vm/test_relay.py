# SPDX-License-Identifier: BSD-3-Clause
"""Relay links between real VMs: two stock virtio-net devices joined by vhost-pcid."""

import os
import signal
import time

import pytest
import vhostpci_vm as v

ADDR = {'a': '10.1.0.1', 'b': '10.1.0.2'}
MAC = {'a': '52:54:00:01:00:01', 'b': '52:54:00:01:00:02'}


class Pair:
    """Driver VM a and device VM b, each with one interface, joined by the link `ab`."""

    def __init__(self, lab, qa, qb, link=None, smp=1, queues=1, net=None, net_b=None, mem=256):
        self.lab = lab
        d = lab.daemon
        d.vm('a', 'blue')
        d.vm('b', 'red')
        more = dict(link or {})
        if queues > 1:
            more['Queues'] = queues
        self.socks = d.link('ab', 'a', 'b', **more)
        nets = [dict(net or {}), dict(net or {})]
        nets[1].update(net_b or {})
        self.vms = [lab.vm(n, qemu=q, smp=smp, mem=mem, nets=[v.Net(s, mac=MAC[n], queues=queues, reconnect=1, **kw)])
                    for n, q, s, kw in (('a', qa, self.socks[0], nets[0]), ('b', qb, self.socks[1], nets[1]))]
        self.a, self.b = self.vms
        self.d = d

    def up(self, vm, **kw):
        vm.up(ADDR[vm.name] + '/24', **kw)

    def ensure(self):
        """Daemon and both VMs run and reach each other, whatever the test before left behind."""
        if not self.d.alive():
            self.d.stop()
            self.d.start()
        fresh = [m for m in self.vms if not m.alive()]
        if fresh:
            v.note('booted %s in %.1f s' % (' and '.join('%s (%s, %s)' % (m.name, m.qemu.label, m.kernel.release) for m in fresh),
                                            self.lab.boot(*fresh)))
        for m in self.vms:
            self.up(m)
        v.wait_ping(self.a, ADDR['b'], 30)
        return self

    def both_ways(self, amount='secs=2'):
        f = v.tcp(self.a, self.b, ADDR['b'], amount)
        r = v.tcp(self.b, self.a, ADDR['a'], amount)
        v.note('TCP %.0f and %.0f Mbit/s, %.0f and %.0f MiB, every byte right' %
               (f['mbps'], r['mbps'], f['bytes'] / 1048576, r['bytes'] / 1048576))
        assert f['bytes'] and r['bytes']

    def drops(self):
        return self.link_stats()['sides']['driver']['tx']['dropped']

    def link_stats(self):
        return self.d.ctl('stats', 'ab')['links'][0]


PAIRS = [('system', 'system'), ('11', '11'), ('system', '11')]


@pytest.fixture(scope='class', params=PAIRS, ids=['%s-%s' % p for p in PAIRS])
def pair(request, new_lab):
    # The mixed pair also mixes ring formats: split on one side, packed on the other.
    with new_lab() as lab:
        yield Pair(lab, *request.param, net_b={'packed': True} if request.param == ('system', '11') else None)


class TestRelay:
    def test_one_side_absent(self, pair):
        """The driver VM boots and runs while nobody is at the other end; what it sends is dropped and counted."""
        if not pair.d.alive():
            pair.d.start()
        v.note('driver VM alone: booted in %.1f s' % pair.lab.boot(pair.a))
        pair.up(pair.a)
        # More than a ring full, to see that the transmit queue is drained.
        pair.a.sh('arp -s %s %s' % (ADDR['b'], MAC['b']))
        pair.a.sh('vmtool utx %s 9 1000 200 2000' % ADDR['b'])
        assert v.silent(pair.a, ADDR['b'])
        pair.a.sh('arp -d %s' % ADDR['b'])
        end = time.time() + v.limit(5)
        while True:
            dropped = pair.link_stats()['sides']['driver']['tx']['drops']['no-peer']
            if dropped >= 1000:
                break
            assert time.time() < end, 'of 1000 packets %d are counted as dropped' % dropped
            time.sleep(0.1)
        v.note('counted as dropped: %d' % dropped)

    def test_ping(self, pair):
        pair.ensure()
        assert v.ping(pair.a, ADDR['b'], 10, 0.1) == 0
        assert v.ping(pair.b, ADDR['a'], 10, 0.1) == 0

    def test_tcp_both_ways(self, pair):
        pair.ensure().both_ways()

    def test_udp(self, pair):
        pair.ensure()
        before = pair.drops()
        r = v.udp(pair.a, pair.b, ADDR['b'], 1000, 1400, 500)
        dropped = pair.drops() - before
        v.note('UDP: %d of 1000 arrived, %d counted as dropped for want of a buffer' % (r['got'], dropped))
        assert r['bad'] == 0 and r['reordered'] == 0
        # An emulated guest on a busy machine may not keep up; then every packet lost is one that the daemon counted.
        assert r['lost'] <= dropped + 5

    def test_big_segments(self, pair):
        """A TCP segment of the sender's stack crosses in one piece: seen whole by the receiver, whose GRO is off."""
        pair.ensure()
        r = v.big_segments(pair.a, pair.b, ADDR['b'], 'eth0', 8000)
        v.note('longest frame that came in: %d bytes, %d of %d frames were longer than 1600' % (r['in_max'], r['in_big'], r['in']))
        assert r['in_max'] > 8000

    def test_file(self, pair):
        pair.ensure()
        t = time.time()
        assert v.transfer(pair.a, pair.b, ADDR['b'], 64)
        v.note('64 MiB file, SHA-256 equal, %.1f s with hashing' % (time.time() - t))

    def test_idle(self, pair):
        """Nobody sends: the daemon sleeps."""
        pair.ensure()
        time.sleep(1)
        c = pair.d.cpu()
        time.sleep(4)
        used = pair.d.cpu() - c
        v.note('CPU of the idle daemon in 4 s: %.2f s' % used)
        assert used <= 0.08


@pytest.fixture(scope='class', params=['system', '11'])
def life_pair(request, new_lab):
    with new_lab() as lab:
        yield Pair(lab, request.param, request.param)


def others_untouched(pair, who):
    """The VMs but @who have neither ended nor restarted, and the daemon is the same process."""
    for m in pair.vms:
        if m is not who:
            assert m.alive() and m.boots == 1, m.tail()


class TestLife:
    """Whatever one part does, the others keep running and the link comes back."""

    @pytest.fixture(autouse=True)
    def _fresh(self, life_pair):
        life_pair.ensure()
        self.pid = life_pair.d.proc.pid
        for m in life_pair.vms:
            m.boots = 1
        yield
        # A crash of the daemon is a failure of the test during which it happened.
        assert life_pair.d.alive(), life_pair.d.tail()

    def back(self, pair, vm, how):
        pair.up(vm)
        t = v.wait_ping(pair.a, ADDR['b'], 20)
        v.note('%s; link back %.1f s after the guest was up' % (how, t))
        others_untouched(pair, vm)
        assert pair.d.proc.pid == self.pid
        r = v.tcp(pair.a, pair.b, ADDR['b'], 'mib=4')
        assert r['bytes'] == 4 << 20

    @pytest.mark.parametrize('who', ['a', 'b'])
    def test_reboot(self, life_pair, who):
        vm = getattr(life_pair, who)
        self.back(life_pair, vm, 'guest %s rebooted in %.1f s' % (who, vm.reboot()))

    @pytest.mark.parametrize('who', ['a', 'b'])
    def test_system_reset_in_transfer(self, life_pair, who):
        vm = getattr(life_pair, who)
        life_pair.b.spawn('vmtool rx 4999', 30)
        life_pair.a.spawn('vmtool tx %s 4999 secs=20' % ADDR['b'], 30)
        time.sleep(1)
        self.back(life_pair, vm, 'system_reset of %s during a transfer, up in %.1f s' % (who, vm.reset()))

    @pytest.mark.parametrize('who', ['a', 'b'])
    def test_sigkill_in_transfer(self, life_pair, who):
        vm = getattr(life_pair, who)
        other = life_pair.b if who == 'a' else life_pair.a
        life_pair.b.spawn('vmtool rx 4998', 30)
        life_pair.a.spawn('vmtool tx %s 4998 secs=20' % ADDR['b'], 30)
        time.sleep(1)
        vm.kill()
        assert other.sh('echo alive', 10) == 'alive\n'
        assert life_pair.d.ctl('list') is not None
        self.back(life_pair, vm, 'SIGKILL of %s during a transfer, started again in %.1f s' % (who, vm.start()))

    def test_driver_reload(self, life_pair):
        """The driver is unbound and bound again: queues stop, rings are new."""
        a = life_pair.a
        a.sh('d=$(basename $(readlink -f /sys/class/net/eth0/device)); echo $d >/sys/bus/virtio/drivers/virtio_net/unbind; '
             'echo $d >/sys/bus/virtio/drivers/virtio_net/bind; sleep 0.5; ls /sys/class/net')
        self.back(life_pair, a, 'driver of a reloaded')

    def test_upgrade(self, life_pair):
        """A new daemon takes over under a TCP stream, again and again: no connection of a VMM ends, no byte is wrong."""
        pair = life_pair
        before = pair.d.ctl('show', 'ab')['sides']
        rx = pair.b.spawn('vmtool rx 4997', 60)
        tx = pair.a.spawn('vmtool tx %s 4997 secs=4' % ADDR['b'], 60)
        stalls = []
        for _ in range(3):
            time.sleep(0.5)
            stalls.append(pair.d.upgrade()['stall_us'] / 1000)
        tx.result()
        got = v.kv(rx.result())
        v.note('traffic stood still for %s ms' % ', '.join('%.1f' % s for s in stalls))
        assert got['bytes'] and not got.get('bad') and not got.get('err'), got
        after = pair.d.ctl('show', 'ab')['sides']
        for side in before:
            assert {k: before[side][k] for k in ('pid', 'sessions', 'features')} == {k: after[side][k] for k in ('pid', 'sessions', 'features')}
        others_untouched(pair, None)

    @pytest.mark.parametrize('how', ['SIGTERM', 'SIGKILL'])
    def test_daemon_restart(self, life_pair, how):
        """VMs whose chardev says `reconnect` go on when the daemon comes back."""
        pair = life_pair
        pair.d.stop(getattr(signal, how))
        time.sleep(1)
        for m in pair.vms:
            assert m.sh('echo alive', 10) == 'alive\n'
        pair.d.start()
        t = v.wait_ping(pair.a, ADDR['b'], 30)
        v.note('daemon ended with %s and started again: link back after %.1f s' % (how, t))
        others_untouched(pair, None)
        r = v.tcp(pair.a, pair.b, ADDR['b'], 'mib=4')
        assert r['bytes'] == 4 << 20


@pytest.mark.parametrize('qemu', ['system', '11'])
def test_multiqueue_mtu(lab, qemu):
    """Two queue pairs and a large MTU: traffic on every pair, jumbo frames whole."""
    pair = Pair(lab, qemu, qemu, smp=2, queues=2, net={'props': 'host_mtu=9000'})
    pair.d.link('ab', 'a', 'b', Queues=2)
    with open(os.path.join(pair.d.conf, 'ab.link'), 'a') as f:
        f.write('\n[Net]\nMTU=9000\n')
    pair.ensure()
    for m in pair.vms:
        ch = v.kv(m.sh('vmtool channels eth0 2'))
        assert ch['now'] == 2, ch
        assert m.sh('cat /sys/class/net/eth0/mtu').strip() == '9000'
    jobs = []
    # Several flows: the sender's CPUs choose the queue.
    for cpu in (1, 2, 1, 2):
        port = v.next_port()
        rx = pair.b.spawn('vmtool rx %d' % port, 60)
        tx = pair.a.spawn('taskset %d vmtool tx %s %d secs=3' % (cpu, ADDR['b'], port), 60)
        jobs += [rx, tx]
    rates = [v.kv(j.result())['mbps'] for j in jobs]
    v.note('four flows: %s Mbit/s' % ', '.join('%.0f' % r for r in rates[::2]))
    stats = v.kv(pair.a.sh('vmtool stats eth0').replace('\n', ' '))
    tx = [stats.get('tx_queue_%d_packets' % i, stats.get('tx%d_packets' % i, 0)) for i in range(2)]
    v.note('packets per transmit queue: %r' % tx)
    assert all(n > 50 for n in tx)
    assert 'bytes from' in pair.a.sh('ping -c 2 -s 8900 %s' % ADDR['b'])
