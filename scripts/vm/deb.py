# SPDX-License-Identifier: BSD-3-Clause
"""Debian packages of any suite, fetched and unpacked without installing them.

A private apt (own lists, own state, no root) for each suite, with the mirror that the host's apt is configured with.
Everything is cached under ${VHOST_PCI_CACHE:-/var/cache/vhost-pci}; a second call costs nothing.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time

CODENAMES = ('bullseye', 'bookworm', 'trixie', 'forky', 'sid', 'stable', 'oldstable', 'testing', 'unstable')


class Unavailable(Exception):
    """Something that this machine can't provide; the message says what and why."""


def progress(msg):
    print('  [%s] %s' % (time.strftime('%H:%M:%S'), msg), file=sys.stderr, flush=True)


def cache_dir():
    """The cache; when the system-wide one is not writable, the user's own."""
    d = os.environ.get('VHOST_PCI_CACHE')
    if d:
        os.makedirs(d, exist_ok=True)
        return d
    d = '/var/cache/vhost-pci'
    try:
        os.makedirs(d, exist_ok=True)
        if os.access(d, os.W_OK):
            return d
    except PermissionError:
        pass
    d = os.path.join(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'vhost-pci')
    os.makedirs(d, exist_ok=True)
    return d


class Lock:
    """One maker of a cached thing at a time, across processes."""

    def __init__(self, name):
        self.path = os.path.join(cache_dir(), '.%s.lock' % name)

    def __enter__(self):
        self.f = open(self.path, 'w')
        fcntl.flock(self.f, fcntl.LOCK_EX)

    def __exit__(self, *exc):
        self.f.close()


def mirrors():
    """(base address, security address or None) from apt's own configuration."""
    def ask():
        r = subprocess.run(['apt-get', 'indextargets', '--format', '$(RELEASE)|$(REPO_URI)|$(ORIGIN)',
                            'Identifier: Packages'], capture_output=True, text=True)
        base = sec = None
        for line in r.stdout.splitlines():
            release, uri, origin = (line.split('|') + ['', ''])[:3]
            if origin != 'Debian':
                continue
            if release in CODENAMES:
                base = base or uri
            elif release.endswith('-security'):
                sec = sec or uri
        return base, sec
    try:
        base, sec = ask()
        if not base:
            # apt names only what it has fetched: a fresh container has fetched nothing yet.
            subprocess.run((['sudo', '-n'] if os.getuid() else []) + ['apt-get', '-q', 'update'], stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
            base, sec = ask()
    except FileNotFoundError:
        raise Unavailable('no apt-get here, so Debian packages cannot be fetched')
    if not base:
        raise Unavailable("apt's configuration names no Debian mirror")
    return base, sec


class Apt:
    """A private apt for one suite (bookworm, trixie, trixie-backports)."""

    def __init__(self, suite):
        self.suite = suite
        self.dir = os.path.join(cache_dir(), 'apt', suite)
        self.conf = os.path.join(self.dir, 'apt.conf')

    def setup(self):
        stamp = os.path.join(self.dir, 'updated')
        if os.path.exists(stamp) and time.time() - os.stat(stamp).st_mtime < 86400:
            return
        base, sec = mirrors()
        code = self.suite.replace('-backports', '')
        keys = '/usr/share/keyrings/debian-archive-keyring.gpg'
        opt = '[arch=amd64%s]' % (' signed-by=' + keys if os.path.exists(keys) else '')
        lines = ['deb %s %s %s main' % (opt, base, code), 'deb %s %s %s-updates main' % (opt, base, code)]
        if sec:
            lines.append('deb %s %s %s-security main' % (opt, sec, code))
        if self.suite != code:
            lines.append('deb %s %s %s main' % (opt, base, self.suite))
        for d in ('state/lists/partial', 'cache/archives/partial'):
            os.makedirs(os.path.join(self.dir, d), exist_ok=True)
        with open(os.path.join(self.dir, 'sources.list'), 'w') as f:
            f.write('\n'.join(lines) + '\n')
        open(os.path.join(self.dir, 'status'), 'a').close()
        with open(self.conf, 'w') as f:
            for k, v in (('Dir::State', 'state'), ('Dir::State::status', 'status'), ('Dir::Cache', 'cache'),
                         ('Dir::Etc::sourcelist', 'sources.list')):
                f.write('%s "%s";\n' % (k, os.path.join(self.dir, v)))
            f.write('Dir::Etc::sourceparts "/dev/null";\nDir::Etc::preferencesparts "/dev/null";\n'
                    'Dir::Etc::preferences "/dev/null";\nAPT::Architecture "amd64";\nAcquire::Languages "none";\n'
                    'APT::Sandbox::User "root";\nAPT::Update::Post-Invoke "";\n')
            # Backports rank below everything else unless asked for; -security must not be outranked.
            if self.suite != code:
                f.write('APT::Default-Release "%s";\n' % self.suite)
        progress('fetching the package lists of %s' % self.suite)
        r = self.run('apt-get', '-q', 'update')
        if r.returncode:
            raise Unavailable('package lists of %s: %s' % (self.suite, r.stderr.strip()[-300:]))
        open(stamp, 'w').close()

    def run(self, *cmd, cwd=None):
        return subprocess.run(cmd, capture_output=True, text=True, cwd=cwd,
                              env=dict(os.environ, APT_CONFIG=self.conf, LC_ALL='C'))

    def show(self, package, field, default=None):
        r = self.run('apt-cache', 'show', '--no-all-versions', package)
        m = re.search(r'^%s: (.*)$' % field, r.stdout, re.M)
        if not m and r.stdout and default is not None:
            return default
        if not m:
            raise Unavailable('%s has no package %s' % (self.suite, package))
        return m.group(1)

    def follow(self, package, pattern):
        """@package and all it depends on, directly or not, whose names match @pattern (metapackages first)."""
        out, todo = [], [package]
        while todo:
            p = todo.pop(0)
            if p in out:
                continue
            out.append(p)
            for d in re.split(r'[,|]', self.show(p, 'Depends', '')):
                d = d.split()
                if d and re.match(pattern, d[0].split(':')[0]):
                    todo.append(d[0].split(':')[0])
        return out

    def unpack(self, packages, into):
        """Fetch @packages and unpack them all below the directory @into (made anew)."""
        tmp = into + '.tmp'
        shutil.rmtree(tmp, ignore_errors=True)
        os.makedirs(tmp + '/debs')
        progress('fetching %s (%s)' % (' '.join(packages), self.suite))
        r = self.run('apt-get', '-q', 'download', *packages, cwd=tmp + '/debs')
        if r.returncode:
            raise Unavailable('cannot fetch %s: %s' % (' '.join(packages), r.stderr.strip()[-300:]))
        for d in sorted(os.listdir(tmp + '/debs')):
            subprocess.run(['dpkg-deb', '-x', os.path.join(tmp, 'debs', d), tmp + '/root'], check=True)
        shutil.rmtree(into, ignore_errors=True)
        os.rename(tmp + '/root', into)
        shutil.rmtree(tmp)
