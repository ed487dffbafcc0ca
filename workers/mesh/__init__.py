"""From a field to a finished asset: surface, colors, file, check, picture.

mesh = bake(extract(field), field, shading=LinearShading(0.70, x=0.10, y=0.22, z=0.05))
content = write_glb(mesh)
report = mesh_report(mesh, validate_glb(content), agreement(mesh, views, shading))
"""

from __future__ import annotations

from workers.mesh.glb import MeshFormat, write_glb, write_mesh, write_obj, write_ply, write_stl
from workers.mesh.glb_check import GlbReport, InvalidGlb, validate_glb
from workers.mesh.picture import agreement, mesh_report, thumbnail, turntable
from workers.mesh.raster import Raster, rasterize
from workers.mesh.skin import LinearShading, bake
from workers.mesh.surface import EmptyMesh, Mesh, Skin, Topology, extract, topology

__all__ = [
    "EmptyMesh",
    "GlbReport",
    "InvalidGlb",
    "LinearShading",
    "Mesh",
    "MeshFormat",
    "Raster",
    "Skin",
    "Topology",
    "agreement",
    "bake",
    "extract",
    "mesh_report",
    "rasterize",
    "thumbnail",
    "topology",
    "turntable",
    "validate_glb",
    "write_glb",
    "write_mesh",
    "write_obj",
    "write_ply",
    "write_stl",
]
