"""Neighbours are wound alike, with few contradictions where that cannot be, and closed surfaces outward.

Properties: the lowest face of an orientable component stays; a Möbius strip keeps one short seam, whatever
the order and the winding of its faces; every mix of flipped faces of a closed surface comes out the same.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.solids import cube, sphere, together
from trellis_core.geometry.connectivity import edges_of, partner_sides, side_ends
from trellis_core.geometry.orientation import Surroundings, orient_outward
from trellis_core.geometry.types import Mesh
from trellis_core.geometry.winding import agree, consistent_winding, flip_faces, unify_orientations

BALL = sphere(0.4, rings=8)
TWO = together(sphere(0.2, rings=6), Mesh(0.2 * cube().vertices + 0.35, cube().faces))
EMPTY_AROUND = Surroundings(torch.zeros(10, 10, 10, dtype=torch.bool))  # no vote: volumes decide


def contradictions(faces: torch.Tensor) -> int:
    partner = partner_sides(edges_of(faces)).reshape(-1)
    start, _ = side_ends(faces)
    side = torch.nonzero(partner >= 0).reshape(-1)
    return int((start[side] == start[partner[side]]).sum()) // 2


def rolled(faces: torch.Tensor) -> torch.Tensor:
    """The same corners in the same direction, the lowest one first."""
    first = faces.argmin(1, keepdim=True)
    return faces.gather(1, (torch.arange(3) + first) % 3)


def strip(length: int, width: int, twisted: bool) -> torch.Tensor:
    """Faces of a closed strip of squares; a twisted one is a Möbius strip."""

    def corner(i: int, j: int) -> int:
        return i * (width + 1) + j if i < length else width - j if twisted else j

    faces = []
    for i in range(length):
        for j in range(width):
            a, b, c, d = corner(i, j), corner(i + 1, j), corner(i + 1, j + 1), corner(i, j + 1)
            faces += [[a, b, c], [a, c, d]]
    return torch.tensor(faces, dtype=torch.int32)


@given(st.sampled_from([BALL, TWO]), st.integers(0, 2**32 - 1))
def test_any_mix_of_flipped_faces_of_a_closed_surface_comes_out_outward(mesh, seed):
    generator = torch.Generator().manual_seed(seed)
    flip = torch.rand(len(mesh.faces), generator=generator) < torch.rand(1, generator=generator)
    mixed = Mesh(mesh.vertices, flip_faces(mesh.faces, flip))
    outward, unclear = orient_outward(mixed, EMPTY_AROUND)
    assert torch.equal(outward.faces.sort(1).values, mesh.faces.sort(1).values)
    assert torch.equal(unify_orientations(outward.faces), outward.faces)
    assert contradictions(outward.faces) == 0 and unclear == 0
    assert torch.equal(rolled(outward.faces), rolled(mesh.faces))


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_an_orientable_strip_is_settled_and_its_lowest_face_stays(seed, shuffled):
    generator = torch.Generator().manual_seed(seed)
    faces = strip(9, 3, twisted=False)
    if shuffled:
        faces = faces[torch.randperm(len(faces), generator=generator)]
    mixed = flip_faces(faces, torch.rand(len(faces), generator=generator) < 0.5)
    unified = unify_orientations(mixed)
    assert contradictions(unified) == 0
    assert torch.equal(unified[0], mixed[0])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("length", "width"), [(24, 1), (60, 6), (100, 20)])
def test_a_moebius_strip_keeps_one_short_seam(length, width, seed):
    generator = torch.Generator().manual_seed(seed)
    faces = strip(length, width, twisted=True)
    faces = faces[torch.randperm(len(faces), generator=generator)]
    mixed = flip_faces(faces, torch.rand(len(faces), generator=generator) < 0.5)
    seam = contradictions(unify_orientations(mixed))
    assert 1 <= seam <= 1.25 * width + 1


@given(
    st.integers(1, 7), st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.booleans()), max_size=15)
)
def test_signs_suit_all_pairs_where_that_is_possible(count, rows):
    pairs = torch.tensor([(a % count, b % count) for a, b, _ in rows], dtype=torch.int64).reshape(-1, 2)
    opposed = torch.tensor([turned for *_, turned in rows], dtype=torch.bool)

    def wrong(sign: torch.Tensor) -> int:
        return int(((sign[pairs[:, 0]] ^ sign[pairs[:, 1]]) != opposed).sum())

    sign, component, number = agree(pairs, opposed, count)
    choices = (torch.tensor([bool(bits >> i & 1) for i in range(count)]) for bits in range(2**count))
    assert (wrong(sign) == 0) == (min(map(wrong, choices)) == 0)
    lowest = torch.full((number,), count).scatter_reduce(0, component, torch.arange(count), "amin")
    assert not bool(sign[lowest].any())


def test_patches_are_the_components_and_are_taken_apart_by_contradictions():
    faces = torch.cat([TWO.faces, strip(24, 1, twisted=True) + len(TWO.vertices)])
    _, patch, count = consistent_winding(faces, partner_sides(edges_of(faces)))
    assert count == 3
    assert patch.unique_consecutive().sort().values.tolist() == [0, 1, 2]


def test_every_tensor_names_its_device():
    faces = flip_faces(strip(24, 3, twisted=True), torch.arange(144) % 3 == 0)
    with torch.device("meta"):
        unified = unify_orientations(faces)
        outward, _ = orient_outward(BALL, EMPTY_AROUND)
    assert unified.device.type == outward.faces.device.type == "cpu"
