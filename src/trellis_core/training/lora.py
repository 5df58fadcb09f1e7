"""Low-rank adapters beside the frozen matrices of a network.

A matrix W of the network acts as W + (alpha / rank) B A; A is random and B zero at the start, so the adapter
starts as no change. The network keeps its class and its names: an adapter is attached by forward hooks and
lives apart, in a module of its own, which is what an optimiser trains and what is saved.
LoRA: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021).

Knows nothing about what the network does. Letters: C channels in, D channels out, r rank.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from trellis_core.errors import ModelError, UsageError
from trellis_core.io.files import write_file

# the attention and MLP matrices of every block of a flow transformer
FLOW_TARGETS = r"blocks\.\d+\.((self_|cross_)?attn\.to_(qkv|q|kv|out)|mlp\.mlp\.\d+)"
FORMAT = "trellis-lora"
SAMPLES = 256  # values of each matrix that the fingerprint looks at


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRASettings:
    rank: int = 16
    alpha: float | None = None  # scale times rank; None: the rank, a scale of 1
    targets: str = FLOW_TARGETS  # regular expression; matches whole module names

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"the rank of an adapter must be at least 1, got {self.rank}", hint="try 16")

    @property
    def scale(self) -> float:
        return (self.rank if self.alpha is None else self.alpha) / self.rank


class LoRA(nn.Module):
    """The adapter of one network. Its parameters are `pairs.<i>.lora_A` [r, C] and `pairs.<i>.lora_B` [D, r].

    The network is frozen as long as the adapter is attached; `merge` and `remove` detach it.
    """

    def __init__(self, model: nn.Module, settings: LoRASettings, generator: torch.Generator | None = None):
        super().__init__()
        self.settings = settings
        self.base = base_fingerprint(model, settings.targets)
        linears = target_matrices(model, settings.targets)
        self.names = list(linears)
        self.pairs = nn.ModuleList(Pair(m, settings.rank, generator) for m in linears.values())
        self._linears = tuple(linears.values())  # a tuple: they are not submodules of the adapter
        model.requires_grad_(False)
        self._hooks = [
            linear.register_forward_hook(added_by(pair, settings.scale))
            for linear, pair in zip(self._linears, self._pairs(), strict=True)
        ]

    @torch.no_grad()
    def merge(self) -> None:
        """Add the adapter to the network's matrices, in float32, and detach it."""
        self._require_attached()
        for linear, pair in zip(self._linears, self._pairs(), strict=True):
            change = self.settings.scale * pair.lora_B.float() @ pair.lora_A.float()
            linear.weight.copy_(linear.weight.float() + change.to(linear.weight.device))
        self.remove()

    def remove(self) -> None:
        """Detach the adapter: the network is again what it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def tensors(self) -> dict[str, Tensor]:
        """`<module>.lora_A.weight` float32 [r, C] and `<module>.lora_B.weight` float32 [D, r]."""
        found = {}
        for name, pair in zip(self.names, self._pairs(), strict=True):
            found[f"{name}.lora_A.weight"] = pair.lora_A.detach()
            found[f"{name}.lora_B.weight"] = pair.lora_B.detach()
        return found

    def save(self, path: Path, **facts: Any) -> None:
        """Write a safetensors file that also says rank, alpha, targets, the base's fingerprint, `facts`."""
        about = {**facts, **asdict(self.settings), "base": self.base}
        tensors = {k: v.float().cpu().contiguous() for k, v in self.tensors().items()}
        write_file(path, [save(tensors, {"format": FORMAT, "lora": json.dumps(about)})])

    def _pairs(self) -> list[Pair]:
        return [pair for pair in self.pairs if isinstance(pair, Pair)]

    def _require_attached(self) -> None:
        if not self._hooks:
            raise UsageError("the adapter is not attached to its network any more", hint="load it again")


class Pair(nn.Module):
    """The two factors beside one matrix, on its device, in float32."""

    def __init__(self, linear: nn.Linear, rank: int, generator: torch.Generator | None) -> None:
        super().__init__()
        if rank > min(linear.in_features, linear.out_features):
            raise UsageError(
                f"rank {rank} is larger than a matrix of {linear.out_features} x {linear.in_features}",
                hint="choose a smaller rank",
            )
        device = linear.weight.device
        start = torch.randn(rank, linear.in_features, generator=generator) * linear.in_features**-0.5
        self.lora_A = nn.Parameter(start.to(device))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))


def add_lora(
    model: nn.Module,
    rank: int = 16,
    targets: str = FLOW_TARGETS,
    *,
    alpha: float | None = None,
    generator: torch.Generator | None = None,  # of the start, on the CPU
) -> LoRA:
    """Freeze `model` and attach a new adapter; train `lora.parameters()`.

    Raises `UsageError` when no matrix is called as `targets` says or the rank is too large.
    """
    return LoRA(model, LoRASettings(rank=rank, alpha=alpha, targets=targets), generator)


def load_lora(
    path: Path,
    model: nn.Module,
    *,
    any_base: bool = False,  # attach it to weights it was not trained on
) -> LoRA:
    """Attach a stored adapter to its network. Raises `ModelError` when it does not belong there."""
    stored, about = read_lora(path)
    names = {field for field in LoRASettings.__dataclass_fields__ if field in about}
    lora = LoRA(model, LoRASettings(**{name: about[name] for name in names}))
    try:
        wanted = lora.tensors()
        shapes = {k: v.shape for k, v in stored.items()}
        if shapes != {k: v.shape for k, v in wanted.items()}:
            odd = sorted(set(shapes.items()) ^ {(k, v.shape) for k, v in wanted.items()})
            raise ModelError(
                f"`{path}` does not fit the network: `{odd[0][0]}`", hint="use it with the model it came from"
            )
        if not any_base and about.get("base") != lora.base:
            raise ModelError(
                f"`{path}` was trained on other weights ({about.get('base')}) than these ({lora.base})",
                hint="use it with the model it came from",
            )
    except ModelError:
        lora.remove()
        raise
    with torch.no_grad():
        for key, value in wanted.items():
            value.copy_(stored[key])
    return lora


def read_lora(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of an adapter file and what it says about itself. Raises `ModelError`."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ModelError(
                    f"`{path}` is no adapter", hint="training with `--lora-rank` writes adapters"
                )
            return {k: file.get_tensor(k) for k in file.keys()}, json.loads(metadata["lora"])  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"adapter `{path}` cannot be read: {error}", hint="check the path") from error


def target_matrices(model: nn.Module, targets: str) -> dict[str, nn.Linear]:
    """The linear layers whose names match. Raises `UsageError` when there are none."""
    pattern = re.compile(targets)
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    found = {name: m for name, m in linears.items() if pattern.fullmatch(name)}
    if not found:
        some: Sequence[str] = list(linears)[:4]
        raise UsageError(
            f"no linear layer is called like `{targets}`", hint=f"there are, for example: {', '.join(some)}"
        )
    return found


def added_by(pair: Pair, scale: float) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A forward hook that adds scale * B A x, in the precision of x."""

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        low = F.linear(x, pair.lora_A.to(x.dtype))
        return output + (scale * F.linear(low, pair.lora_B.to(x.dtype))).to(output.dtype)

    return add


def base_fingerprint(model: nn.Module, targets: str = FLOW_TARGETS) -> str:
    """16 hex digits of the matrices that an adapter changes: names, shapes and evenly spread values.

    Values are rounded to bfloat16, so that weights have one fingerprint in whatever precision they are held.
    """
    digest = hashlib.sha256()
    for name, linear in target_matrices(model, targets).items():
        values = linear.weight.detach().flatten()
        step = max(1, len(values) // SAMPLES)
        digest.update(f"{name}:{tuple(linear.weight.shape)}".encode())
        digest.update(values[::step].cpu().bfloat16().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
