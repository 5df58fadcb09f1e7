"""Normal maps: what a detailed surface looks like, baked onto the texture of a simpler mesh.

Each texel stores the normal of the original surface beneath it, in the tangent space of the simple mesh.
Tangent space as glTF expects it, green is up. Letters: S texture side, Q texels, F faces.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trellis_core.geometry.beneath import Beneath, find_beneath
from trellis_core.geometry.infill import paint_texture
from trellis_core.geometry.normals import crease_normals
from trellis_core.geometry.tangents import Frames, blend
from trellis_core.geometry.triangles import unit
from trellis_core.geometry.types import Mesh
from trellis_core.runtime import Runtime

CREASE = 60.0  # degrees: sharper edges of the original are not smoothed over
FLAT = (128, 128, 255)
CHUNK = 1 << 18  # texels at a time


def bake_normal_map(
    mesh: Mesh,  # with uvs and normals
    original: Mesh,  # the detailed surface, wound as `mesh`
    texture_size: int,
    runtime: Runtime,
    *,
    beneath: Beneath | None = None,  # of `find_beneath`, when it is known already
) -> Tensor:  # uint8 [S, S, 3]
    """Tangent-space normal map of `original` for `mesh`: 128 means 0, green points up in the image.

    A texel without a piece of the original nearby that faces its way stays flat: (128, 128, 255). Runs on
    the runtime's device; reports the stage `normal map`.
    """
    runtime.report("normal map", 0, 2)
    mesh, original = mesh.to(runtime.device), original.to(runtime.device)
    if beneath is None:
        beneath = find_beneath(mesh, original, texture_size, runtime)
    runtime.report("normal map", 1, 2)
    spots = beneath.spots
    flat = torch.tensor(FLAT, dtype=torch.uint8, device=mesh.vertices.device)
    if not len(spots.index):
        return flat.expand(texture_size, texture_size, 3).contiguous()
    group, smooth = crease_normals(original, CREASE)
    frames = Frames.of(mesh)
    values = []
    columns = (beneath.face.split(CHUNK), beneath.weight.split(CHUNK))
    for part, found, weight in zip(spots.parts(CHUNK), *columns, strict=True):
        tangent, bitangent, normal = frames.at(mesh, part.face, part.weight)
        detail = unit(blend(smooth[group[found.clamp_min(0)]], weight))
        coded = encode(detail, tangent, bitangent, normal)
        values.append(torch.where((found >= 0)[:, None], coded, flat))
    image = paint_texture(torch.cat(values), spots.index, texture_size)
    runtime.report("normal map", 2, 2)
    return image


def encode(detail: Tensor, tangent: Tensor, bitangent: Tensor, normal: Tensor) -> Tensor:  # uint8 [Q, 3]
    """Coordinates of unit vectors in their frames, [-1, 1] as bytes. Frames are inverted exactly."""
    across = torch.linalg.cross(tangent, bitangent)
    volume = (across * normal).sum(1, keepdim=True)
    inverse = [torch.linalg.cross(bitangent, normal), torch.linalg.cross(normal, tangent), across]
    local = torch.stack([(detail * row).sum(1) for row in inverse], 1)
    local = unit(torch.where(volume.abs() > 1e-6, local / volume, local.new_tensor([0.0, 0.0, 1.0])))
    return (local * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def decode(texel: Tensor, tangent: Tensor, bitangent: Tensor, normal: Tensor) -> Tensor:  # float32 [Q, 3]
    """The normals that a map says, from its values in [0, 1] and the frames: what a renderer does."""
    x, y, z = (texel * 2 - 1).split(1, dim=1)
    return unit(x * tangent + y * bitangent + z * normal)
