"""TRELLIS v1 models by name: found, chosen, listed, pulled, verified, planned and repaired.

Properties: a model's `pipeline.json` says its version; the former owner's name means the present one, in
commands, in files and in the cache; `auto` takes the best model that takes what there is; a text model is
pulled with the decoders of another repository and with its encoder's vocabulary, and runs; an edited
`pipeline.json` is found and mended.
The hub is a small server on this machine; tiny models stand in for the released ones.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.test_cli_registry import CPU, GIB, LARGE_GPU
from tests.cli.test_models_command import trellis
from tests.hub_server import Hub, serve
from tests.tiny_model import write_tiny_model
from tests.tiny_trellis1 import write_tiny_trellis1
from trellis.places import find_checkpoint
from trellis_cli import registry
from trellis_cli.commands import doctor
from trellis_cli.delivery import Order
from trellis_cli.options import Form
from trellis_cli.released import configuration_folder, released_networks, released_sizes
from trellis_core.errors import ModelError, UsageError
from trellis_core.memory.budget import MemoryRequest
from trellis_core.weights import hub

V1_MODELS = ("image-large", "text-xlarge", "text-large", "text-base")
FLOW, STRUCTURE = "slat_flow_model", "sparse_structure_flow_model"
DECODERS = ("sparse_structure_decoder", "slat_decoder_gs", "slat_decoder_rf", "slat_decoder_mesh")


@pytest.fixture
def cache(private_folders, tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return write_tiny_trellis1(tmp_path_factory.mktemp("v1") / "pictures")


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    return write_tiny_trellis1(tmp_path_factory.mktemp("v1") / "words", text=True)


def cached(cache: Path, repository: str, model: Path) -> Path:
    """A model folder's files in the hub's cache, as if it had been pulled."""
    place = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(model, place / "snapshots" / "0")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0")
    return place / "snapshots" / "0"


def edit(folder: Path, **models: str) -> Path:
    """Change entries of a model's `pipeline.json`."""
    path = folder / "pipeline.json"
    content = json.loads(path.read_text())
    content["args"]["models"].update(models)
    path.unlink()
    path.write_text(json.dumps(content))
    return path


# Finding


def test_the_pipeline_file_says_the_version(pictures, words, tiny_model):
    assert [registry.version_of(folder) for folder in (pictures, words, tiny_model)] == [
        "trellis", "trellis", "trellis2",
    ]  # fmt: skip
    for name, model in registry.MODELS.items():
        folder = configuration_folder(name)
        assert folder is None or registry.version_of(folder) == model.version
    for name in V1_MODELS:
        folder = configuration_folder(name)
        assert folder is not None
        model = registry.MODELS[name]
        assert (registry.has_pictures(folder), registry.has_text(folder)) == (model.pictures, model.text)


def test_python_says_which_version_opens_a_model(pictures, tiny_model):
    import trellis
    import trellis2

    with pytest.raises(ModelError, match=r"TRELLIS v1") as caught:
        trellis2.load(pictures)
    assert "trellis.load" in caught.value.hint
    with pytest.raises(ModelError, match=r"TRELLIS\.2") as caught:
        trellis.load(tiny_model)
    assert "trellis2.load" in caught.value.hint


def test_a_pipeline_file_of_something_else_is_a_model_error(run, tmp_path):
    (tmp_path / "pipeline.json").write_text('{"args": {"unet": "x"}}')
    said = run("text", "a chair", "--model", tmp_path)
    said.assert_one_error(4)
    assert "lists no models" in said.err


def test_the_former_owner_is_the_present_one_in_names_and_in_the_cache(cache, pictures):
    folder = cached(cache, "JeffreyXiang/TRELLIS-image-large", pictures)
    for name in ("image-large", "microsoft/TRELLIS-image-large", "JeffreyXiang/TRELLIS-image-large"):
        assert registry.find_model(name).folder == folder
    stem = find_checkpoint("microsoft/TRELLIS-image-large/ckpts/slat_decoder_gs", pictures)
    assert stem == folder / "ckpts" / "slat_decoder_gs"
    newer = cached(cache, "microsoft/TRELLIS-image-large", pictures)
    assert registry.find_model("JeffreyXiang/TRELLIS-image-large").folder == newer
    import trellis

    assert trellis.load("image-large").formats == ("mesh", "gaussians", "radiance_field")


@pytest.mark.parametrize("name", ["JeffreyXiang/other", "nobody/TRELLIS-image-large"])
def test_no_other_name_is_an_alias(cache, name):
    with pytest.raises(ModelError, match=f"`{name}` is not on this machine"):
        registry.find_model(name)


def test_a_download_that_was_broken_off_is_called_so(cache, words):
    folder = cached(cache, "microsoft/TRELLIS-text-base", words)
    (folder / "ckpts" / f"{FLOW}.safetensors").unlink()
    (folder / "ckpts" / f"{FLOW}.json").unlink()
    with pytest.raises(ModelError, match="looked at") as caught:
        hub.find_checkpoint(f"ckpts/{FLOW}", folder, model="text-base")
    assert "hub's cache" not in caught.value.message  # `ckpts` is no owner
    (folder.parents[1] / "blobs").mkdir()
    (folder.parents[1] / "blobs" / "0f3a.incomplete").write_bytes(b"half")
    with pytest.raises(ModelError, match="its download was not finished") as caught:
        hub.find_checkpoint(f"ckpts/{FLOW}", folder, model="text-base")
    assert "trellis models pull text-base" in caught.value.hint
    assert registry.missing_checkpoints(folder) == [f"ckpts/{FLOW}"]


# Choosing


def test_auto_takes_the_best_model_for_what_there_is(
    cache, pictures, words, tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(registry, "embedded_folder", lambda: tiny_model)
    cached(cache, "microsoft/TRELLIS-image-large", pictures)
    cached(cache, "microsoft/TRELLIS-text-base", words)
    request = MemoryRequest()
    assert registry.choose_model(LARGE_GPU, request).name == "image-large"
    assert registry.choose_model(LARGE_GPU, request, text=True).name == "text-base"
    cached(cache, "microsoft/TRELLIS-text-xlarge", words)
    cached(cache, "microsoft/TRELLIS.2-4B", write_tiny_model(tmp_path / "mute", text=False))
    assert registry.choose_model(LARGE_GPU, request).name == "trellis2-4b"
    assert registry.choose_model(LARGE_GPU, request, text=True).name == "text-xlarge"
    slow = registry.choose_model(CPU, request, text=True)
    assert slow.name == "embedded"
    assert "text-base would take hours without a GPU" in slow.reason


def gaussians_wanted(version: str, model: str) -> None:
    Order(paths=(), previews=(), form=Form.gaussians).require_fit(version, model)


def test_auto_passes_over_models_that_do_not_make_what_is_asked_for(cache, pictures, tiny_model, monkeypatch):
    monkeypatch.setattr(registry, "embedded_folder", lambda: tiny_model)
    cached(cache, "microsoft/TRELLIS.2-4B", tiny_model)
    with pytest.raises(ModelError, match="makes meshes only") as caught:
        registry.choose_model(LARGE_GPU, MemoryRequest(), fits=gaussians_wanted)
    assert caught.value.hint == "run `trellis models pull image-large`"
    cached(cache, "microsoft/TRELLIS-image-large", pictures)
    found = registry.choose_model(LARGE_GPU, MemoryRequest(), fits=gaussians_wanted)
    assert found.name == "image-large"
    assert "trellis2-4b is no choice" in found.reason


def test_without_a_text_model_the_command_that_gets_one_is_named(cache, tmp_path, monkeypatch):
    picture_only = write_tiny_model(tmp_path / "mute", text=False)
    monkeypatch.setattr(registry, "embedded_folder", lambda: picture_only)
    with pytest.raises(ModelError) as caught:
        registry.choose_model(LARGE_GPU, MemoryRequest(), text=True)
    assert caught.value.hint == "run `trellis models pull text-xlarge`"


# Planning


def test_both_versions_have_a_memory_plan(pictures, words, tiny_model):
    plans = [
        registry.plan_for(folder, LARGE_GPU, MemoryRequest()) for folder in (pictures, words, tiny_model)
    ]
    assert all(plan.fits and plan.peak > 0 for plan in plans)
    stages = [list(plan.peaks) for plan in plans]
    assert stages[0] == stages[1] == ["condition", "structure", "latents", "decode"]
    more = registry.plan_for(pictures, LARGE_GPU, MemoryRequest(num_samples=4))
    assert more.peak > plans[0].peak
    with pytest.raises(UsageError, match="pipeline type `512`"):
        registry.plan_for(pictures, LARGE_GPU, MemoryRequest(), "512")


@pytest.mark.parametrize("name", V1_MODELS)
def test_released_models_are_planned_before_they_are_downloaded(name, cache):
    sizes, networks = released_sizes(name), released_networks(name)
    assert set(sizes) == set(networks)
    assert len(sizes) == 7
    for network, (_, parameters) in networks.items():
        if network != "text_encoder":  # half of its file
            assert parameters == pytest.approx(sizes[network] / (4 if "encoder" in network else 2), rel=2e-2)
    (plan,) = doctor.plans_of(name, LARGE_GPU).values()
    weights = sum(parameters for _, parameters in networks.values()) * 2
    assert weights < plan.peak < weights + 6 * GIB
    assert plan.fits


def test_larger_text_models_need_more_memory(cache):
    peaks = [next(iter(doctor.plans_of(name, LARGE_GPU).values())).peak for name in V1_MODELS[1:]]
    assert peaks == sorted(peaks, reverse=True)


# Pulling


def test_a_text_model_is_pulled_with_the_decoders_and_the_vocabulary_it_needs(
    run, tmp_path, words, monkeypatch
):
    """As released: decoders under the former owner's name, the encoder with its published one."""
    files = {
        path.relative_to(words).as_posix(): path.read_bytes() for path in words.rglob("*") if path.is_file()
    }
    pipeline = json.loads(files["pipeline.json"])
    pipeline["args"]["models"] |= {
        name: f"JeffreyXiang/TRELLIS-image-large/ckpts/{name}" for name in DECODERS
    }
    pipeline["args"]["text_cond_model"] = "openai/clip-vit-large-patch14"
    text = {
        "pipeline.json": json.dumps(pipeline).encode(),
        **{f"ckpts/{name}{end}": files[f"ckpts/{name}{end}"] for name in (FLOW, STRUCTURE) for end in ENDS},
    }
    image = {path: data for path, data in files.items() if path.startswith("ckpts/")}
    encoder = {
        "config.json": json.dumps(
            {"text_config": json.loads(files["ckpts/text_encoder.json"])["args"]}
        ).encode(),
        "model.safetensors": files["ckpts/text_encoder.safetensors"],
        "vocab.json": files["ckpts/text_encoder.vocab.json"],
        "merges.txt": files["ckpts/text_encoder.merges.txt"],
    }
    repositories = {
        "microsoft/TRELLIS-text-xlarge": text,
        "microsoft/TRELLIS-image-large": image,
        "openai/clip-vit-large-patch14": encoder,
    }
    with serve(Hub(repositories)) as server:
        said = trellis(server, tmp_path, "pull", "JeffreyXiang/TRELLIS-text-xlarge")
        assert said.returncode == 0, said.stderr
        assert set(server.downloads) == {
            *(f"microsoft/TRELLIS-text-xlarge/{path}" for path in text),
            *(f"microsoft/TRELLIS-image-large/ckpts/{name}{end}" for name in DECODERS for end in ENDS),
            *(f"openai/clip-vit-large-patch14/{path}" for path in encoder),
        }
        listed = json.loads(trellis(server, tmp_path, "list", "--json").stdout)["models"]
        assert next(model["state"] for model in listed if model["name"] == "text-xlarge") == "ready"
        checked = trellis(server, tmp_path, "verify", "text-xlarge")
        assert checked.returncode == 0, checked.stdout
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        made = run("text", "a red chair", "--model", "text-xlarge", "-o", "chair.spz", "-q")
        assert made.code == 0, made.err
        weights = next((tmp_path / "hub").glob(f"models--*image-large/snapshots/*/ckpts/{DECODERS[1]}.saf*"))
        weights.unlink()
        partial = trellis(server, tmp_path, "verify", "text-xlarge")
        assert partial.returncode == 4
        assert DECODERS[1] in partial.stdout


ENDS = (".json", ".safetensors")


def test_a_repository_that_lacks_its_own_checkpoint_is_named_and_no_other_is_looked_for(tmp_path, words):
    files = {
        path.relative_to(words).as_posix(): path.read_bytes() for path in words.rglob("*") if path.is_file()
    }
    del files[f"ckpts/{FLOW}.safetensors"]
    with serve(Hub({"maker/words": files})) as server:
        said = trellis(server, tmp_path, "pull", "maker/words")
    assert said.returncode == 4
    assert f"`maker/words` has no file `ckpts/{FLOW}.safetensors`" in said.stderr
    assert "does not exist on the hub" not in said.stderr


# Repairing


@pytest.fixture
def misled(cache, pictures) -> Path:
    """A cached model whose `pipeline.json` was edited as some documents advise."""
    folder = cached(cache, "microsoft/TRELLIS-image-large", pictures)
    edit(
        folder,
        **{
            STRUCTURE: "ckpts/ss_flow_img_dit_L_16l8_fp16",
            FLOW: "ckpts/ss_flow_img_dit_L_16l8_fp16",
        },
    )
    return folder


def test_doctor_finds_the_wrong_advice_and_repairs_it_when_asked(run, misled):
    said = run("doctor", "--quick", "--json")
    assert said.code == 1
    (found,) = [check for check in said.json["checks"] if "image-large" in check["text"] and check["fix"]]
    assert found["check"] == "pipeline"
    assert "cannot work" in found["text"]
    assert found["fix"] == "trellis doctor --fix"
    mended = run("doctor", "--quick", "--fix", "--json").json
    assert mended["repaired"] == [str(misled / "pipeline.json")]
    assert any("slat_flow_img_dit_L_64l8p2_fp16" in check["text"] for check in mended["checks"])
    again = run("doctor", "--quick", "--fix", "--json").json
    assert "repaired" not in again


def test_a_folder_is_repaired_when_it_is_named(run, pictures, tmp_path):
    folder = shutil.copytree(pictures, tmp_path / "mine")
    path = edit(folder, **{FLOW: f"ckpts/{STRUCTURE}"})
    said = run("generate", "box.png", "--model", folder)
    assert said.code == 3  # there is no such picture, and that is said first
    said = run("models", "verify", folder)
    assert said.code == 4
    assert "trellis doctor --fix" in said.out
    assert "pipeline" in run("doctor", folder, "--quick").out
    assert run("doctor", folder, "--quick", "--fix", "--json").json["repaired"] == [str(path)]


def test_other_commands_name_the_repair(run, misled, picture):
    said = run("generate", picture, "--model", "image-large")
    said.assert_one_error(4)
    assert "trellis doctor --fix" in said.err
    listed = run("models", "list")
    assert listed.code == 0, listed.err
    assert "damaged" in listed.out
    assert "trellis doctor --fix" in listed.out
