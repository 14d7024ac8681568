#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Runs real sessions and writes down what a user would see, as Markdown: docs/session.md.

    scripts/vm/session.py [--builddir DIR] [--output FILE]

Two links, one after the other: fast over ivshmem on the system's QEMU, copy over shmem on QEMU 11.1. Nothing in the text is
made up: commands and outputs are those of the run, but for directories and process ids, which differ from run to run.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import portlink                    # noqa: E402
import vhostpci_vm as v            # noqa: E402

SESSIONS = (('fast', 'ivshmem', 'system'), ('copy', 'shmem', '11'))
DEVICE = '/sys/class/vhost-pci/vhost-pci0'


def wrapped(text):
    """A paragraph, as documents are wrapped."""
    return textwrap.fill(text, 100, break_on_hyphens=False, break_long_words=False) + '\n'


class Session:
    def __init__(self, out, dir, builddir, mode, attachment, qemu):
        self.out, self.dir = out, dir
        self.daemon = v.Daemon(dir, builddir)
        self.link = portlink.PortLink(self.daemon, mode, attachment, 'system', qemu)
        self.driver, self.device = self.link.driver, self.link.device

    def clean(self, text):
        text = text.replace(self.dir + '/conf', '/etc/vhost-pci').replace(self.dir, '/run/vhost-pci')
        text = re.sub(r'\bpid \d+', 'pid 4711', text)
        return '\n'.join(x.rstrip() for x in text.rstrip().splitlines())

    def say(self, text):
        self.out.append(wrapped(text))

    def block(self, *lines):
        self.out.append('```\n%s\n```\n' % self.clean('\n'.join(lines)))

    def host(self, *commands):
        lines = []
        for c in commands:
            r = subprocess.run([self.daemon.cli, '--control', self.daemon.control] + c.split()[1:], capture_output=True, text=True)
            lines += ['host$ ' + c, r.stdout + r.stderr]
        self.block(*lines)

    def guest(self, vm, *commands, timeout=60):
        lines = []
        for c in commands:
            lines += ['%s# %s' % (vm.name, c), vm.sh(c, timeout, check=False)]
        self.block(*lines)

    def files(self):
        lines = []
        for f in sorted(os.listdir(self.daemon.conf)):
            with open(os.path.join(self.daemon.conf, f)) as fh:
                lines += ['# ' + f, fh.read().rstrip(), '']
        self.block(*lines)

    def command(self, vm):
        """QEMU's arguments that concern the link."""
        args = vm.command()[len(vm.qemu.cmd):]
        want = [i for i, a in enumerate(args) if re.search(r'memory-backend|vhost-user|ivshmem|pcie-root-port|id=c(n0|port0),', a)]
        return 'qemu-system-x86_64 … ' + ' \\\n    '.join('%s %s' % (args[i - 1], args[i]) for i in want)

    def run(self):
        link, d = self.link, self.daemon
        self.say('## %s over %s' % (link.mode.capitalize(), link.attachment))
        self.say('%s is the driver VM (%s), %s the device VM (%s), both with Linux %s%s.' % (
            self.driver.name, self.driver.qemu.label, self.device.name, self.device.qemu.label, link.kernel.release,
            ', emulated' if self.driver.accel == 'tcg' else ''))
        self.files()
        self.block(self.command(self.driver), '', self.command(self.device))
        d.start()
        for m in link.vms:
            m.start(wait=False)
        for m in link.vms:
            m.wait_ready()
        self.say('Both VMs are up; no agent yet. What the device VM\'s kernel says, and its port:')
        self.guest(self.device, 'dmesg | grep vhost', 'cat %s/link %s/reason' % (DEVICE, DEVICE), 'vhost-pci-agent --status')
        self.host('vhost-pcictl list')
        link.start_agent()
        link.up_driver()
        link.wait()
        self.say('With `vhost-pci-agent --tap %s --mac %s --up --wait` in the device VM, and addresses on both interfaces:' %
                 (link.tap, link.mac_tap))
        self.host('vhost-pcictl list', 'vhost-pcictl show %s' % link.name)
        self.guest(self.device, 'cat ' + link.log, 'cd %s; grep . name attachment link mode epoch regions queues features statistics/*' % DEVICE,
                   'ip addr show ' + link.tap)
        self.guest(self.driver, 'ip addr show eth0', 'ping -c 3 ' + link.addr_device)
        self.say('TCP, every byte checked (`vmtool` is the test guests\' traffic program):')
        lines = []
        for a, b, addr in ((self.driver, self.device, link.addr_device), (self.device, self.driver, link.addr_driver)):
            rx = b.spawn('vmtool rx 5000')
            a.sh('vmtool tx %s 5000 secs=3' % addr)
            lines += ['%s# vmtool rx 5000 &' % b.name, '%s# vmtool tx %s 5000 secs=3' % (a.name, addr), '%s: %s' % (b.name, rx.result())]
        self.block(*lines)
        self.host('vhost-pcictl stats %s' % link.name)
        self.say('The driver VM is killed (SIGKILL of its QEMU), and started again:')
        self.driver.kill()
        self.device.until('[ "$(cat /sys/class/net/%s/carrier)" = 0 ]' % link.tap)
        self.host('vhost-pcictl list')
        self.guest(self.device, 'ip link show ' + link.tap, 'cat %s/link %s/reason' % (DEVICE, DEVICE))
        self.driver.start()
        link.up_driver()
        link.wait()
        self.guest(self.driver, 'ping -c 2 ' + link.addr_device)
        self.guest(self.device, 'tail -n 4 ' + link.log)
        self.say('The daemon\'s log of all this:')
        with open(d.log) as f:
            self.block(f.read())

    def close(self):
        for m in self.link.vms:
            m.kill()
        self.daemon.kill()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--builddir')
    p.add_argument('--output', default=os.path.join(v.TOP, 'docs/session.md'))
    opt = p.parse_args()
    out = ['# A session\n', wrapped('`scripts/vm/session.py` ran this session and wrote it down: two links between real VMs, and '
                                     'what each side shows.')]
    for s in SESSIONS:
        v.progress('%s over %s' % s[:2])
        d = tempfile.mkdtemp(prefix='vp', dir='/tmp')
        session = None
        try:
            session = Session(out, d, opt.builddir, *s)
            session.run()
        except v.Unavailable as e:
            sys.exit('%s over %s: %s' % (s[0], s[1], e))
        finally:
            if session:
                session.close()
            shutil.rmtree(d, ignore_errors=True)
    with open(opt.output, 'w') as f:
        f.write('\n'.join(out))
    v.progress('written: ' + opt.output)


if __name__ == '__main__':
    main()
