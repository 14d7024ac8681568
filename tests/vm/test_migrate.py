# SPDX-License-Identifier: BSD-3-Clause
"""A driver VM moves between two hosts, live: two daemons, each with a link of its own into the network of a device VM."""

import os

import portlink
import pytest
import vhostpci_vm as v

ADDR, PEER = '10.9.0.1', '10.9.0.2'
MAC = '52:54:00:09:00:01'
STOP = '/run/hot.stop'


class Hosts:
    """Two hosts on one machine, each a daemon with a link `h0` or `h1`. The device VM joins the device sides of both by a bridge, as the
    network between hosts would. The driver VM is on one of the hosts, self.at.

    @qemus the QEMU of each host for the driver VM. Both have the same machine, whatever their versions.
    """

    def __init__(self, lab, mode, qemus, attachment='ivshmem', device_qemu='system', link=None):
        self.lab, self.mode, self.qemus, self.n = lab, mode, qemus, 0
        self.daemons = [lab.daemon, v.Daemon(lab.dir + '/2', lab.daemon.builddir)]
        lab.others.append(self.daemons[1])
        group = 'blue' if mode == 'fast' else 'red'
        if mode == 'relay':
            self.b = lab.vm('b', qemu=device_qemu)
        else:
            self.b = portlink.guest(self.daemons[0], 'b', group, device=True, qemu=device_qemu)
            lab.vms.append(self.b)
        self.socks, self.ports = [], []
        for i, d in enumerate(self.daemons):
            name = 'h%d' % i
            d.vm('a', 'blue')
            d.vm('b', group)
            keys = {}
            if mode != 'relay':
                port = v.Port(d.path(name + '-device.sock'), attachment, id='port%d' % i)
                keys = port.link_keys(lab.dir, 'b')
            a, b = d.link(name, 'a', 'b', mode=mode, endpoint='virtio-net' if mode == 'relay' else 'port', device_keys=keys, **(link or {}))
            self.socks.append(a)
            self.b.nets.append(v.Net(b, mac='52:54:00:09:01:%02x' % i, reconnect=1) if mode == 'relay' else port)
            d.start()
        self.at = 0
        self.a = self.driver(0, False)

    def driver(self, host, incoming):
        self.n += 1
        # Old QEMU under emulation has no MSI-X here (v.Net); both have to be the same.
        return self.lab.vm('a%d' % self.n, qemu=self.qemus[host], machine='pc-q35-7.2', cpu='Nehalem', incoming=incoming, nets=[
            v.Net(self.socks[host], mac=MAC, reconnect=1, vectors=0 if v.accel() == 'tcg' else None)])

    def up(self):
        self.lab.boot(self.a, self.b)
        b = self.b
        b.sh('modprobe bridge; ip link add br0 type bridge; brctl setfd br0 0; ip link set br0 up; ip addr add %s/24 dev br0' % PEER)
        if self.mode != 'relay':
            b.sh('modprobe tun; modprobe vhost_net')
        for i in range(2):
            name, dev = 'h%d' % i, 'eth%d' % i
            if self.mode != 'relay':
                dev = 'vp%d' % i
                b.sh(portlink.agent_command(name, dev, '52:54:00:09:01:%02x' % i))
                b.until('[ -e /sys/class/net/%s ]' % dev, 20, 'cat %s; dmesg | tail' % portlink.agent_files(name)[0])
            b.sh('ip link set %s up; brctl addif br0 %s' % (dev, dev))
        self.a.up(ADDR + '/24')
        v.wait_ping(self.a, PEER, 30)

    def move(self):
        """To the other host. Returns query-migrate's answer."""
        there = 1 - self.at
        to = self.driver(there, True)
        to.start(wait=False)
        r = self.a.migrate(to)
        self.lab.vms.remove(self.a)
        self.a, self.at = to, there
        return r

    def show(self):
        return self.daemons[self.at].ctl('show', 'h%d' % self.at)

    def still(self, count=1500):
        """Datagrams that reach the driver VM while nobody reads them: until read() they lie where the device has written them."""
        port = v.next_port()
        rx = self.a.spawn('vmtool urx %d %d 1000 & echo $! >/run/still.pid; wait' % (port, count), 300)
        v.bound(self.a, port)
        self.a.sh('kill -STOP $(cat /run/still.pid)')
        tx = self.b.spawn('vmtool utx %s %d %d 1400 400' % (ADDR, port, count), 300)

        def read():
            tx.result()
            self.a.sh('kill -CONT $(cat /run/still.pid)')
            # Those that were on their way while nobody was there have gone.
            self.a.sh('sleep 1; kill -INT $(cat /run/still.pid) 2>/dev/null || true')
            r = v.kv(rx.result(check=False))
            assert r['bad'] == 0 and r['reordered'] == 0, r
            return r
        return read


def stream(src, dst, addr, secs):
    port = v.next_port()
    rx = dst.spawn('vmtool rx %d' % port, 300)
    return rx, src.spawn('vmtool tx %s %d secs=%d' % (addr, port, secs), 300)


def moved_under_traffic(h, times):
    """@times migrations under checked streams and datagrams both ways, with hot memory: nothing lost that TCP does not give again, nothing
    changed, nothing doubled."""
    for n in range(times):
        a, b = h.a, h.b
        hot = a.spawn('rm -f %s; vmtool hot 8 %s 4000' % (STOP, STOP), 300)
        port = v.next_port()
        a.spawn('vmtool uecho %d 60' % port, 100)
        v.bound(a, port)
        secs = 10
        streams = [stream(a, b, PEER, secs), stream(b, a, ADDR, secs)]
        gap = b.spawn('vmtool ugap %s %d %d 200 512' % (ADDR, port, secs), 300)
        read = h.still()
        b.sh('sleep 1')
        r = h.move()
        got = [v.kv(rx.result()) for rx, tx in streams]
        for rx, tx in streams:
            tx.result()
        assert all(s['bad'] == 0 and s['err'] == 0 for s in got), got
        g = v.kv(gap.result())
        assert g['bad'] == 0 and g['doubled'] == 0, g
        h.a.sh('touch ' + STOP)
        m = v.kv(hot.result())
        still = read()
        assert m['bad'] == 0, m
        v.note('migration %d: %s says %s ms of downtime; longest gap in datagrams there and back %s ms (next longest %s), %d of %d lost, '
               'TCP %d and %d MiB right; %d datagrams lay unread; hot memory: %d pages checked, stopped for %s ms' %
               (n + 1, h.a.qemu.label, r.get('downtime'), g['gap_ms'], g['second_ms'], g['lost'], g['sent'], got[0]['bytes'] / 1048576,
                got[1]['bytes'] / 1048576, still['got'], m['pages'], m['longest_ms']))
        assert h.daemons[0].alive() and h.daemons[1].alive()


POINTS = [('relay', 'system', 'system'), ('relay', '11', '11'), ('relay', 'system', '11'), ('copy', 'system', 'system'), ('copy', '11', '11')]


@pytest.mark.parametrize('mode,one,other', POINTS, ids=['-'.join(p) for p in POINTS])
def test_migrate(lab, mode, one, other):
    h = Hosts(lab, mode, (one, other))
    h.up()
    moved_under_traffic(h, 1 if one != other else 2)
