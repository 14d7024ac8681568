# SPDX-License-Identifier: BSD-3-Clause
"""Port links under load and in company: all kinds of traffic over two queues, several ports in a VM, VMs that serve each other."""

import time

import portlink
import pytest
import vhostpci_vm as v

# mode, attachment, QEMU of the device VM, QEMU of the driver VM
MATRIX = [('fast', 'ivshmem', 'system', 'system'), ('fast', 'ivshmem', '11', '11'), ('fast', 'shmem', '11', 'system'),
          ('copy', 'ivshmem', 'system', 'system'), ('copy', 'ivshmem', '11', 'system'), ('copy', 'shmem', '11', '11')]
MTU = 9000
MAC = '52:54:00:0d:00:01'


def unavailable(make, *args, **kw):
    try:
        return make(*args, **kw)
    except v.Unavailable as e:
        pytest.skip(str(e))


def boot(lab, *vms):
    lab.vms += [m for m in vms if m not in lab.vms]
    t = lab.boot(*vms)
    v.note('booted %s in %.1f s' % (', '.join('%s (%s)' % (m.name, m.qemu.label) for m in vms), t))


def start(*links, **kw):
    for link in links:
        link.start_agent(**kw)
        link.up_driver()
    for link in links:
        t = link.wait()
        v.note('%s: %s over %s, first answer after %.1f s' % (link.name, link.mode, link.attachment, t))


def all_well(daemon, *vms):
    """Nothing was broken on the way, though traffic may have hidden it."""
    assert daemon.alive(), daemon.tail()
    for m in vms:
        bad = m.complaints()
        assert not bad, '%s: %s' % (m.name, '\n'.join(bad))
    for one in daemon.ctl('list')['links']:
        assert one['status'] != 'broken', one


class Flow:
    """A checked TCP stream from @src to @dst that runs beside others; @cpu (a mask) chooses the sender's queue."""

    def __init__(self, src, dst, addr, amount, cpu=None, timeout=120):
        self.port = v.next_port()
        self.rx = dst.spawn('vmtool rx %d' % self.port, timeout)
        self.tx = src.spawn('%svmtool tx %s %d %s' % ('taskset %d ' % cpu if cpu else '', addr, self.port, amount), timeout)

    def result(self):
        self.tx.result()
        r = v.kv(self.rx.result())
        assert not r['bad'] and not r['err'] and r['bytes'], r
        return r


def rate(flows):
    """Runs flows to their end: (bytes, Mbit/s of all together)."""
    t = time.time()
    n = int(sum(f.result()['bytes'] for f in flows))
    return n, n * 8 / 1e6 / (time.time() - t)


def queue_packets(vm, eth):
    """[[received, sent]] by queue."""
    s = v.kv(vm.sh('vmtool stats %s' % eth).replace('\n', ' '))
    return [[s['%s_queue_%d_packets' % (d, q)] for d in ('rx', 'tx')] for q in range(2)]


def longest(link, secs=1.5):
    """The longest frames that TCP makes arrive in driver VM and device VM."""
    # Both flows together, and what it takes to begin.
    t = 2 * secs + v.patience()
    sniff = [link.driver.spawn('vmtool sniff %s %g' % (link.eth, t)), link.device.spawn('vmtool sniff %s %g' % (link.tap, t))]
    for f in (Flow(link.driver, link.device, link.addr_device, 'secs=%g' % secs),
              Flow(link.device, link.driver, link.addr_driver, 'secs=%g' % secs)):
        f.result()
    return [v.kv(s.result())['in_max'] for s in sniff]


@pytest.fixture(scope='class', params=MATRIX, ids=['%s-%s-%s' % m[:3] for m in MATRIX])
def link(request, new_lab):
    mode, attachment, device, driver = request.param
    with new_lab() as lab:
        p = unavailable(portlink.PortLink, lab.daemon, mode, attachment, driver, device, pairs=2, driver={'smp': 2},
                        net={'props': 'host_mtu=%d' % MTU}, net_keys={'MTU': MTU})
        lab.daemon.start()
        boot(lab, *p.vms)
        start(p)
        yield p
        all_well(p.daemon, *p.vms)


class TestTraffic:
    """Two queues and a large MTU on every kind of port."""

    def test_ping(self, link):
        for vm, addr in ((link.driver, link.addr_device), (link.device, link.addr_driver)):
            assert v.ping(vm, addr, 10, 0.1) == 0
            assert 'bytes from' in vm.sh('ping -c 2 -s %d %s' % (MTU - 28, addr))

    def test_tcp_on_both_queues(self, link):
        """256 MiB in four streams at once, two each way, every byte checked; both queues carry them, both ways."""
        assert v.kv(link.driver.sh('vmtool channels %s 2' % link.eth))['now'] == 2
        before = queue_packets(link.driver, link.eth)
        # The tap answers each of the driver VM's flows on the queue that it came from; the device VM has one CPU.
        n, mbps = rate([f for cpu in (1, 2) for f in (Flow(link.driver, link.device, link.addr_device, 'mib=64', cpu),
                                                      Flow(link.device, link.driver, link.addr_driver, 'mib=64'))])
        after = queue_packets(link.driver, link.eth)
        by_queue = [[a - b for a, b in zip(*q)] for q in zip(after, before)]
        v.note('%d MiB at %.0f Mbit/s in all; packets in and out of queue 0: %d, %d, of queue 1: %d, %d' %
               ((n >> 20, mbps) + tuple(by_queue[0] + by_queue[1])))
        assert n == 256 << 20
        assert all(x > 100 for q in by_queue for x in q)

    def test_udp(self, link):
        """Paced datagrams, small and large, both ways at once: loss is counted and next to none, nothing is changed."""
        jobs = []
        count, pps = 800, 400
        for src, dst, addr, size in ((link.driver, link.device, link.addr_device, 8000), (link.device, link.driver, link.addr_driver, 1000)):
            port = v.next_port()
            jobs.append(dst.spawn('vmtool urx %d %d %g' % (port, count, v.limit(10)), 40))
            v.bound(dst, port)
            src.spawn('vmtool utx %s %d %d %d %d' % (addr, port, count, size, pps), 40)
        for j, what in zip(jobs, ('to the device VM, 8000 bytes', 'to the driver VM, 1000 bytes')):
            r = v.kv(j.result())
            v.note('UDP %s: %d of %d lost, %d out of order' % (what, r['lost'], count, r['reordered']))
            assert r['bad'] == 0
            # An emulated guest on a busy machine may miss a few; a link that loses in its own rings misses many.
            assert r['lost'] <= count * 0.02

    def test_large_frames(self, link):
        """TCP segments of the sender's stack cross whole; without TSO frames are as long as the MTU says, no more and no less."""
        for vm, dev in ((link.driver, link.eth), (link.device, link.tap)):
            assert vm.sh('cat /sys/class/net/%s/mtu' % dev).strip() == str(MTU)
        link.driver.sh('vmtool gro %s 0' % link.eth)
        whole = longest(link)
        for vm, dev in ((link.driver, link.eth), (link.device, link.tap)):
            vm.sh('vmtool tso %s 0' % dev)
        cut = longest(link)
        for vm, dev in ((link.driver, link.eth), (link.device, link.tap)):
            vm.sh('vmtool tso %s 1' % dev)
        link.driver.sh('vmtool gro %s 1' % link.eth)
        v.note('longest frames into driver VM and device VM: %d and %d bytes, without TSO %d and %d' % tuple(whole + cut))
        assert min(whole) > 1.5 * MTU
        assert cut == [MTU + 14, MTU + 14]


# the links of left and right to the VM between them: (mode, attachment), QEMU of the device VM
HUBS = [(('fast', 'ivshmem'), ('fast', 'ivshmem'), 'system'), (('copy', 'shmem'), ('copy', 'shmem'), '11'),
        (('fast', 'ivshmem'), ('copy', 'shmem'), '11')]


class Hub:
    """Two driver VMs and between them a device VM with two ports, whose taps are in one bridge."""

    def __init__(self, lab, one, other, qemu):
        d = lab.daemon
        self.daemon = d
        self.left, self.right = portlink.guest(d, 'left'), portlink.guest(d, 'right')
        self.hub = portlink.guest(d, 'hub', 'blue', device=True, qemu=qemu)
        self.one = portlink.Link(d, 'one', self.left, self.hub, *one, mac=MAC, net=1, net_keys={'DriverMAC': MAC})
        self.other = portlink.Link(d, 'other', self.right, self.hub, *other, net=2)
        # One network for all three.
        self.addr = {'left': '10.1.0.1', 'right': '10.1.0.3', 'hub': '10.1.0.2'}
        self.other.addr_driver, self.other.addr_device = self.addr['right'], self.addr['hub']

    def bridge(self):
        self.hub.sh('modprobe bridge; ip link add br0 type bridge && ip link set br0 up && ip addr add 10.1.0.2/24 dev br0')


@pytest.fixture(scope='class', params=HUBS, ids=['%s-%s+%s-%s-%s' % (h[0] + h[1] + h[2:]) for h in HUBS])
def hub(request, new_lab):
    with new_lab() as lab:
        h = unavailable(Hub, lab, *request.param)
        h.lab = lab
        lab.daemon.start()
        boot(lab, h.left, h.right, h.hub)
        h.bridge()
        start(h.one, h.other, args='--bridge br0', addr=False)
        yield h
        all_well(h.daemon, h.left, h.right, h.hub)


class TestHub:
    """Two ports in one device VM, which forwards between the two driver VMs."""

    def test_two_ports(self, hub):
        """Both links busy at once, both ways; each port has its own device, agent and tap."""
        assert len(hub.hub.sh('ls -d /dev/vhost-pci[0-9]*').split()) == 2
        assert sorted(hub.hub.sh('ls /sys/class/net/br0/brif').split()) == ['vp0', 'vp1']
        n, mbps = rate([Flow(hub.left, hub.hub, hub.addr['hub'], 'mib=8'), Flow(hub.right, hub.hub, hub.addr['hub'], 'mib=8'),
                        Flow(hub.hub, hub.left, hub.addr['left'], 'mib=8'), Flow(hub.hub, hub.right, hub.addr['right'], 'mib=8')])
        v.note('four streams over two ports: %d MiB at %.0f Mbit/s in all' % (n >> 20, mbps))
        assert n == 32 << 20

    def test_forward(self, hub):
        """left and right talk through the device VM, in whole segments."""
        assert v.ping(hub.left, hub.addr['right'], 5, 0.1) == 0
        hub.right.sh('vmtool gro eth0 0')
        sniff = hub.right.spawn('vmtool sniff eth0 %g' % (1 + 2 * v.patience()))
        a, b = (v.tcp(x, y, hub.addr[y.name], 'mib=8') for x, y in ((hub.left, hub.right), (hub.right, hub.left)))
        big = v.kv(sniff.result())['in_max']
        v.note('through the bridge: %.0f and %.0f Mbit/s, longest frame %d bytes' % (a['mbps'], b['mbps'], big))
        assert a['bytes'] == b['bytes'] == 8 << 20 and big > 4000

    def test_one_driver_vm_dies(self, hub):
        """SIGKILL of one driver VM: the other link's stream does not notice, and the link comes back."""
        flow = Flow(hub.right, hub.hub, hub.addr['hub'], 'secs=4')
        gone = Flow(hub.left, hub.hub, hub.addr['hub'], 'secs=4')
        time.sleep(1)
        hub.left.kill()
        n, _ = rate([flow])
        del gone
        t = hub.left.start()
        hub.one.up_driver()
        back = hub.one.wait()
        v.note('%d MiB on the other link meanwhile; started again in %.1f s, link back after %.1f s' % (n >> 20, t, back))
        assert v.ping(hub.left, hub.addr['right'], 3, 0.1) == 0
        assert hub.hub.boots == hub.right.boots == 1

    def test_busy_poll(self, hub):
        """--busy-poll: vhost-net looks on for the time asked for; seen in the CPU time of its thread."""
        def worker(args):
            hub.other.end_agent()
            hub.other.start_agent('--bridge br0 ' + args, addr=False)
            hub.other.wait()
            cpu = 'pid=$(cat %s); cat /proc/$pid/task/*/stat /proc/[0-9]*/stat | grep "(vhost-$pid)" | ' \
                  "awk '{ t += $14 + $15 } END { print t + 0 }'" % hub.other.pid
            before = int(hub.hub.sh(cpu))
            assert v.ping(hub.right, hub.addr['hub'], 20, 0.1) == 0
            return (int(hub.hub.sh(cpu)) - before) / 100
        off, on = worker(''), worker('--busy-poll 50000')
        v.note('CPU of vhost-net during 20 pings in 2 s: %.2f s, polling 50 ms: %.2f s' % (off, on))
        assert on > 0.4 and off < on / 2


@pytest.mark.parametrize('qemu', ['system'])
def test_macvtap(lab, qemu):
    """--tap /dev/tapN: the driver VM appears on the device VM's bridge through a macvtap with its own MAC address."""
    hub = unavailable(Hub, lab, ('fast', 'ivshmem'), ('fast', 'ivshmem'), qemu)
    lab.daemon.start()
    boot(lab, hub.left, hub.right, hub.hub)
    hub.bridge()
    start(hub.other, args='--bridge br0', addr=False)
    hub.hub.sh('modprobe macvtap; ip link add link br0 name mv0 address %s type macvtap && ip link set mv0 up' % hub.one.mac)
    tap = '/dev/tap' + hub.hub.sh('cat /sys/class/net/mv0/ifindex').strip()
    hub.one.start_agent(tap=tap)
    hub.one.up_driver()
    t = v.wait_ping(hub.left, hub.addr['right'], 30)
    a, b = (v.tcp(x, y, hub.addr[y.name], 'mib=8') for x, y in ((hub.left, hub.right), (hub.right, hub.left)))
    v.note('%s: first answer after %.1f s, TCP %.0f and %.0f Mbit/s' % (tap, t, a['mbps'], b['mbps']))
    assert a['bytes'] == b['bytes'] == 8 << 20
    assert hub.hub.sh('cat /sys/class/net/mv0/address').strip() == hub.one.mac
    all_well(hub.daemon, hub.left, hub.right, hub.hub)


# a serves b's device by the second link, b serves a's by the first
MUTUAL = [(('fast', 'ivshmem'), ('fast', 'ivshmem'), 'system'), (('fast', 'shmem'), ('copy', 'ivshmem'), '11')]


@pytest.mark.parametrize('there,back,qemu', MUTUAL, ids=['%s-%s+%s-%s-%s' % (m[0] + m[1] + m[2:]) for m in MUTUAL])
def test_each_serves_the_other(lab, there, back, qemu):
    """Links in both directions between the same two VMs, busy at once; one of them down leaves the other alone."""
    d = lab.daemon
    a, b = (unavailable(portlink.guest, d, n, device=True, qemu=qemu) for n in 'ab')
    ab, ba = portlink.Link(d, 'ab', a, b, *there, net=1), portlink.Link(d, 'ba', b, a, *back, net=2)
    d.start()
    boot(lab, a, b)
    start(ab, ba)
    n, mbps = rate([Flow(x.driver, x.device, x.addr_device, 'mib=8') for x in (ab, ba)] +
                   [Flow(x.device, x.driver, x.addr_driver, 'mib=8') for x in (ab, ba)])
    v.note('four streams over two links: %d MiB at %.0f Mbit/s in all' % (n >> 20, mbps))
    assert n == 32 << 20
    flow = Flow(b, a, ba.addr_device, 'secs=3')
    d.ctl('down', 'ab')
    assert v.silent(a, ab.addr_device)
    d.ctl('up', 'ab')
    t = ab.wait()
    n, _ = rate([flow])
    v.note('one link down and up: answers after %.1f s, %d MiB on the other meanwhile' % (t, n >> 20))
    for x in (ab, ba):
        assert v.tcp(x.driver, x.device, x.addr_device, 'mib=4')['bytes'] == 4 << 20
    all_well(d, a, b)
    # QEMU 7.2 and 11.1 end here with SIGSEGV when the driver's connection has CONFIGURE_MEM_SLOTS.
    t = b.reset()
    for x in (ab, ba):
        x.up_driver() if x.driver is b else x.start_agent()
    v.note('system_reset of b, which drives one device and serves another: up in %.1f s, links back after %.1f and %.1f s' %
           (t, ab.wait(), ba.wait()))
    assert a.boots == 1
    for x in (ab, ba):
        assert v.tcp(x.driver, x.device, x.addr_device, 'mib=4')['bytes'] == 4 << 20
    all_well(d, a, b)
