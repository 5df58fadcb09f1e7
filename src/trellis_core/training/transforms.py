"""`transforms.json`: which cameras took the pictures of a folder.

A frame has the file's name, the opening angle `camera_angle_x` in radians, and `transform_matrix`, camera to
world, with the axes of OpenGL (x right, y up, looking along -z).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trellis_core.errors import InputError
from trellis_core.geometry.camera import Camera, perspective_intrinsics
from trellis_core.io.files import write_file

TRANSFORMS = "transforms.json"


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture."""

    path: Path
    camera: Camera
    fov: float  # radians


def write_transforms(folder: Path, frames: Sequence[Frame], offset: Sequence[float], scale: float) -> None:
    """`offset` and `scale` lead from the mesh file's frame to the unit cube: scale * (p + offset)."""
    about = {
        "aabb": [[-0.5] * 3, [0.5] * 3],
        "scale": scale,
        "offset": list(offset),
        "frames": [entry_of(frame) for frame in frames],
    }
    write_file(folder / TRANSFORMS, [json.dumps(about, indent=1).encode()])


def read_transforms(folder: Path) -> list[Frame]:
    """Every frame of the folder. Raises `InputError` when the file is missing, damaged or empty."""
    path = folder / TRANSFORMS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        frames = [frame_of(folder, entry) for entry in content["frames"]]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(
            f"`{path}` cannot be read: {error}", hint="run `trellis train data ingest` again"
        ) from error
    if not frames:
        raise InputError(f"`{path}` names no picture", hint="run `trellis train data ingest` again")
    return frames


def entry_of(frame: Frame) -> dict[str, Any]:
    pose = torch.linalg.inv(frame.camera.extrinsics)
    pose[:3, 1:3] *= -1
    return {
        "file_path": frame.path.name,
        "camera_angle_x": frame.fov,
        "transform_matrix": pose.tolist(),
    }


def frame_of(folder: Path, entry: Mapping[str, Any]) -> Frame:
    pose = torch.tensor(entry["transform_matrix"], dtype=torch.float64).reshape(4, 4)
    pose[:3, 1:3] *= -1
    fov = float(entry["camera_angle_x"])
    camera = Camera(torch.linalg.inv(pose), perspective_intrinsics(fov))
    return Frame(folder / str(entry["file_path"]), camera, fov)
