"""The networks under the embedded prior: slot tokens, projected layout maps and the multi-view U-Net.

Shapes: N groups, V views, H = W = 32 pixels of an RGBA picture, S = 4 slot tokens of D = 128 + 6 numbers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.cameras import Cameras, camera_rays

__all__ = ["LAYOUT_CHANNELS", "MultiViewUNet", "SlotEncoder", "TextChoices", "layout_maps"]

TOKEN = 128
"""Width of a slot token; six numbers of its box follow it."""
MAP_WIDTH = 24
LAYOUT_CHANNELS = 24 + 2 * MAP_WIDTH
EMBEDDING = 192


class TextChoices(NamedTuple):
    """Soft choices of two slots: probabilities in use, one-hot in training; boxes are zero for an empty slot."""

    name: Tensor
    """(N, 2, names)."""
    color: Tensor
    accent: Tensor
    size: Tensor
    boxes: Tensor
    """(N, 2, 6) center and half extents."""


class SlotEncoder(nn.Module):
    """Embed choices as four tokens: slots A and B, and their colors alone; with boxes: (N, 4, 134)."""

    def __init__(self, names: int, colors: int, sizes: int) -> None:
        super().__init__()
        self.name = nn.Linear(names, TOKEN, bias=False)
        self.color = nn.Linear(colors, TOKEN, bias=False)
        self.accent = nn.Linear(colors, TOKEN, bias=False)
        self.size = nn.Linear(sizes, TOKEN, bias=False)
        self.box = nn.Linear(6, TOKEN)
        self.color_only = nn.Linear(2 * colors, TOKEN, bias=False)
        self.slot = nn.Parameter(torch.randn(4, TOKEN) * 0.02)
        self.mix = nn.Sequential(
            nn.LayerNorm(TOKEN), nn.Linear(TOKEN, 2 * TOKEN), nn.SiLU(), nn.Linear(2 * TOKEN, TOKEN)
        )

    def forward(self, choices: TextChoices) -> Tensor:
        things = self.name(choices.name) + self.color(choices.color) + self.accent(choices.accent)
        things = things + self.size(choices.size) + self.box(choices.boxes)
        colors = self.color_only(torch.cat([choices.color, choices.accent], -1))
        tokens = torch.cat([things, colors], 1) + self.slot
        tokens = tokens + self.mix(tokens)
        return torch.cat([tokens, F.pad(choices.boxes, (0, 0, 0, 2))], -1)


def layout_maps(boxes: Tensor, cameras: Cameras, image_px: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Project two boxes (N, 2, 6) into cameras (N, V) by a ray/box test at `image_px`, taken to half of it.

    Returns maps (N, V, 24, h, h): occupancy of A, of B and front-most A, pixel-unshuffled (12); mean entry and
    exit point in the front box's own coordinates (6); entry depths of A and B (2); fractions of front-most A, B
    and of any A, B (4). Then the fractions again, front (N, V, 2, h, h) and any (N, V, 2, h, h).
    """
    origins, directions = camera_rays(cameras, image_px, image_px)
    center, half = boxes[:, None, None, None, :, :3], boxes[:, None, None, None, :, 3:].clamp(min=1e-4)
    o = (origins[..., None, :] - center) / half
    d = directions[..., None, :] / half
    d = torch.where(d.abs() < 1e-6, 1e-6, d)
    low, high = (-1 - o) / d, (1 - o) / d
    entry, leave = torch.minimum(low, high).amax(-1), torch.maximum(low, high).amin(-1)
    present = (boxes[:, :, 3:].amin(-1) > 1e-3)[:, None, None, None]
    hit = (entry < leave) & present
    depth = torch.where(hit, entry, torch.inf)
    is_a = hit[..., 0] & (depth[..., 0] <= depth[..., 1])
    front = torch.stack([is_a, hit[..., 1] & ~is_a], -1)
    chosen = front.to(o.dtype)[..., None]
    ends = [((o + t[..., None] * d).clamp(-1, 1) * chosen).sum(-2) for t in (entry, leave)]
    distance = origins.norm(dim=-1)[..., None]
    planes = torch.cat(
        [hit, is_a[..., None], *ends, torch.where(hit, entry - distance, 0.0), front, hit], -1
    ).movedim(-1, 2)
    binary = F.pixel_unshuffle(planes[:, :, :3].flatten(0, 1), 2)
    mean = F.avg_pool2d(planes[:, :, 3:].flatten(0, 1), 2)
    maps = torch.cat([binary, mean], 1).unflatten(0, planes.shape[:2])
    return maps, maps[:, :, -4:-2], maps[:, :, -2:]


class Conv(nn.Module):
    """A convolution whose weight is stored as a matrix (out, in · k²), as the Muon optimizer wants it."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, *, zero: bool = False) -> None:
        super().__init__()
        self.kernel = kernel
        fan_in = in_channels * kernel**2
        self.weight = nn.Parameter(
            torch.zeros(out_channels, fan_in) if zero else torch.randn(out_channels, fan_in) / fan_in**0.5
        )
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.reshape(len(self.weight), -1, self.kernel, self.kernel)
        return F.conv2d(x, weight, self.bias, padding=self.kernel // 2)


class ResBlock(nn.Module):
    """Two convolutions around FiLM from the step's embedding; starts as the identity."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, in_channels), Conv(in_channels, channels)
        self.film = nn.Linear(EMBEDDING, 2 * channels)
        self.norm2, self.conv2 = nn.GroupNorm(8, channels), Conv(channels, channels, zero=True)
        self.skip = Conv(in_channels, channels, 1) if in_channels != channels else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding)[..., None, None].chunk(2, 1)
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden) * (1 + scale) + shift))
        return self.skip(x) + hidden


class JointAttention(nn.Module):
    """Self-attention over the pixels of all views of an object, with its slot tokens as further keys and values."""

    def __init__(self, channels: int, grid: int, head: int = 32) -> None:
        super().__init__()
        self.head = head
        self.position = nn.Parameter(torch.randn(grid * grid, channels) * 0.02)
        self.camera = nn.Linear(6, channels)
        self.norm, self.qkv = nn.LayerNorm(channels), nn.Linear(channels, 3 * channels)
        self.slots = nn.Sequential(nn.LayerNorm(TOKEN), nn.Linear(TOKEN, 2 * channels))
        self.out = nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, 2 * channels),
            nn.GELU(),
            nn.Linear(2 * channels, channels),
        )
        for layer in (self.out, self.mlp[-1]):
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor, poses: Tensor, tokens: Tensor) -> Tensor:
        """x (N·V, C, g, g), poses (N, V, 6), tokens (N, S, 128)."""
        count, views = poses.shape[:2]
        channels, grid = x.shape[1], x.shape[2]
        pixels = x.flatten(2).transpose(1, 2)
        placed = self.norm(pixels + self.position) + self.camera(poses).flatten(0, 1)[:, None]
        q, k, v = self.qkv(placed).reshape(count, views * grid * grid, 3 * channels).chunk(3, -1)
        slot_k, slot_v = self.slots(tokens).chunk(2, -1)
        q, k, v = (
            y.unflatten(-1, (-1, self.head)).transpose(1, 2)
            for y in (q, torch.cat([k, slot_k], 1), torch.cat([v, slot_v], 1))
        )
        weights = (q @ k.transpose(-1, -2) / self.head**0.5).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).reshape(pixels.shape)
        pixels = pixels + self.out(mixed)
        pixels = pixels + self.mlp(pixels)
        return pixels.transpose(1, 2).reshape(x.shape)


class MultiViewUNet(nn.Module):
    """Predict v for four RGBA views at once: 2 × 2 patches, three levels (16, 8, 4), joint attention at 8 and 4."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        c16, c8, c4 = channels
        self.tokens_to_maps = nn.Linear(TOKEN, 2 * MAP_WIDTH)
        self.time = nn.Sequential(nn.Linear(64, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, EMBEDDING))
        self.pose = nn.Linear(6, EMBEDDING)
        self.pooled = nn.Linear(4 * TOKEN, EMBEDDING)
        self.first = Conv(16 + LAYOUT_CHANNELS, c16)
        self.down16 = ResBlock(c16, c16)
        self.down8, self.attend_down8 = ResBlock(c16, c8), JointAttention(c8, 8)
        self.middle = nn.ModuleList([ResBlock(c8, c4), ResBlock(c4, c4)])
        self.attend4 = JointAttention(c4, 4)
        self.up8, self.attend_up8 = ResBlock(c4 + c8, c8), JointAttention(c8, 8)
        self.up16 = nn.ModuleList([ResBlock(c8 + c16, c16), ResBlock(c16 + c16, c16)])
        self.norm, self.last = nn.GroupNorm(8, c16), Conv(c16, 16, zero=True)

    def forward(self, latents: Tensor, time: Tensor, text: Tensor, cameras: Cameras) -> Tensor:
        """latents (N, V, 4, 32, 32), time (N,) in (0, 1), text (N, 4, 134), cameras (N, V) → v like latents."""
        count, views = latents.shape[:2]
        tokens, boxes = text[..., :TOKEN], text[:, :2, TOKEN:]
        poses = torch.cat([cameras.c2w[..., :3, 0], cameras.c2w[..., :3, 2]], -1)
        embedding = self.time(_sinusoids(time))[:, None] + self.pose(poses)
        embedding = F.silu(embedding + self.pooled(tokens.flatten(1))[:, None]).flatten(0, 1)

        layout = self._layout(tokens, boxes, cameras).flatten(0, 1)
        x = F.pixel_unshuffle(latents.flatten(0, 1), 2)
        first = self.first(torch.cat([x, layout.to(x.dtype)], 1))
        skip16 = self.down16(first, embedding)
        skip8 = self.attend_down8(self.down8(F.avg_pool2d(skip16, 2), embedding), poses, tokens)
        x = self.middle[0](F.avg_pool2d(skip8, 2), embedding)
        x = self.middle[1](self.attend4(x, poses, tokens), embedding)
        x = self.up8(torch.cat([F.interpolate(x, scale_factor=2), skip8], 1), embedding)
        x = self.attend_up8(x, poses, tokens)
        x = self.up16[0](torch.cat([F.interpolate(x, scale_factor=2), skip16], 1), embedding)
        x = self.up16[1](torch.cat([x, first], 1), embedding)
        x = F.pixel_shuffle(self.last(F.silu(self.norm(x))), 2)
        return x.unflatten(0, (count, views)).to(latents.dtype)

    def _layout(self, tokens: Tensor, boxes: Tensor, cameras: Cameras) -> Tensor:
        with torch.autocast(boxes.device.type, enabled=False):
            maps, front, anywhere = layout_maps(boxes.float(), cameras)
        contents = self.tokens_to_maps(tokens[:, :2]).to(maps.dtype)
        in_front, behind = contents.chunk(2, -1)
        painted = [
            torch.einsum("nvshw,nsc->nvchw", fraction, content)
            for fraction, content in ((front, in_front), (anywhere, behind))
        ]
        return torch.cat([maps, *painted], 2)


def _sinusoids(time: Tensor) -> Tensor:
    """(N,) in (0, 1) → (N, 64)."""
    frequency = torch.exp(torch.linspace(0, math.log(200.0), 32, device=time.device))
    angle = time[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)
