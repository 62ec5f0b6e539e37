"""What the engine is measured beside: llama.cpp from the registry's `llama-cpp-python`, and models of random weights for both sides.

Everything lies in one folder and is made once. Needs python3 with venv and a C++ compiler.
"""

import importlib.metadata
import json
import os
import pathlib
import subprocess
import tarfile
import venv

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
ASSAY = TARGET / "release/assay"
FOLDER = TARGET / "benchmarks"
SHAPES = ["135M", "360M", "1B"]
PACKAGE = "llama-cpp-python"


def lines(command):
    """The JSON lines that a command prints."""
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{command}\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def write(out, name, rows):
    """Numbers, a row in each line."""
    out.mkdir(parents=True, exist_ok=True)
    text = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    (out / f"{name}.json").write_text(f"[\n{text}\n]\n")


def ours(folder, shapes):
    """Builds the binary, and writes a model of each shape."""
    subprocess.run(["cargo", "build", "--release", "--locked"], cwd=ROOT, check=True)
    folder.mkdir(parents=True, exist_ok=True)
    for shape in shapes:
        if not model(folder, shape).exists():
            lines([ASSAY, "bench", "--json", "synthetic", shape, model(folder, shape)])


def model(folder, shape):
    return folder / f"{shape}.assay"


def theirs(folder, shapes):
    """Builds the package and writes a model of each shape; the Python that has it."""
    python = folder / "venv/bin/python"
    if not python.exists():
        venv.create(folder / "venv", with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "numpy", "gguf", PACKAGE], check=True)
    for shape in shapes:
        if not their_model(folder, shape).exists():
            lines([python, HERE / "peer_model.py", shape, their_model(folder, shape)])
    return python


def their_model(folder, shape):
    return folder / f"{shape}-q8_0.gguf"


def version(folder):
    """Of the package that is installed."""
    site = next((folder / "venv/lib").glob("python*/site-packages"))
    return next(importlib.metadata.distributions(name=PACKAGE, path=[str(site)])).version


def server(folder):
    """llama.cpp's own server, built from the sources that lie in the installed package's source archive. What the package calls its server is
    another, in Python, and takes one request at a time."""
    built = folder / f"llama-server-{version(folder)}/bin/llama-server"
    if built.exists():
        return built
    python = folder / "venv/bin/python"
    pip = [python, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "install", "cmake", "ninja"], check=True)
    archive = [f"{PACKAGE}=={version(folder)}", "--no-deps", "--no-binary", PACKAGE, "--dest", folder / "source"]
    subprocess.run([*pip, "download", *archive], check=True)
    with tarfile.open(next((folder / "source").glob(f"*{version(folder)}.tar.gz"))) as sources:
        sources.extractall(folder / "source", filter="data")
    sources = next((folder / "source").glob(f"*{version(folder)}/vendor/llama.cpp"))
    # As the package is built: for this processor. Without what fetches models and pages, which need libraries and registries.
    options = {
        "CMAKE_BUILD_TYPE": "Release", "GGML_NATIVE": "ON", "BUILD_SHARED_LIBS": "OFF", "LLAMA_CURL": "OFF", "LLAMA_OPENSSL": "OFF",
        "LLAMA_BUILD_TESTS": "OFF", "LLAMA_BUILD_EXAMPLES": "OFF", "LLAMA_BUILD_APP": "OFF", "LLAMA_USE_PREBUILT_UI": "OFF", "LLAMA_BUILD_SERVER": "ON",
    }
    programs = {**os.environ, "PATH": f"{folder / 'venv/bin'}:{os.environ['PATH']}"}
    cmake = folder / "venv/bin/cmake"
    defined = [f"-D{key}={value}" for key, value in options.items()]
    out = built.parents[1]
    subprocess.run([cmake, "-S", sources, "-B", out, "-G", "Ninja", *defined], env=programs, stdout=subprocess.DEVNULL, check=True)
    subprocess.run([cmake, "--build", out, "--target", "llama-server"], env=programs, stdout=subprocess.DEVNULL, check=True)
    return built
