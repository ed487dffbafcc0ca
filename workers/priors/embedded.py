"""The embedded prior: words → soft slots → projected boxes → four-view diffusion of 32 px RGBA pictures.

A caption enters as tokens and nothing else. A small text transformer predicts, for two slots, what stands there
(shape, color, accent, size: soft choices) and where (one box each). The boxes are projected into the four
cameras as layout maps; a U-Net with joint attention over all views denoises the pictures under both.
Boxes carry place and extent, the diffusion carries shape. Trained by `workers/embedded/train.py`.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.cameras import Cameras
from workers.contracts import Prediction, Views, asked
from workers.diffusion import alpha_sigma, clamp_latents, cosine_schedule, guide
from workers.priors.embedded_unet import MultiViewUNet, SlotEncoder, TextChoices
from workers.priors.rgba import composite, encode_rgba, latents_to_image

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "EmbeddedConfig",
    "EmbeddedPrior",
    "TextEncoder",
    "TextLogits",
    "TextShape",
    "load_embedded_prior",
    "sample_views",
    "words_of",
]

LATENT_PX = 32
NUM_TIMESTEPS = 1000
MAX_WORDS = 28
MAX_THINGS = 2
"""Slots of the layout: a third thing in a prompt has no place to stand."""


def words_of(prompt: str) -> list[str]:
    """Split a prompt into lower-case words; everything else separates them."""
    return re.findall(r"\w+", prompt.lower())


class TextShape(NamedTuple):
    """Numbers of classes that the text encoder chooses among."""

    names: int
    """Nouns, and one more class for "nothing stands in this slot"."""
    colors: int
    """Colors, and one more class for "no color is named"."""
    sizes: int
    relations: int


class TextEncoder(nn.Module):
    """Read words and say what stands in slot A and slot B, how they relate and where their boxes are."""

    def __init__(
        self, num_words: int, shape: TextShape, width: int = 96, layers: int = 3, heads: int = 4
    ) -> None:
        super().__init__()
        self.shape = shape
        self.words = nn.Embedding(num_words + 2, width, padding_idx=0)
        self.positions = nn.Parameter(torch.randn(MAX_WORDS, width) * 0.02)
        self.queries = nn.Parameter(torch.randn(3, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.slot_heads = nn.Linear(width, shape.names + 2 * shape.colors + shape.sizes)
        self.relation_head = nn.Linear(width, shape.relations)
        box_inputs = 2 * (shape.names + shape.sizes) + shape.relations
        self.box_head = nn.Sequential(
            nn.Linear(box_inputs, 192), nn.GELU(), nn.Linear(192, 192), nn.GELU(), nn.Linear(192, 12)
        )

    def forward(self, word_ids: Tensor) -> TextLogits:
        """Map word ids (N, MAX_WORDS), 0 padding and 1 unknown, to logits and boxes."""
        count = len(word_ids)
        tokens = torch.cat([self.queries.expand(count, -1, -1), self.words(word_ids) + self.positions], 1)
        padding = F.pad(word_ids == 0, (3, 0), value=False)
        hidden = self.norm(self.transformer(tokens, src_key_padding_mask=padding)[:, :3])
        n = self.shape
        name, color, accent, size = self.slot_heads(hidden[:, :2]).split(
            [n.names, n.colors, n.colors, n.sizes], -1
        )
        relation = self.relation_head(hidden[:, 2])
        chosen = [x.softmax(-1).flatten(1) for x in (name, size, relation)]
        boxes = self.box_head(torch.cat(chosen, -1)).reshape(count, 2, 6)
        return TextLogits(name, color, accent, size, relation, boxes)


class TextLogits(NamedTuple):
    """What the text encoder answers for N captions and two slots."""

    name: Tensor
    """(N, 2, names)."""
    color: Tensor
    accent: Tensor
    size: Tensor
    relation: Tensor
    """(N, relations)."""
    boxes: Tensor
    """(N, 2, 6) center and half extents in the canonical layout."""

    def choices(self) -> TextChoices:
        """Soft choices for the slot encoder; the box of an empty slot is zero."""
        name = self.name.softmax(-1)
        present = (name[..., -1:] < 0.5).to(name.dtype)
        color, accent, size = (x.softmax(-1) for x in (self.color, self.accent, self.size))
        return TextChoices(name, color, accent, size, self.boxes * present)


@dataclass(frozen=True)
class EmbeddedConfig:
    """What a weights file says about its own networks, as JSON in its metadata."""

    words: list[str]
    names: int
    colors: int
    sizes: int
    relations: int
    channels: list[int]
    nouns: list[str] = field(default_factory=list)
    """Those of the words that name a thing."""
    accents: list[str] = field(default_factory=list)
    """Those that name a part when they follow "with": the hat of a snowman with a red hat."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class EmbeddedPrior(nn.Module):
    """The tiny multi-view prior that ships with the project: `contracts.Prior`, on RGBA pictures as latents."""

    views_per_call = 4
    latent_shape = (4, LATENT_PX, LATENT_PX)
    image_px = LATENT_PX
    latent_range = (-1.0, 1.0)

    def __init__(self, config: EmbeddedConfig) -> None:
        super().__init__()
        self.config = config
        self.schedule = cosine_schedule(NUM_TIMESTEPS)
        self.sha256 = ""
        self._word_ids = {word: index + 2 for index, word in enumerate(config.words)}
        shape = TextShape(config.names, config.colors, config.sizes, config.relations)
        self.text_encoder = TextEncoder(len(config.words), shape)
        self.slot_encoder = SlotEncoder(shape.names, shape.colors, shape.sizes)
        self.unet = MultiViewUNet(config.channels)

    @property
    def device(self) -> torch.device:
        """Where the networks' weights are."""
        device: torch.device = self.text_encoder.queries.device
        return device

    def unknown_words(self, prompt: str) -> list[str]:
        """Name the words of `prompt` that are not in the vocabulary, in order, each once."""
        return list(dict.fromkeys(word for word in words_of(prompt) if word not in self._word_ids))

    def is_truncated(self, prompt: str) -> bool:
        """Tell whether words of `prompt` lie beyond what the text encoder reads."""
        return len(words_of(prompt)) > MAX_WORDS

    def num_things(self, prompt: str) -> int:
        """Count the things that `prompt` names, by its words alone: "ice cream" and "pine tree" name one each."""
        words, count, after_with = words_of(prompt), 0, False
        for before, word in zip(["", *words], words, strict=False):
            after_with = word == "with" or (after_with and before not in self.config.nouns)
            if word in self.config.nouns and before not in self.config.nouns:
                count += not (after_with and word in self.config.accents)
        return count

    def word_ids(self, prompts: list[str]) -> Tensor:
        """Tokenize prompts to (N, MAX_WORDS) ids: 0 pads, 1 is any unknown word."""
        rows = [[self._word_ids.get(word, 1) for word in words_of(prompt)][:MAX_WORDS] for prompt in prompts]
        padded = [row + [0] * (MAX_WORDS - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.int64, device=self.device).reshape(len(prompts), MAX_WORDS)

    @torch.no_grad()
    def encode_text(self, prompts: list[str]) -> Tensor:
        """Embed prompts: (N, 4, D) slot tokens with their boxes; zeros for a prompt without words."""
        ids = self.word_ids(prompts)
        text = self.slot_encoder(self.text_encoder(ids).choices())
        return torch.as_tensor(text * (ids > 0).any(1)[:, None, None])

    @asked("encode")
    def encode(self, views: Views) -> Tensor:
        """Take renders as premultiplied RGBA in [−1, 1]: (G, V, 4, 32, 32)."""
        return encode_rgba(views)

    def composite(self, views: Views) -> Tensor:
        """Put renders in front of the project's background: images (G, V, 3, H, W)."""
        return composite(views.rgb, views.opacity)

    @asked("predict")
    def predict(self, latents: Tensor, t: Tensor, text: Tensor, cameras: Cameras) -> Prediction:
        """Denoise (G, V, 4, 32, 32) at t (G,) under text (G, 4, D); x̂₀ is clamped to [−1, 1].

        The network predicts v = α ε − σ x₀; so x̂₀ = α x_t − σ v̂ and ε̂ = σ x_t + α v̂.
        """
        with torch.set_grad_enabled(text.requires_grad):
            alpha, sigma = alpha_sigma(self.schedule, t, latents)
            v = self.unet(latents, (t + 0.5) / NUM_TIMESTEPS, text, cameras)
            return Prediction(sigma * latents + alpha * v, (alpha * latents - sigma * v).clamp(-1, 1))

    @asked("decode")
    def decode(self, latents: Tensor) -> Tensor:
        """Composite RGBA latents over the project's background: (G, V, 3, 32, 32) in [0, 1]."""
        return latents_to_image(latents)


@torch.no_grad()
def sample_views(
    prior: EmbeddedPrior,
    text: Tensor,
    cameras: Cameras,
    generator: torch.Generator,
    *,
    steps: int = 25,
    guidance_scale: float = 3.0,
) -> Tensor:
    """Draw pictures of N prompts by DDIM (arXiv 2010.02502, η = 0): latents (N, V, 4, 32, 32).

    `text` is (N, 4, D), `cameras` hold (N, V) views; classifier-free guidance mixes x̂₀, then clamps it.
    """
    count, views = cameras.c2w.shape[:2]
    x = torch.randn(count, views, *prior.latent_shape, generator=generator)
    both = torch.cat([text, torch.zeros_like(text)])
    twice = Cameras(*(torch.cat([value, value]) for value in cameras))
    times = torch.linspace(0.99, 0.01, steps).mul(NUM_TIMESTEPS).long()
    alphas = prior.schedule.alphas_cumprod
    for t, after in zip(times, [*times[1:], None], strict=True):
        answer = prior.predict(torch.cat([x, x]), t.expand(2 * count), both, twice).now()
        cond, uncond = answer.x0.chunk(2)
        x0 = clamp_latents(guide(cond, uncond, guidance_scale), prior.latent_range)
        noise = (x - alphas[t].sqrt() * x0) / (1 - alphas[t]).sqrt()
        x = x0 if after is None else alphas[after].sqrt() * x0 + (1 - alphas[after]).sqrt() * noise
    return x


def load_embedded_prior(weights: Path) -> EmbeddedPrior:
    """Load the prior from its safetensors file (fp16), as fp32, frozen, in eval mode.

    Raises ValueError when the file is damaged, foreign or misses a tensor, naming file and key.
    """
    try:
        with safetensors.safe_open(weights, framework="pt") as file:
            metadata = file.metadata() or {}
        tensors = safetensors.torch.load_file(weights)
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"{weights.name} cannot be read as safetensors ({error}); "
            "restore the shipped file or run `make train-embedded`"
        ) from error
    if "embedded_prior" not in metadata:
        raise ValueError(f"{weights.name} is no embedded prior: its metadata has no key 'embedded_prior'")
    prior = EmbeddedPrior(EmbeddedConfig(**json.loads(metadata["embedded_prior"])))
    own = {name: tensor.shape for name, tensor in prior.state_dict().items()}
    if unmatched := sorted(own.items() ^ {name: tensor.shape for name, tensor in tensors.items()}.items()):
        raise ValueError(
            f"{weights.name} does not fit the embedded prior: missing, unknown or misshapen tensor {unmatched[0][0]!r}"
        )
    prior.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    prior.sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    return prior.eval().requires_grad_(False)
