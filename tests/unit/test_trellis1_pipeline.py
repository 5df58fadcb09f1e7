"""TRELLIS v1 runs on tiny random models in the released layout.

Properties: a seed decides a run; pictures, prompts and shapes start runs where the model takes them; bundles
survive a file; what cannot be done is said in words; nothing that is not asked for is decoded.
"""

from __future__ import annotations

import shutil

import pytest
import torch
from PIL import Image, ImageDraw

import trellis
from tests.tiny_trellis1 import GRID, IMAGE_SIZE, MAX_LENGTH, write_tiny_trellis1
from trellis.condition import crop_object, read_prompt
from trellis.costs import describe_networks
from trellis.flexicubes import CORNERS, cube_mesh
from trellis.loading import find_checkpoints, identify, network_config
from trellis.pipeline import LATENT, STRUCTURE_LATENT, Pipeline
from trellis.representations import CubeLayout
from trellis.results import Decoded
from trellis.settings import read_settings
from trellis_core.errors import Cancelled, InputError, ModelError, UsageError
from trellis_core.geometry.asset import ExportSettings
from trellis_core.geometry.fields import Gaussians
from trellis_core.geometry.occupancy import normalized, occupied_by
from trellis_core.geometry.types import Mesh
from trellis_core.kernels.table import resolve_kernels
from trellis_core.memory.devices import DeviceInfo
from trellis_core.render.bake_views import ViewBakeSettings
from trellis_core.runtime import Runtime
from trellis_core.weights.bundle import Bundle
from trellis_core.weights.verify import count_parameters

FAST = Runtime(kernels=resolve_kernels(DeviceInfo(kind="cpu")))


@pytest.fixture(scope="module")
def picture_folder(tmp_path_factory):
    return write_tiny_trellis1(tmp_path_factory.mktemp("v1") / "pictures")


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    return write_tiny_trellis1(tmp_path_factory.mktemp("v1") / "prompts", text=True)


@pytest.fixture(scope="module")
def pipeline(picture_folder):
    return trellis.load(picture_folder, Runtime())


@pytest.fixture(scope="module")
def text_pipeline(text_folder):
    return trellis.load(text_folder, Runtime())


def picture(color=(200, 40, 30)) -> Image.Image:
    image = Image.new("RGBA", (90, 80))
    ImageDraw.Draw(image).ellipse((20, 15, 70, 65), fill=(*color, 255))
    return image


@pytest.fixture(scope="module")
def bundle(pipeline):
    return pipeline.sample(picture(), seed=7)


def test_a_seed_decides_a_run(pipeline, bundle):
    again, other = pipeline.sample(picture(), seed=7), pipeline.sample(picture(), seed=8)
    assert torch.equal(again.tensors[LATENT], bundle.tensors[LATENT])
    assert not torch.equal(again.tensors[STRUCTURE_LATENT], other.tensors[STRUCTURE_LATENT])


def test_a_bundle_says_where_it_comes_from_and_survives_a_file(pipeline, bundle, tmp_path):
    assert bundle.info["model"]["name"] == "pictures"
    assert bundle.info["resolution"] == GRID
    assert bundle.info["samplers"]["latents"]["guidance_scale"] == 3.0
    read = Bundle.load(bundle.save(tmp_path / "run.safetensors"))
    fields = [pipeline.decode(b, formats=["radiance_field"])[0].radiance_field for b in (bundle, read)]
    assert torch.equal(fields[0].vectors, fields[1].vectors)


def test_only_what_is_asked_for_is_decoded(pipeline, bundle):
    decoded = pipeline.decode(bundle, formats=["gaussians"])[0]
    assert decoded.mesh is None
    assert decoded.radiance_field is None
    assert len(decoded.gaussians) == 2 * len(bundle.tensors["coords"])
    assert decoded.gaussians.positions.abs().max() < 0.5 + 1 / GRID
    with pytest.raises(UsageError, match="glb"):
        pipeline.decode(bundle, formats=["glb"])


def test_samples_of_one_bundle_are_decoded_one_by_one(pipeline):
    bundle = pipeline.sample(picture(), num_samples=2)
    decoded = pipeline.decode(bundle, formats=["radiance_field"])
    rows = bundle.tensors["coords"][:, 0].bincount().tolist()
    assert [len(each.radiance_field) for each in decoded] == rows


def test_a_mesh_carries_its_colors_into_material_voxels(pipeline, bundle):
    shape = pipeline.decode(bundle, formats=["mesh"])[0].voxel_mesh()
    assert shape.voxels.resolution == 4 * GRID
    assert shape.mesh.faces.dtype == torch.int32
    assert ((shape.voxels.attrs >= -1e-6) & (shape.voxels.attrs <= 1 + 1e-6)).all()
    assert (shape.voxels.attrs[:, 3:] == torch.tensor([0.0, 1.0, 1.0])).all()
    mine = ((shape.mesh.vertices + 0.5) * 4 * GRID).floor().int()
    assert {*map(tuple, mine.tolist())} & {*map(tuple, shape.voxels.coords.tolist())}
    with pytest.raises(InputError, match="no mesh"):
        Decoded().voxel_mesh()


COLORED = CubeLayout(use_color=True)


def ball(resolution: int, radius: float, layout: CubeLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """All cubes of the grid, with the signed distance to a ball at their corners."""
    axis = torch.arange(resolution)
    cubes = torch.cartesian_prod(axis, axis, axis)
    corners = (cubes[:, None] + torch.tensor(CORNERS)) / resolution - 0.5
    feats = torch.zeros(len(cubes), layout.channels)
    feats[:, :8] = corners.norm(dim=2) - radius + 1 / resolution
    return cubes.int(), feats


def test_a_texture_is_painted_after_what_was_decoded():
    """A red ball whose Gaussians are blue: the texture follows what it is told to."""
    cubes, feats = ball(8, 0.35, COLORED)
    red = feats.clone()
    red[:, 53:].view(len(red), 8, 6)[:, :, :3] = torch.tensor([9.0, -9.0, -9.0])
    mesh = cube_mesh(cubes, red, COLORED, 8)
    count = len(mesh.vertices)
    blue = Gaussians(
        mesh.vertices,
        torch.full((count, 3), 0.05),
        torch.tensor([[1.0, 0, 0, 0]]).expand(count, 4),
        torch.ones(count, 1),
        torch.tensor([[-1.77, -1.77, 1.77]]).expand(count, 3),
    )
    pipeline = Pipeline(settings=None, networks=None, identity=None, runtime=FAST)
    decoded = Decoded(mesh=mesh, gaussians=blue)
    small, few = ExportSettings(faces=200, texture_size=32), ViewBakeSettings(views=6, size=32)
    assert decoded.appearance("auto") is decoded.appearance("gaussians") is blue
    assert Decoded(mesh=mesh).appearance("auto") is None
    for color, channel in (("vertices", 0), ("gaussians", 2)):
        texture = pipeline.export(decoded, small, color=color, views=few).material.base_color[..., :3].float()
        means = texture.flatten(0, 1).mean(0)
        assert means.argmax() == channel, color
    with pytest.raises(UsageError, match="radiance_field"):
        pipeline.export(decoded, small, color="radiance_field")


def test_one_picture_among_several_is_the_plain_run(pipeline, bundle):
    for mode in ("stochastic", "multidiffusion"):
        same = pipeline.sample(pictures=[picture()], mode=mode, seed=7)
        assert torch.equal(same.tensors[LATENT], bundle.tensors[LATENT])


@pytest.mark.parametrize("mode", ["stochastic", "multidiffusion"])
def test_several_pictures_all_matter(pipeline, bundle, mode):
    views = [picture(), picture((20, 60, 200))]
    mixed = pipeline.sample(pictures=views, mode=mode, seed=7)
    assert mixed.info["condition"] == {"kind": "pictures", "count": 2, "mode": mode}
    assert not torch.equal(mixed.tensors[STRUCTURE_LATENT], bundle.tensors[STRUCTURE_LATENT])


def test_unused_pictures_are_named(pipeline):
    notes = []
    pipeline.sample(pictures=[picture()] * 3, on_progress=lambda step: notes.append(step.note))
    assert any("2 in the structure stage" in note for note in notes)


def test_a_prompt_starts_a_run_and_its_words_matter(text_pipeline):
    red, blue = (text_pipeline.sample(prompt=f"a {word} chair", seed=3) for word in ("red", "blue"))
    assert red.info["condition"] == {"kind": "text", "prompt": "a red chair"}
    assert not torch.equal(red.tensors[STRUCTURE_LATENT], blue.tensors[STRUCTURE_LATENT])


def test_guidance_of_a_prompt_starts_from_the_empty_prompt_not_from_zeros(text_pipeline, monkeypatch):
    def sampled() -> torch.Tensor:
        return text_pipeline.sample(prompt="a red chair", seed=3).tensors[STRUCTURE_LATENT]

    first = sampled()
    encode = text_pipeline._encode_prompt
    monkeypatch.setattr(text_pipeline, "_encode_prompt", lambda *a: (encode(*a)[0], None))
    assert not torch.equal(sampled(), first)


def test_models_say_what_they_do_not_take(pipeline, text_pipeline):
    with pytest.raises(UsageError, match="pictures only"):
        pipeline.sample(prompt="a chair")
    with pytest.raises(UsageError, match="prompts only"):
        text_pipeline.sample(picture())
    with pytest.raises(UsageError, match="one thing"):
        pipeline.sample(picture(), prompt="a chair")


@pytest.mark.parametrize("prompt", ["", "  ", "?!"])
def test_a_prompt_without_a_word_is_refused(text_pipeline, prompt):
    with pytest.raises(InputError, match="empty"):
        text_pipeline.sample(prompt=prompt)


def test_a_long_prompt_is_cut_and_said(text_pipeline):
    with text_pipeline.networks.use("text_encoder", Runtime()) as encoder:
        ids, note = read_prompt("a red chair " * 3000, encoder.tokenizer, MAX_LENGTH)
    assert len(ids) == MAX_LENGTH
    assert "first 6 words" in note


def test_a_variant_keeps_the_voxels_of_a_mesh(text_pipeline):
    vertices = torch.tensor([[0.0, 0, 0], [4, 0, 0], [0, 4, 0], [0, 0, 4]])
    mesh = Mesh(vertices, torch.tensor([[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]]))
    bundle = text_pipeline.variant(mesh, prompt="a red chair", num_samples=2, seed=1)
    voxels = occupied_by(Mesh(normalized(vertices), mesh.faces), GRID)
    for sample in range(2):
        mine = bundle.tensors["coords"][:, 0] == sample
        assert torch.equal(bundle.tensors["coords"][mine, 1:], voxels)
    latents = bundle.tensors[LATENT].chunk(2)
    assert not torch.equal(*latents)


def test_a_variant_keeps_the_voxels_of_a_run(pipeline, bundle):
    again = pipeline.variant(bundle, picture((20, 60, 200)), seed=9)
    assert torch.equal(again.tensors["coords"], bundle.tensors["coords"])
    assert not torch.equal(again.tensors[LATENT], bundle.tensors[LATENT])
    foreign = Bundle(bundle.tensors, {**bundle.info, "resolution": 99})
    with pytest.raises(InputError, match="grid of 8"):
        pipeline.variant(foreign, picture())


def test_a_run_can_be_stopped(pipeline):
    with pytest.raises(Cancelled):
        pipeline.sample(picture(), cancel=lambda: True)


def test_bundles_of_other_models_are_refused(text_pipeline, bundle):
    with pytest.raises(InputError, match="pictures"):
        text_pipeline.decode(bundle)


# --- pictures and meshes ----------------------------------------------------------------------------


def test_a_picture_is_cropped_with_a_margin():
    square = crop_object(picture(), None, IMAGE_SIZE)
    assert square.size == (IMAGE_SIZE, IMAGE_SIZE)
    columns = [x for x in range(IMAGE_SIZE) if square.getpixel((x, IMAGE_SIZE // 2))[0] > 100]
    assert len(columns) == pytest.approx(IMAGE_SIZE / 1.2, abs=2)


def test_a_picture_without_an_object_is_refused():
    with pytest.raises(InputError, match="mask is empty"):
        crop_object(Image.new("RGBA", (30, 30)), None, IMAGE_SIZE)


def test_a_mesh_is_scaled_by_its_longest_side_and_touches_what_it_crosses():
    box = torch.tensor([[x, y, z] for x in (0, 10) for y in (0, 5) for z in (0, 5)]).float()
    placed = normalized(box)
    assert torch.equal(placed.amax(0), -placed.amin(0))
    assert float(placed[:, 0].max()) == 0.5 - 1e-6
    assert float(placed[:, 1].max()) == 0.25


def test_a_small_triangle_occupies_one_voxel_and_a_diagonal_one_no_corner_voxels():
    faces = torch.tensor([[0, 1, 2]])
    tiny = torch.tensor([[0.01, 0.01, 0.01], [0.02, 0.01, 0.01], [0.01, 0.02, 0.01]])
    assert occupied_by(Mesh(tiny, faces), 4).tolist() == [[2, 2, 2]]
    wide = torch.tensor([[-0.4, -0.4, 0.1], [0.4, -0.4, 0.1], [-0.4, 0.4, 0.1]])
    cells = occupied_by(Mesh(wide, faces), 4)
    assert (cells[:, 2] == 2).all()
    assert [3, 3, 2] not in cells.tolist()
    assert [0, 0, 2] in cells.tolist()


@pytest.mark.parametrize("faces", [0, 1])
def test_a_mesh_of_nothing_is_refused(text_pipeline, faces):
    mesh = Mesh(torch.zeros(3, 3), torch.zeros(faces, 3, dtype=torch.int32))
    with pytest.raises(InputError):
        text_pipeline.variant(mesh, prompt="a chair")


# --- loading ----------------------------------------------------------------------------------------


def test_a_missing_decoder_is_missed_when_it_is_asked_for(picture_folder, bundle, tmp_path):
    folder = shutil.copytree(picture_folder, tmp_path / "pictures")
    (folder / "ckpts" / "slat_decoder_gs.safetensors").unlink()
    (folder / "ckpts" / "slat_decoder_gs.json").unlink()
    partial = trellis.load(folder, Runtime())
    assert partial.formats == ("mesh", "radiance_field")
    assert partial.decode(bundle, formats=["radiance_field"])
    with pytest.raises(UsageError, match="slat_decoder_gs"):
        partial.decode(bundle, formats=["gaussians"])


def test_a_missing_flow_is_an_error_that_names_it(picture_folder, tmp_path):
    folder = shutil.copytree(picture_folder, tmp_path / "pictures")
    (folder / "ckpts" / "slat_flow_model.safetensors").unlink()
    with pytest.raises(ModelError, match="slat_flow_model"):
        trellis.load(folder, Runtime())


def test_a_partial_download_is_called_damaged(picture_folder, tmp_path):
    folder = shutil.copytree(picture_folder, tmp_path / "pictures")
    file = folder / "ckpts" / "slat_flow_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    broken = trellis.load(folder, Runtime())
    with pytest.raises(ModelError, match="damaged"):
        broken.sample(picture())


def test_an_unknown_model_is_named():
    with pytest.raises(ModelError, match="not on this machine"):
        trellis.load("JeffreyXiang/TRELLIS-nothing", Runtime())
    with pytest.raises(ModelError, match=r"TRELLIS\.2"):
        trellis.load("embedded", Runtime())


def test_a_memory_plan_covers_every_network(picture_folder):
    settings = read_settings(picture_folder / "pipeline.json")
    stems = find_checkpoints(picture_folder, settings, "tiny")
    configs = {
        name: (network_config(name, stem), count_parameters(stem.with_suffix(".safetensors")))
        for name, stem in stems.items()
    }
    described = describe_networks(configs, settings.image_size)
    assert described.keys() == stems.keys()
    stages = {network.stage for network in described.values()}
    assert stages == {"condition", "structure", "latents", "decode"}
    assert described["image_encoder"].tokens == 1 + 4 + (IMAGE_SIZE // 14) ** 2


def test_the_identity_is_that_of_what_samples(picture_folder, tmp_path):
    folder = shutil.copytree(picture_folder, tmp_path / "pictures")
    settings = read_settings(folder / "pipeline.json")
    before = identify("tiny", folder, find_checkpoints(folder, settings, "tiny"))
    (folder / "ckpts" / "slat_decoder_rf.safetensors").unlink()
    (folder / "ckpts" / "slat_decoder_rf.json").unlink()
    assert identify("tiny", folder, find_checkpoints(folder, settings, "tiny")) == before
