#!/usr/bin/env python3
"""Measures the hub and writes docs/benchmarks/hub.json and hub.md. Needs python3, curl, cargo and, for the peers, apt and a network.

    scripts/benchmarks/hub.py                               every part that is here
    scripts/benchmarks/hub.py --part transfer               one part; the others of an existing hub.json stay
    scripts/benchmarks/hub.py --folder /dev/shm             blobs in memory instead of below target
    scripts/benchmarks/hub.py --mib 128 --rounds 1 --out F  a quick look; F gets hub.json and hub.md

Transfer: one pseudo-random blob over loopback from 1, 2 and 4 of our hosts (processes of their own), beside curl from one nginx
with sendfile and beside plain iroh-blobs. All sides take turns within each round. Numbers are medians over the rounds, and ratios
medians of the rounds' ratios. What is in the page cache is compared with what is in the page cache, and what is flushed with what is
flushed: curl is followed by `sync FILE`, we flush by ourselves, iroh-blobs as it does. Only we and iroh-blobs verify what comes. The order
changes from round to round, since whoever comes after others finds memory that the machine has handed out already. For the same reason there is a
round before the first that does not count.

Faults: four hosts, of which one is slow, dies half-way, or has 1 % of its tiles corrupted. The slow one has a hundredth of the
speed of one of four healthy hosts, as measured before in the same run.

Recovery: five `assay host` processes with short times (a host is dead after 10 seconds of silence), a release of 256 MiB with three
copies. Two that keep it are killed with SIGKILL; measured is the time until three live hosts say that they keep it and each gives the
published bytes. Besides, the rule in its simulation, in hours of its own time.

Early: the time to the first text of a model that is served while it arrives, beside one that is fetched first (scripts/benchmarks/early.py).
"""

import argparse
import json
import os
import pathlib
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
TRANSFER = TARGET / "release/examples/transfer"
PARTS = ["transfer", "store", "recovery", "early"]
RATIOS = ["ratio_to_nginx", "slow_peer_ratio", "dying_peer_ratio", "corrupt_peer_ratio"]
TILE = 16 << 10
TICKS = os.sysconf("SC_CLK_TCK")


def say(*what):
    print(*what, flush=True)


# Processes


class Running:
    """A process that prints one line when it is ready, and is ended with this value."""

    def __init__(self, command, ready=True, log=None):
        errors = open(log, "w") if log else None
        self.process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=errors, text=True)
        self.line = self.process.stdout.readline().strip() if ready else ""

    def cpu_s(self):
        """Seconds on processors until now, those of its children included."""
        pids = [self.process.pid]
        children = pathlib.Path(f"/proc/{pids[0]}/task/{pids[0]}/children")
        pids += [int(pid) for pid in children.read_text().split()]
        fields = [pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids]
        return sum(int(f[11]) + int(f[12]) for f in fields) / TICKS

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.end()


def run(command, on_line=None):
    """Runs to the end: seconds by the clock, seconds on processors, and the objects that it printed."""
    begun = time.monotonic()
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, text=True)
    printed = []
    for line in process.stdout:
        if line.startswith("{"):
            printed.append(json.loads(line))
            if on_line:
                on_line(printed[-1])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return time.monotonic() - begun, usage.ru_utime + usage.ru_stime, printed


# The peers


def nginx_program():
    """nginx of this machine, or Debian's package unpacked below target: nothing is installed or started."""
    found = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    folder = TARGET / "benchmarks/nginx"
    own = folder / "usr/sbin/nginx"
    if not found and not own.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "nginx"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        package = next(folder.glob("nginx_*.deb"))
        subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
    return found or own


def nginx(folder, served):
    """nginx with one worker for each processor; the port is in its line."""
    import socket

    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    conf = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"])
    conf.write_text(f"""
{user} daemon off; worker_processes auto; pid {folder}/pid; error_log stderr error;
events {{ worker_connections 256; }}
http {{
  access_log off; sendfile on; sendfile_max_chunk 2m; tcp_nopush on; {temporary}
  server {{ listen 127.0.0.1:{port}; root {served}; }}
}}
""")
    server = Running([nginx_program(), "-p", folder, "-c", conf, "-e", "stderr"], ready=False)
    server.line = f"http://127.0.0.1:{port}"
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server
        time.sleep(0.02)
    raise SystemExit("nginx does not listen")


IROH_MANIFEST = """
[package]
name = "iroh-blobs-peer"
version = "0.0.0"
edition = "2024"

[workspace]

[dependencies]
anyhow = "1"
iroh = { version = "1.4", default-features = false, features = ["tls-ring"] }
iroh-blobs = { version = "=0.104.0", default-features = false, features = ["fs-store"] }
tokio = { version = "1", features = ["rt-multi-thread", "macros", "net", "sync", "time"] }

# As in our workspace, so that what both need is built once.
[profile.release]
debug = "line-tables-only"
"""

IROH_PROGRAM = """
// serve FOLDER FILE: prints name, id and port. get FOLDER NAME ID PORT: fetches into a store, prints what it took.
use std::{path::PathBuf, time::Instant};
use iroh::{Endpoint, EndpointAddr, RelayMode, TransportAddr, endpoint::presets, protocol::Router};
use iroh_blobs::{ALPN, BlobsProtocol, store::fs::FsStore};

async fn endpoint() -> anyhow::Result<Endpoint> {
    let builder = Endpoint::builder(presets::Minimal).relay_mode(RelayMode::Disabled).clear_ip_transports();
    Ok(builder.bind_addr("127.0.0.1:0")?.bind().await?)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match &arguments[..] {
        ["serve", folder, file] => {
            let store = FsStore::load(PathBuf::from(folder)).await?;
            let tag = store.blobs().add_path(std::path::absolute(file)?).await?;
            let endpoint = endpoint().await?;
            println!("{} {} {}", tag.hash, endpoint.id(), endpoint.bound_sockets()[0].port());
            let blobs = BlobsProtocol::new(&store, None);
            let _router = Router::builder(endpoint).accept(ALPN, blobs).spawn();
            std::future::pending::<()>().await;
        }
        ["get", folder, name, id, port] => {
            let store = FsStore::load(PathBuf::from(folder)).await?;
            let endpoint = endpoint().await?;
            let begun = Instant::now();
            let at: std::net::SocketAddr = ([127, 0, 0, 1], port.parse()?).into();
            let address = EndpointAddr::from_parts(id.parse()?, [TransportAddr::Ip(at)]);
            let connection = endpoint.connect(address, ALPN).await?;
            let name: iroh_blobs::Hash = name.parse()?;
            store.remote().fetch(connection, name).await?;
            println!("{{\\"seconds\\": {}}}", begun.elapsed().as_secs_f64());
            store.shutdown().await?;
        }
        _ => anyhow::bail!("serve FOLDER FILE | get FOLDER NAME ID PORT"),
    }
    Ok(())
}
"""


def iroh_program():
    """iroh-blobs in a project of its own below target, so that only who measures builds it."""
    folder = TARGET / "benchmarks/iroh-blobs"
    (folder / "src").mkdir(parents=True, exist_ok=True)
    (folder / "Cargo.toml").write_text(IROH_MANIFEST)
    (folder / "src/main.rs").write_text(IROH_PROGRAM)
    if not (folder / "Cargo.lock").exists():
        shutil.copyfile(ROOT / "Cargo.lock", folder / "Cargo.lock")
    environment = {**os.environ, "CARGO_TARGET_DIR": str(TARGET)}
    subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=folder, check=True, env=environment)
    return TARGET / "release/iroh-blobs-peer"


# Transfer


class Fetches:
    """Fetches of one blob into fresh places."""

    def __init__(self, folder, mib):
        self.folder, self.gib, self.size = folder, mib / 1024, mib << 20
        self.stores = [folder / f"host-{i}" for i in range(4)]
        say(f"making a blob of {mib} MiB")
        made = subprocess.run([str(TRANSFER), "make", str(self.stores[0]), str(mib)], check=True, capture_output=True, text=True)
        self.hash = made.stdout.strip()
        self.file = self.stores[0] / "data" / f"{self.hash}.blob"
        # The other hosts have the same files by links: their pages are there once, as if each had them in its memory.
        for store in self.stores[1:]:
            shutil.copytree(self.stores[0], store, copy_function=link)
        self.corrupt = folder / "host-corrupt"
        shutil.copytree(self.stores[0], self.corrupt, copy_function=link)
        self.corrupted = self.damage()

    def damage(self):
        """One byte of each hundredth tile is another one."""
        path = self.corrupt / "data" / f"{self.hash}.blob"
        path.unlink()
        shutil.copyfile(self.file, path)
        tiles = self.size // TILE
        chosen = random.Random(1).sample(range(tiles), max(1, tiles // 100))
        with open(path, "r+b") as file:
            for tile in chosen:
                file.seek(tile * TILE + 1234)
                byte = file.read(1)[0]
                file.seek(tile * TILE + 1234)
                file.write(bytes([byte ^ 1]))
        return len(chosen)

    def host(self, store, rate=None):
        return Running([TRANSFER, "host", store] + ([int(rate)] if rate else []))

    def into(self):
        place = self.folder / "into"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        # What is served is in memory, and was touched just now.
        for path in [self.file, self.corrupt / "data" / self.file.name]:
            with open(path, "rb") as file:
                while file.read(1 << 20):
                    pass
        return place

    def ours(self, hosts, saves, on_half=None):
        """A fetch from running hosts."""
        place = self.into()
        before = sum(host.cpu_s() for host in hosts)

        def heard(it):
            if on_half and it.get("half"):
                on_half()

        wall, cpu, printed = run([TRANSFER, "fetch", place / "store", self.hash, saves] + [h.line for h in hosts], heard)
        after = sum(host.cpu_s() for host in hosts if host.process.poll() is None)
        got = {**printed[-1], "wall_s": wall, "client_cpu_s": cpu, "server_cpu_s": after - before}
        got["same"] = self.same(place / "store/data" / f"{self.hash}.blob")
        return got

    def same(self, path):
        done = subprocess.run(["cmp", "--silent", str(path), str(self.file)])
        if done.returncode != 0:
            raise SystemExit(f"{path} is not what was served")
        return True

    def curl(self, server):
        place = self.into() / "blob"
        before = server.cpu_s()
        wall, cpu, _ = run(["curl", "--silent", "--fail", "--output", place, f"{server.line}/{self.file.name}"])
        after = server.cpu_s()
        begun = time.monotonic()
        subprocess.run(["sync", str(place)], check=True)
        synced = wall + time.monotonic() - begun
        return {"arrived_s": wall, "seconds": synced, "client_cpu_s": cpu, "server_cpu_s": after - before}

    def iroh(self, program, server):
        name, identity, port = server.line.split()
        place, before = self.into(), server.cpu_s()
        _, cpu, printed = run([program, "get", place / "store", name, identity, port])
        return {"seconds": printed[-1]["seconds"], "client_cpu_s": cpu, "server_cpu_s": server.cpu_s() - before}


def link(source, target):
    """Links what is large and immutable, copies what a store writes to."""
    shutil.copyfile(source, target) if source.endswith(".redb") else os.link(source, target)


def transfer(options):
    subprocess.run(["cargo", "build", "--release", "--quiet", "-p", "assay-hub", "--example", "transfer"], cwd=ROOT, check=True)
    program = None if options.without_iroh else iroh_program()
    folder = options.folder / "hub-transfer"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        return measure(options, folder, program)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(options, folder, program):
    fetches = Fetches(folder, options.mib)
    rounds, order = [], random.Random(1)
    speed = fetches.size / one_round(fetches, folder, program, None, None)["healthy"]["seconds"]
    for number in range(options.rounds + 1):
        got = one_round(fetches, folder, program, speed, order.shuffle)
        speed = fetches.size / got["healthy"]["seconds"]
        if number > 0:
            rounds.append(got)
    gib = fetches.gib

    def median(pick):
        found = [pick(r) for r in rounds if pick(r) is not None]
        return round(statistics.median(found), 3) if found else None

    result = {
        "mib": options.mib, "rounds": options.rounds, "machine": machine(), "folder_on": file_system(folder),
        "load": [round(x, 1) for x in os.getloadavg()],
        "ratio_to_nginx": median(lambda r: r["nginx"]["seconds"] / r["ours_1"]["seconds"]),
        "ratio_to_nginx_page_cache": median(lambda r: r["nginx"]["arrived_s"] / r["ours_1_end"]["arrived_s"]),
        "slow_peer_ratio": median(lambda r: r["slow"]["seconds"] / r["healthy"]["seconds"]),
        "dying_peer_ratio": median(lambda r: r["dying"]["seconds"] / r["healthy"]["seconds"]),
        "corrupt_peer_ratio": median(lambda r: r["corrupt"]["seconds"] / r["healthy"]["seconds"]),
        "corrupted_tiles_of_one_host": fetches.corrupted,
        "rows": [],
    }
    if program:
        result["ratio_to_iroh_blobs"] = median(lambda r: r["iroh"]["seconds"] / r["ours_1"]["seconds"])
    for name in rounds[0]:
        seconds = median(lambda r: r[name].get("seconds"))
        row = {"name": name, "seconds": seconds, "gib_per_s": round(gib / seconds, 3)}
        arrived = median(lambda r: r[name].get("arrived_s"))
        if arrived:
            row |= {"page_cache_s": arrived, "page_cache_gib_per_s": round(gib / arrived, 3)}
        first = median(lambda r: r[name].get("first_tile_s"))
        row |= {"first_tile_ms": round(first * 1000, 1)} if first else {}
        row["client_cpu_s_per_gib"] = round(median(lambda r: r[name]["client_cpu_s"] / gib), 2)
        row["server_cpu_s_per_gib"] = round(median(lambda r: r[name]["server_cpu_s"] / gib), 2)
        row["seconds_of_rounds"] = [round(r[name]["seconds"], 3) for r in rounds]
        if name == "dying":
            # What the killed host did on the processor is unknown.
            del row["server_cpu_s_per_gib"]
        result["rows"].append(row)
    return result


def one_round(fetches, folder, program, speed, shuffle):
    """Everything once, in a random order. `speed` is that of four healthy hosts together, in bytes a second."""

    def of_nginx():
        with nginx(folder / "nginx", fetches.file.parent) as server:
            return fetches.curl(server)

    def of_iroh():
        with Running([program, "serve", folder / "iroh", fetches.file]) as server:
            got = fetches.iroh(program, server)
        shutil.rmtree(folder / "iroh")
        return got

    def of_ours(count, saves="save"):
        hosts = [fetches.host(store) for store in fetches.stores[:count]]
        got = fetches.ours(hosts, saves)
        [host.end() for host in hosts]
        return got

    def with_fault(fault):
        first = fetches.corrupt if fault == "corrupt" else fetches.stores[0]
        hosts = [fetches.host(first, speed / 4 / 100 if fault == "slow" else None)]
        hosts += [fetches.host(store) for store in fetches.stores[1:]]
        kill = (lambda: hosts[0].end(signal.SIGKILL)) if fault == "dying" else None
        got = fetches.ours(hosts, "save", kill)
        [host.end() for host in hosts if host.process.poll() is None]
        bad = got["peers"][0]
        if fault == "corrupt" and bad["fault"] != "wrong_tile":
            raise SystemExit(f"the corrupting host was not found out: {bad}")
        if fault == "dying" and bad["fault"] not in ["broken", "unreachable"]:
            say(f"the fetch had ended before it missed the host that died: {bad}")
        if any(peer["dropped"] for peer in got["peers"][1:]):
            raise SystemExit(f"a healthy host was dropped: {got}")
        return got

    if speed is None:
        return {"healthy": of_ours(4)}
    cases = {
        "nginx": of_nginx, "iroh": of_iroh, "ours_1": lambda: of_ours(1), "ours_1_end": lambda: of_ours(1, "end"),
        "ours_2": lambda: of_ours(2), "healthy": lambda: of_ours(4),
    }
    cases |= {fault: lambda fault=fault: with_fault(fault) for fault in ["slow", "dying", "corrupt"]}
    if not program:
        del cases["iroh"]
    order = list(cases)
    shuffle(order)
    got = {}
    for name in order:
        it = got[name] = cases[name]()
        arrived = f"  {it['arrived_s']:7.3f} s in the page cache" if "arrived_s" in it else ""
        say(f"  {name:12} {it['seconds']:7.3f} s  client {it['client_cpu_s']:6.2f}  servers {it['server_cpu_s']:6.2f} CPU s{arrived}")
    return {name: got[name] for name in cases}


# What is written


def example(name, *arguments):
    """What an example of the hub prints."""
    command = ["cargo", "run", "--release", "--quiet", "-p", "assay-hub", "--example", name, "--", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def store(options):
    """The store alone: what it costs to verify, write, index and check."""
    options.folder.mkdir(parents=True, exist_ok=True)
    runs = [json.loads(example("store", options.mib, options.folder))["steps"] for _ in range(options.rounds)]
    steps = {
        step: {key: round(statistics.median(run[step][key] for run in runs), 3) for key in ("gib_per_s", "cpu_s_per_gib")}
        for step in runs[0]
    }
    return {"machine": machine(), "mib": options.mib, "rounds": options.rounds, "folder_on": file_system(options.folder), "steps": steps}


RECOVERY = {"hosts": 5, "copies": 3, "mib": 256, "every_s": 1, "dead_after_s": 10, "patience_s": 15, "leave_notice_s": 20}


def recovery(options):
    """Two of five hosts disappear: processes and a clock on the wall, and the rule of replication in its simulation."""
    programs = options.programs
    if programs is None:
        build = ["cargo", "build", "--release", "--quiet"]
        subprocess.run([*build, "-p", "assay"], cwd=ROOT, check=True)
        subprocess.run([*build, "-p", "assay-hub", "--example", "transfer", "--example", "replication"], cwd=ROOT, check=True)
        programs = TARGET / "release"
    simulated = [str(programs / "examples/replication"), "1", "1", "five"]
    simulated = subprocess.run(simulated, check=True, capture_output=True, text=True).stdout
    rows = json.loads(simulated.strip().splitlines()[-1])["rows"]
    result = {"rows": [row for row in rows if row["case"] == "two of five"]}
    folder = options.folder / "hub-recovery"
    runs = []
    for number in range(options.rounds):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            runs.append(recover(folder, programs))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        say(f"  recovery {number}: {runs[-1]}")
    middle = {key: round(statistics.median(run[key] for run in runs), 2) for key in runs[0]}
    of_runs = [run["recovery_s"] for run in runs]
    return {"recovery_s": middle["recovery_s"], "processes": {**RECOVERY, **middle, "recovery_s_of_runs": of_runs, "built": programs.name, "load": [round(x, 1) for x in os.getloadavg()], "machine": machine(), "folder_on": file_system(options.folder)}, **result}


def ask(url, body=False):
    """What a host answers, or nothing if it does not."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.read() if body else json.load(answer)
    except OSError:
        return None


def recover(folder, programs):
    """One time: seconds from the killing until a repair begins, and until all copies are there."""
    import socket

    r = RECOVERY
    sockets = [socket.socket() for _ in range(r["hosts"])]
    [s.bind(("127.0.0.1", 0)) for s in sockets]
    urls = [f"http://127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    [s.close() for s in sockets]
    homes = [folder / str(i) for i in range(r["hosts"])]
    command = [str(programs / "examples/transfer"), "publish", str(homes[0] / "hub"), str(r["mib"]), str(r["copies"])]
    artifact, release, blob = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    hosts = []
    for home, url in zip(homes, urls):
        command = [programs / "assay", "--data-dir", home, "host", "--listen", url.removeprefix("http://"), "--every", r["every_s"]]
        command += ["--dead-after", r["dead_after_s"], "--patience", r["patience_s"], "--leave-notice", r["leave_notice_s"]]
        command += [word for other in urls if other != url for word in ("--peer", other)]
        home.mkdir(exist_ok=True)
        hosts.append(Running(command, log=home / "log"))

    def keepers():
        cards = {i: ask(f"{url}/v1/host") for i, url in enumerate(urls) if hosts[i].process.poll() is None}
        return [i for i, card in cards.items() if card and release in card["keeps"]]

    def until(what, limit_s=180):
        begun = time.monotonic()
        while not (found := what()):
            if time.monotonic() - begun > limit_s:
                raise SystemExit(f"nothing after {limit_s} s")
            time.sleep(0.05)
        return found

    try:
        # As many as are asked, for a while: nobody who came too early is about to leave.
        settled = None
        while settled is None or keepers() != settled:
            settled = until(lambda: (found := keepers()) and len(found) == r["copies"] and found)
            time.sleep(2 * r["every_s"] + 1)
        killed = settled[:2]
        [hosts[i].end(signal.SIGKILL) for i in killed]
        begun = time.monotonic()
        live = [i for i in range(r["hosts"]) if i not in killed]

        def arriving():
            haves = [ask(f"{urls[i]}/v1/blobs/{blob}/have") for i in live if i not in settled]
            return any(haves)

        until(arriving)
        detection = time.monotonic() - begun
        until(lambda: len(keepers()) >= r["copies"])
        took = time.monotonic() - begun
        published = pathlib.Path(artifact).read_bytes()
        for i in keepers():
            if ask(f"{urls[i]}/v1/blobs/{blob}", body=True) != published:
                raise SystemExit(f"host {i} gives other bytes")
    finally:
        [host.end() for host in hosts if host.process.poll() is None]
    repaired = 2 * len(published)
    return {"recovery_s": took, "detection_s": detection, "repair_s": took - detection, "repair_mib_per_s": repaired / (took - detection) / (1 << 20)}


def machine():
    model = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return {"cpu": model[0] if model else platform.machine(), "cores": len(os.sched_getaffinity(0)), "kernel": platform.release().split("-")[0]}


def file_system(folder):
    done = subprocess.run(["findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(folder)], capture_output=True, text=True)
    return done.stdout.strip()


def early(options):
    """Time to the first text of a model of 135M's shape, from a host that sends 20 MiB/s."""
    subprocess.run(["cargo", "build", "--release", "--quiet", "-p", "assay"], cwd=ROOT, check=True)
    command = [sys.executable, str(ROOT / "scripts/benchmarks/early.py"), "--rounds", str(options.rounds)]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"machine": machine(), "load": [round(x, 1) for x in os.getloadavg()], **result}


NAMES = {
    "nginx": "curl from nginx (nothing verified)", "iroh": "iroh-blobs", "ours_1": "1 host",
    "ours_1_end": "1 host, flushed only at the end", "ours_2": "2 hosts", "healthy": "4 hosts", "slow": "4 hosts, one slow by 100x",
    "dying": "4 hosts, one dies half-way", "corrupt": "4 hosts, one with 1 % of its tiles corrupted",
}


STEPS = {
    "hash": "name a blob and make its outboard, all threads", "verify_one_thread": "verify tiles, one thread", "write": "write verified tiles",
    "finish": "flush and name", "index": "make the tile list", "fsck": "fsck: read and verify everything", "add_file": "add a file",
    "add_second_version": "add a second version, 1 of 64 tiles new",
}


def page(results):
    out = ["# The hub, measured", "", "Made by `scripts/benchmarks/hub.py`; every part of [hub.json](hub.json) comes from one run on one machine.", ""]
    if "transfer" in results:
        it = results["transfer"]
        on = it["machine"]
        out += [
            "## Transfer", "",
            f"A pseudo-random blob of {it['mib']} MiB over loopback, files on {it['folder_on']}, {on['cores']} cores ({on['cpu']}), Linux {on['kernel']}. "
            f"Medians of {it['rounds']} interleaved rounds; clients and servers share the cores; the load was {it['load']} at the end.", "",
            "| from | flushed, s | GiB/s | page cache, s | first tile, ms | client CPU s/GiB | servers CPU s/GiB |", "|---|---|---|---|---|---|---|",
        ]
        for row in it["rows"]:
            keys = ["seconds", "gib_per_s", "page_cache_s", "first_tile_ms", "client_cpu_s_per_gib", "server_cpu_s_per_gib"]
            out.append(f"| {NAMES[row['name']]} | " + " | ".join(str(row.get(key, "")) for key in keys) + " |")
        out += ["", "| ratio | |", "|---|---|"]
        ratios = {
            "ratio_to_nginx": "time of curl and sync by ours, 1 host, flushed: above 1 is faster",
            "ratio_to_nginx_page_cache": "the same without the flushes",
            "ratio_to_iroh_blobs": "time of iroh-blobs by ours, 1 host", "slow_peer_ratio": "time with one of four slow by 100x by that with four healthy",
            "dying_peer_ratio": "with one that dies half-way", "corrupt_peer_ratio": "with one that has corrupted tiles",
        }
        out += [f"| {text} (`{key}`) | {it[key]} |" for key, text in ratios.items() if key in it]
        out += ["", "Ours verifies every tile before it is written, and flushes. After every fetch the stored file was compared with the one that was "
                "served; the corrupting host was dropped by name. \"Page cache\" is the time until all bytes are written and verified but perhaps not flushed. Blobs are "
                "pages in memory on the side of the hosts. iroh-blobs runs over QUIC, which encrypts; curl and ours run over plain TCP here. "
                "Single fetches differ by more than a factor of two, by whether the system has handed out the pages they write before (every round is in hub.json); a ratio below 1 of a faulty case means that the fault costs less than that.", ""]
    if "store" in results:
        it = results["store"]
        out += [
            "## Store", "",
            f"{it['mib']} MiB, files on {it['folder_on']}, medians of {it['rounds']} runs of `cargo run --release -p assay-hub --example store`. "
            "Writing is bound by what the system does for pages that nobody has touched yet, for any program.", "",
            "| step | GiB/s | CPU s/GiB |", "|---|---|---|",
        ]
        out += [f"| {STEPS[step]} | {row['gib_per_s']} | {row['cpu_s_per_gib']} |" for step, row in it["steps"].items()] + [""]
    if "recovery" in results:
        it = results["recovery"]["processes"]
        on = it["machine"]
        out += [
            "## Recovery", "",
            f"{it['hosts']} `assay host` processes on one machine ({on['cores']} cores, files on {it['folder_on']}) keep a release of {it['mib']} MiB, {it['copies']} copies asked. Two that keep "
            f"it are killed with SIGKILL. A {it['built']} build, load {it['load']}. Medians of {len(it['recovery_s_of_runs'])} runs; afterwards every live copy was fetched and compared with what was published.", "",
            "| | |", "|---|---|",
            f"| until {it['copies']} live copies are there again (`recovery_s`) | {it['recovery_s']} s |",
            f"| of it until the first repair begins: `--dead-after {it['dead_after_s']}` give or take a round (`--every {it['every_s']}`) | {it['detection_s']} s |",
            f"| of it repairs: two copies at once, from one host | {it['repair_s']} s, {it['repair_mib_per_s']} MiB/s together |", "",
            "The first is a setting: with the default of 4 hours the same takes 4 hours more, less those seconds. The second grows with the bytes that are lost and is bound by disks and links; here "
            "five hosts share one disk and the cores. Hosts verify, flush and hash an artifact (its content root) before they say that they keep it; that is counted.", "",
            "### By the default times, simulated", "",
            "20 releases, a fetch takes half an hour (`cargo run --release -p assay-hub --example replication 1 1 five`). A host counts as dead after 4 hours of silence.", "",
            "| kept as | releases lost | hours until every other one is whole |", "|---|---|---|",
        ]
        out += [f"| {row['kept_as']} | {row['losses']} | {row['hours_until_whole']:.1f} |" for row in results["recovery"]["rows"]] + [""]
    if "early" in results:
        it = results["early"]
        middle = it["medians"]
        out += [
            "## Time to the first text", "",
            f"Of a model that is not here yet, from one host that sends {it['mib_per_s']:g} MiB/s: {it['shape']}'s shape with random weights, {it['bytes'] >> 20} MiB, which takes "
            f"{it['bytes'] / it['mib_per_s'] / (1 << 20):.1f} s to send. From the start of the first process to the first text of a streamed answer to 32 words "
            f"(`scripts/benchmarks/early.py`). Both ways in turns, medians of {len(it['rounds'])} rounds, load {it['load']}.", "",
            "| way | first text, s |", "|---|---|",
            f"| `assay up RELEASE --from HOST`: served while it arrives | {middle['early_s']} |",
            f"| `assay pull`, then `assay up` | {middle['fetched_first_s']} |",
            f"| of that until `pull` ended | {middle['pull_s']} |", "",
            f"At the first text {middle['early_bytes_missing'] / 1e6:.1f} of the {it['bytes'] / 1e6:.1f} MB had not come, all of them rows of embeddings. Most of what is saved is not these but the work "
            "that `pull` does after the last byte (two hash trees, a check of the root) and the start of the server: served early, that work comes after the text and before the receipt.", "",
        ]
    return "\n".join(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", default=PARTS, choices=PARTS, help="what to measure again")
    parser.add_argument("--folder", type=pathlib.Path, default=TARGET / "benchmarks", help="where blobs go")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs/benchmarks")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--programs", type=pathlib.Path, help="folder of a build whose assay and examples the recovery takes [default: a release build]")
    parser.add_argument("--without-iroh", action="store_true", help="do not build and measure iroh-blobs")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "hub.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    measured = {"transfer": transfer, "store": store, "recovery": recovery, "early": early}
    for part in options.part:
        say(f"measuring: {part}")
        results[part] = measured[part](options)
        ordered = {ratio: results["transfer"][ratio] for ratio in RATIOS if "transfer" in results}
        ordered |= {"recovery_s": results["recovery"]["recovery_s"]} if "recovery" in results else {}
        ordered |= {name: results[name] for name in PARTS if name in results}
        path.write_text(json.dumps(ordered, indent=1) + "\n")
        (options.out / "hub.md").write_text(page(ordered))
    say(path)


main()
