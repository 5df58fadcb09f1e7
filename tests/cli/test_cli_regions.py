"""`--region`: what a person types becomes the part of space that was meant.

Properties: corners may come in any order; a side takes its share of the object and the free space beyond it;
masks are white on black and belong to a view; whatever cannot be used is named, with an example, before torch
is imported. Not tested: which points a region of the library holds (its own tests).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trimesh
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from trellis_cli.regions import SIDES, read_regions, white_pixels
from trellis_core.errors import InputError, UsageError
from trellis_core.render.views import named_view

coordinate = st.floats(-0.5, 0.5).map(lambda value: round(value, 3))
OBJECT = torch.tensor([[-0.2, -0.1, -0.4], [0.3, 0.2, 0.1]])


def opened(*texts: str, views: tuple[str, ...] = (), points: torch.Tensor = OBJECT) -> list:
    return [wanted.open(points) for wanted in read_regions(texts, views)]


def contains(text: str, point: tuple[float, float, float]) -> bool:
    return bool(opened(text)[0].contains(torch.tensor([point]))[0])


@given(st.lists(coordinate, min_size=6, max_size=6), st.tuples(coordinate, coordinate, coordinate))
def test_a_box_lies_between_its_corners_in_any_order(values, point):
    pairs = list(zip(values[:3], values[3:], strict=True))
    if any(a == b for a, b in pairs):
        return
    text = "box:" + ",".join(map(str, values))
    inside = all(min(a, b) <= p <= max(a, b) for (a, b), p in zip(pairs, point, strict=True))
    (region,) = opened(text)
    assert bool(region.contains(torch.tensor([point], dtype=torch.float64))[0]) == inside


def test_a_sphere_is_a_center_and_a_radius():
    assert contains("sphere:0.1, 0, 0, 0.2", (0.25, 0.0, 0.0))
    assert not contains("sphere:0.1,0,0,0.2", (-0.15, 0.0, 0.0))


@pytest.mark.parametrize("side", SIDES)
def test_a_side_takes_half_of_the_object_and_all_beyond_it(side):
    axis, upper = SIDES[side]
    middle = float(OBJECT.mean(0)[axis])
    sign = 1 if upper else -1
    for reach, inside in ((0.05, True), (0.49 - sign * middle, True), (-0.05, False)):
        point = [0.45, 0.45, 0.45]
        point[axis] = middle + sign * reach
        assert contains(side, tuple(point)) == inside, (side, reach)


def test_the_share_of_a_side_is_of_the_object_and_not_of_the_cube():
    for text in ("top:0.2", "TOP : 20%", "top:20 %"):
        assert contains(text, (0.0, 0.0, 0.01))
        assert not contains(text, (0.0, 0.0, -0.01))


def test_sides_are_seen_from_the_front():
    front = named_view("front")
    right = front.extrinsics[0, :3]
    assert contains("right", tuple((0.4 * right + OBJECT.mean(0)).clamp(-0.5, 0.5).tolist()))
    assert contains("front", (0.0, -0.45, 0.0))


def test_a_mesh_file_is_taken_as_it_lies(tmp_path):
    ball = trimesh.creation.icosphere(subdivisions=2, radius=0.2)
    ball.apply_translation([0, 0.3, 0])  # y up in the file
    ball.export(tmp_path / "ball.glb")
    text = str(tmp_path / "ball.glb")
    assert contains(text, (0.0, 0.0, 0.3))
    assert not contains(text, (0.0, 0.3, 0.0))


@pytest.fixture
def mask(tmp_path) -> Path:
    """White in the upper left quarter."""
    image = Image.new("L", (64, 64))
    ImageDraw.Draw(image).rectangle((0, 0, 31, 31), fill=255)
    path = tmp_path / "mask.png"
    image.save(path)
    return path


@pytest.mark.parametrize(
    ("view", "inside", "outside"),
    [
        ("front", (-0.2, 0.4, 0.2), (0.2, 0.4, 0.2)),
        ("back", (0.2, -0.4, 0.2), (-0.2, 0.4, 0.2)),
        ("left", (0.4, 0.2, 0.2), (0.4, -0.2, 0.2)),
        ("90,0", (0.0, -0.2, 0.2), (0.0, 0.2, 0.2)),
    ],
)
def test_a_mask_holds_all_that_its_view_sees_behind_white_pixels(mask, view, inside, outside):
    (region,) = opened(str(mask), views=(view,))
    assert region.contains(torch.tensor([inside, outside])).tolist() == [True, False]


def test_the_size_of_a_mask_does_not_matter(mask, tmp_path):
    large = tmp_path / "large.png"
    Image.open(mask).resize((512, 512), Image.Resampling.NEAREST).save(large)
    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    small, same = opened(str(mask), str(large))
    assert torch.equal(small.contains(points), same.contains(points))


def test_transparent_parts_of_a_mask_are_black(tmp_path):
    image = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
    image.paste((255, 255, 255, 255), (0, 0, 8, 16))
    image.save(tmp_path / "layer.png")
    assert int(white_pixels(tmp_path / "layer.png").sum()) == 128


def test_every_mask_may_have_a_view_of_its_own(mask):
    first, box, second = read_regions([str(mask), "top", str(mask)], ["front", "left"])
    assert (str(first), str(box), str(second)) == (f"{mask} (front)", "top", f"{mask} (left)")
    assert [str(wanted) for wanted in read_regions([str(mask)] * 2, ["top"])] == [f"{mask} (top)"] * 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no region"),
        ("middle", "is no region"),
        ("legs:0.3", "is no region"),
        ("notes.txt", "is no region"),
        ("box", "needs 6 numbers"),
        ("box:0,0,0,1,1", "needs 6 numbers"),
        ("box:0,0,0,1,1,one", "needs 6 numbers"),
        ("box:0,0,0,1,1,nan", "needs 6 numbers"),
        ("box:0,0,0,1,1,0", "has no volume"),
        ("sphere:0,0,0", "needs 4 numbers"),
        ("sphere:0,0,0,0", "has no volume"),
        ("sphere:0,0,0,-1", "has no volume"),
        ("top:0", "takes no part"),
        ("top:150%", "takes no part"),
        ("top:much", "needs a number"),
    ],
)
def test_what_is_no_region_is_wrong_usage(text, said):
    with pytest.raises(UsageError, match=said) as error:
        read_regions([text])
    assert error.value.hint


def test_views_without_masks_and_views_that_do_not_match_are_wrong_usage(mask):
    with pytest.raises(UsageError, match="no region says"):
        read_regions([])
    with pytest.raises(UsageError, match="belongs to a mask"):
        read_regions(["top"], ["front"])
    with pytest.raises(UsageError, match="3 masks have 2 views"):
        read_regions([str(mask)] * 3, ["front", "back"])
    with pytest.raises(UsageError, match="unknown view"):
        read_regions([str(mask)], ["from above"])


def black(path: Path) -> None:
    Image.new("L", (64, 64)).save(path)


def grey(path: Path) -> None:
    Image.new("L", (64, 64), 128).save(path)


def oblong(path: Path) -> None:
    Image.new("L", (64, 48), 255).save(path)


@pytest.mark.parametrize(
    ("make", "said"),
    [(black, "no white pixel"), (grey, "neither black nor white"), (oblong, "64 x 48 pixels")],
)
def test_a_picture_that_is_no_mask_is_bad_input(tmp_path, make, said):
    make(tmp_path / "mask.png")
    with pytest.raises(InputError, match=said) as error:
        opened(str(tmp_path / "mask.png"))
    assert error.value.hint


def test_a_file_that_is_not_there_is_bad_input():
    for text in ("hat.glb", "mask.png"):
        with pytest.raises(InputError, match="does not exist"):
            read_regions([text])


def test_regions_are_read_without_torch():
    program = (
        "import sys; from trellis_cli.regions import read_regions; "
        "read_regions(['top', 'box:0,0,0,1,1,1', 'sphere:0,0,0,1']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
