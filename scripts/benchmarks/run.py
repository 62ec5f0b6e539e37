#!/usr/bin/env python3
"""Measures the engine beside llama.cpp and writes engine, receipts, reexecution and spared.json in docs/benchmarks, engine.svg, and the tables in docs made of
them. Needs python3 with venv, a C++ compiler and cargo.

    scripts/benchmarks/run.py                  everything, about an hour with the first build of the peer
    scripts/benchmarks/run.py --shapes 135M    one shape
    scripts/benchmarks/run.py --what receipts  one file, without the peer
    scripts/benchmarks/run.py --rounds 1 --out F       a quick look; files are written to F, and tables stay as they are

Machines drift, so the two sides take turns within each round and the ratio is the median of the rounds' ratios. What the machine can read and multiply at
most is measured within each round, too.
"""

import argparse
import pathlib
import statistics
import subprocess

import peer
import tables
from peer import ASSAY, HERE, lines, model, their_model

PEER = "llama.cpp Q8_0"
PHASES = ["prefill", "decode"]
DOCS = peer.ROOT / "docs/benchmarks"


def median(runs, key):
    return statistics.median(run[key] for run in runs)


def engine(python, folder, shapes, threads, rounds):
    rows = []
    for shape in shapes:
        for count in threads:
            taken, machine = [], []
            for _ in range(rounds):
                ours = lines([ASSAY, "bench", "--json", "engine", model(folder, shape), "--threads", count])
                theirs = lines([python, HERE / "peer_speed.py", their_model(folder, shape), count, 3])
                machine += ours
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
                    "weights_m": round(machine[0]["weights"] / 1e6, 1),
                    "mb_per_token": round(machine[0][f"{phase}_mb_per_token"], 3),
                    "multiply_adds_m_per_token": round(machine[0][f"{phase}_multiply_adds_m_per_token"], 1),
                    "memory_gb_per_s": round(median(machine, "memory_gb_per_s"), 1),
                    "multiply_adds_g_per_s": round(median(machine, "multiply_adds_g_per_s"), 1),
                    "limit_tokens_per_s": round(median(machine, f"{phase}_limit_tokens_per_s"), 1),
                    "share_percent": round(median(machine, f"{phase}_share_percent"), 1),
                }
                print(row, flush=True)
                rows.append(row)
    return rows


def medians(shape, runs, alike):
    """Medians of what a command prints, one row for all runs in which `alike` is the same."""
    rows = []
    for key in dict.fromkeys(map(alike, runs)):
        same = [run for run in runs if alike(run) == key]
        row = {"shape": shape}
        for name, value in same[0].items():
            if name != "model":
                # Counts that differ between runs are medians, too.
                changes = isinstance(value, float) or any(run[name] != value for run in same)
                row[name] = round(median(same, name), 3) if changes else value
        print(row, flush=True)
        rows.append(row)
    return rows


def shares(what, folder, shapes):
    """`assay bench receipts` or `reexecution`, one row for each length of the answer."""
    of = lambda shape: lines([ASSAY, "bench", "--json", what, model(folder, shape)])
    return [row for shape in shapes for row in medians(shape, of(shape), lambda run: run["completion_tokens"])]


def spared(folder, shapes, rounds):
    """`assay bench spared`, one row for the prefix and for each text."""
    of = lambda shape: lines([ASSAY, "bench", "--json", "spared", model(folder, shape), "--rounds", rounds])
    return [row for shape in shapes for row in medians(shape, of(shape), lambda run: (run["measures"], run.get("text")))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=peer.FOLDER, help="models and the peer")
    every = ["engine", "receipts", "reexecution", "spared"]
    parser.add_argument("--what", nargs="+", default=every, choices=every)
    parser.add_argument("--shapes", nargs="+", default=["135M", "1B"], choices=peer.SHAPES)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=DOCS)
    options = parser.parse_args()
    peer.ours(options.folder, options.shapes)
    for what in options.what:
        if what == "engine":
            python = peer.theirs(options.folder, options.shapes)
            peer.write(options.out, what, engine(python, options.folder, options.shapes, options.threads, options.rounds))
            subprocess.run([ASSAY, "bench", "engine", "--render", options.out], check=True)
        elif what == "spared":
            peer.write(options.out, what, spared(options.folder, options.shapes, options.rounds))
        else:
            peer.write(options.out, what, shares(what, options.folder, options.shapes))
    tables.fill()


if __name__ == "__main__":
    main()
