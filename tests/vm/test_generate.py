# SPDX-License-Identifier: BSD-3-Clause
"""What `vhost-pcictl generate` prints: QEMU is started with exactly that (no guest in it, its firmware is enough) and connects to the link; what it
prints for libvirt holds against libvirt's schema."""
import os
import shutil
import subprocess
import time
import xml.etree.ElementTree as ET

import pytest

import docblocks
import vhostpci_vm as v
from conftest import BUILD, TOP, new_dir
from machine import die_with_parent

PORT = {'Endpoint': 'port'}
QEMU_NS = '{http://libvirt.org/schemas/domain/qemu/1.0}'
MIB = 1 << 20


class Guestless(v.VM):
    """A QEMU whose command line is what was generated, and a monitor of the test's own."""

    def __init__(self, name, dir, qemu, args):
        super().__init__(name, dir, qemu=qemu)
        self._qsock = os.path.join(dir, name + '.test')
        self.log = os.path.join(dir, name + '.log')
        with open(self.log, 'w') as log:
            self.proc = subprocess.Popen(
                qemu.cmd + args + qemu.data + ['-display', 'none', '-vga', 'none', '-qmp', 'unix:%s,server=on,wait=off' % self._qsock],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(os.environ, **qemu.env), preexec_fn=die_with_parent)

    def said(self):
        with open(self.log, errors='replace') as f:
            return f.read()

    def end(self):
        self.proc.kill()
        self.proc.wait()


class Case:
    def __init__(self, mode='relay', qemu='system', link=None, device=None, driver=None, net=None, profile=None, daemon_connects=False):
        self.mode, self.qemu, self.profile = mode, qemu, profile
        self.link, self.net, self.daemon_connects = link or {}, net, daemon_connects
        self.device, self.driver = device, driver


CASES = {
    'relay': Case(link={'Queues': 2}, net={'DriverMAC': '52:54:00:00:0a:01', 'DeviceMAC': '52:54:00:00:0a:02', 'MTU': 9000}),
    'relay-client': Case(daemon_connects=True),
    'copy-ivshmem': Case('copy', device=dict(PORT, Attachment='ivshmem', PoolSize='1G'), driver={'QMP': '{d}/driver,qmp', 'NIC': 'ua-nic'},
                         link={'Queues': 2}),
    'fast-ivshmem': Case('fast', device=dict(PORT, Attachment='ivshmem', QMP='{d}/device.qmp', QMPMode='server',
                                             HotplugBus='w0 w1', PackedRings='yes')),
    'copy-shmem': Case('copy', '11', device=dict(PORT, Attachment='shmem')),
    'grant-swiotlb': Case('grant', device=dict(PORT, Attachment='shmem')),
    'grant-viommu': Case('grant', '11', device=dict(PORT, Attachment='shmem'), driver={'Grant': 'viommu'}),
    'grant-memory': Case('grant', device=dict(PORT, Attachment='ivshmem', QMP='{d}/device.qmp', HotplugBus='w0 w1'),
                         driver={'Grant': 'memory', 'GrantSize': '128M'}),
}
# Both sides of each case, but the driver side knows nothing of the attachment.
SIDES = [('relay', 'driver'), ('relay', 'device'), ('relay-client', 'driver'), ('copy-ivshmem', 'driver'), ('copy-ivshmem', 'device'),
         ('fast-ivshmem', 'driver'), ('fast-ivshmem', 'device'), ('copy-shmem', 'device'), ('grant-swiotlb', 'driver'),
         ('grant-viommu', 'driver'), ('grant-memory', 'driver')]


class Host:
    def __init__(self, case):
        self.dir = new_dir()
        self.daemon = d = v.Daemon(self.dir, BUILD)
        d.vm('a')
        d.vm('b')
        more = {'SocketMode': 'client'} if case.daemon_connects else {}

        def keys(given):
            return dict(more, **{k: x.format(d=self.dir) for k, x in (given or {}).items()})
        device = keys(case.device)
        d.link('a.b-1', 'a', 'b', case.mode, device.pop('Endpoint', 'virtio-net'), keys(case.driver), device, case.net, case.profile,
               **case.link)
        d.start()

    def show(self):
        return self.daemon.ctl('show', 'a.b-1')

    def generate(self, *args):
        return subprocess.run([self.daemon.cli, '--control', self.daemon.control, 'generate', 'a.b-1', *args], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True)

    def args(self, *more):
        """What is printed, as a shell splits it."""
        r = self.generate('--qemu', *more)
        assert r.returncode == 0, r.stderr
        return r.stdout.split()


@pytest.fixture
def host(request):
    h = Host(CASES[request.param])
    yield h
    h.daemon.kill()


def until(what, vm, host):
    end = time.time() + v.limit(30)
    while not what():
        assert vm.proc.poll() is None, 'QEMU ended: ' + vm.said()
        assert time.time() < end, '%s\n%s\n%s' % (host.show(), vm.said(), host.daemon.tail())
        time.sleep(0.1)


def there(host, side, vm):
    """Whether that side of the link has its VMM. A shmem port is there for the daemon only once a guest has taken it; before, its socket is."""
    s = host.show()['sides'][side]
    if s.get('attachment') == 'shmem':
        return {c['label']: c['frontend-open'] for c in vm.qmp('query-chardev')}['vp-a.b-1']
    return s['connected'] if 'connected' in s else s['online']


def reserve(bridges, id):
    """Bytes of prefetchable memory that the firmware has set aside behind the root port."""
    b, = [x for x in bridges if x['qdev_id'] == id]
    r = b['pci_bridge']['bus']['prefetchable_range']
    return r['limit'] - r['base'] + 1


@pytest.fixture
def case(request):
    return CASES[request.node.callspec.params['host']]


def check_nic(vm, case, side):
    nic = '/machine/peripheral/' + ('ua-nic' if 'NIC' in (case.driver or {}) else 'vp-a.b-1-nic')

    def has(name):
        return vm.qmp('qom-get', path=nic, property=name)
    pairs = case.link.get('Queues', 1)
    assert has('type') == 'virtio-net-pci' and has('mq') == (pairs > 1)
    assert has('packed') == bool(case.device and 'PackedRings' in case.device)
    if pairs > 1:
        assert has('vectors') == 2 * pairs + 2
    if not case.net:
        assert has('mac').startswith('02:')
    else:
        assert has('host_mtu') == case.net['MTU'] and has('mac') == case.net['DriverMAC' if side == 'driver' else 'DeviceMAC']
    assert vm.qmp('qom-get', path='/objects/vp-mem', property='share')
    source = (case.driver or {}).get('Grant', 'swiotlb') if case.mode == 'grant' else None
    assert has('iommu_platform') == (source in ('swiotlb', 'viommu')) and has('ats') == (source == 'viommu')


def check_grant(vm, case, host):
    """The channel is connected, the memory device is there, or the IOMMU."""
    source = case.driver['Grant'] if case.driver else 'swiotlb'
    if source == 'swiotlb':
        until(lambda: host.daemon.ctl('grant', 'a.b-1')['channel']['connected'], vm, host)
        assert vm.qmp('query-memory-size-summary')['base-memory'] == 256 * MIB and 'maxmem=4096M' in ' '.join(host.args('--driver'))
    elif source == 'memory':
        dimm, = vm.qmp('query-memory-devices')
        assert dimm['data']['size'] == 128 * MIB and dimm['data']['addr'] >= 4096 * MIB
        assert vm.qmp('qom-get', path='/objects/vp-a.b-1-pool', property='share')
    else:
        assert 'child<intel-iommu>' in [c['type'] for c in vm.qmp('qom-list', path='/machine/peripheral-anon')]


def check_ivshmem(vm, case, host):
    fast = case.mode == 'fast'
    want = dict({'vp-a.b-1-bus': 1024 * MIB if fast else 2048 * MIB}, **({'w0': 512 * MIB, 'w1': 512 * MIB} if fast else {}))

    def bridges():
        return [b for b in vm.qmp('query-pci')[0]['devices'] if 'pci_bridge' in b]
    # Once the firmware has run.
    until(lambda: reserve(bridges(), 'vp-a.b-1-bus') >= want['vp-a.b-1-bus'], vm, host)
    assert {b['qdev_id'] for b in bridges()} == set(want)
    assert all(reserve(bridges(), id) >= size for id, size in want.items())
    assert vm.qmp('qom-get', path='/machine/peripheral/vp-a.b-1-port', property='vectors') == 1 + 2 * case.link.get('Queues', 1)
    if fast:
        # The daemon is at the monitor that the link names: it got there by itself.
        until(lambda: 'QMP %s/device.qmp: connected' % host.dir in host.daemon.tail(1000), vm, host)


@pytest.mark.parametrize('host,side', SIDES, indirect=['host'], ids=['-'.join(x) for x in SIDES])
def test_qemu_takes_it_and_connects(host, side, case):
    try:
        qemu = v.qemu(case.qemu)
    except v.Unavailable as e:
        pytest.skip(str(e))
    more = ['--reconnect-ms'] if qemu.version >= (9, 2) else []
    vm = Guestless(side, host.dir, qemu, host.args('--' + side, '--memory', '256M', '--driver-memory', '512M', *more))
    try:
        until(lambda: there(host, side, vm), vm, host)
        if side == 'driver' or not case.device:
            check_nic(vm, case, side)
            if case.mode == 'grant':
                check_grant(vm, case, host)
        elif case.device['Attachment'] == 'ivshmem':
            check_ivshmem(vm, case, host)
        else:
            assert vm.qmp('qom-get', path='/machine/peripheral/vp-a.b-1-port', property='num_vqs') == 3
    finally:
        vm.end()


@pytest.mark.parametrize('host', ['relay'], indirect=True)
def test_further_links_of_a_vm(host):
    """The machine and its memory come once; slots differ."""
    first, second = host.args('--device'), host.args('--device', '--index', '1')
    assert '-machine' in first and '-m' in first and '-machine' not in second and '-m' not in second
    assert [x for x in second if x in first] == second


def mac(args):
    a, = [a for a in args if a.startswith('virtio-net-pci')]
    return dict(p.split('=') for p in a.split(',')[1:])['mac']


@pytest.mark.parametrize('host', ['relay-client'], indirect=True)
def test_the_guests_of_a_link_differ(host):
    """Each side has an address of its own where none is configured, the same each time: locally administered, of one station."""
    driver, device = mac(host.args('--driver')), mac(host.args('--device'))
    assert driver != device and driver == mac(host.args('--driver', '--index', '1'))
    assert all(int(m[:2], 16) & 3 == 2 for m in (driver, device))


@pytest.mark.parametrize('host', ['fast-ivshmem'], indirect=True)
def test_slots_of_further_links(host):
    numbers = [[dict(p.split('=') for p in a.split(',')[1:])['chassis'] for a in host.args('--device', '--index', i) if 'chassis' in a]
               for i in ('0', '1')]
    assert len(set(numbers[0] + numbers[1])) == 6


@pytest.mark.parametrize('host,side', SIDES, indirect=['host'], ids=['-'.join(x) for x in SIDES])
def test_libvirt(host, side, case):
    if not shutil.which('virt-xml-validate'):
        pytest.skip('virt-xml-validate is not installed (package libvirt-clients)')
    r = host.generate('--libvirt', '--' + side, '--memory', '512M', '--driver-memory', '2G')
    assert r.returncode == 0, r.stderr
    path = os.path.join(host.dir, 'domain.xml')
    with open(path, 'w') as f:
        f.write(r.stdout)
    checked = subprocess.run(['virt-xml-validate', path, 'domain'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert checked.returncode == 0, checked.stdout + r.stdout
    domain = ET.fromstring(r.stdout)
    assert domain.findtext('name') == ('a' if side == 'driver' else 'b') and domain.find('features/acpi') is not None
    command = [a.get('value') for a in domain.iter(QEMU_NS + 'arg')]
    nic, port = domain.find('devices/interface'), domain.find('devices/shmem')
    if side == 'driver' or not case.device:
        assert nic.find('source').get('path').endswith(side + '.sock') and port is None
        assert nic.find('source').get('mode') == ('server' if case.daemon_connects else 'client')
        pairs = case.link.get('Queues', 1)
        assert pairs == 1 or nic.find('driver').get('queues') == str(pairs)
        assert domain.find('memoryBacking/access').get('mode') == 'shared'
        source = (case.driver or {}).get('Grant', 'swiotlb') if case.mode == 'grant' else None
        channel, iommu = domain.find('devices/channel'), domain.find('devices/iommu')
        assert (channel is not None) == (source == 'swiotlb') and (iommu is not None) == (source == 'viommu')
        assert (domain.find('maxMemory') is not None) == (source in ('swiotlb', 'memory'))
        assert (nic.find('driver[@iommu="on"]') is not None) == (source in ('swiotlb', 'viommu'))
        if source == 'swiotlb':
            assert channel.find('target').get('name') == 'org.vhost-pci.grant.a.b-1' and 'swiotlb=force' in r.stderr
            assert channel.find('source').get('path').endswith('a.b-1.grant.sock')
        assert any('pc-dimm' in c for c in command) == (source == 'memory')
    elif case.device['Attachment'] == 'ivshmem':
        assert port.find('server').get('path').endswith('device.sock')
        assert port.find('msi').get('vectors') == str(1 + 2 * int(case.link.get('Queues', 1)))
        windows = [c for c in command if c.startswith('pcie-root-port,')]
        assert [w.split(',')[1] for w in windows] == (['id=w0', 'id=w1'] if case.mode == 'fast' else [])
        assert all('pref64-reserve=2048M' in w for w in windows)
    else:
        assert any('vhost-user-test-device-pci' in c and 'num_vqs=3' in c for c in command)


@pytest.mark.parametrize('host', ['fast-ivshmem'], indirect=True)
def test_the_howto_shows_what_is_printed(host):
    """Every line of the domain in docs/howto.md, in its order."""
    with open(os.path.join(TOP, 'docs/howto.md')) as f:
        shown, = [b.text for _, blocks in docblocks.sections(f.read()) for b in blocks if b.lang == 'xml' and 'ivshmem-doorbell' in b.text]
    said = host.generate('--libvirt', '--device', '--driver-memory', '256M').stdout
    for ours, theirs in ((host.dir + '/a.b-1-device.sock', '/run/vhost-pci/ab.device.sock'), (host.dir + '/device.qmp', '/run/vhost-pci/b.qmp'),
                         ("name='a.b-1'", "name='ab'"), ('vp-a.b-1-qmp', 'vp-ab-qmp')):
        said = said.replace(ours, theirs)
    lines = iter(said.splitlines())
    for line in shown.splitlines():
        assert line.strip() == '…' or line in lines, 'not printed, or not here: ' + line


@pytest.mark.parametrize('host', ['fast-ivshmem'], indirect=True)
def test_what_is_refused(host):
    for args, status, says in ((['--qemu'], 2, '--driver or --device'), (['--driver'], 2, '--qemu or --libvirt'),
                               (['--qemu', '--driver', '--memory', '1000'], 2, 'whole MiB'),
                               (['--qemu', '--driver', '--memory', '18446744073709551615T'], 2, 'whole MiB'),
                               (['--qemu', '--driver', '--index', '99'], 2, 'index'), (['--libvirt', '--qemu', '--driver'], 2, 'not both')):
        r = host.generate(*args)
        assert r.returncode == status and says in r.stderr, (args, r)
    for args in (['--driver', '--memory', '768M'], ['--device', '--driver-memory', '768M']):
        r = host.generate('--qemu', *args)
        assert r.returncode == 1 and 'a power of two (%s), not 768M' % args[1] in r.stderr and not r.stdout, r
    r = subprocess.run([host.daemon.cli, '--control', host.daemon.control, 'generate', 'x', '--qemu', '--driver'], stderr=subprocess.PIPE, text=True)
    assert r.returncode == 1 and 'no link x' in r.stderr
