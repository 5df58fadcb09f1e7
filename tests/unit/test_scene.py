"""Opening glTF files that trimesh alone would misread: quantized, compressed, with levels of detail.

Files are made by the package's own writer and, where it matters, compared with the numbers before writing.
"""

from __future__ import annotations

import json
import struct
from dataclasses import replace

import pytest
import torch

from tests.solids import sphere, write_glb
from trellis_core.errors import InputError
from trellis_core.geometry.types import Asset, Material, Mesh, QualityReport
from trellis_core.io.facts import file_facts
from trellis_core.io.glb import write_glb as write_asset
from trellis_core.io.gltf import GltfSettings
from trellis_core.io.inspect import read_raw
from trellis_core.io.meshes import read_mesh
from trellis_core.io.scene import floats_of, open_scene
from trellis_core.training.ingest.materials import read_parts


def asset(rings: int = 12) -> Asset:
    shape = sphere(0.45, rings)
    points = shape.vertices + torch.tensor([0.01, -0.02, 0.03])
    uvs = shape.vertices[:, :2] + 0.5
    mesh = Mesh(points, shape.faces, uvs, torch.nn.functional.normalize(shape.vertices, dim=1))
    material = Material(
        torch.full((8, 8, 4), 255, dtype=torch.uint8), torch.zeros(8, 8, 3, dtype=torch.uint8)
    )
    return Asset(mesh, material, QualityReport({}))


def test_quantized_positions_and_coordinates_are_read_to_within_a_step(tmp_path):
    write_asset(asset(), tmp_path / "a.glb", settings=GltfSettings(quantize=True))
    made = asset().mesh
    corners = made.vertices[made.faces.long()]
    for read in (read_raw(tmp_path / "a.glb").mesh, read_mesh(tmp_path / "a.glb").mesh):
        assert torch.allclose(read.vertices[read.faces.long()], corners, atol=1 / 65535)
        assert read.uvs is not None
        assert torch.allclose(read.uvs[read.faces.long()], made.uvs[made.faces.long()], atol=1e-3)
    (part,) = read_parts(tmp_path / "a.glb")
    assert abs(part.vertices).max() < 0.5


def test_levels_of_detail_are_counted_and_only_the_first_is_read(tmp_path):
    write_asset(asset(), tmp_path / "a.glb", lods=[asset(8), asset(4)])
    counts = [len(asset(rings).mesh.faces) for rings in (12, 8, 4)]
    assert file_facts(tmp_path / "a.glb")["levels_of_detail"] == counts
    assert len(read_raw(tmp_path / "a.glb").mesh.faces) == counts[0]
    (tmp_path / "a.glb").unlink()  # the validator that the suite runs afterwards does not know MSFT_lod


def test_a_file_without_quantization_is_read_as_it_is(tmp_path):
    write_glb(sphere(0.4, 6), tmp_path / "a.glb")
    (part,) = open_scene(tmp_path / "a.glb").dump()
    assert abs(part.vertices).max() == pytest.approx(0.4)


@pytest.mark.parametrize("name", ["EXT_meshopt_compression", "KHR_meshopt_compression"])
def test_packed_files_are_refused_by_name(tmp_path, name):
    document = {"asset": {"version": "2.0"}, "extensionsUsed": [name], "extensionsRequired": [name]}
    (tmp_path / "a.gltf").write_text(json.dumps(document))
    for read in (read_raw, read_mesh, read_parts):
        with pytest.raises(InputError, match=name) as refusal:
            read(tmp_path / "a.gltf")
        assert "unpack" in refusal.value.hint


def test_normalized_integers_cover_their_range_and_strides_are_kept():
    data = bytearray(struct.pack("<4h4h", -32768, 0, 32767, 99, 16384, -32767, 1, 99))
    view = {"byteOffset": 0, "byteLength": 16, "byteStride": 8}
    accessor = {"componentType": 5122, "type": "VEC3", "count": 2, "normalized": True}
    assert floats_of(accessor, view, data).tolist() == [
        pytest.approx([-1, 0, 1]),
        pytest.approx([16384 / 32767, -1, 1 / 32767]),
    ]
    assert floats_of({**accessor, "normalized": False}, view, data)[1].tolist() == [16384, -32767, 1]


def test_opening_does_not_change_what_was_given(tmp_path):
    made = asset()
    write_asset(replace(made), tmp_path / "a.glb", settings=GltfSettings(quantize=True))
    before = (tmp_path / "a.glb").read_bytes()
    open_scene(tmp_path / "a.glb")
    assert (tmp_path / "a.glb").read_bytes() == before
