"""A tiny TRELLIS.2 model folder in the released layout, for tests of everything around the networks.

Its weights are those of two golden cases: random, so what it makes is a cloud of fragments, but every
class, file and stage is the real one. Its text encoder is random too and knows `WORDS`.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.parity.case import Case, read_case
from trellis_core.models.text_encoder import CLIPTextEncoder
from trellis_core.models.tokenizer import Tokenizer, word_vocabulary

GOLDEN = Path(__file__).parent / "golden" / "trellis2"
ENCODER = "image_cond_model"
NOUNS = ("chair", "table", "street lamp")
WORDS = ("a", "tall", "small", "red", "blue", "with", "armrests", "and", *" ".join(NOUNS).split())
MAX_LENGTH = 12  # tokens


def write_tiny_model(folder: Path, *, text: bool = True) -> Path:
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
    if text:
        args["text_cond_model"] = _write_text_encoder(folder, image.config["image_cond_model"])
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


def _write_text_encoder(folder: Path, picture_encoder: dict) -> dict:
    """Random weights that tell words apart; returns its entry in `pipeline.json`."""
    tokenizer = Tokenizer(*word_vocabulary(WORDS))
    sizes = {
        **{k: picture_encoder[k] for k in ("hidden_size", "num_attention_heads", "intermediate_size")},
        "vocab_size": tokenizer.size,
        "num_hidden_layers": 1,
        "max_position_embeddings": MAX_LENGTH,
    }
    encoder = CLIPTextEncoder(**sizes)
    generator = torch.Generator().manual_seed(0)
    weights = {k: torch.randn(v.shape, generator=generator) for k, v in encoder.state_dict().items()}
    stem = folder / "ckpts" / "text_encoder"
    _write_json(stem.with_suffix(".json"), {"name": "CLIPTextEncoder", "args": sizes})
    save_file(weights, stem.with_suffix(".safetensors"))
    tokenizer.write(stem.with_suffix(".vocab.json"), stem.with_suffix(".merges.txt"))
    args = {"model": "ckpts/text_encoder", "max_length": MAX_LENGTH, "words": WORDS, "nouns": NOUNS}
    return {"name": "CLIPTextEncoder", "args": args}


def _write_network(folder: Path, name: str, config: dict, case: Case, prefix: str) -> None:
    _write_json(folder / "ckpts" / f"{name}.json", config)
    weights = {key: tensor.contiguous() for key, tensor in case.weights_of(prefix).items()}
    save_file(weights, folder / "ckpts" / f"{name}.safetensors")


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1))
