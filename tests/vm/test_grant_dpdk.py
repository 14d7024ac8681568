# SPDX-License-Identifier: BSD-3-Clause
"""DPDK in a driver VM that grants: a memory device over ivshmem, and what virtio-iommu maps. The device VM reaches that, and no page of the rest."""

import os
import time

import image
import packages
import portlink
import pytest
import vhostpci_vm as v
from test_grant import MIB, Program, bar

POOL = 128          # MiB of the memory device
CANARIES = 96       # MiB
PAGES = 64          # huge pages behind the vIOMMU

CANARY = {'bin/canary': (image.program(os.path.join(v.TOP, 'tests/vm/canary.c')), 0o755)}


def testpmd():
    try:
        return packages.testpmd('librte_mempool_ring', 'librte_net_virtio')
    except v.Unavailable as e:
        pytest.skip(str(e))


def modules(kernel, *names):
    try:
        found = [image.kernel(kernel).find(n) for n in names]
    except v.Unavailable as e:
        pytest.skip(str(e))
    if None in found:
        pytest.skip('kernel %s has no %s' % (kernel, ', '.join(n for n, f in zip(names, found) if not f)))
    return found


def link(lab, attachment, driver, **kw):
    try:
        l = portlink.PortLink(lab.daemon, 'grant', attachment, device_qemu='11', driver=driver, device=dict(files=CANARY, append='iomem=relaxed'), **kw)
    except v.Unavailable as e:
        pytest.skip(str(e))
    lab.vms += l.vms
    l.lab = lab
    lab.daemon.start()
    v.note('booted in %.1f s' % lab.boot(*l.vms))
    return l


def bind(a, to, before=''):
    """The NIC is the driver @to's from now on."""
    dev = os.path.basename(a.sh('readlink -f /sys/class/net/eth0/device/..').strip())
    a.sh('%s mkdir -p /dev/hugepages /var/run; mount -t hugetlbfs none /dev/hugepages; cd /sys/bus/pci/devices/%s && echo %s >driver_override && '
         'echo %s >driver/unbind && echo %s >/sys/bus/pci/drivers_probe && ls -d /sys/bus/pci/drivers/%s/%s' % (before, dev, to, dev, dev, to, dev))
    return dev


def run_testpmd(a, programs, dev, eal, more):
    # It refuses drivers from directories that others may write to.
    a.sh('chmod 755 / /pmd; (setsid dpdk-testpmd -a %s %s --no-telemetry %s -- --auto-start --nb-cores=1 --total-num-mbufs=4096 %s >/run/testpmd.log 2>&1 &)' %
         (dev, eal, packages.testpmd_drivers(programs), more))


def answered(l, vm, addr):
    """Pings of @vm are answered by testpmd, and none is lost."""
    try:
        v.note('first answer after %.1f s' % v.wait_ping(vm, addr, 60))
    except v.VMError as e:
        raise v.VMError('%s\n%s\n%s\n%s' % (e, l.driver.sh('tail -n 30 /run/testpmd.log; dmesg | tail -n 5', check=False), l.show(), l.story()))
    assert v.ping(vm, addr, 200, 0.01) == 0
    assert ' 0% packet loss' in vm.sh('ping -q -c 20 -i 0.05 -s 1400 ' + addr)


def grant(l):
    return l.show()['sides']['driver']['grant']


def comes(what, seconds):
    end = time.monotonic() + v.limit(seconds)
    while not what():
        assert time.monotonic() < end, 'it did not come'
        time.sleep(0.2)


def biggest_bar(vm):
    """The resource file of the largest BAR of an ivshmem device: the window."""
    return vm.sh("ls -S $(for d in /sys/bus/pci/devices/*; do [ $(cat $d/device) = 0x1110 ] && echo $d/resource2; done) | head -n 1").strip()


def test_memory_device(lab):
    """Rings and buffers of DPDK lie in a memory device, which is one ivshmem window. What lies in other memory is not seen."""
    programs, kernel = testpmd(), '6.1'
    mem = ['-object', 'memory-backend-memfd,id=mem,size=512M,share=on', '-m', '512M,slots=1,maxmem=4G', '-numa', 'node,nodeid=0,cpus=0,memdev=mem',
           '-numa', 'node,nodeid=1,cpus=1-2', '-object', 'memory-backend-memfd,id=pool,size=%dM,share=on' % POOL,
           '-device', 'pc-dimm,id=dimm0,memdev=pool,node=1']
    l = link(lab, 'ivshmem', dict(programs=programs, boot_modules=modules(kernel, 'uio_pci_generic'), smp=3, mem_args=mem, files=CANARY,
                                  append='memhp_default_state=online_movable'),
             kernel=kernel, driver_qemu='11', net=dict(props='disable-legacy=on'), driver_keys=dict(Grant='memory', GrantSize='%dM' % POOL))
    l.start_agent()
    # What the huge pages leave of the memory device is given to processes on node 1's processors first.
    fill = Program(l.driver, 'fill %d' % CANARIES, 'taskset 1')
    l.driver.sh('echo 64 >/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages')
    got = int(l.driver.sh('cat /sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages'))
    v.note('%d of 64 huge pages of the memory device' % got)
    assert got >= 40
    dev = bind(l.driver, 'uio_pci_generic', 'modprobe uio_pci_generic;')
    args = ('-l 1,2 --socket-mem=0,%d --iova-mode=pa' % (2 * got - 8),
            '--forward-mode=icmpecho --port-topology=loop --stats-period=600 --socket-num=1')
    run_testpmd(l.driver, programs, dev, *args)
    answered(l, l.device, l.addr_driver)
    g, port = grant(l), l.show()['sides']['device']
    v.note('granted: %s; windows: %s' % (g['ranges'], [w['size'] for w in port['windows']]))
    assert g['source'] == 'memory' and g['state'] == 'granted' and [r['size'] for r in g['ranges']] == [POOL * MIB]
    assert [w['size'] for w in port['windows']] == [POOL * MIB]
    scan = Program(l.device, 'scan %s %d' % (biggest_bar(l.device), POOL))
    assert v.ping(l.device, l.addr_driver, 50, 0.01) == 0
    seen = scan.ask()
    assert seen['hits'] == 0 and seen['now'] > 0, seen
    scan.end()
    kept = fill.ask()
    assert kept['pages'] == CANARIES * MIB / 4096 and kept['bad'] == 0, kept
    v.note('%d pages of the window had something in them, no canary among them; %d canaries are whole' % (seen['now'], kept['pages']))
    fill.end()
    l.driver.sh('kill -9 $(pidof dpdk-testpmd)', check=False)
    comes(lambda: grant(l)['state'] == 'none', 30)
    again(l, lambda: run_testpmd(l.driver, programs, dev, *args))


def again(l, start):
    """testpmd has been killed. The next one, and another device VM, have what is granted to them. Its agent is killed, too."""
    start()
    answered(l, l.device, l.addr_driver)
    v.note('testpmd killed and started again')
    for how in ('SIGKILL of the agent', 'reset', 'SIGKILL of the device VM'):
        if how.endswith('agent'):
            l.end_agent('KILL')
        elif how == 'reset':
            l.device.reset()
        else:
            l.device.kill()
            l.lab.boot(l.device)
        l.start_agent()
        answered(l, l.device, l.addr_driver)
        v.note('%s: the link is back, %d windows' % (how, len(l.show()['sides']['device']['windows'])))
    assert l.driver.boots == 1 and not l.driver.complaints() and not l.device.complaints()


VIOMMU = dict(qemu='11', extra=['-device', 'virtio-iommu-pci,addr=0x1e'], mem=768, smp=2, append='iommu.strict=1 hugepages=%d' % PAGES)
NIC = 'iommu_platform=on,ats=on,disable-legacy=on'


def behind_virtio_iommu(lab, programs):
    """A grant link whose driver VM has a virtio-iommu."""
    kernel = '6.12'
    return link(lab, 'shmem', dict(VIOMMU, programs=programs, files=CANARY, boot_modules=modules(kernel, 'virtio_iommu', 'vfio_iommu_type1')),
                kernel=kernel, net=dict(props=NIC), driver_keys=dict(Grant='viommu'))


def as_vfio(l):
    return bind(l.driver, 'vfio-pci', 'echo 1 >/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts; modprobe vfio_pci;')


def test_virtio_iommu(lab):
    """UPDATEs of 4 KiB become few windows; the end of testpmd takes them away. Other memory is not touched."""
    programs = testpmd()
    l = behind_virtio_iommu(lab, programs)
    l.start_agent()
    fill = Program(l.driver, 'fill %d' % CANARIES)
    dev = as_vfio(l)
    args = '-l 0,1 -m %d' % (2 * PAGES - 16), '--forward-mode=icmpecho --port-topology=loop --stats-period=600'
    run_testpmd(l.driver, programs, dev, *args)
    answered(l, l.device, l.addr_driver)
    g, iommu = grant(l), l.show()['sides']['driver']['iommu']
    v.note('IOTLB: %s; granted: %d KiB in %d ranges, %d windows' % (iommu, g['bytes'] >> 10, len(g['ranges']),
                                                                   len(l.show()['sides']['device']['windows'])))
    assert g['source'] == 'viommu' and g['state'] == 'granted' and g['copied'] == [] and g['bytes'] <= PAGES << 21
    assert iommu['updates'] > 4 * len(l.show()['sides']['device']['windows'])
    before = iommu['updates']
    assert v.ping(l.device, l.addr_driver, 200, 0.01) == 0
    assert l.show()['sides']['driver']['iommu']['updates'] - before < 300
    assert fill.ask()['bad'] == 0
    fill.end()
    l.driver.sh('kill -9 $(pidof dpdk-testpmd)')
    comes(lambda: grant(l)['state'] == 'none', 30)
    assert grant(l)['bytes'] == 0 and not l.device.complaints()
    again(l, lambda: run_testpmd(l.driver, programs, dev, *args))


@pytest.mark.parametrize('node', ['has a processor', 'has none'])
def test_leftover_pages(lab, node):
    """What huge pages leave of the memory device is granted as well: pages of programs on its node's processors are seen in the window, others
    as soon as no memory is left elsewhere. So the how-to wants a node without processors, and more memory than the programs use."""
    kernel = '6.1'
    cpus = ('cpus=0', ',cpus=1') if node == 'has a processor' else ('cpus=0-1', '')
    mem = ['-object', 'memory-backend-memfd,id=mem,size=256M,share=on', '-m', '256M,slots=1,maxmem=4G', '-numa', 'node,nodeid=0,%s,memdev=mem' % cpus[0],
           '-numa', 'node,nodeid=1' + cpus[1], '-object', 'memory-backend-memfd,id=pool,size=%dM,share=on' % POOL,
           '-device', 'pc-dimm,id=dimm0,memdev=pool,node=1']
    # The kernel's driver: its buffers lie elsewhere, and its queues are not served. What is granted is shown all the same.
    l = link(lab, 'shmem', dict(smp=2, mem_args=mem, files=CANARY, append='memhp_default_state=online_movable'), kernel=kernel, driver_qemu='11',
             net=dict(props='disable-legacy=on'), driver_keys=dict(Grant='memory', GrantSize='%dM' % POOL))
    l.start_agent()
    huge = '/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages'
    # All 64 that there is room for are never to be had; so that something is left each time:
    l.driver.sh('echo 56 >' + huge)
    left = POOL - 2 * int(l.driver.sh('cat ' + huge))
    l.up_driver()
    comes(lambda: l.show()['sides']['device']['up'], 30)
    assert [(r['size'], r['what']) for r in grant(l)['ranges'] if r['what'] == 'pool'] == [(POOL * MIB, 'pool')]
    scan = Program(l.device, 'scan %s 512' % bar(l.device))
    some = Program(l.driver, 'fill 32', 'taskset 2')    # CPU 1
    seen = scan.ask()
    v.note('%d MiB of the memory device are left; 32 MiB of canaries: %d words seen' % (left, seen['hits']))
    assert left >= 16 and (seen['hits'] > 0) == (node == 'has a processor'), seen
    if node == 'has none':
        free = int(l.driver.sh("sed -n 's/.*MemFree: *//p' /sys/devices/system/node/node0/meminfo").split()[0]) >> 10
        # Node 0 has not that much any more: the kernel takes what the device has.
        more = Program(l.driver, 'fill %d' % (free + 4))
        seen = scan.ask()
        v.note('%d MiB more, of %d that node 0 had free: %d words seen' % (free + 4, free, seen['hits']))
        assert seen['hits'] > 0, seen
        more.end()
    some.end()
    scan.end()
