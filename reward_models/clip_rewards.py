"""Rewards that are a cosine of CLIP features, and the aesthetic predictor, which is a linear map of one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from reward_models.clip import ClipTrunk, cosine, unit
from reward_models.contracts import RewardCard
from reward_models.picture_reward import PictureReward, Reduction, Texts, reduce_views

if TYPE_CHECKING:
    from torch import Tensor, nn

    from reward_models.linear_head import LinearHead
    from reward_models.tokens import PromptTokens

__all__ = ["Aesthetic", "ClipScore", "HPSv2", "PickScore", "aesthetic_rating"]

HpsVersion = Literal["2.0", "2.1"]


class ClipReward(PictureReward):
    """A reward on a CLIP trunk, frozen, in eval mode."""

    def __init__(
        self, clip: ClipTrunk, tokens: PromptTokens | None = None, *, antialias: bool = True
    ) -> None:
        super().__init__(clip.config.image_px, tokens, antialias=antialias)
        if tokens is not None and (tokens.size, tokens.length) != (
            clip.config.vocabulary,
            clip.config.context,
        ):
            raise ValueError(
                f"this CLIP reads {clip.config.context} of {clip.config.vocabulary} tokens, but its tokenizer makes "
                f"{tokens.length} of {tokens.size}: use CLIP's own byte pairs"
            )
        self.clip = clip

    def image_features(self, pixels: Tensor) -> Tensor:
        """Embed prepared pictures (G, V, 3, P, P): (G, V, embedding)."""
        return self.clip.image_features(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])

    def cosines(self, pixels: Tensor, texts: Texts, scale: Tensor | float = 1.0) -> Tensor:
        """scale · cos of each view (G, V, 3, P, P) with its text: (G, V)."""
        return cosine(self.image_features(pixels), self.clip.text_features(texts.ids)[texts.of_view], scale)

    def _card(
        self, name: str, value_range: tuple[float, float] | None, scale: str, license_: str
    ) -> RewardCard:
        return RewardCard(
            name=name,
            value_range=value_range,
            scale=scale,
            views=None,
            uses_prompt=True,
            differentiable=True,
            license=license_,
            weights_sha256=self.sha256,
            prompt_tokens=self.clip.config.context,
            preprocessing=f"{self.picture_path} bicubic to {self.image_px} px, center crop, CLIP's mean and "
            "standard deviation",
        )


class HPSv2(ClipReward):
    """Human Preference Score v2 (arXiv 2306.09341): the cosine itself, after training on preferences.

    Scores of versions 2.0 and 2.1 must not be compared, nor scores of different prompts.
    """

    picture_path = "tensor"

    def __init__(
        self,
        clip: ClipTrunk,
        tokens: PromptTokens | None = None,
        *,
        version: HpsVersion = "2.1",
        antialias: bool = True,
    ) -> None:
        super().__init__(clip, tokens, antialias=antialias)
        self.version = version

    @property
    def card(self) -> RewardCard:
        """Declare what this reward is."""
        name = "hpsv2" if self.version == "2.0" else f"hpsv2.{self.version.removeprefix('2.')}"
        scale = f"HPS v{self.version}: a cosine, 0.2 to 0.35 is typical (papers print 100 times it)"
        return self._card(name, (-1.0, 1.0), scale, "Apache-2.0")

    def score_prepared(self, pixels: Tensor, texts: Texts) -> Tensor:
        """Score each prepared picture: (G, V)."""
        return self.cosines(pixels, texts)


class PickScore(ClipReward):
    """PickScore v1 (arXiv 2305.01569): exp(logit scale) · cosine; a softmax of two gives the odds of a preference."""

    @property
    def card(self) -> RewardCard:
        """Declare what this reward is."""
        most = float(self.clip.scale)
        return self._card("pickscore", (-most, most), "log odds of being picked; 17 to 24 is typical", "MIT")

    def score_prepared(self, pixels: Tensor, texts: Texts) -> Tensor:
        """Score each prepared picture: (G, V)."""
        return self.cosines(pixels, texts, self.clip.scale)


class ClipScore(ClipReward):
    """scale · cosine of OpenAI's CLIP, at least 0 if `clamp`, of each view or reduced to one score of an object.

    Conventions seen: 100 without clamp, mean (papers' tables); 100 clamped (torchmetrics); 2.5 clamped (CLIPScore,
    arXiv 2104.08718); 5, max over 6 views (3DGen-R1's reward).
    """

    def __init__(
        self,
        clip: ClipTrunk,
        tokens: PromptTokens | None = None,
        *,
        scale: float = 100.0,
        clamp: bool = False,
        reduce: Reduction | None = None,
        antialias: bool = True,
    ) -> None:
        super().__init__(clip, tokens, antialias=antialias)
        if scale <= 0:
            raise ValueError(
                f"the CLIP score's scale must be above 0, so that higher is better, but is {scale}"
            )
        self.scale, self.clamp, self.reduce = scale, clamp, reduce

    @property
    def card(self) -> RewardCard:
        """Declare what this reward is."""
        of = f"{self.scale:g} times the cosine of picture and prompt"
        over = f", {self.reduce} of the views" if self.reduce else ""
        return self._card("clip", (0.0 if self.clamp else -self.scale, self.scale), of + over, "MIT")

    def score_prepared(self, pixels: Tensor, texts: Texts) -> Tensor:
        """Score prepared pictures: (G, V), or (G, 1) if reduced."""
        values = self.cosines(pixels, texts, self.scale)
        if self.clamp:
            values = values.clamp(min=0)
        return values if self.reduce is None else reduce_views(values, self.reduce)


class Aesthetic(ClipReward):
    """LAION's aesthetic predictor v2: a rating from 1 to 10 of each picture, whatever the prompt.

    It is linear in the picture's embedding, so following its gradient cheats it easily.
    """

    def __init__(self, clip: ClipTrunk, mlp: LinearHead, *, antialias: bool = True) -> None:
        super().__init__(clip, antialias=antialias)
        self.mlp = mlp
        self.affine = mlp.collapsed()

    @property
    def card(self) -> RewardCard:
        """Declare what this reward is."""
        card = self._card(
            "aesthetic", None, "a rating from about 1 to 10; 4 to 7 is typical", "Apache-2.0 AND MIT"
        )
        return replace(card, uses_prompt=False, prompt_tokens=None)

    def score_prepared(self, pixels: Tensor, texts: Texts) -> Tensor:
        """Rate each prepared picture: (G, V)."""
        return aesthetic_rating(self.image_features(pixels), self.affine).squeeze(-1)


def aesthetic_rating(features: Tensor, affine: nn.Linear) -> Tensor:
    """Rate CLIP image features (…, embedding), of any length: (…, 1).

    The published head has no activation between its layers, so `affine` is all of it: see `LinearHead.collapsed`.
    """
    return affine(unit(features))
