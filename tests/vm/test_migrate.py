# SPDX-License-Identifier: BSD-3-Clause
"""A driver VM moves between two hosts, live: two daemons, each with a link of its own, to one network or to one disk."""

import hashlib
import os
import shutil
import subprocess

import portlink
import pytest
import vhostpci_vm as v

ADDR, PEER = '10.9.0.1', '10.9.0.2'
MAC = '52:54:00:09:00:01'
STOP = '/run/hot.stop'


def loses_writes(qemu):
    """Before 9.0, QEMU's emulation loses what a guest writes while it migrates, unless a block of its memory is no multiple of 64 pages: then it
    takes another way through the dirty bitmap (findings/qemu-tcg-migration-loses-writes.sh)."""
    return v.accel() == 'tcg' and v.qemu(qemu).version < (9, 0)


class Moving:
    """Two hosts on one machine, each a daemon with a link `h0` or `h1`. The driver VM is on one of them, self.at.

    @qemus the QEMU of each host for the driver VM. Both have the same machine, whatever their versions.
    """

    def __init__(self, lab, qemus):
        self.lab, self.qemus, self.n, self.at = lab, qemus, 0, 0
        self.daemons = [lab.daemon, v.Daemon(lab.dir + '/2', lab.daemon.builddir)]
        lab.others.append(self.daemons[1])
        self.socks = []

    def nic(self, host):
        """The device that moves."""
        raise NotImplementedError

    def driver(self, host, incoming):
        self.n += 1
        kib = (256 << 10) + (8 if any(map(loses_writes, self.qemus)) else 0)
        mem = ['-object', 'memory-backend-memfd,id=mem,size=%dK,share=on' % kib, '-m', '%dK' % kib]
        return self.lab.vm('a%d' % self.n, qemu=self.qemus[host], machine='pc-q35-7.2,memory-backend=mem', mem_args=mem, cpu='Nehalem', incoming=incoming,
                           nets=[self.nic(host)])

    def move(self, **kw):
        """To the other host. Returns query-migrate's answer; @kw as for VM.migrate()."""
        there = 1 - self.at
        to = self.driver(there, True)
        to.start(wait=False)
        r = self.a.migrate(to, **kw)
        self.lab.vms.remove(self.a)
        self.a, self.at = to, there
        return r


class Hosts(Moving):
    """The device VM joins the device sides of both links by a bridge, as the network between hosts would."""

    def __init__(self, lab, mode, qemus, attachment='ivshmem', device_qemu='system', link=None):
        super().__init__(lab, qemus)
        self.mode = mode
        group = 'blue' if mode == 'fast' else 'red'
        if mode == 'relay':
            self.b = lab.vm('b', qemu=device_qemu)
        else:
            self.b = portlink.guest(self.daemons[0], 'b', group, device=True, qemu=device_qemu)
            lab.vms.append(self.b)
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
        self.a = self.driver(0, False)

    def nic(self, host):
        # Old QEMU under emulation has no MSI-X here (v.Net); both have to be the same.
        return v.Net(self.socks[host], mac=MAC, reconnect=1, vectors=0 if v.accel() == 'tcg' else None)

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
    if mode == 'fast' and loses_writes(one):
        pytest.skip('the emulation of QEMU before 9.0 loses writes of a guest whose memory may be a window of ivshmem')
    h = Hosts(lab, mode, (one, other), link={'Migration': 'yes'} if mode == 'fast' else None)
    h.up()
    moved_quietly(h)
    moved_under_traffic(h)
    assert h.daemons[0].alive() and h.daemons[1].alive()


@pytest.mark.parametrize('mode', ['relay', 'copy', 'fast'])
def test_to_and_fro(lab, mode):
    """Twenty times."""
    h = Hosts(lab, mode, ('11', '11'), link={'Migration': 'yes'} if mode == 'fast' else None)
    h.up()
    for _ in range(20):
        moved_under_traffic(h)


class Disks(Moving):
    """A storage daemon on each host serves the same image, as both would that of a network's."""

    MIB = 48

    def __init__(self, lab, mode, qemus, link=None):
        super().__init__(lab, qemus)
        self.image = lab.dir + '/disk.img'
        with open(self.image, 'wb') as f:
            f.write(os.urandom(self.MIB << 20))
        for i, d in enumerate(self.daemons):
            name = 'h%d' % i
            d.vm('a', 'blue')
            d.vm('b', 'blue')
            a, b = d.link(name, 'a', 'b', mode=mode, endpoint='vhost-user', Type='blk', device_keys={'SocketMode': 'client'},
                          profile_keys={'Capacity': '%dM' % self.MIB}, **(link or {}))
            self.socks.append(a)
            lab.processes.append(subprocess.Popen(['qemu-storage-daemon', '--blockdev', 'file,node-name=f,filename=%s,locking=off' % self.image, '--export',
                                                   'vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path=%s,writable=on' % b]))
            d.start()
        self.a = self.driver(0, False)

    def nic(self, host):
        return v.UserDevice(self.socks[host], 'vhost-user-blk-pci', 'num-queues=1,config-wce=off')

    def sha(self, at, mib):
        with open(self.image, 'rb') as f:
            f.seek(at << 20)
            return hashlib.sha256(f.read(mib << 20)).hexdigest()


@pytest.mark.skipif(not shutil.which('qemu-storage-daemon'), reason='qemu-storage-daemon is not installed (scripts/setup)')
@pytest.mark.parametrize('mode,qemu', [('copy', 'system'), ('copy', '11'), ('fast', 'system')])
def test_migrate_disk(lab, mode, qemu):
    """Under reads into the page cache, which only the dirty log gets right; and back under writes."""
    h = Disks(lab, mode, (qemu, qemu), link={'Migration': 'yes'} if mode == 'fast' else None)
    lab.boot(h.a)
    h.a.sh('modprobe virtio_blk; echo 0 >/sys/block/vda/queue/read_ahead_kb')
    # Eight times 1 MiB from 16 on, in pieces.
    reads = h.a.spawn('for i in $(seq 64 95); do dd if=/dev/vda of=/dev/null bs=256k skip=$i count=1 2>/dev/null || exit 1; sleep 0.15; done', 200)
    r = h.move(mib_per_s=16)
    reads.result()
    assert h.a.sh('dd if=/dev/vda bs=1M skip=16 count=8 2>/dev/null | sha256sum').split()[0] == h.sha(16, 8)
    v.note('%s; 8 MiB were read meanwhile, every byte right' % told(h, r))
    h.a.sh('dd if=/dev/urandom of=/tmp/pattern bs=1M count=4 2>/dev/null')
    writes = h.a.spawn('i=0; while [ ! -e /run/enough ]; do dd if=/tmp/pattern of=/dev/vda bs=16384 seek=$((i % 4 * 256)) count=256 oflag=direct '
                       '2>/dev/null || exit 1; i=$((i + 1)); done; echo rounds=$i', 300)
    r = h.move()
    h.a.sh('sleep 1; touch /run/enough')
    n = v.kv(writes.result())['rounds']
    if n < 4:
        h.a.sh('for i in 0 1 2 3; do dd if=/tmp/pattern of=/dev/vda bs=16384 seek=$((i * 256)) count=256 oflag=direct 2>/dev/null; done', 100)
    want = h.a.sh('sha256sum </tmp/pattern').split()[0]
    assert [h.sha(4 * i, 4) for i in range(4)] == [want] * 4
    v.note('%s; %d times 4 MiB written directly meanwhile, all there' % (told(h, r), n))
    out = h.a.sh('dmesg')
    assert 'I/O error' not in out, out[-2000:]
    assert all(d.alive() for d in h.daemons)
