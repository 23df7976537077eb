"""The `ponder` command: thin; each command imports what it needs when it runs, so that --help is quick."""

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal, TypeVar

import typer

from rewards.errors import BadInput
from rewards.gold import first_problems, in_order, score_gold
from rewards.pool import RewardPool
from rewards.registry import list_rewards
from rewards.tasks import list_tasks, load_task
from rewards.tasks.rows import parse_object
from rewards.types import Problem, Split
from rl.exits import CheckFailed, run_command
from rl.train import EPILOG, Overrides, train
from rollout.prompt import load_tokenizer

T = TypeVar("T")
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Limit = Annotated[float, typer.Option("--time-limit", min=0.01, help="seconds an item may take")]
Workers = Annotated[int, typer.Option(min=1, help="worker processes")]
Reward = Annotated[str, typer.Option(help='name, module:function, file.py:function or \'{"use": …, "args": …}\'')]
Memory = Annotated[float, typer.Option("--memory-gb", min=0.01, help="GiB an item may add")]
TaskName = Annotated[str, typer.Argument(help="NAME, 'NAME?numbers=3' or path.jsonl")]

app = typer.Typer(
    name="ponder",
    help="Ponder: train language models to think longer and better, by RL on problems that can be checked.",
    epilog="Start with: ponder train configs/quickstart.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tasks_app = typer.Typer(help="List, sample and check problem sources.", no_args_is_help=True)
rewards_app = typer.Typer(help="List, try, check and compare rewards.", no_args_is_help=True)
config_app = typer.Typer(help="Show and document the configuration.", no_args_is_help=True)
app.command("train", epilog=EPILOG)(train)
app.add_typer(tasks_app, name="tasks")
app.add_typer(rewards_app, name="rewards")
app.add_typer(config_app, name="config")


@config_app.command("show", epilog="Example: ponder config show configs/quickstart.yaml train.steps=5")
def config_show(config: str, overrides: Overrides = None) -> None:
    """Print the resolved configuration as YAML."""
    from rl.config import dump_config, load_config

    sys.stdout.write(dump_config(load_config(config, overrides or [])))


@config_app.command("docs", epilog="Example: ponder config docs --check")
def config_docs(
    out: Annotated[Path, typer.Option(help="file to write")] = Path("docs/configuration.md"),
    check: Annotated[bool, typer.Option("--check", help="write nothing; exit 1 where the file isn't current")] = False,
) -> None:
    """Write docs/configuration.md from the configuration's own fields."""
    from rl.rundir import write_atomic
    from rl.views import configuration_markdown

    text = configuration_markdown()
    if not check:
        write_atomic(out, text)
    elif not out.exists() or out.read_text() != text:
        print(f"{out} is not current; run `ponder config docs`", file=sys.stderr)
        raise CheckFailed


@app.command("selftest", epilog="Example: ponder selftest configs/quickstart.yaml --json")
def selftest(config: str, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Two steps at learning rate 0 on your own model: server and learner must agree, before and after a push."""
    from rl.config import load_config
    from rl.selftest import run_selftest

    if not run_selftest(load_config(config, overrides or []), as_json=as_json):
        raise CheckFailed


@app.command("serve", epilog="Example: ponder serve configs/quickstart.yaml server.port=8100")
def serve(config: str, overrides: Overrides = None) -> None:
    """Run the rollout server alone, for a learner that names it in rollout.servers."""
    from rl.backend import serve as serve_forever
    from rl.config import load_config

    asyncio.run(serve_forever(load_config(config, overrides or [])))


@app.command("eval", epilog="Example: ponder eval runs/first --task 'countdown?numbers=3' --k 1,4 --budget 0,64")
def evaluate(
    target: Annotated[str, typer.Argument(metavar="MODEL_OR_RUN_OR_URL")],
    tasks: Annotated[list[str], typer.Option("--task", help="task string; several: again, or between commas")],
    problems: Annotated[int, typer.Option(min=1, help="problems of each task")] = 256,
    split: Annotated[Literal["test", "val", "all"], typer.Option(help="which problems")] = "test",
    ks: Annotated[str, typer.Option("--k", help="k of pass@k; the largest is the number of samples a problem")] = "1",
    budgets: Annotated[str, typer.Option("--budget", help="caps on thinking in tokens; none or empty = no cap")] = "",
    prompts: Annotated[str, typer.Option("--prompt", help="cot, direct, fewshot, comma separated")] = "cot",
    shots: Annotated[int, typer.Option(min=1, help="worked examples of a fewshot prompt, from train")] = 3,
    temperature: Annotated[float, typer.Option(min=0, help="0 = greedy")] = 1.0,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="of a chain; default: 512, or as --budget needs")
    ] = None,
    answer: Annotated[int, typer.Option(min=1, help="of these, tokens for the answer behind a forced close")] = 64,
    reward: Annotated[str | None, typer.Option(help="reward to score with; default: the task's own")] = None,
    sampler: Annotated[Literal["vllm", "transformers"], typer.Option(help="what generates")] = "vllm",
    think: Annotated[bool, typer.Option(help="whether chains think first; a run knows, others are taken to")] = True,
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer directory, for a URL")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="F.json for the cells; every chain goes beside it")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the chains beside --out")] = False,
    as_json: AsJson = False,
) -> None:
    """Score a model or adapter, a run's newest checkpoint or a server: pass@k with intervals, by thinking budget."""
    options = locals()
    from rl.evalcommand import parse_request, run_eval

    run_eval(parse_request(**options))


@app.command("merge", epilog="Example: ponder merge runs/first/checkpoints/step-100 merged")
def merge(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER_OR_CHECKPOINT", help="LoRA, in peft's format")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="model directory to write")],
    base: Annotated[Path | None, typer.Option(help="model under the adapter; default: the one that it names")] = None,
) -> None:
    """Merge a LoRA adapter into its base, in fp32 and cast once, as a model directory like any other."""
    from rl.model import merge_adapter

    merge_adapter(adapter, out, base)
    print(out)


@app.command("scaling", epilog="Example: ponder scaling runs/axes --x tokens --out pictures")
def scaling(
    sources: Annotated[list[Path], typer.Argument(metavar="RUN|EVAL…", help="run directories, evaluation files")],
    out: Annotated[Path | None, typer.Option(help="directory of the pictures; default: the run's")] = None,
    x: Annotated[Literal["flops", "tokens", "steps", "seconds"], typer.Option(help="training axis's unit")] = "flops",
    as_json: AsJson = False,
) -> None:
    """Fit and draw accuracy against training compute and against thinking, and say whether each rises."""
    from rl.evaluation.axes import read_axes, to_json
    from rl.report.figures import save_figures
    from rl.views import words

    axes = read_axes(sources, x)
    paths = save_figures(axes, out or (sources[0] if len(sources) == 1 and sources[0].is_dir() else Path()))
    print(json.dumps(to_json(axes), indent=1, allow_nan=False) if as_json else words("axes", axes).rstrip())
    print(*paths, sep="\n", file=sys.stderr if as_json else sys.stdout)


@app.command("report", epilog="Example: ponder report runs/quickstart")
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run directory, finished or not")],
    out: Annotated[Path | None, typer.Option(help="HTML file to write; default: report.html in the run")] = None,
) -> None:
    """Write what a run did as one HTML file that needs nothing else: figures, axes, chains, configuration."""
    from rl.report.build import build_report

    print(build_report(run, out))


@app.command("pretrain", epilog="Example: ponder pretrain configs/pretrain_tiny.yaml steps=200 out=runs/base")
def pretrain(config: str, overrides: Overrides = None) -> None:
    """Make a base model by next-word prediction on countdown search traces."""
    from rl import pretrain as base
    from rl.config import load_section

    settings = load_section(base.PretrainConfig, config, overrides or [])
    print(f"{settings.out}: {base.pretrain(settings):.3f} nats a token")


@app.command("doctor", epilog="Example: ponder doctor")
def doctor(as_json: AsJson = False) -> None:
    """Check this machine and environment; each row that is not well names its fix."""
    from rl.doctor import doctor as run_doctor

    if run_doctor(as_json):
        raise CheckFailed


@tasks_app.command("list", epilog="Example: ponder tasks list --json")
def tasks_list(as_json: AsJson = False) -> None:
    """List the built-in tasks with their parameters."""
    _show(as_json, "tasks_list", list_tasks())


@tasks_app.command("sample", epilog="Example: ponder tasks sample 'countdown?numbers=3' -n 5 --split test")
def tasks_sample(
    name: TaskName,
    count: Annotated[int, typer.Option("-n", min=1, help="problems")] = 5,
    split: Annotated[Split, typer.Option(help="which split")] = "train",
    seed: Annotated[int, typer.Option(help="seed of the problems")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show problems as a run with this seed would draw them."""
    task = load_task(name, seed)
    size = task.size(split)
    shown = range(count if size is None else min(count, max(1, size)))
    _show(as_json, "tasks_sample", [asdict(task.problem(index, split)) for index in shown])


@tasks_app.command("check", epilog="Example: ponder tasks check mine.jsonl -n 200")
def tasks_check(
    name: TaskName,
    count: Annotated[int, typer.Option("-n", min=1, help="problems (of a file: the first ones of each split)")] = 20,
    seed: Annotated[int, typer.Option(help="seed of the problems")] = 0,
    tokenizer: Annotated[Path | None, typer.Option(help="model directory to count tokens with; default: words")] = None,
    time_limit: Limit = 1.0,
    workers: Workers = 2,
    as_json: AsJson = False,
) -> None:
    """Check that every gold answer is scored correct; exit 1 when one is not."""
    task = load_task(name, seed)
    problems = list(first_problems(task, count))
    shown = _track(problems, "checking")
    found = _in_pool(lambda pool: score_gold(pool, task, shown, lambda p: p.reward), workers, time_limit)
    wrong = [gold for gold in found if not gold.score.correct]
    chains = [text for p in problems if isinstance(text := p.meta.get("gold"), str)]
    split = load_tokenizer(tokenizer).tokenize if tokenizer else str.split
    row = {"task": name, "checked": len(found), "correct": len(found) - len(wrong)}
    row |= {"seconds_mean": fmean(gold.seconds for gold in found)}
    row |= {"chain_tokens_mean": fmean(len(split(text)) for text in chains) if chains else None}
    row |= {"wrong": [{"id": g.problem.id, "status": g.score.status, "detail": g.score.detail} for g in wrong]}
    _show(as_json, "tasks_check", row, wrong, "tokens" if tokenizer else "words", getattr(task, "dropped", 0))
    if wrong:
        raise CheckFailed(name)


@rewards_app.command("list", epilog="Example: ponder rewards list")
def rewards_list(as_json: AsJson = False) -> None:
    """List rewards that have a name, with the source of each."""
    _show(as_json, "rewards_list", list_rewards())


@rewards_app.command("score", epilog="Example: ponder rewards score --reward my_rewards.py:reward < responses.jsonl")
def rewards_score(reward: Reward, time_limit: Limit = 1.0, memory_gb: Memory = 1.0, workers: Workers = 2) -> None:
    """Score responses: JSONL {response, answer, id?, prompt?, …} on stdin, a JSON line for each on stdout, in order."""
    spec, tries = _read_spec(reward), []
    for number, line in enumerate(sys.stdin.buffer, 1):
        if line.strip():
            row = parse_object(f"stdin, line {number}", line)
            id, response, truncated = row.pop("id", None), row.pop("response", None), bool(row.pop("truncated", False))
            if not isinstance(response, str):
                raise BadInput(f"stdin, line {number}: no text 'response'; each line is {{response, answer, …}}")
            name, prompt = str(number if id is None else id), row.pop("prompt", None) or ""
            problem = Problem(name, "stdin", prompt, row.pop("answer", None), key=str(number), meta=row)
            tries.append((id, response, problem, spec, truncated))  # the id comes back as it came
    shown = sys.stderr.isatty() and not sys.stdout.isatty()  # never among the results

    async def run(pool: RewardPool) -> None:
        await pool.load(spec)
        async for score, seconds in in_order(pool.timed(*one) for one in _track(tries, "scoring", shown)):
            row = {"id": score.id, "score": score.value, "correct": score.correct, "status": score.status,
                   "parts": score.parts, "detail": score.detail, "seconds": round(seconds, 6)}  # fmt: skip
            print(json.dumps(row), flush=True)

    _in_pool(run, workers, time_limit, memory_gb)


@rewards_app.command("check", epilog="Example: ponder rewards check my_rewards.py:reward --task mine.jsonl")
def rewards_check(
    reward: Annotated[str, typer.Argument(help="as for score")],
    task: Annotated[str | None, typer.Option(help="take problems and their gold answers from this task")] = None,
    count: Annotated[int, typer.Option("-n", min=1, help="problems of the task")] = 5,
    time_limit: Limit = 1.0,
    workers: Workers = 2,
) -> None:
    """Try a reward on gold answers, near misses, empty, huge and hostile responses; exit 1 where one misbehaves."""
    from rl.scoring import probe_reward

    spec = _read_spec(reward)
    table, wrong = _in_pool(lambda pool: probe_reward(pool, spec, task, count), workers, time_limit)
    print(*table, *wrong, sep="\n")
    if wrong:
        raise CheckFailed(reward)


@rewards_app.command("rescore", epilog="Example: ponder rewards rescore runs/first --reward math --steps 5-10")
def rewards_rescore(
    run: Annotated[Path, typer.Argument(help="run directory; it is only read")],
    reward: Reward,
    steps: Annotated[str, typer.Option(help="`7` or `5-10`; default: all")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="chains at most")] = None,
    show: Annotated[int, typer.Option("-n", min=0, help="changed chains that are shown")] = 10,
    time_limit: Limit = 1.0,
    memory_gb: Memory = 1.0,
    workers: Workers = 2,
    as_json: AsJson = False,
) -> None:
    """Score a run's stored chains with another reward, and show old and new verdicts side by side."""
    from rl.scoring import rescore, stored_chains

    spec, chains = _read_spec(reward), _track(stored_chains(run, steps, limit), "scoring")
    found = _in_pool(lambda pool: rescore(pool, run, spec, chains), workers, time_limit, memory_gb)
    _show(as_json, "rescore", found, show)


def _show(as_json: bool, view: str, data: Any, *more: Any) -> None:
    """Print what a command found: JSON, or in words by a macro of rl/views.j2."""
    from rl.views import words

    print(json.dumps(data, indent=1) if as_json else words(view, data, *more).rstrip("\n"))


def _read_spec(text: str) -> Any:
    """A reward as given on the command line: JSON where it begins with a brace. Raises BadInput."""
    try:
        return json.loads(text) if text.lstrip().startswith("{") else text
    except ValueError as error:
        raise BadInput(f'--reward {text!r} is not JSON ({error}); write \'{{"use": …, "args": {{…}}}}\'') from None


def _in_pool(work: Callable[[RewardPool], Coroutine[Any, Any, T]], *limits: Any) -> T:
    """Do what needs a pool of rewards."""

    async def run() -> T:
        async with RewardPool(*limits) as pool:
            return await work(pool)

    return asyncio.run(run())


def _track(items: Iterable[T], what: str, shown: bool | None = None) -> Iterable[T]:
    """The items behind a bar on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    disable = not (sys.stderr.isatty() if shown is None else shown)
    return track(items, what, console=Console(stderr=True), transient=True, disable=disable)


def main() -> None:
    """Entry point of the `ponder` command."""
    sys.exit(run_command(lambda: app(standalone_mode=False)))


if __name__ == "__main__":
    main()
