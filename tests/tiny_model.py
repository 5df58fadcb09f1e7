"""A tiny TRELLIS.2 model folder in the released layout, for tests of everything around the networks.

Its weights are those of two golden cases: random, so what it makes is a cloud of fragments, but every
class, file and stage is the real one.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from tests.parity.case import Case, read_case

GOLDEN = Path(__file__).parent / "golden" / "trellis2"
ENCODER = "image_cond_model"


def write_tiny_model(folder: Path) -> Path:
    """Write `pipeline.json`, `texturing_pipeline.json` and `ckpts/` below `folder`; returns it."""
    image = read_case(GOLDEN / "pipeline_512.json")
    texturing = read_case(GOLDEN / "pipeline_texturing.json")
    (folder / "ckpts").mkdir(parents=True)
    names = list(image.config["models"])
    for case, models in ((image, names), (texturing, ["shape_slat_encoder"])):
        for name in models:
            _write_network(folder, name, case.config["models"][name], case, name)
    encoder = {"name": "DINOv3ViT", "args": image.config["image_cond_model"]}
    _write_network(folder, "image_encoder", encoder, image, ENCODER)
    args = _pipeline_args(image.config, names)
    _write_json(folder / "pipeline.json", {"name": "Trellis2ImageTo3DPipeline", "args": args})
    models = {n: p for n, p in args["models"].items() if n.startswith("tex_")}
    models["shape_slat_encoder"] = "ckpts/shape_slat_encoder"
    _write_json(
        folder / "texturing_pipeline.json",
        {"name": "Trellis2TexturingPipeline", "args": {**args, "models": models}},
    )
    return folder


def _pipeline_args(config: dict, names: list[str]) -> dict:
    def sampler(params: dict) -> dict:
        return {
            "name": "FlowEulerGuidanceIntervalSampler",
            "args": {"sigma_min": config["sigma_min"]},
            "params": params,
        }

    return {
        "models": {name: f"ckpts/{name}" for name in names},
        "sparse_structure_sampler": sampler(config["sparse_structure_sampler_params"]),
        "shape_slat_sampler": sampler(config["shape_slat_sampler_params"]),
        "tex_slat_sampler": sampler(config["tex_slat_sampler_params"]),
        "shape_slat_normalization": config["shape_slat_normalization"],
        "tex_slat_normalization": config["tex_slat_normalization"],
        "image_cond_model": {"name": "DinoV3FeatureExtractor", "args": {"model_name": "ckpts/image_encoder"}},
        "default_pipeline_type": "512",
    }


def _write_network(folder: Path, name: str, config: dict, case: Case, prefix: str) -> None:
    _write_json(folder / "ckpts" / f"{name}.json", config)
    weights = {key: tensor.contiguous() for key, tensor in case.weights_of(prefix).items()}
    save_file(weights, folder / "ckpts" / f"{name}.safetensors")


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1))
