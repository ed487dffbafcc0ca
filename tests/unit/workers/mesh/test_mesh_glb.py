from __future__ import annotations

import io
import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import trimesh

from workers.mesh import InvalidGlb, Mesh, bake, extract, validate_glb, write_glb, write_mesh

if TYPE_CHECKING:
    from collections.abc import Callable

Document = dict[str, Any]


def load(content: bytes) -> trimesh.Trimesh:
    scene = trimesh.load(io.BytesIO(content), file_type="glb")
    (geometry,) = scene.geometry.values()
    return geometry


@pytest.fixture(scope="module")
def small_glb(ball: Any) -> bytes:
    return write_glb(bake(extract(ball, resolution=32, target_faces=400), ball, texture_px=32))


def test_colors_read_back_by_trimesh_are_right(pair: Any, pair_mesh: Mesh) -> None:
    loaded = load(write_glb(pair_mesh))
    at_vertices = np.asarray(loaded.visual.to_color().vertex_colors)[:, :3]
    points, faces = trimesh.sample.sample_surface(loaded, 2000, seed=0)
    weights = trimesh.triangles.points_to_barycentric(loaded.triangles[faces], points)
    uv = np.einsum("pc,pck->pk", weights, loaded.visual.uv[loaded.faces[faces]])
    sampled = trimesh.visual.color.uv_to_color(uv, loaded.visual.material.baseColorTexture)[:, :3]
    for where, found in ((np.asarray(loaded.vertices), at_vertices), (points, sampled)):
        truth = 255 * pair.color(torch.from_numpy(where).float()).numpy()
        clear = np.abs(where[:, 1] - 0.05) > 4 * 2 / 96  # beside the contact, where texels mix both colors
        assert np.abs(found - truth).max(1)[clear].max() <= 3


def test_material_is_matte_and_the_surface_welds_closed(pair_mesh: Mesh) -> None:
    loaded = load(write_glb(pair_mesh))
    material = loaded.visual.material
    assert (material.metallicFactor, material.roughnessFactor) == (0, 0.9)
    assert np.allclose(loaded.bounds, [pair_mesh.vertices.min(0), pair_mesh.vertices.max(0)])
    loaded.merge_vertices(merge_tex=True, merge_norm=True)
    assert loaded.is_watertight
    assert loaded.volume > 0


def test_report_is_what_trimesh_measures(pair_mesh: Mesh) -> None:
    content = write_glb(pair_mesh)
    report = validate_glb(content)
    assert (report.faces, report.vertices) == (len(pair_mesh.faces), len(pair_mesh.vertices))
    assert (report.watertight, report.components, report.non_manifold_edges) == (True, 1, 0)
    assert report.texture_px == (256, 256)
    assert report.size_bytes == len(content)
    assert np.allclose(report.bounds, load(content).bounds)


def test_file_names_its_maker_and_nothing_else(small_glb: bytes) -> None:
    document = document_of(small_glb)
    assert document["asset"] == {"version": "2.0", "generator": "dreamserve"}
    assert "COLOR_0" not in document["meshes"][0]["primitives"][0]["attributes"]
    assert "extensionsUsed" not in document


@pytest.mark.parametrize("file_format", ["glb", "obj", "ply", "stl"])
def test_same_mesh_gives_the_same_bytes(ball: Any, file_format: Any) -> None:
    one, two = (bake(extract(ball, resolution=32, target_faces=400), ball, texture_px=32) for _ in range(2))
    assert write_mesh(one, file_format) == write_mesh(two, file_format)


@pytest.mark.parametrize("file_format", ["obj", "ply", "stl"])
def test_other_formats_are_welded_and_colored_where_they_can(pair_mesh: Mesh, file_format: Any) -> None:
    content = write_mesh(pair_mesh, file_format)
    loaded = trimesh.load_mesh(io.BytesIO(content), file_type=file_format)
    assert loaded.is_watertight
    assert len(loaded.faces) == len(pair_mesh.faces)
    if file_format != "stl":
        assert pair_mesh.skin is not None
        order = np.lexsort(np.asarray(loaded.vertices, np.float32).round(4).T)
        expected = pair_mesh.skin.vertex_colors[np.lexsort(pair_mesh.vertices.round(4).T)]
        found = np.asarray(loaded.visual.vertex_colors)[order, :3].astype(int)
        assert np.abs(found - expected).mean() < 1


def test_mesh_without_colors_is_refused(ball: Any) -> None:
    with pytest.raises(ValueError, match="bake it before"):
        write_glb(extract(ball, resolution=32))


# --- damage ---


def document_of(content: bytes) -> Document:
    (size,) = struct.unpack_from("<I", content, 12)
    document: Document = json.loads(content[20 : 20 + size])
    return document


def rebuilt(content: bytes, change: Callable[[Document, bytearray], None]) -> bytes:
    (size,) = struct.unpack_from("<I", content, 12)
    document, binary = document_of(content), bytearray(content[28 + size :])
    change(document, binary)
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    chunks = (
        struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    )
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def write_into(attribute: str, value: float) -> Callable[[Document, bytearray], None]:
    def change(document: Document, binary: bytearray) -> None:
        accessor = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"][attribute]]
        struct.pack_into(
            "<f", binary, document["bufferViews"][accessor["bufferView"]]["byteOffset"] + 24, value
        )

    return change


def set_index(document: Document, binary: bytearray) -> None:
    view = document["accessors"][document["meshes"][0]["primitives"][0]["indices"]]["bufferView"]
    struct.pack_into("<H", binary, document["bufferViews"][view]["byteOffset"], 65_535)


def break_image(document: Document, binary: bytearray) -> None:
    start = document["bufferViews"][document["images"][0]["bufferView"]]["byteOffset"]
    binary[start + 40 : start + 60] = bytes(20)


def edit(path: list[str | int], value: Any) -> Callable[[Document, bytearray], None]:
    def change(document: Document, _: bytearray) -> None:
        part: Any = document
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value

    return change


PRIMITIVE: list[str | int] = ["meshes", 0, "primitives", 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (write_into("POSITION", float("nan")), "NaN"),
        (write_into("POSITION", 0.99), "max"),
        (write_into("NORMAL", 3.0), "unit"),
        (write_into("TEXCOORD_0", 1.5), "texture coordinate"),
        (set_index, "index 65535"),
        (break_image, "image cannot be decoded"),
        (edit(["accessors", 0, "count"], 10**6), "leaves its buffer view"),
        (edit(["accessors", 0, "count"], -1), "no rows"),
        (edit(["accessors", 0, "byteOffset"], 2), "aligned"),
        (edit(["accessors", 0, "componentType"], 7), "component type"),
        (edit(["accessors", 3, "count"], 7), "multiple of 3"),
        (edit(["accessors", 0, "bufferView"], 99), r"bufferViews\[99\]"),
        (edit(["bufferViews", 1, "byteLength"], 10**9), "leaves the buffer"),
        (edit(["buffers", 0, "byteLength"], 4), "differ"),
        (edit(["buffers", 0, "uri"], "data.bin"), "binary chunk"),
        (edit(["asset", "version"], "1.0"), "version"),
        (edit(["nodes", 0, "scale"], [2, 2, 2]), "scale"),
        (edit([*PRIMITIVE, "mode"], 1), "triangles"),
        (edit([*PRIMITIVE, "attributes", "NORMAL"], 2), "NORMAL"),
        (edit([*PRIMITIVE, "material"], 3), r"materials\[3\]"),
        (edit(["images", 0, "mimeType"], "image/jpeg"), "JPEG, but it is PNG"),
        (edit(["meshes"], None), "wrong kind"),
        (edit(["extensionsRequired"], ["KHR_draco_mesh_compression"]), "draco"),
    ],
)
def test_planted_damage_is_found(
    small_glb: bytes, change: Callable[[Document, bytearray], None], message: str
) -> None:
    validate_glb(rebuilt(small_glb, lambda document, binary: None))
    with pytest.raises(InvalidGlb, match=message):
        validate_glb(rebuilt(small_glb, change))


def test_every_truncation_is_found(small_glb: bytes) -> None:
    for length in [*range(64), *range(64, len(small_glb), 997), len(small_glb) - 1]:
        with pytest.raises(InvalidGlb):
            validate_glb(small_glb[:length])


def test_any_flipped_byte_is_harmless_or_an_invalid_glb(small_glb: bytes) -> None:
    draw = np.random.default_rng(0)
    (json_size,) = struct.unpack_from("<I", small_glb, 12)
    refused = 0
    for position in [
        *range(20),
        *draw.integers(20, 28 + json_size, 250),
        *draw.integers(28 + json_size, len(small_glb), 30),
    ]:
        damaged = bytearray(small_glb)
        damaged[position] ^= int(draw.integers(1, 256))
        try:
            validate_glb(bytes(damaged))
        except InvalidGlb:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize("content", [b"", b"glTF", b"not a mesh at all, but long enough"])
def test_other_bytes_are_no_glb(content: bytes) -> None:
    with pytest.raises(InvalidGlb):
        validate_glb(content)
