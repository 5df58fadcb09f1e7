"""Edits and variants of whole objects, on tiny models of both versions in the released layout.

Properties: outside of a region structure, latents and decoded voxels stay what they are, bit for bit; inside
they change; edits of edits keep what earlier ones left; a bundle tells what was done to it and survives a
file; what cannot be edited is said in words. Weights are random: tests/benchmarks/edit.py shows real edits.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image, ImageDraw

import trellis
import trellis2
from tests.tiny_model import write_tiny_model
from tests.tiny_trellis1 import GRID, write_network, write_tiny_trellis1
from trellis.pipeline import LATENT
from trellis_core.errors import Cancelled, InputError, ModelError, UsageError
from trellis_core.geometry.region import Box, Sphere, cells_inside
from trellis_core.geometry.types import Mesh
from trellis_core.runtime import Runtime
from trellis_core.weights.bundle import Bundle

FEW = {"steps": 2}
FAST = {"structure": FEW, "shape": FEW, "texture": FEW}
UPPER = Box((-0.5, -0.5, 0.0), (0.5, 0.5, 0.5))
ENCODER = {
    "name": "SparseStructureEncoder",
    "args": {
        "in_channels": 1,
        "latent_channels": 4,
        "num_res_blocks": 1,
        "num_res_blocks_middle": 1,
        "channels": [6, 8],
    },
}


def picture(color=(200, 40, 30)) -> Image.Image:
    image = Image.new("RGBA", (90, 80))
    ImageDraw.Draw(image).ellipse((20, 15, 70, 65), fill=(*color, 255))
    return image


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return trellis2.load(write_tiny_model(tmp_path_factory.mktemp("v2") / "model"), Runtime())


@pytest.fixture(scope="module")
def bundle(pipeline):
    return pipeline.sample(picture(), seed=1, **FAST)


@pytest.fixture(scope="module")
def edited(pipeline, bundle):
    return pipeline.edit(bundle, [UPPER], picture((30, 60, 220)), seed=2, **FAST)


@pytest.fixture(scope="module")
def folder1(tmp_path_factory):
    return write_tiny_trellis1(tmp_path_factory.mktemp("v1") / "model")


@pytest.fixture(scope="module")
def pipeline1(folder1):
    return trellis.load(folder1, Runtime())


@pytest.fixture(scope="module")
def bundle1(pipeline1):
    return pipeline1.sample(picture(), seed=7)


def rows(bundle: Bundle, name: str, coords: str = "coords") -> dict:
    return {(*c,): v for c, v in zip(bundle.tensors[coords].tolist(), bundle.tensors[name], strict=True)}


def in_upper_half(cell: tuple, resolution: int) -> bool:
    return cell[3] >= resolution // 2


def token_grid(bundle: Bundle) -> int:
    return bundle.info["resolution"] // 16


def test_outside_of_a_region_structure_and_latents_stay_bit_for_bit(bundle, edited):
    grid = token_grid(bundle)
    for name in ("shape_latent", "texture_latent"):
        old, new = rows(bundle, name), rows(edited, name)
        kept = [cell for cell in old if not in_upper_half(cell, grid)]
        assert kept
        assert kept == [cell for cell in new if not in_upper_half(cell, grid)]
        assert all(torch.equal(old[cell], new[cell]) for cell in kept)
    latents = [b.tensors["structure_latent"] for b in (bundle, edited)]
    half = latents[0].shape[-1] // 2
    assert torch.equal(latents[0][..., :half], latents[1][..., :half])


def test_inside_of_a_region_everything_is_made_anew(bundle, edited):
    grid = token_grid(bundle)
    old, new = rows(bundle, "shape_latent"), rows(edited, "shape_latent")
    both = [cell for cell in old.keys() & new.keys() if in_upper_half(cell, grid)]
    assert all(not torch.equal(old[cell], new[cell]) for cell in both)
    facts = edited.info["edit"]
    assert facts["voxels"]["inside_changed"] > 0
    assert facts["tokens"]["made"] == sum(in_upper_half(cell, grid) for cell in new)


def test_an_edit_is_told_in_the_bundle(bundle, edited):
    facts = json.loads(json.dumps(edited.info["edit"]))
    assert facts["regions"] == [{"kind": "box", "low": [-0.5, -0.5, 0], "high": [0.5, 0.5, 0.5]}]
    assert facts["condition"] == {"kind": "picture"}
    assert (facts["seed"], facts["preserve_texture"]) == (2, False)
    voxels = facts["voxels"]
    assert voxels["outside_changed"] == 0
    assert voxels["outside_changed_as_sampled"] >= 0
    coords = edited.tensors["structure_coords"]
    assert voxels["outside"] + voxels["inside_after"] == len(coords)
    assert set(facts["drift"]) == {"structure", "shape", "texture"}
    assert all(drift > 0 for drift in facts["drift"].values())  # random weights agree with nothing
    assert edited.info["seed"] == bundle.info["seed"]
    assert torch.equal(edited.thumbnail, bundle.thumbnail)


def decoded_voxels(pipeline, bundle: Bundle) -> dict:
    """Raw numbers of every voxel: material, and the dual vertex that the mesh takes from it."""
    voxels = pipeline.decode(bundle)[0].voxels
    return {(*c,): a for c, a in zip(voxels.coords.tolist(), voxels.attrs, strict=True)}


def test_outside_of_a_region_decoded_voxels_stay_bit_for_bit(pipeline, bundle, edited, tmp_path):
    notes = []
    pipeline.decode(edited, on_progress=lambda step: notes.append(step.note))
    assert any("voxels outside of the region; decoding would have changed" in note for note in notes)
    middle = bundle.info["resolution"] // 2
    old = decoded_voxels(pipeline, bundle)
    new = decoded_voxels(pipeline, Bundle.load(edited.save(tmp_path / "edited.trellis")))
    below = {cell for cell in old if cell[2] < middle}
    assert below
    assert below == {cell for cell in new if cell[2] < middle}
    assert all(torch.equal(old[cell], new[cell]) for cell in below)
    assert any(cell not in old or not torch.equal(old[cell], new[cell]) for cell in new.keys() - below)


def test_voxels_stay_outside_of_a_region_that_cuts_cells(pipeline, bundle):
    ball = Sphere((0.05, -0.02, 0.1), 0.33)
    changed = pipeline.edit(bundle, [ball], picture((30, 60, 220)), seed=2, **FAST)
    inside = cells_inside([ball], bundle.info["resolution"])
    before, after = decoded_voxels(pipeline, bundle), decoded_voxels(pipeline, changed)
    old, new = ({c: v for c, v in voxels.items() if not inside[c]} for voxels in (before, after))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[c], new[c]) for c in old)
    assert before.keys() != after.keys()


def test_without_layers_decoding_would_change_the_outside(pipeline, bundle, edited):
    """The layers are what keeps it: decoders look beyond the region."""
    flat = {name: tensor for name, tensor in edited.tensors.items() if not name.startswith("before")}
    old, new = decoded_voxels(pipeline, bundle), decoded_voxels(pipeline, Bundle(flat, edited.info))
    middle = bundle.info["resolution"] // 2
    assert any(not torch.equal(old[c], new[c]) for c in old.keys() & new.keys() if c[2] < middle)


def test_an_edit_of_an_edit_keeps_both(pipeline, bundle, edited):
    corner = Sphere((-0.5, -0.5, -0.5), 0.4)
    again = pipeline.edit(edited, [corner], prompt="a red chair", seed=3, **FAST)
    assert again.info["edit"]["condition"]["kind"] == "text"
    assert [edit["seed"] for edit in again.info["earlier_edits"]] == [2]
    inside = cells_inside([corner], token_grid(bundle))
    before, after = decoded_voxels(pipeline, edited), decoded_voxels(pipeline, again)

    def outside(voxels: dict) -> dict:
        return {c: v for c, v in voxels.items() if not inside[c[0] // 16, c[1] // 16, c[2] // 16]}

    old, new = outside(before), outside(after)
    assert old.keys() == new.keys()
    assert all(torch.equal(old[c], new[c]) for c in old)
    assert before.keys() != after.keys()


def test_a_seed_decides_an_edit(pipeline, bundle, edited):
    again = pipeline.edit(bundle, [UPPER], picture((30, 60, 220)), seed=2, **FAST)
    assert all(torch.equal(edited.tensors[name], again.tensors[name]) for name in edited.tensors)
    other = pipeline.edit(bundle, [UPPER], picture((30, 60, 220)), seed=3, **FAST)
    assert not torch.equal(edited.tensors["structure_latent"], other.tensors["structure_latent"])


def test_texture_is_preserved_where_there_was_an_object_before(pipeline):
    bundle = pipeline.sample(picture(), seed=4, **FAST)  # a seed that leaves something where something was
    kept = pipeline.edit(bundle, [UPPER], picture(), seed=4, preserve_texture=True, **FAST)
    old, new = rows(bundle, "texture_latent"), rows(kept, "texture_latent")
    survivors = old.keys() & new.keys()
    assert any(in_upper_half(cell, token_grid(bundle)) for cell in survivors)
    assert all(torch.equal(old[cell], new[cell]) for cell in survivors)
    shapes = rows(bundle, "shape_latent"), rows(kept, "shape_latent")
    inside = [cell for cell in survivors if in_upper_half(cell, token_grid(bundle))]
    assert all(not torch.equal(shapes[0][cell], shapes[1][cell]) for cell in inside)


def test_all_samples_of_a_bundle_are_edited(pipeline):
    two = pipeline.sample(picture(), num_samples=2, seed=1, **FAST)
    changed = pipeline.edit(two, [UPPER], picture((30, 60, 220)), **FAST)
    for sample in range(2):
        old, new = (
            {c: v for c, v in rows(b, "shape_latent").items() if c[0] == sample} for b in (two, changed)
        )
        kept = [c for c in old if not in_upper_half(c, token_grid(two))]
        assert kept
        assert all(torch.equal(old[c], new[c]) for c in kept)
        assert old.keys() != new.keys()
    assert len(pipeline.decode(changed)) == 2


@pytest.mark.parametrize("stage", ["picture", "condition", "structure", "shape", "texture"])
def test_an_edit_can_be_stopped_in_every_stage(pipeline, bundle, stage):
    seen = []
    with pytest.raises(Cancelled):
        pipeline.edit(
            bundle,
            [UPPER],
            picture(),
            on_progress=lambda step: seen.append(step.stage),
            cancel=lambda: stage in seen,
            **FAST,
        )
    assert seen[-1] == stage


def test_what_cannot_be_edited_is_said_before_anything_runs(pipeline, bundle):
    seen = []
    late = {"on_progress": lambda step: seen.append(step.stage), **FAST}
    foreign = Bundle(bundle.tensors, {**bundle.info, "model": {"name": "other", "fingerprint": "0"}})
    with pytest.raises(InputError, match="other"):
        pipeline.edit(foreign, [UPPER], picture(), **late)
    with pytest.raises(InputError, match="no cell"):
        pipeline.edit(bundle, [Sphere((3, 3, 3), 1)], picture(), **late)
    with pytest.raises(UsageError, match="one thing"):
        pipeline.edit(bundle, [UPPER], **late)
    with pytest.raises(UsageError, match="at least once"):
        pipeline.edit(bundle, [UPPER], picture(), repeats=0, **late)
    with pytest.raises(UsageError, match="freedom"):
        pipeline.edit(bundle, [UPPER], picture(), freedom=2, **late)
    assert not seen


def test_a_bundle_without_a_structure_latent_needs_an_encoder(pipeline, bundle):
    older = {name: tensor for name, tensor in bundle.tensors.items() if name != "structure_latent"}
    with pytest.raises(ModelError, match="no structure latent") as error:
        pipeline.edit(Bundle(older, bundle.info), [UPPER], picture(), **FAST)
    assert "sparse_structure_encoder" in error.value.message


def test_an_edit_goes_through_both_passes_of_a_cascade(tmp_path):
    """The flows of the tiny model serve both passes: draft on 32^3 tokens, detail on 64^3."""
    folder = write_tiny_model(tmp_path / "model", text=False)
    content = json.loads((folder / "pipeline.json").read_text())
    for kind in ("shape", "tex"):
        stem = folder / "ckpts" / f"{kind}_slat_flow_model"
        for suffix in ("json", "safetensors"):
            shutil.copy(f"{stem}_512.{suffix}", f"{stem}_1024.{suffix}")
        content["args"]["models"][f"{kind}_slat_flow_model_1024"] = f"ckpts/{kind}_slat_flow_model_1024"
    (folder / "pipeline.json").write_text(json.dumps(content))
    pipeline = trellis2.load(folder, Runtime())
    base = pipeline.sample(picture(), seed=1, pipeline_type="1024_cascade", **FAST)
    ball = Sphere((0.1, 0.05, 0.2), 0.35)
    changed = pipeline.edit(base, [ball], picture((30, 60, 220)), seed=2, **FAST)
    assert changed.info["resolution"] == base.info["resolution"] == 1024
    assert len(changed.tensors["draft_latent"]) == len(changed.tensors["structure_coords"])
    inside = cells_inside([ball], 64)
    for name in ("shape_latent", "texture_latent"):
        old, new = ({c: v for c, v in rows(b, name).items() if not inside[c[1:]]} for b in (base, changed))
        assert old.keys() == new.keys()
        assert all(torch.equal(old[cell], new[cell]) for cell in old)
    assert changed.info["edit"]["tokens"]["made"] > 0


# --- variants ---------------------------------------------------------------------------------------


def test_a_variant_keeps_the_cells_of_a_bundle(pipeline, bundle):
    made = pipeline.variant(bundle, picture((30, 60, 220)), seed=5, num_samples=2, shape=FEW, texture=FEW)
    coords = bundle.tensors["coords"][:, 1:]
    for sample in range(2):
        assert torch.equal(made.tensors["coords"][made.tensors["coords"][:, 0] == sample, 1:], coords)
    assert not torch.equal(*made.tensors["shape_latent"].chunk(2))
    assert made.info["resolution"] == bundle.info["resolution"]
    assert len(pipeline.decode(made)) == 2
    assert pipeline.edit(made, [UPPER], picture(), **FAST).info["edit"]["voxels"]["outside_changed"] == 0


def test_a_variant_takes_any_mesh(pipeline):
    vertices = torch.tensor([[0.0, 0, 0], [4, 0, 0], [0, 4, 0], [0, 0, 4]])
    mesh = Mesh(vertices, torch.tensor([[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]]))
    made = pipeline.variant(mesh, prompt="a red chair", seed=5, shape=FEW, texture=FEW)
    grid = token_grid(made)
    cells = {(*c[1:],) for c in made.tensors["coords"].tolist()}
    assert {(0, 0, 0), (grid - 1, 0, 0), (0, grid - 1, 0), (0, 0, grid - 1)} <= cells
    assert (grid - 1, grid - 1, grid - 1) not in cells
    assert len(pipeline.decode(made)[0].mesh.faces) > 0


def test_a_variant_refuses_shapes_that_are_none(pipeline, bundle, bundle1):
    with pytest.raises(InputError, match="no faces"):
        pipeline.variant(Mesh(torch.rand(3, 3), torch.zeros(0, 3, dtype=torch.int32)), picture())
    with pytest.raises(InputError, match="no extent"):
        pipeline.variant(Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]])), picture())
    with pytest.raises(InputError, match=r"TRELLIS\.2|no cells"):
        pipeline.variant(bundle1, picture())


# --- TRELLIS v1 -------------------------------------------------------------------------------------


def test_v1_keeps_all_that_it_can_decode_outside_of_a_region(pipeline1, bundle1):
    changed = pipeline1.edit(bundle1, [UPPER], picture((30, 60, 220)), seed=2)
    old, new = rows(bundle1, LATENT), rows(changed, LATENT)
    kept = [cell for cell in old if not in_upper_half(cell, GRID)]
    assert kept
    assert all(torch.equal(old[cell], new[cell]) for cell in kept)
    assert changed.info["edit"]["voxels"]["inside_changed"] > 0

    before, after = (pipeline1.decode(b)[0] for b in (bundle1, changed))
    tokens = [
        torch.tensor([in_upper_half(c, GRID) for c in b.tensors["coords"].tolist()])
        for b in (bundle1, changed)
    ]
    clouds = [d.gaussians for d in (before, after)]
    per_voxel = len(clouds[0]) // len(tokens[0])
    for name in ("positions", "scales", "rotations", "opacities"):
        first, second = (
            getattr(cloud, name)[~inside.repeat_interleave(per_voxel)]
            for cloud, inside in zip(clouds, tokens, strict=True)
        )
        assert torch.allclose(first, second, rtol=0, atol=1e-6), name  # activations round by place in memory
    surfaces = [d.mesh.vertices[d.mesh.vertices[:, 2] < -1 / GRID] for d in (before, after)]
    assert torch.equal(*[torch.unique(vertices, dim=0) for vertices in surfaces])
    assert not torch.equal(before.mesh.vertices, after.mesh.vertices)


def test_v1_preserves_what_was_there_before(pipeline1, bundle1):
    changed = pipeline1.edit(bundle1, [UPPER], picture((30, 60, 220)), seed=2, preserve_texture=True)
    old, new = rows(bundle1, LATENT), rows(changed, LATENT)
    assert all(torch.equal(old[cell], new[cell]) for cell in old.keys() & new.keys())
    assert changed.info["edit"]["tokens"]["made"] == len(new.keys() - old.keys())


def test_v1_encodes_the_structure_of_a_variant_to_edit_it(folder1, tmp_path):
    folder = shutil.copytree(folder1, tmp_path / "model")
    vertices = torch.tensor([[0.0, 0, 0], [4, 0, 0], [0, 4, 0], [0, 0, 4]])
    mesh = Mesh(vertices, torch.tensor([[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]]))
    without = trellis.load(folder, Runtime())
    made = without.variant(mesh, picture(), seed=1)
    with pytest.raises(ModelError, match="sparse_structure_encoder"):
        without.edit(made, [UPPER], picture())
    write_network(folder, "sparse_structure_encoder", ENCODER, 5)
    changed = trellis.load(folder, Runtime()).edit(made, [UPPER], picture())
    assert changed.info["edit"]["voxels"]["outside_changed"] == 0
    old, new = rows(made, LATENT), rows(changed, LATENT)
    assert all(torch.equal(old[c], new[c]) for c in old if not in_upper_half(c, GRID))
