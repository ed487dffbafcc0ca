"""`make eval`: optimize prompts whose truth is known, judge the finished GLBs, and draw table and contact sheet.

Every object goes the way of a real job (scene, engine, mesh, GLB); what is judged is the surface that a reader of
the GLB sees. Results are kept one JSON line each, so that an interrupted evaluation goes on where it stopped.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import trimesh
from PIL import Image, ImageDraw

from service.jobs.admission import admit
from service.settings import Settings
from workers.embedded.captions import plain_caption
from workers.embedded.judge import Surface, Verdict, judge
from workers.embedded.world import COLORS, EVERYDAY, SHAPES, Description, Thing, is_held_out
from workers.engine import Engine
from workers.networks import Networks, load_networks
from workers.opening import make_scene
from workers.publish import export_mesh

__all__ = ["evaluate", "held_out_pairs", "main", "single_prompts", "surface_of_glb"]

SURFACE_POINTS = 8000


class Case(NamedTuple):
    """One object to make."""

    description: Description
    method: str
    seed: int

    @property
    def key(self) -> str:
        return f"{self.method}|{plain_caption(self.description)}|{self.seed}"


def single_prompts(seed: int = 11) -> list[Description]:
    """Every basic shape in two colors, each everyday object in its own color and some in a named one."""
    rng = np.random.default_rng(seed)
    things = [Thing(shape, str(color)) for shape in SHAPES for color in rng.choice(COLORS, 2, replace=False)]
    things += [Thing(name, None) for name in EVERYDAY]
    things += [
        Thing(name, str(rng.choice(COLORS))) for name in ("chair", "mug", "car", "tree", "mushroom", "lamp")
    ]
    return [Description(thing, None, "single") for thing in things]


def held_out_pairs(count: int, seed: int = 12) -> list[Description]:
    """The demo's pair, then random pairs whose shapes and colors were never trained on together."""
    rng = np.random.default_rng(seed)
    pairs = [Description(Thing("cube", "red"), Thing("cylinder", "blue"), "on")]
    while len(pairs) < count:
        a, b = (Thing(str(rng.choice(SHAPES)), str(rng.choice(COLORS))) for _ in range(2))
        relation = "on" if rng.random() < 0.6 else "next"
        if is_held_out(a, b):
            pairs.append(Description(a, b, relation))
    return pairs


def surface_of_glb(glb: bytes, seed: int = 0) -> Surface:
    """Draw points with their colors from a GLB's surface, as any reader of the file sees it."""
    mesh: Any = trimesh.load(io.BytesIO(glb), file_type="glb", force="mesh")
    points, faces = trimesh.sample.sample_surface(mesh, SURFACE_POINTS, seed=seed)
    weights = trimesh.triangles.points_to_barycentric(mesh.triangles[faces], points)
    uv = np.einsum("nc,ncd->nd", weights, mesh.visual.uv[mesh.faces[faces]])
    texture = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB"))
    height, width = texture.shape[:2]
    column = np.clip(uv[:, 0] * width, 0, width - 1).astype(int)
    row = np.clip((1 - uv[:, 1]) * height, 0, height - 1).astype(int)
    return Surface(np.asarray(points), texture[row, column].astype(float))


def make_object(case: Case, networks: Networks) -> tuple[Verdict, dict[str, Any], dict[str, bytes]]:
    """Optimize one case alone; answer the verdict, what it cost, and its files by kind."""
    started, cpu_started = time.monotonic(), time.process_time()
    body = {"prompt": plain_caption(case.description), "method": case.method, "seed": case.seed}
    spec = admit(body, networks.capabilities(), Settings(reward_placement="local")).spec
    scene = make_scene(spec, networks)
    engine = Engine()
    engine.admit(scene)
    while not scene.finished:
        for outcome in engine.step():
            if outcome.error is not None:
                raise outcome.error
    _, files = export_mesh(scene, spec, networks.priors[spec.prior])
    by_kind = {file.kind: file.content for file in files}
    cost = {"wall_s": time.monotonic() - started, "cpu_s": time.process_time() - cpu_started}
    return judge(surface_of_glb(by_kind["glb"]), case.description), cost, by_kind


def evaluate(cases: list[Case], folder: Path, processes: int) -> list[dict[str, Any]]:
    """Make and judge all cases that `folder` has no line of yet, and answer all lines in the order of the cases."""
    folder.mkdir(parents=True, exist_ok=True)
    lines_file = folder / "results.jsonl"
    known = {}
    if lines_file.exists():
        known = {line["key"]: line for line in map(json.loads, lines_file.read_text().splitlines())}
    missing = [case for case in cases if case.key not in known]
    with multiprocessing.get_context("spawn").Pool(processes, _start) as pool, lines_file.open("a") as file:
        for number, line in enumerate(
            pool.imap_unordered(_evaluate_one, [(case, folder) for case in missing])
        ):
            known[line["key"]] = line
            file.write(json.dumps(line) + "\n")
            file.flush()
            verdict = "right" if line["right"] else "; ".join(line["faults"])
            print(
                f"{number + 1}/{len(missing)} {line['key']}: {verdict} ({line['wall_s']:.0f} s)", flush=True
            )
    return [known[case.key] for case in cases]


_networks: Networks | None = None


def _start() -> None:
    global _networks
    torch.set_num_threads(1)
    _networks = load_networks(Settings(reward_placement="local"))


def _evaluate_one(task: tuple[Case, Path]) -> dict[str, Any]:
    case, folder = task
    assert _networks is not None
    verdict, cost, files = make_object(case, _networks)
    name = case.key.replace("|", "-").replace(" ", "_")
    (folder / f"{name}.png").write_bytes(files["thumbnail"])
    (folder / f"{name}.glb").write_bytes(files["glb"])
    return {
        "key": case.key,
        "method": case.method,
        "prompt": plain_caption(case.description),
        "kind": "pair"
        if case.description.b
        else "everyday"
        if case.description.a.name in EVERYDAY
        else "shape",
        "seed": case.seed,
        "right": verdict.right,
        "faults": verdict.faults,
        "f_score": verdict.f_score,
        "picture": f"{name}.png",
        **cost,
    }


def interval(values: list[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean."""
    rng = np.random.default_rng(seed)
    means = rng.choice(values, (2000, len(values))).mean(-1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def table(lines: list[dict[str, Any]]) -> str:
    """Write one Markdown row per method and kind of prompt."""
    rows = [
        "| method | prompts | right | 95 % interval | mean F-score | median CPU s |",
        "|---|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(line["method"] for line in lines):
        for kind in ("shape", "everyday", "pair"):
            chosen = [line for line in lines if (line["method"], line["kind"]) == (method, kind)]
            if not chosen:
                continue
            right = [float(line["right"]) for line in chosen]
            low, high = interval(right)
            score = np.mean([line["f_score"] for line in chosen])
            cpu = np.median([line["cpu_s"] for line in chosen])
            rows.append(
                f"| {method} | {kind} | {sum(right):.0f} of {len(right)} ({np.mean(right):.0%}) "
                f"| {low:.0%} – {high:.0%} | {score:.2f} | {cpu:.0f} |"
            )
    return "\n".join(rows)


def contact_sheet(
    lines: list[dict[str, Any]], folder: Path, columns: int = 8, tile_px: int = 160
) -> Image.Image:
    """Lay out all thumbnails with their prompts, green where right and red where not."""
    rows = -(-len(lines) // columns)
    sheet = Image.new("RGB", (columns * tile_px, rows * (tile_px + 26)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, line in enumerate(lines):
        x, y = index % columns * tile_px, index // columns * (tile_px + 26)
        sheet.paste(
            Image.open(folder / line["picture"]).convert("RGB").resize((tile_px, tile_px)), (x, y + 26)
        )
        title = f"{line['prompt']} [{line['method']} {line['seed']}]"
        color = (0, 120, 0) if line["right"] else (200, 0, 0)
        draw.text((x + 2, y + 1), title[:26], fill=color)
        draw.text((x + 2, y + 13), title[26:52], fill=color)
    return sheet


def main() -> None:
    """Evaluate methods on prompts with known truth."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default="sds", help="comma-separated")
    parser.add_argument("--pairs", type=int, default=32, help="held-out pairs")
    parser.add_argument("--singles", type=int, default=36, help="single shapes and everyday objects")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2, help="one thread each")
    parser.add_argument("--folder", type=Path, default=Path("build/eval"))
    arguments = parser.parse_args()
    descriptions = [*held_out_pairs(arguments.pairs), *single_prompts()[: arguments.singles]]
    methods = arguments.methods.split(",")
    cases = [Case(d, m, seed) for m in methods for d in descriptions for seed in range(arguments.seeds)]
    lines = evaluate(cases, arguments.folder, arguments.processes)
    text = table(lines)
    print(text)
    contact_sheet(lines, arguments.folder).save(arguments.folder / "contact_sheet.png")
    (arguments.folder / "table.md").write_text(text + "\n")
    arguments.folder.with_suffix(".json").write_text(json.dumps({"lines": lines}, indent=1))


if __name__ == "__main__":
    main()
