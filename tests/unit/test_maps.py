"""Normal maps and ambient occlusion, baked onto textures.

Properties: tangent frames are those of glTF (u to the right, green up); a surface baked onto itself is flat;
a coarse ball with the map of a bumpy one looks like the bumpy one; the sky is whole over a convex shape, half
beside a wall and none inside; the plain torch rays agree with Warp's; the same input gives the same map.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shapes import dual_grid, hollow, sphere
from trellis_core.errors import Cancelled
from trellis_core.geometry.ambient import bake_ambient, cosine_directions
from trellis_core.geometry.bake import cover_texels
from trellis_core.geometry.camera import orbit_camera
from trellis_core.geometry.cleanup import weld_vertices
from trellis_core.geometry.normal_map import bake_normal_map, decode, encode
from trellis_core.geometry.normals import vertex_normals
from trellis_core.geometry.orientation import flood_surroundings, orient_outward
from trellis_core.geometry.simplify import simplify
from trellis_core.geometry.tangents import corner_tangents
from trellis_core.geometry.types import Asset, Material, Mesh, QualityReport
from trellis_core.geometry.unwrap import unwrap
from trellis_core.kernels.table import Kernels, resolve_kernels
from trellis_core.memory.devices import DeviceInfo
from trellis_core.render.pbr import render_pbr
from trellis_core.runtime import Runtime

RUNTIME = Runtime(kernels=resolve_kernels(DeviceInfo(kind="cpu")))
SIZE = 128


def bumpy(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points, axis=-1) - 0.4 - 0.012 * np.sin(30 * points).prod(-1)


def surface(distance, resolution: int) -> Mesh:
    shape = dual_grid(distance, resolution)
    around = flood_surroundings(shape.mesh, shape.voxels.coords, resolution)
    return orient_outward(weld_vertices(shape.mesh, 1e-6), around)[0]


def with_texture(mesh: Mesh) -> Mesh:
    flat = unwrap(mesh, SIZE, layer_gap=1e-3, kernels=RUNTIME.kernels)
    place = torch.cdist(flat.vertices, mesh.vertices).argmin(1)
    return replace(flat, normals=vertex_normals(mesh.vertices, mesh.faces)[place])


def square(z: float = 0.0, half: float = 0.5) -> Mesh:
    """A square that looks up, its texture seen upright from above."""
    corners = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * half
    uvs = torch.stack([corners[:, 0], -corners[:, 1]], 1) / (2 * half) + 0.5
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32)
    up = torch.tensor([[0.0, 0, 1]]).repeat(4, 1)
    return Mesh(corners + torch.tensor([0.0, 0, z]), faces, uvs, up)


def test_u_grows_along_the_tangent_and_green_points_up_in_the_image():
    tangent, sign = corner_tangents(square())
    torch.testing.assert_close(tangent, torch.tensor([1.0, 0, 0]).expand(2, 3, 3))
    assert sign.tolist() == [1.0, 1.0]
    mirrored = replace(square(), uvs=square().uvs * torch.tensor([-1.0, 1]) + torch.tensor([1.0, 0]))
    tangent, sign = corner_tangents(mirrored)
    torch.testing.assert_close(tangent, torch.tensor([-1.0, 0, 0]).expand(2, 3, 3))
    assert sign.tolist() == [-1.0, -1.0]


def test_a_slope_to_the_right_is_red_and_one_up_is_green():
    for axis, channel in ((0, 0), (1, 1)):
        tilted = square()
        lower = tilted.vertices.clone()
        lower[:, 2] = -0.2 * lower[:, axis]  # its normal leans towards the positive axis
        image = bake_normal_map(square(), Mesh(lower, tilted.faces), 16, RUNTIME)
        x = (image[8, 8].float() / 127.5 - 1).tolist()
        assert x[channel] == pytest.approx(0.2 / math.hypot(1, 0.2), abs=0.02)
        assert x[1 - channel] == pytest.approx(0, abs=0.02)


def test_a_texture_coordinate_without_extent_still_has_a_frame():
    mesh = replace(square(), uvs=torch.zeros(4, 2))
    tangent, _ = corner_tangents(mesh)
    torch.testing.assert_close(tangent.norm(dim=2), torch.ones(2, 3))
    assert tangent[..., 2].abs().max() < 1e-6


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_reading_a_map_gives_the_normals_that_were_written(seed):
    generator = torch.Generator().manual_seed(seed)

    def direction():
        return torch.nn.functional.normalize(torch.randn(50, 3, generator=generator), dim=1)

    normal, tangent = direction(), direction()
    bitangent = torch.linalg.cross(normal, tangent)
    wide = bitangent.norm(dim=1) > 0.3  # interpolated tangents lean, but not that much
    detail = torch.nn.functional.normalize(normal + 0.7 * direction(), dim=1)
    frame = [x[wide] for x in (tangent, bitangent, normal)]
    read = decode(encode(detail[wide], *frame).float() / 255, *frame)
    assert torch.acos((read * detail[wide]).sum(1).clamp(-1, 1)).max() < math.radians(3)


def test_a_surface_baked_onto_itself_is_flat():
    mesh = with_texture(simplify(surface(sphere(0.4), 24), 600))
    image = bake_normal_map(mesh, weld_vertices(Mesh(mesh.vertices, mesh.faces), 1e-6), SIZE, RUNTIME)
    off = (image.long() - torch.tensor([128, 128, 255])).abs()
    assert off.float().mean() < 1
    assert float((off.amax(2) > 6).float().mean()) < 0.01


def test_far_from_the_original_the_map_is_flat():
    far = square(z=3.0)
    image = bake_normal_map(square(), Mesh(far.vertices, far.faces), 16, RUNTIME)
    assert (image == torch.tensor([128, 128, 255], dtype=torch.uint8)).all()


def shaded(mesh: Mesh, camera, normal=None) -> torch.Tensor:
    gray = torch.full((4, 4, 4), 180, dtype=torch.uint8)
    gray[..., 3] = 255
    rough = torch.tensor([0, 160, 0], dtype=torch.uint8).expand(4, 4, 3).contiguous()
    material = Material(gray, rough, normal=normal)
    mesh = mesh if mesh.uvs is not None else replace(mesh, uvs=torch.zeros(len(mesh.vertices), 2))
    asset = Asset(mesh, material, QualityReport({}))
    return render_pbr(asset, camera, 160, RUNTIME).float()


def test_a_coarse_ball_with_the_map_of_a_bumpy_one_looks_bumpy():
    fine = surface(bumpy, 96)
    fine = replace(fine, normals=vertex_normals(fine.vertices, fine.faces))
    coarse = with_texture(simplify(surface(sphere(0.4), 24), 500))
    image = bake_normal_map(coarse, fine, 512, RUNTIME)
    for eye in ((0.4, 0.3), (3.5, -0.5)):
        camera = orbit_camera(*eye)
        wanted, plain, mapped = (
            shaded(*args) for args in ((fine, camera), (coarse, camera), (coarse, camera, image))
        )
        both = ((wanted[..., 3] == 255) & (plain[..., 3] == 255))[..., None]

        def psnr(picture, wanted=wanted, both=both):
            off = ((picture - wanted)[..., :3] * both).square().sum() / (3 * both.sum())
            return 10 * math.log10(255**2 / float(off))

        assert psnr(mapped) > psnr(plain) + 3


def test_directions_are_denser_towards_the_normal():
    directions = cosine_directions(256)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(256))
    assert directions[:, 2].min() > 0
    assert float(directions[:, 2].mean()) == pytest.approx(2 / 3, abs=0.01)
    assert directions[:, :2].mean(0).abs().max() < 0.02


def covered(mesh: Mesh, image: torch.Tensor) -> torch.Tensor:
    return image.reshape(-1)[cover_texels(mesh, len(image), RUNTIME.kernels).index]


def test_a_ball_sees_all_of_the_sky():
    mesh = with_texture(simplify(surface(sphere(0.4), 24), 600))
    assert covered(mesh, bake_ambient(mesh, SIZE, 64, RUNTIME)).min() > 250


def test_the_inside_of_a_hollow_ball_sees_nothing():
    mesh = with_texture(surface(hollow(sphere(0.4), 0.15), 24))
    image = bake_ambient(mesh, SIZE, 64, RUNTIME)
    texels = cover_texels(mesh, SIZE, RUNTIME.kernels)
    inside = texels.position.norm(dim=1) < 0.33
    assert 0.2 < float(inside.float().mean()) < 0.5
    values = image.reshape(-1)[texels.index]
    assert values[inside].max() < 10
    assert values[~inside].min() > 240


def test_a_floor_beside_a_wall_sees_half_of_the_sky_and_far_from_it_all():
    floor = square(half=1.0)
    wall = torch.tensor([[1.0, -40, -1], [1, 40, -1], [1, 40, 40], [1, -40, 40]])
    scene = Mesh(
        torch.cat([floor.vertices, wall]),
        torch.tensor([[0, 1, 2], [0, 2, 3], [4, 6, 5], [4, 7, 6]], dtype=torch.int32),
    )
    image = bake_ambient(floor, 32, 64, RUNTIME, original=scene)
    share = image.float().mean(0) / 255
    x = (torch.arange(32) + 0.5) / 16 - 1
    wanted = (1 + torch.sin(torch.atan2(1 - x, torch.full_like(x, 40.0)))) / 2  # a wall of finite height
    torch.testing.assert_close(share, wanted, atol=0.04, rtol=0)


def test_a_leaf_drawn_from_both_sides_takes_the_brighter_one():
    leaf, lid = square(half=0.5), square(z=0.05, half=5.0)
    scene = Mesh(torch.cat([leaf.vertices, lid.vertices]), torch.cat([leaf.faces, lid.faces + 4]))
    assert bake_ambient(leaf, 16, 64, RUNTIME, original=scene).max() < 30
    assert bake_ambient(leaf, 16, 64, RUNTIME, original=scene, both_sides=True).min() > 250


@pytest.mark.parametrize("rays", [1, 3, 64])
def test_the_same_input_gives_the_same_occlusion(rays):
    mesh = with_texture(simplify(surface(bumpy, 24), 300))
    one, other = (bake_ambient(mesh, 64, rays, RUNTIME) for _ in range(2))
    assert torch.equal(one, other)


def test_plain_torch_gives_the_maps_that_warp_gives():
    mesh, fine = with_texture(simplify(surface(bumpy, 20), 200)), surface(bumpy, 20)
    plain = Runtime(kernels=Kernels())
    for bake in (
        lambda runtime: bake_ambient(mesh, 32, 16, runtime, original=fine),
        lambda runtime: bake_normal_map(mesh, fine, 32, runtime),
    ):
        off = (bake(plain).long() - bake(RUNTIME).long()).abs().float()
        assert off.mean() < 2


def test_no_rays_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        bake_ambient(square(), 16, 0, RUNTIME)


def test_baking_maps_can_be_cancelled():
    def stop(step):
        raise Cancelled("stopped")

    runtime = RUNTIME.reporting(stop)
    with pytest.raises(Cancelled):
        bake_ambient(square(), 16, 4, runtime)
    with pytest.raises(Cancelled):
        bake_normal_map(square(), square(), 16, runtime)


def test_occlusion_darkens_a_picture():
    camera = orbit_camera(0.4, 0.3)
    mesh = with_texture(simplify(surface(sphere(0.4), 24), 300))
    gray = torch.full((4, 4, 4), 180, dtype=torch.uint8)
    material = Material(gray, torch.full((4, 4, 3), 128, dtype=torch.uint8))
    half = replace(material, occlusion=torch.full((4, 4), 128, dtype=torch.uint8))
    bright, dark = (
        render_pbr(Asset(mesh, m, QualityReport({})), camera, 64, RUNTIME)[32, 32, 0]
        for m in (material, half)
    )
    assert dark < bright - 20
