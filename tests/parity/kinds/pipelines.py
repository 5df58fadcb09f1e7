"""Whole TRELLIS.2 runs at toy size, stage by stage: cascade, picture to mesh, texturing."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from tests.parity.case import Case, Kind
from trellis2 import stages
from trellis2.dual_grid import normalize_mesh
from trellis2.models import MODELS
from trellis2.settings import RELEASED_TYPES, Normalization, sampler_settings
from trellis2.texturing import encode_shape
from trellis_core.image.preprocess import preprocess_picture
from trellis_core.io.gltf import from_y_up
from trellis_core.runtime import Runtime
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.weights.load import network_arguments

RUNTIME = Runtime()
ENCODER = "image_cond_model"


def run_cascade(case: Case) -> dict[str, Tensor]:
    out = {}
    for name, run in case.config["runs"].items():
        tokens = stages.cascade_tokens(
            case.inputs[run["hr_coords"].removeprefix("in.")],
            run["lr_resolution"],
            run["resolution"],
            run["max_num_tokens"],
        )
        out[f"{name}_coords"] = tokens.coords
        out[f"{name}_resolution"] = torch.tensor(tokens.resolution)
    return out


def run_pipeline(case: Case) -> dict[str, Tensor]:
    config = case.config
    kind = RELEASED_TYPES[config["pipeline_type"]]
    networks = build_networks(case)
    picture = preprocess_picture(to_picture(case.inputs["image"]), None)
    conds = {
        size: stages.encode_picture(networks[ENCODER], [picture], size, RUNTIME)
        for size in {512, *(p.image_size for p in kind.shape_passes)}
    }
    out = {"preprocessed": to_pixels(picture)}
    for size, cond in conds.items():
        out[f"cond_{size}"] = cond
        out[f"cond_{size}_head"] = cond[:, :64]

    samplers = {
        name: sampler(config, f"{name}_sampler_params")
        for name in ("sparse_structure", "shape_slat", "tex_slat")
    }
    z_s = stages.sample_flow(
        networks["sparse_structure_flow_model"],
        case.inputs["noise_sparse_structure"],
        conds[kind.structure_image_size],
        samplers["sparse_structure"],
        RUNTIME,
        "structure",
    )
    coords = stages.occupied_cells(networks["sparse_structure_decoder"](z_s), kind.structure_resolution)
    out |= {"z_s": z_s, "coords_after_structure": coords}

    shape_stats = Normalization(**config["shape_slat_normalization"])
    cascade = len(kind.shape_passes) > 1
    decoder = networks["shape_slat_decoder"]
    resolution, latent = kind.resolution, None
    for index, part in enumerate(kind.shape_passes):
        label = ("lr", "hr")[index] if cascade else ""
        if index:
            hr_coords = decoder.upsample(latent, decoder.levels)
            tokens = stages.cascade_tokens(
                hr_coords,
                kind.shape_passes[0].resolution,
                part.resolution,
                config["max_num_tokens"],
                decoder.factor,
            )
            coords, resolution = tokens.coords, tokens.resolution
            out["hr_coords"] = hr_coords
        noise = case.inputs[f"noise_shape_{label}" if label else "noise_shape"]
        normalised = stages.sample_flow(
            networks[part.model],
            SparseTensor(noise, coords, batch_size=1),
            conds[part.image_size],
            samplers["shape_slat"],
            RUNTIME,
            "shape",
        )
        put_sparse(out, f"shape_{label}_normalised" if label else "shape_normalised", normalised)
        latent = stages.denormalize(normalised, shape_stats)
    put_sparse(out, "shape_slat", latent)

    color = stages.sample_flow(
        networks[kind.texture_model],
        latent.replace(case.inputs["noise_tex"]),
        conds[kind.texture_image_size],
        samplers["tex_slat"],
        RUNTIME,
        "texture",
        concat_cond=stages.normalize(latent, shape_stats),
    )
    color = stages.denormalize(color, Normalization(**config["tex_slat_normalization"]))
    put_sparse(out, "tex_slat", color)
    out["resolution"] = torch.tensor(resolution)

    decoded = stages.decode_latents(decoder, networks["tex_slat_decoder"], latent, color, RUNTIME)
    for level, logits in enumerate(decoded.subdivisions):
        put_sparse(out, f"subs.{level}", logits)
    shape = stages.voxel_meshes(decoded, decoder, resolution)[0]
    extent = shape.voxels.coords.amax(0) + 1
    out |= {
        "decoder_raw": decoded.shape.feats,
        "mesh_vertices": shape.mesh.vertices,
        "mesh_faces": shape.mesh.faces,
        "voxel_coords": shape.voxels.coords,
        "voxel_attrs": shape.voxels.attrs,
        "voxel_shape": torch.tensor([1, shape.voxels.attrs.shape[1], *extent.tolist()]),
    }
    return out


def run_texturing(case: Case) -> dict[str, Tensor]:
    config = case.config
    networks = build_networks(case)
    resolution = config["resolution"]
    size = 512 if resolution == 512 else 1024
    picture = preprocess_picture(to_picture(case.inputs["image"]), None)
    cond = stages.encode_picture(networks[ENCODER], [picture], size, RUNTIME)
    voxels = case.inputs["voxel_indices"]
    latent = encode_shape(
        networks["shape_slat_encoder"],
        voxels,
        case.inputs["dual_vertices"] * resolution - voxels,
        case.inputs["intersected"],
    )
    color = stages.sample_flow(
        networks[f"tex_slat_flow_model_{size}"],
        latent.replace(case.inputs["noise_tex"]),
        cond,
        sampler(config, "tex_slat_sampler_params"),
        RUNTIME,
        "texture",
        concat_cond=stages.normalize(latent, Normalization(**config["shape_slat_normalization"])),
    )
    color = stages.denormalize(color, Normalization(**config["tex_slat_normalization"]))
    out = {
        "preprocessed": to_pixels(picture),
        "preprocessed_vertices": from_y_up(normalize_mesh(case.inputs["mesh_vertices"])),
    }
    put_sparse(out, "shape_slat", latent)
    put_sparse(out, "tex_slat", color)
    put_sparse(out, "voxels", stages.decode_texture(networks["tex_slat_decoder"], color))
    return out


def build_networks(case: Case) -> dict[str, nn.Module]:
    """The case's networks, filled strictly with its weights."""
    entries = {**case.config["models"], ENCODER: {"name": "DINOv3ViT", "args": case.config[ENCODER]}}
    networks = {}
    for name, entry in entries.items():
        kind = MODELS[entry["name"]]
        network = kind(**network_arguments(kind, entry["args"]))
        network.load_state_dict(case.weights_of(name), strict=True)
        networks[name] = network.eval()
    return networks


def sampler(config: dict[str, Any], name: str) -> Any:
    return sampler_settings(
        {
            "name": "FlowEulerGuidanceIntervalSampler",
            "args": {"sigma_min": config["sigma_min"]},
            "params": config[name],
        }
    )


def to_picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.numpy())


def to_pixels(picture: Image.Image) -> Tensor:
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(
        picture.height, picture.width, -1
    )


def put_sparse(out: dict[str, Tensor], name: str, x: SparseTensor) -> None:
    out[f"{name}.feats"] = x.feats
    out[f"{name}.coords"] = x.coords


KINDS = {
    "trellis2.cascade": Kind(run_cascade),
    "trellis2.pipeline": Kind(run_pipeline),
    "trellis2.pipeline_texturing": Kind(run_texturing),
}
