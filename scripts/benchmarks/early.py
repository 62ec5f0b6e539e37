#!/usr/bin/env python3
"""Time to the first text of a model that is not here yet: served while it arrives, and fetched first. Needs python3 and a built `assay`.

    scripts/benchmarks/early.py --mib 20 --rounds 3        135M's shape from one host that sends 20 MiB/s

One host on this machine keeps a model of a known shape with random weights. Each round begins twice with an empty data folder: `assay up
RELEASE --from HOST`, and `assay pull RELEASE --from HOST` followed by `assay up`. The clock starts with the first process and ends with the first
text of a streamed answer, which a client asks for again and again from the beginning on. Both ways take turns, the order changes from round to round. The prompt
has 32 words. Prints one JSON object with the rounds and their medians.
"""

import argparse
import http.client
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import tempfile
import time

RELEASE = "synthetic"
ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


def environment(home):
    return {**os.environ, "ASSAY_HOME": str(home)}


def assay(home, *args):
    subprocess.run([BINARY, *args], env=environment(home), check=True, stdout=subprocess.DEVNULL)


class Up:
    """`assay up` on a free port."""

    def __init__(self, home, *args):
        command = [BINARY, "up", *args, "--listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(command, env=environment(home), stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if found := re.search(r"on http://([0-9.:]+)/v1", line):
                self.address = found[1]
                break

    def first_text(self, model):
        """Asks until there is text; when it came."""
        words = " ".join(f"w{3 + i * 7919 % 31000}" for i in range(32))
        body = {"model": model, "prompt": words, "max_tokens": 4, "temperature": 0, "stream": True}
        while True:
            try:
                connection = http.client.HTTPConnection(self.address, timeout=600)
                connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
                response = connection.getresponse()
                if response.status == 200:
                    for line in response:
                        if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0].get("text"):
                            return time.monotonic()
            except OSError:
                pass
            time.sleep(0.005)

    def health(self):
        connection = http.client.HTTPConnection(self.address, timeout=60)
        connection.request("GET", "/health")
        return json.loads(connection.getresponse().read())

    def end(self):
        self.process.kill()
        self.process.wait()


def early(home, url, name):
    begun = time.monotonic()
    up = Up(home, f"{RELEASE}@1", "--from", url)
    text = up.first_text(name) - begun
    missing = [a["size"] - a["bytes"] for a in up.health().get("arriving", [])]
    up.end()
    return text, sum(missing)


def fetched_first(home, url, name):
    begun = time.monotonic()
    assay(home, "pull", f"{RELEASE}@1", "--from", url)
    pulled = time.monotonic() - begun
    up = Up(home)
    text = up.first_text(name) - begun
    up.end()
    return text, pulled


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=float, default=20, help="MiB a second that the host sends")
    parser.add_argument("--shape", default="135M")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", default="release")
    parser.add_argument("--folder", help="where data folders are made")
    args = parser.parse_args()
    global BINARY
    BINARY = TARGET / args.profile / "assay"
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        folder = pathlib.Path(folder)
        keeper = folder / "keeper"
        made = folder / "made.assay"
        assay(keeper, "bench", "synthetic", args.shape, str(made))
        size = made.stat().st_size
        assay(keeper, "pull", str(made))
        made.unlink()
        name = f"synthetic-{args.shape}"
        assay(keeper, "publish", name, "--name", RELEASE, "--version", "1", "--copies", "1")
        host = [BINARY, "host", "--listen", "127.0.0.1:0", "--upload", str(args.mib)]
        host = subprocess.Popen(host, env=environment(keeper), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        url = re.search(r"http://[0-9.:]+", host.stdout.readline())[0]
        rounds = []
        try:
            for i in range(args.rounds):
                row = {}
                ways = [("early", early), ("fetched_first", fetched_first)]
                for key, way in ways if i % 2 == 0 else ways[::-1]:
                    home = folder / "home"
                    first, other = way(home, url, name)
                    row[f"{key}_s"] = round(first, 3)
                    row["early_bytes_missing" if key == "early" else "pull_s"] = round(other, 3)
                    shutil.rmtree(home)
                rounds.append(row)
        finally:
            host.kill()
            host.wait()
        medians = {key: round(statistics.median(row[key] for row in rounds), 3) for key in rounds[0]}
        medians["ratio"] = round(statistics.median(r["fetched_first_s"] / r["early_s"] for r in rounds), 3)
        print(json.dumps({"shape": args.shape, "bytes": size, "mib_per_s": args.mib, "medians": medians, "rounds": rounds}))


main()
