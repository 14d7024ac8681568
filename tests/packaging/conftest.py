# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of this directory share: the Debian packages, made once."""
import os
import pathlib
import subprocess
import sys

import pytest

TOP = pathlib.Path(__file__).parents[2]
sys.path.append(str(TOP / "tests/protocol"))  # box.py

import debtree  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="also run what takes long, or fetches much")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: left out without --all")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--all"):
        return
    out = [i for i in items if i.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=out)
    items[:] = [i for i in items if i not in out]


@pytest.fixture(scope="session")
def debs(tmp_path_factory):
    """{name: path}. VHOST_PCI_DEBS names a directory with packages that were made before."""
    out = os.environ.get("VHOST_PCI_DEBS")
    if not out:
        out = str(tmp_path_factory.mktemp("deb"))
        try:
            system = [] if debtree.SUITE == debtree.HERE else ["--root", str(debtree.build_tree(debtree.SUITE))]
        except debtree.Unavailable as e:
            pytest.skip(str(e))
        r = subprocess.run([str(TOP / "scripts/deb"), *system, out], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if r.returncode == 3:
            pytest.skip(r.stdout.strip().splitlines()[-1])
        assert not r.returncode, r.stdout
    return {p.name.split("_")[0]: p for p in pathlib.Path(out).glob("*.deb") if "-dbgsym_" not in p.name}
