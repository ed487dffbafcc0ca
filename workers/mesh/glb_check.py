"""Read a GLB as strictly as the specification allows, so that nothing broken is ever handed out.

The reader shares no code with the writer. It knows what our files use: one buffer inside the container, triangles,
no sparse accessors, no extensions; anything else is refused by name.
"""

from __future__ import annotations

import io
import json
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from workers.mesh.surface import topology

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["GlbReport", "InvalidGlb", "validate_glb"]

_COMPONENTS = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
_IMAGE_FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG"}
_TRIANGLES = 4


class InvalidGlb(Exception):
    """A file that is no valid GLB, or is one of a kind that this service never writes."""


class GlbReport(NamedTuple):
    """What a GLB holds, as read back from its bytes."""

    faces: int
    vertices: int
    """Different positions; the file has more rows where seams double them."""
    watertight: bool
    components: int
    non_manifold_edges: int
    bounds: tuple[tuple[float, float, float], tuple[float, float, float]]
    """Least and largest corner, in the file's own units."""
    texture_px: tuple[int, int] | None
    """Width and height of the base color texture."""
    size_bytes: int


def validate_glb(content: bytes) -> GlbReport:
    """Check a GLB from its first byte to its last and measure what it holds; raises `InvalidGlb` at the first fault."""
    document, binary = _split_container(content)
    reader = _Reader(document, binary)
    try:
        return reader.report(len(content))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InvalidGlb(f"The GLB's JSON lacks a part or has one of the wrong kind: {error!r}.") from error


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidGlb(message)


def _split_container(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Take the container apart: the JSON document and the binary chunk."""
    _require(len(content) >= 20, f"The GLB has {len(content)} bytes; a header and one chunk need 20.")
    magic, version, length = struct.unpack_from("<4sII", content)
    _require(magic == b"glTF", f"The GLB begins with {magic!r} instead of b'glTF'.")
    _require(version == 2, f"The GLB says that it is of version {version}; expected 2.")
    _require(length == len(content), f"The GLB says that it has {length} bytes, but it has {len(content)}.")
    chunks: list[tuple[bytes, bytes]] = []
    offset = 12
    while offset < length:
        _require(offset + 8 <= length, f"The GLB ends within the header of chunk {len(chunks)}.")
        size, kind = struct.unpack_from("<I4s", content, offset)
        _require(
            size % 4 == 0, f"Chunk {len(chunks)} of the GLB has {size} bytes, which is not a multiple of 4."
        )
        _require(
            offset + 8 + size <= length, f"Chunk {len(chunks)} of the GLB reaches beyond the end of the file."
        )
        chunks.append((kind, content[offset + 8 : offset + 8 + size]))
        offset += 8 + size
    kinds = [kind for kind, _ in chunks]
    _require(kinds == [b"JSON", b"BIN\0"], f"The GLB's chunks are {kinds}; expected JSON, then BIN.")
    try:
        document = json.loads(chunks[0][1].decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidGlb(f"The GLB's JSON chunk cannot be read: {error}.") from error
    _require(isinstance(document, dict), "The GLB's JSON chunk is not an object.")
    return document, chunks[1][1]


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


class _Reader:
    """The JSON document and the bytes that it points into."""

    def __init__(self, document: dict[str, Any], binary: bytes) -> None:
        self.document = document
        self.binary = binary

    def report(self, size_bytes: int) -> GlbReport:
        """Check everything that the default scene reaches, and measure it."""
        document = self.document
        _require(document["asset"]["version"] == "2.0", "The GLB's asset.version is not '2.0'.")
        required = document.get("extensionsRequired", [])
        _require(not required, f"The GLB needs the extensions {required}; expected none.")
        self._check_buffer()
        self._check_scene()
        primitives = [part for mesh in document["meshes"] for part in mesh["primitives"]]
        _require(len(primitives) == 1, f"The GLB has {len(primitives)} primitives; expected one.")
        positions, indices = self._primitive(primitives[0])
        welded, which = np.unique(positions, axis=0, return_inverse=True)
        faces = which.reshape(-1)[indices].reshape(-1, 3).astype(np.int32)
        closed = topology(faces)
        low, high = positions.min(0).tolist(), positions.max(0).tolist()
        return GlbReport(
            faces=len(faces),
            vertices=len(welded),
            watertight=closed.watertight,
            components=closed.components,
            non_manifold_edges=closed.non_manifold_edges,
            bounds=((low[0], low[1], low[2]), (high[0], high[1], high[2])),
            texture_px=self._texture(primitives[0]),
            size_bytes=size_bytes,
        )

    def _check_buffer(self) -> None:
        buffers = self.document["buffers"]
        _require(
            len(buffers) == 1 and "uri" not in buffers[0], "The GLB's data is not in its one binary chunk."
        )
        slack = len(self.binary) - buffers[0]["byteLength"]
        _require(
            0 <= slack <= 3,
            f"The GLB's buffer and its binary chunk differ by {slack} bytes; expected 0 to 3.",
        )

    def _check_scene(self) -> None:
        """Every root of the default scene is a node without children that shows a mesh where it is."""
        scene = self._item("scenes", self.document["scene"])
        _require(len(scene["nodes"]) > 0, "The GLB's scene is empty.")
        for index in scene["nodes"]:
            node = self._item("nodes", index)
            moved = {"children", "matrix", "translation", "rotation", "scale", "skin"} & set(node)
            _require(not moved, f"The GLB's node {index} has {sorted(moved)}; expected a mesh only.")
            self._item("meshes", node["mesh"])

    def _item(self, kind: str, index: Any) -> dict[str, Any]:
        items = self.document.get(kind, [])
        valid = isinstance(index, int) and not isinstance(index, bool) and 0 <= index < len(items)
        _require(valid, f"The GLB points to {kind}[{index}], but it has {len(items)}.")
        item: dict[str, Any] = items[index]
        return item

    def _view(self, index: Any) -> tuple[int, int, dict[str, Any]]:
        """Start and end of a buffer view in the binary chunk, and the view itself."""
        view = self._item("bufferViews", index)
        self._item("buffers", view["buffer"])
        start, length = view.get("byteOffset", 0), view["byteLength"]
        inside = start >= 0 and length > 0 and start + length <= self.document["buffers"][0]["byteLength"]
        _require(inside, f"bufferViews[{index}] of the GLB (bytes {start} + {length}) leaves the buffer.")
        return start, start + length, view

    def _accessor(self, index: Any, name: str) -> NDArray[Any]:
        """Read an accessor as (count, width)."""
        accessor = self._item("accessors", index)
        _require("sparse" not in accessor, f"{name} of the GLB is sparse, which is not supported.")
        _require(accessor["componentType"] in _COMPONENTS, f"{name} has an unknown component type.")
        _require(accessor["type"] in _WIDTHS, f"{name} has the unsupported type {accessor['type']!r}.")
        _require(accessor["count"] > 0, f"{name} of the GLB has no rows.")
        dtype, width = np.dtype(_COMPONENTS[accessor["componentType"]]), _WIDTHS[accessor["type"]]
        start, end, view = self._view(accessor["bufferView"])
        stride = view.get("byteStride", dtype.itemsize * width)
        offset = accessor.get("byteOffset", 0)
        _require(
            (start + offset) % dtype.itemsize == 0 and stride % dtype.itemsize == 0,
            f"{name} of the GLB is not aligned to its {dtype.itemsize}-byte components.",
        )
        last = start + offset + stride * (accessor["count"] - 1) + dtype.itemsize * width
        _require(
            offset >= 0 and stride >= dtype.itemsize * width and last <= end,
            f"{name} of the GLB ({accessor['count']} rows) leaves its buffer view.",
        )
        return np.ndarray(
            (accessor["count"], width), dtype, self.binary, start + offset, (stride, dtype.itemsize)
        )

    def _primitive(self, primitive: dict[str, Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Check the triangles' attributes and indices: positions (N, 3), indices (3F)."""
        _require(
            primitive.get("mode", _TRIANGLES) == _TRIANGLES, "The GLB's primitive is not made of triangles."
        )
        attributes = primitive["attributes"]
        positions = self._floats(attributes, "POSITION", 3)
        bounds = self._item("accessors", attributes["POSITION"])
        for key, true in (("min", positions.min(0)), ("max", positions.max(0))):
            stated = np.asarray(bounds[key], np.float32)
            _require(
                np.array_equal(stated, true),
                f"The GLB says {key} = {stated.tolist()}, but it is {true.tolist()}.",
            )
        normals = self._floats(attributes, "NORMAL", 3)
        _require(
            bool((np.abs(np.linalg.norm(normals.astype(np.float64), axis=1) - 1) < 1e-3).all()),
            "A normal is not a unit vector.",
        )
        uv = self._floats(attributes, "TEXCOORD_0", 2)
        _require(bool(((uv >= 0) & (uv <= 1)).all()), "A texture coordinate lies outside [0, 1].")
        _require(
            len(positions) == len(normals) == len(uv), "The GLB's attributes have different numbers of rows."
        )
        indices = self._accessor(primitive["indices"], "indices")
        _require(
            indices.dtype.kind == "u" and indices.shape[1] == 1, "The GLB's indices are not unsigned scalars."
        )
        _require(len(indices) % 3 == 0, f"The GLB has {len(indices)} indices, which is not a multiple of 3.")
        _require(
            int(indices.max()) < len(positions),
            f"The GLB has index {indices.max()}, but only {len(positions)} vertices.",
        )
        return positions, indices[:, 0]

    def _floats(self, attributes: dict[str, Any], name: str, width: int) -> NDArray[Any]:
        _require(name in attributes, f"The GLB's primitive has no {name}.")
        rows = self._accessor(attributes[name], name)
        _require(
            rows.dtype == np.float32 and rows.shape[1] == width, f"{name} is not made of {width} floats."
        )
        _require(bool(np.isfinite(rows).all()), f"{name} of the GLB holds NaN or infinity.")
        return rows

    def _texture(self, primitive: dict[str, Any]) -> tuple[int, int] | None:
        """Check the material down to its pixels: the base color texture's width and height."""
        material = self._item("materials", primitive["material"])["pbrMetallicRoughness"]
        if "baseColorTexture" not in material:
            return None
        texture = self._item("textures", material["baseColorTexture"]["index"])
        if "sampler" in texture:
            self._item("samplers", texture["sampler"])
        image = self._item("images", texture["source"])
        expected = _IMAGE_FORMATS.get(image["mimeType"])
        _require(
            expected is not None, f"The GLB's image is of type {image['mimeType']!r}; expected PNG or JPEG."
        )
        start, end, _ = self._view(image["bufferView"])
        try:
            with Image.open(io.BytesIO(self.binary[start:end])) as picture:
                picture.load()
                found, size = picture.format, picture.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InvalidGlb(f"The GLB's image cannot be decoded: {error}.") from error
        _require(found == expected, f"The GLB's image says that it is {expected}, but it is {found}.")
        return size
