"""Gaussians as `.spz`: compressed, about a tenth of the PLY; x right, y up, z back.

The format (versions 2 and 3) is described in the README of github.com/nianticlabs/spz: a gzip stream of a
header and one block per attribute. Letters: N Gaussians.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trellis_core.errors import InputError
from trellis_core.geometry.fields import Gaussians, multiply_quaternions
from trellis_core.io.files import write_file
from trellis_core.io.gaussian_ply import TURN, TURN_BACK

HEADER = struct.Struct("<IIIBBBB")  # magic, version, count, degree, fractional bits, flags, reserved
MAGIC = 0x5053474E
VERSION = 3  # rotations as the smallest three components; version 2: x, y, z as bytes
ANTIALIASED = 1  # flag: made for a screen filter
FRACTION = 16  # bits after the point, fewer where coordinates are large
COLOR_SCALE = 0.15  # of spherical harmonics
LOG_SCALE = 16, 10  # byte = 16 (ln scale + 10)
LARGEST = 0.5**0.5  # that the smaller three components of a unit quaternion can be
HARMONICS = {0: 0, 1: 9, 2: 24, 3: 45, 4: 72}  # bytes of view-dependent color per Gaussian
ATTRIBUTES = {2: (9, 1, 3, 3, 3), 3: (9, 1, 3, 3, 4)}  # bytes: position, opacity, color, scale, rotation


def write_spz(gaussians: Gaussians, path: Path) -> None:
    """Write version 3. Positions are exact to 2^-17, scales to 3 %, rotations to 0.2 degrees."""
    x, y, z = gaussians.positions.detach().cpu().double().unbind(1)
    positions = torch.stack([x, z, -y], 1)
    reach = float(positions.abs().max()) if len(positions) else 0.0
    fraction = min(FRACTION, 22 - int(np.ceil(np.log2(max(reach, 1.0)))))
    if fraction < 0:
        raise ValueError(f"positions up to {reach:g} do not fit into the format")
    factor, offset = LOG_SCALE
    rotations = multiply_quaternions(TURN_BACK.double(), gaussians.rotations.detach().cpu().double())
    blocks = [
        HEADER.pack(MAGIC, VERSION, len(gaussians), 0, fraction, ANTIALIASED, 0),
        to_int24((positions * 2**fraction).round()),
        to_bytes(gaussians.opacities * 255),
        to_bytes(gaussians.features * (COLOR_SCALE * 255) + 0.5 * 255),
        to_bytes((gaussians.scales.log() + offset) * factor),
        pack_quaternions(rotations).astype("<u4").tobytes(),
    ]
    write_file(Path(path), [gzip.compress(b"".join(blocks), mtime=0)])


def read_spz(path: Path) -> Gaussians:
    """Read version 2 or 3; view-dependent color is left out. Raises `InputError`."""
    path = Path(path)
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read `{path.name}` as a compressed file: {error}") from error
    if len(content) < HEADER.size:
        raise InputError(f"`{path.name}` is cut off")
    magic, version, count, degree, fraction, _, _ = HEADER.unpack_from(content)
    if magic != MAGIC or version not in ATTRIBUTES or degree not in HARMONICS:
        raise InputError(f"`{path.name}` is not an SPZ file of version 2 or 3")
    widths = ATTRIBUTES[version]
    if len(content) < HEADER.size + count * (sum(widths) + HARMONICS[degree]):
        raise InputError(f"`{path.name}` is cut off: {count} Gaussians were announced")
    blocks, start = [], HEADER.size
    for width in widths:
        block = np.frombuffer(content, np.uint8, count * width, start).reshape(count, width)
        blocks.append(block)
        start += count * width
    place, opacity, color, scale, rotation = blocks
    factor, offset = LOG_SCALE
    quaternions = unpack_quaternions(rotation) if version == 3 else first_three(rotation)
    x, y, z = (from_int24(place) / 2**fraction).unbind(1)
    return Gaussians(
        torch.stack([x, -z, y], 1),
        torch.exp(as_float(scale) / factor - offset),
        multiply_quaternions(TURN, quaternions),
        as_float(opacity) / 255,
        (as_float(color) / 255 - 0.5) / COLOR_SCALE,
    )


def to_bytes(values: Tensor) -> bytes:
    return values.detach().cpu().round().clamp(0, 255).to(torch.uint8).numpy().tobytes()


def as_float(values: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def to_int24(values: Tensor) -> bytes:  # float64 [N, 3]
    whole = values.numpy().astype("<i4")[..., None]
    return whole.view(np.uint8)[..., :3].tobytes()


def from_int24(values: NDArray[np.uint8]) -> Tensor:  # uint8 [N, 9] -> float32 [N, 3]
    parts = values.reshape(-1, 3, 3).astype(np.int32)
    whole = parts[..., 0] | parts[..., 1] << 8 | parts[..., 2] << 16
    return torch.from_numpy(np.where(whole >= 1 << 23, whole - (1 << 24), whole).astype(np.float32))


def pack_quaternions(
    quaternions: Tensor,  # float64 [N, 4]  unit; w, x, y, z
) -> NDArray[np.uint32]:
    """Two bits for the largest of x, y, z, w; then a sign and nine bits for each of the others."""
    xyzw = quaternions[:, [1, 2, 3, 0]].numpy()
    largest = np.abs(xyzw).argmax(1)
    row = np.arange(len(xyzw))
    xyzw = xyzw * np.where(xyzw[row, largest] < 0, -1, 1)[:, None]
    packed = largest.astype(np.uint32)
    for component in range(4):
        value = xyzw[:, component]
        size = np.minimum(np.abs(value) / LARGEST * 511 + 0.5, 511).astype(np.uint32)
        longer = packed << 10 | (value < 0).astype(np.uint32) << 9 | size
        packed = np.where(component == largest, packed, longer)
    return packed


def unpack_quaternions(values: NDArray[np.uint8]) -> Tensor:  # uint8 [N, 4] -> float32 [N, 4]  w, x, y, z
    packed = np.ascontiguousarray(values).view("<u4")[:, 0]
    largest = packed >> 30
    xyzw = np.zeros((len(packed), 4))
    for component in (3, 2, 1, 0):
        size = (packed & 511) * (LARGEST / 511)
        mine = component == largest
        xyzw[:, component] = np.where(mine, 0, np.where(packed >> 9 & 1, -size, size))
        packed = np.where(mine, packed, packed >> 10)
    rest = np.sqrt(np.maximum(0, 1 - (xyzw**2).sum(1)))
    xyzw[np.arange(len(xyzw)), largest] = rest
    return torch.from_numpy(xyzw[:, [3, 0, 1, 2]].astype(np.float32))


def first_three(values: NDArray[np.uint8]) -> Tensor:  # uint8 [N, 3] -> float32 [N, 4]  w, x, y, z
    xyz = as_float(values) / 127.5 - 1
    w = (1 - xyz.square().sum(1, keepdim=True)).clamp(min=0).sqrt()
    return torch.cat([w, xyz], 1)
