"""Normal maps and occlusion as they reach the eye: baked, written, read again and drawn.

Properties: the normals a coarse ball is shaded with are nearly those of the bumpy ball its map was baked
from, on mirrored charts, too; a file of any kind is drawn as the asset it was written from; a vertex between
mirrored faces and others is cut in two; a texel under the back of a thin wall finds the front; nothing is
made on another device than that of the input.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.bumps import ball, bumpy_normals, creased
from trellis_core.geometry.ambient import RAYS, bake_ambient
from trellis_core.geometry.beneath import find_beneath
from trellis_core.geometry.camera import orbit_camera
from trellis_core.geometry.maps import bake_detail
from trellis_core.geometry.normal_map import bake_normal_map
from trellis_core.geometry.tangents import corner_tangents, is_mirrored, with_tangents
from trellis_core.geometry.types import Asset, Material, Mesh, QualityReport
from trellis_core.io import GltfSettings, save_asset
from trellis_core.io.scene import file_normals, scene_parts
from trellis_core.kernels.table import Kernels, resolve_kernels
from trellis_core.memory.devices import DeviceInfo
from trellis_core.render.mesh import render_mesh
from trellis_core.render.pbr import render_pbr
from trellis_core.render.surface import PaintedMesh, sample_surface
from trellis_core.runtime import Runtime
from trellis_core.training.ingest.painted import read_painted

RUNTIME = Runtime(kernels=resolve_kernels(DeviceInfo(kind="cpu")))
CAMERA = orbit_camera(0.7, 0.4)
SIZE = 256  # of the texture
FILES = {
    "plain.glb": GltfSettings(),
    "separate.gltf": GltfSettings(texture_format="png"),
    "quantized.glb": GltfSettings(quantize=True),
    "draco.glb": GltfSettings(draco=True),
    "phone.usdz": None,
}


def asset_of(mesh: Mesh, normal: torch.Tensor | None, occlusion: torch.Tensor | None = None) -> Asset:
    color = torch.full((SIZE, SIZE, 4), 190, dtype=torch.uint8)
    color[..., 3] = 255
    rough = torch.tensor([0, 150, 0], dtype=torch.uint8).expand(SIZE, SIZE, 3).contiguous()
    return Asset(mesh, Material(color, rough, normal=normal, occlusion=occlusion), QualityReport({}))


def error_of_normals(asset: Asset | PaintedMesh) -> float:
    """Mean angle in degrees between the normals that pixels are shaded with and the bumpy ball's."""
    painted = PaintedMesh.of(asset) if isinstance(asset, Asset) else asset
    buffers = render_mesh(painted.mesh, CAMERA, 128, RUNTIME)
    surface = sample_surface(painted, buffers, True)
    shaded = buffers.normal[buffers.mask] if surface.normal is None else surface.normal
    wanted = bumpy_normals(buffers.position[buffers.mask])
    return float(torch.rad2deg(torch.acos((shaded * wanted).sum(1).clamp(-1, 1))).mean())


@pytest.fixture(scope="module")
def detailed() -> Asset:
    """About 500 faces, every second chart mirrored, with the maps of a ball of 100,000 faces."""
    coarse, fine = ball(6, mirrored=True), ball(90, bumpy=True)
    maps = bake_detail(coarse, fine, SIZE, RUNTIME, normal_map=True, ambient=True, both_sides=False)
    return asset_of(coarse, *maps)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("seams", [False, True])
def test_a_coarse_ball_is_shaded_with_the_normals_of_the_bumpy_one(mirrored, seams):
    coarse = ball(6, mirrored=mirrored)
    assert bool(is_mirrored(coarse).any()) is mirrored
    coarse = creased(coarse) if seams else coarse
    normal = bake_normal_map(coarse, ball(90, bumpy=True), SIZE, RUNTIME)
    without, shaded = error_of_normals(asset_of(coarse, None)), error_of_normals(asset_of(coarse, normal))
    assert without > 9
    assert shaded < without / 10


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_drawn_as_the_asset_it_was_written_from(name, detailed, tmp_path):
    settings = FILES[name]
    read = read_painted(save_asset(detailed, tmp_path / name, *([settings] if settings else [])))
    assert isinstance(read, PaintedMesh)
    assert read.materials[0].occlusion is not None
    assert error_of_normals(read) < error_of_normals(asset_of(detailed.mesh, None)) / 10
    before, after = (render_pbr(thing, CAMERA, 128, RUNTIME).float() for thing in (detailed, read))
    inside = (before[..., 3] == 255) & (after[..., 3] == 255)
    off = (before - after)[inside].abs()
    assert off.mean() < 0.2
    assert off.max(1).values.quantile(0.99) < 4


def test_the_normals_of_a_file_are_read_and_turned_with_its_parts(tmp_path):
    import trimesh

    mesh = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]], process=False)
    tilted = np.array([[0.6, 0, 0.8]] * 3)
    mesh.vertex_normals = tilted
    turn = trimesh.transformations.rotation_matrix(np.pi / 2, [0, 0, 1])
    scene = trimesh.Scene()
    for name, place in (("as it is", np.eye(4)), ("turned", turn)):
        scene.add_geometry(mesh, node_name=name, geom_name=name, transform=place)
    (tmp_path / "a.glb").write_bytes(scene.export(file_type="glb", include_normals=True))
    found = sorted(file_normals(part)[0].round(3).tolist() for part in scene_parts(tmp_path / "a.glb"))
    assert np.allclose(found, [[0, 0.6, 0.8], [0.6, 0, 0.8]], atol=1e-3)


def test_every_material_of_a_mesh_shows_its_maps(detailed):
    plain = PaintedMesh.of(detailed)
    owner = torch.arange(len(plain.mesh.faces)) % 2
    bare = replace(detailed.material, normal=None, occlusion=None)
    both = PaintedMesh(plain.mesh, (detailed.material, bare), owner)
    buffers = render_mesh(plain.mesh, CAMERA, 96, RUNTIME)
    alone, mixed = (sample_surface(painted, buffers, True) for painted in (plain, both))
    mine = owner[buffers.face[buffers.mask].long()] == 0
    assert torch.equal(mixed.normal[mine], alone.normal[mine])
    assert torch.equal(mixed.occlusion[mine], alone.occlusion[mine])
    assert torch.equal(mixed.normal[~mine], buffers.normal[buffers.mask][~mine])
    assert bool((mixed.occlusion[~mine] == 1).all())


def test_maps_repeat_where_textures_do(detailed):
    mesh = replace(detailed.mesh, uvs=detailed.mesh.uvs + torch.tensor([2.0, -1.0]))
    assert error_of_normals(asset_of(mesh, detailed.material.normal)) == pytest.approx(
        error_of_normals(detailed), abs=0.05
    )


def test_a_vertex_between_mirrored_faces_and_others_is_cut_in_two():
    points = torch.tensor([[-1.0, 0, 0], [0, 0, 0], [1, 0, 0], [-1, 1, 0], [0, 1, 0], [1, 1, 0]])
    faces = torch.tensor([[0, 1, 4], [0, 4, 3], [1, 2, 5], [1, 5, 4]], dtype=torch.int32)
    uvs = torch.stack([points[:, 0].abs(), 1 - points[:, 1]], 1)  # a face: its left half is the right one's
    mesh = Mesh(points, faces, uvs, torch.tensor([[0.0, 0, 1]]).repeat(6, 1))
    cut, tangents = with_tangents(mesh)
    assert len(cut.vertices) == 8
    assert torch.equal(cut.vertices[cut.faces.long()], points[faces.long()])
    assert torch.equal(cut.uvs[cut.faces.long()], uvs[faces.long()])
    corners = tangents[cut.faces.long()]
    expected, sign = corner_tangents(mesh)
    assert torch.equal(corners[..., :3], expected)
    assert torch.equal(corners[..., 3], sign[:, None].expand(-1, 3))
    up = torch.linalg.cross(torch.tensor([0.0, 0, 1]).expand(4, 3), corners[:, 0, :3]) * corners[:, 0, 3:]
    torch.testing.assert_close(up, torch.tensor([[0.0, 1, 0]]).expand(4, 3))


def test_tangents_do_not_depend_on_which_corners_share_a_vertex():
    mesh = ball(4, mirrored=True)
    loose = mesh.faces.long().reshape(-1)
    numbers = torch.arange(len(loose), dtype=torch.int32).view(-1, 3)
    apart = Mesh(mesh.vertices[loose], numbers, mesh.uvs[loose], mesh.normals[loose])
    for one, other in zip(corner_tangents(mesh), corner_tangents(apart), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def plate(z: float | torch.Tensor, up: bool = True) -> Mesh:
    corners = torch.tensor([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]])
    uvs = corners[:, :2] * torch.tensor([1.0, -1.0]) + 0.5
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]] if up else [[0, 2, 1], [0, 3, 2]], dtype=torch.int32)
    normals = torch.tensor([[0.0, 0, 1]]).repeat(4, 1)
    return Mesh(corners + torch.tensor([0.0, 0, 1]) * torch.as_tensor(z).reshape(-1, 1), faces, uvs, normals)


def thin_wall() -> Mesh:
    """Faces 0 and 1 look up, 2 and 3 are their back, a little lower."""
    front, back = plate(0.0), plate(-0.01, up=False)
    return Mesh(torch.cat([front.vertices, back.vertices]), torch.cat([front.faces, back.faces + 4]))


def test_a_texel_under_the_back_of_a_thin_wall_finds_the_front():
    low = plate(torch.tensor([0.02, -0.02, -0.02, 0.02]))  # dips through the wall
    found = find_beneath(low, thin_wall(), 32, RUNTIME)
    assert len(found.face) == 32 * 32
    assert bool(((found.face == 0) | (found.face == 1)).all())
    assert bake_ambient(low, 32, 64, RUNTIME, original=thin_wall()).min() == 255


def test_where_there_is_no_original_the_mesh_itself_casts_the_shadows():
    roof = plate(0.03, up=False)  # near, but looks the other way
    assert bool((find_beneath(plate(0.0), roof, 16, RUNTIME).face < 0).all())
    assert bake_ambient(plate(0.0), 16, 64, RUNTIME, original=roof).min() == 255


def test_occlusion_beside_a_wall_is_not_grainy():
    floor = plate(0.0)
    wall = torch.tensor([[0.5, -20, -1], [0.5, 20, -1], [0.5, 20, 20], [0.5, -20, 20]])
    faces = torch.cat([floor.faces, torch.tensor([[4, 6, 5], [4, 7, 6]], dtype=torch.int32)])
    scene = Mesh(torch.cat([floor.vertices, wall]), faces)
    share = bake_ambient(floor, 512, RAYS, RUNTIME, original=scene).float() / 255
    assert share.std(0).max() < 0.03


def test_maps_are_made_on_the_device_of_the_mesh():
    runtime = Runtime(kernels=Kernels())
    coarse, fine = ball(2, mirrored=True), ball(5, bumpy=True)

    def bake() -> tuple[torch.Tensor | None, ...]:
        maps = bake_detail(coarse, fine, 32, runtime, normal_map=True, ambient=True, both_sides=True)
        return (*maps, with_tangents(coarse)[1])

    wanted = bake()
    with torch.device("meta"):  # whatever forgets to say where, lands there and cannot be used
        found = bake()
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
