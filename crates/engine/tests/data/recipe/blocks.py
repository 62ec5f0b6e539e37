#!/usr/bin/env python3
"""Blocks of ggml's formats with the numbers that the `gguf` package reads in them.

    pip install gguf==0.19.0 numpy
    python blocks.py > ../gguf/blocks.json

One random block of each K format, two of the others: every bit pattern may occur in quants and packed scales, and the binary16 scales are finite.
Numbers are written as the bits of a binary32.
"""

import json

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

# Where each format has its binary16 scales.
SCALES = {"Q8_0": [0], "Q4_0": [0], "Q4_K": [0, 2], "Q6_K": [208]}


def main():
    rng = np.random.default_rng(20250101)
    out = []
    for name, places in SCALES.items():
        kind = GGMLQuantizationType[name]
        length, size = GGML_QUANT_SIZES[kind]
        count = 2 if length < 256 else 1
        blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
        for place in places:
            scale = rng.normal(0, 0.01, count).astype(np.float16)
            blocks[:, place : place + 2] = scale.view(np.uint8).reshape(count, 2)
        numbers = quants.dequantize(blocks, kind).astype(np.float32).ravel()
        out.append({"format": name, "bytes": blocks.tobytes().hex(), "numbers": numbers.view(np.uint32).tolist()})
    for name, kind in [("F16", np.float16), ("BF16", None)]:
        numbers = rng.normal(0, 1, 16).astype(np.float32)
        if kind is None:
            bits = (numbers.view(np.uint32) >> 16).astype(np.uint16)
            numbers = (bits.astype(np.uint32) << 16).view(np.float32)
            data = bits.tobytes()
        else:
            half = numbers.astype(kind)
            data, numbers = half.tobytes(), half.astype(np.float32)
        out.append({"format": name, "bytes": data.hex(), "numbers": numbers.view(np.uint32).tolist()})
    print("[" + ",\n ".join(json.dumps(o, separators=(",", ":")) for o in out) + "]")


if __name__ == "__main__":
    main()
