#!/usr/bin/env python3
"""Measures the network and writes docs/benchmarks/network.json and network.md. Needs python3, cargo and, for the peers, pip and apt.

    scripts/benchmarks/network.py                          every part that is here
    scripts/benchmarks/network.py --part gateway           one part; the others of an existing network.json stay
    scripts/benchmarks/network.py --rounds 1 --seconds 2 --out F       a quick look; F gets network.json and network.md

Gateway: what a gateway adds, without a model's time in it. Behind all proxies is one provider that answers at once with true signatures (the
example `wire` of crates/gateway), asked over OpenAI's route by LiteLLM and nginx, and over the sealed relay by our gateway, which also holds and charges
money, and checks the record of every answer. Clients ask over 1, 32 and 256 connections, once as fast as they are answered, which tells how many
requests a side can take, and once at an even pace that all sides can keep, which tells what a request waits. All sides, and the provider without
any proxy, take turns within each round; numbers are medians over the rounds. What a proxy adds is its median time at that pace less the provider's own in the
same round. LiteLLM has one worker for each processor, as nginx has; clients, proxies and provider share the machine.

Replay: the conversations of the Azure LLM inference trace 2023 (CC-BY, Patel et al., Splitwise, ISCA 2024): arrival times as they were, both lengths
scaled by one number so that the longest fits the model's window. Four providers, `assay up` with the built-in model, behind one gateway; every 30 seconds one of
them, in turn, is killed with SIGKILL and started again 5 seconds later. An answer counts as complete if its stream ended in order with as many tokens as were
asked for.

Faults: a network of processes (`assay devnet up`) in which one member has each fault, over as many epochs as asked for, then two minutes without requests in which
what was earned is audited and paid out. A member's profit is what it has at the end in its wallet, on the ledger, as stake and in channels, less what it was given.
Beside it stands what the honest members of its kind gained in the same run.

Verification: three such networks without faults, one for each audit rate, and one to which nobody sends anything. Processor time of auditors over that of
providers: as it is, and less what the same processes use in the network that is idle.
"""

import argparse
import csv
import datetime
import http.client
import json
import os
import pathlib
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
ASSAY = TARGET / "dist/assay"
WIRE = TARGET / "dist/examples/wire"
DOLLARS_PER_GAS = 0.05 / 1e6
PARTS = ["gateway", "replay", "faults", "verification"]
CONNECTIONS = [1, 32, 256]
# Requests a second of all connections together, where waiting is measured.
PACE = 50
BUSY_PACE = 400
LITELLM = "litellm[proxy]==1.79.3"
KILL_EVERY_S = 30
BACK_AFTER_S = 5


def say(*what):
    print(*what, flush=True)


def free():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listening(port, process, within=120):
    until = time.monotonic() + within
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            raise SystemExit(f"{process.args} ended with {process.returncode}")
        time.sleep(0.05)
    raise SystemExit(f"{process.args} does not listen")


class Running:
    """A process that listens on a port, and is ended with this value."""

    def __init__(self, command, port, log, env=None):
        self.command, self.port, self.log, self.env = [str(c) for c in command], port, log, env
        self.start()

    def start(self):
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env={**os.environ, **(self.env or {})})
        listening(self.port, self.process)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()


def build():
    both = ["-p", "assay", "--bin", "assay", "-p", "assay-gateway", "--example", "wire"]
    subprocess.run(["cargo", "build", "--profile", "dist", "--quiet", "--locked", *both], cwd=ROOT, check=True)


def assay(home, *args):
    done = subprocess.run([ASSAY, *args], env={**os.environ, "ASSAY_HOME": str(home)}, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"assay {' '.join(args)}: {done.stderr}")
    return done.stdout


# Gateway


def litellm(folder, upstream):
    """LiteLLM's proxy in an environment of its own."""
    environment = TARGET / "benchmarks/litellm"
    program = environment / "bin/litellm"
    if not program.exists():
        say("installing LiteLLM")
        venv.create(environment, with_pip=True)
        subprocess.run([environment / "bin/pip", "install", "--quiet", LITELLM], check=True)
    config = folder / "litellm.yaml"
    config.write_text(json.dumps({
        "model_list": [{
            "model_name": "org/model",
            "litellm_params": {"model": "openai/org/model", "api_base": f"{upstream}/v1", "api_key": "none"},
        }],
    }))
    port = free()
    command = [program, "--config", config, "--host", "127.0.0.1", "--port", port, "--num_workers", os.cpu_count()]
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False"}
    return Running(command, port, folder / "litellm.log", offline)


def nginx(folder, upstream):
    found = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if not found:
        raise SystemExit("nginx is not here: apt-get install nginx-light")
    port = free()
    user = "user root;" if os.geteuid() == 0 else ""
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"])
    conf = folder / "nginx.conf"
    conf.write_text(f"""
{user} daemon off; worker_processes auto; pid {folder}/pid; error_log stderr error;
events {{ worker_connections 2048; }}
http {{
  access_log off; tcp_nodelay on; keepalive_requests 1000000000; {temporary}
  upstream provider {{ server {upstream.removeprefix("http://")}; keepalive 512; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{ proxy_pass http://provider; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
""")
    return Running([found, "-p", folder, "-c", conf, "-e", "stderr"], port, folder / "nginx.log")


def ask(port, key, connections, seconds, pace=None):
    command = [WIRE, "ask", f"http://127.0.0.1:{port}", key, connections, seconds, *([pace] if pace else [])]
    return json.loads(subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout)


def gateway_part(args, folder):
    home = folder / "gateway"
    home.mkdir()
    key = json.loads(assay(home, "keys", "create", "bench", "--credit", "1000000", "--json"))["secret"]
    provider = subprocess.Popen([str(WIRE), "provider"], stdout=subprocess.PIPE, text=True)
    upstream = provider.stdout.readline().strip()
    port = free()
    command = [ASSAY, "gateway", "--listen", f"127.0.0.1:{port}", "--provider", upstream]
    try:
        with litellm(folder, upstream) as lite, nginx(folder, upstream) as plain, Running(
            command, port, folder / "gateway.log", {"ASSAY_HOME": str(home)}
        ):
            sides = {"provider": int(upstream.rsplit(":", 1)[1]), "gateway": port, "nginx": plain.port, "litellm": lite.port}
            rounds = {c: [] for c in CONNECTIONS}
            for side in sides.values():
                ask(side, key, 4, 1)
            for number in range(args.rounds):
                for connections in CONNECTIONS:
                    order = list(sides)
                    order = order[number % len(order):] + order[: number % len(order)]
                    fast = {side: ask(sides[side], key, connections, args.seconds) for side in order}
                    paced = {side: ask(sides[side], key, connections, args.seconds, PACE) for side in order}
                    busy = {side: ask(sides[side], key, connections, args.seconds, BUSY_PACE) for side in order if side != "litellm"}
                    rounds[connections].append((fast, paced, busy))
                    line = ", ".join(f"{s} {paced[s]['p50_us']} us, {fast[s]['per_second']:.0f}/s" for s in sides)
                    say(f"round {number + 1}, {connections} connections: {line}")
    finally:
        provider.kill()
    by = {}
    for connections, all_rounds in rounds.items():
        middle = lambda of: statistics.median(of(r) for r in all_rounds)
        by[str(connections)] = {
            side: {
                "p50_ms": middle(lambda r: r[1][side]["p50_us"]) / 1000,
                "p95_ms": middle(lambda r: r[1][side]["p95_us"]) / 1000,
                "p99_ms": middle(lambda r: r[1][side]["p99_us"]) / 1000,
                "p50_added_ms": middle(lambda r: r[1][side]["p50_us"] - r[1]["provider"]["p50_us"]) / 1000,
                "per_second": middle(lambda r: r[0][side]["per_second"]),
                "fast_p50_ms": middle(lambda r: r[0][side]["p50_us"]) / 1000,
                "failed": sum(third[side]["failed"] for r in all_rounds for third in r if side in third),
            }
            for side in ["provider", "gateway", "nginx", "litellm"]
        }
        for side in ["provider", "gateway", "nginx"]:
            by[str(connections)][side] |= {
                "busy_p50_ms": middle(lambda r: r[2][side]["p50_us"]) / 1000,
                "busy_p50_added_ms": middle(lambda r: r[2][side]["p50_us"] - r[2]["provider"]["p50_us"]) / 1000,
            }
        by[str(connections)]["over_litellm"] = middle(lambda r: r[0]["gateway"]["per_second"] / r[0]["litellm"]["per_second"])
    return {"rounds": args.rounds, "seconds": args.seconds, "pace": PACE, "busy_pace": BUSY_PACE, "litellm": LITELLM, "connections": by}


# Replay


def trace(path, seconds):
    """(seconds after the first, tokens read, tokens written)."""
    rows = []
    with open(path) as file:
        for row in csv.DictReader(file):
            stamp, _, part = row["TIMESTAMP"].partition(".")
            at = datetime.datetime.fromisoformat(stamp).timestamp() + float(f"0.{part or 0}")
            rows.append((at, int(row["ContextTokens"]), int(row["GeneratedTokens"])))
    first = rows[0][0]
    return [(at - first, read, written) for at, read, written in rows if at - first <= seconds]


class Asked:
    def __init__(self):
        self.lock, self.first, self.total, self.failed, self.complete = threading.Lock(), [], [], {}, 0

    def one(self, port, key, model, read, written, seed, end):
        body = {
            "model": model, "prompt": [3 + (seed * 31 + i * 7) % 200 for i in range(read)], "max_tokens": written,
            "stream": True, "stream_options": {"include_usage": True}, "temperature": 1, "seed": seed, "logit_bias": end,
        }
        begun = time.monotonic()
        first = why = None
        tokens = ended = 0
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
            headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            response = connection.getresponse()
            if response.status != 200:
                why = json.loads(response.read())["error"]["code"]
            else:
                for line in response:
                    if line.startswith(b"data: [DONE]"):
                        ended = True
                    elif line.startswith(b"data: "):
                        event = json.loads(line[6:])
                        if "error" in event:
                            why = event["error"]["code"]
                        if event.get("choices") and event["choices"][0].get("text"):
                            first = first or time.monotonic()
                        if event.get("usage"):
                            tokens = event["usage"]["completion_tokens"]
            connection.close()
        except (OSError, http.client.HTTPException) as e:
            why = type(e).__name__
        done = time.monotonic()
        with self.lock:
            if ended and not why and tokens == written:
                self.complete += 1
                self.total.append(done - begun)
                self.first.append((first or done) - begun)
            else:
                why = why or f"ended={bool(ended)}"
                self.failed[why] = self.failed.get(why, 0) + 1


def quantiles(values):
    ordered = sorted(values)
    at = lambda share: ordered[min(len(ordered) - 1, int(share * len(ordered)))]
    return {"p50_s": at(0.5), "p95_s": at(0.95), "p99_s": at(0.99)}


def replay_part(args, folder):
    path = args.data / "traces/AzureLLMInferenceTrace_conv.csv"
    if not path.exists():
        say(f"SKIPPED replay: {path} is not there; give --data")
        return None
    requests = trace(path, args.trace_seconds)
    providers = []
    for i in range(4):
        port = free()
        command = [ASSAY, "up", "--listen", f"127.0.0.1:{port}", "--price", "0.10/0.40", "--threads", "1"]
        providers.append(Running(command, port, folder / f"provider-{i}.log", {"ASSAY_HOME": str(folder / f"provider-{i}")}))
    home = folder / "replay"
    home.mkdir()
    key = json.loads(assay(home, "keys", "create", "bench", "--credit", "1000000", "--json"))["secret"]
    port = free()
    command = [ASSAY, "gateway", "--listen", f"127.0.0.1:{port}"]
    for provider in providers:
        command += ["--provider", f"http://127.0.0.1:{provider.port}"]
    with Running(command, port, folder / "replay.log", {"ASSAY_HOME": str(home)}):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/v1/models", headers={"authorization": f"Bearer {key}"})
        [model] = json.loads(connection.getresponse().read())["data"]
        window = model["context_length"]
        scale = window / max(read + written for _, read, written in requests)
        asked, threads, kills = Asked(), [], 0
        end = {str(i): -100 for i in args.end}
        say(f"{len(requests)} requests in {args.trace_seconds} s, lengths times {scale:.4f}, window {window}")
        begun = time.monotonic()
        next_kill, back = KILL_EVERY_S, []
        for seed, (at, read, written) in enumerate(requests):
            while (left := begun + at - time.monotonic()) > 0:
                elapsed = time.monotonic() - begun
                for due, who in [b for b in back if b[0] <= elapsed]:
                    threading.Thread(target=who.start).start()
                    back.remove((due, who))
                if elapsed >= next_kill:
                    victim = providers[kills % 4]
                    victim.kill()
                    back.append((elapsed + BACK_AFTER_S, victim))
                    next_kill += KILL_EVERY_S
                    kills += 1
                time.sleep(min(left, 0.05))
            lengths = max(1, int(read * scale)), max(1, int(written * scale))
            thread = threading.Thread(target=asked.one, args=(port, key, model["id"], *lengths, seed, end))
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()
    for provider in providers:
        provider.kill()
    found = {
        "requests": len(requests), "complete": asked.complete, "completion_rate": asked.complete / len(requests),
        "failed": asked.failed, "kills": kills, "seconds": args.trace_seconds, "scale": scale, "window": window,
        "first_token": quantiles(asked.first), "total": quantiles(asked.total),
    }
    say(json.dumps(found))
    return found


# Faults


def devnet(home, *options):
    """Runs a network to its end. Its report."""
    command = ["devnet", "up", "--listen", f"127.0.0.1:{free()}", *map(str, options)]
    with open(home / "devnet.log", "w") as log:
        environment = {**os.environ, "ASSAY_HOME": str(home)}
        subprocess.run([ASSAY, *command], env=environment, stdout=log, stderr=log, check=True)
    found = json.loads(assay(home, "devnet", "report", "--json"))
    if not found["conserved"]:
        raise SystemExit("money is missing")
    return found["found"]


def faults_part(args, folder):
    seconds = args.epochs * args.epoch_seconds
    kinds = ["cheap-model", "hidden-cheat", "four-bit-weights", "other-temperature", "swapped-token", "slow", "crash", "silent-auditor", "lazy-auditor", "lost-bytes"]
    options = [option for kind in kinds for option in ("--fault", f"{kind}:1")]
    providers = 10
    sizes = ["--providers", providers, "--auditors", 4, "--hosts", 3, "--epoch", args.epoch_seconds, "--audit-rate", 10, "--load", args.load]
    found = devnet(folder, *sizes, *options, "--for", seconds, "--quiet-for", 120)
    gas = lambda line: line["gas"] * DOLLARS_PER_GAS
    gained = lambda line: line["profit"] / 1e6 - gas(line)
    by = {}
    for line in found["lines"]:
        if not (kind := line["fault"]):
            continue
        others = [gained(l) for l in found["lines"] if l["part"] == line["part"] and not l["fault"]]
        by[kind] = {
            "tokens": line["profit"] / 1e6, "gas": gas(line), "profit": gained(line), "honest": statistics.mean(others), "over_honest": gained(line) - statistics.mean(others),
            "struck": line["struck"], "struck_after_s": line["struck_after_s"], "epochs_posted": line["epochs_posted"],
        }
    honest = [{"name": l["name"], "tokens": l["profit"] / 1e6, "gas": gas(l), "profit": gained(l)} for l in found["lines"] if not l["fault"]]
    result = {"providers": providers, "epochs": args.epochs, "epoch_seconds": args.epoch_seconds, "load": args.load, "requests": found["requests"], "by_fault": by, "honest": honest}
    say(json.dumps(result))
    return result


# Verification


def verification_part(args, folder):
    def used(rate, load):
        home = folder / f"{rate}-{load}"
        home.mkdir()
        sizes = ["--providers", 3, "--auditors", 3, "--hosts", 1, "--epoch", 20, "--audit-rate", rate]
        found = devnet(home, *sizes, "--load", load, "--for", args.verification_seconds, "--quiet-for", 60)
        of = lambda part: sum(l["processor_s"] for l in found["lines"] if l["part"] == part)
        say(f"{rate} %, {load} requests a second: providers {of('provider'):.1f} s, auditors {of('auditor'):.1f} s of processor time")
        return {"providers_s": of("provider"), "auditors_s": of("auditor"), "answered": found["requests"]["answered"]}

    idle = used(10, 0)
    by = {}
    for rate in [1, 3, 10]:
        busy = used(rate, args.verification_load)
        by[str(rate)] = {
            **busy,
            "share": busy["auditors_s"] / busy["providers_s"],
            "share_without_idle": (busy["auditors_s"] - idle["auditors_s"]) / (busy["providers_s"] - idle["providers_s"]),
        }
    return {"seconds": args.verification_seconds, "load": args.verification_load, "idle": idle, "by_rate": by}


# Report


def machine():
    names = [l.split(":")[1].strip() for l in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if l.startswith("model name")]
    return f"{len(names)} cores of {names[0]}, {platform.system()} {platform.release()}"


def report(out, found):
    lines = ["# The network, measured", "", f"`scripts/benchmarks/network.py`, {found['machine']}, {found['date']}.", ""]
    if it := found["parts"].get("gateway"):
        lines += [
            "## What the gateway adds", "",
            f"Medians of {it['rounds']} rounds of {it['seconds']} s; one provider that answers at once; binaries of the profile `dist`. The gateway checks a signature, seals and opens, and writes "
            f"the books, with the answer in them, for every request; nginx and LiteLLM ({it['litellm']}) pass bytes on. Clients, proxies and provider share the machine. Times are those "
            f"of {it['pace']} requests a second, evenly over the connections; requests/s are those of clients that ask as fast as they are answered.", "",
            "| connections | | p50 | p95 | p99 | added at p50 | requests/s | added at p50 of "
            f"{it['busy_pace']} a second | failed |", "|---|---|---|---|---|---|---|---|---|",
        ]
        for connections, sides in it["connections"].items():
            for side in ["provider", "nginx", "gateway", "litellm"]:
                s = sides[side]
                lines.append(
                    f"| {connections} | {side} | {s['p50_ms']:.2f} ms | {s['p95_ms']:.2f} ms | {s['p99_ms']:.2f} ms | "
                    f"{s['p50_added_ms']:.2f} ms | {s['per_second']:.0f} | "
                    + (f"{s['busy_p50_added_ms']:.2f} ms" if "busy_p50_added_ms" in s else "not reached") + f" | {s['failed']} |"
                )
        one = {side: s["fast_p50_ms"] for side, s in next(iter(it["connections"].values())).items() if side != "over_litellm"}
        added = ", ".join(f"{side} {ms - one['provider']:.2f} ms" for side, ms in one.items() if side != "provider")
        lines += ["", f"One connection that asks as fast as it is answered has its answer after {one['provider']:.2f} ms at p50, and what is in between adds: {added}. "
                  f"{it['pace']} requests a second leave processors idle in between, and their caches cold; LiteLLM answers not many more."]
        lines += ["", "Requests a second over LiteLLM's: " + ", ".join(
            f"{s['over_litellm']:.1f} with {c}" for c, s in it["connections"].items()) + " connections.", ""]
    if it := found["parts"].get("replay"):
        f, t = it["first_token"], it["total"]
        lines += [
            "## Replay of a day's conversations", "",
            f"{it['requests']} requests of the Azure LLM inference trace 2023 (conversations), the first {it['seconds']} s at their times; lengths times "
            f"{it['scale']:.4f}, so that the longest fits the built-in model's window of {it['window']}. Four providers, one killed every {KILL_EVERY_S} s "
            f"({it['kills']} times).", "",
            f"**{100 * it['completion_rate']:.3f} % complete** ({it['complete']} of {it['requests']}); failed: {it['failed'] or 'none'}.", "",
            "| | p50 | p95 | p99 |", "|---|---|---|---|",
            f"| first token | {f['p50_s']:.3f} s | {f['p95_s']:.3f} s | {f['p99_s']:.3f} s |",
            f"| total | {t['p50_s']:.3f} s | {t['p95_s']:.3f} s | {t['p99_s']:.3f} s |", "",
        ]
    if it := found["parts"].get("faults"):
        lines += [
            "## What faults earn", "",
            f"{it['epochs']} epochs of {it['epoch_seconds']} s in one network of {it['providers']} providers, 4 auditors and 3 hosts, {it['load']} requests a second "
            f"({it['requests']['answered']} of {it['requests']['sent']} answered), one audit in ten. In dollars; a provider stakes 20, an auditor 100, a host 60. "
            f"*Gained* is what it has more in tokens, less the gas of its transactions at {100e6 * DOLLARS_PER_GAS:.0f} cents a million, the price of docs/economics.md, 10. Machines and what is at stake cost more, and are not counted.", "",
            "| fault | tokens | gas | gained | honest of its kind | less than those | struck |", "|---|---|---|---|---|---|---|",
        ]
        for kind, f in it["by_fault"].items():
            struck = f"{f['struck_after_s']} s after its first batch" if f["struck"] and f["struck_after_s"] is not None else ("yes" if f["struck"] else "no")
            lines.append(f"| {kind} | {f['tokens']:+.4f} | {-f['gas']:+.4f} | {f['profit']:+.4f} | {f['honest']:+.4f} | {f['over_honest']:+.4f} | {struck} |")
        lines += ["", "Honest members: " + ", ".join(f"{h['name']} {h['profit']:+.4f} (gas {h['gas']:.4f})" for h in it["honest"]) + ".", ""]
    if it := found["parts"].get("verification"):
        lines += [
            "## What verification costs", "",
            f"3 providers, 3 auditors, the built-in model, {it['load']} requests a second for {it['seconds']} s. Processor time of auditors over that of providers; "
            "*without idle*: less what the same processes use while nothing is asked.", "",
            "| audit rate | providers | auditors | share | without idle |", "|---|---|---|---|---|",
            f"| idle | {it['idle']['providers_s']:.1f} s | {it['idle']['auditors_s']:.1f} s | | |",
        ]
        for rate, r in it["by_rate"].items():
            shares = f"{100 * r['share']:.1f} % | {100 * r['share_without_idle']:.1f} %"
            lines.append(f"| {rate} % | {r['providers_s']:.1f} s | {r['auditors_s']:.1f} s | {shares} |")
        lines += [""]
    for part, it in found["parts"].items():
        if note := it.get("note"):
            lines += [f"*{part}*: {note}", ""]
    (out / "network.md").write_text("\n".join(lines))
    parts = found["parts"]
    summary = {}
    if it := parts.get("replay"):
        summary["completion_rate"] = it["completion_rate"]
    if it := parts.get("gateway"):
        summary["gateway_p50_added_ms"] = {c: s["gateway"]["p50_added_ms"] for c, s in it["connections"].items()}
        summary["gateway_p50_added_ms_busy"] = {c: s["gateway"]["busy_p50_added_ms"] for c, s in it["connections"].items()}
        summary["requests_per_s_over_litellm"] = {c: s["over_litellm"] for c, s in it["connections"].items()}
    if it := parts.get("faults"):
        summary["profit_by_fault"] = {kind: f["profit"] for kind, f in it["by_fault"].items()}
        summary["profit_by_fault_over_honest"] = {kind: f["over_honest"] for kind, f in it["by_fault"].items()}
        summary["cheat_to_slash_s"] = it["by_fault"]["cheap-model"]["struck_after_s"]
    if it := parts.get("verification"):
        summary["verification_share"] = {rate: r["share"] for rate, r in it["by_rate"].items()}
        summary["verification_share_without_idle"] = {rate: r["share_without_idle"] for rate, r in it["by_rate"].items()}
    (out / "network.json").write_text(json.dumps({**summary, **found}, indent=2) + "\n")


MEASURES = {"gateway": gateway_part, "replay": replay_part, "faults": faults_part, "verification": verification_part}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--trace-seconds", type=int, default=600)
    parser.add_argument("--end", type=int, nargs="*", default=[0, 1, 2], help="token ids that would end an answer early")
    parser.add_argument("--epochs", type=int, default=50, help="of the part `faults`")
    parser.add_argument("--epoch-seconds", type=int, default=20, help="of the part `faults`")
    parser.add_argument("--load", type=float, default=5, help="requests a second, of the part `faults`")
    parser.add_argument("--verification-seconds", type=int, default=120)
    parser.add_argument("--verification-load", type=float, default=20, help="requests a second")
    parser.add_argument("--data", type=pathlib.Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs/benchmarks")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "network.json"
    found = json.loads(file.read_text()) if file.exists() else {"parts": {}}
    build()
    for part in args.part or PARTS:
        say(f"measuring: {part}")
        with tempfile.TemporaryDirectory() as folder:
            measured = MEASURES[part](args, pathlib.Path(folder))
        if measured:
            found["parts"][part] = measured
    found["machine"], found["date"] = machine(), time.strftime("%Y-%m-%d")
    report(args.out, {"machine": found["machine"], "date": found["date"], "parts": found["parts"]})


if __name__ == "__main__":
    sys.exit(main())
