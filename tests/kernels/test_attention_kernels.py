"""Every attention backend that can run here against plain softmax; probes and their reasons.

Dimension key: B samples, L queries, M keys, T packed queries, S packed keys, H heads, D head width.
"""

from __future__ import annotations

import pytest
import torch

from trellis_core.errors import BackendUnavailable
from trellis_core.kernels.attention import attention_torch, packed_attention_torch
from trellis_core.kernels.attention_probes import ATTENTION, PACKED_ATTENTION
from trellis_core.kernels.table import resolve_kernels
from trellis_core.memory.devices import DeviceInfo

CPU = DeviceInfo(kind="cpu")
TURING = DeviceInfo(kind="cuda", capability=(7, 5))


def here() -> DeviceInfo:
    if not torch.cuda.is_available():
        return CPU
    return DeviceInfo(kind="cuda", capability=torch.cuda.get_device_capability())


def softmax_attention(q, k, v):
    """[L, H, D], [M, H, D] -> [L, H, D], in float64."""
    q, k, v = (x.double() for x in (q, k, v))
    weights = torch.einsum("lhd,mhd->hlm", q, k).div(q.shape[-1] ** 0.5).softmax(-1)
    return torch.einsum("hlm,mhd->lhd", weights, v)


def packed_case(lengths_q, lengths_k, device="cpu", dtype=torch.float32):
    def cu(lengths):
        return torch.tensor([0, *lengths]).cumsum(0).int().to(device)

    def rows(count):
        return torch.randn(count, 2, 16, dtype=dtype, device=device, requires_grad=True)

    q, k, v = rows(sum(lengths_q)), rows(sum(lengths_k)), rows(sum(lengths_k))
    return q, k, v, cu(lengths_q), cu(lengths_k), max(lengths_q), max(lengths_k)


def separately(q, k, v, cu_q, cu_k, *_):
    parts = zip(
        q.split(cu_q.diff().tolist()),
        k.split(cu_k.diff().tolist()),
        v.split(cu_k.diff().tolist()),
        strict=True,
    )
    return torch.cat([softmax_attention(*part) for part in parts])


LENGTHS = [
    ([4], [7]),
    ([5, 5], [3, 3]),  # one batch
    ([4, 6, 4, 1], [3, 3, 3, 8]),  # groups of equal shape, out of order
    ([2, 0, 3], [4, 1, 2]),  # a sample without queries
]


def test_reference_is_softmax_attention():
    q, k, v = torch.randn(2, 5, 3, 8), torch.randn(2, 7, 3, 8), torch.randn(2, 7, 3, 8)
    got = attention_torch(q, k, v)
    for i in range(2):
        torch.testing.assert_close(got[i], softmax_attention(q[i], k[i], v[i]).float())


@pytest.mark.parametrize(("lengths_q", "lengths_k"), LENGTHS)
def test_packed_reference_attends_within_sequences(lengths_q, lengths_k):
    case = packed_case(lengths_q, lengths_k)
    torch.testing.assert_close(packed_attention_torch(*case), separately(*case).float())


@pytest.mark.parametrize(("lengths_q", "lengths_k"), LENGTHS)
def test_packed_reference_has_the_right_gradients(lengths_q, lengths_k):
    case = packed_case(lengths_q, lengths_k)
    weight = torch.randn_like(case[0])
    got = torch.autograd.grad((packed_attention_torch(*case) * weight).sum(), case[:3])
    want = torch.autograd.grad((separately(*case) * weight).sum(), case[:3])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("op", ["attention", "packed_attention"])
@pytest.mark.parametrize("name", ["flash", "xformers", "varlen", "aten_efficient", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_backend_that_runs_here_matches_the_reference(op, name, dtype):
    backends = {
        backend.name: backend
        for backend in {"attention": ATTENTION, "packed_attention": PACKED_ATTENTION}[op]
    }
    device = here()
    if name not in backends or (dtype == torch.float16 and device.kind == "cpu"):
        pytest.skip(f"{op} has no backend `{name}` for {dtype} on {device.kind}")
    reason = backends[name].probe(device)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    tolerance = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}[dtype]
    q, k, v, cu_q, cu_k, max_q, max_k = packed_case([4, 6, 4], [3, 5, 8], device.kind, dtype)
    if op == "attention":
        got = backends[name].load()(q[None], k[None], v[None])[0]
        want = softmax_attention(q, k, v)
    else:
        got = backends[name].load()(q, k, v, cu_q, cu_k, max_q, max_k)
        want = separately(q, k, v, cu_q, cu_k)
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
    weight = torch.randn_like(got)
    grads = torch.autograd.grad((got * weight).sum(), (q, k, v))
    wants = torch.autograd.grad((want * weight).sum(), (q, k, v))
    for a, b in zip(grads, wants, strict=True):
        torch.testing.assert_close(a, b, rtol=3 * tolerance, atol=3 * tolerance)


@pytest.mark.parametrize("backends", [ATTENTION, PACKED_ATTENTION], ids=["attention", "packed_attention"])
def test_on_a_cpu_only_the_reference_runs(backends):
    assert [backend.name for backend in backends if backend.probe(CPU) is None] == ["torch"]
    assert resolve_kernels(CPU)["attention"] is attention_torch


def test_a_kernel_too_new_for_the_card_says_so():
    flash = next(backend for backend in PACKED_ATTENTION if backend.name == "varlen")
    assert flash.probe(TURING) == "needs compute capability 8.0"


def test_asking_for_a_kernel_that_cannot_run_is_an_error():
    with pytest.raises(BackendUnavailable, match="attention backend `flash` cannot run here") as error:
        resolve_kernels(CPU, {"attention": "flash"})
    assert "flash-attn" in error.value.hint
