# SPDX-License-Identifier: BSD-3-Clause
"""Driver VMs whose memory is in several pieces, of several kinds, and changes while the link runs."""

import re
import time

import portlink
import pytest
import vhostpci_vm as v

MIB = 1 << 20
NODE = 128      # MiB of each NUMA node
DIMM = 128

# mode, attachment, QEMU of the device VM, QEMU of the driver VM
MATRIX = [('fast', 'ivshmem', 'system', 'system'), ('fast', 'shmem', '11', '11'), ('fast', 'ivshmem', '11', '11'),
          ('copy', 'shmem', '11', 'system')]


def hugepages():
    """{'Total': …, 'Free': …} of the default size."""
    with open('/proc/meminfo') as f:
        return {k: int(n) for k, n in re.findall(r'HugePages_(\w+): *(\d+)', f.read())}


@pytest.fixture(scope='module')
def huge():
    """2 MiB pages for one node, or None and the reason."""
    path = '/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages'
    need = NODE // 2
    try:
        with open(path) as f:
            before = f.read()
        with open(path, 'w') as f:
            f.write(str(int(before) + need))
        if hugepages()['Free'] < need:
            yield 'the host has no %d MiB in one piece for huge pages' % NODE
        else:
            yield None
        with open(path, 'w') as f:
            f.write(before)
    except OSError as e:
        yield 'no huge pages: %s' % e


def nodes(huge):
    """Arguments for two NUMA nodes with a CPU each, the second one in huge pages where there are some."""
    return ['-m', '%d,slots=2,maxmem=2G' % (2 * NODE),
            '-object', 'memory-backend-memfd,id=m0,size=%dM,share=on' % NODE,
            '-object', 'memory-backend-memfd,id=m1,size=%dM,share=on%s' % (NODE, ',hugetlb=on,hugetlbsize=2M' if huge else ''),
            '-numa', 'node,nodeid=0,cpus=0,memdev=m0', '-numa', 'node,nodeid=1,cpus=1,memdev=m1']


@pytest.fixture(scope='class', params=MATRIX, ids=['%s-%s-%s' % m[:3] for m in MATRIX])
def link(request, new_lab, huge):
    mode, attachment, device, driver = request.param
    with new_lab() as lab:
        try:
            p = portlink.PortLink(lab.daemon, mode, attachment, driver, device, driver={'smp': 2, 'mem_args': nodes(not huge)},
                                  port={'slots': 4})
        except v.Unavailable as e:
            pytest.skip(str(e))
        lab.vms += p.vms
        lab.daemon.start()
        t = lab.boot(*p.vms)
        v.note('booted left (%s, two nodes) and right (%s) in %.1f s' % (p.driver.qemu.label, p.device.qemu.label, t))
        p.start_agent()
        p.up_driver()
        v.note('%s over %s, first answer after %.1f s' % (mode, attachment, p.wait()))
        yield p
        assert lab.daemon.alive(), lab.daemon.tail()
        for m in p.vms:
            # Without the first second: the kernel complains of CPUs of one socket in two nodes, link or no link.
            log = '\n'.join(x for x in m.sh('dmesg').splitlines() if not x.startswith('[    0.'))
            for bad in ('Call Trace', 'is not a head', 'NETDEV WATCHDOG'):
                assert bad not in log, '%s: %s\n%s' % (m.name, bad, log[-3000:])


def regions(link):
    """How many memory regions the device VM has been given: the driver VM's, in copy mode the pool."""
    return link.show()['sides']['device']['regions']


def files(link):
    """The windows that are ready: the size of each in MiB."""
    return sorted(w['size'] >> 20 for w in link.show()['sides']['device']['windows'] if w['state'] == 'ready')


def zone(vm, name):
    """Free MiB in zones of that name."""
    text = vm.sh('cat /proc/zoneinfo')
    return sum(int(n) for z, n in re.findall(r'zone +(\w+)\n +pages free +(\d+)', text) if z == name) * 4 / 1024


def handed_out(vm, name):
    """Pages that zones of that name have ever handed out."""
    return int(re.search(r'pgalloc_%s (\d+)' % name.lower(), vm.sh('cat /proc/vmstat')).group(1))


def allocated(vm, node):
    """Pages that node @node has handed to the CPUs of its own."""
    return int(re.search(r'local_node (\d+)', vm.sh('cat /sys/devices/system/node/node%d/numastat' % node)).group(1))


def blocks(vm, state):
    """Names of the memory blocks in that state."""
    return [x.split('/')[-2] for x in vm.sh('grep -lx %s /sys/devices/system/memory/memory*/state; true' % state).split()]


def plug(vm, name, how, node):
    """Hot-plug a DIMM and put it online in the guest. Returns (seconds, names of its blocks)."""
    t = time.time()
    vm.qmp('object-add', qom_type='memory-backend-memfd', id='m' + name, size=DIMM * MIB, share=True)
    vm.qmp('device_add', driver='pc-dimm', id=name, memdev='m' + name, node=node)
    end = t + v.limit(20)
    while not blocks(vm, 'offline'):
        assert time.time() < end, 'the guest does not see the memory\n' + vm.sh('dmesg | tail')
        time.sleep(0.1)
    new = blocks(vm, 'offline')
    for b in new:
        vm.sh('echo %s >/sys/devices/system/memory/%s/state' % (how, b))
    return time.time() - t, new


def unplug(vm, name, its):
    """Take the DIMM out again. Returns seconds, None when the guest does not let go of it."""
    t = time.time()
    for b in its:
        st, out = vm.status('for i in 1 2 3 4 5; do echo offline >/sys/devices/system/memory/%s/state && exit 0; sleep 0.5; done; exit 1' % b)
        if st:
            return None
    vm.qmp('device_del', id=name)
    vm.wait_event('DEVICE_DELETED', 20)
    vm.qmp('object-del', id='m' + name)
    return time.time() - t


class Stream:
    """A checked stream from the driver VM to the device VM, or back, while something else happens."""

    def __init__(self, link, secs, back=False):
        src, dst, addr = (link.device, link.driver, link.addr_driver) if back else (link.driver, link.device, link.addr_device)
        port = v.next_port()
        self.rx = dst.spawn('vmtool rx %d' % port, 120)
        self.tx = src.spawn('vmtool tx %s %d secs=%g' % (addr, port, secs), 120)
        time.sleep(1)

    def end(self):
        self.tx.result()
        r = v.kv(self.rx.result())
        assert r['bytes'] and not r['bad'] and not r['err'], r
        return r['bytes'] / MIB


class TestMemory:
    def test_nodes(self, link, huge):
        """Both nodes, the second one in huge pages, are behind the link: each holds the packets that its CPU sends."""
        driver = link.driver
        if link.mode == 'fast':
            v.note('%d regions in windows of %s MiB' % (regions(link), files(link)))
            assert len([s for s in files(link) if s == NODE]) == 2
        for n in (0, 1):
            before = allocated(driver, n)
            port = v.next_port()
            rx = link.device.spawn('vmtool rx %d' % port, 60)
            driver.sh('taskset %d vmtool tx %s %d mib=24' % (1 << n, link.addr_device, port), 60)
            r = v.kv(rx.result())
            used = allocated(driver, n) - before
            v.note('from node %d: %.0f MiB, %d pages allocated there' % (n, r['bytes'] / MIB, used))
            assert r['bytes'] == 24 * MIB and not r['bad'] and used > 500
        # The driver VM receives into buffers of either node.
        for n in (0, 1):
            assert v.transfer(link.device, driver, link.addr_driver, 16)

    def test_huge_pages(self, link, huge):
        """The second node really is in huge pages of the host."""
        if huge:
            pytest.skip(huge)
        h = hugepages()
        v.note('%d of %d huge pages in use' % (h['Total'] - h['Free'] + h['Rsvd'], h['Total']))
        assert h['Total'] - h['Free'] + h['Rsvd'] >= NODE // 2
        assert h['Total'] - h['Free'] > 0

    def test_hotplug(self, link):
        """A DIMM comes while a stream runs, carries traffic, goes while a stream runs; another one comes for good."""
        driver, fast = link.driver, link.mode == 'fast'
        had = regions(link)
        s = Stream(link, 6)
        t, its = plug(driver, 'dimm0', 'online_movable', 1)
        mib = s.end()
        v.note('DIMM of %d MiB plugged and online in %.1f s during a stream of %.0f MiB' % (DIMM, t, mib))
        if fast:
            assert regions(link) == had + 1 and files(link).count(DIMM) >= 3
        # Files of its node's CPU lie in movable memory first, and sendfile() sends their own pages: the device VM reads the DIMM.
        free = zone(driver, 'Movable')
        driver.sh('taskset 2 vmtool fill /tmp/out 32')
        used = free - zone(driver, 'Movable')
        assert used > 30, 'the file is not in the DIMM: %.0f MiB' % used
        port = v.next_port()
        rx = link.device.spawn('vmtool recvfile %d /tmp/in' % port, 60)
        driver.sh('vmtool sendfile %s %d /tmp/out' % (link.addr_device, port), 60)
        rx.result()
        want, got = (m.sh('sha256sum %s; rm %s' % (f, f), 60).split()[0] for m, f in ((driver, '/tmp/out'), (link.device, '/tmp/in')))
        assert got == want
        s = Stream(link, 6, back=True)
        t = unplug(driver, 'dimm0', its)
        mib = s.end()
        if t is None:
            v.note('the guest keeps the DIMM: unplugging not seen')
        else:
            v.note('32 MiB sent out of it; unplugged in %.1f s during a stream of %.0f MiB' % (t, mib))
            assert regions(link) == had
        # As kernel memory it is where new buffers come from first, sent and received.
        free = zone(driver, 'Normal')
        t, its = plug(driver, 'dimm1', 'online_kernel', 1)
        grown, before = zone(driver, 'Normal') - free, handed_out(driver, 'Normal')
        port = v.next_port()
        rx = link.device.spawn('vmtool rx %d' % port, 60)
        driver.sh('taskset 2 vmtool tx %s %d mib=16' % (link.addr_device, port), 60)
        f = v.kv(rx.result())
        r = v.tcp(link.device, driver, link.addr_driver, 'mib=16')
        used = handed_out(driver, 'Normal') - before
        v.note('another one as kernel memory (%.0f MiB) in %.1f s: 16 MiB each way, %d pages handed out there' % (grown, t, used))
        assert f['bytes'] == r['bytes'] == 16 * MIB and not f['bad']
        assert grown > DIMM * 0.8 and used > 500

    def test_driver_vm_reset_with_all_of_it(self, link):
        """After a reset the memory is the same and the link comes back."""
        had = regions(link)
        t = link.driver.reset()
        link.up_driver()
        v.note('system_reset, up in %.1f s, link back after %.1f s' % (t, link.wait()))
        f, r = link.tcp('mib=8')
        assert f['bytes'] == r['bytes'] == 8 * MIB
        assert regions(link) == had
