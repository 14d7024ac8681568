# SPDX-License-Identifier: BSD-3-Clause
"""Driver VMs and device VMs joined by vhost-pci ports: guest module, agent, stock vhost-net and a tap in the device VM.

    p = PortLink(daemon, 'fast', 'ivshmem')         one link between two VMs of its own

    a = guest(daemon, 'a');  b = guest(daemon, 'b', device=True);  c = guest(daemon, 'c')
    ab, cb = Link(daemon, 'ab', a, b, 'fast', 'ivshmem', net=1), Link(daemon, 'cb', c, b, 'copy', 'ivshmem', net=2)
"""

import os
import subprocess
import sys
import time

import image
import vhostpci_vm as v

sys.path.append(os.path.join(v.TOP, 'tests/vm'))
import guestmod      # noqa: E402

LINK = 'link'


def _built(builddir, target, what):
    # Several test files may run at a time, and Ninja takes no lock.
    with v.Lock('ninja'):
        r = subprocess.run(['ninja', '-C', builddir, target], capture_output=True, text=True)
    if r.returncode:
        raise v.VMError('%s does not build:\n%s' % (what, r.stdout[-2000:]))
    return os.path.join(builddir, target)


def agent_binary(builddir):
    """The statically linked agent, built when it is not."""
    return _built(builddir, 'guest/agent/vhost-pci-agent-static', 'the agent')


def grant_binary(builddir):
    """The statically linked helper of driver VMs that grant, built when it is not."""
    return _built(builddir, 'guest/grant/vhost-pci-grant-static', 'vhost-pci-grant')


# What a driver VM with Grant=swiotlb has beyond any other: all DMA goes through a pool, and its kernel says where that is; its virtio-net
# devices take part in that.
BOUNCING = dict(append='swiotlb=force', maxmem='4G')
BOUNCED = dict(props='iommu_platform=on,disable-legacy=on')

# What a link with Grant=viommu takes: the driver VM has an IOMMU, and its device translates. A kernel's driver, and strict: each buffer
# is mapped for as long as it is in use.
BEHIND_VIOMMU = dict(driver=dict(append='intel_iommu=on iommu.strict=1', extra=['-device', 'intel-iommu,device-iotlb=on,intremap=off']),
                     net=dict(props='iommu_platform=on,ats=on,disable-legacy=on'), driver_keys={'Grant': 'viommu'})

# The helper's log and pid file in the driver VM.
GRANT_LOG, GRANT_PID = '/run/grant.log', '/run/grant.pid'


def module_binary(kernel, builddir):
    """vhost_pci.ko for @kernel, built when its sources have changed. Raises v.Unavailable without headers."""
    try:
        return guestmod.build(kernel, os.path.join(builddir, 'guest-module', kernel.release))[0]
    except AssertionError as e:
        raise v.VMError(str(e))


def guest(daemon, name, group='blue', device=False, kernel=None, grants=False, **kw):
    """A VM of the trust group @group, not started; with @device it has what serves ports. @kw as for v.VM. @grants: grant links to VMs of
    other groups are allowed, and a driver VM has what it needs for them."""
    k = kernel if isinstance(kernel, image.Kernel) else image.kernel(kernel or image.native())
    daemon.vm(name, group, **({'AllowGrant': 'yes'} if grants else {}))
    if grants and not device:
        kw = dict(BOUNCING, **kw)
        kw['files'] = dict(kw.get('files') or {}, **{'bin/vhost-pci-grant': (grant_binary(daemon.builddir), 0o755)})
    if device:
        kw['boot_modules'] = [module_binary(k, daemon.builddir)]
        kw['files'] = dict(kw.get('files') or {}, **{'bin/vhost-pci-agent': (agent_binary(daemon.builddir), 0o755)})
    return v.VM(name, daemon.dir, kernel=k, **kw)


class Addresses:
    """What both ends of the link number @net (1, 2, ...) are called."""

    def __init__(self, net):
        self.addr_driver, self.addr_device, self.tap = '10.%d.0.1' % net, '10.%d.0.2' % net, 'vp%d' % (net - 1)
        self.mac_tap = '52:54:00:0d:%02x:02' % (net - 1)


def agent_files(name):
    """The agent's log and pid file in the device VM."""
    return '/run/agent-%s.log' % name, '/run/agent-%s.pid' % name


def agent_command(name, tap, mac=None, args='', log=None):
    """Shell text that starts the agent for the port of link @name in the background. Without @mac: the tap is there and stays as it is."""
    return 'setsid vhost-pci-agent --port %s --tap %s %s %s >>%s 2>&1 &' % (
        name, tap, '--mac %s --up --wait' % mac if mac else '', args, log or agent_files(name)[0])


class Link(Addresses):
    """The link @name from VM @driver to a port of VM @device, both not started yet.

    @net the third-last byte of its addresses: 10.NET.0.1 is the driver VM, 10.NET.0.2 the device VM's tap vp(NET - 1).
    @mode 'fast', 'copy' or 'grant', @attachment 'ivshmem' or 'shmem', @nic more arguments of v.Net, @port more of v.Port,
    @link more keys of the link's [Link] section, @net_keys, @device_keys and @driver_keys those of [Net], [Device] and [Driver].
    """

    def __init__(self, daemon, name, driver, device, mode, attachment, net=1, pairs=1, mac=None, nic=None, port=None, link=None,
                 net_keys=None, device_keys=None, driver_keys=None):
        super().__init__(net)
        d = daemon.dir
        self.daemon, self.name, self.driver, self.device = daemon, name, driver, device
        self.mode, self.attachment, self.pairs = mode, attachment, pairs
        self.eth = 'eth%d' % sum(isinstance(n, v.Net) for n in driver.nets)
        self.mac = mac or '52:54:00:0d:%02x:01' % (net - 1)
        self.log, self.pid = agent_files(name)
        n = sum(isinstance(p, v.Port) for p in device.nets)
        self.port = v.Port(daemon.path(name + '-device.sock'), attachment, pairs, id='port%d' % n, **(port or {}))
        more = dict(link or {})
        if pairs > 1:
            more['Queues'] = pairs
        socks = daemon.link(name, driver.name, device.name, mode=mode, endpoint='port', net_keys=net_keys, driver_keys=driver_keys,
                            device_keys=dict(self.port.link_keys(d, device.name), **(device_keys or {})), **more)
        device.nets.append(self.port)
        if mode == 'grant' and (driver_keys or {}).get('Grant', 'swiotlb') == 'swiotlb':
            nic = dict(BOUNCED, **(nic or {}))
        if mode == 'grant' and (driver_keys or {}).get('Grant', 'swiotlb') == 'swiotlb':
            driver.nets.append(v.GrantPort(name, daemon.path(name + '.grant.sock')))
        driver.nets.append(v.Net(socks[0], mac=self.mac, queues=pairs, reconnect=1, **(nic or {})))

    def start_agent(self, args='', tap=None, addr=True):
        """Start the agent in the device VM, with @addr give the tap its address. @tap overrides what --tap says."""
        self.device.sh('modprobe tun; modprobe vhost_net; (%s echo $! >%s)' %
                       (agent_command(self.name, tap or self.tap, None if tap else self.mac_tap, args, self.log), self.pid))
        self.device.until('[ -e /sys/class/net/%s ]' % ('lo' if tap else self.tap), 20, 'cat %s; dmesg | tail' % self.log)
        if addr and not tap:
            self.up_device()

    def up_device(self):
        self.device.up(self.addr_device + '/24', self.tap)

    def end_agent(self, sig='TERM'):
        """End the agent by a signal and wait until it is gone."""
        pid = int(self.device.sh('cat %s' % self.pid))
        self.device.sh('kill -%s %d' % (sig, pid))
        self.device.until('! kill -0 %d 2>/dev/null' % pid, 5)

    def agent_runs(self):
        return self.device.status('kill -0 $(cat %s)' % self.pid)[0] == 0

    def agent_log(self):
        return self.device.sh('cat ' + self.log)

    def start_grant(self):
        """Start the helper in the driver VM, where there is no udev to do it."""
        self.driver.sh('modprobe virtio_console; cd /sys/class/virtio-ports; for i in $(seq 100); do p=$(grep -lx org.vhost-pci.grant.%s */name) && break; '
                       'sleep 0.1; done; (setsid vhost-pci-grant --port /dev/${p%%/name} >>%s 2>&1 & echo $! >%s)' %
                       (self.name, GRANT_LOG, GRANT_PID))

    def up_driver(self, **kw):
        self.driver.up(self.addr_driver + '/24', self.eth, **kw)

    def wait(self, timeout=60):
        """Seconds until the driver VM reaches the device VM; the whole story when it does not."""
        t = time.time()
        try:
            v.wait_ping(self.driver, self.addr_device, timeout)
        except v.VMError as e:
            raise v.VMError('%s\n%s' % (e, self.story()))
        return time.time() - t

    def show(self):
        return self.daemon.ctl('show', self.name)

    def story(self):
        out = []
        if self.device.alive():
            try:
                out.append(self.device.sh('tail -n 20 %s; dmesg | tail -n 10; ip addr show %s' % (self.log, self.tap), check=False))
            except v.VMError as e:
                out.append(str(e))
        if self.mode == 'grant' and self.driver.alive():
            out.append(self.driver.sh('tail -n 5 %s; dmesg | tail -n 5' % GRANT_LOG, check=False))
        r = subprocess.run([self.daemon.cli, '--control', self.daemon.control, 'show', self.name], capture_output=True, text=True)
        return '\n'.join(out + [r.stdout + r.stderr, self.daemon.tail(15)])

    def tcp(self, amount='secs=2'):
        """(driver VM to device VM, back), each as vhostpci_vm.tcp()."""
        return (v.tcp(self.driver, self.device, self.addr_device, amount), v.tcp(self.device, self.driver, self.addr_driver, amount))


class PortLink(Link):
    """A link called LINK with both its VMs and their configuration. @daemon is not started here.

    @groups trust groups of driver and device VM, @driver and @device more arguments of v.VM for one of them.
    """

    def __init__(self, daemon, mode, attachment, driver_qemu='system', device_qemu='system', kernel=None, pairs=1, groups=None,
                 names=('left', 'right'), mac='52:54:00:0d:00:01', net=None, link=None, smp=1, mem=256, net_keys=None, driver=None,
                 device=None, port=None, device_keys=None, driver_keys=None):
        groups = groups or (('blue', 'blue') if mode == 'fast' else ('blue', 'red'))
        grants = mode == 'grant'
        a = guest(daemon, names[0], groups[0], kernel=kernel, grants=grants, **dict(dict(qemu=driver_qemu, smp=smp, mem=mem), **(driver or {})))
        b = guest(daemon, names[1], groups[1], device=True, kernel=kernel, grants=grants,
                  **dict(dict(qemu=device_qemu, smp=smp, mem=mem), **(device or {})))
        self.kernel = a.kernel
        super().__init__(daemon, LINK, a, b, mode, attachment, pairs=pairs, mac=mac, nic=net, link=link, net_keys=net_keys, port=port,
                         device_keys=device_keys, driver_keys=driver_keys)
        self.log, self.pid = '/run/agent.log', '/run/agent.pid'
        self.vms = [a, b]
