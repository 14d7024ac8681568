#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""What scripts/check says of tests that fail, pass at the second attempt, hang, or are not reached. Each on small tests of its own.

usage: check_check.py SOURCE_ROOT
"""
import contextlib
import importlib.machinery
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

FLAKY = '''
import os
def test_well(): pass
def test_flaky():
    if not os.path.exists(%r):
        open(%r, 'w').close()
        assert 0, 'the first time'
'''
WRONG = 'def test_well(): pass\ndef test_wrong(): assert 0, "as ever"\n'
HANGS = 'import time\ndef test_well(): pass\ndef test_hangs(): time.sleep(100)\ndef test_not_reached(): pass\n'
MESON = '''project('x')
py = find_program('/usr/bin/python3')
test('well', py, args: ['-c', 'pass'], suite: 'unit')
test('wrong', py, args: ['-c', 'raise SystemExit(1)'], suite: 'unit', is_parallel: false)
test('hangs', py, args: ['-c', 'import time; time.sleep(100)'], suite: 'unit', is_parallel: false, priority: -1)
test('not_reached', py, args: ['-c', 'pass'], suite: 'unit', is_parallel: false, priority: -2)
'''


def check(root, tmp, *args):
    """scripts/check as a module that has read its arguments and has an hour."""
    loader = importlib.machinery.SourceFileLoader('check', os.path.join(root, 'scripts/check'))
    m = importlib.util.module_from_spec(importlib.util.spec_from_loader('check', loader))
    loader.exec_module(m)
    for s in m.STAGES:
        setattr(m, 'stage_' + s, lambda: None)
    argv, sys.argv = sys.argv, ['check', '--builddir', tmp, *args]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            m.main()
    finally:
        sys.argv = argv
    del m.failed[:], m.second[:], m.stage_times[:]
    return m


def end(m, *args):
    """What main() prints, and its status, with stages that were replaced."""
    argv, sys.argv = sys.argv, ['check', '--builddir', m.opt.builddir, *args]
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            status = m.main()
    finally:
        sys.argv = argv
    return status, out.getvalue()


def written(tmp, name, text):
    d = os.path.join(tmp, name)
    os.makedirs(d)
    with open(os.path.join(d, 'test_%s.py' % name), 'w') as f:
        f.write(text)
    return d


def pytest_of(m, name, text, timeout=60):
    quietly(m.pytest, name, written(m.opt.builddir, name, text), timeout=timeout)


def quietly(work, *args, **kw):
    null = os.open(os.devnull, os.O_WRONLY)
    keep = os.dup(1)
    os.dup2(null, 1)
    try:
        work(*args, **kw)
    finally:
        os.dup2(keep, 1)
        os.close(keep)
        os.close(null)


def passes_at_the_second_attempt(root, tmp):
    m = check(root, tmp)
    mark = os.path.join(tmp, 'mark')

    def stage():
        pytest_of(m, 'flaky', FLAKY % (mark, mark))
    m.stage_unit = stage
    status, out = end(m, '--only', 'unit')
    assert status == 0 and len(m.second) == 1 and not m.failed, (status, m.second, m.failed)
    summary = out[out.rindex('summary'):]
    for text in ('FINDING', 'AGAIN', 'the first time', m.second[0][2]):
        assert text in summary, summary
    with open(m.second[0][2]) as f:
        log = f.read()
    assert 'the first time' in log and 'test_flaky FAILED' in log, log
    assert summary.splitlines()[-1].endswith('0 failed, 0 skipped'), summary
    with open(os.path.join(tmp, 'check.json')) as f:
        told = json.load(f)
    found, = told['findings']
    assert found == {'test': m.second[0][0], 'why': m.reason(m.second[0][1]), 'log': m.second[0][2]}, told
    assert 'the first time' in found['why'] and told['failed'] == [] and told['passed'] == m.passed, told


def strict_has_no_second_attempt(root, tmp):
    m = check(root, tmp, '--strict')
    mark = os.path.join(tmp, 'mark')
    pytest_of(m, 'flaky', FLAKY % (mark, mark))
    assert len(m.failed) == 1 and not m.second


def fails_again(root, tmp):
    m = check(root, tmp)
    pytest_of(m, 'wrong', WRONG)
    assert [n for n, _ in m.failed] == ['wrong: test_wrong.test_wrong'] and not m.second, m.failed


def second_attempt_that_crashes(root, tmp):
    m = check(root, tmp)

    def again(bad):
        raise OSError('no space')
    m.settle('x', [('a', 'failed', 'why'), ('b', 'passed', '')], again, 'log')
    assert [n for n, _ in m.failed] == ['x: the second attempt', 'x: a'] and m.passed == 1, m.failed


def hangs(root, tmp):
    """The test that hung is named, and what was found out before is there."""
    m = check(root, tmp)
    pytest_of(m, 'hangs', HANGS, timeout=10)
    assert m.passed == 1, m.passed
    text = str(m.failed)
    assert 'was ended after' in text and '::test_hangs' in text, m.failed


MEETS = """
import os, time
def test_meets():
    open(%(mine)r, 'w').close()
    end = time.time() + 30
    while not os.path.exists(%(other)r):
        assert time.time() < end, 'the other file is not under way'
        time.sleep(0.05)
"""


def lane_files(tmp, **texts):
    d = os.path.join(tmp, 'lanes')
    os.makedirs(d)
    for name, text in texts.items():
        with open(os.path.join(d, 'test_%s.py' % name), 'w') as f:
            f.write(text)
    return d, ['test_%s.py' % name for name in texts]


def lanes(root, tmp):
    """Files that run beside each other: all of them are counted, also where one fails, passes at the second attempt, or hangs."""
    m = check(root, tmp)
    mark, a, b = (os.path.join(tmp, x) for x in ('mark', 'a', 'b'))
    d, files = lane_files(tmp, a=MEETS % {'mine': a, 'other': b}, b=MEETS % {'mine': b, 'other': a}, flaky=FLAKY % (mark, mark), wrong=WRONG,
                          hangs=HANGS)
    quietly(m.pytest, 'lanes', d, timeout=20, parts=files, lanes=2)
    names = [n for n, _ in m.failed]
    assert names == ['lanes: test_wrong.test_wrong', 'lanes: pytest test_hangs.py'], m.failed
    assert [n for n, _, _ in m.second] == ['lanes: test_flaky.test_flaky'] and m.passed == 6, (m.second, m.passed)
    assert '::test_hangs' in str(m.failed), m.failed


def lanes_without_time(root, tmp):
    """What is not begun is told by name, beside what was found out."""
    m = check(root, tmp)
    d, files = lane_files(tmp, hangs=HANGS, slow=HANGS, late=WRONG)
    quietly(m.pytest, 'lanes', d, timeout=8, parts=files, lanes=2)
    assert m.passed == 2 and [n for n, _ in m.failed] == ['lanes: pytest test_%s.py' % n for n in ('hangs', 'slow', 'late')], m.failed
    assert m.failed[-1][1] == 'not begun: no time was left', m.failed


def lanes_interrupted(root, tmp):
    """By Ctrl-C those under way end at once, and none is begun any more."""
    m = check(root, tmp)
    d, files = lane_files(tmp, hangs=HANGS, slow=HANGS, late=WRONG)
    threading.Timer(5, os.kill, (os.getpid(), signal.SIGINT)).start()
    t = time.time()
    try:
        quietly(m.pytest, 'lanes', d, parts=files, lanes=2)
        raise AssertionError('was not interrupted')
    except KeyboardInterrupt:
        pass
    assert time.time() - t < 45 and not m.running and not os.path.exists(os.path.join(tmp, 'check-lanes-test_late.log')), time.time() - t


def meson_hangs(root, tmp):
    """So are tests that were not reached, also beside one that failed."""
    src, where = os.path.join(tmp, 'src'), os.path.join(tmp, 'b')
    os.makedirs(src)
    with open(os.path.join(src, 'meson.build'), 'w') as f:
        f.write(MESON)
    subprocess.run(['meson', 'setup', where, src], check=True, stdout=subprocess.DEVNULL)
    m = check(root, tmp)
    quietly(m.meson_tests, 'unit', where, [], timeout=15)
    names = {n for n, _ in m.failed}
    assert names == {'unit: wrong', 'unit: hangs', 'unit: not_reached'} and m.passed == 1, (m.failed, m.passed)


def stages(root, tmp):
    """A stage that crashes, and those for which no time is left, are told by name."""
    m = check(root, tmp)

    def crash():
        raise ValueError('a stage that crashed')

    def long():
        m.deadline = time.time() - 1
        m.run(['true'])
    m.stage_unit, m.stage_faults, m.stage_san = crash, long, lambda: m.run(['true'])
    status, out = end(m, '--only', 'unit,faults,san', '--minutes', '60')
    assert status == 1
    names = [n for n, _ in m.failed]
    assert names == ['stage unit', 'stage faults', 'stage san'], names
    assert 'a stage that crashed' in out and '60 minutes are over' in out, out
    assert out.splitlines()[-1] == '0 passed, 3 failed, 0 skipped', out
    with open(os.path.join(tmp, 'check.json')) as f:
        assert [x['test'] for x in json.load(f)['failed']] == names


def main():
    root = sys.argv[1]
    for what in (passes_at_the_second_attempt, strict_has_no_second_attempt, fails_again, second_attempt_that_crashes, hangs, lanes, lanes_without_time,
                 lanes_interrupted, meson_hangs, stages):
        with tempfile.TemporaryDirectory(prefix='vpcheck') as tmp:
            what(root, tmp)
    print('scripts/check tells of everything')
    return 0


if __name__ == '__main__':
    sys.exit(main())
