"""The instruments that judge the embedded model (`tests/benchmarks/quality`).

Properties: surface points are even and repeatable; distances are those of known shapes; color names are
those of the palette; judges see geometry only, learn from truth, and survive storage; a batch makes what
single runs make; familiarity tells the usual from the unusual; a gate that is missed says so. Not tested:
how good a model is (`tests/benchmarks/embedded_quality.py` measures it).
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.benchmarks.quality import report
from tests.benchmarks.quality.baselines import TrainingPictures, nearest_by_pixels, same_category
from tests.benchmarks.quality.generate import NOTHING, Result, generate, open_model, picture_tokens
from tests.benchmarks.quality.judges import (
    Judges,
    JudgeTraining,
    LabelledShapes,
    PointCloud,
    accuracy,
    damaged,
    detail_of,
    load_judges,
    occupancy_of,
    read_between,
    train_judges,
)
from tests.benchmarks.quality.measures import (
    Surface,
    color_name,
    compare,
    lab,
    nearest_points,
    overlap,
    spread,
    vertex_surface,
)
from tests.benchmarks.quality.strange import strange_pictures
from tests.benchmarks.quality.table import score, summary, truth_again
from tests.benchmarks.quality.text import judge_prompts, name_color, prompt_tokens, rates, true_cases
from tests.benchmarks.quality.truth import make_truths, on_white
from tests.tiny_model import write_tiny_model
from trellis_core.errors import ModelError
from trellis_core.geometry.types import Mesh, PBRVoxels, VoxelMesh
from trellis_core.models.familiarity import (
    FamiliarityFacts,
    familiarity,
    fit_familiarity,
    mean_token,
)
from trellis_core.training.synthetic.captions import PromptCase
from trellis_core.training.synthetic.objects import HELD_OUT, PALETTE, make_object

SQUARE = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]) - 0.5
HALVES = torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32)
SEED = 2024


def noise(*shape: int, seed: int = SEED) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_points_lie_evenly_on_the_surface():
    small_first = torch.tensor([[0, 1, 2], [0, 2, 3], [0, 1, 3]], dtype=torch.int32)
    spots = spread(SQUARE, small_first, 3000)
    shares = torch.bincount(spots.face, minlength=3) / 3000
    assert torch.allclose(shares, torch.full((3,), 1 / 3), atol=0.01)
    points = spots.mix(SQUARE, small_first)
    assert (points[:, 2] + 0.5).abs().max() < 1e-6 and points.abs().max() < 0.50001
    assert points[spots.face < 2][:, :2].mean(dim=0).abs().max() < 0.03


def test_the_same_mesh_gives_the_same_points():
    first, second = (spread(SQUARE, HALVES, 50) for _ in range(2))
    assert torch.equal(first.face, second.face) and torch.equal(first.barycentric, second.barycentric)


def test_a_mesh_without_faces_has_no_surface():
    with pytest.raises(ValueError, match="without faces"):
        spread(SQUARE, HALVES[:0], 10)


def plane(height: float, red: float = 0.0) -> Surface:
    vertices = SQUARE + torch.tensor([0, 0, height])
    return vertex_surface(vertices, HALVES, torch.tensor([[red, 0, 0]]).expand(4, 3))


def test_parallel_planes_are_as_far_apart_as_they_are():
    scores = compare(plane(0.03), plane(0.0, red=0.6))
    assert scores["F@0.05"] == 1 and scores["F@0.02"] == 0
    assert scores["Chamfer"] == pytest.approx(0.03, abs=1e-6)
    assert scores["color"] == pytest.approx(0.2, abs=1e-6)


def test_a_missing_half_costs_recall_but_no_precision():
    half = vertex_surface(SQUARE, HALVES[:1], torch.zeros(4, 3))
    score_ = compare(half, plane(0.0))["F@0.02"]
    assert 0.63 < score_ < 0.72  # precision 1, recall a little above 1/2: 2 * 1 * 0.5 / 1.5 = 0.67


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 17))
def test_nearest_points_are_those_of_all_pairs(n, m, chunk):
    a, b = noise(n, 3, seed=n), noise(m, 3, seed=100 + m)
    distance, row = nearest_points(a, b, chunk)
    pairs = (a[:, None] - b[None]).norm(dim=2)
    assert torch.allclose(distance, pairs.min(dim=1).values, atol=1e-6)
    assert torch.equal(row, pairs.argmin(dim=1))


def test_overlap_counts_common_cells():
    a = torch.tensor([[0, 0, 0], [1, 2, 3]])
    b = torch.tensor([[1, 2, 3], [4, 4, 4]])
    assert overlap(a, b) == pytest.approx(1 / 3)
    assert overlap(a, a) == 1
    assert overlap(a[:0], b) == 0


def test_lab_has_the_published_values():
    known = {(1.0, 1.0, 1.0): (100, 0, 0), (1.0, 0.0, 0.0): (53.24, 80.09, 67.20), (0.0, 0.0, 0.0): (0, 0, 0)}
    for srgb, wanted in known.items():
        assert torch.allclose(
            lab(torch.tensor([srgb]))[0], torch.tensor(wanted, dtype=torch.float32), atol=0.05
        )


@pytest.mark.parametrize("name", sorted(PALETTE))
def test_every_palette_color_has_its_own_name_even_when_a_little_off(name):
    color = torch.tensor(PALETTE[name])
    assert color_name(color, PALETTE) == name
    assert color_name(color * 0.97 + 0.01, PALETTE) == name


def test_the_color_of_a_part_is_its_median_and_needs_some_voxels():
    red, blue = torch.tensor(PALETTE["red"]), torch.tensor(PALETTE["blue"])
    assert name_color(torch.stack([red] * 20 + [blue] * 9)) == "red"
    assert name_color(torch.stack([red] * 3)) is None


def test_grids_hold_every_point_in_its_own_sample():
    cloud = PointCloud.of(
        [torch.tensor([[-0.49, -0.49, -0.49]]), torch.tensor([[0.49, 0.0, -0.49], [0.49, 0.0, 0.2]])]
    )
    occupied = occupancy_of(cloud).nonzero().tolist()
    assert occupied == [[0, 0, 0, 0, 0], [1, 0, 31, 16, 0], [1, 0, 31, 16, 22]]
    detail = detail_of(cloud)
    assert detail.shape == (2, 32, 32, 32, 32)
    assert detail.abs().sum(dim=1).gt(0).sum(dim=(1, 2, 3)).tolist() == [1, 2]


@given(st.integers(0, 10_000))
def test_reading_between_cells_is_exact_for_linear_fields(seed):
    axis = (torch.arange(8) + 0.5) / 8 - 0.5
    field = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))[None].expand(2, -1, -1, -1, -1)
    points = 0.4 * (2 * torch.rand(30, 3, generator=torch.Generator().manual_seed(seed)) - 1)
    cloud = PointCloud.of([points[:10], points[10:]])
    assert torch.allclose(read_between(field, cloud), points, atol=1e-5)


def test_damage_keeps_points_near_their_place_and_says_which_are_left():
    cloud = PointCloud.of(
        [0.8 * (torch.rand(500, 3, generator=torch.Generator().manual_seed(i)) - 0.5) for i in range(4)]
    )
    hurt, keep = damaged(cloud, torch.Generator().manual_seed(0))
    assert len(hurt.points) == int(keep.sum()) >= 0.4 * len(cloud.points)
    assert torch.equal(hurt.sample, cloud.sample[keep])
    assert (hurt.points - cloud.points[keep]).norm(dim=1).max() < 0.15


def toy_shapes(count: int = 24) -> LabelledShapes:
    """Bars along x and bars along z; each is `low` in its first half and `high` in its second."""
    coords, roles, category = [], [], []
    for number in range(count):
        line = torch.arange(16, 112)
        flat = torch.stack([line, 60 + line % 4, 60 + number % 5 + line % 3], dim=1)
        coords.append(flat if number % 2 else flat.flip(1))
        roles.append((line >= 64).byte())
        category.append(number % 2)
    lengths = torch.tensor([len(c) for c in coords])
    return LabelledShapes(
        coords=torch.cat(coords).byte(),
        position=torch.full((int(lengths.sum()), 3), 128, dtype=torch.uint8),
        roles=torch.cat(roles),
        starts=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        category=torch.tensor(category, dtype=torch.uint8),
        resolution=128,
    )


@pytest.fixture(scope="module")
def toy_judges() -> Judges:
    torch.manual_seed(0)
    settings = JudgeTraining(steps=20, batch_size=4, points=96)
    return train_judges(toy_shapes(), ("pole", "beam"), ("low", "high"), settings)


def test_judges_learn_categories_and_parts_from_truth(toy_judges):
    right = accuracy(toy_judges, toy_shapes(8))
    assert right["category"] == 1 and right["points"] > 0.85


def test_judges_survive_storage(toy_judges, tmp_path):
    toy_judges.save(tmp_path / "judges.safetensors")
    again = load_judges(tmp_path / "judges.safetensors")
    cloud, _ = toy_shapes().cloud(torch.arange(6))
    assert (again.categories, again.roles) == (toy_judges.categories, toy_judges.roles)
    assert again.categories_of(cloud) == toy_judges.categories_of(cloud)
    agreement = again.roles_of(cloud, ["pole", "beam"] * 3) == toy_judges.roles_of(
        cloud, ["pole", "beam"] * 3
    )
    assert agreement.float().mean() > 0.98


def test_a_role_that_a_category_never_has_is_never_given():
    shapes = toy_shapes(4)
    torch.manual_seed(0)
    possible = torch.tensor([[True, False], [False, True]])
    judges = Judges.fresh(("pole", "beam"), ("low", "high"), possible)
    cloud, _ = shapes.cloud(torch.tensor([0, 1]))
    assert torch.equal(judges.roles_of(cloud, ["pole", "beam"]), cloud.sample)


def test_a_limit_thins_an_object_evenly():
    cloud, roles = toy_shapes().cloud(torch.tensor([3, 0]), limit=24)
    assert torch.bincount(cloud.sample).tolist() == [24, 24] and len(roles) == 48
    assert cloud.points[:24, 0].max() - cloud.points[:24, 0].min() > 0.65


@pytest.fixture(scope="module")
def truths():
    return make_truths([make_object(HELD_OUT), make_object(HELD_OUT + 1)], 64, 8, torch.device("cpu"), 64)


def test_the_truth_is_perfect_by_its_own_measure(truths):
    row = score([truth_again(t) for t in truths], truths, None)
    assert row["mean"]["IoU"] == 1 and row["mean"]["F@0.02"] == 1 and row["mean"]["color"] == 0
    assert row["mean"]["category"] is None
    other = score([truth_again(truths[1])], truths[:1], None)
    assert other["mean"]["F@0.02"] < 0.9


def test_true_meshes_are_wound_outwards(truths):
    for truth in truths:
        a, b, c = truth.shape.mesh.vertices.double()[truth.shape.mesh.faces.long()].unbind(1)
        volume = (a * torch.linalg.cross(b, c)).sum() / 6
        assert volume > 0.01


def test_what_truly_can_be_asked_of_objects_names_their_colors(truths):
    chosen, cases = true_cases(truths, 2)
    for truth, case in zip(chosen, cases, strict=True):
        (main, color), (other, contrast) = case.colors
        assert main != other and color != contrast
        assert truth.object.attributes.colors[other] == contrast


def test_failures_count_as_zero_and_are_named():
    objects = [
        {
            "kind": "mug",
            "category": 1.0,
            "IoU": 0.5,
            "F@0.05": 1.0,
            "F@0.02": 0.8,
            "Chamfer": 0.01,
            "color": 0.1,
        },
        {"kind": "mug", "category": 0.0, "IoU": 0.0, "F@0.05": 0.0, "F@0.02": 0.0, "failed": True},
    ]
    row = summary(objects)
    assert row["failed"] == 1
    assert row["mean"]["F@0.05"] == 0.5 and row["mean"]["Chamfer"] == 0.01
    assert row["by category"]["mug"]["category"] == 0.5


def test_retrieval_finds_the_picture_it_has_seen(truths):
    pictures = [t.picture for t in truths]
    shown = torch.stack(
        [torch.tensor(list(on_white(p).tobytes()), dtype=torch.uint8).view(64, 64, 3) for p in pictures]
    )
    training = TrainingPictures.of(
        torch.tensor([7, 8]), torch.tensor([0, 1], dtype=torch.uint8), shown[:, None]
    )
    asked = [Image.fromarray(picture.numpy()) for picture in shown.flip(0)]
    assert nearest_by_pixels(asked, training) == [8, 7]
    assert same_category([1, 0], training) == [8, 7]


def test_prompts_are_judged_by_the_colors_of_their_parts(toy_judges):
    line = torch.arange(16, 112)
    points = torch.stack([line, line * 0 + 62, line * 0 + 62], dim=1)
    halves = torch.tensor([PALETTE["red"], PALETTE["blue"]])[(line >= 64).long()]
    attrs = torch.cat([halves, torch.ones(len(line), 3)], dim=1)
    beam = VoxelMesh(Mesh(points / 128 - 0.5, HALVES), PBRVoxels(points.int(), attrs, 128))
    cases = [
        PromptCase("a red beam with a blue end", "beam", (("low", "red"), ("high", "blue"))),
        PromptCase("a blue beam with a red end", "beam", (("low", "blue"), ("high", "red"))),
        PromptCase("a red pole", "pole", (("low", "red"),)),
    ]
    result = Result(beam, points[:1])
    entries = judge_prompts([result, result, NOTHING], cases, toy_judges)
    assert entries[0]["found"] == ["red", "blue"]
    assert [e["colors right"] for e in entries] == [True, False, False]
    assert [e["category"] for e in entries] == ["beam", "beam", "nothing"]
    assert rates(entries) == {"n": 3, "category": 0.6667, "colors": 0.3333, "both": 0.3333}


def test_prompts_become_tokens_as_in_the_tool(tmp_path):
    model = open_model(str(write_tiny_model(tmp_path / "model")), "cpu")
    tokens = prompt_tokens(model, ["a red chair", "a blue chair", "a red chair"])
    assert torch.equal(tokens[0], tokens[2]) and not torch.equal(tokens[0], tokens[1])
    mute = open_model(str(write_tiny_model(tmp_path / "mute", text=False)), "cpu")
    with pytest.raises(ModelError, match="no text encoder"):
        prompt_tokens(mute, ["a red chair"])


def test_a_batch_makes_what_single_runs_make(truths):
    model = open_model("embedded", "cpu")
    steps = {"structure": {"steps": 2}, "shape": {"steps": 2}, "texture": {"steps": 2}}
    settings = model.pipeline.settings
    model.pipeline.settings = replace(
        settings,
        structure_sampler=replace(settings.structure_sampler, steps=2),
        shape_sampler=replace(settings.shape_sampler, steps=2),
        texture_sampler=replace(settings.texture_sampler, steps=2),
    )
    pictures = [t.picture for t in truths]
    results = generate(model, picture_tokens(model, pictures), [3, 4])
    for seed, picture, result in zip((3, 4), pictures, results, strict=True):
        bundle = model.pipeline.sample(picture, seed=seed, **steps)
        single = model.pipeline.decode(bundle)[0]
        assert torch.equal(result.cells, bundle.tensors["structure_coords"][:, 1:])
        assert torch.equal(result.shape.voxels.coords, single.voxels.coords)
        assert torch.allclose(result.shape.voxels.attrs, single.voxels.attrs, atol=1e-3)


def test_familiarity_tells_the_usual_from_the_unusual():
    usual = noise(400, 5, 24) * torch.linspace(0.1, 2, 24)
    facts = fit_familiarity(mean_token(usual[:300]), mean_token(usual[300:]), count=8)
    known = [familiarity(tokens, facts) for tokens in usual[300:]]
    assert sum(k >= 1 for k in known) >= 98
    assert familiarity(usual[0] + 3, facts) < 0.5
    assert familiarity(torch.zeros(5, 24), facts) > 1


def test_familiarity_survives_json():
    usual = noise(60, 5, 12)
    facts = fit_familiarity(mean_token(usual[:40]), mean_token(usual[40:]), count=6)
    again = FamiliarityFacts.from_json(json.loads(json.dumps(facts.to_json())))
    for tokens in usual[:5]:
        assert familiarity(tokens, again) == pytest.approx(familiarity(tokens, facts), rel=1e-2)


def test_familiarity_is_asked_of_one_picture():
    facts = fit_familiarity(noise(20, 4), noise(5, 4), count=2)
    with pytest.raises(ValueError, match="one picture"):
        familiarity(noise(2, 3, 4), facts)


def test_strange_pictures_are_always_the_same():
    first, second = strange_pictures(), strange_pictures()
    assert len(first) >= 8
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_a_gate_says_met_missed_or_not_measured():
    measured = {
        "judges": {"category": 0.995},
        "picture": {"rows": {"model": {"mean": {"category": 0.97, "IoU": 0.6, "F@0.05": 0.89, "color": 0.1}},
                             "retrieval": {"mean": {"IoU": 0.6}}}},
    }  # fmt: skip
    met = {g["gate"]: g["met"] for g in report.check_gates(measured)}
    assert met["judge of categories on held-out truth"] is True
    assert met["structure IoU above pixel retrieval"] is False  # as good is not above
    assert met["F-score at 0.05"] is False
    assert met["color error"] is True
    assert met["category from prompts"] is None
    table = report.gate_table(report.check_gates(measured))
    assert "| F-score at 0.05 | ≥ 0.900 | 0.890 | **not met** |" in table
    assert "not measured" in table
