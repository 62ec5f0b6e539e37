"""Embeddings beside PyTorch in f32: embeddings.py ASSAY ARTIFACT CHECKPOINT TEXT

    pip install torch transformers numpy
    embeddings.py target/release/assay minilm.assay FOLDER_OF_THE_CHECKPOINT wikitext2-valid.txt

Both sides read the same ids: the first 200 paragraphs of TEXT, cut at 256 tokens, on 1 and on 2 threads, in turn. PyTorch
gets them sorted by length in batches of 32, so that little is padding. Prints JSON: speeds and their ratios by round; cosines
between both sides' vectors; and how far both agree on the neighbours of every third paragraph.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel

ROUNDS, BATCH, PARAGRAPHS, NEIGHBOURS = 3, 32, 200, 10


def ours(assay, artifact, texts, threads, out=None):
    command = [assay, "bench", "--json", "embeddings", artifact, texts, "--rounds", "1", "--threads", str(threads)]
    command += ["--out", out] if out else []
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def theirs(model, ids, threads):
    """Vectors in order, and tokens per second."""
    torch.set_num_threads(threads)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    vectors = [None] * len(ids)
    started = time.monotonic()
    with torch.inference_mode():
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            width = max(len(ids[i]) for i in batch)
            tokens = torch.zeros(len(batch), width, dtype=torch.long)
            mask = torch.zeros(len(batch), width, dtype=torch.long)
            for row, i in enumerate(batch):
                tokens[row, : len(ids[i])] = torch.tensor(ids[i])
                mask[row, : len(ids[i])] = 1
            hidden = model(input_ids=tokens, attention_mask=mask).last_hidden_state
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            for row, i in enumerate(batch):
                vectors[i] = torch.nn.functional.normalize(pooled[row], dim=0).numpy()
    return np.array(vectors), sum(map(len, ids)) / (time.monotonic() - started)


def ranks(scores):
    out = np.empty(len(scores))
    out[np.argsort(-scores)] = np.arange(len(scores))
    return out


def main():
    assay, artifact, checkpoint, text = sys.argv[1:]
    folder = Path(tempfile.mkdtemp())
    lines = [line.strip() for line in Path(text).read_text().split("\n") if len(line.strip()) > 60]
    texts = folder / "texts"
    texts.write_text("\n".join(lines[:PARAGRAPHS]) + "\n")
    ours(assay, artifact, texts, 2, folder / "vectors")
    made = [json.loads(line) for line in (folder / "vectors").read_text().splitlines()]
    ids = [m["ids"] for m in made]
    mine = np.array([m["vector"] for m in made])
    model = AutoModel.from_pretrained(checkpoint).eval()
    reference, _ = theirs(model, ids, 2)
    cosines = (mine * reference).sum(1)
    overlap, spearman = [], []
    for i in range(0, len(ids), 3):
        a, b = mine @ mine[i], reference @ reference[i]
        a[i] = b[i] = 2
        near = [set(np.argsort(-s)[1 : NEIGHBOURS + 1]) for s in (a, b)]
        overlap.append(len(near[0] & near[1]) / NEIGHBOURS)
        spearman.append(np.corrcoef(ranks(a), ranks(b))[0, 1])
    speed = []
    for threads in (1, 2):
        rounds = []
        for _ in range(ROUNDS):
            a = ours(assay, artifact, texts, threads)["tokens_per_s"]
            _, b = theirs(model, ids, threads)
            rounds.append((a, b))
        ratios = [a / b for a, b in rounds]
        speed.append({
            "threads": threads, "assay_tokens_per_s": statistics.median(a for a, _ in rounds),
            "pytorch_tokens_per_s": statistics.median(b for _, b in rounds),
            "ratio": statistics.median(ratios), "ratio_least": min(ratios), "ratio_largest": max(ratios)})
    print(json.dumps({
        "texts": len(ids), "tokens": sum(map(len, ids)), "torch": torch.__version__, "speed": speed,
        "cosine_mean": float(cosines.mean()), "cosine_least": float(cosines.min()),
        "neighbours_shared": float(np.mean(overlap)), "rank_correlation": float(np.mean(spearman))}, indent=1))


if __name__ == "__main__":
    main()
