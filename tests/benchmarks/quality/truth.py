"""What results are compared against: held-out objects as voxels, surface, structure cells and picture.

Letters: V voxels, N surface points, R voxel grid, r structure grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.benchmarks.quality.generate import Voxels, batches
from tests.benchmarks.quality.measures import Surface, vertex_surface
from tests.benchmarks.quality.pictures import cameras_around, draw
from trellis2.dual_grid import extract_mesh
from trellis_core.geometry.types import Mesh, PBRVoxels, VoxelMesh
from trellis_core.runtime import Runtime
from trellis_core.training.synthetic.objects import ROLES, SyntheticObject
from trellis_core.training.synthetic.shapes import Solids, pack_solids, signed_distance
from trellis_core.training.synthetic.views import View, render_views, sample_view
from trellis_core.training.synthetic.voxels import VoxelSample, surface_points, voxelize_batch

PICTURE = 256  # pixels; larger than any embedded model looks at
ROOM = (1.05, 1.35)  # of a user's picture around the object, as a factor of the object's square
TOGETHER = 32  # objects


@dataclass(frozen=True, slots=True)
class Truth:
    """One object and everything a result may be compared with."""

    object: SyntheticObject
    voxels: Voxels
    roles: Tensor  # int64 [V]
    cells: Tensor  # int [N, 3]  occupied structure cells
    shape: VoxelMesh
    surface: Surface
    picture: Image.Image  # RGBA as a user might have it
    view: View

    @property
    def seed(self) -> int:
        return self.object.seed

    @property
    def category(self) -> str:
        return self.object.category


def make_truths(
    objects: Sequence[SyntheticObject],
    resolution: int,
    structure: int,
    device: torch.device,
    side: int = PICTURE,
) -> list[Truth]:
    """Everything about these objects, on the device. Pictures come from cameras and lights of the training
    distribution, drawn with other random numbers and with a user's room around the object."""
    truths: list[Truth] = []
    for part in batches(len(objects), TOGETHER):
        truths += _make_truths(objects[part], resolution, structure, device, side)
    return truths


def _make_truths(
    objects: Sequence[SyntheticObject],
    resolution: int,
    structure: int,
    device: torch.device,
    side: int = PICTURE,
) -> list[Truth]:
    solids = pack_solids([o.parts for o in objects], ROLES).to(device)
    packed, starts = voxelize_batch(solids, resolution)
    samples = [
        packed.rows(slice(a, b)) for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    ]
    points = [surface_points(s, resolution) for s in samples]
    views = [
        sample_view(np.random.default_rng((o.seed, 3)), p, ROOM) for o, p in zip(objects, points, strict=True)
    ]
    pictures = render_views(solids, range(len(objects)), views, side).cpu().numpy()
    truths = []
    for number, (thing, sample) in enumerate(zip(objects, samples, strict=True)):
        voxels = _floats(sample)
        shape = _shape(voxels, resolution, solids, number)
        surface = vertex_surface(shape.mesh.vertices, shape.mesh.faces, shape.voxels.attrs[:, :3])
        cells = torch.unique(voxels.coords * structure // resolution, dim=0).int()
        truths.append(
            Truth(
                thing,
                voxels,
                sample.roles.long(),
                cells,
                shape,
                surface,
                Image.fromarray(pictures[number], "RGBA"),
                views[number],
            )
        )
    return truths


def _floats(sample: VoxelSample) -> Voxels:
    bits = sample.flags[:, None] >> torch.arange(3, dtype=torch.uint8, device=sample.flags.device)
    return Voxels(
        sample.coords.int(), sample.position.float() / 255, (bits & 1).bool(), sample.attrs.float() / 255
    )


def _shape(voxels: Voxels, resolution: int, solids: Solids, number: int) -> VoxelMesh:
    """The dual-grid mesh, wound outwards, with the solid's own normals."""
    mesh = extract_mesh(voxels.coords, voxels.position, voxels.flags, None, resolution)
    normals = outward_normals(solids, number, mesh.vertices)
    corners = mesh.faces.long()
    a, b, c = mesh.vertices[corners].unbind(1)
    inward = (torch.linalg.cross(b - a, c - a) * normals[corners].sum(dim=1)).sum(dim=1) < 0
    faces = torch.where(inward[:, None], mesh.faces.flip(1), mesh.faces)
    material = PBRVoxels(voxels.coords, voxels.attrs, resolution)
    return VoxelMesh(Mesh(mesh.vertices, faces, normals=normals), material)


def outward_normals(solids: Solids, number: int, points: Tensor, step: float = 2e-3) -> Tensor:  # [N, 3]
    """The direction in which the signed distance grows, by central differences."""
    owner = torch.full((len(points),), number, device=points.device)
    slopes = []
    for axis in range(3):
        offset = torch.zeros(3, device=points.device)
        offset[axis] = step
        slopes.append(
            signed_distance(solids, points + offset, owner)[0]
            - signed_distance(solids, points - offset, owner)[0]
        )
    return torch.nn.functional.normalize(torch.stack(slopes, dim=1), dim=1)


def from_another_renderer(truths: Sequence[Truth], runtime: Runtime) -> list[Image.Image]:
    """RGBA pictures of the same objects by the project's mesh renderer under studio light, other cameras."""
    pictures = []
    for truth in truths:
        rng = np.random.default_rng((truth.seed, 4))
        camera = cameras_around(truth.shape, rng.uniform(-60, 60), pitch=rng.uniform(0, 35))[0]
        pictures.append(Image.fromarray(draw(truth.shape, camera, PICTURE, runtime), "RGBA"))
    return pictures


def on_white(picture: Image.Image) -> Image.Image:
    """The picture as a shop shows it."""
    white = Image.new("RGB", picture.size, "white")
    white.paste(picture, mask=picture.getchannel("A"))
    return white
