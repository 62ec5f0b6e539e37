#!/usr/bin/env python3
"""Measures many streams at once beside llama.cpp's own server and writes streams.json in docs/benchmarks. Needs python3 with venv, a C++
compiler and cargo.

    scripts/benchmarks/streams.py                  135M and 1B, about half an hour with the first build of the peer
    scripts/benchmarks/streams.py --shapes 135M --rounds 1 --out F        a quick look; F gets streams.json

The peer is `llama-server`, built from the sources in the source archive of the registry's llama-cpp-python, for this processor, with Q8_0 weights: `-np 16
--cont-batching`, a slot for every stream, everything else as it comes. (What llama-cpp-python itself calls its server holds a lock over each answer
and writes one at a time: it is not the peer.) Ours is `assay serve`, which also signs and stores a receipt for every answer. Both servers keep running, take turns in
each round, and the order changes from round to round.

All streams are opened at once, over HTTP, by OpenAI's route for completions, with prompts of token ids; each asks for so many tokens, greedily. Both
models have random weights, so both are kept from ending early (`ignore_eos` there, a bias against the end token here), and an answer of another
length fails the run. No prompt begins like another, nor is one ever asked again. What spares work that was done before is off on both sides: no prefix cache (`--prefix-mib 0`,
`cache_prompt: false`), no drafts (`--draft-rows 0`; none is the server's default). Throughput is tokens written by all streams over the time from the
first request to the last answer's end, in which the prompts are read too. The client shares the machine.
"""

import argparse
import json
import os
import pathlib
import re
import selectors
import signal
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

import peer
import tables

# Of peer_model.py and of `assay bench synthetic`; the first ids are bytes there.
VOCABULARY, FIRST_ID = 32_000, 300
END_ID = 0


def free():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A process that answers on a port, and is ended with this value."""

    def __init__(self, command, extra, log, env=None):
        self.extra, self.port = extra, free()
        command = [str(c).replace("PORT", str(self.port)) for c in command]
        with open(log, "w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **(env or {})})
        until = time.monotonic() + 300
        while not self.healthy():
            if self.process.poll() is not None or time.monotonic() > until:
                self.process.kill()
                raise SystemExit(f"{command} does not answer: {pathlib.Path(log).read_text()[-2000:]}")
            time.sleep(0.1)

    def healthy(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                return answer.status == 200
        except (OSError, urllib.error.URLError):
            return False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def answers(server, model, prompts, tokens):
    """Seconds from the first request to the end of the last answer."""
    selector = selectors.DefaultSelector()
    sockets = []
    for prompt in prompts:
        body = {
            "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}, **server.extra,
        }
        body = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        connection = socket.create_connection(("127.0.0.1", server.port))
        read = []
        selector.register(connection, selectors.EVENT_READ, read)
        sockets.append((connection, head.encode() + body, read))
    begun = time.perf_counter()
    for connection, request, _ in sockets:
        connection.sendall(request)
    left = len(sockets)
    # Bytes are only kept while time runs, so that the client takes as little of the machine as it can.
    while left:
        for key, _ in selector.select():
            if piece := key.fileobj.recv(1 << 16):
                key.data.append(piece)
            else:
                selector.unregister(key.fileobj)
                key.fileobj.close()
                left -= 1
    seconds = time.perf_counter() - begun
    for _, _, read in sockets:
        answer = b"".join(read).decode()
        written = re.findall(r'"completion_tokens": ?(\d+)', answer)
        if not answer.startswith("HTTP/1.1 200") or not written or int(written[-1]) != tokens:
            raise SystemExit(f"an answer has {written[-1:] or 'no'} tokens instead of {tokens}: {answer[:400]} … {answer[-400:]}")
    return seconds


class Prompts:
    """Ids without meaning, different in their first ids from all before."""

    def __init__(self):
        self.state = 1

    def one(self, tokens):
        ids = []
        for _ in range(tokens):
            self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
            ids.append(FIRST_ID + (self.state >> 33) % (VOCABULARY - FIRST_ID))
        return ids


def measure(options, shape, folder):
    """Tokens a second of both sides, a pair for each round."""
    llama_server, gguf = peer.server(options.folder), peer.their_model(options.folder, shape)
    window = options.prompt + options.tokens + 16
    theirs = [
        llama_server, "-m", gguf, "--host", "127.0.0.1", "--port", "PORT", "-np", options.streams, "--cont-batching", "-c", options.streams * window,
        "-t", options.threads, "-tb", options.threads,
    ]
    ours = [
        peer.ASSAY, "serve", peer.model(options.folder, shape), "--listen", "127.0.0.1:PORT", "--threads", options.threads, "--prefix-mib", 0,
        "--draft-rows", 0,
    ]
    prompts = Prompts()
    rounds = []
    with (
        Server(ours, {"logit_bias": {str(END_ID): -100}}, folder / "ours.log", {"ASSAY_HOME": str(folder / "home")}) as ours,
        Server(theirs, {"ignore_eos": True, "cache_prompt": False}, folder / "theirs.log") as theirs,
    ):
        sides = [("ours", ours), ("theirs", theirs)]
        for i in range(options.rounds + 1):
            asked = [prompts.one(options.prompt) for _ in range(options.streams)]
            row = {}
            for name, server in sides if i % 2 else sides[::-1]:
                seconds = answers(server, f"synthetic-{shape}", asked, options.tokens)
                row[name] = options.streams * options.tokens / seconds
            # The first round warms up.
            if i:
                rounds.append(row)
                print(shape, row, flush=True)
    return rounds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=peer.FOLDER, help="models and the peer")
    parser.add_argument("--shapes", nargs="+", default=["135M", "1B"], choices=peer.SHAPES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=96, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=peer.ROOT / "docs/benchmarks")
    options = parser.parse_args()
    peer.ours(options.folder, options.shapes)
    peer.theirs(options.folder, options.shapes)
    rows = []
    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as folder:
            rounds = measure(options, shape, pathlib.Path(folder))
        ratios = [r["ours"] / r["theirs"] for r in rounds]
        row = {
            "shape": shape, "streams": options.streams, "threads": options.threads, "prompt_tokens": options.prompt, "completion_tokens": options.tokens,
            "tokens_per_s": round(statistics.median(r["ours"] for r in rounds), 1),
            "peer": f"llama-server Q8_0 (llama-cpp-python {peer.version(options.folder)})",
            "peer_tokens_per_s": round(statistics.median(r["theirs"] for r in rounds), 1),
            "ratio": round(statistics.median(ratios), 2), "ratio_min": round(min(ratios), 2), "ratio_max": round(max(ratios), 2), "rounds": len(rounds),
        }
        print(row, flush=True)
        rows.append(row)
    peer.write(options.out, "streams", rows)
    tables.fill()


main()
