# SPDX-License-Identifier: BSD-3-Clause
"""The shell blocks of README.md and docs/howto.md, run exactly as they stand, as root, on a host of their own: other mounts and processes, an
empty /etc/vhost-pci and /run/vhost-pci, the programs of this build in PATH."""
import os
import shlex
import subprocess

import pytest

import docblocks
import portlink
import vhostpci_vm as v
from conftest import BUILD, TOP, new_dir

PAGES = ('README.md', 'docs/howto.md')


def page(name):
    with open(os.path.join(TOP, name)) as f:
        return f.read()


CASES = [pytest.param(blocks, id='%s-%s' % (os.path.basename(name), title.replace(' ', '-'))) for name in PAGES
         for title, blocks in docblocks.scripts(page(name))]


def qemu11_dir(d):
    """A directory with QEMU 11.1 under the name that documents use."""
    q = v.qemu('11')
    where = os.path.join(d, 'qemu11')
    os.makedirs(where)
    path = os.path.join(where, 'qemu-system-x86_64')
    with open(path, 'w') as f:
        f.write('#!/bin/sh\nexec env %s %s "$@" %s\n' % (' '.join('%s=%s' % (k, shlex.quote(x)) for k, x in q.env.items()), shlex.join(q.cmd),
                                                       shlex.join(q.data)))
    os.chmod(path, 0o755)
    return where


def run(script, d, timeout):
    prepare = 'for i in /etc/vhost-pci /run/vhost-pci; do mkdir -p $i; mount -t tmpfs none $i; done; ' \
              'ip link set lo up 2>/dev/null; cd "$1"; exec bash "$1/script"'
    with open(os.path.join(d, 'script'), 'w') as f:
        f.write(script)
    path = ':'.join(os.path.join(BUILD, p) for p in ('daemon', 'cli', 'fwd', 'guest/agent')) + ':' + os.environ['PATH']
    log = os.path.join(d, 'blocks.log')
    with open(log, 'w') as f:
        # The end of the first process of a PID namespace is the end of all that the blocks left running.
        r = subprocess.run(['unshare', '--mount', '--pid', '--fork', '--kill-child', '--mount-proc', 'bash', '-c', prepare, 'bash', d], stdout=f,
                           stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=timeout, env=dict(os.environ, PATH=path))
    with open(log, errors='replace') as f:
        return r.returncode, f.read()


@pytest.mark.parametrize('blocks', CASES)
def test_blocks(blocks):
    if os.geteuid():
        pytest.skip('the documents speak to root')
    d = new_dir()
    wants11 = any('qemu=11.1' in b.options for b in blocks)
    try:
        where = qemu11_dir(d) if wants11 else None
    except v.Unavailable as e:
        pytest.skip(str(e))
    rc, said = run(docblocks.to_bash(blocks, where), d, 240)
    assert rc == 0, said[-3000:]


def test_guest_block():
    """What the how-to says for inside of the device VM, in a real one: the two VMs then reach each other."""
    block, = [b.text for _, blocks in docblocks.sections(page('docs/howto.md')) for b in blocks if b.lang == 'guest']
    d = new_dir()
    daemon = v.Daemon(d, BUILD)
    link = portlink.PortLink(daemon, 'copy', 'ivshmem')
    daemon.start()
    try:
        for vm in link.vms:
            vm.start(wait=False)
        for vm in link.vms:
            vm.wait_ready()
        # A distribution's kernel loads these by itself when their device nodes are opened.
        link.device.sh('modprobe tun; modprobe vhost_net')
        link.device.sh('(%s) >/run/block.log 2>&1' % block, timeout=60)
        link.driver.up('10.0.0.2/24')
        v.wait_ping(link.driver, '10.0.0.1', 60)
    finally:
        for vm in link.vms:
            vm.kill()
        daemon.kill()


def test_a_wrong_block_is_found():
    """What the other tests stand on: a block that fails, and one that prints something else, are failures."""
    def blocks(text):
        return docblocks.scripts('## Section\n' + text)[0][1]
    d = new_dir()
    assert run(docblocks.to_bash(blocks('```sh\necho a\n```\n```output\na\n```\n')), d, 60)[0] == 0
    assert run(docblocks.to_bash(blocks('```sh\nfalse\n```\n')), d, 60)[0] != 0
    rc, said = run(docblocks.to_bash(blocks('```sh\necho ab\n```\n```output\nb*\n```\n'), patience=1), d, 60)
    assert rc != 0 and 'not what the page says' in said


def test_each_page_has_something_to_run():
    assert {i.id.split('-')[0] for i in CASES} == {os.path.basename(p) for p in PAGES}
