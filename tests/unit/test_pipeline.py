"""A TRELLIS.2 pipeline from Python, on a tiny model in the released layout.

Properties: seeds reproduce; samples of one run differ; runs can be cancelled between steps; bundles
carry everything decoding needs and refuse other models; a lowered resolution is reported; pictures, several
pictures and prompts go through the same stages, and what a prompt says beyond the model is named.
Not tested here: numbers (parity) and the quality of meshes (asset tests).
"""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image, ImageDraw

import trellis2
from tests.tiny_model import MAX_LENGTH, write_tiny_model
from trellis2 import stages
from trellis2.condition import read_prompt
from trellis2.loading import plan_for
from trellis2.pipeline import provenance
from trellis2.release import ReleasedText, ReleaseFacts, TrainedNetwork, write_release
from trellis2.settings import TextSettings, read_settings
from trellis_core.errors import Cancelled, InputError, ModelError, UsageError
from trellis_core.geometry.asset import ExportSettings
from trellis_core.geometry.types import Mesh
from trellis_core.memory.budget import MemoryRequest
from trellis_core.memory.devices import DeviceInfo
from trellis_core.models.tokenizer import Tokenizer, word_vocabulary
from trellis_core.runtime import Runtime
from trellis_core.weights.bundle import Bundle

FEW = {"steps": 1}
FAST = {"structure": FEW, "shape": FEW, "texture": FEW}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def pipeline(folder):
    return trellis2.load(folder, Runtime())


@pytest.fixture(scope="module")
def picture():
    image = Image.new("RGBA", (96, 80))
    ImageDraw.Draw(image).ellipse([20, 10, 70, 70], fill=(200, 40, 40, 255))
    return image


@pytest.fixture(scope="module")
def bundle(pipeline, picture):
    return pipeline.sample(picture, seed=1, **FAST)


def test_the_same_seed_gives_the_same_latents(pipeline, picture, bundle):
    again = pipeline.sample(picture, seed=1, **FAST)
    assert all(torch.equal(bundle.tensors[name], again.tensors[name]) for name in bundle.tensors)


def test_another_seed_gives_other_latents(pipeline, picture, bundle):
    other = pipeline.sample(picture, seed=2, **FAST)
    assert not torch.equal(bundle.tensors["shape_latent"], other.tensors["shape_latent"])


def test_the_host_programs_random_numbers_are_left_alone(pipeline, picture):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    pipeline.sample(picture, seed=1, **FAST)
    assert torch.equal(torch.rand(3), expected)


def test_several_samples_of_one_run_are_different_objects(pipeline, picture):
    bundle = pipeline.sample(picture, num_samples=2, **FAST)
    first, second = pipeline.decode(bundle)
    assert sorted(set(bundle.tensors["coords"][:, 0].tolist())) == [0, 1]
    assert len(first.mesh.faces) > 0
    assert len(second.mesh.faces) > 0
    assert first.mesh.vertices.shape != second.mesh.vertices.shape


def test_a_run_gives_an_asset_that_can_be_saved(pipeline, picture, tmp_path):
    steps = []
    asset = pipeline.run(
        picture, seed=1, export=ExportSettings(texture_size=64), on_progress=steps.append, **FAST
    )
    path = asset.save(tmp_path / "asset.glb")
    assert path.read_bytes()[:4] == b"glTF"
    assert asset.extras["seed"] == 1
    order = list(dict.fromkeys(step.stage for step in steps))
    assert order[:6] == ["picture", "condition", "structure", "shape", "texture", "decode"]
    assert all(step.step <= step.steps for step in steps)


@pytest.mark.parametrize("stage", ["picture", "condition", "structure", "shape", "texture"])
def test_every_stage_can_be_cancelled(pipeline, picture, stage):
    seen = []
    with pytest.raises(Cancelled, match="stopped"):
        pipeline.sample(
            picture, on_progress=lambda step: seen.append(step.stage), cancel=lambda: stage in seen, **FAST
        )
    assert seen[-1] == stage


def test_a_bundle_decodes_the_same_after_saving(pipeline, bundle, tmp_path):
    path = bundle.save(tmp_path / "run.trellis")
    before = pipeline.decode(bundle)[0]
    after = pipeline.decode(Bundle.load(path))[0]
    assert torch.equal(before.mesh.vertices, after.mesh.vertices)
    assert torch.equal(before.voxels.attrs, after.voxels.attrs)


def test_a_bundle_of_another_model_is_refused(pipeline, bundle):
    foreign = Bundle(bundle.tensors, {**bundle.info, "model": {"name": "other", "fingerprint": "0"}})
    with pytest.raises(InputError, match="other") as error:
        pipeline.decode(foreign)
    assert "--model other" in error.value.hint


def test_the_origin_of_an_asset_is_json(bundle):
    facts = provenance(bundle)
    assert facts["seed"] == 1
    assert facts["samplers"]["shape"]["steps"] == 1
    older = {name: value for name, value in bundle.info.items() if name != "condition"}
    assert provenance(Bundle(bundle.tensors, older)) == {k: v for k, v in facts.items() if k != "condition"}


def test_an_unknown_type_is_refused_before_anything_runs(pipeline, picture):
    with pytest.raises(UsageError, match="1536_cascade"):
        pipeline.sample(picture, pipeline_type="1536_cascade")


def test_a_model_with_a_missing_network_is_refused(folder, tmp_path):
    copy = tmp_path / "model"
    (copy / "ckpts").mkdir(parents=True)
    for path in folder.rglob("*.*"):
        (copy / path.relative_to(folder)).write_bytes(path.read_bytes())
    (copy / "ckpts" / "tex_slat_decoder.safetensors").unlink()
    with pytest.raises(ModelError, match="tex_slat_decoder"):
        trellis2.load(copy, Runtime())


def test_an_empty_structure_says_what_to_do():
    with pytest.raises(InputError, match="no object") as error:
        stages.occupied_cells(torch.full((1, 1, 8, 8, 8), -1.0), 4)
    assert "--seed" in error.value.hint


def test_occupied_cells_are_pooled_to_the_token_grid():
    logits = torch.full((2, 1, 8, 8, 8), -1.0)
    logits[0, 0, 7, 0, 3] = 1.0
    logits[1, 0, 0, 0, 0] = 1.0
    assert stages.occupied_cells(logits, 4).tolist() == [[0, 3, 0, 1], [1, 0, 0, 0]]


def test_a_cascade_lowers_its_resolution_in_steps_until_the_tokens_fit():
    grid = torch.arange(512, dtype=torch.int32)[::4]
    line = torch.stack([torch.zeros_like(grid), grid, grid, grid], dim=1)
    whole = stages.cascade_tokens(line, 512, 1536, 10_000)
    assert (whole.resolution, len(whole.coords)) == (1536, 96)
    fewer = stages.cascade_tokens(line, 512, 1536, 90)
    assert (fewer.resolution, len(fewer.coords)) == (1408, 88)
    assert stages.cascade_tokens(line, 512, 1536, 1).resolution == 1024


def test_a_mesh_is_painted_and_keeps_its_shape(pipeline, picture, tmp_path):
    corners = torch.tensor([[x, y, z] for x in (0, 2) for y in (0, 3) for z in (0, 4)], dtype=torch.float32)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = torch.tensor([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))], dtype=torch.int32)
    asset = pipeline.texture(
        Mesh(corners, faces), picture, texture=FEW, export=ExportSettings(texture_size=64)
    )
    extent = asset.mesh.vertices.amax(0) - asset.mesh.vertices.amin(0)
    assert torch.allclose(extent, torch.tensor([0.5, 0.75, 1.0]), atol=1e-3)
    assert len(asset.mesh.faces) == 12
    assert asset.save(tmp_path / "box.glb").stat().st_size > 0


def test_a_mesh_without_faces_is_refused(pipeline, picture):
    empty = Mesh(torch.zeros(3, 3), torch.zeros(0, 3, dtype=torch.int32))
    with pytest.raises(InputError, match="no faces"):
        pipeline.texture(empty, picture)


def side_view() -> Image.Image:
    image = Image.new("RGBA", (80, 80))
    ImageDraw.Draw(image).rectangle([30, 10, 50, 70], fill=(30, 60, 200, 255))
    return image


def test_one_picture_in_a_list_is_the_single_picture(pipeline, picture, bundle):
    for mode in ("stochastic", "multidiffusion"):
        listed = pipeline.sample(pictures=[picture], mode=mode, seed=1, **FAST)
        assert all(torch.equal(bundle.tensors[name], listed.tensors[name]) for name in bundle.tensors)
        assert listed.info["condition"] == bundle.info["condition"] == {"kind": "picture"}


@pytest.mark.parametrize("mode", ["stochastic", "multidiffusion"])
def test_several_pictures_change_every_stage_and_are_recorded(pipeline, picture, bundle, mode):
    steps = {stage: {"steps": 2} for stage in FAST}
    alone = pipeline.sample(picture, seed=1, **steps)
    both = pipeline.sample(pictures=[picture, side_view()], mode=mode, seed=1, num_samples=1, **steps)
    assert both.info["condition"] == {"kind": "pictures", "count": 2, "mode": mode}
    assert provenance(both)["condition"]["count"] == 2
    for name in ("shape_latent", "texture_latent"):
        assert not torch.equal(alone.tensors[name], both.tensors[name])
    assert len(pipeline.decode(both)) == 1


def test_two_modes_make_two_objects(pipeline, picture):
    made = [
        pipeline.sample(pictures=[picture, side_view()], mode=mode, seed=1, **FAST).tensors["shape_latent"]
        for mode in ("stochastic", "multidiffusion")
    ]
    assert made[0].shape != made[1].shape or not torch.equal(*made)


def test_pictures_that_no_step_sees_are_reported(pipeline, picture):
    notes = []
    pipeline.sample(
        pictures=[picture, side_view()], on_progress=lambda s: notes.append(s.note), structure=FEW, shape=FEW
    )
    said = "; ".join(filter(None, notes))
    assert "of the 2 pictures only 1 in the structure stage, 1 in the shape stage are used" in said


def test_the_picture_that_cannot_be_used_is_named(pipeline, picture, tmp_path):
    with pytest.raises(InputError, match=r"picture 2: .*gone\.png"):
        pipeline.sample(pictures=[picture, tmp_path / "gone.png"], **FAST)
    with pytest.raises(InputError, match="picture 1: there is no object"):
        pipeline.sample(pictures=[Image.new("RGBA", (9, 9)), picture], **FAST)


@pytest.mark.parametrize(
    "start",
    [
        {},
        {"picture": "a.png", "prompt": "a chair"},
        {"picture": "a.png", "pictures": ["b.png"]},
        {"pictures": "a.png"},
        {"pictures": ["a.png", "b.png"], "mode": "round-robin"},
    ],
)
def test_a_run_starts_from_exactly_one_thing(pipeline, start):
    with pytest.raises(UsageError):
        pipeline.sample(**start)


def test_a_prompt_becomes_an_asset(pipeline, tmp_path):
    steps = []
    asset = pipeline.run(
        prompt="A tall RED chair with armrests.",
        seed=1,
        export=ExportSettings(texture_size=64),
        on_progress=steps.append,
        **FAST,
    )
    assert asset.save(tmp_path / "chair.glb").read_bytes()[:4] == b"glTF"
    assert asset.extras["condition"] == {"kind": "text", "prompt": "a tall red chair with armrests"}
    order = list(dict.fromkeys(step.stage for step in steps))
    assert order[:5] == ["condition", "structure", "shape", "texture", "decode"]
    assert not any(step.note for step in steps if step.stage == "condition")


def test_words_matter_and_their_spelling_does_not(pipeline):
    def latent(prompt: str) -> torch.Tensor:
        return pipeline.sample(prompt=prompt, seed=1, **FAST).tensors["shape_latent"]

    chair = latent("a red chair")
    assert torch.equal(chair, latent("  A  Red Chair! "))
    other = latent("a blue table")
    assert chair.shape != other.shape or not torch.equal(chair, other)


def test_several_samples_of_a_prompt_are_different_objects(pipeline):
    bundle = pipeline.sample(prompt="a chair", num_samples=2, **FAST)
    assert bundle.thumbnail is None
    first, second = pipeline.decode(bundle)
    assert first.mesh.vertices.shape != second.mesh.vertices.shape


def test_unknown_words_are_ignored_and_named(pipeline):
    notes = []
    bundle = pipeline.sample(
        prompt="a steampunk chair on Mars", seed=1, on_progress=lambda s: notes.append(s.note), **FAST
    )
    assert bundle.info["condition"]["prompt"] == "a chair"
    (note,) = filter(None, notes)
    for words in ("`steampunk`, `on`, `mars`", "chair, table, street lamp"):
        assert words in note


TEXT = TextSettings(encoder="", max_length=6, words=("a", "red", "street", "lamp"), nouns=("street lamp",))
VOCABULARY = Tokenizer(*word_vocabulary(TEXT.words))


@pytest.mark.parametrize("prompt", ["", "   ", "\n", "!?", "\u2014"])
def test_a_prompt_without_words_is_refused(prompt):
    with pytest.raises(InputError, match="empty"):
        read_prompt(prompt, VOCABULARY, TEXT)


@pytest.mark.parametrize(
    "prompt",
    [
        "a red dragon",
        "red",
        "a lamp",
        "lamp street",
        "une chaise rouge",
        "\u6905\u5b50",
        "\u043a\u0440\u0435\u0441\u043b\u043e",
        "chair" * 9999,
    ],
)
def test_a_prompt_without_a_known_object_says_what_there_is(prompt):
    with pytest.raises(InputError, match="nothing that this model knows") as error:
        read_prompt(prompt, VOCABULARY, TEXT)
    assert "street lamp" in error.value.hint
    assert "bigger model" in error.value.hint
    assert len(error.value.message) < 500


def test_a_prompt_of_ten_thousand_words_is_cut_and_says_so():
    prompt = read_prompt("a red street lamp " + "red " * 10_000, VOCABULARY, TEXT)
    assert prompt.text == "a red street lamp"
    assert len(prompt.ids) == 6
    assert "cut to its first 4 words" in prompt.note
    with pytest.raises(InputError, match="names nothing"):  # the object is what was cut
        read_prompt("red " * 10_000 + "street lamp", VOCABULARY, TEXT)


def test_other_words_for_what_the_model_knows_are_read_and_named():
    known = replace(TEXT, aliases={"scarlet": "red", "lantern": "lamp"})
    prompt = read_prompt("A scarlet street lantern", VOCABULARY, known)
    assert (prompt.text, prompt.note) == (
        "a red street lamp",
        "the model reads `scarlet` as `red`, `lantern` as `lamp`",
    )
    assert read_prompt("street lamps", VOCABULARY, TEXT).text == "street lamp"


def test_an_open_vocabulary_takes_any_word():
    anything = TextSettings(encoder="", max_length=20)
    prompt = read_prompt("a red dragon, breathing", VOCABULARY, anything)
    assert (prompt.text, prompt.note) == ("a red dragon , breathing", "")


def test_a_model_without_a_text_encoder_says_so_before_anything_runs(tmp_path):
    mute = trellis2.load(write_tiny_model(tmp_path / "mute", text=False), Runtime())
    assert not mute.has_text
    with pytest.raises(UsageError, match="no text encoder") as error:
        mute.sample(prompt="a chair")
    assert "text_cond_model" in error.value.hint


@pytest.mark.parametrize("name", ["text_encoder.vocab.json", "text_encoder.safetensors"])
def test_a_text_encoder_with_missing_files_is_a_model_error(folder, tmp_path, name):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "ckpts" / name).unlink()
    with pytest.raises(ModelError, match="text_encoder"):
        trellis2.load(tmp_path / "model", Runtime()).sample(prompt="a chair", **FAST)


def test_a_vocabulary_larger_than_its_encoder_is_a_model_error(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "ckpts" / "text_encoder.vocab.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "extra</w>": 9999}))
    pipeline = trellis2.load(tmp_path / "model", Runtime())
    with pytest.raises(ModelError, match="more tokens"):
        pipeline.sample(prompt="a chair", **FAST)


def test_another_vocabulary_is_another_model(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "ckpts" / "text_encoder.merges.txt"
    path.write_text(path.read_text() + "q q</w>\n")
    assert trellis2.load(tmp_path / "model", Runtime()).identity.fingerprint != (
        trellis2.load(folder, Runtime()).identity.fingerprint
    )


def test_the_memory_plan_counts_the_text_encoder(folder, tmp_path):
    cpu = DeviceInfo(kind="cpu", total_memory=1 << 34, free_memory=1 << 33)
    mute = write_tiny_model(tmp_path / "mute", text=False)
    plans = [plan_for(place, cpu, MemoryRequest(), "512") for place in (folder, mute)]
    assert plans[0].peaks["structure"] > plans[1].peaks["structure"]


def test_a_released_text_encoder_is_read_back(pipeline, tmp_path):
    """`write_release` and `read_settings` agree about a model with text; samplers are not looked at."""
    with pipeline.networks.use("text_encoder", pipeline.runtime) as encoder:
        facts = ReleaseFacts(
            resolution=64,
            token_resolution=4,
            image_size=64,
            samplers={name: {} for name in ("structure", "shape", "texture")},
            shape_normalization=(torch.zeros(2), torch.ones(2)),
            texture_normalization=(torch.zeros(2), torch.ones(2)),
            text=ReleasedText(encoder.tokenizer, MAX_LENGTH, ("a", "chair"), ("chair",), {"seat": "chair"}),
        )
        with pytest.raises(ValueError, match="come together"):
            write_release(tmp_path, {}, facts)
        write_release(tmp_path, {"text_encoder": TrainedNetwork({"name": "CLIPTextEncoder"}, encoder)}, facts)
    text = read_settings(tmp_path / "pipeline.json").text
    assert text == TextSettings(
        encoder="ckpts/text_encoder",
        max_length=MAX_LENGTH,
        words=("a", "chair"),
        nouns=("chair",),
        aliases={"seat": "chair"},
    )
    written = sorted(path.name for path in (tmp_path / "ckpts").iterdir())
    assert written == [f"text_encoder.{end}" for end in ("json", "merges.txt", "safetensors", "vocab.json")]
