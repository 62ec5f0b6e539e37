#!/usr/bin/env python3
"""How long each crate takes to build from nothing, from one build of the binary in an empty folder.

cargo says when each unit began and how long it took; a crate's dependencies are all units that it needs, directly or not. Sums of units are
work, not waiting: divided by the number of cores they are about what a clock shows. Prints a table in Markdown.

Usage: scripts/build_times.py [PACKAGE]
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = ["assay-core", "assay-engine", "assay-verify", "assay-chain", "assay-ledger", "assay-api", "assay-node", "assay"]


def cargo(*arguments, folder=None):
    target = ["--target-dir", folder] if folder else []
    return subprocess.run(["cargo", *arguments, *target], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def units(package):
    """Seconds of every unit, by name and version, and what the clock said of all."""
    cargo("fetch", "--locked")
    folder = tempfile.mkdtemp()
    try:
        began = time.monotonic()
        cargo("build", "--locked", "--package", package, "--timings", folder=folder)
        whole = time.monotonic() - began
        report = (Path(folder) / "cargo-timings" / "cargo-timing.html").read_text()
    finally:
        shutil.rmtree(folder)
    data = json.loads(re.search(r"const UNIT_DATA = (\[.*?\]);\n", report, re.S).group(1))
    spent = {}
    for unit in data:
        key = (unit["name"], unit["version"])
        spent[key] = spent.get(key, 0) + unit["duration"]
    return spent, whole


def closure(package):
    tree = cargo("tree", "--locked", "--package", package, "--edges", "normal,build", "--prefix", "none")
    found = re.findall(r"^(\S+) v(\S+)", tree, re.M)
    return set(found)


def main():
    package = sys.argv[1] if len(sys.argv) > 1 else "assay"
    spent, whole = units(package)
    print("| crate | its own seconds | with what it depends on | packages |")
    print("|---|---|---|---|")
    for name in OURS:
        needs = closure(name)
        own = sum(seconds for (unit, _), seconds in spent.items() if unit == name)
        every = sum(spent.get(key, 0) for key in needs)
        print(f"| `{name.removeprefix('assay-')}` | {own:.0f} | {every:.0f} | {len(needs)} |")
    print(f"\nThe whole build of `{package}`: {whole:.0f} s by the clock, {sum(spent.values()):.0f} s of units.")


if __name__ == "__main__":
    main()
