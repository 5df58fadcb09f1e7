"""Gaussians, radiance fields and the cameras that look at them."""

from __future__ import annotations

import math
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from tests.parity.case import Case, Check, Kind, compare_tensor
from trellis_core.geometry.camera import (
    Camera,
    hammersley_view,
    look_at,
    orbit_camera,
    orbit_extrinsics,
    perspective_intrinsics,
    projection_matrix,
    snapshot_views,
    turntable_views,
)
from trellis_core.geometry.fields import (
    GaussianActivation,
    Gaussians,
    RadianceField,
    activate_gaussians,
    covariances,
    hammersley_points,
)
from trellis_core.io.gaussian_ply import COLUMNS, ply_columns, read_vertices, write_gaussian_ply
from trellis_core.kernels.table import Kernels
from trellis_core.render.gaussian import project_gaussians, render_gaussians
from trellis_core.render.radiance import camera_rays, march_rays
from trellis_core.runtime import Runtime

Tensors = dict[str, Tensor]


def psnr(got: Tensor, want: Tensor) -> float:
    return float(-10 * torch.log10((got.double() - want.double()).square().mean().clamp(min=1e-20)))


def as_bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


# ---------------------------------------------------------------- Gaussians


def run_activations(case: Case) -> Tensors:
    x, p = case.inputs, case.params
    activation = GaussianActivation(
        scale_activation=p["scaling_activation"],
        scale_bias=p["scaling_bias"],
        min_scale=p["mininum_kernel_size"],
        opacity_bias=p["opacity_bias"],
    )
    box = torch.tensor(p["aabb"])  # corner, size
    gaussians = activate_gaussians(
        x["raw_xyz"] * box[3:] + box[:3] + 0.5,
        x["raw_scaling"],
        x["raw_rotation"],
        x["raw_opacity"],
        x["raw_features_dc"][:, 0],
        activation,
    )
    with TemporaryDirectory() as folder:
        path = Path(folder, "gaussians.ply")
        write_gaussian_ply(gaussians, path)
        written = path.read_bytes()
    matrices = covariances(gaussians)
    plain = ply_columns(gaussians, turned=False).numpy().tobytes()
    header = p["ply_header"].encode() + b"\n"
    return {
        "xyz": gaussians.positions,
        "scaling": gaussians.scales,
        "rotation": gaussians.rotations,
        "opacity": gaussians.opacities,
        "covariance": matrices[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]],
        "file.ply": as_bytes(written),
        "file.ply_untransformed": as_bytes(header + plain),
    }


def compare_activations(case: Case, got: Tensors, want: Tensors) -> list[Check]:
    limits = {
        "xyz": {"atol": 1e-6, "rtol": 0.0},
        "scaling": {"atol": 1e-30, "rtol": 1e-5},
        "rotation": {"atol": 1e-6, "rtol": 0.0},
        "opacity": {"atol": 1e-6, "rtol": 0.0},
        "covariance": {"atol": 1e-30, "rtol": 1e-4},
    }
    checks = []
    for name, expected in want.items():
        if not name.startswith("file."):
            checks.append(compare_tensor(name, got[name], expected, limits[name]))
            continue
        (ours, our_header), (theirs, their_header) = parsed(got[name]), parsed(expected)
        checks.append(Check(f"{name} header", float(our_header != their_header), 0.0))
        if ours.shape != theirs.shape:
            checks.append(Check(name, math.inf, 1e-5, "another number of Gaussians"))
            continue
        same_side = (ours[:, -4:] * theirs[:, -4:]).sum(1, keepdims=True) >= 0
        ours[:, -4:] *= np.where(same_side, 1, -1)
        error = np.abs(ours - theirs)
        # the released code takes square roots of float32 differences: small components are noisy there
        error[:, -4:] = np.minimum(error[:, -4:], 10 * np.abs(ours[:, -4:] ** 2 - theirs[:, -4:] ** 2))
        checks.append(Check(name, float(error.max()), 1e-5))
    return checks


def parsed(content: Tensor) -> tuple[np.ndarray, bytes]:
    """Columns [N, 17] and header of a PLY."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "gaussians.ply")
        path.write_bytes(content.numpy().tobytes())
        rows = read_vertices(path)
        header = path.read_bytes().partition(b"end_header\n")[0]
    return np.stack([rows[name].astype(np.float64) for name in COLUMNS], 1), header


def run_gaussian_renderer(case: Case) -> Tensors:
    x, p = case.inputs, case.params
    gaussians = Gaussians(
        x["xyz"],
        x["scaling"],
        x["rotation"],
        x["opacity"].reshape(-1, 1),
        x["features_dc"].reshape(-1, 3),
        p["kernel_size"],
    )
    camera = Camera(x["extrinsics"].double(), x["intrinsics"].double())
    splats = project_gaussians(gaussians, camera, p["resolution"])
    image = render_gaussians(gaussians, camera, p["resolution"], Runtime())
    return {
        "color": image.over(p["background"]).permute(2, 0, 1),
        "transmittance": 1 - image.alpha,
        "screen_xy": splats.centers - 0.5,  # there, pixel centres are integers
        "conic": splats.conics,
        "opacity_2d": splats.opacities,
        "radius": square_radius(splats.covariances),
    }


def square_radius(spread: Tensor) -> Tensor:
    """Half the side of the square that the released rasteriser draws; ours draws the exact ellipse."""
    xx, xy, yy = spread.unbind(1)
    middle = (xx + yy) / 2
    largest = middle + (middle**2 - (xx * yy - xy**2)).clamp(min=0.1).sqrt()
    return torch.ceil(3 * largest.sqrt())


def compare_gaussian_renderer(case: Case, got: Tensors, want: Tensors) -> list[Check]:
    error = (got["color"] - want["color"]).abs()
    left = (got["transmittance"] - want["transmittance"]).abs()
    return [
        Check("color", float((error > 2e-3).float().mean()), 0.01, "share of values"),
        Check("color PSNR", 45 - psnr(got["color"], want["color"]), 0.0, "dB below 45"),
        Check("transmittance", float((left > 5e-3).float().mean()), 0.01, "share of values"),
        compare_tensor("screen_xy", got["screen_xy"], want["screen_xy"], {"atol": 1e-2, "rtol": 0.0}),
        compare_tensor("conic", got["conic"], want["conic"], {"atol": 1e-9, "rtol": 1e-3}),
        compare_tensor("opacity_2d", got["opacity_2d"], want["opacity_2d"], {"atol": 1e-4, "rtol": 0.0}),
        compare_tensor("radius", got["radius"], want["radius"], {"atol": 1.0, "rtol": 0.0}),
    ]


# ---------------------------------------------------------------- radiance field


def run_radiance_renderer(case: Case) -> Tensors:
    x, p = case.inputs, case.params
    side, grid = p["resolution"], p["grid"]
    coords = (x["position"] * grid - 0.5).round().int()
    ranks = x["density"].shape[1]
    field = RadianceField(coords, x["trivec"], x["density"], x["features_dc"].reshape(-1, ranks, 3), grid)
    camera = Camera(x["extrinsics"].double(), x["intrinsics"].double())
    color, light, distance, median = march_rays(
        field,
        camera,
        camera_rays(camera, side, torch.device("cpu")),
        Runtime(kernels=Kernels()),
        density_shift=p["density_shift"],
    )
    color = color + light[:, None] * torch.tensor(p["background"], dtype=torch.float32)
    return {
        "color": color.T.reshape(3, side, side),
        "alpha": 1 - light.view(side, side),
        "depth": distance.view(side, side),  # along the rays
        "percent_depth": median.view(side, side),
    }


def compare_radiance_renderer(case: Case, got: Tensors, want: Tensors) -> list[Check]:
    """The depth at half the light may be a step off, where rounding decides."""
    step = 0.5 / (case.params["dim"] * case.params["grid"])
    limits = {"alpha": 5e-3, "depth": 5e-3, "percent_depth": 1.01 * step}
    checks = [Check("color PSNR", 40 - psnr(got["color"], want["color"]), 0.0, "dB below 40")]
    for name, limit in limits.items():
        wrong = (got[name] - want[name]).abs() > limit
        checks.append(Check(name, float(wrong.float().mean()), 0.01, "share of values"))
    return checks


# ---------------------------------------------------------------- cameras

LOOK_FROM = (1.0, 2.0, 0.5)  # of `gl_look_at`, towards the origin
SHIFT = (0.3, 0.7)  # of the sequence with an offset
FLIP = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))  # OpenCV to OpenGL axes


def run_cameras(case: Case) -> Tensors:
    """An output's name says how many views there are, or which clipping planes."""
    config = case.config
    radius, fov = config["r"], math.radians(config["fov_deg"])
    views = list(zip(config["yaw"], config["pitch"], strict=True))
    outputs: Tensors = {
        "extr": torch.stack([orbit_extrinsics(yaw, pitch, radius) for yaw, pitch in views]),
        "intr": torch.stack([perspective_intrinsics(fov)] * len(views)),
        "gl_view": FLIP @ orbit_extrinsics(*views[1], radius),
        "gl_look_at": FLIP @ look_at(torch.tensor(LOOK_FROM).double(), torch.zeros(3).double()),
    }
    for name in (key.removeprefix("out.") for key in case.info["tensors"] if key.startswith("out.")):
        numbers = [float(n) for n in re.findall(r"\d+(?:\.\d+)?", name)]
        if name.startswith("hammersley3"):
            outputs[name] = hammersley_points(int(name.rpartition("_")[2]))
        elif name.startswith("sphere"):
            count, shifted = int(numbers[0]), name.endswith("offset_remap")
            sphere = [hammersley_view(i, count, SHIFT if shifted else (0, 0), shifted) for i in range(count)]
            outputs[name] = torch.tensor(sphere, dtype=torch.float64)
        elif name.startswith("video"):
            turn = turntable_views(int(numbers[0]), start=0, turn=2 * 3.1415)  # the released constant
            outputs[name] = rig(name, [(-yaw, pitch) for yaw, pitch in turn], radius, fov)
        elif name.startswith("multiview"):
            count = int(numbers[0])
            outputs[name] = rig(name, [hammersley_view(i, count) for i in range(count)], radius, fov)
        elif name.startswith("snapshot"):
            around = snapshot_views(4, math.radians(-16), math.radians(20))
            outputs[name] = rig(name, around, 10, math.radians(8))
        elif name.startswith("projection"):
            near, far = numbers
            outputs[name] = projection_matrix(perspective_intrinsics(fov), near, far, depth_from_zero=True)
        elif name.startswith("gl_persp"):
            near, far = numbers[-2:]
            angle = math.radians(numbers[0]) if "fov" in name else fov
            matrix = projection_matrix(perspective_intrinsics(angle), near, far, depth_from_zero=False)
            outputs[name] = matrix @ FLIP @ torch.diag(torch.tensor([1.0, -1, 1, 1]).double())
    return outputs


def rig(name: str, views: list[tuple[float, float]], radius: float, fov: float) -> Tensor:
    cameras = [orbit_camera(yaw, pitch, radius=radius, fov=fov) for yaw, pitch in views]
    if name.endswith("intr"):
        return torch.stack([camera.intrinsics for camera in cameras])
    return torch.stack([camera.extrinsics for camera in cameras])


def compare_cameras(case: Case, got: Tensors, want: Tensors) -> list[Check]:
    """By the case's tolerance; straight up and down the roll is arbitrary, so only the direction counts."""
    checks = []
    for name, expected in want.items():
        ours = got.get(name, torch.zeros(0)).clone()
        if name.endswith("extr") and ours.shape == expected.shape:
            pole = expected[:, 2, 2].abs() > 1 - 1e-6
            ours[pole, :2] = expected[pole, :2].to(ours)
        checks.append(compare_tensor(name, ours, expected, case.info["tolerance"]))
    return checks


KINDS = {
    "geometry.gaussian_activations_and_ply": Kind(run_activations, compare_activations),
    "geometry.gaussian_renderer": Kind(run_gaussian_renderer, compare_gaussian_renderer),
    "geometry.radiance_field_tri_vector_octree_renderer": Kind(
        run_radiance_renderer, compare_radiance_renderer
    ),
    "trellis1.cameras": Kind(run_cameras, compare_cameras),
}
