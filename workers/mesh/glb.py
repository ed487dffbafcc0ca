"""Write meshes as files: GLB as the product, OBJ, PLY and STL for tools that want them.

Where the colors are. glTF multiplies vertex colors (COLOR_0) with the base color texture, so a file with both
would show every color squared. The GLB therefore carries the texture alone: the finer of the two, shown right by
every viewer, and found by `trimesh.load` as `mesh.visual` (`to_color()`, or `uv` and `material.baseColorTexture`).
PLY and OBJ carry the vertex colors (an OBJ's texture would need two more files). STL knows no colors.

A GLB has its vertices doubled along texture seams and sharp creases, as glTF wants it. To see that the surface is
closed, weld it: `mesh.merge_vertices(merge_tex=True, merge_norm=True)`. The other formats are written welded.
"""

from __future__ import annotations

import io
import json
import struct
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from workers.mesh.surface import Mesh

__all__ = ["MeshFormat", "write_glb", "write_mesh", "write_obj", "write_ply", "write_stl"]

MeshFormat = Literal["glb", "obj", "ply", "stl"]

ROUGHNESS = 0.9
"""Matte, as the priors' pictures are: a gloss that nobody asked for would hide the colors."""
GENERATOR = "dreamserve"

_MAGIC, _JSON_CHUNK, _BIN_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942  # 'glTF', 'JSON', 'BIN\0'
_FLOAT, _UNSIGNED_INT, _UNSIGNED_SHORT = 5126, 5125, 5123
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP_TO_EDGE = 9729, 9987, 33071
_SAMPLER = {
    "magFilter": _LINEAR,
    "minFilter": _LINEAR_MIPMAP_LINEAR,
    "wrapS": _CLAMP_TO_EDGE,
    "wrapT": _CLAMP_TO_EDGE,
}
_MATERIAL = {
    "pbrMetallicRoughness": {
        "baseColorTexture": {"index": 0},
        "metallicFactor": 0.0,
        "roughnessFactor": ROUGHNESS,
    }
}
_TYPE_OF_WIDTH = {1: "SCALAR", 2: "VEC2", 3: "VEC3"}


def write_mesh(mesh: Mesh, file_format: MeshFormat, extras: Mapping[str, Any] | None = None) -> bytes:
    """Write a baked mesh in one of the formats; the same mesh gives the same bytes. Only a GLB keeps `extras`."""
    match file_format:
        case "glb":
            return write_glb(mesh, extras)
        case "obj":
            return write_obj(mesh)
        case "ply":
            return write_ply(mesh)
        case "stl":
            return write_stl(mesh)


def write_glb(mesh: Mesh, extras: Mapping[str, Any] | None = None) -> bytes:
    """Write a baked mesh as binary glTF 2.0: one node, one primitive, one matte material with a PNG base color.

    `extras`, JSON of the writer's own, is kept as `asset.extras`, where it says something of the whole file.
    """
    if mesh.skin is None:
        raise ValueError("this mesh has no colors yet; bake it before it is written as GLB.")
    positions, normals, uv, indices = _split_at_seams(mesh, mesh.skin.corner_uv)
    small = len(positions) < 1 << 16
    buffer = _Buffer()
    attributes = {
        "POSITION": buffer.add_accessor(positions, _FLOAT, _ARRAY_BUFFER, with_bounds=True),
        "NORMAL": buffer.add_accessor(normals, _FLOAT, _ARRAY_BUFFER),
        "TEXCOORD_0": buffer.add_accessor(uv, _FLOAT, _ARRAY_BUFFER),
    }
    index_accessor = buffer.add_accessor(
        indices.astype(np.uint16 if small else np.uint32)[:, None],
        _UNSIGNED_SHORT if small else _UNSIGNED_INT,
        _ELEMENT_ARRAY_BUFFER,
    )
    png = io.BytesIO()
    Image.fromarray(mesh.skin.texture).save(png, format="PNG")
    image_view = buffer.add_view(png.getvalue())
    asset: dict[str, Any] = {"version": "2.0", "generator": GENERATOR}
    document = {
        "asset": asset | ({"extras": dict(extras)} if extras else {}),
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "object"}],
        "meshes": [{"primitives": [{"attributes": attributes, "indices": index_accessor, "material": 0}]}],
        "materials": [_MATERIAL],
        "textures": [{"sampler": 0, "source": 0}],
        "images": [{"bufferView": image_view, "mimeType": "image/png"}],
        "samplers": [_SAMPLER],
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": len(buffer.data)}],
    }
    return _container(document, bytes(buffer.data))


class _Buffer:
    """The binary chunk while it grows, and the JSON that describes it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, int]] = []
        self.accessors: list[dict[str, Any]] = []

    def add_view(self, content: bytes, target: int | None = None) -> int:
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(content)}
        self.views.append(view if target is None else {**view, "target": target})
        self.data += content + bytes(-len(content) % 4)
        return len(self.views) - 1

    def add_accessor(
        self, rows: NDArray[Any], component_type: int, target: int, *, with_bounds: bool = False
    ) -> int:
        accessor: dict[str, Any] = {
            "bufferView": self.add_view(np.ascontiguousarray(rows).tobytes(), target),
            "componentType": component_type,
            "count": len(rows),
            "type": _TYPE_OF_WIDTH[rows.shape[1]],
        }
        if with_bounds:
            accessor |= {"min": rows.min(0).tolist(), "max": rows.max(0).tolist()}
        self.accessors.append(accessor)
        return len(self.accessors) - 1


def _container(document: dict[str, Any], binary: bytes) -> bytes:
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<II", len(text), _JSON_CHUNK) + text
    chunks += struct.pack("<II", len(binary), _BIN_CHUNK) + binary
    return struct.pack("<III", _MAGIC, 2, 12 + len(chunks)) + chunks


def _split_at_seams(
    mesh: Mesh, corner_uv: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Give each different (vertex, texture coordinate, normal) a row: positions, normals, uv, indices."""
    vertex = mesh.faces.reshape(-1, 1)
    uv, normals = corner_uv.reshape(-1, 2), mesh.corner_normals.reshape(-1, 3)
    # Normals that differ by rounding only are one.
    keys = np.hstack([vertex, np.rint(uv * (1 << 20)), np.rint(normals * (1 << 10))]).astype(np.int32)
    _, first, indices = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    return mesh.vertices[vertex[first, 0]], normals[first], uv[first], indices.reshape(-1)


def write_ply(mesh: Mesh) -> bytes:
    """Write a binary PLY with vertex colors."""
    return _export(mesh, "ply")


def write_obj(mesh: Mesh) -> bytes:
    """Write a Wavefront OBJ with a color behind each vertex (`v x y z r g b`): one file, read by the usual tools."""
    return _export(mesh, "obj", header=GENERATOR, digits=6)


def write_stl(mesh: Mesh) -> bytes:
    """Write a binary STL: the shape only."""
    return _export(mesh, "stl")


def _export(mesh: Mesh, file_type: str, **options: Any) -> bytes:
    import trimesh  # here, for it takes a third of a second and GLB does without it

    colors = None if mesh.skin is None else mesh.skin.vertex_colors
    welded = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=colors, process=False)
    content = welded.export(file_type=file_type, **options)
    return content.encode() if isinstance(content, str) else bytes(content)
