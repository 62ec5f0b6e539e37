"""Speed of llama.cpp, driven at its lowest level: peer_speed.py MODEL.gguf THREADS ROUNDS

The same work as `assay bench engine`: 512 tokens in one go, then 64 single ones, logits read after each; one JSON line a round.
"""

import json
import sys
import time

import llama_cpp as llama

PROMPT, DECODE = 512, 64


def main(path, threads, rounds):
    threads = int(threads)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
    parameters = llama.llama_context_default_params()
    parameters.n_ctx = 1024
    parameters.n_batch = parameters.n_ubatch = PROMPT
    parameters.n_threads = parameters.n_threads_batch = threads
    context = llama.llama_init_from_model(model, parameters)
    memory = llama.llama_get_memory(context)
    tokens = (llama.llama_token * PROMPT)(*(3 + i * 7919 % 31_000 for i in range(PROMPT)))

    def feed(count, first):
        pointer = llama.ctypes.cast(
            llama.ctypes.byref(tokens, first * llama.ctypes.sizeof(llama.llama_token)),
            llama.ctypes.POINTER(llama.llama_token),
        )
        if llama.llama_decode(context, llama.llama_batch_get_one(pointer, count)) != 0:
            sys.exit("llama_decode failed")
        llama.llama_get_logits_ith(context, -1)

    for _ in range(int(rounds)):
        llama.llama_memory_clear(memory, True)
        started = time.perf_counter()
        feed(PROMPT, 0)
        prefill = PROMPT / (time.perf_counter() - started)
        started = time.perf_counter()
        for i in range(DECODE):
            feed(1, i)
        decode = DECODE / (time.perf_counter() - started)
        print(json.dumps({"prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode}), flush=True)


main(*sys.argv[1:])
