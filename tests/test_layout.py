"""What the tree promises: arrows between packages, sizes, a light import, no dangerous call, no stray address."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from rl.config import Config, load_config, walk_fields
from rl.memory import shapes_path

ROOT = Path(__file__).parent.parent
PACKAGES = ("rewards", "rollout", "rl")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
HEAVY = {"torch", "transformers", "vllm", "trl", "peft", "sympy", "datasets", "accelerate"}
HEAVY |= {"math_verify", "pint", "pronouncing", "reasoning_gym"}
MATHS = {"advantages", "losses", "kl", "logprobs", "correction"}
OWNERS = {  # a library -> the only files that may import it
    "accelerate": {"rl/learner.py", "rl/sync.py", "rl/checkpoint.py", "rl/metrics.py"},
    "torch.distributed": {"rl/parallel.py", "rl/learner.py", "rl/sync.py", "rl/checkpoint.py", "rl/metrics.py"},
    "peft": {"rl/model.py"},
    "trl": {"rl/sft.py"},
}
READING_PATH = (
    *("rewards/types.py", "rollout/types.py", "rollout/sampling.py", "rollout/chain.py", "rollout/client.py"),
    *("rollout/collect.py", "rl/advantages.py", "rl/losses.py", "rl/batch.py", "rl/learner.py", "rl/loop.py"),
)
TOP_LEVEL = {
    *(".ci", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "pyproject.toml"),
    *("benchmarks", "configs", "docs", "examples", "requirements", "rewards", "rl", "rollout", "tests"),
}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path, *, top_only: bool = False) -> set[str]:
    """Dotted modules that a file imports; `top_only` leaves out functions and TYPE_CHECKING blocks."""
    return {module for node in statements(tree(path), top_only) for module in modules(node)}


def statements(node: ast.AST, top_only: bool) -> Iterator[ast.AST]:
    lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
        isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    )
    if top_only and lazy:
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from statements(child, top_only)


def modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative import; the arrows are read off absolute ones"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def top(module: str) -> str:
    return module.partition(".")[0]


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize(
    ("package", "banned"),
    [("rewards", {"rollout", "rl", "torch", "transformers", "vllm"}), ("rollout", {"rl"})],
)
def test_arrows_go_one_way(package: str, banned: set[str]) -> None:
    wrong = [
        f"{name_of(path)} imports {module}"
        for path in (ROOT / package).rglob("*.py")
        for module in imports(path)
        if top(module) in banned
    ]
    assert not wrong


def test_rollout_loads_torch_and_vllm_only_where_they_belong() -> None:
    torch_files = {"rollout/transformers_sampler.py", "rollout/server/weights_plugin.py"}
    for path in (ROOT / "rollout").rglob("*.py"):
        at_top = {top(module) for module in imports(path, top_only=True)}
        if name_of(path) not in torch_files:
            assert not at_top & {"torch", "transformers", "safetensors.torch"}, name_of(path)
        if path.parent.name != "server":
            assert "vllm" not in {top(module) for module in imports(path)}, name_of(path)


def test_maths_files_import_torch_and_each_other_only() -> None:
    allowed = {"torch", "__future__", *sys.stdlib_module_names}
    for name in MATHS:
        for module in imports(ROOT / "rl" / f"{name}.py"):
            own = module.startswith("rl.") and module.split(".")[1] in MATHS
            assert own or top(module) in allowed, f"rl/{name}.py imports {module}"


@pytest.mark.parametrize("library", OWNERS)
def test_a_heavy_library_has_its_owner(library: str) -> None:
    users = {name_of(path) for path in SOURCES if any(f"{m}.".startswith(f"{library}.") for m in imports(path))}
    assert users <= OWNERS[library]


def test_functions_and_files_stay_short() -> None:
    long = [
        f"{name_of(path)}:{node.lineno} {node.name} has {(node.end_lineno or 0) - node.lineno + 1} lines"
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 80
    ]
    long += [
        f"{name_of(path)} has {lines} lines"
        for path in [*SOURCES, *(ROOT / "tests").rglob("*.py")]
        if (lines := path.read_text().count("\n")) > 450
    ]
    assert not long


def test_the_packages_and_the_reading_path_stay_small() -> None:
    assert sum(path.read_text().count("\n") for path in SOURCES) <= 13_000
    assert sum((ROOT / name).read_text().count("\n") for name in READING_PATH) < 2_000


def run_python(code: str, cwd: Path = ROOT) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_packages_loads_nothing_heavy_and_writes_no_environment() -> None:
    code = f"""
import os, sys
before = dict(os.environ)
import rl, rewards, rollout
print(sorted({HEAVY} & set(sys.modules)), dict(os.environ) == before)
"""
    assert run_python(code).strip() == "[] True"


def test_help_loads_nothing_heavy() -> None:
    code = f"""
import sys
sys.argv = ["ponder", "--help"]
from rl.cli import main
try:
    main()
except SystemExit as stop:
    print("code", stop.code or 0)
print("loaded", sorted({HEAVY} & set(sys.modules)))
"""
    lines = run_python(code).splitlines()
    assert lines[-1] == "loaded []"
    assert "code 0" in lines


def dangers(path: Path) -> Iterator[str]:
    """Calls that would run or unpickle what a model or a file says."""
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        true = {word.arg for word in node.keywords if isinstance(word.value, ast.Constant) and word.value.value is True}
        if name in {"eval", "exec", "pickle.load", "pickle.loads", "torch.load", "os.system"}:
            yield f"{name_of(path)}:{node.lineno} calls {name}"
        for flag in true & {"shell", "trust_remote_code"}:
            yield f"{name_of(path)}:{node.lineno} sets {flag}=True"


def test_no_call_runs_or_unpickles_text() -> None:
    assert not [danger for path in SOURCES for danger in dangers(path)]


def test_the_danger_finder_sees_each_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    bad = tmp_path / "bad.py"
    bad.write_text("eval(x)\nexec(x)\npickle.loads(b)\nrun(c, shell=True)\nload(m, trust_remote_code=True)\n")
    assert [danger.split(" ", 1)[0] for danger in dangers(bad)] == [f"bad.py:{line}" for line in range(1, 6)]
    good = tmp_path / "good.py"
    good.write_text("model.eval()\nre.compile(p)\nrun(c, shell=False)\n")
    assert not list(dangers(good))


def test_every_config_field_is_read_in_rl() -> None:
    """The rollout fields that exist to be refused are read by the check in config.py itself."""
    refused = {"top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"}
    text = "\n".join(path.read_text() for path in (ROOT / "rl").rglob("*.py"))
    leaves = {dotted.rsplit(".", 1)[-1] for dotted, _ in walk_fields(Config)} - refused
    assert not sorted(leaf for leaf in leaves if not re.search(rf"\.{leaf}\b", text))


@pytest.mark.parametrize(
    "path",
    [p for p in sorted((ROOT / "configs").glob("*.yaml")) if not p.name.startswith(("pretrain_", "sft_"))],
    ids=lambda path: path.name,
)
def test_every_config_is_a_short_training_config(path: Path) -> None:
    config = load_config(path)
    assert shapes_path(str(ROOT / config.model.path)).is_dir()
    assert path.read_text().count("\n") < 40


def test_the_top_level_is_the_agreed_one() -> None:
    assert {name.partition("/")[0] for name in tracked()} <= TOP_LEVEL
    with_python = {top(name.replace("/", ".")) for name in tracked() if name.endswith(".py")}
    assert with_python <= {*PACKAGES, "tests", "benchmarks", "examples", "docs"}


def test_no_machine_path_and_no_registry_host_is_written_down() -> None:
    paths = [f"/{name}/" for name in ("work", "root")]
    hosts = ["pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "debian" + ".org", "download.pytorch" + ".org"]
    allowed = {("Makefile", hosts[-1])}  # torch's CPU build is on no other index
    found = {
        (name, word)
        for name in tracked()
        if not name.endswith(".safetensors")
        for word in paths + hosts
        if re.search(rf"(?<![\w.]){re.escape(word)}", (ROOT / name).read_text(errors="replace"))
    }
    assert found <= allowed
