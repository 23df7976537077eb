"""What this machine offers, asked without torch: cores, memory, NVIDIA GPUs."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU."""

    name: str
    memory_gb: float  # total, GiB


@dataclass(frozen=True)
class Hardware:
    """One machine, as this process may use it."""

    cores: int  # logical cores this process may run on
    memory_gb: float  # total, GiB
    gpus: tuple[Gpu, ...] = ()
    arch: str = "x86_64"
    system: str = "Linux"


def probe() -> Hardware:
    """Ask the operating system and nvidia-smi; no GPU where nvidia-smi is missing or fails."""
    return Hardware(
        cores=_cores(),
        memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
        gpus=_gpus(),
        arch=platform.machine(),
        system=platform.system(),
    )


def _cores() -> int:
    # Not cpu_count(): a container or a launcher may have pinned us to fewer.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> tuple[Gpu, ...]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        out = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return ()
    rows = [line.rsplit(",", 1) for line in out.splitlines() if "," in line]
    return tuple(Gpu(name.strip(), round(float(mib) / 1024, 1)) for name, mib in rows if mib.strip().isdigit())
