# SPDX-License-Identifier: BSD-3-Clause
"""What the VM tests share: the VM library, work directories, logs of what failed."""

import os
import shutil
import sys
import tempfile
import time

import pytest

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [os.path.join(TOP, d) for d in ('scripts/vm', 'conformance')]  # conformance: fakeport.py

import vhostpci_vm as v      # noqa: E402

BUILD = os.path.abspath(os.environ.get('VHOST_PCI_BUILD') or os.path.join(TOP, 'build'))

_dirs = []


def new_dir():
    """A work directory with a short name: the paths of sockets end at 107 bytes."""
    d = tempfile.mkdtemp(prefix='vp', dir='/tmp')
    _dirs.append(d)
    return d


# Class or function, and a part of its point's name. These ask at a further pairing of mode, attachment and QEMU what is asked at the others as
# well. Under emulation, where a VM takes ten times as long, they are left out unless --all is given.
REPEATS = [
    ('test_backend', 'dpdk-testpmd-fast-shmem'),
    ('TestPort', 'fast-shmem'), ('TestPort', 'copy-ivshmem'), ('test_seen_from_outside', ''), ('test_life.py::TestLife', 'fast-shmem'),
    ('TestLinkUp', 'fast-ivshmem-11'), ('TestLinkUp', 'copy-ivshmem'), ('TestPlug', 'ivshmem-11'),
    ('TestMemory', 'fast-ivshmem-11'), ('TestMemory', 'copy-shmem'),
    ('TestTraffic', 'fast-shmem-11'), ('TestTraffic', 'copy-ivshmem-11'), ('TestHub', 'copy-shmem+copy-shmem'),
    ('test_device_vm_killed', 'twenty'), ('test_vsock', 'fast-shmem'), ('test_files', 'thousands'), ('test_files', '-shmem'),
    ('TestGrant', '6.12-11'), ('TestGrant', 'backports-11'), ('TestGrant::test_held', ''), ('TestGrant::test_driver', ''),
    ('TestGrant::test_device', ''), ('TestGrant::test_daemon', ''), ('TestGrant::test_lies', ''), ('TestGrant::test_many', ''),
    ('TestGrant::test_kept', ''), ('test_grant_vfio', ''), ('test_packed', '6.12-11'),
    ('test_kernel_driver_grant', ''), ('test_grant_dpdk', ''), ('TestGrant::test_helpers', ''),
    ('test_boot_from_disk', '11'), ('test_boot_from_disk', 'ovmf'), ('test_scsi', '-shmem'), ('test_unplugged_while_writing', '-11'),
    ('test_migrate', ''), ('test_to_and_fro', ''), ('test_upgrades', 'fast'), ('test_upgrades', '-shmem'),
    ('TestRelay', 'system-11'), ('test_relay.py::TestLife::test_reboot', '11'), ('test_relay.py::TestLife::test_system_reset', '11'),
    ('test_relay.py::TestLife::test_sigkill', '11'), ('test_device_vm_killed_while_writing', 'system'), ('test_back_end_killed', '11'),
    ('TestTraffic', 'fast-ivshmem-11'), ('TestHub', 'fast-ivshmem+fast-ivshmem'),
    ('test_killed_under_traffic', 'split-split'), ('test_killed_under_traffic', 'packed-packed'),
]


def pytest_addoption(parser):
    parser.addoption('--all', action='store_true', help='under emulation too, run the tests that repeat others at a further point of the matrix')


def pytest_collection_modifyitems(config, items):
    if config.getoption('--all') or v.accel() != 'tcg':
        return
    out = [i for i in items if any(a in i.nodeid.split('[')[0] and b in i.nodeid.partition('[')[2] for a, b in REPEATS)]
    config.hook.pytest_deselected(items=out)
    config.left_out = len(out)
    items[:] = [i for i in items if i not in set(out)]


def pytest_terminal_summary(terminalreporter, config):
    if getattr(config, 'left_out', 0):
        terminalreporter.line('%d tests repeat others at a further point of the matrix and are left out under emulation; --all runs them' %
                              config.left_out)


_since = [time.time()]


def pytest_configure(config):
    """v.note(): what a test or a fixture did and how long it took, visible while it runs and without -s."""
    capture = config.pluginmanager.getplugin('capturemanager')

    def note(msg):
        with capture.global_and_fixture_disabled():
            print('\n      %5.1f s  %s' % (time.time() - _since[0], msg), end='', flush=True)
    v.note = note


def pytest_runtest_logstart(nodeid, location):
    # With what its fixtures of a wider scope take, if it is the first that needs them.
    _since[0] = time.time()


@pytest.fixture(autouse=True)
def _progress(request):
    yield
    v.note(request.node.name + ' ')


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    out = yield
    r = out.get_result()
    if not r.failed:
        return
    # At once: the whole report comes after all the tests.
    v.note('%s %s failed: %s' % (item.name, r.when, r.longreprtext[-1500:]))
    # Consoles, QEMU's messages and the daemon's log stay where CI can collect them; their ends are said at once.
    keep = os.path.join(BUILD, 'vm-logs', item.name.replace('/', '_'))
    os.makedirs(keep, exist_ok=True)
    for d in _dirs:
        for f in sorted(os.listdir(d)):
            p = os.path.join(d, f)
            if f.endswith(('.console', '.qemu', '.log')) and os.path.getsize(p):
                shutil.copy(p, keep)
                with open(p, errors='replace') as fh:
                    end = fh.read().splitlines()[-12:]
                v.note('end of %s:\n%s' % (f, '\n'.join('        | ' + x[:160] for x in end)))
    v.note('logs are in ' + keep)


def pytest_unconfigure(config):
    for d in _dirs:
        shutil.rmtree(d, ignore_errors=True)


class Lab:
    """A daemon and VMs that belong together; ended together."""

    def __init__(self):
        self.dir = new_dir()
        self.vms = []
        self.others = []        # daemons beside the first
        self.processes = []
        self._daemon = None

    @property
    def daemon(self):
        if self._daemon is None:
            try:
                self._daemon = v.Daemon(self.dir, BUILD)
            except v.Unavailable as e:
                pytest.fail(str(e))
        return self._daemon

    def vm(self, name, **kw):
        try:
            m = v.VM(name, self.dir, **kw)
        except v.Unavailable as e:
            pytest.skip(str(e))
        self.vms.append(m)
        return m

    def boot(self, *vms):
        """Start all that are down, together, and wait for them."""
        t0 = time.time()
        down = [m for m in vms if not m.alive()]
        for m in down:
            if m.proc is not None:
                m.kill()
            m.start(wait=False)
        for m in down:
            m.wait_ready()
        return time.time() - t0

    def __enter__(self):
        return self

    def __exit__(self, kind, *exc):
        self.close(keep=kind not in (None, pytest.skip.Exception))

    def close(self, keep=False):
        for m in self.vms:
            m.kill()
        for d in self.others + ([self._daemon] if self._daemon else []):
            d.kill()
        for p in self.processes:
            p.kill()
            p.wait()
        # The logs of what ended well would only be in the way of those of a later failure.
        if keep:
            return
        if self.dir in _dirs:
            _dirs.remove(self.dir)
        shutil.rmtree(self.dir, ignore_errors=True)


@pytest.fixture
def lab():
    with Lab() as one:
        yield one


@pytest.fixture(scope='session')
def new_lab():
    """For fixtures with parameters and a wider scope: `with new_lab() as lab`, one for each parameter."""
    return Lab
