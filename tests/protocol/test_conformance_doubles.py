# SPDX-License-Identifier: BSD-3-Clause
"""A test of the conformance suite: daemons and guests that do one thing wrong, which it must
find."""
import subprocess

import pytest

import fakedaemon
import guestdouble
from test_conformance import SUITE, passes, run


@pytest.mark.parametrize("deviation, rule", guestdouble.DEVIATIONS.items())
def test_deviating_guest_is_found(deviation, rule):
    found(rule, lambda slow: run("--only", rule, "--guest",
                                 str(SUITE / "guestdouble.py"), "--deviate", deviation, "{port}",
                                 status=1, slow=slow))


def found(rule, how):
    """Soon, or with some patience: what comes within a second may come later on a busy machine."""
    for slow in (1, 10):
        try:
            got = how(slow)
        except AssertionError:
            if slow > 1:
                raise
        else:
            assert got[rule]["result"] == "FAIL" and got[rule]["detail"]
            return


def with_double(tmp_path, deviations, rule, status, slow=6):
    path = str(tmp_path / "port")
    double = subprocess.Popen(["/usr/bin/python3", "-B", str(SUITE / "fakedaemon.py"), path,
                               *(f"--deviate={x}" for x in deviations)],
                              stdout=subprocess.PIPE, text=True)
    try:
        assert double.stdout.readline() == "ready\n"
        return run("--daemon", path, *(["--only", rule] if rule else []), status=status, slow=slow)
    finally:
        double.kill()
        double.wait()
        double.stdout.close()


def test_daemon_double(tmp_path):
    """Without a driver VM."""
    assert passes(with_double(tmp_path, [], None, 0)) >= set(fakedaemon.DEVIATIONS.values())


@pytest.mark.parametrize("deviation, rule", fakedaemon.DEVIATIONS.items())
def test_deviating_daemon_is_found(tmp_path, deviation, rule):
    found(rule, lambda slow: with_double(tmp_path, [deviation], rule, 1, slow))
