"""A mesh's own texture coordinates, made ready for painting.

Properties: coordinates come out as they went in, but for whole tiles; normals are smooth across texture seams
and hard at creases; what cannot be painted is refused with the way out; what is shared is said.
Not tested: painting itself (test_pipeline.py), reading coordinates from files (test_glb.py).
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trellis2.texturing import own_uvs
from trellis_core.errors import InputError
from trellis_core.geometry.asset import ExportSettings
from trellis_core.geometry.types import Mesh
from trellis_core.kernels.table import Kernels

SMALL = ExportSettings(texture_size=64)
GRID = 3  # charts along a side of the texture


def box(spread: bool = True) -> Mesh:
    """A box of six quads with a vertex for every corner of each; each quad has a third of the texture's side,
    or all share one place."""
    quads = []
    for axis in range(3):
        for side in (0.0, 1.0):
            ring = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
            for u, v in ring if side else ring[::-1]:
                point = [0.0, 0.0, 0.0]
                point[axis], point[(axis + 1) % 3], point[(axis + 2) % 3] = side, u, v
                quads.append(point)
    corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]) * 0.9 + 0.05
    uvs = []
    for number in range(6):
        row, column = divmod(number, GRID) if spread else (0, 0)
        uvs.append((corner + torch.tensor([column, row])) / GRID)
    start = 4 * torch.arange(6)[:, None]
    faces = torch.cat([start + torch.tensor([0, 1, 2]), start + torch.tensor([0, 2, 3])])
    return Mesh(torch.tensor(quads) - 0.5, faces.to(torch.int32), torch.cat(uvs))


def corners(mesh: Mesh) -> tuple[torch.Tensor, torch.Tensor]:
    """Place and texture coordinates of every corner of every face."""
    return mesh.vertices[mesh.faces.long()], mesh.uvs[mesh.faces.long()]


def test_coordinates_come_out_as_they_went_in():
    mesh = box()
    ready, note = own_uvs(mesh, SMALL, Kernels())
    assert all(torch.equal(a, b) for a, b in zip(corners(mesh), corners(ready), strict=True))
    assert note == ""


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=6, max_size=6))
def test_charts_in_other_tiles_are_moved_by_whole_tiles(tiles):
    mesh = box()
    shift = torch.tensor(tiles, dtype=torch.float32).repeat_interleave(4, dim=0)
    ready, _ = own_uvs(Mesh(mesh.vertices, mesh.faces, mesh.uvs + shift), SMALL, Kernels())
    assert torch.allclose(corners(ready)[1], corners(mesh)[1], atol=1e-5)


def test_normals_are_hard_at_the_edges_of_a_box():
    ready, _ = own_uvs(box(), SMALL, Kernels())
    a, b, c = corners(ready)[0].unbind(1)
    flat = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=1)
    assert torch.allclose(ready.normals[ready.faces.long()], flat[:, None].expand(-1, 3, -1), atol=1e-5)


def test_normals_are_smooth_across_a_texture_seam():
    """A strip of a cylinder, cut in the texture along every edge."""
    angle = torch.linspace(0, 1.0, 9)
    ring = torch.stack([angle.cos(), angle.sin()], 1) * 0.5
    vertices, uvs, faces = [], [], []
    for i in range(8):
        for j, (k, z) in enumerate(((i, 0.0), (i + 1, 0.0), (i + 1, 0.5), (i, 0.5))):
            vertices.append([*ring[k].tolist(), z])
            uvs.append([(i + 0.1 + 0.8 * (j in (1, 2))) / 8, 0.1 + 0.8 * (z > 0)])
        faces += [[4 * i, 4 * i + 1, 4 * i + 2], [4 * i, 4 * i + 2, 4 * i + 3]]
    mesh = Mesh(torch.tensor(vertices), torch.tensor(faces, dtype=torch.int32), torch.tensor(uvs))
    ready, _ = own_uvs(mesh, SMALL, Kernels())
    inner = (ready.vertices[:, :2] - ring[4]).norm(dim=1) < 1e-6
    assert int(inner.sum()) == 4
    expected = torch.tensor([*(ring[4] * 2).tolist(), 0.0])
    assert torch.allclose(ready.normals[inner], expected.expand(4, 3), atol=1e-3)


def test_faces_without_area_are_left_out():
    mesh = box()
    more = torch.cat([mesh.faces, torch.tensor([[0, 1, 1]], dtype=torch.int32)])
    ready, _ = own_uvs(Mesh(mesh.vertices, more, mesh.uvs), SMALL, Kernels())
    assert len(ready.faces) == 12


def bare(mesh: Mesh) -> Mesh:
    return Mesh(mesh.vertices, mesh.faces)


def repeating(mesh: Mesh) -> Mesh:
    return Mesh(mesh.vertices, mesh.faces, mesh.uvs * 5)


def collapsed(mesh: Mesh) -> Mesh:
    """As in models that are colored from a palette: every face is a point of the texture."""
    return Mesh(mesh.vertices, mesh.faces, torch.full_like(mesh.uvs, 0.3))


def not_numbers(mesh: Mesh) -> Mesh:
    uvs = mesh.uvs.clone()
    uvs[5:9] = torch.nan
    return Mesh(mesh.vertices, mesh.faces, uvs)


def stacked(mesh: Mesh) -> Mesh:
    return box(spread=False)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (bare, "no texture coordinates"),
        (repeating, "100% of the mesh has no place"),
        (collapsed, "100% of the mesh has no place"),
        (not_numbers, "33% of the mesh has no place"),
        (stacked, "used by several parts"),
    ],
)
def test_coordinates_that_cannot_be_painted_are_refused(spoil, said):
    with pytest.raises(InputError, match=said) as refused:
        own_uvs(spoil(box()), SMALL, Kernels())
    assert "leave `--keep-uv` out" in refused.value.hint


def test_a_shared_part_of_the_texture_is_worth_a_note():
    mesh = box()
    uvs = mesh.uvs.clone()
    uvs[4:8] = uvs[0:4]
    ready, note = own_uvs(Mesh(mesh.vertices, mesh.faces, uvs), SMALL, Kernels())
    assert len(ready.faces) == 12
    assert note.endswith("get the same colors")
    assert 15 < float(note.split("%")[0]) < 25
