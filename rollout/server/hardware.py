"""What this machine offers, asked without torch: cores, memory, NVIDIA GPUs."""

import os
import platform
import subprocess
from dataclasses import dataclass, replace

import psutil

from rewards.errors import BadInput


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_gb: float  # total, GiB
    id: str = "0"  # what CUDA_VISIBLE_DEVICES calls it, in the order of the PCI bus


@dataclass(frozen=True)
class Hardware:
    cores: int  # logical cores this process may run on
    memory_gb: float  # total, GiB
    gpus: tuple[Gpu, ...] = ()
    arch: str = "x86_64"
    system: str = "Linux"


def probe() -> Hardware:
    """Ask the operating system and nvidia-smi for what this process may use."""
    # Not cpu_count(): a container or a launcher may have pinned us to fewer.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_gb = round(psutil.virtual_memory().total / 2**30, 1)
    return Hardware(cores, memory_gb, _gpus(), arch=platform.machine(), system=platform.system())


def stated_hardware(here: Hardware, gpus: int | None, gpu_memory_gb: float | None) -> Hardware:
    """`here` with the GPUs that a configuration states (GiB each), null as they are. Raises BadInput for half of it."""
    if gpus is None and gpu_memory_gb is None:
        return here
    if not here.gpus and (gpus is None or (gpus > 0 and gpu_memory_gb is None)):
        missing = "gpus" if gpus is None else "gpu_memory_gb"
        raise BadInput(f"hardware.{missing}=null, and there is no GPU here to ask; state it, too")
    count = len(here.gpus) if gpus is None else gpus
    memory = gpu_memory_gb or max((gpu.memory_gb for gpu in here.gpus), default=0.0)
    return replace(here, gpus=tuple(Gpu("as stated", memory, str(i)) for i in range(count)))


def check_stated(here: Hardware, gpus: int | None, gpu_memory_gb: float | None) -> None:
    """BadInput where a run would start on other GPUs than its configuration states."""
    if gpus is not None and gpus != len(here.gpus):
        fix = "run it there, set hardware.gpus=null, or look at its plan with --dry-run"
        raise BadInput(f"hardware.gpus={gpus} is stated and {len(here.gpus)} can be used here; {fix}")
    for i, gpu in enumerate(here.gpus):
        # a card "of 24 GB" shows 22.5 to 24 GiB
        if gpu_memory_gb is not None and abs(gpu.memory_gb - gpu_memory_gb) > 0.1 * gpu_memory_gb:
            there = f"GPU {i} ({gpu.name}) has {gpu.memory_gb:g}; run it there, or set hardware.gpu_memory_gb=null"
            raise BadInput(f"hardware.gpu_memory_gb={gpu_memory_gb:g} is stated and {there}")


def _gpus() -> tuple[Gpu, ...]:
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order; none where nvidia-smi is missing or fails."""
    query = ["nvidia-smi", "--query-gpu=uuid,memory.total,name", "--format=csv,noheader,nounits"]
    try:
        out = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return ()
    rows = [(str(i), *line.split(", ", 2)) for i, line in enumerate(out.splitlines())]
    rows = [row for row in rows if len(row) == 4 and row[2].isdigit()]
    found = {uuid: Gpu(name, round(float(memory) / 1024, 1), i) for i, uuid, memory, name in rows}
    if (wanted := os.environ.get("CUDA_VISIBLE_DEVICES")) is None:
        return tuple(found.values())
    chosen: list[Gpu] = []  # named by number or by the start of a UUID; as for CUDA, none after an unknown one
    for name in map(str.strip, wanted.split(",")):
        match = [gpu for uuid, gpu in found.items() if name == gpu.id or (name[:4] == "GPU-" and uuid.startswith(name))]
        if not match:
            break
        chosen.append(match[0])
    return tuple(chosen)
