"""Cameras, voxel cubes, picture preprocessing."""

from __future__ import annotations

import math
import re

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.parity.case import Case, Check, Kind
from trellis_core.geometry.camera import (
    Camera,
    hammersley_view,
    orbit_extrinsics,
    perspective_intrinsics,
    projection_matrix,
    snapshot_views,
    turntable_views,
)
from trellis_core.image.preprocess import preprocess_picture
from trellis_core.render.voxel import render_voxels
from trellis_core.runtime import Runtime

VIDEO_FRAMES = 120  # of the released turntable, with yaw = pi/2 - t
SNAPSHOTS = 4


def run_cameras(case: Case) -> dict[str, Tensor]:
    """The output's name says radius, angle and clipping planes, e.g. `projection_d3d_0p8_1p6`."""
    views, offset = case.params["n"], tuple(case.params["offset"])
    sphere = [hammersley_view(i, views) for i in range(views)]
    shifted = [hammersley_view(i, views, offset, remap=True) for i in range(views)]
    video = turntable_views(VIDEO_FRAMES, start=math.pi / 2, turn=2 * 3.1415)  # the released constant
    snapshots = snapshot_views(SNAPSHOTS, math.radians(-16), math.radians(20))
    outputs: dict[str, Tensor] = {
        "hammersley_yaw_pitch": torch.tensor(sphere, dtype=torch.float64),
        "hammersley_offset_remap": torch.tensor(shifted, dtype=torch.float64),
        "video_v2_yaw": torch.tensor([yaw for yaw, _ in video], dtype=torch.float64),
        "video_v2_pitch": torch.tensor([pitch for _, pitch in video], dtype=torch.float64),
    }
    for name in (key.removeprefix("out.") for key in case.info["tensors"] if key.startswith("out.")):
        numbers = [float(n.replace("p", ".")) for n in re.findall(r"(?<=[_r])\d+(?:p\d+)?", name)]
        if name.startswith(("extrinsics", "snapshot_extrinsics")):
            chosen = snapshots if name.startswith("snapshot") else sphere
            outputs[name] = torch.stack([orbit_extrinsics(*view, numbers[0]) for view in chosen])
        elif name.startswith(("intrinsics", "snapshot_intrinsics")):
            outputs[name] = perspective_intrinsics(math.radians(numbers[0]))
        elif name.startswith("projection"):
            near, far = numbers
            intrinsics = perspective_intrinsics(math.radians(40))
            outputs[name] = projection_matrix(intrinsics, near, far, depth_from_zero="d3d" in name)
    return outputs


def compare_cameras(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    """Absolute error; at the poles the roll is arbitrary, so only the viewing direction counts there."""
    checks = []
    for name, expected in want.items():
        if name not in got or got[name].shape != expected.shape:
            checks.append(Check(name, math.inf, 0.0, "missing, or of another shape"))
            continue
        error = (got[name] - expected).abs()
        if "extrinsics" in name:
            pole = expected[:, 2, :3].abs()[:, 2] > 1 - 1e-9
            error[pole, :2] = 0
        checks.append(Check(name, error[torch.isfinite(expected)].max().item(), 1e-5))
    return checks


def run_voxel_cubes(case: Case) -> dict[str, Tensor]:
    camera = Camera(case.inputs["extrinsics"].double(), case.inputs["intrinsics"].double())
    image = render_voxels(
        case.inputs["positions"],
        case.inputs["attrs"],
        camera,
        case.params["resolution"],
        Runtime(),
        voxel_size=case.params["voxel_size"],
        supersampling=case.params["ssaa"],
    )
    return {
        "attr": image.attrs.permute(2, 0, 1),
        "depth": image.depth,
        "alpha": image.mask.float(),
        "voxel_id": image.voxel,
    }


def compare_voxel_cubes(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    voxel, expected = got["voxel_id"], want["voxel_id"]
    same = voxel == expected
    known = same | (voxel == want["voxel_id_exact"])
    return [
        Check("alpha", (got["alpha"] != want["alpha"]).float().mean().item(), 0.002, "share of pixels"),
        Check("voxel_id", (~known).float().mean().item(), 0.002, "share of pixels"),
        Check("depth", (got["depth"] - want["depth"]).abs()[same].max().item(), 1e-4),
        Check("attr", (got["attr"] - want["attr"]).abs()[:, same].max().item(), 1e-6),
    ]


def run_image_preprocess(case: Case) -> dict[str, Tensor]:
    outputs = {}
    for name, config in case.config.items():
        picture = Image.fromarray(case.inputs[name].numpy()).convert(config["mode"])
        mask = case.inputs.get(f"{name}_mask")

        def stored_mask(image: Image.Image, mask: Tensor | None = mask) -> Image.Image:
            assert mask is not None, (
                "the background remover was called where the released code does not call it"
            )
            return Image.fromarray(mask.numpy())

        result = preprocess_picture(picture, stored_mask)
        outputs[name] = torch.from_numpy(np.array(result))
    return outputs


KINDS = {
    "geometry.cameras": Kind(run_cameras, compare_cameras),
    "geometry.voxel_cube_renderer": Kind(run_voxel_cubes, compare_voxel_cubes),
    "trellis2.image_preprocess": Kind(run_image_preprocess),
}
