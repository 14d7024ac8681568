# SPDX-License-Identifier: BSD-3-Clause
"""The ground of the other VM tests: every kernel boots, answers, resets, on the QEMUs that are here."""

import pytest
import vhostpci_vm as v


@pytest.mark.parametrize('qemu,kernel', [('system', '6.1'), ('system', '6.12'), ('11', '6.1'), ('11', 'backports')])
def test_boot(lab, qemu, kernel):
    vm = lab.vm('m', qemu=qemu, kernel=kernel)
    v.note('%s, kernel %s: booted in %.1f s (%s)' % (vm.qemu.label, vm.kernel.release, vm.start(), vm.accel))
    assert vm.sh('uname -r').strip() == vm.kernel.release
    assert vm.status('exit 3')[0] == 3
    # Commands run side by side; one that hangs is ended and does not hold up the next.
    slow = vm.spawn('sleep 60', timeout=1)
    assert vm.sh('echo quick') == 'quick\n'
    slow.result(check=False)
    assert slow.status == 124
    if qemu == 'system':
        v.note('system_reset: answers again after %.1f s' % vm.reset())
        assert vm.boots == 2
    assert vm.qmp('query-status')['running']
