from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from reward_models.tokens import ClipTokens
from tests.unit.workers.priors.tiny_priors import TINY, TOKENS, write_mvdream_folder, write_tiny_mvdream
from workers.priors.mvdream_checkpoint import load_mvdream, save_mvdream

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from workers.priors.mvdream import MVDreamPrior


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[MVDreamPrior, Path]:
    """A prior, and its checkpoint: to be copied, not to be changed."""
    path = tmp_path_factory.mktemp("mvdream") / "tiny.safetensors"
    return write_tiny_mvdream(path), path


@pytest.fixture
def path(written: tuple[MVDreamPrior, Path], tmp_path: Path) -> Path:
    """A copy of the checkpoint."""
    for file in (written[1], written[1].with_suffix(".json")):
        shutil.copy(file, tmp_path)
    return tmp_path / written[1].name


@pytest.fixture
def pickled(path: Path) -> Path:
    """A copy of the checkpoint, as the published one is stored."""
    torch.save(load_file(path), path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def _same_networks(one: MVDreamPrior, other: MVDreamPrior) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_a_checkpoint_in_the_published_layout_loads_back_bit_equal(
    written: tuple[MVDreamPrior, Path], path: Path
) -> None:
    prior, loaded = written[0], load_mvdream(path, TOKENS)
    assert _same_networks(prior, loaded)
    assert loaded.latent_shape == (4, 8, 8)
    assert loaded.image_px == 16
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not any(tensor.requires_grad for tensor in loaded.parameters())
    assert torch.equal(prior.encode_text(["a cat"]), loaded.encode_text(["a cat"]))


def test_weights_take_the_type_that_is_asked_for_and_the_schedule_stays_exact(path: Path) -> None:
    prior = load_mvdream(path, TOKENS, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in prior.parameters()} == {torch.bfloat16}
    assert prior.schedule.alphas_cumprod.dtype == torch.float32
    assert prior.encode_text(["a cat"]).dtype == torch.float32


def test_a_pickled_checkpoint_loads_back_bit_equal(
    written: tuple[MVDreamPrior, Path], tmp_path: Path
) -> None:
    save_mvdream(written[0], TINY, tmp_path / "tiny.pt")
    assert _same_networks(written[0], load_mvdream(tmp_path / "tiny.pt", TOKENS))


def test_the_written_names_are_the_published_ones(path: Path) -> None:
    tensors = load_file(path)
    assert {name.split(".")[0] for name in tensors} == {
        "alphas_cumprod",
        "betas",
        "cond_stage_model",
        "first_stage_model",
        "model",
    }
    assert tensors["cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"].shape == (96, 32)
    assert tensors["first_stage_model.decoder.mid.attn_1.q.weight"].shape == (64, 64, 1, 1)
    assert "model.diffusion_model.camera_embed.0.weight" in tensors


def test_the_towers_unused_parts_are_passed_over_and_other_strangers_are_listed(path: Path) -> None:
    tensors = load_file(path)
    last = {
        name.replace("resblocks.0", "resblocks.2"): tensor.clone()
        for name, tensor in tensors.items()
        if ".resblocks.0." in name
    }
    more = {"cond_stage_model.model.logit_scale": torch.tensor(4.6), "logvar": torch.zeros(1000)}
    save_file({**tensors, **last, **more}, path)
    assert load_mvdream(path, TOKENS).unused_tensors == ("logvar",)


def _without(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.__delitem__(name)


def _with(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.__setitem__(name, value)


_UNET, _VAE = "model.diffusion_model.", "first_stage_model."


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_without(_UNET + "out.2.bias"), r"misses 1 tensors: 'out\.2\.bias'"),
        (_without(_VAE + "quant_conv.bias"), r"misses 1 tensors: 'quant_conv\.bias'"),
        (_without("cond_stage_model.model.ln_final.bias"), r"misses 1 tensors: 'ln_final\.bias'"),
        (_with(_UNET + "label_emb.weight", torch.zeros(3)), r"unexpected 1 tensors: 'label_emb\.weight'"),
        (_with(_VAE + "loss.logvar", torch.zeros(1)), r"unexpected 1 tensors: 'loss\.logvar'"),
        (_with(_UNET + "out.2.bias", torch.zeros(3)), r"'out\.2\.bias' has shape \(3,\), expected \(4,\)"),
        (_with(_UNET + "out.2.bias", torch.full((4,), torch.nan)), r"'out\.2\.bias' is not finite"),
        (_with("alphas_cumprod", torch.linspace(1, 0, 1000)), "alphas_cumprod"),
    ],
)
def test_a_checkpoint_with_a_wrong_tensor_is_refused_by_file_and_name(
    path: Path, damage: Callable[[dict[str, Tensor]], None], said: str
) -> None:
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=f"tiny.safetensors.*{said}"):
        load_mvdream(path, TOKENS)


@pytest.mark.parametrize("kind", ["path", "pickled"])
def test_a_truncated_checkpoint_is_refused_by_its_name(kind: str, request: pytest.FixtureRequest) -> None:
    file: Path = request.getfixturevalue(kind)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"{file.name} cannot be read as weights"):
        load_mvdream(file, TOKENS)


class _Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('the code in the checkpoint was run')",))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt"
    torch.save({"model.diffusion_model.out.2.bias": _Harmful()}, path)
    with pytest.raises(ValueError, match=r"tiny\.pt cannot be read as weights"):
        load_mvdream(path, TOKENS)
    path.write_bytes(pickle.dumps(_Harmful(), protocol=2))
    with pytest.raises(ValueError, match=r"tiny\.pt cannot be read as weights"):
        load_mvdream(path, TOKENS)


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}])
def test_a_file_without_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "tiny.pt")
    with pytest.raises(ValueError, match=r"tiny.pt holds (a list|no tensors)"):
        load_mvdream(tmp_path / "tiny.pt", TOKENS)


def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no file sd-v2\.1-base-4view\.pt in .*; put the published file there"
    ):
        load_mvdream(tmp_path / "sd-v2.1-base-4view.pt", TOKENS)


def test_a_tokenizer_of_another_model_is_refused(path: Path) -> None:
    with pytest.raises(
        ValueError, match="reads 77 of 514 different tokens, but the tokenizer makes 77 of 49408"
    ):
        load_mvdream(path, ClipTokens())


def test_a_foreign_sidecar_is_refused(path: Path) -> None:
    path.with_suffix(".json").write_text(json.dumps({"unet": {"depth": 3}}))
    with pytest.raises(ValueError, match="no configuration of MVDream's networks"):
        load_mvdream(path, TOKENS)


def test_a_diffusers_folder_gives_the_same_prior_as_the_checkpoint(tmp_path: Path) -> None:
    written = write_mvdream_folder(tmp_path / "folder")
    loaded = load_mvdream(tmp_path / "folder", TOKENS)
    assert _same_networks(written, loaded)
    assert loaded.latent_shape == (4, 8, 8)
    assert len(loaded.sha256) == 64
    assert torch.equal(written.encode_text(["a cat"]), loaded.encode_text(["a cat"]))


def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    write_mvdream_folder(tmp_path)
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(ValueError, match="describes a UNet2DConditionModel, expected MVDream's"):
        load_mvdream(tmp_path, TOKENS)


def test_a_folder_that_older_libraries_wrote_loads_with_the_old_names(tmp_path: Path) -> None:
    written = write_mvdream_folder(tmp_path)
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in load_file(path).items():
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        renamed[name] = tensor
    save_file(renamed, path)
    path = tmp_path / "text_encoder" / "model.safetensors"
    renamed = {f"text_model.{name}": tensor for name, tensor in load_file(path).items()}
    save_file({**renamed, "text_model.embeddings.position_ids": torch.arange(77)[None]}, path)
    assert _same_networks(written, load_mvdream(tmp_path, TOKENS))
