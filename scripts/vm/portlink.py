# SPDX-License-Identifier: BSD-3-Clause
"""A driver VM and a device VM joined by a vhost-pci port: guest module, agent, stock vhost-net and a tap in the device VM."""

import os
import subprocess
import sys
import time

import image
import vhostpci_vm as v

sys.path.append(os.path.join(v.TOP, 'tests/vm'))
import guestmod      # noqa: E402

LINK = 'link'


def agent_binary(builddir):
    """The statically linked agent, built when it is not."""
    r = subprocess.run(['ninja', '-C', builddir, 'guest/agent/vhost-pci-agent-static'], capture_output=True, text=True)
    if r.returncode:
        raise v.VMError('the agent does not build:\n' + r.stdout[-2000:])
    return os.path.join(builddir, 'guest/agent/vhost-pci-agent-static')


def module_binary(kernel, builddir):
    """vhost_pci.ko for @kernel, built when its sources have changed. Raises v.Unavailable without headers."""
    try:
        return guestmod.build(kernel, os.path.join(builddir, 'guest-module', kernel.release))[0]
    except AssertionError as e:
        raise v.VMError(str(e))


class PortLink:
    """Both VMs and the link's configuration; nothing runs yet. @daemon is not started here.

    @mode 'fast' or 'copy', @attachment 'ivshmem' or 'shmem', @groups trust groups of driver and device VM.
    """

    def __init__(self, daemon, mode, attachment, driver_qemu='system', device_qemu='system', kernel=None, pairs=1, groups=None,
                 names=('left', 'right'), mac='52:54:00:0d:00:01', net=None, link=None, smp=1, mem=256):
        d = daemon.dir
        self.daemon, self.mode, self.attachment = daemon, mode, attachment
        self.addr_driver, self.addr_device, self.tap = '10.1.0.1', '10.1.0.2', 'vp0'
        self.kernel = kernel if isinstance(kernel, image.Kernel) else image.kernel(kernel or image.native())
        module = module_binary(self.kernel, daemon.builddir)
        agent = agent_binary(daemon.builddir)
        groups = groups or (('blue', 'blue') if mode == 'fast' else ('blue', 'red'))
        for n, g in zip(names, groups):
            daemon.vm(n, g)
        self.port = v.Port(os.path.join(d, LINK + '-device.sock'), attachment, pairs)
        more = dict(link or {})
        if pairs > 1:
            more['Queues'] = pairs
        socks = daemon.link(LINK, *names, mode=mode, endpoint='port', device_keys=self.port.link_keys(d, names[1]), **more)
        self.driver = v.VM(names[0], d, qemu=driver_qemu, kernel=self.kernel, smp=smp, mem=mem,
                           nets=[v.Net(socks[0], mac=mac, queues=pairs, reconnect=1, **(net or {}))])
        self.device = v.VM(names[1], d, qemu=device_qemu, kernel=self.kernel, smp=smp, mem=mem, nets=[self.port],
                           boot_modules=[module], files={'bin/vhost-pci-agent': (agent, 0o755)})
        self.vms = [self.driver, self.device]

    def start_agent(self, args=''):
        """Start the agent in the device VM, give the tap its address."""
        self.device.sh('modprobe tun; modprobe vhost_net; (setsid vhost-pci-agent --tap %s --mac 52:54:00:0d:00:02 --up --wait %s >>/run/agent.log 2>&1 & '
                       'echo $! >/run/agent.pid); for i in $(seq 200); do [ -e /sys/class/net/%s ] && exit 0; sleep 0.1; done; '
                       'cat /run/agent.log; dmesg | tail; exit 1' % (self.tap, args, self.tap), 60)
        self.device.up(self.addr_device + '/24', self.tap)

    def end_agent(self, sig='TERM'):
        self.device.sh('killall -%s vhost-pci-agent; for i in $(seq 50); do pidof vhost-pci-agent >/dev/null || exit 0; sleep 0.1; done; '
                       'exit 1' % sig)

    def up_driver(self):
        self.driver.up(self.addr_driver + '/24')

    def wait(self, timeout=60):
        """Seconds until the driver VM reaches the device VM; the whole story when it does not."""
        t = time.time()
        try:
            v.wait_ping(self.driver, self.addr_device, timeout)
        except v.VMError as e:
            raise v.VMError('%s\n%s' % (e, self.story()))
        return time.time() - t

    def story(self):
        out = []
        if self.device.alive():
            try:
                out.append(self.device.sh('tail -n 20 /run/agent.log; dmesg | tail -n 10; ip addr show %s' % self.tap, check=False))
            except v.VMError as e:
                out.append(str(e))
        r = subprocess.run([self.daemon.cli, '--control', self.daemon.control, 'show', LINK], capture_output=True, text=True)
        return '\n'.join(out + [r.stdout + r.stderr, self.daemon.tail(15)])

    def tcp(self, amount='secs=2'):
        """(driver VM to device VM, back), each as vhostpci_vm.tcp()."""
        return (v.tcp(self.driver, self.device, self.addr_device, amount), v.tcp(self.device, self.driver, self.addr_driver, amount))
