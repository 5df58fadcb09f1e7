"""Points on exported assets: colors from the texture. Needs the whole package, Warp and xatlas among it."""

from __future__ import annotations

from tests.benchmarks.quality.measures import POINTS, Surface, spread
from trellis_core.geometry.types import Asset
from trellis_core.render.surface import sample_texture


def sample_asset(asset: Asset, count: int = POINTS) -> Surface:
    """Points spread over the asset, with the base color (sRGB-coded) of its texture there."""
    mesh = asset.mesh
    if mesh.uvs is None:
        raise ValueError("the asset has no texture coordinates")
    spots = spread(mesh.vertices, mesh.faces, count)
    uvs = spots.mix(mesh.uvs, mesh.faces)
    # no channel is decoded: colors stay sRGB-coded
    colors = sample_texture(asset.material.base_color.to(uvs.device), uvs, color_channels=0)[:, :3]
    return Surface(spots.mix(mesh.vertices.float(), mesh.faces), colors)
