"""The published rewards by the names that jobs use: which files each needs, where they come from, how it is loaded.

Nothing is downloaded: an operator puts a reward's files into a folder of its own. Importing this needs no torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from pathlib import Path

    from reward_models.checkpoints import Checkpoint
    from reward_models.picture_reward import PictureReward

__all__ = ["PUBLISHED", "PublishedFile", "PublishedReward", "PublishedRewardName", "load_published"]

PublishedRewardName = Literal[
    "imagereward", "reward3d", "reward3d-crossview", "hpsv2", "hpsv2.1", "pickscore", "clip", "aesthetic"
]


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file that a reward cannot do without."""

    name: str
    origin: str
    """The repository that publishes it."""
    sha256: str | None = None
    """Checksum of the published file, where it is known: another file is refused."""

    def __str__(self) -> str:
        return f"{self.name} (from {self.origin})"


@dataclass(frozen=True, slots=True)
class PublishedReward:
    """What an operator must know to have a reward."""

    files: tuple[PublishedFile, ...]
    """The weights first."""
    license: str
    """SPDX expression for the weights."""

    def missing(self, folder: Path) -> list[PublishedFile]:
        """List the files that are not in `folder`; a weights file may be .safetensors instead of its own kind."""
        return [file for file in self.files if not _find(folder, file).is_file()]


_VOCABULARY = PublishedFile("vocab.txt", "google-bert/bert-base-uncased")
_CLIP_L = PublishedFile("model.safetensors", "openai/clip-vit-large-patch14")
PUBLISHED: dict[PublishedRewardName, PublishedReward] = {
    "imagereward": PublishedReward(
        (PublishedFile("ImageReward.pt", "THUDM/ImageReward"), _VOCABULARY), license="Apache-2.0"
    ),
    "reward3d": PublishedReward(
        (PublishedFile("Reward3D_Scorer.pt", "yejunliang23/Reward3D"), _VOCABULARY), license="NOASSERTION"
    ),
    "reward3d-crossview": PublishedReward(
        (PublishedFile("Reward3D_CrossViewFusion.pt", "yejunliang23/Reward3D"), _VOCABULARY),
        license="NOASSERTION",
    ),
    "hpsv2": PublishedReward((PublishedFile("HPS_v2_compressed.pt", "xswu/HPSv2"),), license="Apache-2.0"),
    "hpsv2.1": PublishedReward(
        (PublishedFile("HPS_v2.1_compressed.pt", "xswu/HPSv2"),), license="Apache-2.0"
    ),
    "pickscore": PublishedReward(
        (PublishedFile("model.safetensors", "yuvalkirstain/PickScore_v1"),), license="MIT"
    ),
    "clip": PublishedReward((_CLIP_L,), license="MIT"),
    "aesthetic": PublishedReward(
        (
            PublishedFile(
                "sac+logos+ava1-l14-linearMSE.pth",
                "christophschuhmann/improved-aesthetic-predictor",
                "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
            ),
            _CLIP_L,
        ),
        license="Apache-2.0 AND MIT",
    ),
}
assert set(PUBLISHED) == set(get_args(PublishedRewardName))


def load_published(name: PublishedRewardName, folder: Path) -> PictureReward:
    """Load a reward of the files in `folder`: fp32, frozen, in eval mode, on the CPU.

    Raises ValueError naming the files that are missing and where they come from, or file and key that do not fit.
    """
    from reward_models.checkpoints import read_checkpoint

    reward = PUBLISHED[name]
    if missing := reward.missing(folder):
        raise ValueError(
            f"reward {name!r} is not whole: put {' and '.join(map(str, missing))} into {folder}, "
            f"license {reward.license}"
        )
    weights = reward.files[0]
    checkpoint = read_checkpoint(_find(folder, weights))
    if weights.sha256 and checkpoint.file == weights.name and checkpoint.sha256 != weights.sha256:
        raise ValueError(
            f"{weights.name} is not the published file (its SHA-256 is {checkpoint.sha256}, that one's "
            f"{weights.sha256}): fetch it anew from {weights.origin}"
        )
    return _build(name, checkpoint, folder)


def _build(name: PublishedRewardName, checkpoint: Checkpoint, folder: Path) -> PictureReward:
    match name:
        case "imagereward" | "reward3d" | "reward3d-crossview":
            return _blip_reward(name, checkpoint, folder)
        case "aesthetic":
            return _aesthetic(checkpoint, folder)
        case _:
            return _clip_reward(name, checkpoint)


def _blip_reward(
    name: Literal["imagereward", "reward3d", "reward3d-crossview"], checkpoint: Checkpoint, folder: Path
) -> PictureReward:
    from reward_models.image_reward import ImageReward
    from reward_models.reward3d import Reward3DCrossView, Reward3DScorer
    from reward_models.tokens import BertTokens

    kind = {"imagereward": ImageReward, "reward3d": Reward3DScorer, "reward3d-crossview": Reward3DCrossView}[
        name
    ]
    tokens = BertTokens.read(folder / _VOCABULARY.name, kind.text_length)
    return kind.from_checkpoint(checkpoint, tokens=tokens)


def _clip_reward(
    name: Literal["hpsv2", "hpsv2.1", "pickscore", "clip"], checkpoint: Checkpoint
) -> PictureReward:
    from reward_models.clip import VIT_H_14, VIT_L_14, ClipTrunk
    from reward_models.clip_rewards import ClipScore, HPSv2, PickScore
    from reward_models.tokens import ClipTokens

    clip = ClipTrunk.from_checkpoint(checkpoint, VIT_L_14 if name == "clip" else VIT_H_14)
    tokens = ClipTokens()
    reward: PictureReward
    match name:
        case "hpsv2" | "hpsv2.1":
            reward = HPSv2(clip, tokens, version="2.0" if name == "hpsv2" else "2.1")
        case "pickscore":
            reward = PickScore(clip, tokens)
        case "clip":
            reward = ClipScore(clip, tokens)
    reward.sha256 = checkpoint.sha256
    return reward.eval()


def _aesthetic(checkpoint: Checkpoint, folder: Path) -> PictureReward:
    from reward_models.checkpoints import read_checkpoint
    from reward_models.clip import VIT_L_14, ClipTrunk
    from reward_models.clip_rewards import Aesthetic
    from reward_models.linear_head import LinearHead

    trunk = read_checkpoint(_find(folder, _CLIP_L))
    clip = ClipTrunk.from_checkpoint(trunk, VIT_L_14)
    reward = Aesthetic(clip, LinearHead.from_checkpoint(checkpoint, clip.config.embedding))
    reward.sha256 = hashlib.sha256(f"{checkpoint.sha256}\n{trunk.sha256}".encode()).hexdigest()
    return reward.eval()


def _find(folder: Path, file: PublishedFile) -> Path:
    """The file itself, or its .safetensors version when only that is there."""
    path = folder / file.name
    other = path.with_suffix(".safetensors")
    return other if path.suffix != ".txt" and not path.is_file() and other.is_file() else path
