#!/usr/bin/env python3
"""Ids that the original packages give for the suites' strings and some harder ones.

    pip install tokenizers==0.23.3 sentencepiece==0.2.3
    python ids.py DATA > ../tokenizers/ids.json

DATA is the folder of test data. Names of special tokens are encoded as text, as this project does. `smollm2` and `gpt2` are
tokenizer.json files, `tok512` is a SentencePiece BPE model; `unigram` is the small SentencePiece model that unigram.py trained.
"""

import json
import pathlib
import sys

import sentencepiece
import tokenizers

MORE = [
    "👩‍👩‍👧‍👦 👨🏽‍💻 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ✌🏿 🇩🇪🇯🇵",
    "漢字とひらがなとカタカナ、한국어 조선글 — 中文，混在 text。",
    "\x00\x01\x07\x08\x1b[0m \x7f\x80\u0085\u200b\u200e\u2028\u2060\ufeff end",
    "e\u0301 é a\u0308 Å Å ﬁ ½ ① ℌ ｆｕｌｌ ﷽",
    "\tdef f(x):\r\n\t\treturn x**2\r\n\r\n",
    "<s></s><unk><|endoftext|><|im_start|>system<|im_end|> <0x41>",
    "▁ lower one eighth ▁▁ \u00a0nbsp\u3000wide",
    "مرحبا بالعالم שלום עולם नमस्ते दुनिया สวัสดี",
    "\ufffd \U0010ffff \ue000 \U0001d504",
    "Once upon a time, there was a little girl named Lily. She loved to play outside.",
    "a" * 300,
    " " * 70 + "x" + "\n" * 40,
    "aaaa bbbb abababab 0123456789 1,234.50 x1y22z333",
]


def main(data):
    data = pathlib.Path(data)
    suite = (data / "gguf-vocab/ggml-vocab-gpt-2.gguf.inp").read_bytes().decode()
    strings = suite.split("\n__ggml_vocab_test__\n")[:46] + MORE
    out = {"more": MORE, "ids": {}}
    for name in ["smollm2", "gpt2"]:
        tokenizer = tokenizers.Tokenizer.from_file(str(data / f"tokenizers/{name}/tokenizer.json"))
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        out["ids"][name] = [tokenizer.encode(s, add_special_tokens=False).ids for s in strings]
    here = pathlib.Path(__file__).parent.parent / "tokenizers"
    for name, path in [("tok512", data / "llm/stories260K/tok512.model"), ("unigram", here / "unigram.model")]:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        out["ids"][name] = [model.encode(s) for s in strings]
    ids = ",\n ".join(f'"{name}":{json.dumps(ids, separators=(",", ":"))}' for name, ids in out["ids"].items())
    print(f'{{"more":{json.dumps(MORE)},\n "ids":{{{ids}}}}}')


if __name__ == "__main__":
    main(*sys.argv[1:])
