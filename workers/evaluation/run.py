"""`make eval`: optimize prompts whose truth is known, judge the finished GLBs, and draw table and contact sheet.

Every object goes the way of a real job (scene, engine, mesh, GLB); what is judged is the surface that a reader of
the GLB sees. Results are kept one JSON line each, so that an interrupted evaluation goes on where it stopped; those of
`tests/bench/studies.jsonl` need not be made again (`--lines`).

Suites: "default" judges the default method on singles, everyday objects and held-out pairs; "weak", "draft" and
"methods" compare SDS, DreamFL, DreamDPO and PSD on the weak prior, and on the shipped one at 100 and 300 steps, under
the shipped reward and under an oracle; "sweep" turns the knobs of both preference methods; "pairs" tells how often each
reward prefers the true pictures, "verdicts" how often the steering one agrees with the oracle at DreamDPO's real steps.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from service.jobs.knobs import DreamDpoMethod
from service.jobs.spec import JobRequest
from service.settings import Settings
from workers.embedded.captions import plain_caption
from workers.embedded.preference_pairs import PAIR_KINDS, pair_accuracy
from workers.evaluation.arms import RECIPE, SUITES, Arm, Case
from workers.evaluation.objects import make_object
from workers.evaluation.prompts import everyday_objects, held_out_pairs, kind_of, single_shapes
from workers.evaluation.report import (
    best_of_table,
    comparison_table,
    contact_sheet,
    shape_table,
    truth_table,
)
from workers.evaluation.verdicts import VERDICT_HEADER, Verdicts, verdict_row, verdicts_of
from workers.networks import Networks, hold_embedded_prior, load_networks
from workers.priors.embedded import load_embedded_prior
from workers.weights import (
    EMBEDDED_PRIOR,
    EMBEDDED_REWARDS,
    EMBEDDED_WEAK_PRIOR,
    REWARD_NAMES,
    load_reward,
    reward_file,
)

if TYPE_CHECKING:
    from workers.embedded.world import Description

__all__ = ["evaluate", "main"]


def evaluate(cases: list[Case], folder: Path, lines_file: Path, processes: int) -> list[dict[str, Any]]:
    """Make and judge all cases that the file has no line of yet, and answer all lines in the order of the cases.

    Pictures and GLBs of those that are made now go to `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # What other weights or another recipe made is kept in the file, but is no answer to this question.
    wanted, known = {case.key: made_by(case.arm) for case in cases}, {}
    for line in map(json.loads, lines_file.read_text().splitlines() if lines_file.exists() else ()):
        if line["key"] in wanted and wanted[line["key"]].items() <= line.items():
            known[line["key"]] = line
    missing = [case for case in cases if case.key not in known]
    if missing:
        pool = multiprocessing.get_context("spawn").Pool(processes)
        with pool, lines_file.open("a") as file:
            made = pool.imap_unordered(_evaluate_one, [(case, folder) for case in missing])
            for number, line in enumerate(made):
                known[line["key"]] = line
                file.write(json.dumps(line) + "\n")
                file.flush()
                verdict = "right" if line["right"] else "; ".join(line["faults"])
                print(
                    f"{number + 1}/{len(missing)} {line['key']}: {verdict} ({line['wall_s']:.0f} s)",
                    flush=True,
                )
    return [known[case.key] for case in cases]


def made_by(arm: Arm) -> dict[str, Any]:
    """Name all that a line depends on beside its key: the recipe, the weights, and every knob, defaults too."""
    knobs = JobRequest.model_validate({"prompt": "any", "method": arm.method, "steps": arm.steps})
    return {
        "recipe": RECIPE,
        "weights": used_weights(arm.weak),
        "knobs": hashlib.sha256(knobs.model_dump_json().encode()).hexdigest()[:8],
    }


@cache
def used_weights(weak: bool) -> str:
    """Name the files that make and score objects: the start of the sha256 of each."""
    rewards = [reward_file(name, Settings().weights_folder) for name in REWARD_NAMES]
    files = (EMBEDDED_WEAK_PRIOR if weak else EMBEDDED_PRIOR, *rewards)
    return " ".join(hashlib.sha256(path.read_bytes()).hexdigest()[:8] for path in files)


_networks: dict[bool, Networks] = {}
"""Of this process, by whether the prior is the weak one; loaded when first needed."""


def _held(weak: bool) -> Networks:
    if weak not in _networks:
        torch.set_num_threads(1)
        networks = load_networks(Settings(reward_placement="local"))
        if weak:
            prior = load_embedded_prior(EMBEDDED_WEAK_PRIOR)
            networks = replace(networks, priors={"embedded": hold_embedded_prior(prior)})
        _networks[weak] = networks
    return _networks[weak]


def _evaluate_one(task: tuple[Case, Path]) -> dict[str, Any]:
    case, folder = task
    made = make_object(case, _held(case.arm.weak))
    name = case.key.replace("|", "-").replace(" ", "_")
    (folder / f"{name}.png").write_bytes(made.files["thumbnail"])
    (folder / f"{name}.glb").write_bytes(made.files["glb"])
    return {
        "key": case.key,
        "arm": case.arm.name,
        "prompt": plain_caption(case.description),
        "kind": kind_of(case.description),
        "seed": case.seed,
        "right": made.verdict.right,
        "faults": made.verdict.faults,
        "f_score": round(made.verdict.f_score, 4),
        "picture": f"{name}.png",
        **made_by(case.arm),
        **{name: round(number, 4) for name, number in made.numbers.items()},
    }


def _pair_table(count: int, seed: int = 5) -> str:
    rows = [f"| reward | {' | '.join(PAIR_KINDS)} |", "|---" * (len(PAIR_KINDS) + 1) + "|"]
    for name in REWARD_NAMES:
        shares = pair_accuracy(load_reward(name, Settings().weights_folder), count, seed)
        rows.append(f"| {name} | " + " | ".join(f"{shares[kind]:.3f}" for kind in PAIR_KINDS) + " |")
    return "\n".join(rows)


def _verdict_table(descriptions: list[Description], seeds: int, processes: int) -> str:
    """Write one Markdown row for each prior under which DreamDPO asks."""
    rows = list(VERDICT_HEADER)
    arms = [arm for suite in ("weak", "draft") for arm in SUITES[suite] if arm.name == f"{suite}-dreamdpo"]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for arm in arms:
            cases = [Case(description, arm, seed) for seed in range(seeds) for description in descriptions]
            told = pool.map(_verdicts_of_one, cases, chunksize=1)
            rows.append(verdict_row(arm.name, told, DreamDpoMethod(**arm.method).tau))
    return "\n".join(rows)


def _verdicts_of_one(case: Case) -> Verdicts:
    return verdicts_of(case, _held(case.arm.weak))


def _descriptions(arguments: argparse.Namespace) -> list[Description]:
    singles = [*single_shapes(), *everyday_objects()]
    return [*held_out_pairs(arguments.pairs), *(singles if arguments.suite == "default" else [])]


def _arms(suite: str) -> list[Arm]:
    """A suite's arms; a sweep is compared with its baseline, so it has that one too."""
    return SUITES[suite] if suite != "sweep" else [SUITES["weak"][0], *SUITES[suite]]


def main() -> None:
    """Evaluate methods on prompts with known truth."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", nargs="?", default="default", choices=[*SUITES, "pairs", "verdicts"])
    parser.add_argument("--pairs", type=int, default=60, help="held-out pairs of things")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", help="comma-separated; by default all of the suite")
    parser.add_argument(
        "--count", type=int, default=400, help="pairs of pictures of each kind, for suite `pairs`"
    )
    parser.add_argument("--processes", type=int, default=2, help="one thread each")
    parser.add_argument("--folder", type=Path, default=Path("build/eval"))
    parser.add_argument("--lines", type=Path, help="results, a JSON line each (FOLDER/results.jsonl)")
    arguments = parser.parse_args()
    for name, shipped in EMBEDDED_REWARDS.items():
        if (file := reward_file(name, Settings().weights_folder)) != shipped:
            print(f"{name} is the retrained one in {file.parent}, not the shipped one.")
    if arguments.suite == "pairs":
        print(_pair_table(arguments.count))
        return
    if arguments.suite == "verdicts":
        print(_verdict_table(held_out_pairs(arguments.pairs), arguments.seeds, arguments.processes))
        return
    offered = {arm.name: arm for arm in _arms(arguments.suite)}
    wanted = arguments.arms.split(",") if arguments.arms else list(offered)
    if unknown := set(wanted) - offered.keys():
        parser.error(
            f"suite {arguments.suite!r} has no arms {', '.join(sorted(unknown))}; it has {', '.join(offered)}"
        )
    arms = [arm for name, arm in offered.items() if name in wanted]
    cases = [
        Case(description, arm, seed)
        for seed in range(arguments.seeds)
        for description in _descriptions(arguments)
        for arm in arms
    ]
    lines_file = arguments.lines or arguments.folder / "results.jsonl"
    lines = evaluate(cases, arguments.folder, lines_file, arguments.processes)
    text = truth_table(lines) + "\n\n" + shape_table(lines)
    if len(arms) > 1:
        numbers = [
            "right",
            "f_score",
            "silhouette_iou",
            *sorted(key for key in lines[0] if key.startswith("score:")),
        ]
        text += "\n\n" + comparison_table(lines, arms[0].name, [arm.name for arm in arms[1:]], numbers)
    if arguments.seeds > 1:
        text += "\n\n" + best_of_table(lines, REWARD_NAMES[0], ["right", "f_score", "silhouette_iou"])
    print(text)
    name = arguments.suite
    (arguments.folder / f"{name}.md").write_text(text + "\n")
    arguments.folder.with_suffix(".json").write_text(json.dumps({"suite": name, "lines": lines}, indent=1))
    sheet = contact_sheet(lines, arguments.folder)
    if sheet is None:
        print(f"No picture of these objects is in {arguments.folder}: no contact sheet was drawn.")
    else:
        sheet.save(arguments.folder / f"{name}.png")
