# SPDX-License-Identifier: BSD-3-Clause
"""Checked traffic between two guests."""

import re
import time

from machine import VMError, limit, patience


def kv(text):
    """{'a': '1'} from 'a=1 b=2' (the last line of @text that has any)."""
    for line in reversed(text.strip().splitlines()):
        d = dict(w.split('=', 1) for w in line.split() if '=' in w)
        if d:
            return {k: (float(v) if re.fullmatch(r'-?[\d.]+', v) else v) for k, v in d.items()}
    return {}


def ping(vm, addr, count=5, interval=0.2, wait=None):
    """Loss in percent. @wait: seconds that the last answer may take, ample unless told."""
    wait = wait or int(limit(3))
    st, out = vm.status('ping -q -c %d -i %g -W %d %s' % (count, interval, wait, addr), count * (interval + 2) + wait + 10)
    m = re.search(r'(\d+)% packet loss', out)
    if not m:
        raise VMError('%s: ping: %s' % (vm.name, out))
    return int(m.group(1))


def silent(vm, addr, count=1):
    """Nobody answers there."""
    return ping(vm, addr, count, wait=2) == 100


def wait_ping(vm, addr, timeout=20):
    """Seconds until the first answer."""
    t0 = time.time()
    tries = 0
    while True:
        # An answer may take longer than a second; but most come soon, and how soon is of interest.
        tries += 1
        if vm.status('ping -q -c 1 -W %d %s' % (min(1 + tries // 5, 5), addr), 10)[0] == 0:
            return time.time() - t0
        if time.time() - t0 > limit(timeout):
            raise VMError('%s: %s does not answer within %d s' % (vm.name, addr, time.time() - t0))


def bound(vm, port):
    """Wait until a program of @vm listens on UDP port @port."""
    vm.until('grep -qi ":%04X 00000000:0000" /proc/net/udp' % port)


_port = [5100]


def next_port():
    _port[0] += 1
    return _port[0]


def tcp(src, dst, addr, amount='secs=3', timeout=120):
    """A checked TCP stream from @src to @addr of @dst: {'mbps', 'bytes', 'bad'}. @amount 'secs=N' or 'mib=N'."""
    port = next_port()
    rx = dst.spawn('vmtool rx %d' % port, timeout)
    tx = src.spawn('vmtool tx %s %d %s' % (addr, port, amount), timeout)
    tx.result()
    r = kv(rx.result())
    if r.get('bad') or r.get('err'):
        raise VMError('TCP stream %s to %s: %r' % (src.name, dst.name, r))
    return r


def big_segments(src, dst, addr, dev, enough):
    """The frames that @dev of @dst takes in of a TCP stream from @src, its GRO off: {'in_max', 'in_big', 'in'}. A slow guest's congestion
    window takes its time to grow: the stream is a longer one until a frame has more than @enough bytes, or for 30 s."""
    dst.sh('vmtool gro %s 0' % dev)
    for secs in (2, 8, 30):
        sniff = dst.spawn('vmtool sniff %s %g' % (dev, secs + 2 * patience()), 300)
        tcp(src, dst, addr, 'secs=%d' % secs, 300)
        r = kv(sniff.result())
        if r['in_max'] > enough:
            break
    return r


def udp(src, dst, addr, count=2000, size=1400, pps=2000, timeout=120):
    """UDP datagrams with numbers and checksums: {'got', 'lost', 'reordered', 'bad'}."""
    port = next_port()
    rx = dst.spawn('vmtool urx %d %d %g' % (port, count, limit(count / pps * 2 + 10)), timeout)
    bound(dst, port)
    src.sh('vmtool utx %s %d %d %d %d' % (addr, port, count, size, pps), timeout)
    return kv(rx.result())


def transfer(src, dst, addr, mib=64, timeout=300):
    """A file of random bytes; True when its SHA-256 is the same on both sides."""
    port = next_port()
    src.sh('vmtool fill /tmp/out %d' % mib, timeout)
    want = src.spawn('sha256sum /tmp/out', timeout)
    rx = dst.spawn('vmtool recvfile %d /tmp/in' % port, timeout)
    src.sh('vmtool sendfile %s %d /tmp/out' % (addr, port), timeout)
    rx.result()
    got = dst.sh('sha256sum /tmp/in; rm /tmp/in', timeout).split()[0]
    want = want.result().split()[0]
    src.sh('rm /tmp/out')
    return got == want
