"""Neighbour maps and sparse convolution.

Properties: the map names exactly the voxels that exist; the convolution equals a dense one read at the
voxels; its gradients equal those of the dense one; memory does not depend on the number of voxels; the
Triton kernel equals the torch path. Not tested: the Triton kernel on a real GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from trellis_core.errors import BackendUnavailable
from trellis_core.kernels import probes, sparse_conv
from trellis_core.kernels.neighbor_map import kernel_offsets, neighbor_map, refine_neighbor_map, voxel_keys
from trellis_core.kernels.table import resolve_kernels
from trellis_core.memory.devices import DeviceInfo

ROOT = Path(__file__).parents[2]
GRID = 7


def random_coords(seed: int = 0, density: float = 0.3, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    occupied = torch.rand(batch, GRID, GRID, GRID, generator=generator) < density
    coords = occupied.nonzero().int()
    samples = [coords[coords[:, 0] == b] for b in range(batch)]
    return torch.cat([s[torch.randperm(len(s), generator=generator)] for s in samples])


def neighbors_by_dictionary(coords: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    row_of = {tuple(c): row for row, c in enumerate(coords.tolist())}
    return torch.tensor(
        [
            [row_of.get((b, x + dx, y + dy, z + dz), -1) for dx, dy, dz in offsets.tolist()]
            for b, x, y, z in coords.tolist()
        ],
        dtype=torch.int32,
    )


def dense_convolution(feats, coords, weight, bias, dilation=1):
    volume = feats.new_zeros(int(coords[:, 0].max()) + 1, GRID, GRID, GRID, feats.shape[1])
    volume = volume.index_put(tuple(coords.long().unbind(1)), feats).permute(0, 4, 1, 2, 3)
    out = F.conv3d(volume, weight.permute(0, 4, 1, 2, 3), bias, padding=dilation, dilation=dilation)
    b, x, y, z = coords.long().unbind(1)
    return out[b, :, x, y, z]


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_the_map_names_exactly_the_voxels_that_exist(kernel_size, dilation):
    coords = random_coords()
    offsets = kernel_offsets(kernel_size, dilation)
    assert torch.equal(neighbor_map(coords, offsets), neighbors_by_dictionary(coords, offsets))


def test_the_map_accepts_negative_and_shifted_coordinates():
    coords = random_coords()
    shifted = coords + torch.tensor([0, -5, 100_000, -3], dtype=torch.int32)
    offsets = kernel_offsets(3)
    assert torch.equal(neighbor_map(shifted, offsets), neighbor_map(coords, offsets))


def test_the_map_of_no_voxel_is_empty():
    assert neighbor_map(torch.empty(0, 4, dtype=torch.int32), kernel_offsets(3)).shape == (0, 27)


def test_neighbours_are_found_in_the_far_corner_of_a_batch_of_1536_grids():
    corner = torch.tensor([[b, 1535, 1535, z] for b in range(8) for z in (0, 1534, 1535)], dtype=torch.int32)
    found = neighbor_map(corner, kernel_offsets(3))
    assert torch.equal(found, neighbors_by_dictionary(corner, kernel_offsets(3)))
    assert (found >= 0).sum() == 8 * (1 + 2 + 2)


def test_keys_of_1536_grids_are_exact_and_never_wrap():
    size, batch = (1536, 1536, 1536), 64
    ends = torch.tensor([[0, 0, 0, 0], [0, 1535, 1535, 1535], [1, 0, 0, 0], [63, 1535, 1535, 1535]]).int()
    assert voxel_keys(ends, size, batch).tolist() == [0, 1536**3 - 1, 1536**3, 64 * 1536**3 - 1]


def test_the_keys_of_a_decoded_surface_stay_in_order():
    count = 17_700_000  # voxels of a large 1536 result; every 1000th of a run along z, y and x
    flat = torch.arange(0, count, 1000) * (1536**3 // count)
    coords = torch.stack([flat * 0, flat // 1536**2, flat // 1536 % 1536, flat % 1536], dim=1).int()
    assert torch.equal(voxel_keys(coords, (1536, 1536, 1536), 1), flat)


def test_a_grid_with_more_than_63_bits_of_cells_is_refused():
    far = torch.tensor([[0, 0, 0, 0], [0, 2**30, 2**30, 2**30]], dtype=torch.int32)
    with pytest.raises(ValueError, match="63 bits"):
        neighbor_map(far, kernel_offsets(3))


def test_offsets_without_opposites_are_refused():
    with pytest.raises(ValueError, match="opposite"):
        neighbor_map(random_coords(), torch.tensor([[0, 0, 1]], dtype=torch.int32))


@pytest.mark.parametrize("density", [0.02, 0.3, 1.0])
def test_a_refined_map_equals_a_searched_one(density):
    coords = random_coords(density=density)
    mask = torch.rand(len(coords), 8, generator=torch.Generator().manual_seed(1)) < 0.5
    slots = mask.flatten().nonzero().squeeze(1).int()
    number = slots & 7
    fine = coords[slots >> 3]
    fine[:, 1:] = 2 * fine[:, 1:] + torch.stack([number & 1, number >> 1 & 1, number >> 2], dim=1)
    refined = refine_neighbor_map(neighbor_map(coords, kernel_offsets(3)), slots)
    assert torch.equal(refined, neighbor_map(fine, kernel_offsets(3)))


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_convolution_and_its_gradients_equal_a_dense_one(dilation, with_bias):
    coords = random_coords()
    neighbors = neighbor_map(coords, kernel_offsets(3, dilation))
    generator = torch.Generator().manual_seed(2)
    feats = torch.randn(len(coords), 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True) if with_bias else None
    leaves = [leaf for leaf in (feats, weight, bias) if leaf is not None]
    got = sparse_conv.sparse_conv(feats, neighbors, weight, bias)
    want = dense_convolution(feats, coords, weight, bias, dilation)
    assert torch.allclose(got, want, rtol=1e-10, atol=1e-10)
    pull = torch.randn(got.shape, generator=generator, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(got, leaves, pull), torch.autograd.grad(want, leaves, pull), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once_at_the_end(dtype):
    coords = random_coords()
    neighbors = neighbor_map(coords, kernel_offsets(3))
    generator = torch.Generator().manual_seed(3)
    feats = torch.randn(len(coords), 64, generator=generator).to(dtype)
    weight = (torch.randn(8, 3, 3, 3, 64, generator=generator) / 40).to(dtype)
    bias = torch.randn(8, generator=generator).to(dtype)
    got = sparse_conv.sparse_conv(feats, neighbors, weight, bias)
    exact = sparse_conv.sparse_conv(feats.double(), neighbors, weight.double(), bias.double())
    assert got.dtype == dtype
    assert (got.double() - exact).norm() / exact.norm() < 1.5 * torch.finfo(dtype).eps


def test_the_gather_buffer_does_not_grow_with_the_voxels(monkeypatch):
    monkeypatch.setattr(sparse_conv, "CHUNK_ELEMENTS", 27 * 4 * 10)
    coords = random_coords()
    neighbors = neighbor_map(coords, kernel_offsets(3))
    feats = torch.randn(len(coords), 4)
    sizes = [len(columns) for _, columns in sparse_conv.gathered(feats, neighbors)]
    assert sum(sizes) == len(coords)
    assert max(sizes) == 10
    weight, bias = torch.randn(3, 3, 3, 3, 4), torch.randn(3)
    chunked = sparse_conv.sparse_conv(feats, neighbors, weight, bias)
    assert torch.allclose(chunked, dense_convolution(feats, coords, weight, bias), atol=1e-5)


def test_a_kernel_of_the_wrong_width_is_refused_with_both_shapes():
    neighbors = neighbor_map(random_coords(), kernel_offsets(3))
    with pytest.raises(ValueError, match=r"27, 5.*does not fit.*, 4\]"):
        sparse_conv.sparse_conv(torch.ones(len(neighbors), 4), neighbors, torch.ones(2, 3, 3, 3, 5), None)


def program(task: str, **variables: str) -> list[dict]:
    """Run `interpret_sparse_conv` and read the JSON lines it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.interpret_sparse_conv", task],
        cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_triton_kernel_equals_the_torch_path_in_the_interpreter():
    pytest.importorskip("triton", reason="the package `triton` is not installed")
    allowed = {"torch.float32": 1e-5, "torch.float16": 4e-3, "torch.bfloat16": 4e-2}
    reports = program("interpret", TRITON_INTERPRET="1")
    assert {r["dtype"] for r in reports} == set(allowed)
    for report in reports:
        assert report["same dtype"]
        assert report["error"] < allowed[report["dtype"]], report


def test_the_triton_kernel_compiles_to_tensor_core_code(tmp_path):
    pytest.importorskip("triton", reason="the package `triton` is not installed")
    reports = program("compile", TRITON_CACHE_DIR=str(tmp_path))
    assert [r["capability"] for r in reports] == [80, 90]
    assert all(r["tensor cores"] for r in reports)


def gpu(*capability: int) -> DeviceInfo:
    return DeviceInfo(kind="cuda", capability=capability)


@pytest.fixture
def complete_machine(monkeypatch, tmp_path):
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(probes, "find_spec", lambda name: object())
    monkeypatch.setattr(probes.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(probes.platform, "system", lambda: "Linux")
    monkeypatch.setattr(probes.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    return monkeypatch


def test_triton_is_taken_from_ampere_on(complete_machine):
    assert probes.triton_runs(gpu(8, 0)) is None
    assert probes.triton_runs(gpu(12, 0)) is None
    assert "7.5" in probes.triton_runs(gpu(7, 5))


def test_triton_is_refused_on_a_processor(complete_machine):
    assert "CUDA" in probes.triton_runs(DeviceInfo(kind="cpu"))


def test_triton_is_refused_without_its_package(complete_machine):
    complete_machine.setattr(probes, "find_spec", lambda name: None)
    assert "not installed" in probes.triton_runs(gpu(8, 9))


def test_triton_is_refused_on_linux_without_a_compiler_or_headers(complete_machine, tmp_path):
    (tmp_path / "Python.h").unlink()
    assert "Python.h" in probes.triton_runs(gpu(8, 9))
    complete_machine.setattr(probes.shutil, "which", lambda name: None)
    assert "C compiler" in probes.triton_runs(gpu(8, 9))
    complete_machine.setattr(probes.platform, "system", lambda: "Windows")
    assert probes.triton_runs(gpu(8, 9)) is None


def test_asking_for_triton_where_it_cannot_run_is_an_error_that_says_why():
    with pytest.raises(BackendUnavailable, match="needs a CUDA device") as caught:
        resolve_kernels(DeviceInfo(kind="cpu"), {"sparse_conv": "triton"})
    assert "sparse_conv=torch" in caught.value.hint
