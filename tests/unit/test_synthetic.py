"""The procedural dataset.

Properties: one seed is one object, whatever else is made and however many processes make it; objects fill the
unit cube without leaving it; distances never exceed the true ones outside, and do not depend on the order of
parts; voxels are exactly those that touch a crossed grid edge, flags name the edge at the voxel's far corner,
dual vertices lie in their voxels and near the surface; searching coarse blocks and dropping parts loses
nothing; pictures show the object on black and fill the frame. Not tested: what the categories look like.

Letters: N points or voxels, R grid resolution.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trellis_core.training.synthetic import grids, shapes, voxels
from trellis_core.training.synthetic.captions import make_captions
from trellis_core.training.synthetic.grids import color_grids, occupancy_grids
from trellis_core.training.synthetic.objects import CATEGORIES, HELD_OUT, ROLES, make_object
from trellis_core.training.synthetic.primitives import primitive_bounds
from trellis_core.training.synthetic.shapes import Material, Part, fit_unit_cube, pack_solids, signed_distance
from trellis_core.training.synthetic.shards import DatasetSettings, load_shards, make_shard, write_shards
from trellis_core.training.synthetic.views import (
    View,
    crop_window,
    look_at,
    on_black,
    render_views,
    sample_light,
    sample_view,
)
from trellis_core.training.synthetic.voxels import surface_points, voxelize_batch

GREEN = Material((0.1, 0.8, 0.2), 0.0, 0.5)
RED = Material((0.9, 0.1, 0.1), 1.0, 0.3)
TINY = DatasetSettings(resolution=16, image_size=16, views=1, captions=2, shard=2)

SIZES = {
    shapes.BOX: (0.2, 0.1, 0.3, 0.05),
    shapes.CONE: (0.2, 0.3, 0.1),
    shapes.ELLIPSOID: (0.4, 0.1, 0.2),
    shapes.DOME: (0.4, 0.3, 0.2),
    shapes.TORUS: (0.3, 0.1),
    shapes.CAPSULE: (0.2, 0.1),
    shapes.PRISM: (0.2, 0.3, 0.2),
    shapes.ARC: (0.3, 0.1, 0.1),
}


def distance(parts: list[Part], *points: tuple[float, float, float]) -> Tensor:
    return measure(parts, torch.tensor(points))[0]


def measure(parts: list[Part], points: Tensor) -> tuple[Tensor, Tensor]:
    return signed_distance(pack_solids([parts]), points, torch.zeros(len(points), dtype=torch.int64))


def primitive(kind: int) -> list[Part]:
    return [Part(kind, SIZES[kind], (0, 0, 0), GREEN)]


# ---- distances


@pytest.mark.parametrize(
    ("kind", "size", "point", "expected"),
    [
        (shapes.BOX, (0.2, 0.1, 0.3, 0.0), (0.3, 0.0, 0.0), 0.1),
        (shapes.BOX, (0.2, 0.1, 0.3, 0.0), (0.0, 0.0, 0.0), -0.1),
        (shapes.CONE, (0.2, 0.1, 0.1), (0.3, 0.0, 0.0), 0.2),
        (shapes.CONE, (0.2, 0.1, 0.1), (0.0, 0.0, 0.25), 0.05),
        (shapes.ELLIPSOID, (0.2, 0.2, 0.2), (0.0, 0.5, 0.0), 0.3),
        (shapes.ELLIPSOID, (0.4, 0.4, 0.1), (0.0, 0.0, 0.0), -0.1),
        (shapes.DOME, (0.2, 0.2, 0.2), (0.0, 0.0, -0.1), 0.1),
        (shapes.TORUS, (0.3, 0.1), (0.3, 0.0, 0.2), 0.1),
        (shapes.CAPSULE, (0.2, 0.1), (0.0, 0.0, 0.4), 0.1),
        (shapes.PRISM, (0.2, 0.3, 0.2), (0.0, 0.4, 0.0), 0.1),
        (shapes.PRISM, (0.2, 0.3, 0.2), (0.0, 0.0, -0.3), 0.1),
        (shapes.ARC, (0.3, 0.1, 0.0), (0.3, 0.0, 0.2), 0.1),
        (shapes.ARC, (0.3, 0.1, 0.0), (-0.2, 0.3, 0.0), 0.1),
    ],
)
def test_every_primitive_measures_the_distance_to_its_surface(kind, size, point, expected):
    found = distance([Part(kind, size, (0, 0, 0), GREEN)], point)
    assert found.tolist() == pytest.approx([expected], abs=1e-5)


@pytest.mark.parametrize("kind", sorted(SIZES))
def test_no_point_of_a_primitive_is_nearer_than_its_distance_says(kind):
    points = torch.rand(3000, 3, generator=torch.Generator().manual_seed(kind)) - 0.5
    found, _ = measure(primitive(kind), points)
    outside, inside = points[found > 0], points[found <= 0]
    assert (torch.cdist(outside, inside).amin(dim=1) >= found[found > 0] - 1e-5).all()


@pytest.mark.parametrize("kind", sorted(SIZES))
def test_the_bounds_of_a_primitive_fit_it(kind):
    points = torch.rand(60_000, 3, generator=torch.Generator().manual_seed(kind)) - 0.5
    found, _ = measure(primitive(kind), points)
    low, high = primitive_bounds(kind, SIZES[kind])
    inside = points[found <= 0].numpy()
    assert (inside >= low).all()
    assert (inside <= high).all()
    assert inside.min(axis=0) == pytest.approx(low, abs=0.05)
    assert inside.max(axis=0) == pytest.approx(high, abs=0.05)


def test_turned_and_moved_parts_keep_their_shape():
    lying = Part(shapes.CONE, (0.3, 0.1, 0.1), (0.0, 0.1, 0.0), GREEN, (90, 0, 0))
    assert distance([lying], (0, 0.5, 0), (0, 0.1, 0.3)).tolist() == pytest.approx([0.1, 0.2], abs=1e-5)


def test_turns_go_about_x_then_y_then_z():
    assert shapes.rotation((90, 0, 90)) @ [0, 1, 0] == pytest.approx([0, 0, 1], abs=1e-12)
    assert shapes.rotation((0, 90, 90)) @ [0, 0, 1] == pytest.approx([0, 1, 0], abs=1e-12)


def test_carving_paints_the_wall_it_leaves_and_added_parts_stay():
    parts = [
        Part(shapes.ELLIPSOID, (0.4, 0.4, 0.4), (0, 0, 0), GREEN),
        Part(shapes.ELLIPSOID, (0.2, 0.2, 0.2), (0, 0, 0), RED, operation=shapes.CARVE),
        Part(shapes.ELLIPSOID, (0.1, 0.1, 0.1), (0, 0, 0), GREEN, operation=shapes.ADD),
    ]
    points = torch.tensor([[0, 0, 0.21], [0, 0, 0.39], [0, 0, 0.19], [0, 0, 0]])
    found, part = measure(parts, points)
    assert part.tolist() == [1, 0, 1, 2]
    assert found.tolist() == pytest.approx([-0.01, -0.01, 0.01, -0.1], abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_the_order_of_parts_does_not_matter(seed, random):
    parts = make_object(seed).parts
    shuffled = random.sample(parts, len(parts))
    points = torch.rand(64, 3, generator=torch.Generator().manual_seed(seed)) - 0.5
    assert torch.equal(measure(parts, points)[0], measure(shuffled, points)[0])


def test_each_point_is_measured_against_its_own_solid():
    solids = pack_solids([primitive(shapes.BOX), primitive(shapes.TORUS) + primitive(shapes.CONE)])
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    owner = torch.arange(50) % 2
    found, part = signed_distance(solids, points, owner)
    assert torch.equal(found[::2], measure(primitive(shapes.BOX), points[::2])[0])
    assert torch.equal(
        found[1::2], measure(primitive(shapes.TORUS) + primitive(shapes.CONE), points[1::2])[0]
    )
    assert (part[::2] == 0).all()
    assert set(part[1::2].tolist()) == {1, 2}


def test_added_parts_count_when_an_object_is_fitted_and_carving_does_not():
    flag = Part(shapes.BOX, (0.1, 0.1, 1.0, 0.0), (0, 0, 1), GREEN, operation=shapes.ADD)
    hole = Part(shapes.BOX, (5.0, 5.0, 5.0, 0.0), (0, 0, 0), GREEN, operation=shapes.CARVE)
    fitted = fit_unit_cube([*primitive(shapes.CAPSULE), flag, hole])
    low = fitted[0].position[2] - fitted[0].size[0] - fitted[0].size[1]
    high = fitted[1].position[2] + fitted[1].size[2]
    assert (low, high) == pytest.approx((-0.47, 0.47))


# ---- objects


def test_a_seed_makes_the_same_object_alone_and_among_others():
    again = make_shard([HELD_OUT + 1], TINY)
    among = make_shard(range(HELD_OUT, HELD_OUT + 3), TINY)
    first, count = among["lengths"][:2].tolist()
    for name in ("coords", "position", "flags", "attrs", "roles"):
        assert torch.equal(among[name][first : first + count], again[name]), name
    for name in ("pictures", "captions", "category", "seeds"):
        assert torch.equal(among[name][1], again[name][0]), name


def test_every_object_fills_the_unit_cube_without_leaving_it():
    made = [make_object(seed) for seed in range(80)]
    packed, starts = voxelize_batch(pack_solids([o.parts for o in made]), 32)
    for i, o in enumerate(made):
        points = (packed.coords[starts[i] : starts[i + 1]] + 0.5) / 32 - 0.5
        longest = (points.amax(dim=0) - points.amin(dim=0)).max()
        assert points.abs().max() < 0.5, o.category
        assert 0.8 < longest <= 1.0, o.category


def test_seeds_reach_every_category():
    assert {make_object(seed).category for seed in range(500)} == set(CATEGORIES)


# ---- voxels

BALL = [Part(shapes.ELLIPSOID, (0.33, 0.33, 0.33), (0.01, 0.02, 0.03), GREEN, role="seat")]


@pytest.fixture(scope="module")
def ball() -> shapes.Solids:
    return pack_solids([BALL], ("body", "seat"))


def test_voxels_are_those_that_touch_a_crossed_edge_and_flags_name_the_far_edges(ball):
    resolution = 16
    corners = np.stack(np.meshgrid(*[np.arange(resolution + 1)] * 3, indexing="ij"), -1)
    inside = np.linalg.norm(corners / resolution - 0.5 - [0.01, 0.02, 0.03], axis=-1) < 0.33
    expected: dict[tuple[int, ...], int] = {}
    for axis in range(3):
        step = np.eye(3, dtype=int)[axis]
        for start in product(range(1, resolution), repeat=3):
            if inside[start] != inside[tuple(np.add(start, step))]:
                others = [np.eye(3, dtype=int)[a] for a in range(3) if a != axis]
                for i, j in product((0, 1), repeat=2):
                    voxel = tuple(int(v) for v in np.array(start) - i * others[0] - j * others[1])
                    expected[voxel] = expected.get(voxel, 0) | ((i and j) << axis)
    packed, _ = voxelize_batch(ball, resolution)
    assert dict(zip(map(tuple, packed.coords.tolist()), packed.flags.tolist(), strict=True)) == expected
    assert packed.coords.tolist() == sorted(packed.coords.tolist())


def test_dual_vertices_lie_near_the_surface_with_the_material_and_role_of_the_part(ball):
    packed, _ = voxelize_batch(ball, 32)
    radius = (surface_points(packed, 32) - torch.tensor([0.01, 0.02, 0.03])).norm(dim=1)
    assert (radius - 0.33).abs().max() < 0.3 / 32
    expected = torch.tensor([*GREEN.color, GREEN.metallic, GREEN.roughness, 1.0]).mul(255).round().byte()
    assert (packed.attrs == expected).all()
    assert (packed.roles == 1).all()


def test_a_dual_vertex_is_the_mean_of_the_crossings_of_its_voxel():
    slab = pack_solids([[Part(shapes.BOX, (0.3, 0.3, 0.2, 0.0), (0, 0, 0.03), GREEN)]])
    packed, _ = voxelize_batch(slab, 16)
    top = packed.coords[:, 2] == 11  # the face at z = 0.23 crosses the cells from 11 / 16 to 12 / 16
    middle = top & (packed.coords[:, :2].float() - 7.5).abs().lt(3).all(dim=1)
    expected = torch.tensor([0.5, 0.5, (0.23 + 0.5) * 16 - 11]).mul(255).round().byte()
    assert middle.sum() == 36
    assert (packed.position[middle].int() - expected.int()).abs().max() <= 1


THIN = [
    [Part(shapes.ELLIPSOID, (0.46, 0.46, 0.02), (0, 0, 0.01), GREEN, (20, 10, 0))],
    [Part(shapes.ELLIPSOID, (0.03, 0.46, 0.05), (0.01, 0, 0), GREEN, (0, 30, 20))],
    [
        Part(shapes.DOME, (0.45, 0.3, 0.3), (0, 0, 0), GREEN, (180, 0, 0)),
        Part(shapes.DOME, (0.43, 0.28, 0.27), (0, 0, 0.001), RED, (180, 0, 0), shapes.CARVE),
        Part(shapes.ARC, (0.3, 0.02, 0.1), (0, 0, 0), RED, (90, 0, 0), shapes.ADD),
    ],
]


@pytest.mark.parametrize("coarse", [4, 16])
def test_the_search_loses_no_voxel_and_no_part(coarse, monkeypatch):
    monkeypatch.setattr(voxels, "COARSE", coarse)
    resolution, side = 64, 65
    solids = pack_solids([*THIN, *(make_object(seed).parts for seed in range(7))])
    packed, starts = voxelize_batch(solids, resolution)
    axis = torch.arange(side) / resolution - 0.5
    corners = torch.cartesian_prod(axis, axis, axis)
    for i in range(len(solids)):
        sample = packed.rows(slice(int(starts[i]), int(starts[i + 1])))
        inside = signed_distance(solids, corners, torch.full((side**3,), i))[0].view(side, side, side) < 0
        near = [inside[x : x + 64, y : y + 64, z : z + 64] for x, y, z in product((0, 1), repeat=3)]
        crossed = torch.stack(near).any(dim=0) & ~torch.stack(near).all(dim=0)
        assert torch.equal(sample.coords, crossed.nonzero().byte())
        points = surface_points(sample, resolution)
        _, part = signed_distance(solids, points, torch.full((len(points),), i))
        colors = solids.materials[part, :3].mul(255).round().byte()
        assert (sample.attrs[:, :3] == colors).all(dim=1).float().mean() > 0.998  # positions are quantised


def test_solids_in_a_batch_do_not_change_each_other():
    parts = [make_object(seed).parts for seed in (3, 4)]
    packed, starts = voxelize_batch(pack_solids(parts), 32)
    alone, _ = voxelize_batch(pack_solids(parts[1:]), 32)
    assert len(alone) == starts[2] - starts[1]
    assert torch.equal(packed.coords[starts[1] :], alone.coords)
    assert torch.equal(packed.attrs[starts[1] :], alone.attrs)


def test_the_largest_resolution_fits_into_bytes():
    bead = pack_solids([[Part(shapes.ELLIPSOID, (0.02, 0.02, 0.02), (0.47, 0.47, 0.47), GREEN)]])
    packed, _ = voxelize_batch(bead, 256)
    points = surface_points(packed, 256)
    assert packed.coords.max() > 250
    assert ((points - 0.47).norm(dim=1) - 0.02).abs().max() < 0.3 / 256
    with pytest.raises(ValueError, match="multiple of 4"):
        voxelize_batch(bead, 260)


# ---- pictures


def view_of(solids: shapes.Solids, seed: int = 0) -> View:
    packed, starts = voxelize_batch(solids, 32)
    return sample_view(
        np.random.default_rng(seed), surface_points(packed, 32)[: starts[1]], margin=(1, 1), shift=0
    )


def test_the_picture_shows_the_object_on_black_and_fills_the_frame(ball):
    rgba = render_views(ball, [0], [view_of(ball)], 48)[0]
    rows, columns = (rgba[..., 3] > 127).nonzero().T
    assert min(rows.min(), columns.min()) <= 1
    assert max(rows.max(), columns.max()) >= 46
    black = on_black(rgba)
    assert (black[rgba[..., 3] == 0] == 0).all()
    assert black[24, 24].argmax() == 1


def test_pictures_come_in_the_order_of_their_views():
    red = [replace(part, material=RED) for part in BALL]
    solids = pack_solids([BALL, red])
    pictures = render_views(solids, [1, 0, 1], [view_of(solids, seed) for seed in range(3)], 16)
    assert pictures[:, 8, 8, :3].argmax(dim=1).tolist() == [0, 1, 0]


@pytest.mark.parametrize("seed", [0, 2, 5])
def test_tracing_with_few_parts_sees_what_a_march_through_all_parts_sees(seed):
    size, steps = 24, 300
    solids = pack_solids([make_object(seed).parts])
    view = view_of(solids, seed)
    u, v = torch.meshgrid(*[(2 * torch.arange(size) + 1) / size - 1] * 2, indexing="xy")
    u, v = (torch.from_numpy(view.window[i] + view.window[2] * w.numpy()) for i, w in ((0, u), (1, -v)))
    right, up, forward = torch.from_numpy(view.axes)
    rays = u[..., None] * right + v[..., None] * up + forward
    middle = float(np.linalg.norm(view.origin))
    depth = torch.linspace(middle - 0.87, middle + 0.87, steps)
    points = torch.from_numpy(view.origin) + rays[:, :, None] * depth[:, None]
    found, _ = signed_distance(solids, points.view(-1, 3), torch.zeros(size**2 * steps, dtype=torch.int64))
    marched = (found.view(size, size, steps) < 0).any(dim=2)
    traced = render_views(solids, [0], [view], size, supersample=1)[0, ..., 3] == 255
    assert (marched != traced).float().mean() < 0.02  # thin edges fall between the steps of the march
    assert marched.float().mean() > 0.1


def test_shadows_only_darken():
    parts = [
        Part(shapes.BOX, (0.45, 0.45, 0.03, 0.0), (0, 0, -0.2), GREEN),
        Part(shapes.ELLIPSOID, (0.15, 0.15, 0.15), (0, 0, 0.1), GREEN),
    ]
    solids = pack_solids([parts])
    view = view_of(solids)
    light = replace(view.light, key=np.array([0, 0, 1], np.float32))
    plain, shaded = (
        replace(view, light=replace(light, strength=np.array([0.5, 0.6, 0.1, 0, share, 0.2], np.float32)))
        for share in (0.0, 0.8)
    )
    first, second = render_views(solids, [0, 0], [plain, shaded], 32).int()
    assert (second <= first).all()
    darker = (first[..., 1] - second[..., 1] > 20).float().sum() / (first[..., 3] > 0).sum()
    assert 0.03 < darker < 0.5


@given(st.integers(0, 2**32 - 1), st.floats(-60, 60))
def test_the_key_light_is_above_the_horizon_on_the_camera_side(seed, yaw):
    light = sample_light(np.random.default_rng(seed), yaw)
    origin, _ = look_at(yaw, 0.0, 1.0)
    assert light.key[2] > 0
    assert light.key @ origin >= -1e-6
    assert np.linalg.norm(light.key) == pytest.approx(1, abs=1e-5)


def test_the_camera_at_yaw_zero_sees_the_front():
    origin, axes = look_at(0.0, 0.0, 2.0)
    assert origin == pytest.approx([0, -2, 0], abs=1e-6)
    window = crop_window(origin, axes, torch.tensor([[-0.5, 0, 0], [0.5, 0, 0.2]]))
    assert window == pytest.approx([0, 0.05, 0.25], abs=1e-6)


# ---- shards and grids


def test_shards_on_disk_are_continued_and_read_back(tmp_path):
    write_shards(tmp_path, range(0, 2), TINY)
    made = (tmp_path / "0000000.safetensors").stat().st_mtime_ns
    write_shards(tmp_path, range(0, 3), TINY)
    assert (tmp_path / "0000000.safetensors").stat().st_mtime_ns == made
    dataset = load_shards(sorted(tmp_path.iterdir()))
    whole = make_shard(range(0, 3), TINY)
    assert len(dataset) == 3
    assert torch.equal(dataset.coords, whole["coords"])
    assert torch.equal(dataset.voxels(2).flags, whole["flags"][-int(whole["lengths"][2]) :])
    assert dataset.seeds.tolist() == [0, 1, 2]
    assert dataset.roles.max() < len(ROLES)


def test_shards_of_other_settings_or_fewer_objects_are_made_again(tmp_path):
    write_shards(tmp_path, range(0, 1), TINY)
    write_shards(tmp_path, range(0, 2), TINY)
    assert len(load_shards(sorted(tmp_path.iterdir()))) == 2
    write_shards(tmp_path, range(0, 2), replace(TINY, image_size=24))
    assert load_shards(sorted(tmp_path.iterdir())).pictures.shape == (2, 1, 24, 24, 3)


def test_captions_are_those_of_the_object(tmp_path):
    write_shards(tmp_path, range(5, 6), TINY)
    dataset = load_shards(sorted(tmp_path.iterdir()))
    assert dataset.caption_strings(0) == make_captions(make_object(5), 2, np.random.default_rng((5, 3)))


def test_several_processes_write_the_same_shards(tmp_path):
    seen = []
    write_shards(tmp_path / "two", range(0, 4), TINY, workers=2, on_shard=seen.append)
    write_shards(tmp_path / "one", range(0, 4), TINY)
    assert sorted(path.name for path in seen) == ["0000000.safetensors", "0000002.safetensors"]
    for path in seen:
        assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes()


@pytest.mark.parametrize("chunk", [1, 1 << 24])
def test_coarse_grids_hold_the_voxels_and_their_mean_color(tmp_path, chunk, monkeypatch):
    monkeypatch.setattr(grids, "CHUNK", chunk)
    write_shards(tmp_path, range(0, 3), TINY)
    dataset = load_shards(sorted(tmp_path.iterdir()))
    occupied, colors = occupancy_grids(dataset, 16, 4), color_grids(dataset, 16, 4)
    for i in range(len(dataset)):
        sample = dataset.voxels(i)
        assert {tuple(c) for c in (sample.coords // 4).tolist()} == {
            tuple(c) for c in occupied[i].nonzero().tolist()
        }
        cell = sample.coords[0] // 4
        members = (sample.coords // 4 == cell).all(dim=1)
        x, y, z = cell.tolist()
        mean = sample.attrs[members, :3].float().mean(dim=0)
        assert colors[i, :, x, y, z].tolist() == pytest.approx(mean.tolist(), abs=1)
        assert (colors[i, :, ~occupied[i]] == 0).all()
