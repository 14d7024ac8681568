# SPDX-License-Identifier: BSD-3-Clause
"""A driver VM whose vIOMMU narrows what its device may reach: on a relay link with an ordinary VM, and on a copy link."""

import os
import time

import image
import packages
import portlink
import pytest
import vhostpci_vm as v

A, B = '10.1.0.1', '10.1.0.2'

# Guest kernels: what they do with the vIOMMU, and what a miss must then look like.
STRICT = ('strict', 'intel_iommu=on iommu.strict=1')
LAZY = ('lazy', 'intel_iommu=on iommu.strict=0')
IDENTITY = ('identity', 'intel_iommu=on iommu=pt')

# QEMU 11 for the driver VM: of 7.2 under emulation the IOMMU's device IOTLB was not tried.
VIOMMU = dict(qemu='11', extra=['-device', 'intel-iommu,device-iotlb=on,intremap=off'])
NIC = dict(props='iommu_platform=on,ats=on,disable-legacy=on')


def relay(lab, **driver):
    """The driver VM and its peer on relay link ab, booted."""
    d = lab.daemon
    d.vm('a', 'blue')
    d.vm('b', 'red')
    socks = d.link('ab', 'a', 'b')
    d.start()
    a = lab.vm('a', nets=[v.Net(socks[0], **NIC)], **driver)
    b = lab.vm('b', qemu='11', nets=[v.Net(socks[1])])
    v.note('booted in %.1f s' % lab.boot(a, b))
    b.up(B + '/24')
    return a, b


def copy(lab, **driver):
    """A copy link whose VMs are booted, the agent at work."""
    try:
        link = portlink.PortLink(lab.daemon, 'copy', 'ivshmem', driver=driver, net=NIC)
    except v.Unavailable as e:
        pytest.skip(str(e))
    lab.vms += link.vms
    lab.daemon.start()
    v.note('booted in %.1f s' % lab.boot(*link.vms))
    link.start_agent()
    return link


def kernels(*which):
    return pytest.mark.parametrize('name,append', which, ids=[w[0] for w in which])


def checked_traffic(d, link, name, a, b, addr_a, addr_b):
    """Ping and TCP both ways; the driver VM's NIC goes down and up. The IOTLB has been of use."""
    assert v.ping(a, addr_b, 10, 0.1) == 0
    for src, dst, addr in ((a, b, addr_b), (b, a, addr_a)):
        r = v.tcp(src, dst, addr, 'secs=2')
        assert r['bytes']
        v.note('TCP %.0f Mbit/s, every byte right' % r['mbps'])
    iommu = d.ctl('show', link)['sides']['driver']['iommu']
    v.note('IOTLB: %s' % iommu)
    assert iommu['updates'] > 0
    assert name == 'identity' or iommu['invalidations'] > 0
    a.sh('ip link set eth0 down; ip link set eth0 up')
    a.up(addr_a + '/24')
    v.wait_ping(a, addr_b, 30)
    assert 'broken' not in d.ctl('show', link)['status']


@kernels(STRICT, LAZY, IDENTITY)
def test_relay(lab, name, append):
    a, b = relay(lab, append=append, **VIOMMU)
    a.up(A + '/24')
    v.note('first answer after %.1f s' % v.wait_ping(a, B, 30))
    checked_traffic(lab.daemon, 'ab', name, a, b, A, B)


@kernels(STRICT, LAZY)
def test_copy(lab, name, append):
    """The device VM, of another trust group, sees the pool; what the driver VM has not mapped not even the daemon touches."""
    link = copy(lab, append=append, **VIOMMU)
    link.up_driver()
    v.note('first answer after %.1f s' % link.wait())
    assert 'ACCESS_PLATFORM' in link.show()['sides']['driver']['features']
    checked_traffic(lab.daemon, link.name, name, link.driver, link.device, link.addr_driver, link.addr_device)


# ---- a device that stops, and is started again ---------------------------------------------------------------------------------------

UNBIND = 'cd /sys/bus/virtio/drivers/virtio_net && d=$(ls -d virtio*) && echo $d >unbind && echo $d >bind'


def comes_back(d, link, a, addr_b, up):
    """
    While the device is stopped QEMU says nothing of what its vIOMMU takes back. Translations from before would lead to pages that mean
    something else by now, and queues would break.
    """
    assert v.ping(a, addr_b, 5, 0.1) == 0
    for how in ('unbind', 'unbind', 'reset'):
        a.sh(UNBIND) if how == 'unbind' else a.reset()
        up()
        v.note('%s: first answer after %.1f s' % (how, v.wait_ping(a, addr_b, 30)))
        assert v.ping(a, addr_b, 10, 0.1) == 0
        shown = d.ctl('show', link)
        assert 'broken' not in shown['status'], shown


def test_stopped_relay(lab):
    a, b = relay(lab, append=STRICT[1], **VIOMMU)
    a.up(A + '/24')
    v.wait_ping(a, B, 30)
    comes_back(lab.daemon, 'ab', a, B, lambda: a.up(A + '/24'))


def test_stopped_copy(lab):
    link = copy(lab, append=STRICT[1], **VIOMMU)
    link.up_driver()
    link.wait()
    comes_back(lab.daemon, link.name, link.driver, link.addr_device, link.up_driver)


# ---- DPDK in the driver VM: its pools are mapped once, in huge pages ----------------------------------------------------------------

POOLS = 64  # huge pages
POOLED = dict(VIOMMU, extra=['-device', 'intel-iommu,device-iotlb=on,intremap=off,caching-mode=on'], mem=768, smp=2,
              append='intel_iommu=on iommu.strict=1 hugepages=%d' % POOLS)


def dpdk():
    """Arguments of v.VM that bring testpmd, its drivers and VFIO into a driver VM."""
    try:
        programs = packages.testpmd('librte_mempool_ring', 'librte_net_virtio')
    except v.Unavailable as e:
        pytest.skip(str(e))
    return dict(POOLED, programs=programs, boot_modules=[image.kernel('6.1').find('vfio_iommu_type1')])


def answer_pings(a, programs):
    """The NIC is taken from the kernel and given to testpmd, which answers whatever is asked of it."""
    dev = os.path.basename(a.sh('readlink -f /sys/class/net/eth0/device/..').strip())
    a.sh('echo 1 >/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts; modprobe vfio_pci; mkdir -p /dev/hugepages /var/run; '
         'mount -t hugetlbfs none /dev/hugepages; cd /sys/bus/pci/devices/%s && echo vfio-pci >driver_override && '
         'echo %s >driver/unbind && echo %s >/sys/bus/pci/drivers_probe && ls -d /sys/bus/pci/drivers/vfio-pci/%s' % (dev, dev, dev, dev))
    a.sh('chmod 755 / /pmd; (setsid dpdk-testpmd -l 0,1 -a %s -m %d --no-telemetry %s -- --forward-mode=icmpecho --auto-start --nb-cores=1 '
         '--port-topology=loop --total-num-mbufs=4096 --stats-period=600 >/run/testpmd.log 2>&1 &)' %
         (dev, 2 * POOLS - 16, packages.testpmd_drivers(programs)))


def pooled(d, link, a, b, addr_a):
    """Pings of the peer, answered out of pools: the IOTLB holds them, and asks for nothing more."""
    try:
        v.wait_ping(b, addr_a, 60)
    except v.VMError as e:
        raise v.VMError('%s\n%s\n%s' % (e, a.sh('tail -n 30 /run/testpmd.log; dmesg | tail -n 5', check=False), d.tail()))
    iommu = lambda: d.ctl('show', link)['sides']['driver']['iommu']
    lost = v.ping(b, addr_a, 200, 0.01)
    assert lost == 0, '%s\n%s\n%s' % (lost, d.ctl('show', link), d.tail())
    before = iommu()
    lost = v.ping(b, addr_a, 200, 0.01)
    assert lost == 0, '%s\n%s\n%s' % (lost, d.ctl('show', link), d.tail())
    out = b.sh('ping -q -c 20 -i 0.05 -s 1400 ' + addr_a)
    assert ' 0% packet loss' in out, out
    v.note('IOTLB: %s, then %s' % (before, iommu()))
    assert before['updates'] > 0 and iommu()['updates'] - before['updates'] < 10
    assert 'broken' not in d.ctl('show', link)['status']


def test_dpdk_relay(lab):
    driver = dpdk()
    a, b = relay(lab, **driver)
    answer_pings(a, driver['programs'])
    pooled(lab.daemon, 'ab', a, b, A)


def test_dpdk_copy(lab):
    driver = dpdk()
    link = copy(lab, **driver)
    answer_pings(link.driver, driver['programs'])
    pooled(lab.daemon, link.name, link.driver, link.device, link.addr_driver)


# ---- and the device VM reaches just those pages: Grant=viommu ---------------------------------------------------------------------------


def granted(lab, **driver):
    """A grant link between trust groups whose VMs are booted, the agent at work."""
    try:
        link = portlink.PortLink(lab.daemon, 'grant', 'shmem', device_qemu='11', driver=driver, net=NIC, driver_keys={'Grant': 'viommu'})
    except v.Unavailable as e:
        pytest.skip(str(e))
    lab.vms += link.vms
    lab.daemon.start()
    v.note('booted in %.1f s' % lab.boot(*link.vms))
    link.start_agent()
    return link


def comes(what, seconds):
    end = time.monotonic() + v.limit(seconds)
    while not what():
        assert time.monotonic() < end, 'it did not come'
        time.sleep(0.2)


def grant(link):
    return link.show()['sides']['driver']['grant']


def test_dpdk_grant(lab):
    """vhost-net in the device VM asks for what it misses; nothing else is there; the end of testpmd takes it away."""
    driver = dpdk()
    link = granted(lab, **driver)
    answer_pings(link.driver, driver['programs'])
    try:
        pooled(lab.daemon, link.name, link.driver, link.device, link.addr_driver)
    except v.VMError as e:
        raise v.VMError('%s\n%s' % (e, link.story()))
    g = grant(link)
    v.note('granted: %d KiB in %d ranges' % (g['bytes'] >> 10, len(g['ranges'])))
    assert g['source'] == 'viommu' and g['state'] == 'granted' and g['bytes'] <= POOLS << 21
    assert all(r['size'] % (2 << 20) == 0 for r in g['ranges'])
    link.driver.sh('kill -9 $(pidof dpdk-testpmd)')
    comes(lambda: grant(link)['state'] == 'none', 30)
    assert grant(link)['bytes'] == 0


@kernels(STRICT, LAZY)
def test_kernel_driver_grant(lab, name, append):
    """A kernel's driver maps each buffer for itself, to be read or to be written: its queues are copied, and the link says so."""
    link = granted(lab, append=append, **VIOMMU)
    link.up_driver()
    v.note('first answer after %.1f s' % link.wait())
    checked_traffic(lab.daemon, link.name, name, link.driver, link.device, link.addr_driver, link.addr_device)
    comes(lambda: grant(link)['state'] == 'copied', 30)
    g = grant(link)
    assert g['copied'] == [0, 1] and g['bytes'] == 0 and [r['what'] for r in g['ranges']] == ['copy'], g
    v.note(g['message'])
    assert not link.device.complaints()
