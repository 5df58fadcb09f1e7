"""Samplers, pictures, meshes to voxels, and whole runs of TRELLIS v1 at toy size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from tests.parity.case import Case, Check, Kind
from tests.parity.kinds.trellis1_layers import compare_strictly, named, sparse_input
from tests.parity.kinds.trellis1_models import build
from trellis import stages
from trellis.condition import MAX_SIDE, crop_object
from trellis.settings import Normalization, sampler_settings
from trellis_core.geometry.occupancy import normalized, occupied_by
from trellis_core.geometry.types import Mesh
from trellis_core.image.preprocess import object_box
from trellis_core.runtime import Runtime
from trellis_core.sampling.euler import model_velocity, sample_euler
from trellis_core.sampling.guidance import clean_estimate, guided
from trellis_core.sampling.multi_image import STOCHASTIC
from trellis_core.sampling.schedule import timesteps
from trellis_core.sampling.state import values
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.training.objectives import clean_from, noised

RUNTIME = Runtime()
SAMPLERS = {
    "trellis1.sampler_euler": "FlowEulerSampler",
    "trellis1.sampler_cfg": "FlowEulerCfgSampler",
    "trellis1.sampler_interval": "FlowEulerGuidanceIntervalSampler",
}


def sampler(case: Case) -> dict[str, Tensor]:
    """One trajectory, with the data that every step points to."""
    model = build(case.config["model"], case.weights)
    run = case.config["sampler"]
    entry = {"name": SAMPLERS[case.kind], "args": {"sigma_min": run["sigma_min"]}, "params": run}
    settings = sampler_settings(entry)
    cond = model.precompute_context(case.inputs["cond"])
    uncond = case.inputs.get("neg_cond")
    velocity = guided(model_velocity(model, cond), model_velocity(model, uncond), settings)
    sparse = "noise.coords" in case.inputs
    noise: Any = sparse_input(case, "noise") if sparse else case.inputs["noise"]
    clean: list[Tensor] = []
    states: list[Tensor] = []

    def observed(x: Any, t: float) -> Any:
        v = velocity(x, t)
        clean.append(values(clean_estimate(x, t, v, settings.sigma_min)))
        return v

    times = timesteps(settings.steps, settings.rescale_t)
    end = sample_euler(observed, noise, times, lambda _, x: states.append(values(x)))
    return {
        **(named("samples", end) if sparse else {"samples": end}),
        "x_t": torch.stack(states),
        "x_0": torch.stack(clean),
        "t_seq": torch.tensor(times, dtype=torch.float64),
    }


def conversions(case: Case) -> dict[str, Tensor]:
    """The recorded velocity also stands for noise, and for data, in the other two directions."""
    x_t, v, sigma = case.inputs["x_t"], case.inputs["v"], case.config["sigma_min"]
    t = torch.tensor(case.config["t"])
    level = noised(torch.zeros_like(v), torch.ones_like(v), t, sigma)
    return {
        "x_0": clean_estimate(x_t, case.config["t"], v, sigma),
        "eps": (1 - t) * v + x_t,
        "x_0_from_eps": clean_from(x_t, v, t, sigma),
        "eps_from_x_0": (x_t - (1 - t) * v) / level,
    }


# --- pictures and meshes ----------------------------------------------------------------------------


def preprocess(case: Case) -> dict[str, Tensor]:
    """With the stub that stands for the background remover when the picture has no transparency."""
    size = case.config.get("output_size", [518])[0]
    seen: list[Image.Image] = []

    def remove(picture: Image.Image) -> Image.Image:
        seen.append(picture)
        mask = torch.zeros(picture.height, picture.width, dtype=torch.uint8)
        mask[5:20, 300:700] = 255
        mask[2:25, 400:500] = 205
        mask[1, 10] = 204
        return Image.fromarray(mask.numpy())

    name = "rgba" if "rgba" in case.inputs else "rgb"
    picture = crop_object(Image.fromarray(case.inputs[name].numpy()), remove, size)
    result = pixels(picture)
    out = {
        "image_sub": result[::4, ::4],
        "checksum": result.long().sum(),
        "row259": result[259],
        "col259": result[:, 259],
    }
    if seen:
        assert max(seen[0].size) <= MAX_SIDE
        out["remover_input_size_wh"] = torch.tensor(seen[0].size)
        out["remover_input_sub"] = pixels(seen[0])[::3, ::16]
    else:
        out["bbox"] = torch.tensor(object_box(Image.fromarray(case.inputs[name].numpy())))
    return out


def compare_pictures(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    """Levels by the sidecar's tolerance; the sum of all of them within 0.05 %."""
    total = want.pop("checksum").item()
    checks = compare_strictly(case, got, want)
    return [*checks, Check("checksum", abs(got["checksum"].item() - total) / total, 5e-4)]


def pixels(picture: Image.Image) -> Tensor:
    data = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return data.reshape(picture.height, picture.width, -1)


def voxelized(case: Case) -> dict[str, Tensor]:
    vertices = normalized(case.inputs["vertices"])
    voxels = occupied_by(Mesh(vertices, case.inputs["faces"]), case.config["resolution"])
    return {"voxels_sorted": voxels, "vertices_normalised": vertices}


def compare_voxels(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    """As sets; voxels that are merely touched may differ, 0.1 % of them."""
    ours, theirs = (set(map(tuple, side["voxels_sorted"].long().tolist())) for side in (got, want))
    gap = (got["vertices_normalised"] - want["vertices_normalised"]).abs().max().item()
    return [
        Check("voxels_sorted", len(ours ^ theirs), len(theirs) // 1000),
        Check("vertices_normalised", gap, 1e-12),
    ]


# --- whole runs -------------------------------------------------------------------------------------


def networks_of(case: Case) -> dict[str, nn.Module]:
    """Those that the case has weights of."""
    weights = {name: case.weights_of(name) for name in case.config["models"]}
    return {name: build(case.config["models"][name], found) for name, found in weights.items() if found}


def run(case: Case) -> dict[str, Tensor]:
    """From given tokens; several pictures are combined as the call says, and noise is as it was drawn."""
    networks = networks_of(case)
    conds, mode = conditions(case)
    noise = case.inputs["ss_noise"]
    assert torch.equal(noise, drawn(case, noise.shape, case.inputs["slat_noise"].shape)[0])
    z = stages.sample_flow(
        networks["sparse_structure_flow_model"],  # type: ignore[arg-type]
        noise,
        conds,
        sampler_settings(case.config["sparse_structure_sampler"]),
        RUNTIME,
        "structure",
        mode=mode,
    )
    logits = networks["sparse_structure_decoder"](z)
    coords = stages.occupied_voxels(logits)
    out = {"z_s": z, "logits": logits, "coords": coords}
    return out | detail(case, networks, coords, conds, mode)


def run_variant(case: Case) -> dict[str, Tensor]:
    """Voxels are given, and repeated for every sample."""
    networks = networks_of(case)
    voxels = case.inputs["voxels"]
    samples = len(case.inputs["slat_noise"]) // len(voxels)
    coords = stages.repeated(voxels, samples)
    return {"coords": coords} | detail(
        case, networks, coords, [case.inputs["cond"]], STOCHASTIC, case.inputs["neg_cond"]
    )


def detail(
    case: Case,
    networks: Mapping[str, nn.Module],
    coords: Tensor,
    conds: Sequence[Tensor],
    mode: str,
    uncond: Tensor | None = None,
) -> dict[str, Tensor]:
    """Latents on given voxels, and what they decode to."""
    batch = int(coords[:, 0].max()) + 1
    latent = stages.sample_flow(
        networks["slat_flow_model"],  # type: ignore[arg-type]
        SparseTensor(case.inputs["slat_noise"], coords, batch),
        conds,
        sampler_settings(case.config["slat_sampler"]),
        RUNTIME,
        "latents",
        uncond=uncond,
        mode=mode,
    )
    latent = stages.denormalize(latent, Normalization(**case.config["slat_normalization"]))
    out = {"slat": latent.feats}
    for i, cloud in enumerate(stages.decode_gaussians(networks["slat_decoder_gs"], latent)):  # type: ignore[arg-type]
        values = {
            "xyz": cloud.positions,
            "opacity": cloud.opacities,
            "scaling": cloud.scales,
            "rotation": cloud.rotations,
            "features_dc": cloud.features[:, None],
        }
        out |= {f"g{i}.{name}": value for name, value in values.items()}
    field_decoder: Any = networks.get("slat_decoder_rf")
    for i, field in enumerate(stages.decode_fields(field_decoder, latent) if field_decoder else ()):
        out[f"rf{i}_trivec"] = field.vectors
    return out


def conditions(case: Case) -> tuple[list[Tensor], str]:
    """One condition per picture, and the mode that the call names."""
    call = case.info["call"]
    mode = call.partition("mode='")[2].partition("'")[0] or STOCHASTIC
    return list(case.inputs["cond"].split(1)), mode


def drawn(case: Case, *shapes: Sequence[int]) -> list[Tensor]:
    """What a CPU generator with the case's seed draws, in order."""
    generator = torch.Generator().manual_seed(int(case.inputs["seed"]))
    return [torch.randn(*shape, generator=generator) for shape in shapes]


KINDS = {
    **{name: Kind(sampler) for name in SAMPLERS},
    "trellis1.sampler_conversions": Kind(conversions),
    "trellis1.preprocess": Kind(preprocess, compare_pictures),
    "trellis1.voxelize": Kind(voxelized, compare_voxels),
    "trellis1.pipeline_run": Kind(run),
    "trellis1.pipeline_multi": Kind(run),
    "trellis1.pipeline_text_run_variant": Kind(run_variant),
}
