"""Background removal by BiRefNet, and who removes backgrounds when.

Properties: deformable convolution samples where it is told to, zero outside; shifted windows never join
opposite edges; the picture's blocks are stacked in the order of the checkpoint; the last convolution may be
taken apart; the published tensors are the network's, key by key; files are read strictly, whatever trainer
wrapped them; masks have the picture's size; the best remover that is here is taken and named.
Letters: B pictures, C channels, h w map size, K kernel positions.
Not tested here: agreement with the release (golden cases), quality on photographs (needs the real weights).
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from tests.parity.formula import fill_by_formula, formula_tensor
from trellis_cli.options import Background
from trellis_core.errors import BackendUnavailable, InputError, ModelError, UsageError
from trellis_core.image import background as background_module
from trellis_core.image.background import METHODS, Network, choose_background_remover, require_object
from trellis_core.models import matting, matting_release
from trellis_core.models.matting import (
    BACKBONES,
    BiRefNet,
    alpha_of,
    background_remover,
    find_object,
    load_matting,
    prepare_picture,
)
from trellis_core.models.matting_blocks import deformable_conv2d
from trellis_core.models.matting_decoder import PATCH_ORDERS, enlarge, picture_patches
from trellis_core.models.matting_release import BIREFNET, RELEASES, WEIGHTS
from trellis_core.models.swin import Block, PatchMerging, relative_positions, shifted_regions
from trellis_core.runtime import Runtime
from trellis_core.weights.load import misfits

MANIFEST = Path(__file__).parents[1] / "golden" / "manifests" / "matting" / "birefnet.json"
TINY = {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "window": 4}


@pytest.fixture(scope="module")
def network() -> BiRefNet:
    model = BiRefNet(**TINY, patch_order="channel")
    fill_by_formula(model, seed=3)
    return model.requires_grad_(False)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader knows a tiny network, too."""
    monkeypatch.setattr(matting, "BACKBONES", {**BACKBONES, 8: TINY})


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Deformable convolution


def sample(x: torch.Tensor, row: float, column: float) -> torch.Tensor:  # [C, h, w] -> [C]
    """Bilinear, from the four pixels around; those outside are zero."""
    total = torch.zeros(len(x), dtype=x.dtype)
    for r in (math.floor(row), math.floor(row) + 1):
        for c in (math.floor(column), math.floor(column) + 1):
            if 0 <= r < x.shape[1] and 0 <= c < x.shape[2]:
                total += x[:, r, c] * (1 - abs(row - r)) * (1 - abs(column - c))
    return total


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3]), st.integers(0, 99))
def test_deformable_convolution_is_a_sum_over_displaced_samples(height, width, kernel, seed):
    x = random(1, 2, height, width, seed=seed).double()
    offsets = 3 * random(1, 2 * kernel**2, height, width, seed=seed + 1).double()
    mask = random(1, kernel**2, height, width, seed=seed + 2).double()
    weight = random(3, 2, kernel, kernel, seed=seed + 3).double()
    want = torch.zeros(3, height, width, dtype=torch.float64)
    for r in range(height):
        for c in range(width):
            for t in range(kernel**2):
                i, j = t // kernel - kernel // 2, t % kernel - kernel // 2
                down, right = offsets[0, 2 * t, r, c].item(), offsets[0, 2 * t + 1, r, c].item()
                value = sample(x[0], r + i + down, c + j + right) * mask[0, t, r, c]
                want[:, r, c] += weight[:, :, t // kernel, t % kernel] @ value
    torch.testing.assert_close(deformable_conv2d(x, offsets, mask, weight)[0], want, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_without_displacement_it_is_the_ordinary_convolution(kernel):
    x, weight = random(2, 3, 6, 5), random(4, 3, kernel, kernel)
    still, one = torch.zeros(2, 2 * kernel**2, 6, 5), torch.ones(2, kernel**2, 6, 5)
    torch.testing.assert_close(
        deformable_conv2d(x, still, one, weight), F.conv2d(x, weight, padding=kernel // 2), atol=1e-4, rtol=0
    )


# Swin transformer


def test_pixels_of_opposite_edges_are_in_different_regions():
    """Each window of the shifted map holds pieces of the picture; a pixel sees its own piece only."""
    height, width, window, shift = 8, 12, 4, 2
    place = torch.arange(height * width).view(height, width)
    rolled = place.roll((-shift, -shift), (0, 1))
    windows = rolled.view(2, window, 3, window).transpose(1, 2).reshape(-1, window * window)
    for regions, places in zip(shifted_regions(height, width, window, shift), windows, strict=True):
        for region in regions.unique():
            rows, columns = places[regions == region] // width, places[regions == region] % width
            assert rows.max() - rows.min() < window and columns.max() - columns.min() < window
            assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)


@pytest.mark.parametrize(("height", "width", "shift"), [(8, 8, 0), (8, 8, 2), (6, 5, 2), (3, 2, 2)])
def test_attention_is_within_windows_and_pads_are_seen(height, width, shift):
    """Against an explicit computation for every pixel, in float64."""
    torch.manual_seed(0)
    channels, heads, window = 6, 2, 4
    block = Block(channels, heads, window, shift, 2.0).double()
    torch.nn.init.normal_(block.attn.relative_position_bias_table)
    y = random(1, height, width, channels).double()
    padded = F.pad(y, (0, 0, 0, -width % window, 0, -height % window))[0]
    rows, columns = padded.shape[:2]

    def piece(r: int, c: int) -> tuple[int, ...]:
        """Window after the shift, and on which side of the picture's edge."""
        r, c = (r - shift) % rows, (c - shift) % columns
        return r // window, c // window, int(r >= rows - shift), int(c >= columns - shift)

    got = block.attend(y)[0]
    table = block.attn.relative_position_bias_table
    for r in range(height):
        for c in range(width):
            q = block.attn.qkv(padded[r, c])[:channels].view(heads, -1)
            scores, values = [], []
            for r2 in range(rows):
                for c2 in range(columns):
                    if piece(r, c) != piece(r2, c2):
                        continue
                    key, value = block.attn.qkv(padded[r2, c2])[channels:].view(2, heads, -1)
                    bias = table[(r - r2 + window - 1) * (2 * window - 1) + c - c2 + window - 1]
                    scores.append((q * key).sum(-1) / math.sqrt(channels // heads) + bias)
                    values.append(value)
            weights = torch.stack(scores).softmax(0)
            want = block.attn.proj((weights[:, :, None] * torch.stack(values)).sum(0).flatten())
            torch.testing.assert_close(got[r, c], want)


def test_windows_may_be_worked_on_one_at_a_time(monkeypatch):
    block, x = Block(8, 2, 4, 2, 4.0).eval(), random(2, 9, 6, 8)
    want = block(x)
    monkeypatch.setattr("trellis_core.models.swin.SCORES", 1)
    torch.testing.assert_close(block(x), want)


def test_merging_takes_even_rows_first_then_odd_ones():
    merge = PatchMerging(1)
    merge.norm = torch.nn.Identity()
    merge.reduction = torch.nn.Identity()
    x = torch.arange(4.0).view(1, 2, 2, 1)  # 0 1 / 2 3
    assert merge(x).flatten().tolist() == [0, 2, 1, 3]
    assert merge(torch.ones(1, 3, 5, 1)).shape == (1, 2, 3, 4)


def test_the_table_of_positions_is_symmetric_about_its_middle():
    table = relative_positions(4)
    assert table.min() == 0 and table.max() == 7 * 7 - 1
    assert torch.equal(table + table.T, torch.full((16, 16), 48))


# Decoder


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.data())
def test_patches_are_contiguous_blocks_in_the_order_asked_for(grid, height, width, data):
    picture = torch.arange(3 * grid * height * grid * width).view(1, 3, grid * height, grid * width)
    c, gy, gx = (data.draw(st.integers(0, top - 1)) for top in (3, grid, grid))
    block = picture[0, c, gy * height : (gy + 1) * height, gx * width : (gx + 1) * width]
    place = {"column": (gx * grid + gy) * 3 + c, "channel": (c * grid + gy) * grid + gx}
    for order in PATCH_ORDERS:
        assert torch.equal(picture_patches(picture, grid, order)[0, place[order]], block)


def test_the_last_convolution_may_be_taken_apart(network):
    decoder, y, picture = network.decoder, random(1, 8, 16, 8), random(1, 3, 64, 32)
    whole = torch.cat([enlarge(y, (64, 32)), decoder.ipt_blk1(picture)], dim=1)
    torch.testing.assert_close(decoder.logits(y, picture), decoder.conv_out1[0](whole), atol=1e-4, rtol=1e-4)


def test_the_order_of_patches_changes_the_result(network):
    picture = random(1, 3, 64, 64)
    other = BiRefNet(**TINY, patch_order="column").eval()
    other.load_state_dict(network.state_dict())
    difference = (other(picture) - network(picture)).norm() / network(picture).norm()
    assert difference > 0.1


def test_an_unknown_order_and_odd_sizes_are_refused(network):
    with pytest.raises(ModelError, match="patch order `spiral`"):
        BiRefNet(**TINY, patch_order="spiral")
    with pytest.raises(InputError, match="multiples of 32"):
        network(torch.zeros(1, 3, 64, 40))


# Published tensors and files


def test_the_published_tensors_are_those_of_the_network():
    manifest = json.loads(MANIFEST.read_text())
    with torch.device("meta"):
        model = BiRefNet(**BACKBONES[192], patch_order="column")
    assert misfits(model, {key: tuple(facts["shape"]) for key, facts in manifest["tensors"].items()}) == []
    assert sum(p.numel() for p in model.parameters()) == manifest["num_parameters"]
    integers = {key for key, tensor in model.state_dict().items() if not tensor.is_floating_point()}
    assert integers == {key for key, facts in manifest["tensors"].items() if facts["dtype"] == "int64"}


def test_the_small_variant_has_the_published_size():
    with torch.device("meta"):
        model = BiRefNet(**BACKBONES[96], patch_order="column")
    assert len(model.state_dict()) == 586
    assert sum(p.numel() for p in model.parameters()) == 44_313_720


@pytest.mark.parametrize("wrapping", ["", "module.", "_orig_mod.module."])
def test_a_half_precision_file_is_read_whatever_wrapped_it(tmp_path, tiny, network, wrapping):
    half = {k: t.half() if t.is_floating_point() else t for k, t in network.state_dict().items()}
    save_file({wrapping + k: t for k, t in half.items()}, tmp_path / WEIGHTS)
    loaded = load_matting(tmp_path / WEIGHTS, patch_order="column")
    assert not loaded.training and loaded.decoder.patch_order == "column"
    for key, tensor in loaded.state_dict().items():
        assert tensor.dtype in (torch.float32, torch.int64)
        assert torch.equal(tensor, half[key].to(tensor.dtype))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("decoder.ipt_blk3.conv1.bias"), "missing `decoder.ipt_blk3.conv1.bias`"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected `extra`"),
        (lambda s: s["bb.layers.1.blocks.0.attn.relative_position_index"].add_(1), "table of a window of 4"),
        (lambda s: s.pop("bb.patch_embed.proj.weight"), "no BiRefNet"),
    ],
)
def test_files_that_do_not_fit_are_refused_by_key(tmp_path, tiny, network, change, said):
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    change(state)
    save_file(state, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match=said):
        load_matting(tmp_path / WEIGHTS, patch_order="channel")


def test_a_cut_off_file_is_refused(tmp_path):
    (tmp_path / WEIGHTS).write_bytes(b"\x10")
    with pytest.raises(ModelError, match="damaged"):
        load_matting(tmp_path / WEIGHTS, patch_order="channel")
    with pytest.raises(ModelError, match="do not exist"):
        load_matting(tmp_path / "none.safetensors", patch_order="channel")


# Pictures and masks


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
@pytest.mark.parametrize("size", [(50, 30), (31, 90)])
def test_masks_have_the_size_of_the_picture(network, mode, size):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8))
    mask = find_object(network, picture.convert(mode), side=64)
    assert mask.mode == "L" and mask.size == size


def test_transparency_is_not_looked_at():
    picture = Image.new("RGBA", (9, 9), (200, 100, 50, 0))
    assert torch.equal(prepare_picture(picture, 32), prepare_picture(picture.convert("RGB"), 32))


def test_probabilities_are_truncated_to_8_bits():
    logits = torch.tensor([-50.0, 0.0, 50.0]).view(1, 1, 1, 3)
    assert np.asarray(alpha_of(logits, (3, 1))).tolist() == [[0, 127, 255]]


@pytest.mark.parametrize(("side", "said"), [(0, "no object"), (5, "no object"), (100, "no background")])
def test_a_mask_of_nothing_or_everything_is_refused(side, said):
    mask = Image.new("L", (100, 100))
    mask.paste(255, (0, 0, side, side))
    with pytest.raises(InputError, match=said):
        require_object(mask)
    mask.paste(255, (0, 0, 50, 50))
    if side < 100:
        assert require_object(mask) is mask


# Who removes the background


def whole(image: Image.Image) -> Image.Image:
    return Image.new("L", image.size, 255)


def networks(here: bool) -> list[Network]:
    remover = whole if here else None
    return [Network(name="best", remover=remover), Network(name="licensed", remover=whole, automatic=False)]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Say which packages are there, and rembg's network with it."""

    def install(*packages: str) -> None:
        monkeypatch.setattr(background_module, "find_spec", lambda name: name if name in packages else None)
        monkeypatch.setattr(background_module, "rembg_weights", lambda: tmp_path / "u2net.onnx")

    (tmp_path / "u2net.onnx").touch()
    return install


@pytest.mark.parametrize(
    ("here", "packages", "said"),
    [
        (True, ("rembg", "cv2"), "by `best`"),
        (False, ("rembg", "cv2"), "by `rembg`"),
        (False, ("cv2",), "GrabCut"),
        (False, (), "threshold"),
    ],
)
def test_auto_takes_the_best_that_is_here_and_says_so(installed, here, packages, said):
    installed(*packages)
    remover, notice = choose_background_remover("auto", networks(here))
    assert remover is not None and said in notice
    assert ("trellis models pull best" in notice) == (said in ("GrabCut", "threshold"))


def test_auto_does_not_make_rembg_download_its_network(installed, tmp_path):
    installed("rembg", "cv2")
    (tmp_path / "u2net.onnx").unlink()
    assert "GrabCut" in choose_background_remover("auto")[1]


def test_a_network_is_taken_by_name_even_if_auto_would_not():
    remover, notice = choose_background_remover("licensed", networks(False))
    assert remover is whole and "`licensed`" in notice


def test_what_is_asked_for_and_missing_is_an_error(installed):
    installed()
    with pytest.raises(ModelError) as caught:
        choose_background_remover("best", networks(False))
    assert "trellis models pull best" in caught.value.hint
    for name in ("rembg", "grabcut"):
        with pytest.raises(BackendUnavailable, match="not installed"):
            choose_background_remover(name, networks(True))
    with pytest.raises(UsageError) as unknown:
        choose_background_remover("magic", networks(True))
    assert "licensed" in unknown.value.hint


def test_the_command_line_offers_every_method_and_network():
    assert {choice.value for choice in Background} == {*METHODS, *RELEASES}
    assert all(release.patch_order in PATCH_ORDERS for release in RELEASES.values())
    assert all(release.side % matting.STRIDE == 0 for release in RELEASES.values())


def test_weights_in_the_cache_are_found_and_read_at_the_first_picture(tmp_path, tiny, network, monkeypatch):
    folder = tmp_path / "models--ZhengPeng7--BiRefNet"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123abcd")
    (folder / "snapshots" / "0123abcd").mkdir(parents=True)
    path = folder / "snapshots" / "0123abcd" / WEIGHTS
    small = {"birefnet": replace(BIREFNET, side=64), "birefnet-lite": RELEASES["birefnet-lite"]}
    monkeypatch.setattr(matting, "RELEASES", small)
    state = network.state_dict() | {"decoder.conv_out1.0.bias": torch.tensor([1e9])}  # all is object
    path.write_bytes(b"not yet")
    remover, notice = background_remover("auto", Runtime(), cache_folder=tmp_path)
    assert remover is not None and "`birefnet`" in notice
    save_file(state, path)
    with pytest.raises(InputError, match="no background"):
        remover(Image.new("RGB", (40, 30)))
    path.unlink()  # it was read once
    with pytest.raises(InputError, match="no background"):
        remover(Image.new("RGB", (40, 30)))
    with pytest.raises(ModelError, match="`birefnet-lite` is not on this machine"):
        background_remover("birefnet-lite", Runtime(), cache_folder=tmp_path)


def test_the_table_of_releases_needs_no_torch():
    source = Path(matting_release.__file__).read_text()
    assert "import torch" not in source


# The formula for test weights


def test_formula_weights_are_the_agreed_ones():
    norm = formula_tensor("bb.norm0.weight", (192,), 0)[:3]
    torch.testing.assert_close(norm, torch.tensor([1.0871865, 1.0533319, 0.8978719]))
    last = formula_tensor("decoder.conv_out1.0.weight", (1, 240, 1, 1), 16).flatten()[:3]
    torch.testing.assert_close(last, torch.tensor([0.1666235, 0.1481578, 0.0692320]))
