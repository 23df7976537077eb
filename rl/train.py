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
    rank, size = check_world(os.environ)
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
    if size == 1 and settings.train.sharding != "none":
        raise BadInput(
            f"train.sharding={settings.train.sharding} shares the weights among ranks and this is one process; launch "
            "several with `accelerate launch --multi_gpu --num_processes N -m rl.train`, or leave it at none"
        )
    if rank > 0 and (print_config or dry_run):
        return
    if print_config:
        sys.stdout.write(dump_config(settings))
    elif dry_run:
        from rl.launch import print_plan

        print_plan(settings)
    else:
        from rollout.server.argv import SPIN_COUNT, SPIN_VARIABLE

        os.environ.setdefault(SPIN_VARIABLE, SPIN_COUNT)  # read once, when torch loads, which the next line does
        from rl.launch import launch

        launch(settings, run, resume=resume is not None, replay=replay, overwrite=overwrite, size=size)


def check_world(env: MutableMapping[str, str]) -> tuple[int, int]:
    """This process's rank and how many there are, by the launcher's environment. BadInput where it asks for what does
    not run: several machines, or sharding by accelerate."""
    size = env.get("WORLD_SIZE")
    if size is None and "MASTER_ADDR" in env:
        raise BadInput(
            f"MASTER_ADDR={env['MASTER_ADDR']} is set without WORLD_SIZE, so this process can't know its place: unset "
            "it, or launch with `accelerate launch --num_processes 1 -m rl.train`"
        )
    for kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if env.get(f"ACCELERATE_USE_{kind}", "false").lower() in ("true", "1"):
            raise BadInput(f"ACCELERATE_USE_{kind} is set; launch without it, and shard with train.sharding=fsdp2")
    if size in (None, "1"):
        env.pop("LOCAL_RANK", None)  # torchrun's world of one: accelerate would wrap the policy in DDP for it
        return 0, 1
    place = {name: env.get(name, "") for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    told = ", ".join(f"{name}={value}" for name, value in place.items())
    if not all(place.values()) or not all(place[name].isdigit() for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK")):
        raise BadInput(f"{told}: not all that a rank must know; launch with accelerate or torchrun")
    if (here := env.get("LOCAL_WORLD_SIZE", size)) != size:
        raise BadInput(f"{here} of {size} ranks run on this machine: one machine so far; serve from others instead")
    env.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # when rank 0 goes, ours is the line that says so
    return int(place["RANK"]), int(place["WORLD_SIZE"])


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(epilog=EPILOG)(train)
    sys.exit(run_command(lambda: app(standalone_mode=False)))
