"""Facts about mesh files: what the file says of itself, and that it is measured unrepaired.

Files are written by hand (tests/solids.py), not by the package's writers.
"""

from __future__ import annotations

import json
import struct
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.solids import cube, scaled, sphere, together, write_glb, write_obj, write_stl
from trellis_core.errors import InputError
from trellis_core.geometry.types import Mesh
from trellis_core.io.facts import file_facts
from trellis_core.io.inspect import RawMesh, inspect_mesh, inspect_raw, read_raw
from trellis_core.kernels.table import Kernels

KERNELS = Kernels({"rasterize": "warp", "closest_point": "warp"})


def test_a_glb_says_what_it_is_made_of(tmp_path):
    extras = {"model": {"name": "embedded"}, "seed": 7}
    found = file_facts(write_glb(cube(), tmp_path / "a.glb", extras=extras, alpha="MASK"))
    assert found["format"] == "GLB (glTF 2.0)"
    assert found["unit"] == "m"
    assert found["generator"] == "by hand"
    assert found["extras"] == extras
    assert found["materials"] == [{"name": "paint", "alpha_mode": "MASK", "double_sided": False}]
    (texture,) = found["textures"]
    assert texture["use"] == ["base color"]
    assert (texture["width"], texture["height"], texture["kind"]) == (16, 16, "png")
    assert texture["bytes"] > 50


@pytest.mark.parametrize("writer", [write_glb, write_stl, write_obj])
def test_every_format_gives_the_same_mesh_and_bounds(tmp_path, writer):
    suffix = writer.__name__.removeprefix("write_")
    shape = scaled(cube(), 2, (5, 0, 1))
    shape.vertices[:, 1] *= 3  # 2 wide, 6 deep, 2 high
    found = inspect_mesh(writer(shape, tmp_path / f"a.{suffix}"), KERNELS)
    assert found.placement.low == pytest.approx((4, -3, 0))
    assert found.placement.high == pytest.approx((6, 3, 2))
    assert found.quality.metrics["faces"] == 12
    assert found.quality.metrics["watertight"] is True
    assert found.quality.metrics["volume"] == pytest.approx(24 / 6**3)


def test_the_unit_is_what_the_format_says(tmp_path):
    assert file_facts(write_stl(cube(), tmp_path / "a.stl"))["unit"] == "mm"
    assert file_facts(write_obj(cube(), tmp_path / "a.obj"))["unit"] is None


def test_damage_in_a_file_is_found_as_it_is(tmp_path):
    broken = replace(cube(), faces=torch.cat([cube().faces, torch.tensor([[0, 1, 1], [0, 1, 3]])]).int())
    metrics = inspect_mesh(write_stl(broken, tmp_path / "a.stl"), KERNELS).quality.metrics
    assert metrics["faces"] == 14
    assert metrics["degenerate_faces"] == 1
    assert metrics["duplicate_faces"] == 1
    assert metrics["non_manifold_edges"] == 3


def test_shells_and_winding_are_part_of_the_verdict(tmp_path):
    double = together(sphere(), scaled(sphere(), 0.98))
    found = inspect_mesh(write_stl(double, tmp_path / "a.stl"), KERNELS)
    assert not found.quality.passed
    assert any("Second shells" in problem for problem in found.quality.problems)
    turned = cube()
    turned.faces[0] = turned.faces[0].flip(0)
    found = inspect_mesh(write_stl(turned, tmp_path / "b.stl"), KERNELS)
    assert any("wound against" in problem for problem in found.quality.problems)
    found = inspect_mesh(write_stl(Mesh(cube().vertices, cube().faces.flip(1)), tmp_path / "c.stl"), KERNELS)
    assert found.quality.problems == ("The mesh is inside out.",)


def test_texture_coordinates_are_measured_in_texels(tmp_path):
    found = inspect_mesh(write_glb(cube(), tmp_path / "a.glb", size=256), KERNELS).quality.metrics
    assert found["uv_charts"] == 12
    assert found["uv_overlap"] == 0
    assert found["uv_coverage"] == pytest.approx(12 * 0.32 / 16, abs=0.02)
    assert found["texels_per_side"] == pytest.approx(256 * (12 * 0.32 / 16 / 6) ** 0.5, rel=0.01)


def test_charts_on_different_textures_do_not_overlap():
    uvs = torch.rand(8, 2, generator=torch.Generator().manual_seed(0))
    shape = replace(cube(), uvs=uvs)
    both = replace(together(shape, scaled(shape, 1, (2, 0, 0))), uvs=torch.cat([uvs, uvs]))
    owner = torch.arange(24) // 12
    alone = inspect_raw(RawMesh(shape, torch.zeros(12).long(), 1), {}, KERNELS).quality.metrics
    found = inspect_raw(RawMesh(both, owner, 2), {}, KERNELS).quality.metrics
    assert found["uv_overlap"] == alone["uv_overlap"]
    assert found["uv_charts"] == 2 * alone["uv_charts"]


def test_coordinates_that_are_not_numbers_are_reported(tmp_path):
    shape = cube()
    shape.vertices[0, 0] = float("nan")
    found = inspect_mesh(write_stl(shape, tmp_path / "a.stl"), KERNELS)
    assert found.quality.problems == ("Some coordinates are not numbers.",)


def test_faces_that_name_missing_vertices_are_reported():
    shape = cube()
    shape.faces[0, 0] = 99
    found = inspect_raw(RawMesh(shape, torch.zeros(12).long(), 1), {}, KERNELS)
    assert "do not exist" in found.quality.problems[0]


def test_missing_pictures_of_a_material_are_named(tmp_path):
    path = write_obj(cube(), tmp_path / "a.obj")
    path.write_text("mtllib a.mtl\n" + path.read_text())
    assert file_facts(path)["missing"] == ["a.mtl"]
    (tmp_path / "a.mtl").write_text("newmtl paint\nmap_Kd lost.png\nmap_d lost.png\n")
    found = file_facts(path)
    assert found["missing"] == ["lost.png"]
    assert found["materials"][0]["alpha_mode"] == "BLEND"


def document(**more) -> bytes:
    text = json.dumps({"asset": {"version": "2.0"}, **more}).encode()
    text += b" " * (-len(text) % 4)
    return struct.pack("<4sII", b"glTF", 2, 20 + len(text)) + struct.pack("<I4s", len(text), b"JSON") + text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.glb", b"hello", "does not begin"),
        ("a.glb", b"x" * 100, "does not begin"),
        ("a.glb", struct.pack("<4sII", b"glTF", 1, 40) + b"\0" * 28, "glTF 1"),
        ("a.glb", document()[:24], "cut off"),
        (
            "a.glb",
            document(materials=[{"pbrMetallicRoughness": {"baseColorTexture": {"index": 3}}}]),
            "damaged",
        ),
        ("a.gltf", b"[]", "no glTF"),
        ("a.gltf", b"{", "damaged"),
        ("a.stl", b"\0" * 84 + b"x", "does not fit"),
        ("a.ply", b"plx\n", "does not begin"),
        ("a.3mf", b"PK", "no 3MF"),
        ("a.step", b"x", "unknown mesh format"),
    ],
)
def test_damaged_files_are_refused_with_a_reason_and_a_hint(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as refusal:
        file_facts(tmp_path / name)
    (tmp_path / name).unlink()  # the suite validates every GLB that it finds afterwards
    assert refusal.value.hint


@pytest.mark.parametrize("content", [b"v 0 0 0\nv 1 0 0\n", b"# nothing\n"], ids=["points", "nothing"])
def test_files_without_triangles_are_refused(tmp_path, content):
    (tmp_path / "a.obj").write_bytes(content)
    with pytest.raises(InputError):
        inspect_mesh(tmp_path / "a.obj", KERNELS)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_glb_is_read_or_refused_and_nothing_else(tmp_path, damage):
    path = tmp_path / "a.glb"
    content = bytearray(write_glb(cube(), path).read_bytes())
    for place, value in damage:
        content[int(place * len(content))] = value
    path.write_bytes(content)
    try:
        assert read_raw(path).mesh.vertices.shape[1] == 3
        assert file_facts(path)["unit"] == "m"
    except InputError as refusal:
        assert refusal.hint
    path.unlink()
