# SPDX-License-Identifier: BSD-3-Clause
"""The protected view on real VMs: a sealed vhost-pci-fwd joins two driver VMs, and a program's wild store does not arrive."""

import os
import subprocess

import portlink
import pytest
import vhostpci_vm as v

BUILD = os.environ.get('VHOST_PCI_BUILD', os.path.join(v.TOP, 'build'))


def seal_program(where):
    """tests/vm/seal.c, which finds the library as the installed programs do."""
    out = os.path.join(where, 'seal')
    subprocess.run(['cc', '-O2', '-Wall', '-I', os.path.join(v.TOP, 'include'), os.path.join(v.TOP, 'tests/vm/seal.c'), '-o', out, '-pthread',
                    '-L', os.path.join(BUILD, 'lib/vhostpci'), '-lvhostpci', '-Wl,-rpath,/lib/vhostpci'], check=True)
    return out


class Pair:
    """Driver VMs a and b, each with a fast link to a port of d."""

    def __init__(self, lab, qemu, kernel, attachment):
        programs = [(os.path.join(BUILD, 'fwd/vhost-pci-fwd'), '/bin/vhost-pci-fwd'),
                    (os.path.join(BUILD, 'examples/example-wild'), '/bin/wild')]
        # Their RUNPATH names it beside them.
        lib = {'lib/vhostpci/libvhostpci.so.0': (os.path.realpath(os.path.join(BUILD, 'lib/vhostpci/libvhostpci.so.0')), 0o755),
               'bin/seal': (seal_program(lab.dir), 0o755)}
        self.a, self.b = (portlink.guest(lab.daemon, n) for n in 'ab')
        try:
            self.d = portlink.guest(lab.daemon, 'd', device=True, qemu=qemu, kernel=kernel, programs=programs, files=lib)
        except v.Unavailable as e:
            pytest.skip(str(e))
        self.links = [portlink.Link(lab.daemon, n + 'd', vm, self.d, 'fast', attachment, net=1) for n, vm in (('a', self.a), ('b', self.b))]
        self.addr_b = '10.1.0.3'
        lab.daemon.start()
        lab.boot(self.a, self.b, self.d)
        self.a.up('10.1.0.1/24')
        self.b.up(self.addr_b + '/24')

    def ports(self):
        """The devices of the ports ad and bd."""
        names = self.d.sh('cd /sys/class/vhost-pci && grep -H . */name').split()
        return ['/dev/' + n.split('/')[0] for want in ('ad', 'bd') for n in names if n.endswith(':' + want)]

    def keys(self):
        return self.d.status('grep -qw ospke /proc/cpuinfo')[0] == 0


@pytest.mark.parametrize('point', [('system', None, 'ivshmem'), ('11', 'backports', 'shmem')], ids=['system', '11'])
def test_protected(new_lab, point):
    with new_lab() as lab:
        p = Pair(lab, *point)
        if not p.keys():
            pytest.skip('no protection keys in a guest of this machine')
        a, d = p.a, p.d
        ports = p.ports()
        assert len(ports) == 2
        d.sh('(setsid vhost-pci-fwd --protect %s >/run/fwd.log 2>&1 & echo $! >/run/fwd.pid)' % ' '.join(ports))
        try:
            v.wait_ping(a, p.addr_b, 60)
        except v.VMError as e:
            raise v.VMError('%s\n%s' % (e, d.sh('cat /run/fwd.log; dmesg | tail')))
        for src, dst, addr in ((a, p.b, p.addr_b), (p.b, a, '10.1.0.1')):
            r = v.tcp(src, dst, addr, 'mib=8')
            assert r['bytes'] == 8 << 20
        # The seal is in force, and each window has a mapping behind the key: no other.
        assert d.sh('grep -w Seccomp: /proc/$(cat /run/fwd.pid)/status').split()[1] == '2'
        keys = d.sh("awk '/vhost-pci-window/ {w=1} /ProtectionKey/ && w {print $2; w=0}' /proc/$(cat /run/fwd.pid)/smaps").split()
        assert keys and all(k != '0' for k in keys)
        v.note('%d windows behind key %s' % (len(keys), keys[0]))
        d.sh('kill $(cat /run/fwd.pid)')
        d.until('! kill -0 $(cat /run/fwd.pid) 2>/dev/null', 10)

        assert d.sh('seal %s 2>&1; true' % ports[0], 60).strip() == 'ok seal'
        d.until('! fuser -s %s 2>/dev/null' % ports[0], 10)

        # A store outside the gate ends the program at that store; without protection it goes through.
        ping = a.spawn('ping -c 200 -i 0.2 -W 1 %s >/dev/null; true' % p.addr_b, 120)
        status, out = d.status('wild %s 2>&1' % ports[0])
        assert status == 139 and 'a packet from' in out and 'outside the gate' in out and 'went through' not in out, (status, out)
        d.until('! fuser -s %s 2>/dev/null' % ports[0], 10)
        status, out = d.status('wild --no-protect %s 2>&1' % ports[0])
        assert status == 0 and 'went through' in out, (status, out)
        a.sh('kill $(pidof ping)')
        ping.result()
        assert a.alive() and d.sh('dmesg').count('Call Trace') == 0
