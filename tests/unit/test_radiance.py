"""Radiance fields: pictures and files.

Properties: a picture follows the camera; a dense field looks like its voxels; supersampling and the order of
voxels change nothing but noise; all numbers can be learnt; files come back the same. Marching is tested in
tests/kernels/test_march.py, numbers of the released code in tests/parity.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from trellis_core.errors import InputError, OutputError
from trellis_core.geometry.camera import FRONT, orbit_camera
from trellis_core.geometry.fields import SH0, RadianceField
from trellis_core.geometry.types import Mesh, PBRVoxels
from trellis_core.io.fields import read_field, save_field
from trellis_core.kernels.march import shift_constants
from trellis_core.kernels.table import resolve_kernels
from trellis_core.memory.devices import DeviceInfo
from trellis_core.render.bake_views import ViewBakeSettings, bake_views
from trellis_core.render.radiance import camera_rays, march_rays, render_radiance
from trellis_core.render.subject import Look, draw_subject, view_subject
from trellis_core.render.turntable import framed_cameras
from trellis_core.runtime import Runtime

RUNTIME = Runtime(kernels=resolve_kernels(DeviceInfo(kind="cpu")))
CAMERA = orbit_camera(FRONT + 0.5, 0.4)


def shell(resolution: int = 12) -> PBRVoxels:
    """The voxels of a hollow ball, colored by position."""
    axis = torch.arange(resolution)
    coords = torch.cartesian_prod(axis, axis, axis).int()
    center = (coords + 0.5) / resolution - 0.5
    coords = coords[(center.norm(dim=1) - 0.38).abs() < 0.6 / resolution]
    color = (coords + 0.5) / resolution
    return PBRVoxels(
        coords, torch.cat([color, torch.tensor([[0.0, 1, 1]]).expand(len(coords), 3)], 1), resolution
    )


def field_of(voxels: PBRVoxels, density: float = 2000.0, ranks: int = 2, samples: int = 4) -> RadianceField:
    """A uniform density, and each voxel in its color; only the first rank counts."""
    count = len(voxels.coords)
    densities, features = torch.zeros(count, ranks), torch.zeros(count, ranks, 3)
    densities[:, 0] = density
    features[:, 0] = torch.logit(voxels.attrs[:, :3].clamp(0.01, 0.99)) / SH0
    return RadianceField(
        voxels.coords, torch.ones(count, ranks, 3, samples), densities, features, voxels.resolution
    )


def test_a_dense_field_looks_like_its_voxels():
    voxels = shell()
    ours, _ = view_subject(field_of(voxels), CAMERA, 64, RUNTIME)
    theirs, _ = view_subject(voxels, CAMERA, 64, RUNTIME)
    assert ((ours.alpha > 0.5) == (theirs.alpha > 0.5)).float().mean() > 0.99
    both = (ours.alpha > 0.9) & (theirs.alpha > 0.9)
    assert (ours.color - theirs.color).abs().mean(2)[both].median() < 0.02
    assert (ours.depth - theirs.depth).abs()[both].median() < 0.02


def test_the_order_of_voxels_does_not_matter():
    field = field_of(shell(), density=20.0)
    order = torch.randperm(len(field), generator=torch.Generator().manual_seed(0))
    shuffled = RadianceField(
        field.coords[order],
        field.vectors[order],
        field.densities[order],
        field.features[order],
        field.resolution,
    )
    first, second = (render_radiance(f, CAMERA, 32, RUNTIME, supersampling=1) for f in (field, shuffled))
    assert torch.equal(first.color, second.color)


def test_supersampling_smooths_the_edges():
    field = field_of(shell())
    coarse, fine = (render_radiance(field, CAMERA, 32, RUNTIME, supersampling=s).alpha for s in (1, 4))
    between = [((alpha > 0.05) & (alpha < 0.95)).float().mean() for alpha in (coarse, fine)]
    assert between[1] > between[0]
    assert fine.mean() == pytest.approx(coarse.mean().item(), rel=0.05)


def test_shifted_samples_are_seeded_and_close_to_the_middle_ones():
    field = field_of(shell(), density=20.0)

    def draw(seed):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return render_radiance(field, CAMERA, 32, RUNTIME, supersampling=1, generator=generator).color

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert (draw(1) - draw(None)).abs().mean() < 0.02


def test_a_density_shift_scales_and_lowers_the_density():
    assert shift_constants(0.0) == (0.0, 1.0)
    assert shift_constants(0.5) == (5.0, 2.0)
    assert shift_constants(0.99) == (pytest.approx(9.9), 25.0)
    field = field_of(shell(), density=0.0)
    rays = camera_rays(CAMERA, 24, torch.device("cpu"))
    light = [march_rays(field, CAMERA, rays, RUNTIME, density_shift=s)[1].mean() for s in (0.0, 0.5)]
    assert light[1] > light[0]


def test_all_numbers_can_be_learnt_from_a_picture():
    field = field_of(shell(6), density=3.0)
    target = torch.rand(24, 24, 3, generator=torch.Generator().manual_seed(0))
    parts = [x.clone().requires_grad_() for x in (field.vectors, field.densities, field.features)]
    optimizer = torch.optim.Adam(parts, lr=0.05)
    losses = []
    for _ in range(12):
        learnt = replace(field, vectors=parts[0], densities=parts[1], features=parts[2])
        image = render_radiance(learnt, CAMERA, 24, RUNTIME, supersampling=2)
        loss = (image.color - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(part.grad is not None and bool(torch.isfinite(part.grad).all()) for part in parts)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("channel", ["color", "depth", "normal"])
def test_fields_and_voxels_are_drawn_in_every_channel(channel):
    voxels = shell(8)
    for subject in (field_of(voxels), voxels):
        camera = framed_cameras(subject, [(FRONT, 0.3)])[0]
        picture = draw_subject(subject, camera, 32, RUNTIME, Look(mode=channel))
        assert picture[16, 16, 3] == 255
        assert (torch.cat([picture[0], picture[:, 0]]) == 0).all()


def test_normals_of_voxels_are_those_of_the_sides_that_are_seen():
    voxels = PBRVoxels(torch.tensor([[2, 2, 2]], dtype=torch.int32), torch.ones(1, 6), 5)
    _, normals = view_subject(voxels, orbit_camera(FRONT, 0.0), 33, RUNTIME)
    assert torch.equal(normals[16, 16], torch.tensor([0.0, -1.0, 0.0]))  # the front faces -y
    _, normals = view_subject(voxels, orbit_camera(FRONT, 1.5), 33, RUNTIME)
    assert torch.equal(normals[16, 16], torch.tensor([0.0, 0.0, 1.0]))


def test_a_mesh_is_colored_like_its_field():
    square = torch.tensor([[-0.3, -0.3, 0], [0.3, -0.3, 0], [0.3, 0.3, 0], [-0.3, 0.3, 0]])
    uvs = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    mesh = Mesh(square, torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32), uvs)
    axis = torch.arange(10)
    coords = torch.cartesian_prod(axis, axis, torch.tensor([4])).int()  # up to z = 0
    color = torch.where(coords[:, :1] < 5, torch.tensor([0.8, 0.2, 0.2]), torch.tensor([0.2, 0.2, 0.8]))
    voxels = PBRVoxels(coords, torch.cat([color, torch.tensor([[0.0, 1, 1]]).expand(100, 3)], 1), 10)
    baked = bake_views(mesh, field_of(voxels), 32, RUNTIME, settings=ViewBakeSettings(views=8, size=96))
    for half, wanted in ((baked.image[:, 2:14], (204, 51, 51)), (baked.image[:, 18:30], (51, 51, 204))):
        assert (half[..., :3].float() - torch.tensor(wanted)).abs().max() < 8


# ---------------------------------------------------------------- files


def test_a_field_comes_back_from_its_file(tmp_path):
    field = field_of(shell(6))
    found = read_field(save_field(field, tmp_path / "field.safetensors"))
    assert isinstance(found, RadianceField) and found.resolution == 6
    for name in ("coords", "vectors", "densities", "features"):
        assert torch.equal(getattr(found, name), getattr(field, name))


def test_damaged_or_foreign_files_are_input_errors(tmp_path):
    from safetensors.torch import save_file

    path = save_field(field_of(shell(6)), tmp_path / "field.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot read"):
        read_field(path)
    save_file({"coords": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="not a radiance field"):
        read_field(path)
    with pytest.raises(InputError):
        read_field(tmp_path / "missing.safetensors")


def test_tensors_that_do_not_fit_together_are_input_errors(tmp_path):
    field = field_of(shell(6))
    path = save_field(replace(field, densities=field.densities[:-1]), tmp_path / "field.safetensors")
    with pytest.raises(InputError, match="do not fit together"):
        read_field(path)


def test_a_field_is_not_written_as_gaussians(tmp_path):
    with pytest.raises(OutputError, match="a radiance field"):
        save_field(field_of(shell(6)), tmp_path / "field.ply")
