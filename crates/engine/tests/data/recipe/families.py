#!/usr/bin/env python3
"""Small checkpoints of every family that can be imported, and what `transformers` computes with them.

    pip install torch transformers==5.23.0 safetensors
    python families.py ../families

Weights are not stored: each tensor is a run of xorshift64 numbers seeded with the FNV-1a hash of `family/tensor`, so that
`tests/checkpoint/family.rs` makes the same ones. One JSON per family holds `config.json` as `save_pretrained` writes it, name, shape,
mean and amplitude of each tensor, how the tensors lie in files, and the results.

A decoder's ids are drawn from its own distribution: a model that computes anything else finds them unlikely, so its loss is
clearly higher. For each position: the loss of the next id, the id with the largest logit, and how far the second lies below
it in standard deviations of the position's logits. An encoder's results are vectors of length 1, pooled in two ways.
"""

import json
import math
import pathlib
import sys
import tempfile

import torch
import transformers
from safetensors import safe_open
from transformers import (
    BertConfig, Gemma2Config, Gemma3TextConfig, GemmaConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config,
)

VOCABULARY = 264
LENGTH = 96
# Margin above which the largest logit is compared, in standard deviations, and the share of such positions.
CLEAR, ENOUGH = 0.125, 0.62
MASK = (1 << 64) - 1

SIZES = dict(
    vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=None,
)


def random(seed):
    """xorshift64."""
    while True:
        seed ^= (seed << 13) & MASK
        seed ^= seed >> 7
        seed ^= (seed << 17) & MASK
        yield seed


def fnv(text):
    """FNV-1a with 64 bits."""
    h = 0xCBF29CE484222325
    for b in text.encode():
        h = ((h ^ b) * 0x100000001B3) & MASK
    return h


def tensor(family, name, shape, mean, amplitude, levels):
    """Numbers evenly spread around the mean, each exact in binary32."""
    numbers = random(fnv(f"{family}/{name}"))
    values = [mean + (next(numbers) % (2 * levels + 1) - levels) * (amplitude / levels) for _ in range(math.prod(shape))]
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


class Family:
    """A checkpoint to be made.

    `gains` maps endings of names to mean and amplitude of norms, for those that are not `gain`; `levels` of 64 make
    numbers that bfloat16 holds.
    """

    def __init__(self, name, config, gain=(1.0, 0.5), gains=(), embed=0.25, head=0.5, levels=1024, shard=None):
        self.name, self.config, self.gain, self.gains = name, config, gain, dict(gains)
        self.embed, self.head, self.levels, self.shard = embed, head, levels, shard

    def spread(self, name):
        """Mean and amplitude of a tensor."""
        for ending, numbers in self.gains.items():
            if name.endswith(ending):
                return numbers
        if "embed" in name and "Norm" not in name:
            return 0.0, self.embed
        if name == "lm_head.weight":
            return 0.0, self.head
        if name.endswith("bias"):
            return 0.0, 1.0 if "proj" in name else 0.25
        if "norm" in name or "Norm" in name:
            return self.gain
        # Scores that differ little: a small error of one must not turn into another answer.
        return 0.0, 0.1875 if "q_proj" in name or "k_proj" in name else 0.25


def rope(**more):
    return dict(rope_theta=10_000.0, rope_type="default") | more


# The gains of Gemma's files are 1 less than what they are multiplied with. A head that is the embedding prefers the token
# just read; a small embedding and a large last gain keep that below what the layers say.
GEMMA = dict(gain=(0.0, 0.5), gains={"model.norm.weight": (7.0, 2.0)}, embed=0.0625)
FAMILIES = [
    Family("llama", LlamaConfig(**SIZES, rope_parameters=rope(
        rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64))),
    Family("mistral", MistralConfig(**SIZES, head_dim=16, sliding_window=12, rope_parameters=rope()), shard="100KB"),
    Family("qwen2", Qwen2Config(**SIZES, rope_parameters=rope()), levels=64),
    Family("qwen3", Qwen3Config(**SIZES, head_dim=32, rope_parameters=rope(rope_theta=1_000_000.0))),
    Family("qwen3_window", Qwen3Config(**SIZES | dict(num_hidden_layers=3), head_dim=16, use_sliding_window=True,
                                       sliding_window=12, max_window_layers=1, rope_parameters=rope())),
    Family("smollm2", LlamaConfig(**SIZES | dict(hidden_size=72, num_attention_heads=9, num_key_value_heads=3),
                                  tie_word_embeddings=True, rope_parameters=rope(rope_theta=100_000.0)),
           gains={"model.norm.weight": (2.0, 0.5)}),
    Family("gemma", GemmaConfig(**SIZES | dict(num_key_value_heads=1), head_dim=32, rope_parameters=rope()), **GEMMA),
    Family("gemma2", Gemma2Config(**SIZES | dict(num_hidden_layers=3), head_dim=32, query_pre_attn_scalar=8,
                                  attn_logit_softcapping=2.0, final_logit_softcapping=10.0, sliding_window=12,
                                  rope_parameters=rope()), **GEMMA | dict(gains={"model.norm.weight": (9.0, 2.0)})),
    Family("gemma3", Gemma3TextConfig(**SIZES | dict(num_hidden_layers=4), head_dim=32, query_pre_attn_scalar=16, sliding_window=12,
                                      layer_types=["sliding_attention", "full_attention"] * 2,
                                      rope_parameters={"full_attention": rope(rope_type="linear", factor=8.0),
                                                       "sliding_attention": rope(rope_theta=100.0)}), **GEMMA),
    Family("bert", BertConfig(vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=3,
                              num_attention_heads=4, max_position_embeddings=128, hidden_act="gelu")),
]


def build(family):
    """The model in f64 and what the test needs to write the same checkpoint."""
    encoder = family.name == "bert"
    # Other implementations of attention leave soft caps out.
    kind = transformers.BertModel if encoder else transformers.AutoModelForCausalLM
    family.config._attn_implementation = "eager"
    model = kind(family.config) if encoder else kind.from_config(family.config)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model.float().save_pretrained(folder, max_shard_size=family.shard or "1GB")
        config = json.loads((folder / "config.json").read_text())
        index = folder / "model.safetensors.index.json"
        files = json.loads(index.read_text())["weight_map"] if index.exists() else None
        shapes = {}
        for path in folder.glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                shapes |= {name: list(file.get_slice(name).get_shape()) for name in file.keys()}
    tensors, state = [], {}
    for name, shape in sorted(shapes.items()):
        mean, amplitude = family.spread(name)
        state[name] = tensor(family.name, name, shape, mean, amplitude, family.levels)
        assert torch.equal(state[name].float().double(), state[name]), name
        if family.levels == 64:
            assert torch.equal(state[name].bfloat16().double(), state[name]), name
        tensors.append([name, shape, mean, amplitude])
    missing = model.double().load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and all(k == "lm_head.weight" for k in missing.missing_keys), missing
    model.tie_weights()
    assert model.config._attn_implementation == "eager"
    return model.eval(), dict(config=config, levels=family.levels, tensors=tensors, weight_map=files)


def decoder(model):
    """The first ids drawn that have enough clear positions, and the results at each position."""
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        ids = [1]
        while len(ids) < LENGTH:
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            ids.append(int(torch.multinomial(logits.softmax(-1), 1, generator=generator)))
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
        top = logits.topk(2, dim=-1)
        margins = (top.values[:, 0] - top.values[:, 1]) / logits.std(dim=-1)
        if int((margins[:-1] > CLEAR).sum()) >= ENOUGH * (LENGTH - 1):
            break
    losses = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    positions = [
        [round(float(losses[p]), 5), int(top.indices[p, 0]), round(float(margins[p]), 4)] for p in range(LENGTH - 1)
    ]
    print(f"  loss {losses.mean():.4f}, logits spread by {logits.std(dim=-1).mean():.2f},"
          f" {sum(m > CLEAR for _, _, m in positions)} of {len(positions)} positions clear,"
          f" {len(set(ids))} different ids")
    return dict(ids=ids, positions=positions)


def encoder(model):
    """Vectors of texts of several lengths."""
    numbers = random(fnv("texts"))
    texts = [[next(numbers) % VOCABULARY for _ in range(length)] for length in (1, 2, 7, 31, 64, LENGTH)]
    vectors = {"mean": [], "first": []}
    for ids in texts:
        last = model(torch.tensor([ids])).last_hidden_state[0]
        for name, pooled in [("mean", last.mean(dim=0)), ("first", last[0])]:
            pooled = pooled / pooled.norm()
            vectors[name].append([round(float(v), 5) for v in pooled])
    print("  cosines of texts, mean:", [round(sum(a * b for a, b in zip(vectors["mean"][0], v)), 2) for v in vectors["mean"]])
    return dict(texts=texts, vectors=vectors)


@torch.no_grad()
def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(exist_ok=True)
    for family in FAMILIES:
        print(family.name)
        model, made = build(family)
        made |= encoder(model) if family.name == "bert" else decoder(model)
        lines = [f" {json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in made.items()]
        (out / f"{family.name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
