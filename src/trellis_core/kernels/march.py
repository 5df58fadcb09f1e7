"""Marching rays through voxels that hold tri-vector fields. Plain torch, any device, differentiable.

Gao et al., "Strivec: Sparse Tri-Vector Radiance Fields" (2023). In a voxel, density and color are weighted
sums over ranks; a rank's value is the product of three vectors, interpolated along x, y and z.
World space is the unit cube [-0.5, 0.5]^3. Knows nothing about cameras.
Letters: N voxels, K ranks, D samples per vector, P rays, S samples at a time, R grid resolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

OPAQUE = 0.999  # the most that one sample covers
DARK = 1e-3  # light below which a ray ends
STEP = 0.5  # of the distance between two samples of a vector
RAYS_AT_ONCE = 1 << 13
SAMPLES_AT_ONCE = 32  # per ray


@dataclass(frozen=True, slots=True)
class MarchField:
    """A field ready to be marched through; shared by all backends."""

    keys: Tensor  # int64 [N]                ascending: (x R + y) R + z
    vectors: Tensor  # float32 [N, K, 3, D]
    densities: Tensor  # float32 [N, K]
    colors: Tensor  # float32 [N, K, 3]
    resolution: int  # R
    bias: float = 0.0  # density = gain * softplus(sum over ranks - bias)
    gain: float = 1.0

    @property
    def step(self) -> float:  # world units
        return STEP / (self.vectors.shape[3] * self.resolution)


def march(
    field: MarchField,
    eye: Tensor,  # float32 [3]
    rays: Tensor,  # float32 [P, 3]  unit length
    offsets: Tensor,  # float32 [P]     in [0, 1): samples lie at (k + offset) steps from the eye
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Collect color and distance along rays, front to back, on black.

    Returns float32 [P, 3] color, [P] light that is left, [P] sum of distances weighted like the color, and
    [P] distance at which less than half of the light was left, 0 where that never happens.
    """
    if len(rays) == 0 or len(field.keys) == 0:
        empty = rays.new_zeros(len(rays))
        return torch.zeros_like(rays), empty + 1, empty, empty
    parts = zip(rays.split(RAYS_AT_ONCE), offsets.split(RAYS_AT_ONCE), strict=True)
    seen = [march_some(field, eye, ray, offset) for ray, offset in parts]
    color, light, distance, median = (torch.cat(tensors) for tensors in zip(*seen, strict=True))
    return color, light, distance, median


def march_some(field: MarchField, eye: Tensor, rays: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
    near, far = cube_range(eye, rays)
    first = torch.ceil(near / field.step - offsets).long()
    count = (torch.ceil(far / field.step - offsets).long() - first).clamp(min=0)
    running = light = rays.new_ones(len(rays))  # light behind all samples, behind those that were counted
    color = torch.zeros_like(rays)
    distance, median = torch.zeros_like(light), torch.zeros_like(light)
    for start in range(0, int(count.max()), SAMPLES_AT_ONCE):
        number = torch.arange(start, start + SAMPLES_AT_ONCE, device=rays.device)
        along = (first[:, None] + number + offsets[:, None]) * field.step
        wanted = (number < count[:, None]) & (running >= DARK)[:, None]
        alpha, shade = sample_rays(field, eye, rays, along, wanted)
        after = running[:, None] * torch.cumprod(1 - alpha, 1)
        before = torch.cat([running[:, None], after[:, :-1]], 1)
        counted = before >= DARK  # false for good once it is false
        weight = torch.where(counted, alpha * before, 0.0)
        color = color + (weight[..., None] * shade).sum(1)
        distance = distance + (weight * along).sum(1)
        light = torch.minimum(light, torch.where(counted, after, 1.0).amin(1))
        crossed = ((before >= 0.5) & (after < 0.5)).float()
        median = median + (crossed * along).sum(1)
        running = after[:, -1]
        if bool(((running < DARK) | (count <= start + SAMPLES_AT_ONCE)).all()):
            break
    return color, light, distance, median


def cube_range(eye: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:  # float32 [P], [P]
    """Where rays enter and leave the cube. Slab method: Kay & Kajiya, "Ray Tracing Complex Scenes" (1986)."""
    safe = torch.where(rays.abs() < 1e-9, torch.full_like(rays, 1e-9), rays)
    low, high = (-0.5 - eye) / safe, (0.5 - eye) / safe
    near = torch.minimum(low, high).amax(1).clamp(min=0)
    return near, torch.maximum(low, high).amin(1).maximum(near)


def sample_rays(
    field: MarchField,
    eye: Tensor,
    rays: Tensor,  # float32 [P, 3]
    along: Tensor,  # float32 [P, S]
    wanted: Tensor,  # bool [P, S]
) -> tuple[Tensor, Tensor]:  # float32 [P, S] coverage, float32 [P, S, 3] color; 0 where there is no voxel
    place = (eye + rays[:, None] * along[..., None] + 0.5) * field.resolution
    cell = place.floor().long()
    side = field.resolution
    wanted = wanted & ((cell >= 0) & (cell < side)).all(2)
    key = torch.where(wanted, (cell[..., 0] * side + cell[..., 1]) * side + cell[..., 2], -1)
    row = torch.searchsorted(field.keys, key).clamp(max=len(field.keys) - 1)
    found = torch.nonzero(field.keys[row] == key, as_tuple=True)
    density, shade = evaluate(field, row[found], (place - cell)[found])
    covered = (-torch.expm1(-density * field.step)).clamp(max=OPAQUE)
    alpha = torch.zeros_like(along).index_put(found, covered)
    return alpha, rays.new_zeros(*along.shape, 3).index_put(found, shade)


def evaluate(
    field: MarchField,
    row: Tensor,  # int64 [Q]
    place: Tensor,  # float32 [Q, 3]  in [0, 1] of the voxel
) -> tuple[Tensor, Tensor]:  # float32 [Q] density, float32 [Q, 3] color in [0, 1]
    """The field at points inside voxels. Beyond the outer samples of a vector its line goes on."""
    samples = field.vectors.shape[3]
    at = place * samples - 0.5
    low = at.trunc().clamp(0, samples - 2)
    share = (at - low)[:, None]
    axis = torch.arange(3, device=row.device)
    near = field.vectors[row[:, None], :, axis, low.long()].transpose(1, 2)  # [Q, K, 3]
    far = field.vectors[row[:, None], :, axis, low.long() + 1].transpose(1, 2)
    rank = torch.lerp(near, far, share).prod(2)
    density = field.gain * F.softplus((field.densities[row] * rank).sum(1) - field.bias)
    return density, torch.sigmoid((field.colors[row] * rank[..., None]).sum(1))


def shift_constants(shift: float) -> tuple[float, float]:  # bias, gain
    """Constants of a field whose density was shifted by `shift` in [0, 1) while it was trained."""
    return 10 * shift, min(1 / (1 - shift), 25.0) if shift < 1 else math.inf
