#!/usr/bin/env python3
"""Measures the time from the start of a process to the first token, and writes startup.json in docs/benchmarks. Needs python3 and cargo.

    scripts/benchmarks/startup.py                  135M and 1B
    scripts/benchmarks/startup.py --shapes 1B --rounds 1 --out F        a quick look; F gets startup.json

The model has random weights and lies in the page cache: it is read once before. The data folder is new each time, so the node's key and its store are made, too.
Two ways: `assay run MODEL PROMPT`, to its first text; and `assay serve MODEL`, asked over HTTP as soon as it listens, to the first text of a streamed answer. The clock starts before
the process does. The prompt has 16 tokens.
"""

import argparse
import http.client
import json
import os
import pathlib
import re
import statistics
import subprocess
import tempfile
import time

import peer
import tables

PROMPT = " ".join(f"w{3 + i * 7919 % 31000}" for i in range(16))


def environment(home):
    return {**os.environ, "ASSAY_HOME": str(home), "ASSAY_LOG": "warn"}


def run(model, threads, home):
    command = [peer.ASSAY, "run", model, PROMPT, "--max-tokens", "2", "--temperature", "0", "--threads", str(threads)]
    begun = time.perf_counter()
    process = subprocess.Popen(command, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    first = process.stdout.read(1)
    seconds = time.perf_counter() - begun
    process.stdout.read()
    if process.wait() != 0 or not first.strip():
        raise SystemExit("`assay run` wrote nothing")
    return seconds


def serve(model, threads, home):
    command = [peer.ASSAY, "serve", model, "--listen", "127.0.0.1:0", "--threads", str(threads)]
    begun = time.perf_counter()
    process = subprocess.Popen(command, env=environment(home), stderr=subprocess.PIPE, text=True)
    try:
        said = next(line for line in process.stderr if " on http://" in line)
        connection = http.client.HTTPConnection(re.search(r"on http://([0-9.:]+)/v1", said)[1], timeout=60)
        body = {"model": f"synthetic-{model.stem}", "prompt": PROMPT, "max_tokens": 2, "temperature": 0, "stream": True}
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        for line in response:
            if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0].get("text"):
                return time.perf_counter() - begun
        raise SystemExit(f"`assay serve` wrote nothing: {response.status}")
    finally:
        process.kill()
        process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=peer.FOLDER, help="models")
    parser.add_argument("--shapes", nargs="+", default=["135M", "1B"], choices=peer.SHAPES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=peer.ROOT / "docs/benchmarks")
    options = parser.parse_args()
    peer.ours(options.folder, options.shapes)
    rows = []
    for shape in options.shapes:
        model = peer.model(options.folder, shape)
        with open(model, "rb", buffering=0) as file:
            while file.read(1 << 24):
                pass
        for way, measure in [("assay run", run), ("assay serve", serve)]:
            taken = []
            for _ in range(options.rounds):
                with tempfile.TemporaryDirectory() as home:
                    taken.append(measure(model, options.threads, home))
            row = {
                "shape": shape, "bytes": model.stat().st_size, "way": way, "threads": options.threads, "first_token_s": round(statistics.median(taken), 3),
                "first_token_min_s": round(min(taken), 3), "first_token_max_s": round(max(taken), 3), "rounds": options.rounds,
            }
            print(row, flush=True)
            rows.append(row)
    peer.write(options.out, "startup", rows)
    tables.fill()


main()
