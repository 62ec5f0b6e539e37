#!/usr/bin/env python3
"""Measures the engine beside llama.cpp and writes engine, receipts and reexecution.json in docs/benchmarks. Needs python3
with venv, a C++ compiler and cmake.

    scripts/benchmarks/run.py                  everything, about an hour with the first build of the peer
    scripts/benchmarks/run.py --shapes 135M    one shape
    scripts/benchmarks/run.py --what receipts  one file, without the peer

Machines drift, so the two sides take turns within each round and the ratio is the median of the rounds' ratios.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import venv

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
ASSAY = ROOT / "target/release/assay"
PEER = "llama.cpp Q8_0"
PHASES = ["prefill", "decode"]


def lines(command):
    """The JSON lines that a command prints."""
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{command}\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def median(runs, key):
    return statistics.median(run[key] for run in runs)


def prepare(folder, shapes):
    subprocess.run(["cargo", "build", "--release", "--locked"], cwd=ROOT, check=True)
    folder.mkdir(parents=True, exist_ok=True)
    for shape in shapes:
        if not (folder / f"{shape}.assay").exists():
            lines([ASSAY, "bench", "--json", "synthetic", shape, folder / f"{shape}.assay"])


def prepare_peer(folder, shapes):
    python = folder / "venv/bin/python"
    if not python.exists():
        venv.create(folder / "venv", with_pip=True)
    packages = ["numpy", "gguf", "llama-cpp-python"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    for shape in shapes:
        if not (folder / f"{shape}.gguf").exists():
            lines([python, HERE / "peer_model.py", shape, folder / f"{shape}.gguf"])
    return python


def engine(python, folder, shapes, threads, rounds):
    rows = []
    for shape in shapes:
        for count in threads:
            taken = []
            for _ in range(rounds):
                ours = lines([ASSAY, "bench", "--json", "engine", folder / f"{shape}.assay", "--threads", count])
                theirs = lines([python, HERE / "peer_speed.py", folder / f"{shape}.gguf", count, 3])
                taken.append({(who, phase): median(runs, f"{phase}_tokens_per_s")
                              for who, runs in [("ours", ours), ("theirs", theirs)] for phase in PHASES})
            for phase in PHASES:
                ratios = [t["ours", phase] / t["theirs", phase] for t in taken]
                row = {
                    "shape": shape, "phase": phase, "threads": count,
                    "tokens_per_s": round(median(taken, ("ours", phase)), 1),
                    "peer": PEER,
                    "peer_tokens_per_s": round(median(taken, ("theirs", phase)), 1),
                    "ratio": round(statistics.median(ratios), 2),
                    "ratio_min": round(min(ratios), 2), "ratio_max": round(max(ratios), 2), "rounds": rounds,
                }
                print(row, flush=True)
                rows.append(row)
    return rows


def shares(what, folder, shapes):
    """Medians of `assay bench receipts` or `reexecution`, one row for each length of the answer."""
    rows = []
    for shape in shapes:
        runs = lines([ASSAY, "bench", "--json", what, folder / f"{shape}.assay"])
        for length in dict.fromkeys(run["completion_tokens"] for run in runs):
            same = [run for run in runs if run["completion_tokens"] == length]
            row = {"shape": shape}
            for key, value in same[0].items():
                if key != "model":
                    row[key] = round(median(same, key), 3) if isinstance(value, float) else value
            print(row, flush=True)
            rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "target/benchmarks", help="models and the peer")
    every = ["engine", "receipts", "reexecution"]
    parser.add_argument("--what", nargs="+", default=every, choices=every)
    parser.add_argument("--shapes", nargs="+", default=["135M", "1B"], choices=["135M", "360M", "1B"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    out = ROOT / "docs/benchmarks"
    out.mkdir(exist_ok=True)

    def write(name, rows):
        text = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        (out / f"{name}.json").write_text(f"[\n{text}\n]\n")

    prepare(options.folder, options.shapes)
    for what in options.what:
        if what == "engine":
            python = prepare_peer(options.folder, options.shapes)
            write(what, engine(python, options.folder, options.shapes, options.threads, options.rounds))
        else:
            write(what, shares(what, options.folder, options.shapes))


if __name__ == "__main__":
    main()
