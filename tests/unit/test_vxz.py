"""Voxel files: vxz in all its variants, npz and ply; damaged files are refused with a sentence.

Parity with files of the released tools is tested by the golden cases.
"""

from itertools import product

import pytest
import torch

from trellis_core.errors import InputError, OutputError
from trellis_core.geometry.types import PBRVoxels
from trellis_core.io.voxel_files import bytes_to_pbr, pbr_to_bytes, read_voxels, write_npz, write_voxels
from trellis_core.io.vxz import decode_vxz, encode_vxz, find_zstd, read_vxz, write_vxz

FILTERS = ["none", "parent", "neighbor"]
COMPRESSIONS = ["none", "deflate", "lzma", *(["zstd"] if find_zstd() else [])]
INTERLEAVES = ["none", "as_is", "all"]


def some_voxels(count=300, side=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randperm(side**3, generator=generator)[:count]
    coords = torch.stack([keys // side**2, keys // side % side, keys % side], 1).int()
    attributes = {
        "base_color": torch.randint(0, 256, (count, 3), generator=generator, dtype=torch.uint8),
        "base": torch.randint(0, 256, (count, 1), generator=generator, dtype=torch.uint8),
        "alpha": torch.randint(0, 256, (count, 1), generator=generator, dtype=torch.uint8),
    }
    return coords, attributes


def by_voxel(coords, attributes):
    return {tuple(c): [a[i].tolist() for a in attributes.values()] for i, c in enumerate(coords.tolist())}


@pytest.mark.parametrize(
    ("filter", "compression", "interleave"), list(product(FILTERS, COMPRESSIONS, INTERLEAVES))
)
def test_every_variant_of_vxz_gives_back_what_was_written(filter, compression, interleave):
    coords, attributes = some_voxels()
    data = encode_vxz(
        coords, attributes, chunk_size=16, filter=filter, compression=compression, interleave=interleave
    )
    again, found = decode_vxz(data)
    assert list(found) == list(attributes) and again.dtype == torch.int32
    assert by_voxel(again, found) == by_voxel(coords, attributes)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("chunk_size", [2, 8, 64, 1024])
def test_chunks_of_every_size_work_with_full_and_sparse_cells(filter, chunk_size):
    side = torch.arange(6)
    coords = torch.cat([torch.cartesian_prod(side, side, side), torch.tensor([[700, 1, 9]])]).int()
    attributes = {"value": (torch.arange(len(coords)) % 256).byte()[:, None]}
    again, found = decode_vxz(encode_vxz(coords, attributes, chunk_size=chunk_size, filter=filter))
    assert by_voxel(again, found) == by_voxel(coords, attributes)


@pytest.mark.parametrize("filter", FILTERS)
def test_an_empty_grid_and_a_grid_without_attributes_are_files_too(filter):
    nothing = torch.zeros(0, 3, dtype=torch.int32)
    again, found = decode_vxz(encode_vxz(nothing, {"a": torch.zeros(0, 2, dtype=torch.uint8)}, filter=filter))
    assert again.shape == (0, 3) and found["a"].shape == (0, 2)
    coords, _ = some_voxels(20)
    again, found = decode_vxz(encode_vxz(coords, {}, filter=filter))
    assert sorted(again.tolist()) == sorted(coords.tolist()) and found == {}


def test_smooth_colors_take_less_room_when_filtered():
    side = torch.arange(24)
    coords = torch.cartesian_prod(side, side, side).int()
    smooth = {"base_color": (coords * 3 + coords.roll(1, 1)).byte()}
    plain, filtered = (
        len(encode_vxz(coords, smooth, filter=f, compression="deflate")) for f in ("none", "parent")
    )
    assert filtered < plain


def test_voxels_that_are_not_unique_or_negative_are_refused():
    attributes = {"a": torch.zeros(2, 1, dtype=torch.uint8)}
    with pytest.raises(ValueError, match="unique"):
        encode_vxz(torch.tensor([[1, 2, 3], [1, 2, 3]]), attributes)
    with pytest.raises(ValueError, match="negative"):
        encode_vxz(torch.tensor([[1, 2, 3], [1, 2, -3]]), attributes)
    with pytest.raises(ValueError, match="uint8"):
        encode_vxz(torch.tensor([[1, 2, 3], [1, 2, 4]]), {"a": torch.zeros(2, 1)})


@pytest.mark.parametrize("damage", ["empty", "foreign", "cut", "json", "tail"])
def test_a_damaged_vxz_file_is_refused_with_its_name(tmp_path, damage):
    coords, attributes = some_voxels()
    data = encode_vxz(coords, attributes, compression="deflate")
    path = tmp_path / "shape.vxz"
    path.write_bytes(
        {
            "empty": b"",
            "foreign": b"PK\x03\x04" + data,
            "cut": data[: len(data) // 2],
            "json": data[:8] + b"?" + data[9:],
            "tail": data[:-5],
        }[damage]
    )
    with pytest.raises(InputError, match=r"shape\.vxz"):
        read_vxz(path)


@pytest.mark.parametrize("suffix", [".vxz", ".npz", ".ply"])
def test_material_voxels_survive_every_kind_of_file(tmp_path, suffix):
    coords, _ = some_voxels(60, side=12)
    attrs = torch.rand(60, 6, generator=torch.Generator().manual_seed(5))
    path = tmp_path / f"material{suffix}"
    write_voxels(path, coords, pbr_to_bytes(PBRVoxels(coords, attrs, 12)))
    voxels = bytes_to_pbr(*read_voxels(path), 12)
    order = [coords.tolist().index(c) for c in voxels.coords.tolist()]
    assert voxels.resolution == 12 and sorted(order) == list(range(60))
    assert ((attrs[order] - voxels.attrs).abs() <= 1 / 255 + 1e-6).all()


def test_ply_keeps_attributes_apart_whose_names_begin_alike(tmp_path):
    coords, attributes = some_voxels(10)
    attributes = attributes | {"base_color_2": torch.randn(10, 2), "normal": torch.randn(10, 3)}
    write_voxels(tmp_path / "a.ply", coords, attributes)
    again, found = read_voxels(tmp_path / "a.ply")
    assert torch.equal(again, coords) and found.keys() == attributes.keys()
    assert all(torch.equal(found[name], attributes[name]) for name in attributes)


def test_npz_may_be_written_without_compression(tmp_path):
    coords, attributes = some_voxels(50)
    write_npz(tmp_path / "a.npz", coords, attributes, compress=False)
    again, found = read_voxels(tmp_path / "a.npz")
    assert torch.equal(again, coords) and all(torch.equal(found[n], attributes[n]) for n in attributes)


def test_npz_refuses_coordinates_beyond_16_bits(tmp_path):
    with pytest.raises(OutputError, match="65535"):
        write_voxels(tmp_path / "a.npz", torch.tensor([[0, 0, 70000]]), {})


def test_an_unknown_suffix_names_the_known_ones(tmp_path):
    with pytest.raises(OutputError) as caught:
        write_voxels(tmp_path / "a.vox", torch.zeros(0, 3), {})
    assert ".vxz" in caught.value.hint
    with pytest.raises(InputError):
        read_voxels(tmp_path / "a.vox")


def test_files_that_are_no_voxel_files_are_refused(tmp_path):
    for name, data in (("a.npz", b"nonsense"), ("a.ply", b"ply\nformat ascii 1.0\nend_header\n")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError):
            read_voxels(tmp_path / name)


def test_lzma_levels_are_capped(tmp_path):
    coords, attributes = some_voxels(20)
    write_vxz(tmp_path / "a.vxz", coords, attributes, compression="lzma", level=9)
    assert b'"compression_level": 6' in (tmp_path / "a.vxz").read_bytes()
    assert len(read_vxz(tmp_path / "a.vxz")[0]) == 20
