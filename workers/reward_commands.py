"""The commands `dreamserve reward …`: train a reward on comparisons, and write comparisons of the procedural world."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from service.terminal import usage

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["reward_app"]

EMBEDDED_LEARNING_RATE, PUBLISHED_LEARNING_RATE = 1e-3, 1e-5
"""The first was found by trial on world pairs; the second is ImageReward's."""

reward_app = typer.Typer(
    name="reward",
    help="Train rewards on what people preferred.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@reward_app.command()
def train(
    pairs: Annotated[Path, typer.Argument(metavar="PAIRS", help="The comparisons, a .jsonl file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The new weights, .safetensors.")],
    reward: Annotated[
        str, typer.Option(help="embedded-multiview, embedded-alignment, reward3d or reward3d-crossview.")
    ] = "embedded-multiview",
    weights: Annotated[
        Path | None,
        typer.Option(help="Weights to begin with; reward3d and -crossview may begin with ImageReward.pt."),
    ] = None,
    vocabulary: Annotated[
        Path | None, typer.Option(help="BERT's vocab.txt for reward3d; default: beside the weights.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, max=256, help="Workers of Ray Train; 0: train in this process.")
    ] = 1,
    gpu: Annotated[
        bool,
        typer.Option("--gpu", help="One GPU for each worker (with --address; --workers 0 finds its own)."),
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster to use; default: a private one on this machine.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Folder of checkpoints, from which the same command goes on; default: OUTPUT.run."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs at most.")] = 10,
    batch: Annotated[int, typer.Option(min=1, help="Comparisons in a step, over all workers.")] = 64,
    learning_rate: Annotated[
        float | None, typer.Option(help="Default: 1e-3 for embedded rewards, 1e-5 for others.")
    ] = None,
    patience: Annotated[
        int, typer.Option(min=1, help="Evaluations (4 an epoch) without a lower loss, then it stops.")
    ] = 8,
    fix_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of reward3d's layers that stay as they are.")
    ] = 0.7,
    renew: Annotated[
        list[str] | None, typer.Option(help="Module to begin with random weights; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of split, order and new weights.")] = 0,
    one_sided: Annotated[
        bool, typer.Option("--one-sided", help="The winner was always written on the same side.")
    ] = False,
) -> None:
    """Train a reward on comparisons; killed and started again, it goes on from its last checkpoint.

    Each line of PAIRS is a JSON object; paths are relative to the file:

    \b
    {"prompt": "a red cube",
     "a": ["1/0.png", "1/1.png", "1/2.png", "1/3.png"],
     "b": "2.npz",
     "preferred": "a"}

    a and b are one object each, in random order: a list of pictures, or an .npz whose array "views" is
    (V, H, W, 3) uint8; as many views as the reward wants, evenly spaced around the object. preferred is "a", "b"
    or "tie". Optional: "sides", what the views show (front, side, back, overhead), and "source".

    Prompts are split: 80 % to train, 10 % to know when to stop, 10 % to test. The last line on stdout is the test's
    result as JSON; the whole record is beside the weights.
    """
    from reward_models.train import TrainingRequest, train_reward
    from reward_models.trainable import Start
    from reward_models.training import TrainingPlan

    if output.suffix != ".safetensors" or not output.absolute().parent.is_dir():
        usage(f"cannot write {output}: name a .safetensors file in a folder that exists")
    if gpu and (not workers or address is None):
        usage(
            "--gpu wants --address of a Ray cluster with GPUs. Or train here with --workers 0, on a GPU if any"
        )
    rate = learning_rate or (
        EMBEDDED_LEARNING_RATE if reward.startswith("embedded") else PUBLISHED_LEARNING_RATE
    )
    run = run or output.with_suffix(".run")
    typer.echo(f"Checks {pairs}, then trains. Progress: {run}/curve.jsonl", err=True)
    try:
        start = Start(reward, _weights(reward, weights), vocabulary, fix_rate, tuple(renew or ()), seed)
        plan = TrainingPlan(rate, batch, epochs, patience=patience, seed=seed)
        request = TrainingRequest(pairs, start, plan, run, output, one_sided)
        with _ray(workers, address):
            record = train_reward(request, workers, use_gpu=gpu)
    except (ValueError, OSError, FloatingPointError) as error:
        usage(str(error))
    except RuntimeError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"Wrote {output} and its record {output.with_suffix('.json').name}", err=True)
    typer.echo(f"For jobs to use it{_name_to_give(reward)}: dreamserve weights import FILE", err=True)
    told = {name: record["test"][name] for name in ("accuracy", "interval", "decided")}
    typer.echo(json.dumps({"file": str(output), **told, "steps": record["steps"]}))


@reward_app.command()
def pairs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where pairs.jsonl and its pictures go.")],
    count: Annotated[int, typer.Option(min=1, help="How many pairs.")] = 2_500,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same pairs.")] = 0,
) -> None:
    """Write pairs of the procedural world, of which the better one is known, to train an embedded reward on."""
    from workers.embedded.write_pairs import write_world_pairs

    typer.echo(str(write_world_pairs(folder, count, seed)))


def _weights(reward: str, given: Path | None) -> Path:
    from workers.weights import EMBEDDED_REWARDS

    if given is not None:
        return given
    if reward not in EMBEDDED_REWARDS:
        raise ValueError(f"reward {reward!r} does not come with this release: give its --weights")
    return EMBEDDED_REWARDS[reward]


def _name_to_give(reward: str) -> str:
    """Say what a file must be called to be imported: an embedded reward's is recognized by what is in it."""
    from workers.artifacts import ARTIFACTS

    published = ARTIFACTS.get(reward)
    return "" if published is None else f", call it {published.choices(published.files[0].name)[-1]}"


def _ray(workers: int, address: str | None) -> AbstractContextManager[None]:
    import contextlib

    if not workers:
        return contextlib.nullcontext()
    if address is not None:
        from reward_models.train import joined_ray

        return joined_ray(address)
    from workers.up import private_ray

    return private_ray()
