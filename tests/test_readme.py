"""The README's words hold: its example scores, its configuration loads, its tree is the tree."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from rl.config import load_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found, f"no {language} block in the README"
    return found[1]


def test_the_example_reward_scores_the_example_problems(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(block("json"))
    (tmp_path / "my_rewards.py").write_text(block("python"))
    command = [sys.executable, "-m", "rl.cli", "rewards", "check", "my_rewards.py:reward", "--task", "mine.jsonl"]
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_configuration_loads(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(block("yaml"))
    config = load_config(path)
    assert config.reward == "my_rewards.py:reward"
    assert config.train.learning_rate == pytest.approx(1e-6)


def test_the_commands_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert {"setup", "test"} <= targets
    assert all(f"\n{target}:" in makefile for target in targets)
    assert all((ROOT / path).is_file() for path in re.findall(r"\bconfigs/[\w/-]+\.yaml", README))
    assert all((ROOT / path).is_file() for path in re.findall(r"\]\(([\w/.-]+)\)", README))


def test_the_tree_names_every_file_and_no_other() -> None:
    named: dict[str, set[str]] = {}
    folder = ""
    for row in (line for line in README.splitlines() if line.startswith("| ")):
        if header := re.match(r"\| \*\*([\w/]+)/\*\*", row):
            folder = header[1]
        named.setdefault(folder, set()).update(re.findall(r"`(\w+\.py)`", row))
    inits = [path for name in ("rewards", "rollout", "rl") for path in ROOT.glob(f"{name}/**/__init__.py")]
    for directory in sorted(path.parent for path in inits):
        package = directory.relative_to(ROOT).as_posix()
        files = {path.name for path in directory.glob("*.py")} - {"__init__.py"}
        assert named[package] == files, package
