from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from workers.fields.hash_encoding import Frequencies, GridSizes, HashEncoding, Level, make_encoding

SMALL = GridSizes(num_levels=5, log2_entries=9, base_resolution=4, level_scale=1.7)
"""Resolutions 4, 7, 12, 20, 34, of which only the first two fit into 512 entries."""
PUBLISHED = [16, 24, 34, 49, 71, 102, 148, 213, 308, 446, 646, 934, 1352, 1956, 2831, 4096]


def encoding_of(sizes: GridSizes, seed: int = 0) -> HashEncoding:
    encoding = make_encoding(sizes, torch.Generator().manual_seed(seed), "cpu")
    assert isinstance(encoding, HashEncoding)
    with torch.no_grad():
        encoding.table.normal_(generator=torch.Generator().manual_seed(seed))
    return encoding.double()


def slow_entry(corner: tuple[int, ...], level: Level) -> int:
    """The entry of one corner, in 32-bit arithmetic as the kernels do it."""
    x, y, z = corner
    if level.resolution**3 <= level.num_entries:
        return (x + y * level.resolution + z * level.resolution**2) % level.num_entries
    mask = 0xFFFFFFFF
    return ((x & mask) ^ (y * 2654435761 & mask) ^ (z * 805459861 & mask)) % level.num_entries


def slow_encoding(encoding: HashEncoding, points: Tensor) -> Tensor:
    """The slow readable twin: one point, one level, one corner after the other."""
    rows = []
    for point in points.tolist():
        row, first = [], 0
        for level in encoding.levels:
            feature = torch.zeros(encoding.table.shape[1], dtype=torch.float64)
            position = [x * level.scale + 0.5 for x in point]
            for corner in itertools.product((0, 1), repeat=3):
                weight = 1.0
                for x, upper in zip(position, corner, strict=True):
                    weight *= x - math.floor(x) if upper else 1 - (x - math.floor(x))
                where = tuple(math.floor(x) + upper for x, upper in zip(position, corner, strict=True))
                feature += weight * encoding.table[first + slow_entry(where, level)]
            row.append(feature)
            first += level.num_entries
        rows.append(torch.cat(row))
    return torch.stack(rows)


def test_published_sizes_have_the_published_levels_and_parameters() -> None:
    encoding = make_encoding(GridSizes(), torch.Generator(), "meta")
    assert isinstance(encoding, HashEncoding)
    assert [level.resolution for level in encoding.levels] == PUBLISHED
    assert [level.hashed for level in encoding.levels] == [False] * 5 + [True] * 11
    assert encoding.table.is_meta
    assert encoding.table.numel() == 12_599_920
    assert encoding.width == 32


def test_it_can_be_built_under_the_meta_device() -> None:
    with torch.device("meta"):
        assert len(HashEncoding(GridSizes(), torch.Generator(device="cpu"), "meta").levels) == 16


def test_features_equal_those_of_the_slow_twin_up_to_the_faces_of_the_box() -> None:
    encoding = encoding_of(SMALL)
    assert [level.resolution for level in encoding.levels] == [4, 7, 12, 20, 34]
    assert [level.hashed for level in encoding.levels] == [False, False, True, True, True]
    points = torch.rand(60, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    points = torch.cat([points, torch.eye(3).double(), torch.zeros(1, 3).double(), torch.ones(1, 3).double()])
    torch.testing.assert_close(encoding(points), slow_encoding(encoding, points))


def test_published_corners_hash_to_the_entries_of_32_bit_arithmetic() -> None:
    sizes = GridSizes(num_levels=16, features_per_level=1)
    encoding = encoding_of(sizes)
    points = torch.rand(20, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(encoding(points), slow_encoding(encoding, points))


def test_it_can_be_differentiated_twice_to_positions_and_table() -> None:
    encoding = encoding_of(GridSizes(num_levels=2, log2_entries=5, base_resolution=3, level_scale=2.0))
    points = torch.rand(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    points.requires_grad_()

    def encode(points: Tensor, table: Tensor) -> Tensor:
        return torch.func.functional_call(encoding, {"table": table}, (points,))

    inputs = (points, encoding.table.detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(encode, inputs)
    assert torch.autograd.gradgradcheck(encode, inputs)


def test_it_starts_small_and_the_same_for_the_same_seed() -> None:
    one, same, other = (
        make_encoding(SMALL, torch.Generator().manual_seed(seed), "cpu").state_dict()["table"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert 0.9e-4 < one.abs().max() <= 1e-4


def test_frequencies_come_band_by_band_sines_first() -> None:
    encoding = make_encoding(Frequencies(2), torch.Generator(), "cpu")
    x = torch.tensor([[0.1, 0.2, 0.3]])
    expected = torch.cat([x.sin(), x.cos(), (2 * x).sin(), (2 * x).cos()], -1)
    torch.testing.assert_close(encoding(x), expected)
    assert encoding.width == 12
