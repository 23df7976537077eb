"""The `ponder` command: thin; each command imports what it needs when it runs, so that --help is quick."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from rl.cli_data import rewards_app, tasks_app
from rl.exits import CheckFailed, run_command
from rl.train import EPILOG, Overrides, train

app = typer.Typer(
    name="ponder",
    help="Ponder: train language models to think longer and better, by RL on problems that can be checked.",
    epilog="Start with: ponder train configs/quickstart.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Show and document the configuration.", no_args_is_help=True)
app.command("train", epilog=EPILOG)(train)
app.add_typer(tasks_app, name="tasks")
app.add_typer(rewards_app, name="rewards")
app.add_typer(config_app, name="config")

AsJson = Annotated[bool, typer.Option("--json", help="print figures as JSON")]


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
    from rl.config_docs import configuration_markdown
    from rl.rundir import write_atomic

    text = configuration_markdown()
    if not check:
        write_atomic(out, text)
        return
    if not out.exists() or out.read_text() != text:
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
    from rl.config import load_config
    from rl.serve import serve as serve_forever

    asyncio.run(serve_forever(load_config(config, overrides or [])))


@app.command(
    "eval", epilog="Example: ponder eval runs/first --task 'countdown?numbers=3' --problems 256 --k 1,4 --budget 0,64"
)
def evaluate(
    target: Annotated[str, typer.Argument(metavar="MODEL_OR_RUN_OR_URL")],
    tasks: Annotated[list[str], typer.Option("--task", help="task string; several: again, or between commas")],
    problems: Annotated[int, typer.Option(min=1, help="problems of each task")] = 256,
    split: Annotated[Literal["test", "val", "all"], typer.Option(help="which problems")] = "test",
    ks: Annotated[str, typer.Option("--k", help="k of pass@k; the largest is the number of samples a problem")] = "1",
    budgets: Annotated[
        str, typer.Option("--budget", help="thinking caps in tokens, comma separated; none or empty = no cap")
    ] = "",
    prompts: Annotated[str, typer.Option("--prompt", help="cot, direct, fewshot, comma separated")] = "cot",
    shots: Annotated[int, typer.Option(min=1, help="worked examples of a fewshot prompt, from train")] = 3,
    temperature: Annotated[float, typer.Option(min=0, help="0 = greedy")] = 1.0,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="tokens of a chain; default: 512, or the largest budget and the answer")
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
    """Score a model directory, a run's newest checkpoint or a server: pass@k with intervals, by thinking budget."""
    options = locals()
    from rl.evalcommand import parse_request, run_eval

    run_eval(parse_request(**options))


@app.command("scaling", epilog="Example: ponder scaling runs/axes --x tokens --out pictures")
def scaling(
    sources: Annotated[list[Path], typer.Argument(metavar="RUN|EVAL…", help="run directories, evaluation files")],
    out: Annotated[Path | None, typer.Option(help="directory of the pictures; default: the run's")] = None,
    x: Annotated[
        Literal["flops", "tokens", "steps", "seconds"], typer.Option(help="what the training axis counts")
    ] = "flops",
    as_json: AsJson = False,
) -> None:
    """Fit and draw accuracy against training compute and against thinking, and say whether each rises."""
    from rl.evaluation.axes import read_axes, summarise, to_json
    from rl.evaluation.figures import save_figures

    axes = read_axes(sources, x)
    paths = save_figures(axes, out or (sources[0] if len(sources) == 1 and sources[0].is_dir() else Path()))
    if as_json:
        print(json.dumps(to_json(axes), indent=1, allow_nan=False))
    print(*([] if as_json else summarise(axes)), *paths, sep="\n", file=sys.stderr if as_json else sys.stdout)


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
    from rl.config import load_section
    from rl.pretrain import PretrainConfig
    from rl.pretrain import pretrain as run_pretrain

    settings = load_section(PretrainConfig, config, overrides or [])
    print(f"{settings.out}: {run_pretrain(settings):.3f} nats a token")


@app.command("doctor", epilog="Example: ponder doctor")
def doctor(as_json: AsJson = False) -> None:
    """Check this machine and environment; each row that is not well names its fix."""
    from rl.doctor import doctor as run_doctor

    if run_doctor(as_json):
        raise CheckFailed


def main() -> None:
    """Entry point of the `ponder` command."""
    sys.exit(run_command(lambda: app(standalone_mode=False)))


if __name__ == "__main__":
    main()
