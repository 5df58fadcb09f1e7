"""The procedural dataset.

Properties: one seed is one object, whatever else is made; objects fill the unit cube without leaving it;
voxels are exactly those that touch a crossed grid edge, flags name the edge at the voxel's far corner, dual
vertices lie in their voxels and near the surface; pictures show the object on black and fill the frame. Not
tested: what the categories look like.

Letters: N voxels, R grid resolution.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from trellis_core.training.synthetic import shapes
from trellis_core.training.synthetic.grids import color_grids, occupancy_grids
from trellis_core.training.synthetic.objects import CATEGORIES, HELD_OUT, make_object
from trellis_core.training.synthetic.shapes import Material, Part, fit_unit_cube, pack_solids, signed_distance
from trellis_core.training.synthetic.shards import DatasetSettings, load_shards, make_shard, write_shards
from trellis_core.training.synthetic.views import crop_window, look_at, on_black, render_views, sample_view
from trellis_core.training.synthetic.voxels import voxelize

GREEN = Material((0.1, 0.8, 0.2), 0.0, 0.5)
RED = Material((0.9, 0.1, 0.1), 1.0, 0.3)


def distance(parts: list[Part], *points: tuple[float, float, float]) -> np.ndarray:
    found, _ = signed_distance(
        pack_solids([parts]), np.array(points, np.float32), np.zeros(len(points), np.int32)
    )
    return found


@pytest.mark.parametrize(
    ("kind", "size", "point", "expected"),
    [
        (shapes.BOX, (0.2, 0.1, 0.3, 0.0), (0.3, 0.0, 0.0), 0.1),
        (shapes.BOX, (0.2, 0.1, 0.3, 0.0), (0.0, 0.0, 0.0), -0.1),
        (shapes.CONE, (0.2, 0.1, 0.1), (0.3, 0.0, 0.0), 0.2),
        (shapes.CONE, (0.2, 0.1, 0.1), (0.0, 0.0, 0.25), 0.05),
        (shapes.ELLIPSOID, (0.2, 0.2, 0.2), (0.0, 0.5, 0.0), 0.3),
        (shapes.DOME, (0.2, 0.2, 0.2), (0.0, 0.0, -0.1), 0.1),
        (shapes.TORUS, (0.3, 0.1), (0.3, 0.0, 0.2), 0.1),
        (shapes.CAPSULE, (0.2, 0.1), (0.0, 0.0, 0.4), 0.1),
        (shapes.PRISM, (0.2, 0.3, 0.2), (0.0, 0.4, 0.0), 0.1),
        (shapes.PRISM, (0.2, 0.3, 0.2), (0.0, 0.0, -0.3), 0.1),
    ],
)
def test_every_primitive_measures_the_distance_to_its_surface(kind, size, point, expected):
    assert distance([Part(kind, size, (0, 0, 0), GREEN)], point) == pytest.approx([expected], abs=1e-5)


def test_turned_and_moved_parts_keep_their_shape():
    lying = Part(shapes.CONE, (0.3, 0.1, 0.1), (0.0, 0.1, 0.0), GREEN, (90, 0, 0))
    assert distance([lying], (0, 0.5, 0), (0, 0.1, 0.3)) == pytest.approx([0.1, 0.2], abs=1e-5)


def test_carving_paints_the_wall_it_leaves():
    parts = [
        Part(shapes.ELLIPSOID, (0.4, 0.4, 0.4), (0, 0, 0), GREEN),
        Part(shapes.ELLIPSOID, (0.2, 0.2, 0.2), (0, 0, 0), RED, operation=shapes.CARVE),
    ]
    points = np.array([[0, 0, 0.21], [0, 0, 0.39], [0, 0, 0]], np.float32)
    found, part = signed_distance(pack_solids([parts]), points, np.zeros(3, np.int32))
    assert part.tolist() == [1, 0, 1]
    assert found == pytest.approx([-0.01, -0.01, 0.2], abs=1e-5)


def test_a_seed_makes_the_same_object_alone_and_among_others():
    again = make_shard(range(HELD_OUT + 1, HELD_OUT + 2), DatasetSettings(image_size=16, views=1))
    among = make_shard(range(HELD_OUT, HELD_OUT + 3), DatasetSettings(image_size=16, views=1))
    first, second = among["lengths"][:2]
    assert np.array_equal(among["coords"][first : first + second], again["coords"])
    assert np.array_equal(among["attrs"][first : first + second], again["attrs"])
    assert np.array_equal(among["pictures"][1], again["pictures"][0])


@pytest.mark.parametrize("category", sorted(CATEGORIES))
def test_every_category_fills_the_unit_cube_without_leaving_it(category):
    rng = np.random.default_rng(1)
    solids = pack_solids([fit_unit_cube(CATEGORIES[category](rng))])
    points = (voxelize(solids, 0, 32).coords + 0.5) / 32 - 0.5
    longest = np.ptp(points, axis=0).max()
    assert np.abs(points).max() < 0.5
    assert 0.8 < longest <= 1.0


def test_seeds_reach_every_category():
    assert {make_object(seed).category for seed in range(200)} == set(CATEGORIES)


@pytest.fixture(scope="module")
def ball():
    return pack_solids([[Part(shapes.ELLIPSOID, (0.33, 0.33, 0.33), (0.01, 0.02, 0.03), GREEN)]])


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
    voxels = voxelize(ball, 0, resolution)
    assert dict(zip(map(tuple, voxels.coords.tolist()), voxels.flags.tolist(), strict=True)) == expected


def test_dual_vertices_lie_near_the_surface(ball):
    voxels = voxelize(ball, 0, 32)
    points = (voxels.coords + voxels.position / 255) / 32 - 0.5
    radius = np.linalg.norm(points - [0.01, 0.02, 0.03], axis=1)
    assert np.abs(radius - 0.33).max() < 0.3 / 32
    assert (voxels.attrs[:, :3] == np.round(np.array(GREEN.color) * 255)).all()


def test_the_picture_shows_the_object_on_black_and_fills_the_frame(ball):
    voxels = voxelize(ball, 0, 32)
    points = ((voxels.coords + voxels.position / 255) / 32 - 0.5).astype(np.float32)
    view = sample_view(np.random.default_rng(0), points, margin=(1.0, 1.0))
    rgba = render_views(ball, np.zeros(1), [view], 48)[0]
    rows, columns = np.nonzero(rgba[..., 3] > 127)
    assert min(rows.min(), columns.min()) <= 1
    assert max(rows.max(), columns.max()) >= 46
    black = on_black(rgba)
    assert (black[rgba[..., 3] == 0] == 0).all()
    assert black[24, 24].argmax() == 1


def test_the_camera_at_yaw_zero_sees_the_front():
    origin, axes = look_at(0.0, 0.0, 2.0)
    assert origin == pytest.approx([0, -2, 0], abs=1e-6)
    window = crop_window(origin, axes, np.array([[-0.5, 0, 0], [0.5, 0, 0.2]], np.float32))
    assert window == pytest.approx([0, 0.05, 0.25], abs=1e-6)


def test_shards_on_disk_are_continued_and_read_back(tmp_path):
    settings = DatasetSettings(resolution=16, image_size=16, views=1, shard=2)
    write_shards(tmp_path, range(0, 2), settings)
    made = (tmp_path / "0000000.safetensors").stat().st_mtime_ns
    write_shards(tmp_path, range(0, 3), settings)
    assert (tmp_path / "0000000.safetensors").stat().st_mtime_ns == made
    dataset = load_shards(sorted(tmp_path.glob("*.safetensors")))
    whole = make_shard(range(0, 3), settings)
    assert len(dataset) == 3
    assert np.array_equal(dataset.coords, whole["coords"])
    assert np.array_equal(dataset.voxels(2).flags, whole["flags"][-whole["lengths"][2] :])


def test_coarse_grids_hold_the_voxels_and_their_mean_color(tmp_path):
    write_shards(tmp_path, range(0, 1), DatasetSettings(resolution=16, image_size=16, views=1, shard=1))
    dataset = load_shards(sorted(tmp_path.glob("*.safetensors")))
    occupied = occupancy_grids(dataset, 16, 4)[0]
    colors = color_grids(dataset, 16, 4)[0]
    assert {tuple(c) for c in (dataset.coords // 4).tolist()} == {
        tuple(c) for c in np.argwhere(occupied).tolist()
    }
    cell = dataset.coords[0] // 4
    members = (dataset.coords // 4 == cell).all(axis=1)
    assert colors[:, cell[0], cell[1], cell[2]] == pytest.approx(
        dataset.attrs[members, :3].mean(axis=0), abs=1
    )
