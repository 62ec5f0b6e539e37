#!/usr/bin/env python3
"""A small SentencePiece unigram model with everything that a converter must mind: byte fallback, a table of replacements,
spaces that are trimmed, control and user-defined pieces.

    pip install sentencepiece==0.2.3
    python unigram.py TEXT ../tokenizers/unigram.model

TEXT is any English text (tiny Shakespeare was used).
"""

import os
import sys
import tempfile

import sentencepiece

# What nmt_nfkc does to a few characters; of the whole table only the size is missing.
RULES = {
    "\t": " ",
    "\n": " ",
    "\r": " ",
    "\u3000": " ",
    "\u00a0": " ",
    "\u200b": "",
    "\ufeff": "",
    "ﬁ": "fi",
    "½": "1⁄2",
    "ｆ": "f",
    "ｕ": "u",
    "ｌ": "l",
    "～": "~",
    "e\u0301": "\u00e9",
    "a\u0308": "\u00e4",
    "\u212b": "\u00c5",
}


def main(text, out):
    def code(s):
        return " ".join(f"{ord(c):X}" for c in s)

    with open(text) as file, open(out, "wb") as model, tempfile.TemporaryDirectory() as folder:
        # The model records the file's name.
        os.chdir(folder)
        with open("rules.tsv", "w") as rules:
            rules.writelines(f"{code(a)}\t{code(b)}\n" for a, b in RULES.items())
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(file),
            model_writer=model,
            model_type="unigram",
            vocab_size=600,
            byte_fallback=True,
            normalization_rule_tsv="rules.tsv",
            control_symbols=["<mask>"],
            user_defined_symbols=["<sep>"],
            num_threads=1,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
