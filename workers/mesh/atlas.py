"""Unfolding a surface into one square image, by xatlas, in a process of its own.

xatlas works for seconds and holds Python's lock meanwhile, in which no other scene of a worker could step. Apart, it
uses another core, and a crash of it is an error of one job.
"""

from __future__ import annotations

import io
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["unfold"]

GUTTER_PX = 3
"""Distance between charts in the atlas, so that bilinear look-ups do not mix them."""


def unfold(vertices: NDArray[np.float32], faces: NDArray[np.integer], texture_px: int) -> NDArray[np.float32]:
    """Give the corners of each face (F, 3) of vertices (V, 3) their places in the image: (F, 3, 2) in [0, 1].

    Raises RuntimeError with what xatlas said when it fails.
    """
    surface = io.BytesIO()
    np.save(surface, vertices)
    np.save(surface, faces.astype(np.uint32))
    told = subprocess.run(  # noqa: S603 - this very file
        [sys.executable, "-P", __file__, str(texture_px)], input=surface.getvalue(), capture_output=True
    )
    if told.returncode:
        raise RuntimeError(
            f"xatlas could not unfold {len(faces)} faces (exit status {told.returncode}): "
            f"{told.stderr.decode(errors='replace')[-1000:]}"
        )
    corner_uv: NDArray[np.float32] = np.load(io.BytesIO(told.stdout))
    return corner_uv


def main(texture_px: int) -> None:
    """Read a surface from stdin, write the places of its corners to stdout."""
    import xatlas

    surface = io.BytesIO(sys.stdin.buffer.read())
    atlas = xatlas.Atlas()
    atlas.add_mesh(np.load(surface), np.load(surface))
    packing = xatlas.PackOptions()
    # With a resolution and no texel size xatlas packs one atlas of about that size; its coordinates are
    # fractions of the true size, so it is the baked image that has exactly texture_px.
    packing.resolution, packing.padding, packing.bilinear = texture_px, GUTTER_PX, True
    atlas.generate(xatlas.ChartOptions(), packing)
    assert atlas.atlas_count == 1, f"xatlas made {atlas.atlas_count} atlases of one surface"
    _, indices, uv = atlas.get_mesh(0)
    np.save(sys.stdout.buffer, np.ascontiguousarray(uv[indices], np.float32))


if __name__ == "__main__":
    main(int(sys.argv[1]))
