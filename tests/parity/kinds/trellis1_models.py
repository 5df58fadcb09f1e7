"""The networks of TRELLIS v1, in float32 and with float16 torsos, and what their outputs mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.parity.case import Case, Check, Kind, compare_by_tolerance, compare_tensor
from tests.parity.kinds.trellis1_layers import filled, named, sparse_input, wanted, z_fastest
from tests.parity.kinds.trellis1_surface import compare_meshes
from trellis.flexicubes import cube_meshes
from trellis.models import MODELS
from trellis.representations import gaussians, radiance_fields, raw_gaussians
from trellis.stages import occupied_voxels
from trellis_core.geometry.fields import covariances, offset_perturbation
from trellis_core.geometry.triangles import face_normals
from trellis_core.io.gaussian_ply import ply_columns
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.weights.load import network_arguments

ROOT_OF_ROUNDING = 2**-11.5  # of float32 numbers near 1


def build(config: dict[str, Any], weights: dict[str, Tensor]) -> Any:
    """The network of a released configuration, filled strictly, in float32."""
    kind = MODELS[config["name"]]
    return filled(kind(**network_arguments(kind, config["args"])), weights)


def watched(model: nn.Module, hooks: dict[str, nn.Module], run: Any) -> tuple[Any, dict[str, Any]]:
    """The result of `run()`, and what the hooked modules gave."""
    seen: dict[str, Any] = {}
    handles = [
        module.register_forward_hook(lambda _m, _i, result, name=name: seen.setdefault(name, result))
        for name, module in hooks.items()
    ]
    result = run()
    for handle in handles:
        handle.remove()
    return result, {k: v.feats if isinstance(v, SparseTensor) else v for k, v in seen.items()}


def hooks_for(case: Case, model: Any) -> dict[str, nn.Module]:
    """Modules whose results the case has recorded."""
    known: dict[str, nn.Module] = {"input_layer": model.input_layer}
    known |= {f"block{i}": block for i, block in enumerate(model.blocks)}
    for name, attribute, index in (
        ("middle", "middle_block", None),
        ("input_blocks_last", "input_blocks", -1),
        ("out_block0", "out_blocks", 0),
    ):
        module = getattr(model, attribute, None)
        if module is not None and name in wanted(case):
            known[name] = module if index is None else module[index]
    return {name: module for name, module in known.items() if name in wanted(case)}


def structure_encoder(case: Case) -> dict[str, Tensor]:
    model = build(case.config, case.weights)
    (mean, logvar), seen = watched(model, hooks_for(case, model), lambda: model(case.inputs["x"]))
    sampled = mean + torch.exp(0.5 * logvar) * case.inputs["eps"]
    return {"z": mean, "mean": mean, "logvar": logvar, "z_sampled": sampled, **seen}


def structure_decoder(case: Case) -> dict[str, Tensor]:
    model = build(case.config, case.weights)
    logits, seen = watched(model, hooks_for(case, model), lambda: model(case.inputs["z"]))
    return {"logits": logits, "coords": occupied_voxels(logits), **seen}


def structure_flow(case: Case) -> dict[str, Tensor]:
    model = build(case.config, case.weights)
    x, t, cond = case.inputs["x"], case.inputs["t"], case.inputs["cond"]
    v, seen = watched(model, hooks_for(case, model), lambda: model(x, t, cond))
    torch.testing.assert_close(model(x, t, model.precompute_context(cond)), v)
    torch.testing.assert_close(model(x, t, torch.zeros_like(cond)), model(x, t, None))
    return {"v": v, "t_emb": model.t_embedder(t), **seen}


def latent_flow(case: Case) -> dict[str, Tensor]:
    model = build(case.config, case.weights)
    x, t, cond = sparse_input(case), case.inputs["t"], case.inputs["cond"]
    v, seen = watched(model, hooks_for(case, model), lambda: model(x, t, cond))
    torch.testing.assert_close(model(x, t, model.precompute_context(cond)).feats, v.feats)
    torch.testing.assert_close(model(x, t, torch.zeros_like(cond)).feats, model(x, t, None).feats)
    return {**named("v", v), **seen}


def latent_encoder(case: Case) -> dict[str, Tensor]:
    model, x = build(case.config, case.weights), sparse_input(case)
    (mean, logvar), seen = watched(model, hooks_for(case, model), lambda: model(x))
    sampled = mean.replace(mean.feats + torch.exp(0.5 * logvar.feats) * case.inputs["eps"])
    return {"mean": mean.feats, "logvar": logvar.feats, **named("z_sampled", sampled), **seen}


def gaussian_decoder(case: Case) -> dict[str, Tensor]:
    model, x = build(case.config, case.weights), sparse_input(case)
    decoded, seen = watched(model, hooks_for(case, model), lambda: model(x))
    arguments = (decoded, model.layout, model.offset_perturbation, model.resolution)
    out = {"raw": decoded.feats, **seen}
    clouds = gaussians(*arguments)
    for i, (raw, cloud) in enumerate(zip(raw_gaussians(*arguments), clouds, strict=True)):
        values = {
            "_xyz": raw.positions,
            "_features_dc": raw.features[:, None],
            "_scaling": raw.scales,
            "_rotation": raw.rotations,
            "_opacity": raw.opacities,
            "xyz": cloud.positions,
            "scaling": cloud.scales,
            "rotation": cloud.rotations,
            "opacity": cloud.opacities,
            "features": cloud.features[:, None],
            "covariance": upper_triangle(covariances(cloud)),
            "scale_bias": torch.tensor(model.layout.activation.scale_shift),
            "opacity_bias": torch.tensor(model.layout.activation.opacity_shift),
        }
        out |= {f"g{i}.{name}": value for name, value in values.items()}
    out["ply"] = ply_columns(clouds[0])
    out["ply_notransform"] = ply_columns(clouds[0], turned=False)
    return out


def upper_triangle(matrices: Tensor) -> Tensor:
    return matrices[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]


def compare_gaussians(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    """Turned quaternions may have either sign.

    They were recorded as square roots of sums of float32 matrix entries, so a component near zero is known to
    the root of the rounding only.
    """
    rest = dict(want)
    checks = []
    if "ply" in rest:
        (ours, q), (theirs, recorded) = (side.split([13, 4], dim=1) for side in (got["ply"], rest.pop("ply")))
        q = (q * recorded).sum(1, keepdim=True).sign() * q
        rule = case.info["tolerance"]
        checks.append(compare_tensor("ply", ours, theirs, rule))
        checks.append(compare_tensor("ply rotations", q, recorded, {**rule, "atol": ROOT_OF_ROUNDING}))
    return checks + compare_by_tolerance(case, got, rest)


def field_decoder(case: Case) -> dict[str, Tensor]:
    model, x = build(case.config, case.weights), sparse_input(case)
    decoded = model(x)
    out = {"raw": decoded.feats}
    for i, field in enumerate(radiance_fields(decoded, model.layout, model.resolution)):
        depth = int(field.resolution).bit_length() - 1
        out |= {
            f"r{i}.position": field.positions + 0.5,
            f"r{i}.depth": torch.full((len(field), 1), depth, dtype=torch.uint8),
            f"r{i}.trivec": field.vectors,
            f"r{i}.density": field.densities,
            f"r{i}.get_density": field.densities,
            f"r{i}.features_dc": field.features[:, :, None],
            f"r{i}.aabb": torch.tensor([-0.5] * 3 + [1.0] * 3),
        }
    return out


def mesh_decoder(case: Case) -> dict[str, Tensor]:
    model, x = build(case.config, case.weights), sparse_input(case)
    cubes, seen = watched(model, {"up": model.upsample[0]}, lambda: model(x))
    # twice eight children: those of the second level first
    fine = z_fastest(cubes)
    blocks = torch.arange(len(fine)).view(-1, 8, 8)[:, torch.tensor([0, 4, 2, 6, 1, 5, 3, 7])].flatten()
    out = {"cube_feats": fine.feats[blocks], "up0_sum": seen["up"].sum(0)}
    for i, mesh in enumerate(cube_meshes(cubes, model.layout, model.mesh_resolution)):
        normals = face_normals(mesh.vertices, mesh.faces)
        out |= {f"m{i}.vertices": mesh.vertices, f"m{i}.faces": mesh.faces}
        out |= {f"m{i}.vertex_attrs": mesh.attributes, f"m{i}.face_normal": normals}
    return out


def half_precision(case: Case) -> dict[str, Tensor]:
    """The same network in float32 and as configured; the dtypes of its state are part of the case."""
    weights = {name: value.float() for name, value in case.weights.items()}
    model = build(case.config, weights)
    sparse = "x.coords" in case.inputs
    x: Any = sparse_input(case) if sparse else case.inputs["x"]
    arguments = [x, *(case.inputs[name] for name in ("t", "cond") if name in case.inputs)]
    full = model(*arguments)
    model.set_torso_dtype(torch.float16)
    for name, dtype in case.config["state_dtypes"].items():
        assert str(model.state_dict()[name].dtype) == f"torch.{dtype}", name
    half = model(*arguments)
    if sparse:
        return {**named("y", half), **named("y_float32", full)}
    return {"y": half, "y_float32": full}


def compare_half_precision(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    """Float16 by the sidecar's tolerance, float32 tightly."""
    tight = {"atol": 5e-5, "rtol": 1e-4}
    loose = {name: value for name, value in want.items() if "float32" not in name}
    return compare_by_tolerance(case, got, loose) + [
        compare_tensor(name, got[name], want[name], tight) for name in want if name not in loose
    ]


def perturbation(case: Case) -> dict[str, Tensor]:
    config = case.config
    return {"offset_perturbation": offset_perturbation(config["num_gaussians"], config["voxel_size"])}


KINDS = {
    "trellis1.model_ss_encoder": Kind(structure_encoder),
    "trellis1.model_ss_decoder": Kind(structure_decoder),
    "trellis1.model_ss_flow": Kind(structure_flow),
    "trellis1.model_slat_flow": Kind(latent_flow),
    "trellis1.model_slat_encoder": Kind(latent_encoder),
    "trellis1.model_slat_gs": Kind(gaussian_decoder, compare_gaussians),
    "trellis1.model_slat_rf": Kind(field_decoder),
    "trellis1.model_slat_mesh": Kind(mesh_decoder, compare_meshes),
    "trellis1.fp16_ss_decoder": Kind(half_precision, compare_half_precision),
    "trellis1.fp16_ss_flow": Kind(half_precision, compare_half_precision),
    "trellis1.fp16_slat_flow": Kind(half_precision, compare_half_precision),
    "trellis1.gs_offset_perturbation": Kind(perturbation),
}
