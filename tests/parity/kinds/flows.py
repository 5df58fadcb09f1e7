"""The structure flow and the latent flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.parity.case import Case, Kind
from trellis2.models.latent_flow import SLatFlowModel
from trellis_core.models.structure_flow import SparseStructureFlowModel
from trellis_core.nn.transformer import FlowTransformer
from trellis_core.sparse.tensor import SparseTensor


def ss_flow(case: Case) -> dict[str, Tensor]:
    model = SparseStructureFlowModel(**case.config)
    model.load_state_dict(case.weights)
    x, t, cond = case.inputs["x"], case.inputs["t"], case.inputs["cond"]
    out = everything(model, cond, lambda c: model(x, t, c))
    out["t_emb"] = model.t_embedder(t)
    if model.pe_mode == "rope":
        out["rope_phases"] = torch.view_as_real(model.rope_phases)
    return out


def slat_flow(case: Case) -> dict[str, Tensor]:
    model = SLatFlowModel(**case.config)
    model.load_state_dict(case.weights)
    x, concat = latents(case, "x")
    t, cond = case.inputs["t"], case.inputs["cond"]
    ragged = [case.inputs[f"cond_list.{i}"] for i in range(len(t))]

    def evaluate(c: Any) -> Tensor:
        return model(x, t, c, concat).feats  # type: ignore[no-any-return]

    out = {"v_cond_list": evaluate(ragged)}
    torch.testing.assert_close(evaluate(model.precompute_context(ragged)), out["v_cond_list"])
    return out | everything(model, cond, evaluate)


def latents(case: Case, name: str) -> tuple[SparseTensor, SparseTensor | None]:
    """The latent called `name`, and the latent to append to it where the case has one."""
    coords = case.inputs[f"{name}.coords"]
    x = SparseTensor(case.inputs[f"{name}.feats"], coords, int(coords[:, 0].max()) + 1)
    concat = case.inputs.get("concat_cond")
    return x, None if concat is None else x.replace(concat)


def everything(model: FlowTransformer, cond: Tensor, evaluate: Callable[[Any], Tensor]) -> dict[str, Tensor]:
    """The velocity with its block outputs, unconditionally in both ways, and with a bfloat16 torso.

    The condition's tokens and its precomputed keys and values have to agree.
    """
    seen: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda _m, _i, result: seen.append(result)) for b in model.blocks]
    out = {"v": evaluate(cond)}
    for hook in hooks:
        hook.remove()
    out |= {f"block_outputs.{i}": h for i, h in enumerate(seen)}
    out["v_zero_cond"] = evaluate(None)
    torch.testing.assert_close(evaluate(torch.zeros_like(cond)), out["v_zero_cond"])
    torch.testing.assert_close(evaluate(model.precompute_context(cond)), out["v"])
    model.set_torso_dtype(torch.bfloat16)
    out["v_bf16"] = evaluate(cond)
    model.set_torso_dtype(torch.float32)
    return out


KINDS = {"trellis2.ss_flow": Kind(ss_flow), "trellis2.slat_flow": Kind(slat_flow)}
