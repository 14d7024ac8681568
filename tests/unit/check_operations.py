#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The table in docs/operations.md is the one that scripts/operations makes of docs/performance/operations.json.

usage: check_operations.py SOURCE_ROOT

First the check shows that it sees a page that differs in one figure.
"""
import importlib.machinery
import importlib.util
import json
import os
import sys

sys.dont_write_bytecode = True


def main(root):
    loader = importlib.machinery.SourceFileLoader("operations", os.path.join(root, "scripts", "operations"))
    operations = importlib.util.module_from_spec(importlib.util.spec_from_loader("operations", loader))
    loader.exec_module(operations)
    with open(os.path.join(root, "docs", "performance", "operations.json"), encoding="utf-8") as f:
        figures = json.load(f)
    with open(os.path.join(root, "docs", "operations.md"), encoding="utf-8") as f:
        page = f.read()
    other = json.loads(json.dumps(figures))
    next(r for r in other["rows"] if "stall_ms" in r)["stall_ms"] += 1000
    assert operations.page_with(page, other) != operations.page_with(page, figures), "another figure is not seen"
    if operations.page_with(page, figures) != page:
        print("docs/operations.md does not agree with docs/performance/operations.json; run scripts/operations")
        return 1
    print("%d rows agree" % len(figures["rows"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
