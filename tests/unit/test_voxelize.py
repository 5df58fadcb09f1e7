"""Material voxels: constants, textures, alpha modes, wrap modes, mip levels.

`released` is what the released encoders were trained on; `surface` is the cleaner average. Parity with the
released numbers is tested by the golden cases.
"""

import pytest
import torch

from trellis2.dual_grid import mesh_to_dual_grid
from trellis2.voxelize import voxelize_material, voxelize_surface
from trellis_core.training.ingest.surfaces import SurfaceMaterial, TexturedMesh
from trellis_core.training.ingest.textures import build_pyramid, fetch

AVERAGES = ["released", "surface"]


def square(material, height=0.03, half=0.4, uv_scale=1.0):
    """Two triangles facing up, with uv from (0, 0) at the lower left to (uv_scale, uv_scale)."""
    corners = torch.tensor(
        [[-half, -half, height], [half, -half, height], [half, half, height], [-half, half, height]]
    )
    uv = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]]) * uv_scale
    index = torch.tensor([[0, 1, 2], [0, 2, 3]])
    return TexturedMesh(
        triangles=corners[index],
        uvs=uv[index],
        material_ids=torch.zeros(2, dtype=torch.int64),
        materials=[material],
    )


def checker(side, cells=2):
    where = torch.arange(side) * cells // side
    return ((where[:, None] + where) % 2 * 255).byte()


@pytest.mark.parametrize("average", AVERAGES)
def test_constant_factors_arrive_unchanged(average):
    material = SurfaceMaterial(base_color_factor=(0.2, 0.5, 0.9), metallic_factor=0.25, roughness_factor=0.75)
    voxels = voxelize_material(square(material), 16, average=average)
    want = torch.tensor([0.2, 0.5, 0.9, 0.25, 0.75, 1.0])
    assert voxels.resolution == 16 and len(voxels.coords)
    assert torch.allclose(voxels.attrs, want.expand_as(voxels.attrs), atol=1e-5)


@pytest.mark.parametrize("average", AVERAGES)
def test_the_voxels_are_those_of_the_dual_grid(average):
    mesh = square(SurfaceMaterial())
    voxels = voxelize_material(mesh, 24, average=average)
    dual = mesh_to_dual_grid(mesh.triangles.reshape(-1, 3), torch.arange(6).reshape(2, 3), 24)
    assert torch.equal(voxels.coords, dual.coords)


@pytest.mark.parametrize("average", AVERAGES)
def test_row_zero_of_an_image_is_at_v_one(average):
    image = torch.zeros(8, 8, 3, dtype=torch.uint8)
    image[:4, :, 0] = 255  # upper half of the picture is red
    image[:, 4:, 1] = 255  # right half is green
    material = SurfaceMaterial(base_color_factor=(1, 1, 1), base_color_texture=image)
    voxels = voxelize_material(square(material), 32, average=average)
    x, y = (((voxels.coords[:, k] + 0.5) / 32 - 0.5) for k in (0, 1))
    clear = (x.abs() > 0.1) & (y.abs() > 0.1) & (x.abs() < 0.3) & (y.abs() < 0.3)
    red, green, blue = voxels.attrs[clear, :3].unbind(1)
    assert torch.allclose(red, (y[clear] > 0).float(), atol=1e-4)
    assert torch.allclose(green, (x[clear] > 0).float(), atol=1e-4)
    assert (blue == 0).all()


@pytest.mark.parametrize(("mode", "want"), [("OPAQUE", 1.0), ("MASK", 0.0), ("BLEND", 0.4)])
def test_alpha_follows_the_alpha_mode(mode, want):
    material = SurfaceMaterial(alpha_mode=mode, alpha_factor=0.4, alpha_cutoff=0.5)
    assert torch.allclose(voxelize_material(square(material), 16).attrs[:, 5], torch.tensor(want))


def test_a_texture_finer_than_the_voxels_is_averaged():
    fine = checker(256, cells=256)
    material = SurfaceMaterial(metallic_factor=1.0, metallic_texture=fine)
    metallic = voxelize_material(square(material), 16).attrs[:, 3]
    assert torch.allclose(metallic, torch.tensor(0.5), atol=0.02)


def test_nearest_filtering_never_averages():
    material = SurfaceMaterial(metallic_factor=1.0, metallic_texture=checker(64, cells=64), filter="NEAREST")
    one_triangle = square(material)
    one_triangle = TexturedMesh(
        triangles=one_triangle.triangles[:1],
        uvs=one_triangle.uvs[:1],
        material_ids=one_triangle.material_ids[:1],
        materials=[material],
    )
    metallic = voxelize_material(one_triangle, 16).attrs[:, 3]
    assert ((metallic < 1e-5) | (metallic > 1 - 1e-5)).all() and metallic.std() > 0


def test_each_triangle_uses_its_own_material():
    mesh = square(SurfaceMaterial())
    mesh = TexturedMesh(
        triangles=mesh.triangles,
        uvs=mesh.uvs,
        material_ids=torch.tensor([0, 1]),
        materials=[SurfaceMaterial(metallic_factor=0.0), SurfaceMaterial(metallic_factor=1.0)],
    )
    voxels = voxelize_material(mesh, 32)
    x, y = voxels.coords[:, 0], voxels.coords[:, 1]
    assert (voxels.attrs[x > y + 2, 3] == 0).all() and (voxels.attrs[y > x + 2, 3] == 1).all()


def test_the_surface_average_of_black_and_white_is_linear():
    mesh = square(SurfaceMaterial())
    both = TexturedMesh(
        triangles=mesh.triangles.repeat(2, 1, 1),
        uvs=mesh.uvs.repeat(2, 1, 1),
        material_ids=torch.tensor([0, 0, 1, 1]),
        materials=[SurfaceMaterial(base_color_factor=(c, c, c)) for c in (0.0, 1.0)],
    )
    released, surface = (voxelize_material(both, 16, average=a).attrs[:, 0] for a in AVERAGES)
    assert torch.allclose(released, torch.tensor(0.5), atol=1e-4)
    assert torch.allclose(surface, torch.tensor(0.7354), atol=1e-3)  # sRGB code of half the light


@pytest.mark.parametrize(
    ("wrap", "columns"),
    [
        ("REPEAT", [2, 3, 0, 1, 2, 3, 0, 1]),
        ("CLAMP_TO_EDGE", [0, 0, 0, 1, 2, 3, 3, 3]),
        ("MIRRORED_REPEAT", [1, 0, 0, 1, 2, 3, 3, 2]),
    ],
)
def test_wrap_modes_continue_a_texture(wrap, columns):
    pyramid = build_pyramid(torch.arange(4, dtype=torch.uint8).expand(4, 4).contiguous())
    texel = torch.stack([torch.arange(-2, 6), torch.zeros(8, dtype=torch.int64)], 1)
    level = torch.zeros(8, dtype=torch.int64)
    assert (fetch(pyramid, texel, level, wrap).flatten() * 255).round().int().tolist() == columns


def test_mip_levels_are_truncated_means():
    pyramid = build_pyramid(torch.tensor([[0, 1], [1, 1]], dtype=torch.uint8))
    assert pyramid.sizes.tolist() == [[2, 2], [1, 1]] and pyramid.texels[-1].item() == 0


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 16), (1, 9)])
def test_textures_of_any_size_are_accepted(shape):
    image = torch.full(shape, 51, dtype=torch.uint8)
    pyramid = build_pyramid(image)
    assert pyramid.sizes[-1].tolist() == [1, 1] and torch.allclose(pyramid.texels, torch.tensor(0.2))
    material = SurfaceMaterial(roughness_factor=1.0, roughness_texture=image)
    assert torch.allclose(voxelize_material(square(material), 16).attrs[:, 4], torch.tensor(0.2), atol=1e-5)


@pytest.mark.parametrize("average", AVERAGES)
def test_triangles_without_area_give_finite_values(average):
    mesh = square(SurfaceMaterial())
    line = torch.tensor([[[-0.4, -0.3, 0.03], [0.1, 0.1, 0.03], [0.35, 0.3, 0.03]]])
    mixed = TexturedMesh(
        triangles=torch.cat([mesh.triangles, line]),
        uvs=torch.cat([mesh.uvs, torch.zeros(1, 3, 2)]),
        material_ids=torch.zeros(3, dtype=torch.int64),
        materials=mesh.materials,
    )
    assert voxelize_material(mixed, 16, average=average).attrs.isfinite().all()


def test_normals_point_where_the_surface_points():
    mesh = square(SurfaceMaterial())
    voxels = voxelize_surface(
        TexturedMesh(
            triangles=mesh.triangles + 0.5,
            uvs=mesh.uvs,
            material_ids=mesh.material_ids,
            materials=mesh.materials,
        ),
        torch.full((3,), 1 / 16),
        (16, 16, 16),
    )
    assert torch.allclose(voxels.normal, torch.tensor([0.0, 0, 1]).expand_as(voxels.normal), atol=1e-5)
