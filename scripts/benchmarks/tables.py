#!/usr/bin/env python3
"""Fills the tables of docs/benchmarks.md and docs/performance.md with the numbers in docs/benchmarks.

    scripts/benchmarks/tables.py            writes them
    scripts/benchmarks/tables.py --check    fails where a page says other than the numbers do

A table stands between `<!-- NAME: filled by scripts/benchmarks/tables.py -->` and `<!-- end -->`. Where there are no numbers yet, the page says so, and what measures them.
"""

import json
import pathlib
import re
import sys

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
PAGES = [DOCS / "benchmarks.md", DOCS / "performance.md"]
PLACE = re.compile(r"(<!-- ([a-z]+): filled by scripts/benchmarks/tables\.py -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def digits(v):
    """Three digits, more only of whole numbers."""
    return f"{v:.0f}" if v >= 100 else f"{v:.1f}" if v >= 10 else f"{v:.2f}"


def ms(v):
    return f"{v:.0f} ms" if v >= 10 else f"{v:.2f} ms"


def percent(v):
    return f"{v:.0f} %" if v >= 10 else f"{v:.2g} %"


def ratio(row):
    return [f"{row['ratio']:.2f}", f"{row['ratio_min']:.2f}–{row['ratio_max']:.2f}"]


def ordered(rows):
    shapes = [r["shape"] for r in rows]
    return sorted(rows, key=lambda r: (shapes.index(r["shape"]), r["phase"] == "decode", r["threads"]))


def speeds(rows):
    yield ["shape", "phase", "threads", "Assay", "llama.cpp Q8_0", "ratio", "range"]
    for r in ordered(rows):
        yield [r["shape"], r["phase"], r["threads"], digits(r["tokens_per_s"]), digits(r["peer_tokens_per_s"]), *ratio(r)]


def roofline(rows):
    yield ["shape", "phase", "threads", "MB a token", "M multiply-adds a token", "memory, GB/s", "multiply-adds, G/s", "at most", "reached", "share"]
    for r in ordered(rows):
        peaks = [digits(r["memory_gb_per_s"]), digits(r["multiply_adds_g_per_s"])]
        work = [digits(r["mb_per_token"]), digits(r["multiply_adds_m_per_token"])]
        yield [r["shape"], r["phase"], r["threads"], *work, *peaks, digits(r["limit_tokens_per_s"]), digits(r["tokens_per_s"]), percent(r["share_percent"])]


def streams(rows):
    yield ["shape", "streams", "threads", "Assay", "llama-server", "ratio", "range"]
    for r in rows:
        yield [r["shape"], r["streams"], r["threads"], digits(r["tokens_per_s"]), digits(r["peer_tokens_per_s"]), *ratio(r)]


def prefix(rows):
    yield ["shape", "tokens shared", "of its own", "first token", "with the prefix kept", "ratio"]
    for r in rows:
        if r["measures"] == "prefix":
            times = [ms(r["first_token_ms"]), ms(r["first_token_shared_ms"])]
            yield [r["shape"], r["shared_tokens"], r["own_tokens"], *times, f"{r['ratio']:.1f}"]


def drafts(rows):
    yield ["shape", "text", "executed ahead", "of them chosen", "tokens/s", "with drafts", "ratio"]
    for r in rows:
        if r["measures"] == "drafts":
            speed = [digits(r["tokens_per_s"]), digits(r["tokens_per_s_drafted"])]
            yield [r["shape"], r["text"], f"{r['drafted']:.0f}", f"{r['chosen']:.0f}", *speed, f"{r['ratio']:.2f}"]


def startup(rows):
    yield ["shape", "bytes", "way", "to the first token", "range"]
    for r in rows:
        seconds = [f"{r['first_token_s']:.2f} s", f"{r['first_token_min_s']:.2f}–{r['first_token_max_s']:.2f} s"]
        yield [r["shape"], f"{r['bytes'] / 1e9:.2f} GB", f"`{r['way']}`", *seconds]


def receipts(rows):
    yield ["shape", "generation", "digests", "receipt", "store", "share"]
    for r in rows:
        parts = [ms(r[f"{part}_ms"]) for part in ["generation", "digests", "receipt", "store"]]
        yield [r["shape"], *parts, f"{r['share_percent']:.2g} %"]


def reexecution(rows):
    yield ["shape", "answer", "generation", "verification", "share"]
    for r in rows:
        parts = [ms(r["generation_ms"]), ms(r["reexecution_ms"])]
        yield [r["shape"], f"{r['completion_tokens']} tokens", *parts, f"{r['share_percent']:.2g} %"]


def four(rows):
    yield ["shape", "phase", "threads", "int4-v1", "int8-v1", "llama.cpp Q4_K_M", "over int8-v1", "over Q4_K_M"]
    for r in rows:
        speeds = [digits(r[f"{side}_tokens_per_s"]) for side in ["int4", "int8", "peer"]]
        over = [f"{r[f'over_{other}']:.2f} ({r[f'over_{other}_range'][0]:.2f}–{r[f'over_{other}_range'][1]:.2f})" for other in ["int8", "peer"]]
        yield [r["shape"], r["phase"], r["threads"], *speeds, *over]


def fourloss(rows):
    yield ["model", "text", "tokens", "int8-v1", "int4-v1", "difference"]
    for r in rows:
        change = f"{r['int4-v1'] - r['int8-v1']:+.5f}".replace("-", "−")
        yield [r["model"], r["text"], f"{r['tokens']:,}".replace(",", " "), f"{r['int8-v1']:.5f}", f"{r['int4-v1']:.5f}", change]


# Each table's name: its file, what makes its lines, and what measures its numbers.
TABLES = {
    "engine": ("engine.json", speeds, "scripts/benchmarks/run.py"),
    "roofline": ("engine.json", roofline, "scripts/benchmarks/run.py --what engine"),
    "streams": ("streams.json", streams, "scripts/benchmarks/streams.py"),
    "prefix": ("spared.json", prefix, "scripts/benchmarks/run.py --what spared"),
    "drafts": ("spared.json", drafts, "scripts/benchmarks/run.py --what spared"),
    "startup": ("startup.json", startup, "scripts/benchmarks/startup.py"),
    "four": ("int4.json", four, "scripts/benchmarks/int4.py"),
    "fourloss": ("int4-loss.json", fourloss, "scripts/benchmarks/int4.py --what loss"),
    "receipts": ("receipts.json", receipts, "scripts/benchmarks/run.py --what receipts"),
    "reexecution": ("reexecution.json", reexecution, "scripts/benchmarks/run.py --what reexecution"),
}


def table(name):
    file, make, command = TABLES[name]
    try:
        head, *rows = make(json.loads((DOCS / "benchmarks" / file).read_text()))
    except (FileNotFoundError, KeyError):
        # No file, or one from before these numbers were measured.
        return f"*Not measured yet: `{command}` does it and fills this in.*\n"
    # What it says is drawn, too.
    above = "![Tokens per second, beside what memory and multipliers leave possible](benchmarks/engine.svg)\n\n" if name == "roofline" else ""
    line = lambda cells: "| " + " | ".join(map(str, cells)) + " |\n"
    return above + line(head) + "|" + "---|" * len(head) + "\n" + "".join(map(line, rows))


def fill(check=False):
    wrong = []
    for page in PAGES:
        text = page.read_text()
        filled = PLACE.sub(lambda place: place[1] + "\n" + table(place[2]) + "\n" + place[4], text)
        if filled != text and check:
            wrong.append(page.name)
        elif filled != text:
            page.write_text(filled)
    return wrong


if __name__ == "__main__":
    if wrong := fill("--check" in sys.argv[1:]):
        sys.exit(f"{', '.join(wrong)}: tables are not those of the numbers; scripts/benchmarks/tables.py fills them")
