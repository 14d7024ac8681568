# SPDX-License-Identifier: BSD-3-Clause
"""A driver VM whose vIOMMU narrows what its device may reach: on a relay link with an ordinary VM, and on a copy link."""

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
    d = lab.daemon
    d.vm('a', 'blue')
    d.vm('b', 'red')
    socks = d.link('ab', 'a', 'b')
    d.start()
    a = lab.vm('a', append=append, nets=[v.Net(socks[0], **NIC)], **VIOMMU)
    b = lab.vm('b', qemu='11', nets=[v.Net(socks[1])])
    v.note('booted in %.1f s' % lab.boot(a, b))
    a.up(A + '/24')
    b.up(B + '/24')
    v.note('first answer after %.1f s' % v.wait_ping(a, B, 30))
    checked_traffic(d, 'ab', name, a, b, A, B)


@kernels(STRICT, LAZY)
def test_copy(lab, name, append):
    """The device VM, of another trust group, sees the pool; what the driver VM has not mapped not even the daemon touches."""
    try:
        link = portlink.PortLink(lab.daemon, 'copy', 'ivshmem', driver=dict(append=append, **VIOMMU), net=NIC)
    except v.Unavailable as e:
        pytest.skip(str(e))
    lab.vms += link.vms
    lab.daemon.start()
    v.note('booted in %.1f s' % lab.boot(*link.vms))
    link.start_agent()
    link.up_driver()
    v.note('first answer after %.1f s' % link.wait())
    assert 'ACCESS_PLATFORM' in link.show()['sides']['driver']['features']
    checked_traffic(lab.daemon, link.name, name, link.driver, link.device, link.addr_driver, link.addr_device)
