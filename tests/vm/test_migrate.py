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

    def move(self, **kw):
        """To the other host. Returns query-migrate's answer; @kw as for VM.migrate()."""
        there = 1 - self.at
        to = self.driver(there, True)
        to.start(wait=False)
        r = self.a.migrate(to, **kw)
        self.lab.vms.remove(self.a)
        self.a, self.at = to, there
        return r

    def show(self):
        return self.daemons[self.at].ctl('show', 'h%d' % self.at)

    def still(self, mib=6, rate=1):
        """A stream that reaches the driver VM while nobody reads it: until it is read, it lies where the device has written it. Its packets
        are large, so that most pages of it are touched by nobody else."""
        port = v.next_port()
        self.a.sh('echo 4096 16777216 16777216 >/proc/sys/net/ipv4/tcp_rmem')
        rx = self.a.spawn('vmtool rx %d & echo $! >/run/still.pid; wait $!' % port, 300)
        tx = self.b.spawn('vmtool tx %s %d mib=%g@%g' % (ADDR, port, mib, rate), 300)
        self.a.until('grep -q ":%04X .* 01 " /proc/net/tcp' % port)
        self.a.sh('kill -STOP $(cat /run/still.pid)')

        def read():
            self.a.until('grep -q ":%04X .* 08 " /proc/net/tcp' % port, 30, 'cat /proc/net/tcp')     # its end has come, too
            self.a.sh('kill -CONT $(cat /run/still.pid)')
            r = v.kv(rx.result())
            tx.result()
            assert r['bad'] == 0 and r['bytes'] == mib << 20, r
            return mib << 20
        return read


def stream(src, dst, addr, secs):
    port = v.next_port()
    rx = dst.spawn('vmtool rx %d' % port, 300)
    return rx, src.spawn('vmtool tx %s %d secs=%d' % (addr, port, secs), 300)


def told(h, r):
    return '%s took %s ms in %s rounds and says %s ms of downtime' % (h.a.qemu.label, r['total-time'], r['ram']['dirty-sync-count'], r['downtime'])


def moved_under_traffic(h):
    """Checked streams and datagrams both ways, and hot memory: nothing lost that TCP does not give again, nothing changed or doubled."""
    a, b, secs = h.a, h.b, 10
    hot = a.spawn('rm -f %s; vmtool hot 8 %s 4000' % (STOP, STOP), 300)
    port = v.next_port()
    a.spawn('vmtool uecho %d 60' % port, 100)
    v.bound(a, port)
    streams = [stream(a, b, PEER, secs), stream(b, a, ADDR, secs)]
    gap = b.spawn('vmtool ugap %s %d %d 200 512' % (ADDR, port, secs), 300)
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
    assert m['bad'] == 0, m
    v.note('%s; longest gap in datagrams there and back %s ms (next longest %s), %d of %d lost, TCP %d and %d MiB right; '
           'hot memory: %d pages checked, stopped for %s ms' %
           (told(h, r), g['gap_ms'], g['second_ms'], g['lost'], g['sent'], got[0]['bytes'] / 1048576, got[1]['bytes'] / 1048576, m['pages'],
            m['longest_ms']))


def moved_quietly(h):
    """What comes in is all that happens: only the dirty log says that those pages have changed. Slowly, so that they have been sent before."""
    read = h.still()
    h.b.sh('sleep 0.5')
    r = h.move(mib_per_s=16)
    v.note('%s; %d MiB came in unread meanwhile, every byte right' % (told(h, r), read() >> 20))


# From an old QEMU to a newer one, and not back.
POINTS = [('relay', 'system', 'system'), ('relay', '11', '11'), ('relay', 'system', '11'), ('copy', 'system', 'system'), ('copy', '11', '11'), ('fast', 'system', 'system'),
          ('fast', '11', '11')]


@pytest.mark.parametrize('mode,one,other', POINTS, ids=['-'.join(p) for p in POINTS])
def test_migrate(lab, mode, one, other):
    h = Hosts(lab, mode, (one, other), link={'Migration': 'yes'} if mode == 'fast' else None)
    h.up()
    moved_quietly(h)
    moved_under_traffic(h)
    assert h.daemons[0].alive() and h.daemons[1].alive()
