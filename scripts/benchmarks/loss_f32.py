"""Loss of a Llama-family checkpoint in f32, on the windows that `assay bench loss --windows FILE` wrote.

    pip install numpy safetensors
    loss_f32.py FOLDER WINDOWS        FOLDER holds config.json and model.safetensors
"""

import json
import pathlib
import sys

import numpy as np
from safetensors.numpy import load_file


def norm(x, gain, epsilon):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * gain


def rotate(x, theta):
    """Rotary embedding of [positions, heads, size], pairs half a head apart."""
    size = x.shape[-1]
    speeds = theta ** (-np.arange(0, size, 2) / size)
    angles = np.outer(np.arange(len(x)), speeds)[:, None]
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    a, b = x[..., : size // 2], x[..., size // 2 :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def logits(ids, config, weights):
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    epsilon, theta = config["rms_norm_eps"], config["rope_theta"]
    x = weights["model.embed_tokens.weight"][ids]
    count = len(ids)
    future = np.triu(np.full((count, count), -np.inf, np.float32), 1)
    for layer in range(config["num_hidden_layers"]):
        def project(x, name):
            return x @ weights[f"model.layers.{layer}.{name}.weight"].T

        a = norm(x, weights[f"model.layers.{layer}.input_layernorm.weight"], epsilon)
        q = rotate(project(a, "self_attn.q_proj").reshape(count, heads, size), theta)
        k = rotate(project(a, "self_attn.k_proj").reshape(count, kv_heads, size), theta)
        v = project(a, "self_attn.v_proj").reshape(count, kv_heads, size)
        k, v = (np.repeat(m, heads // kv_heads, 1).transpose(1, 0, 2) for m in (k, v))
        scores = q.transpose(1, 0, 2) @ k.transpose(0, 2, 1) / np.float32(size**0.5) + future
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        x = x + project((scores @ v).transpose(1, 0, 2).reshape(count, -1), "self_attn.o_proj")
        a = norm(x, weights[f"model.layers.{layer}.post_attention_layernorm.weight"], epsilon)
        gate = project(a, "mlp.gate_proj")
        x = x + project(gate / (1 + np.exp(-gate)) * project(a, "mlp.up_proj"), "mlp.down_proj")
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return norm(x, weights["model.norm.weight"], epsilon) @ head.T


def main(folder, windows):
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text())
    weights = {k: v.astype(np.float32) for k, v in load_file(folder / "model.safetensors").items()}
    total, count = 0.0, 0
    for line in open(windows):
        ids = np.array(json.loads(line))
        scores = logits(ids, config, weights)[:-1].astype(np.float64)
        top = scores.max(-1, keepdims=True)
        total += (np.log(np.exp(scores - top).sum(-1)) + top[:, 0] - scores[np.arange(len(ids) - 1), ids[1:]]).sum()
        count += len(ids) - 1
    print(json.dumps({"folder": folder.name, "tokens": count, "nats_per_token": total / count}))


main(*sys.argv[1:])
