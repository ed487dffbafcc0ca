"""Train the embedded models from nothing: `python -m workers.embedded.train --help`, or `make train-embedded`.

Every stage checkpoints itself in the work folder and resumes by itself: "pictures" (ray-cast once), "text" (the
text encoder, on captions made on the fly), "prior" (slot encoder and U-Net), "outputs" (objects optimized under an
early checkpoint of the prior and under the finished one), "reward", "referee"; "export" writes the fp16 files that
the project ships. Needs torch, numpy and safetensors only (but "outputs" needs the whole project); `--device cuda`
trains on a GPU. Stage "shipped", which is not among them, puts the shipped models in place of as many steps as they
were trained for: stages with more `--prior-steps`, `--reward-steps` or `--referee-steps` than that train them on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from workers.embedded.dataset import render_pictures
from workers.embedded.export import export_weights
from workers.embedded.outputs import collect_outputs
from workers.embedded.train_prior import take_up_shipped_prior, train_prior, train_text
from workers.embedded.train_rewards import REFEREE, REWARD, take_up_shipped_reward, train_reward
from workers.embedded.trained import averaged_prior, weak_prior
from workers.weights import EMBEDDED_PRIOR

__all__ = ["main"]

PICTURE_SEEDS = (30, 31, 32, 33, 34, 35)
"""Each seed draws 10,000 geometries, for the prior and the reward."""
REFEREE_SEEDS = (40, 41)
"""What the referee sees is drawn apart: it must not share the reward's blind spots."""
STAGES = ("pictures", "text", "prior", "outputs", "reward", "referee", "export")


def main() -> None:
    """Run the stages that are asked for, in order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "stages", nargs="*", default=STAGES, help=f"of {', '.join(STAGES)}; default: all these"
    )
    parser.add_argument("--folder", type=Path, default=Path("build/embedded"), help="work folder")
    parser.add_argument("--weights", type=Path, default=EMBEDDED_PRIOR.parent, help="where export writes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prior-steps", type=int, default=26_000, help="of 32 pictures each")
    parser.add_argument(
        "--outputs", type=int, default=32, help="objects to optimize for the rewards' training"
    )
    parser.add_argument("--reward-steps", type=int, default=5200, help="of 32 pictures and 16 pairs each")
    parser.add_argument("--referee-steps", type=int, default=3600, help="likewise")
    arguments = parser.parse_args()
    known = ("shipped", *STAGES)
    if unknown := [stage for stage in arguments.stages if stage not in known]:
        parser.error(f"no stage is called {' or '.join(unknown)}; there are {', '.join(known)}")
    for stage in arguments.stages:
        match stage:
            case "pictures":
                for name, seeds in (("pictures", PICTURE_SEEDS), ("referee", REFEREE_SEEDS)):
                    for seed in seeds:
                        if not (arguments.folder / name / f"pictures-{seed}.npz").exists():
                            render_pictures(arguments.folder / name, 10_000, seed)
            case "shipped":
                take_up_shipped_prior(arguments.folder)
                for recipe in (REWARD, REFEREE):
                    take_up_shipped_reward(arguments.folder, recipe)
            case "text":
                train_text(arguments.folder)
            case "prior":
                train_prior(arguments.folder, arguments.prior_steps, device=arguments.device)
            case "outputs":
                priors = weak_prior(arguments.folder), averaged_prior(arguments.folder)
                collect_outputs(arguments.folder / "outputs", priors, arguments.outputs)
            case "reward":
                train_reward(arguments.folder, REWARD, arguments.reward_steps, device=arguments.device)
            case "referee":
                train_reward(arguments.folder, REFEREE, arguments.referee_steps, device=arguments.device)
            case "export":
                export_weights(arguments.folder, arguments.weights)


if __name__ == "__main__":
    main()
