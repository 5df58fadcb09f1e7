"""Sampling around something known: RePaint for flows.

Properties: without anything known it is the plain sampler to the last bit; what is known follows its straight
path; repeating a step keeps the noise of every time; cells of an edit are merged, taken over and counted.
x_t = (1 - t) x_0 + sigma(t) noise, t = 1 is noise. Not tested here: whole edits (test_edit.py).
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trellis_core.errors import InputError, UsageError
from trellis_core.sampling.edit import Edit, Extent, buried, layers_of, overlay, rows_in, touched
from trellis_core.sampling.euler import sample_euler
from trellis_core.sampling.repaint import Known, sample_repaint
from trellis_core.sampling.schedule import timesteps
from trellis_core.sparse.tensor import SparseTensor

TIMES = timesteps(7, 3.0)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def half_known(repeats: int = 1, size: int = 64) -> Known:
    keep = torch.zeros(1, 1, size, dtype=torch.bool)
    keep[..., : size // 2] = True
    generator = torch.Generator().manual_seed(2)
    return Known(draw(3, 4, size), keep, lambda *shape: torch.randn(*shape, generator=generator), repeats)


def bent(x: Tensor, t: float) -> Tensor:
    return torch.sin(3 * x) + t


def test_without_anything_known_it_is_the_plain_sampler_to_the_last_bit():
    noise = draw(3, 4, 64)
    nothing = Known(torch.zeros(3, 4, 64), torch.zeros(1, 1, 1, dtype=torch.bool), draw)
    assert torch.equal(sample_repaint(bent, noise, TIMES, known=nothing), sample_euler(bent, noise, TIMES))
    assert nothing.drift(noise) == 0


def test_what_is_known_follows_its_straight_path():
    known, noise, states = half_known(), draw(3, 4, 64), []
    sample_repaint(bent, noise, TIMES, lambda _, x: states.append(x), known=known)
    for (_, t), x in zip(pairwise(TIMES[:-1]), states, strict=False):
        expected = (1 - t) * known.values + (1e-5 + (1 - 1e-5) * t) * noise
        assert torch.equal(x[..., :32], expected[..., :32])


def test_the_result_is_the_models_own_until_what_is_known_is_put_back():
    known, noise = half_known(), draw(3, 4, 64)
    x = sample_repaint(bent, noise, TIMES, known=known)
    assert known.drift(x) > 0.1
    back = known.put_back(x)
    assert torch.equal(back[..., :32], known.values[..., :32])
    assert torch.equal(back[..., 32:], x[..., 32:])
    assert known.drift(back) == 0


def test_a_perfect_model_agrees_with_what_is_known():
    """The velocity that points from every state to the known data, everywhere."""
    known = half_known(repeats=3)

    def perfect(x: Tensor, t: float) -> Tensor:
        return (x - known.values) / t

    x = sample_repaint(perfect, draw(3, 4, 64), TIMES, known=known)
    assert known.drift(x) < 1e-4
    assert (x - known.values).abs().max() < 1e-4


@pytest.mark.parametrize("repeats", [1, 2, 4])
def test_every_step_but_the_first_is_repeated(repeats):
    seen = []

    def counted(x: Tensor, t: float) -> Tensor:
        seen.append(t)
        return bent(x, t)

    steps = []
    sample_repaint(counted, draw(1, 1, 8), TIMES, lambda n, _: steps.append(n), known=half_known(repeats, 8))
    assert seen == [TIMES[0]] + [t for t in TIMES[1:-1] for _ in range(repeats)]
    assert steps == list(range(7))


def test_going_back_keeps_the_noise_of_every_time():
    """Data that is zero everywhere: a state at t is noise of deviation t, before and after going back."""
    size, deviations = 1 << 16, []
    base = half_known(4, size)
    known = Known(torch.zeros(1, 1, size), base.keep, base.draw, repeats=4)

    def towards_zero(x: Tensor, t: float) -> Tensor:
        deviations.extend(
            (t, float(x[..., part].std())) for part in (slice(size // 2), slice(size // 2, None))
        )
        return x / t

    sample_repaint(towards_zero, torch.randn(1, 1, size), TIMES, known=known)
    assert len(deviations) == 2 * (1 + 4 * 6)
    for t, deviation in deviations:
        assert deviation == pytest.approx(t, rel=0.03)


@pytest.mark.parametrize("freedom", [0.0, 0.3, 1.0])
def test_for_a_share_of_the_way_the_model_knows_nothing(freedom):
    base, noise, states = half_known(), draw(3, 4, 64), []
    known = Known(base.values, base.keep, base.draw, freedom=freedom)
    sample_repaint(bent, noise, TIMES, lambda _, x: states.append(x), known=known)
    free = []
    sample_euler(bent, noise, TIMES, lambda _, x: free.append(x))
    for t, x, alone in zip(TIMES[1:-1], states, free, strict=False):
        assert torch.equal(x, alone) == (t > 1 - freedom)
    assert known.put_back(states[-1])[..., :32].equal(known.values[..., :32])


@pytest.mark.parametrize("freedom", [-0.1, 1.5])
def test_freedom_is_a_share(freedom):
    with pytest.raises(UsageError, match="freedom"):
        Known(draw(1), torch.ones(1, dtype=torch.bool), draw, freedom=freedom)


def test_doing_nothing_is_no_step():
    with pytest.raises(UsageError, match="at least once"):
        half_known(0)


cells = st.lists(st.tuples(*[st.integers(0, n) for n in (1, 5, 5, 5)]), max_size=60, unique=True).map(
    lambda rows: torch.tensor(sorted(rows), dtype=torch.int32).reshape(-1, 4)
)


@settings(max_examples=60, deadline=None)
@given(cells, cells, st.integers(0, 2**16))
def test_merged_cells_are_old_ones_outside_and_new_ones_inside(old, new, seed):
    inside = torch.rand(6, 6, 6, generator=torch.Generator().manual_seed(seed)) < 0.4
    edit = Edit(inside, draw)
    expected = {(*c,) for c in old.tolist() if not inside[tuple(c[1:])]}
    expected |= {(*c,) for c in new.tolist() if inside[tuple(c[1:])]}
    if {c[0] for c in expected} != {0, 1}:
        with pytest.raises(InputError, match="nothing is left"):
            edit.merge(old, new, 2)
        return
    merged = edit.merge(old, new, 2)
    assert merged.tolist() == sorted(map(list, expected))
    facts = edit.changes(old, new, merged)
    assert facts["outside_changed"] == 0
    assert facts["outside"] + facts["inside_after"] == len(merged)
    assert facts["outside"] + facts["inside_before"] == len(old)
    assert facts["inside_changed"] + facts["outside_changed_as_sampled"] == len(
        {(*c,) for c in old.tolist()} ^ {(*c,) for c in new.tolist()}
    )

    feats = torch.arange(len(old), dtype=torch.float32)[:, None] + 1
    taken = edit.taken_over(merged, old, feats)
    rows = rows_in(merged, old, 6)
    for cell, row, keep, value in zip(
        merged.tolist(), rows.tolist(), taken.keep[:, 0], taken.latents, strict=True
    ):
        assert keep == (not inside[tuple(cell[1:])])
        assert value == (row + 1 if keep else 0)
    survivors = edit.taken_over(merged, old, feats, survivors=True)
    assert torch.equal(survivors.keep[:, 0], rows >= 0)
    assert taken.counts() == {"kept": int(taken.keep.sum()), "made": int((~taken.keep).sum())}


def test_a_coarse_cell_is_touched_when_any_of_its_cells_is_inside():
    inside = torch.zeros(8, 8, 8, dtype=torch.bool)
    inside[7, 0, 3] = True
    assert touched(inside, 4).nonzero().tolist() == [[0, 0, 3, 0, 1]]
    assert torch.equal(touched(inside, 8)[0, 0], inside)


def test_layers_lie_over_each_other_in_the_order_of_the_edits():
    names = ("coords", "latent")
    masks = [torch.zeros(2, 2, 2, dtype=torch.bool) for _ in range(2)]
    tensors = {"coords": torch.tensor([0]), "latent": torch.tensor([10.0]), "other": torch.tensor([3])}
    for number, mask in enumerate(masks, start=1):
        mask[number - 1] = True
        tensors = {
            "coords": torch.tensor([number]),
            "latent": torch.tensor([10.0 + number]),
            **buried(tensors, names, Extent.whole(mask)),
        }
    layers = layers_of(tensors, names)
    assert [int(layer.tensors["coords"]) for layer in layers] == [0, 1, 2]
    assert [float(layer.tensors["latent"]) for layer in layers] == [10, 11, 12]
    assert layers[0].extent is None
    assert torch.equal(layers[1].extent.inside, masks[0])
    assert torch.equal(layers[2].extent.inside, masks[1])


def test_voxels_of_the_region_come_from_the_layer_above():
    inside = torch.zeros(2, 2, 2, dtype=torch.bool)
    inside[1] = True
    coords = torch.tensor([[0, 0, 0, 0], [0, 3, 1, 1], [1, 1, 2, 2], [1, 2, 0, 0]], dtype=torch.int32)
    below = SparseTensor(torch.full((4, 1), 1.0), coords, 2)
    moved = torch.tensor([[0, 0, 1, 0], [0, 2, 1, 1], [1, 1, 2, 2], [1, 3, 3, 3]], dtype=torch.int32)
    above = SparseTensor(torch.full((4, 1), 2.0), moved, 2)

    def found(extent: Extent) -> dict:
        whole = overlay(below, above, extent, 2)
        return {(*c,): float(f) for c, f in zip(whole.coords.tolist(), whole.feats, strict=True)}

    expected = {(0, 0, 0, 0): 1, (0, 2, 1, 1): 2, (1, 1, 2, 2): 1, (1, 3, 3, 3): 2}
    assert found(Extent.whole(inside)) == expected
    # of the cell (1, 0, 0) only the half with the larger x lies in the region
    half = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    half[:, 1] = True
    cut = Extent(inside, torch.tensor([[1, 0, 0]], dtype=torch.int32), half)
    assert found(cut) == {(0, 0, 0, 0): 1, (1, 1, 2, 2): 1, (1, 2, 0, 0): 1, (1, 3, 3, 3): 2}
