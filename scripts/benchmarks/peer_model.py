"""Writes a Q8_0 GGUF with random weights in a known shape, for the peer: peer_model.py SHAPE OUT.gguf

The shapes are those of `assay bench synthetic`. Ids are fed, so the vocabulary is only what a server needs to write text: a word for each id.
"""

import sys

import gguf
import numpy as np

SHAPES = {  # width, layers, heads, KV heads, gated width
    "135M": (576, 30, 9, 3, 1536),
    "360M": (960, 32, 15, 5, 2560),
    "1B": (2048, 16, 32, 8, 8192),
}
VOCABULARY = 32_000
BLOCK = 32  # Numbers per scale in Q8_0: two bytes of f16, then 32 of int8.


def vocabulary(writer):
    kinds = gguf.TokenType
    special = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    tokens = special + [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
    tokens += [(f"\u2581w{i}", kinds.NORMAL) for i in range(len(tokens), VOCABULARY)]
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([int(kind) for _, kind in tokens])
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def main(shape, out):
    width, layers, heads, kv_heads, gated = SHAPES[shape]
    head = width // heads
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(out, "llama")
    vocabulary(writer)
    writer.add_context_length(4096)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(gated)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)

    def matrix(name, rows, cols):
        blocks = rows * cols // BLOCK
        raw = np.empty((blocks, BLOCK + 2), np.uint8)
        # Uniform int8 numbers deviate by 73: outputs come out about as large as inputs.
        scale = np.full(blocks, 1 / (73 * cols**0.5), np.float16)
        raw[:, :2] = scale.view(np.uint8).reshape(blocks, 2)
        raw[:, 2:] = random.integers(-127, 128, (blocks, BLOCK), dtype=np.int8).view(np.uint8)
        raw = raw.reshape(rows, cols // BLOCK * (BLOCK + 2))
        writer.add_tensor(f"{name}.weight", raw, raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    def ones(name):
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))

    matrix("token_embd", VOCABULARY, width)
    for layer in range(layers):
        ones(f"blk.{layer}.attn_norm")
        matrix(f"blk.{layer}.attn_q", width, width)
        matrix(f"blk.{layer}.attn_k", kv_heads * head, width)
        matrix(f"blk.{layer}.attn_v", kv_heads * head, width)
        matrix(f"blk.{layer}.attn_output", width, width)
        ones(f"blk.{layer}.ffn_norm")
        matrix(f"blk.{layer}.ffn_gate", gated, width)
        matrix(f"blk.{layer}.ffn_up", gated, width)
        matrix(f"blk.{layer}.ffn_down", width, gated)
    ones("output_norm")
    matrix("output", VOCABULARY, width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main(*sys.argv[1:])
