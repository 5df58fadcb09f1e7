"""Draco compression of one mesh, by the package DracoPy (an extra)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trellis_core.errors import UsageError

INSTALL_HINT = "install it with `pip install 'trellis-cli[draco]'`, or use `--quantize`"
POSITION_BITS, UV_BITS, NORMAL_BITS = 14, 12, 10
EFFORT = 7  # 0 .. 10
KINDS = {"POSITION": 0, "NORMAL": 1, "COLOR_0": 2, "TEXCOORD_0": 3}  # as Draco numbers kinds of attributes


@dataclass(frozen=True, slots=True)
class DracoMesh:
    """Compressed bytes, and what a decoder makes of them: it may merge and reorder vertices."""

    data: bytes
    ids: Mapping[str, int]  # glTF name -> unique id in `data`
    attributes: Mapping[str, NDArray[Any]]  # float32 [V, 2 .. 4]
    count: int  # vertices
    corners: int  # of all faces


def encode_draco(attributes: Mapping[str, Tensor], faces: Tensor) -> DracoMesh:
    """Compress attributes (by their glTF names) and faces. Raises `UsageError` without the package."""
    try:
        import DracoPy
    except ImportError as error:
        raise UsageError(
            "Draco needs the package `DracoPy`, which is not installed", hint=INSTALL_HINT
        ) from error

    arrays = {name: values.detach().cpu().numpy() for name, values in attributes.items()}
    more: dict[str, Any] = {}
    if "NORMAL" in arrays:
        more |= {"normals": arrays["NORMAL"].astype(np.float64), "normal_quantization_bits": NORMAL_BITS}
    if "TEXCOORD_0" in arrays:
        more |= {"tex_coord": arrays["TEXCOORD_0"].astype(np.float64), "tex_coord_quantization_bits": UV_BITS}
    if "COLOR_0" in arrays:
        more |= {"colors": np.rint(arrays["COLOR_0"] * 255).astype(np.uint8)}
    data = DracoPy.encode(
        arrays["POSITION"].astype(np.float32),
        faces.cpu().numpy().astype(np.uint32),
        quantization_bits=POSITION_BITS,
        compression_level=EFFORT,
        **more,
    )
    decoded = DracoPy.decode(data)
    by_kind = {int(each["attribute_type"]): each for each in decoded.attributes}
    found = {name: by_kind[KINDS[name]] for name in arrays}
    return DracoMesh(
        data,
        {name: int(each["unique_id"]) for name, each in found.items()},
        {name: np.asarray(each["data"]) for name, each in found.items()},
        len(decoded.points),
        int(np.asarray(decoded.faces).size),
    )
