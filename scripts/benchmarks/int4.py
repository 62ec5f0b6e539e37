#!/usr/bin/env python3
"""Measures the profile int4-v1 beside int8-v1 and beside llama.cpp's Q4_K_M, and writes int4.json and int4-loss.json in docs/benchmarks,
and the tables in docs made of them. Needs what run.py needs.

    scripts/benchmarks/int4.py                       speed, about half an hour with the first build of the peer
    scripts/benchmarks/int4.py --shapes 1B --threads 2
    scripts/benchmarks/int4.py --what loss --data DIR    loss of the models in DIR, each imported with either profile

Speed: models of random weights. The peer's is run.py's Q8_0 model, which llama.cpp itself makes into Q4_K_M. The three sides take turns within each round; a ratio is
the median of the rounds' ratios. Loss: `assay bench loss` over the same windows of a text for every way to import a model.
"""

import argparse
import pathlib
import statistics
import subprocess

import peer
import run
import tables
from peer import ASSAY, HERE, lines

PEER = "llama.cpp Q4_K_M"
SIDES = ["int4", "int8", "peer"]
# Makes a file of another type of it.
QUANTISE = """
import sys, llama_cpp as llama
options = llama.llama_model_quantize_default_params()
options.ftype = llama.LLAMA_FTYPE_MOSTLY_Q4_K_M
options.allow_requantize = True
sys.exit(llama.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), options))
"""


def prepare(python, folder, shapes):
    for shape in shapes:
        if not (ours := folder / f"{shape}-int4.assay").exists():
            lines([ASSAY, "bench", "--json", "synthetic", shape, ours, "--profile", "int4-v1"])
        if not (theirs := folder / f"{shape}-q4km.gguf").exists():
            subprocess.run([python, "-c", QUANTISE, peer.their_model(folder, shape), theirs], check=True, capture_output=True)


def speed(python, folder, shapes, threads, rounds):
    rows = []
    for shape in shapes:
        for count in threads:
            bench = lambda model: lines([ASSAY, "bench", "--json", "engine", folder / model, "--threads", count])
            taken = []
            for _ in range(rounds):
                runs = {
                    "int4": bench(f"{shape}-int4.assay"),
                    "int8": bench(f"{shape}.assay"),
                    "peer": lines([python, HERE / "peer_speed.py", folder / f"{shape}-q4km.gguf", count, 3]),
                }
                taken.append({(side, phase): run.median(runs[side], f"{phase}_tokens_per_s") for side in SIDES for phase in run.PHASES})
            for phase in run.PHASES:
                row = {"shape": shape, "phase": phase, "threads": count}
                row |= {f"{side}_tokens_per_s": round(run.median(taken, (side, phase)), 1) for side in SIDES}
                row["peer"] = PEER
                for other in ["int8", "peer"]:
                    ratios = [t["int4", phase] / t[other, phase] for t in taken]
                    row |= {f"over_{other}": round(statistics.median(ratios), 2), f"over_{other}_range": [round(min(ratios), 2), round(max(ratios), 2)]}
                row |= {"rounds": rounds, "bytes": (folder / f"{shape}-int4.assay").stat().st_size, "int8_bytes": (folder / f"{shape}.assay").stat().st_size,
                        "peer_bytes": (folder / f"{shape}-q4km.gguf").stat().st_size}
                print(row, flush=True)
                rows.append(row)
    return rows


def loss(folder, data):
    """Each model imported with either profile; GGUF's q4_0 of the first one as well."""
    stories = data / "llm/stories260K"
    models = [
        ("stories260K", stories / "stories260K.bin", ["--tokenizer", stories / "tok512.bin"]),
        ("stories260K q4_0", stories / "stories260K-q4_0.gguf", []),
        ("assay-stories", data / "llm/tiny", []),
    ]
    rows = []
    for name, source, options in models:
        for text in ["tinystories_sample.txt", "wikitext2-test.txt"]:
            row = {"model": name, "text": text.split(".")[0]}
            for profile in ["int8-v1", "int4-v1"]:
                out = folder / f"loss-{profile}.assay"
                lines([ASSAY, "import", source, "--name", "x", "--out", out, "--profile", profile, "--json", *options])
                found = lines([ASSAY, "bench", "--json", "loss", out, data / "text" / text])[-1]
                row |= {"tokens": found["tokens"], profile: round(found["nats_per_token"], 5)}
            print(row, flush=True)
            rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=peer.FOLDER, help="models and the peer")
    parser.add_argument("--what", nargs="+", default=["speed"], choices=["speed", "loss"])
    parser.add_argument("--data", type=pathlib.Path, help="folder with llm/ and text/, for the loss")
    parser.add_argument("--shapes", nargs="+", default=["135M", "1B"], choices=["135M", "360M", "1B"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=peer.ROOT / "docs/benchmarks")
    options = parser.parse_args()
    peer.ours(options.folder, options.shapes if "speed" in options.what else [])
    if "speed" in options.what:
        python = peer.theirs(options.folder, options.shapes)
        prepare(python, options.folder, options.shapes)
        peer.write(options.out, "int4", speed(python, options.folder, options.shapes, options.threads, options.rounds))
    if "loss" in options.what:
        if not options.data:
            raise SystemExit("--data says where the models and texts are")
        peer.write(options.out, "int4-loss", loss(options.folder, options.data))
    tables.fill()


if __name__ == "__main__":
    main()
