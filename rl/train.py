"""`ponder train` and `accelerate launch -m rl.train CONFIG [key.sub=value …]`: parse, build, call."""

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Annotated

import typer

from rewards.errors import BadInput
from rl.exits import run_command

EPILOG = "Example: ponder train configs/quickstart.yaml run.name=first train.steps=20"
Overrides = Annotated[list[str] | None, typer.Argument(help="key.sub=value …, on top of the file", show_default=False)]


def train(
    config: Annotated[str | None, typer.Argument(help="YAML file; see configs/", show_default=False)] = None,
    overrides: Overrides = None,
    resume: Annotated[Path | None, typer.Option(help="go on with the run in this directory")] = None,
    replay: Annotated[Path | None, typer.Option(help="train from this run's stored chains, without a server")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="start anew in a directory that holds a run")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything, say what would run, stop")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="print the resolved configuration")] = False,
) -> None:
    """Train a policy on verifiable problems: rollouts by vLLM, scores by verifiers, GRPO updates."""
    from rl.doctor import check_shadowing

    check_shadowing(Path.cwd())  # before anything else of ours is imported
    check_world(os.environ)
    from rl.config import dump_config, load_config, override_config
    from rl.rundir import RunDir, open_run

    if resume is not None:
        run, own = open_run(resume)
        settings = override_config(own, [*([config] if config else []), *(overrides or [])])
    elif config is None:
        raise BadInput("name a configuration file (see configs/) or --resume RUN; `ponder train --help` has an example")
    else:
        settings = load_config(config, overrides or [])
        run = RunDir(settings.run_dir)
    if print_config:
        sys.stdout.write(dump_config(settings))
    elif dry_run:
        from rl.launch import print_plan

        print_plan(settings)
    else:
        from rollout.server.argv import SPIN_COUNT, SPIN_VARIABLE

        os.environ.setdefault(SPIN_VARIABLE, SPIN_COUNT)  # read once, when torch loads, which the next line does
        from rl.launch import launch

        launch(settings, run, resume=resume is not None, replay=replay, overwrite=overwrite)


def check_world(env: MutableMapping[str, str]) -> None:
    """BadInput where the launcher's environment asks for more than the one learner process that there is so far."""
    size = env.get("WORLD_SIZE")
    if size is None and "MASTER_ADDR" in env:
        raise BadInput(
            f"MASTER_ADDR={env['MASTER_ADDR']} is set without WORLD_SIZE, so this process can't know its place: unset "
            "it, or launch with `accelerate launch --num_processes 1 -m rl.train`"
        )
    if size is not None and size != "1":
        raise BadInput(f"WORLD_SIZE={size}: the learner is one process so far; launch with --num_processes 1")
    env.pop("LOCAL_RANK", None)  # torchrun's world of one: accelerate would wrap the policy in DDP for it


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(epilog=EPILOG)(train)
    sys.exit(run_command(lambda: app(standalone_mode=False)))
