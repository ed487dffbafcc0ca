"""Golden cases of the issue *rewards*: see `tests/golden/adapters.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from reward_models.blip import BLIP_LARGE, BlipConfig, BlipReward, published_name
from reward_models.checkpoints import Checkpoint
from reward_models.clip import ClipConfig, ClipTrunk, cosine, unit
from reward_models.clip_rewards import Aesthetic, ClipScore, HPSv2, aesthetic_rating
from reward_models.contracts import score_and_gradient
from reward_models.freeze import frozen_names
from reward_models.image_reward import ImageReward
from reward_models.linear_head import LinearHead
from reward_models.multimodal_formats import count_yes_lines
from reward_models.picture_reward import PictureReward, Texts
from reward_models.preference_loss import preference_loss, prefers_rightly
from reward_models.preprocess import picture_tensor, prepare_images, prepare_picture
from reward_models.reward3d import Reward3DCrossView, Reward3DScorer
from reward_models.tokens import ClipTokens
from tests.golden.compare import Case, Tensors, read_case
from workers.contracts import Scores
from workers.methods.dreamfl import hinge

if TYPE_CHECKING:
    from tests.golden.adapters import Adapter

__all__ = ["CASES"]

Reward = TypeVar("Reward", bound=BlipReward)


def imagereward(case: Case, tensors: Tensors) -> dict[str, Any]:
    reward = _blip_reward(ImageReward, case, tensors)
    pixels, texts = tensors["in.pixel_values"][:, None], _texts(tensors, views=1)
    features, values, gradient = _run(reward, pixels, texts)
    half = len(pixels) // 2  # first the better ones, then the worse ones, both for the first texts
    pairs = reward(pixels, texts._replace(of_view=texts.of_view[:half].repeat(2, 1))).reshape(2, half).T
    first = torch.zeros(half, dtype=torch.int64)
    return {
        "out.image_embeds": reward.blip.see(tensors["in.pixel_values"]),
        "out.text_cls": features[:, 0],
        "out.mlp_raw": reward.raw(features),
        "out.reward": values,
        "out.grad_pixel_values": gradient[:, 0],
        "out.pair_rewards": pairs,
        "out.pair_loss": preference_loss(pairs, first)[None],
        "out.pair_acc": prefers_rightly(pairs, first).float().mean()[None],
    }


def imagereward_head(case: Case, tensors: Tensors) -> dict[str, Any]:
    _, others = read_case(case["folder"], "reward3d_scorer")
    state = {name: t for name, t in others.items() if name.startswith("sd.") and "Scorer" not in name}
    reward = _blip_reward(ImageReward, case, state)
    features, values, _ = _run(reward, tensors["in.image"][:, None], _texts(tensors, views=1))
    return {"out.text_cls": features[:, 0], "out.reward": values}


def reward3d(case: Case, tensors: Tensors) -> dict[str, Any]:
    """Answer both variants and both spellings of the cases' names."""
    is_scorer = any(name.startswith("sd.Scorer.") for name in tensors)
    reward = _blip_reward(Reward3DScorer if is_scorer else Reward3DCrossView, case, tensors)
    pictures = tensors.get("in.pixel_values", tensors.get("in.image"))
    assert pictures is not None
    features, values, gradient = _run(reward, pictures.unflatten(0, (-1, 4)), _texts(tensors, views=4))
    if isinstance(reward, Reward3DCrossView):
        inside = {"out.fused": reward.fused(features)}
    else:
        narrowed = reward.mlp.narrowed(features).flatten(0, 1)
        inside = {"out.mlp_feature128": narrowed, "out.mlp128": narrowed}
    answers = {
        **inside,
        "out.vit_tokens": reward.blip.see(pictures),
        "out.text_cls": features.flatten(0, 1),
        "out.view_cls": features.flatten(0, 1),
        "out.reward": values,
        "out.grad_pixel_values": gradient.flatten(0, 1),
        "out.grad_reward_sum_wrt_image": gradient.flatten(0, 1),
        "out.dreamfl_reward_loss": hinge(Scores(values, gradient))[0][None],
    }
    return {name: answer for name, answer in answers.items() if name in tensors}


def hpsv2(case: Case, tensors: Tensors) -> dict[str, Any]:
    config = case["config"]
    vision, text = config["vision_cfg"], config["text_cfg"]
    clip = _clip(
        tensors,
        "sd.",
        ClipConfig(
            embedding=config["embed_dim"],
            patch_px=vision["patch_size"],
            vision_width=vision["width"],
            vision_layers=vision["layers"],
            vision_heads=vision["width"] // vision["head_width"],
            text_width=text["width"],
            text_layers=text["layers"],
            text_heads=text["heads"],
            quick_gelu=config["quick_gelu"],
            image_px=vision["image_size"],
            context=text["context_length"],
            vocabulary=text["vocab_size"],
        ),
    )
    reward = HPSv2(clip)
    pixels, ids = tensors["in.pixel_values"], tensors["in.tokens"]
    values, gradient = _score(reward, pixels[:, None], _clip_texts(ids))
    images, texts = clip.image_features(pixels), clip.text_features(ids)
    per_prompt = images.split(tensors["in.pref_num_images"].tolist())
    logits = [cosine(group, texts[row], clip.scale) for row, group in enumerate(per_prompt)]
    padded = nn.utils.rnn.pad_sequence(logits, batch_first=True, padding_value=-torch.inf)
    return {
        "out.image_features": unit(images),
        "out.text_features": unit(texts),
        "out.hps_score": values[:, 0],
        "out.grad_pixel_values": gradient[:, 0],
        "out.pref_loss": preference_loss(padded, tensors["in.pref_labels"])[None],
    }


def clip_aesthetic(case: Case, tensors: Tensors) -> dict[str, Any]:
    config = case["config"]
    clip = _clip(
        tensors,
        "sd.clip.",
        ClipConfig(
            embedding=config["embed_dim"],
            patch_px=config["vision_patch_size"],
            vision_width=config["vision_width"],
            vision_layers=config["vision_layers"],
            vision_heads=config["vision_heads"],
            text_width=config["text_width"],
            text_layers=config["text_layers"],
            text_heads=config["text_heads"],
            quick_gelu=config["quick_gelu"],
            image_px=config["image_resolution"],
            context=config["context_length"],
            vocabulary=config["vocab_size"],
        ),
    )
    mlp = LinearHead.from_checkpoint(Checkpoint("golden", _stored(tensors, "sd.mlp.")), config["embed_dim"])
    pixels, ids = tensors["in.pixel_values"], tensors["in.tokens"]
    images, texts = clip.image_features(pixels), clip.text_features(ids)
    cosines, of_cosine = _score(ClipScore(clip, scale=1.0), pixels[:, None], _clip_texts(ids))
    ratings, of_rating = _score(Aesthetic(clip, mlp), pixels[:, None], _clip_texts(ids))
    return {
        "out.image_features": images,
        "out.text_features": texts,
        "out.logits_per_image": cosine(images[:, None], texts[None], clip.scale),
        "out.clip_cosine": cosines[:, 0],
        "out.grad_cosine": of_cosine[:, 0],
        "out.aesthetic": ratings,
        "out.grad_aesthetic": of_rating[:, 0],
    }


def aesthetic_published_io(case: Case, tensors: Tensors) -> dict[str, Any]:
    affine = nn.Linear(tensors["collapsed.weight"].shape[-1], 1)
    affine.load_state_dict(
        {"weight": tensors["collapsed.weight"].reshape(1, -1), "bias": tensors["collapsed.bias"]}
    )
    return {"out.score": aesthetic_rating(tensors["in.unit_embeddings"], affine)}


def clip_tokens(case: Case, tensors: Tensors) -> dict[str, Any]:
    ids, mask = ClipTokens(length=case["context_length"])([row["text"] for row in case["cases"]])
    lengths = mask.sum(1).tolist()
    return {
        "cases.*.ids": [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)],
        "cases.*.length": lengths,
    }


def preprocess(case: Case, tensors: Tensors) -> dict[str, Any]:
    px = case["config"]["n_px"]
    answers = {}
    for name, pixels in tensors.items():
        if not name.startswith("in."):
            continue
        picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        image = picture_tensor(picture)[None]
        out = f"out.{name.removeprefix('in.').removesuffix('_uint8_chw')}"
        answers[f"{out}.imagereward_pil"] = prepare_picture(picture, px)
        answers[f"{out}.hpsv2_tensor"] = prepare_images(image, px)[0]
        answers[f"{out}.dreamreward_tensor"] = prepare_images(image, px)[0]
        answers[f"{out}.tensor_noantialias"] = prepare_images(image, px, antialias=False)[0]
    return answers


def reward_preprocess(case: Case, tensors: Tensors) -> dict[str, Any]:
    image = tensors["in.image"].float()
    return {
        f"out.antialias_{antialias}": prepare_images(image, BLIP_LARGE.image_px, antialias=antialias)
        for antialias in (True, False)
    }


def freeze(case: Case, tensors: Tensors) -> dict[str, Any]:
    vision, text = case["vision_depth"], case["text_layers"]
    with torch.device("meta"):
        reward = ImageReward(replace(BLIP_LARGE, vision_layers=vision, text_layers=text))
    names = [published_name(name).key for name, _ in reward.named_parameters()]
    frozen = frozen_names(names, case["fix_rate"], vision, text)
    return {"frozen": frozen, "n_frozen": len(frozen)}


def lmm_yes_count(case: Case, tensors: Tensors) -> dict[str, Any]:
    return {"rows.*.score": [count_yes_lines(row["response"]) for row in case["rows"]]}


def _blip_reward(kind: type[Reward], case: Case, tensors: Tensors) -> Reward:
    c = case["config"]
    config = BlipConfig(
        image_px=c["image_size"],
        patch_px=c.get("patch_size", c.get("patch")),
        vision_width=c.get("vision_width", c.get("vit_dim")),
        vision_layers=c.get("vision_depth", c.get("vit_depth")),
        vision_heads=c.get("vision_heads", c.get("vit_heads")),
        vocabulary=c.get("vocab_size", c.get("vocab")),
        text_width=c.get("text_width", c.get("hidden")),
        text_layers=c.get("text_layers", c.get("layers")),
        text_heads=c.get("text_heads", c.get("heads")),
        text_hidden=c.get("text_intermediate", c.get("inter")),
        text_positions=c.get("max_position_embeddings", c.get("max_pos")),
        projection_width=tensors["sd.blip.vision_proj.weight"].shape[0],
    )
    reward = kind.from_checkpoint(Checkpoint("golden", _stored(tensors, "sd.")), config)
    reward.mean, reward.std = (case.get(name, c.get(name)) for name in ("mean", "std"))
    return reward


def _clip(tensors: Tensors, prefix: str, config: ClipConfig) -> ClipTrunk:
    return ClipTrunk.from_checkpoint(Checkpoint("golden", _stored(tensors, prefix)), config)


def _stored(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _texts(tensors: Tensors, views: int) -> Texts:
    """A text of its own for each view."""
    ids = tensors.get("in.input_ids", tensors.get("in.prompt_ids"))
    mask = tensors.get("in.attention_mask", tensors.get("in.prompt_attention_mask"))
    assert ids is not None
    assert mask is not None
    return Texts(ids, mask, torch.arange(len(ids)).reshape(-1, views))


def _clip_texts(ids: Tensor) -> Texts:
    return Texts(ids, torch.ones_like(ids), torch.arange(len(ids))[:, None])


def _score(reward: PictureReward, pixels: Tensor, texts: Texts) -> tuple[Tensor, Tensor]:
    """Score prepared pictures (G, V, 3, P, P), and the gradient of the sum of scores."""
    return score_and_gradient(
        lambda images, _: reward.score_prepared(images, texts),
        pixels,
        [""] * len(pixels),
        torch.ones(len(pixels), dtype=torch.bool),
    )


def _run(reward: BlipReward, pixels: Tensor, texts: Texts) -> tuple[Tensor, Tensor, Tensor]:
    return reward.features(pixels, texts), *_score(reward, pixels, texts)


CASES: dict[str, Adapter] = {
    "imagereward": imagereward,
    "imagereward_head": imagereward_head,
    "reward3d_scorer": reward3d,
    "reward3d_cvf": reward3d,
    "hpsv2": hpsv2,
    "clip_aesthetic": clip_aesthetic,
    "aesthetic_published_io": aesthetic_published_io,
    "clip_tokens": clip_tokens,
    "preprocess": preprocess,
    "reward_preprocess": reward_preprocess,
    "freeze_fixrate": freeze,
    "lmm_yes_count": lmm_yes_count,
}
