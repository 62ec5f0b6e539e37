"""Speed and memory of an import: import_1b.py ASSAY [FOLDER]

Writes a checkpoint of Llama-3.2-1B's shape with random bfloat16 weights (2.5 GB, in two shards) into FOLDER unless it is there,
imports it with the given binary, and prints JSON: gigabytes a minute, peak memory of the process as the kernel counted it, and
that peak beside the largest tensor.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

DIM, LAYERS, HEADS, KV_HEADS, HIDDEN, VOCABULARY = 2048, 16, 32, 8, 8192, 128_256
HEAD = DIM // HEADS


def tensors():
    """Names and shapes, as transformers saves them."""
    yield "model.embed_tokens.weight", (VOCABULARY, DIM)
    for layer in range(LAYERS):
        inner = {
            "input_layernorm": (DIM,),
            "self_attn.q_proj": (HEADS * HEAD, DIM),
            "self_attn.k_proj": (KV_HEADS * HEAD, DIM),
            "self_attn.v_proj": (KV_HEADS * HEAD, DIM),
            "self_attn.o_proj": (DIM, HEADS * HEAD),
            "post_attention_layernorm": (DIM,),
            "mlp.gate_proj": (HIDDEN, DIM),
            "mlp.up_proj": (HIDDEN, DIM),
            "mlp.down_proj": (DIM, HIDDEN),
        }
        for name, shape in inner.items():
            yield f"model.layers.{layer}.{name}.weight", shape
    yield "model.norm.weight", (DIM,)


def write_shard(path, shard):
    header, at = {}, 0
    for name, shape in shard:
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    random = np.random.default_rng(0)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, shape in shard:
            for start in range(0, int(np.prod(shape)), 1 << 24):
                count = min(1 << 24, int(np.prod(shape)) - start)
                numbers = random.standard_normal(count, np.float32) * np.float32(0.02)
                file.write((numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes())


def write_checkpoint(folder):
    folder.mkdir(parents=True, exist_ok=True)
    every = list(tensors())
    half = len(every) // 2
    shards = {"model-00001-of-00002.safetensors": every[:half], "model-00002-of-00002.safetensors": every[half:]}
    for name, shard in shards.items():
        write_shard(folder / name, shard)
    weight_map = {tensor: name for name, shard in shards.items() for tensor, _ in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    words = {"<s>": 0, "w1": 1}
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [], "decoder": None, "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w1"}}))
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "hidden_size": DIM, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "intermediate_size": HIDDEN,
        "vocab_size": VOCABULARY, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "tie_word_embeddings": True, "hidden_act": "silu", "eos_token_id": 1,
        "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192}}))


def main():
    assay = sys.argv[1]
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else "target/benchmarks/1b-bf16")
    if not (folder / "config.json").exists():
        write_checkpoint(folder)
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    out = folder.parent / "1b-import.assay"
    started = time.monotonic()
    subprocess.run([assay, "import", folder, "--name", "1b", "--out", out], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    largest = 2 * VOCABULARY * DIM
    os.remove(out)
    print(json.dumps({
        "source_gb": size / 1e9, "seconds": seconds, "gb_per_minute": size / 1e9 / seconds * 60,
        "peak_mb": peak / 2**20, "largest_tensor_mb": largest / 2**20,
        "allowed_mb": 1.2 * largest / 2**20 + 256}))


if __name__ == "__main__":
    main()
