# SPDX-License-Identifier: BSD-3-Clause
"""A driver VM whose vIOMMU narrows what its device may reach, on a relay link with an ordinary VM."""

import pytest
import vhostpci_vm as v

A, B = '10.1.0.1', '10.1.0.2'

# Guest kernels: what they do with the vIOMMU, and what a miss must then look like.
GUESTS = [
    ('strict', 'intel_iommu=on iommu.strict=1'),
    ('lazy', 'intel_iommu=on iommu.strict=0'),
    ('identity', 'intel_iommu=on iommu=pt'),
]


@pytest.mark.parametrize('name,append', GUESTS, ids=[g[0] for g in GUESTS])
def test_relay(lab, name, append):
    d = lab.daemon
    d.vm('a', 'blue')
    d.vm('b', 'red')
    socks = d.link('ab', 'a', 'b')
    d.start()
    a = lab.vm('a', qemu='11', append=append, extra=['-device', 'intel-iommu,device-iotlb=on,intremap=off'],
               nets=[v.Net(socks[0], props='iommu_platform=on,ats=on,disable-legacy=on')])
    b = lab.vm('b', qemu='11', nets=[v.Net(socks[1])])
    v.note('booted in %.1f s' % lab.boot(a, b))
    a.up(A + '/24')
    b.up(B + '/24')
    v.note('first answer after %.1f s' % v.wait_ping(a, B, 30))
    for src, dst, addr in ((a, b, B), (b, a, A)):
        r = v.tcp(src, dst, addr, 'secs=2')
        assert r['bytes']
        v.note('TCP %.0f Mbit/s, every byte right' % r['mbps'])
    iommu = d.ctl('show', 'ab')['sides']['driver']['iommu']
    v.note('IOTLB: %s' % iommu)
    assert iommu['updates'] > 0
    assert name == 'identity' or iommu['invalidations'] > 0
    a.sh('ip link set eth0 down; ip link set eth0 up')
    a.up(A + '/24')
    v.wait_ping(a, B, 30)
    assert 'broken' not in d.ctl('show', 'ab')['status']
