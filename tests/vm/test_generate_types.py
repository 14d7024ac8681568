# SPDX-License-Identifier: BSD-3-Clause
"""What `vhost-pcictl generate` prints for links of other types than net: the driver side is a device of that type, which QEMU connects to the
link, and a port has as many vectors as the daemon demands. QEMU runs no guest, and no firmware either."""
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET

import pytest

import vhostpci_vm as v
from test_generate import QEMU_NS, Case, Guestless, Host, there, until

# QEMU says this of the devices whose config space it makes itself.
USUAL = re.compile('.*warning: vhost-user backend supports VHOST_USER_PROTOCOL_F_CONFIG but QEMU does not|.*info: QEMU waiting for connection')


class Type(Case):
    """@queues virtqueues, @model of the driver VM, @props that it has to have, @driver_qemu that has it."""

    def __init__(self, name, queues, model, props, profile=None, n=1, attachment='ivshmem', driver_qemu='system', **kw):
        device = {'Endpoint': 'port', 'Attachment': attachment}
        super().__init__('copy', '11' if attachment == 'shmem' else 'system', device=device, link={'Type': name, 'Queues': n}, profile=profile, **kw)
        self.queues, self.model, self.props, self.driver_qemu = queues, model, props, driver_qemu


def disk(**kw):
    return Type('blk', 2, 'vhost-user-blk-pci', {'num-queues': 2}, {'Capacity': '64M'}, n=2, **kw)


def files(**kw):
    return Type('fs', 4, 'vhost-user-fs-pci', {'num-request-queues': 3, 'tag': 'ho,me'}, {'Tag': 'ho,me'}, n=3, **kw)


def scsi(**kw):
    return Type('scsi', 3, 'vhost-user-scsi-pci', {'num_queues': 1}, **kw)


def generic(**kw):
    return Type('25', 2, 'vhost-user-test-device-pci', {'virtio-id': 25, 'num_vqs': 2}, {'Features': '0x0'}, n=2, driver_qemu='11', **kw)


CASES = {
    'blk': disk(),
    'blk-shmem': disk(attachment='shmem'),
    'blk-client': disk(daemon_connects=True),
    'fs': files(),
    'fs-11': files(driver_qemu='11'),
    'fs-shmem': files(attachment='shmem'),
    'fs-client': files(daemon_connects=True),
    'fs-untagged': Type('fs', 2, 'vhost-user-fs-pci', {'num-request-queues': 1, 'tag': 'a.b-1'}),
    'scsi': scsi(),
    'scsi-11': scsi(driver_qemu='11'),
    'scsi-shmem': scsi(attachment='shmem'),
    'vsock': Type('vsock', 2, 'vhost-user-vsock-pci', {}, {'CID': 42}),
    'vsock-11': Type('vsock', 2, 'vhost-user-vsock-pci', {}, {'CID': 42}, driver_qemu='11'),
    'rng': Type('4', 1, 'vhost-user-rng-pci', {}, {'Features': '0x0'}),
    'rng-two-queues': Type('4', 2, 'vhost-user-test-device-pci', {'virtio-id': 4, 'num_vqs': 2}, {'Features': '0x0'}, n=2, driver_qemu='11'),
    'any': generic(),
    'any-client': generic(daemon_connects=True),
}
# The driver side knows nothing of the attachment.
DRIVERS = [n for n in CASES if not n.endswith('-shmem')]
DEVICES = ['blk', 'blk-shmem', 'fs', 'fs-shmem', 'scsi', 'scsi-shmem', 'vsock', 'rng', 'any']


def one_host(case):
    h = Host(case)
    yield h
    h.daemon.kill()


@pytest.fixture
def host(request):
    yield from one_host(CASES[request.param])


@pytest.fixture
def case(request):
    return CASES[request.node.callspec.params['host']]


def start(host, side, name):
    try:
        qemu = v.qemu(name)
    except v.Unavailable as e:
        pytest.skip(str(e))
    more = ['--reconnect-ms'] if qemu.version >= (9, 2) else []
    return Guestless(side, host.dir, qemu, host.args('--' + side, '--memory', '128M', *more) + ['-S'])


@pytest.mark.parametrize('host', DRIVERS, indirect=True)
def test_driver(host, case):
    vm = start(host, 'driver', case.driver_qemu)
    try:
        until(lambda: there(host, 'driver', vm), vm, host)
        device = '/machine/peripheral/vp-a.b-1-dev'
        assert vm.qmp('qom-get', path=device, property='type') == case.model
        assert {p: vm.qmp('qom-get', path=device, property=p) for p in case.props} == case.props
        assert vm.qmp('qom-get', path='/objects/vp-mem', property='share')
        # The session that is there is the first, and QEMU has nothing to complain of.
        side = host.show()['sides']['driver']
        assert side['connected'] and side['sessions'] == 1, side
        assert [x for x in vm.said().splitlines() if not USUAL.match(x)] == []
    finally:
        vm.end()


@pytest.mark.parametrize('host', DEVICES, indirect=True)
def test_device(host, case):
    vm = start(host, 'device', case.qemu)
    try:
        until(lambda: there(host, 'device', vm), vm, host)
        shmem = case.device['Attachment'] == 'shmem'
        has = vm.qmp('qom-get', path='/machine/peripheral/vp-a.b-1-port', property='num_vqs' if shmem else 'vectors')
        assert has == 1 + case.queues
        if not shmem:
            assert re.search(r'it has to have vectors=%d\b' % has, host.daemon.tail(1000))
    finally:
        vm.end()


@pytest.mark.parametrize('host', ['blk', 'fs', 'scsi', 'vsock', 'rng', 'any'], indirect=True)
def test_what_qemu_does_not_tell(host, case):
    """Without KVM no vectors; and a disk whose back-end does not offer it has no config-wce= that could be read."""
    device, = [a.split(',') for a in host.args('--driver', '--tcg') if a.startswith(case.model)]
    assert 'vectors=0' in device and ('config-wce=off' in device) == (case.link['Type'] == 'blk')


@pytest.mark.parametrize('host', ['blk', 'blk-shmem', 'fs', 'fs-untagged', 'scsi', 'scsi-shmem', 'vsock', 'any'], indirect=True)
def test_libvirt_device(host, case):
    domain = valid(host, '--device')
    if case.device['Attachment'] == 'ivshmem':
        assert domain.find('devices/shmem/msi').get('vectors') == str(1 + case.queues)
    else:
        assert any('num_vqs=%d,' % (1 + case.queues) in a.get('value') for a in domain.iter(QEMU_NS + 'arg'))


def valid(host, *args):
    """The domain that is printed, once libvirt's schema has taken it."""
    if not shutil.which('virt-xml-validate'):
        pytest.skip('virt-xml-validate is not installed (package libvirt-clients)')
    r = host.generate('--libvirt', *args)
    assert r.returncode == 0, r.stderr
    path = os.path.join(host.dir, 'domain.xml')
    with open(path, 'w') as f:
        f.write(r.stdout)
    checked = subprocess.run(['virt-xml-validate', path, 'domain'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert checked.returncode == 0, checked.stdout + r.stdout
    return ET.fromstring(r.stdout)


def overridden(domain):
    """{alias: {property: value}}"""
    return {d.get('alias'): {p.get('name'): p.get('value') for p in d.iter(QEMU_NS + 'property')} for d in domain.iter(QEMU_NS + 'device')}


@pytest.mark.parametrize('host', ['blk'], indirect=True)
def test_libvirt_disk(host):
    domain = valid(host, '--driver', '--tcg', '--index', '1')
    disk = domain.find('devices/disk')
    assert disk.get('type') == 'vhostuser' and disk.find('source').get('path').endswith('driver.sock')
    assert disk.find('driver').get('queues') == '2' and disk.find('target').get('dev') == 'vdb'
    assert domain.find('devices/interface') is None and domain.find('memoryBacking/access').get('mode') == 'shared'
    assert overridden(domain) == {'virtio-disk1': {'vectors': '0', 'config-wce': 'false'}}


@pytest.mark.parametrize('host', ['fs'], indirect=True)
def test_libvirt_filesystem(host):
    domain = valid(host, '--driver')
    fs = domain.find('devices/filesystem')
    assert fs.find('driver').get('type') == 'virtiofs' and fs.find('source').get('socket').endswith('driver.sock')
    assert fs.find('target').get('dir') == 'ho,me' and overridden(domain) == {'fs0': {'num-request-queues': '3'}}


@pytest.mark.parametrize('host', ['scsi', 'vsock', 'rng', 'any', 'blk-client', 'fs-client'], indirect=True)
def test_libvirt_has_no_words(host, case):
    r = host.generate('--libvirt', '--driver')
    says = 'SocketMode=client' if case.daemon_connects else 'has no words for a device of type ' + case.link['Type']
    assert r.returncode == 1 and not r.stdout and says in r.stderr and '--qemu' in r.stderr


def test_a_backend_on_the_host_is_no_vm():
    case = Case('copy', device={'Endpoint': 'vhost-user'}, link={'Type': 'blk'}, profile={'Capacity': '64M'})
    for host in one_host(case):
        r = host.generate('--qemu', '--device')
        assert r.returncode == 1 and not r.stdout and 'a back-end on the host (Endpoint=vhost-user)' in r.stderr
        assert any(a.startswith('vhost-user-blk-pci') for a in host.args('--driver'))
