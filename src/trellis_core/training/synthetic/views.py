"""Pictures of solids: sphere tracing, simple shading, the crop that the pipelines make.

Every number of a view (camera, crop, light) comes from one generator. The picture is cropped to the object as
`trellis_core.image.preprocess` crops a user's picture, give or take a few percent.

Letters: V views, S rays per side of a picture, G square tiles of all views, Q rays of a tile, N hits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, gcd, radians, sin, tan

import numpy as np
import torch
from torch import Tensor

from trellis_core.training.synthetic.shapes import Solids
from trellis_core.training.synthetic.tracing import SKIN, Bundles, Hits, trace

TILE = 4  # rays per side of a tile, at most
VIEWS_AT_A_TIME = {"cpu": 3, "cuda": 192}


@dataclass(frozen=True, slots=True)
class Light:
    """Sky, one key light and a weaker fill light."""

    key: np.ndarray  # float32 [3]     unit vector towards the key light
    fill: np.ndarray  # float32 [3]     unit vector towards the fill light
    color: np.ndarray  # float32 [3]     of the key light
    strength: np.ndarray  # float32 [6]
    # ambient, key, specular, fill, share of the key light that shadows take, how much darker the underside is


@dataclass(frozen=True, slots=True)
class View:
    """A pinhole camera that looks at the origin, a crop window in its image plane, and the light."""

    origin: np.ndarray  # float32 [3]
    axes: np.ndarray  # float32 [3, 3]  right, up, forward
    window: np.ndarray  # float32 [3]     centre u, v and half side, in units of focal length
    light: Light


def look_at(yaw: float, pitch: float, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Camera position and axes; yaw 0, pitch 0 (degrees) looks at the front from -y."""
    a, b = radians(yaw), radians(pitch)
    back = np.array([sin(a) * cos(b), -cos(a) * cos(b), sin(b)])
    right = np.array([cos(a), sin(a), 0.0])
    axes = np.stack([right, np.cross(back, right), -back])
    return (back * radius).astype(np.float32), axes.astype(np.float32)


def camera_distance(fov: float) -> float:
    """Where a camera of `fov` degrees stands to see the unit cube."""
    return 0.73 / tan(radians(fov / 2))


def sample_view(
    rng: np.random.Generator,
    surface: Tensor,  # float32 [N, 3]  points on the object, for the crop
    margin: tuple[float, float] = (0.97, 1.10),
    shift: float = 0.02,  # of the window's side
) -> View:
    """A random view: yaw within 60 degrees, pitch -5 to 40, light from the camera's side, a crop around the
    object."""
    yaw, pitch = rng.uniform(-60, 60), rng.uniform(-5, 40)
    origin, axes = look_at(yaw, pitch, camera_distance(rng.uniform(25, 50)))
    light = sample_light(rng, yaw)
    window = crop_window(origin, axes, surface, rng.uniform(*margin))
    window[:2] += (rng.uniform(-shift, shift, 2) * 2 * window[2]).astype(np.float32)
    return View(origin, axes, window, light)


def sample_light(rng: np.random.Generator, yaw: float) -> Light:
    """A key light from anywhere above the horizon on the side of a camera at `yaw`, warm or cold, often with
    a fill light from the other side, sometimes with shadows."""
    side, height = rng.uniform(-90, 90), rng.uniform(0.05, 1.0)
    ambient, key = rng.uniform(0.35, 0.7), rng.uniform(0.3, 0.8)
    fill = rng.uniform(0.1, 0.35) if rng.random() < 0.5 else 0.0
    exposure = rng.uniform(0.85, 1.2) / (ambient + 0.8 * key + 0.4 * fill)
    shadow = rng.uniform(0.5, 0.9) if rng.random() < 0.3 else 0.0
    warmth = rng.normal(0, 0.05)
    strength = [ambient * exposure, key * exposure, rng.uniform(0.05, 0.5), fill * exposure, shadow]
    strength.append(rng.uniform(0.0, 0.4))
    return Light(
        key=_direction(yaw + side, height),
        fill=_direction(yaw - np.sign(side) * rng.uniform(30, 90), rng.uniform(0.0, 0.5)),
        color=np.array([1 + warmth, 1, 1 - warmth], np.float32),
        strength=np.array(strength, np.float32),
    )


def _direction(yaw: float, height: float) -> np.ndarray:  # float32 [3]
    """The unit vector towards `yaw` degrees (0 = -y) whose z is `height`."""
    a, level = radians(yaw), (1 - height * height) ** 0.5
    return np.array([sin(a) * level, -cos(a) * level, height], np.float32)


def crop_window(
    origin: np.ndarray, axes: np.ndarray, surface: Tensor, margin: float = 1.0
) -> np.ndarray:  # float32 [3]
    """The square around the projected surface, `margin` times its longer side."""
    x, y, z = (surface - surface.new_tensor(origin)).T
    right, up, depth = (x.mul(a).add_(y * b).add_(z * c) for a, b, c in axes.tolist())
    u, v = right.div_(depth), up.div_(depth)
    left, low, right_, high = torch.stack([u.amin(), v.amin(), u.amax(), v.amax()]).tolist()
    half = max(right_ - left, high - low) / 2 * margin
    return np.array([(left + right_) / 2, (low + high) / 2, half], np.float32)


def on_black(picture: Tensor) -> Tensor:
    """RGBA uint8 [..., 4] to premultiplied RGB uint8 [..., 3], as the pipelines' preprocessing does."""
    rgba = picture.float() / 255
    return (rgba[..., :3] * rgba[..., 3:] * 255).byte()


def render_views(
    solids: Solids,
    owner: Sequence[int],  # [V]  which solid each view shows
    views: Sequence[View],
    size: int,
    supersample: int = 2,
) -> Tensor:  # uint8 [V, size, size, 4]  straight alpha
    """Trace and shade the views; `supersample`^2 rays per pixel are averaged premultiplied."""
    order = np.argsort(owner, kind="stable")
    step = VIEWS_AT_A_TIME[solids.device.type]
    parts = []
    for first in range(0, len(order), step):
        chosen = order[first : first + step]
        shown = torch.tensor([owner[i] for i in chosen], device=solids.device)
        parts.append(
            _render(solids, shown, _stack([views[i] for i in chosen], solids.device), size, supersample)
        )
    return torch.cat(parts)[np.argsort(order)]


@dataclass(frozen=True, slots=True)
class _Views:
    """The fields of several views, one row each."""

    origin: Tensor  # float32 [V, 3]
    axes: Tensor  # float32 [V, 3, 3]
    window: Tensor  # float32 [V, 3]
    key: Tensor  # float32 [V, 3]
    fill: Tensor  # float32 [V, 3]
    color: Tensor  # float32 [V, 3]
    strength: Tensor  # float32 [V, 6]  ambient, key, specular, fill, shadow, sky


def _stack(views: Sequence[View], device: torch.device) -> _Views:
    rows = [
        (v.origin, v.axes, v.window, v.light.key, v.light.fill, v.light.color, v.light.strength)
        for v in views
    ]
    return _Views(*(torch.from_numpy(np.stack(column)).to(device) for column in zip(*rows, strict=True)))


def _render(solids: Solids, owner: Tensor, views: _Views, size: int, supersample: int) -> Tensor:
    side = size * supersample
    bundles, pixel = _camera_rays(owner, views, side)
    hits = trace(solids, bundles)
    seen = pixel[hits.ray]
    shown = seen // side**2
    image = hits.point.new_zeros(len(owner) * side**2, 4)
    shadow = _in_shadow(solids, owner, hits, shown, views)
    image[seen] = torch.cat([_shade(solids, hits, shown, views, shadow), torch.ones_like(hits.point[:1])]).T
    image = image.view(-1, size, supersample, size, supersample, 4).mean(dim=(2, 4))
    image[..., :3] /= image[..., 3:].clamp_min(1e-6)
    return (image.clamp(0, 1) * 255).round().byte()


def _camera_rays(owner: Tensor, views: _Views, side: int) -> tuple[Bundles, Tensor]:  # int64 [G * Q]
    """One bundle for every tile, and the pixel of every ray."""
    tile = gcd(side, TILE)
    tiles, count = side // tile, len(owner)
    index = torch.arange(count * side**2, device=owner.device).view(-1, tiles, tile, tiles, tile)
    pixel = index.transpose(2, 3).reshape(-1, tile**2)  # [G, Q]
    view = torch.arange(count, device=owner.device).repeat_interleave(tiles**2)
    across = ((2 * torch.arange(side, device=owner.device) + 1) / side - 1).view(tiles, tile)
    shape = (tiles, tiles, tile, tile)
    u = across[None, :, None, :].expand(shape).reshape(1, -1, tile**2)
    v = -across[:, None, :, None].expand(shape).reshape(1, -1, tile**2)
    u, v = (views.window[:, i, None, None] + views.window[:, 2, None, None] * w for i, w in ((0, u), (1, v)))
    right, up, forward = views.axes.permute(1, 2, 0).contiguous()[..., None, None]  # [3, V, 1, 1] each
    direction = (u * right).add_(v * up).add_(forward).view(3, -1, tile**2)
    origin = views.origin.T.index_select(1, view)
    half_tile = views.window[:, 2] * 2**0.5 * tile / side
    spread = half_tile * (views.origin.norm(dim=1) + 0.87)  # at the far side of the cube
    return Bundles(owner[view], origin, direction.mean(dim=2), direction, spread[view]), pixel.flatten()


def _in_shadow(solids: Solids, owner: Tensor, hits: Hits, shown: Tensor, views: _Views) -> Tensor:  # bool [N]
    """Which hits the key light does not reach because something is in between; only in views with shadows."""
    towards = views.key.T.index_select(1, shown)
    lit = _dot(hits.normal, towards) > 0
    tested = (lit & (views.strength[shown, 4] > 0)).nonzero()[:, 0]
    shadow = torch.zeros_like(lit)
    if len(tested):
        origin = (hits.point + 2 * SKIN * hits.normal).index_select(1, tested)
        direction = towards.index_select(1, tested)
        rays = direction[:, :, None]
        bundles = Bundles(owner[shown[tested]], origin, direction, rays, torch.zeros_like(origin[0]))
        blocked = trace(solids, bundles)
        shadow[tested[blocked.ray]] = True
    return shadow


def _shade(
    solids: Solids, hits: Hits, shown: Tensor, views: _Views, shadow: Tensor
) -> Tensor:  # float32 [3, N]
    """Lambert, Blinn and sky over the base color; metals tint their highlight and their sky."""
    material = solids.materials.T.index_select(1, hits.part)
    color, metallic, roughness = material[:3], material[3], material[4]
    ambient, key, specular, fill, shade, sky = views.strength.T.index_select(1, shown)
    half = views.key - views.axes[:, 2]
    half = half / half.norm(dim=1, keepdim=True)
    towards, filling, halfway, tone = (
        x.T.index_select(1, shown) for x in (views.key, views.fill, half, views.color)
    )
    direct = torch.where(shadow, 1 - shade, 1)
    diffuse = _dot(hits.normal, towards) * direct * key
    filled = _dot(hits.normal, filling) * fill
    above = 1 - sky * (0.5 - 0.5 * hits.normal[2])
    shine = _dot(hits.normal, halfway).pow(2 / roughness.clamp(0.15, 1) ** 2) * direct
    gloss = specular * (1 - 0.8 * roughness) * shine * (0.6 + 0.8 * metallic)
    tint = metallic * color + (1 - metallic)
    lit = color * (diffuse * tone + (ambient * above + filled)) * (1 - 0.25 * metallic)
    return (lit + gloss * tint).clamp_(0, 1)


def _dot(a: Tensor, b: Tensor) -> Tensor:  # float32 [N], not below 0
    return (a[0] * b[0]).addcmul_(a[1], b[1]).addcmul_(a[2], b[2]).clamp_min_(0)
