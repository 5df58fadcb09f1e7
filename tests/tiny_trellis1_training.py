"""What training TRELLIS v1 at toy size needs: meshes of plain colors, networks of its autoencoders, recipes.

The grid is so small that the mesh decoder has a thousand cubes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trimesh
from trimesh.visual.material import PBRMaterial

from tests.tiny_trellis1 import CONTEXT, GAUSSIANS, IMAGE_SIZE, write_network
from trellis.ingest import IngestSettings
from trellis.training import PARTS
from trellis_core.training.ingest.views import ViewSettings
from trellis_core.training.recipes import (
    AdamSettings,
    BatchSettings,
    DataSettings,
    NetworkFacts,
    Recipe,
)

VOXELS = 4  # along an axis
VIEW = 24  # pixels
TORSO = {"resolution": VOXELS, "latent_channels": 4, "num_blocks": 1, "num_heads": 2, "window_size": 4}
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "slat_encoder": {
        "name": "SLatEncoder",
        "args": {**TORSO, "model_channels": 24, "in_channels": CONTEXT},
    },
    "sparse_structure_encoder": {
        "name": "SparseStructureEncoder",
        "args": {
            "in_channels": 1,
            "latent_channels": 4,
            "num_res_blocks": 1,
            "num_res_blocks_middle": 1,
            "channels": [6, 8],
        },
    },
    "slat_decoder_gs": {
        "name": "SLatGaussianDecoder",
        "args": {**TORSO, "model_channels": 24, "representation_config": {**GAUSSIANS, "num_gaussians": 4}},
    },
    "slat_decoder_rf": {
        "name": "SLatRadianceFieldDecoder",
        "args": {**TORSO, "model_channels": 24, "representation_config": {"rank": 2, "dim": 3}},
    },
    "slat_decoder_mesh": {
        "name": "SLatMeshDecoder",
        "args": {
            **TORSO,
            "model_channels": 256,
            "mlp_ratio": 0.25,
            "representation_config": {"use_color": True},
        },
    },
}


def write_meshes(folder: Path) -> Path:
    """A red ball and a blue box, each with a caption."""
    folder.mkdir(parents=True)
    shapes = {
        "ball": (trimesh.creation.icosphere(radius=0.5), (0.8, 0.05, 0.05, 1.0)),
        "box": (trimesh.creation.box(extents=[1.0, 0.5, 0.7]), (0.05, 0.2, 0.8, 1.0)),
    }
    for name, (mesh, color) in shapes.items():
        material = PBRMaterial(baseColorFactor=color, metallicFactor=0.0, roughnessFactor=0.7)
        mesh.visual = trimesh.visual.TextureVisuals(material=material)
        mesh.export(folder / f"{name}.glb")
        (folder / f"{name}.txt").write_text(f"a {name}\n")
    return folder


def write_encoders(folder: Path) -> dict[str, Path]:
    """Random encoders of pictures, latents and structures below `folder`; name -> stem."""
    from tests.tiny_trellis1 import IMAGE_ENCODER

    (folder / "ckpts").mkdir(parents=True)
    configs = {"image_encoder": IMAGE_ENCODER, **{n: NETWORKS[n] for n in NETWORKS if "encoder" in n}}
    return {name: write_network(folder, name, config, 7) for name, config in configs.items()}


def ingest_settings(encoders: Mapping[str, Path], **changes: Any) -> IngestSettings:
    settings = {
        "resolution": VOXELS,
        "image_size": IMAGE_SIZE,
        "encoders": encoders,
        "structure_grid": VOXELS,
        "renders": ViewSettings(views=5, size=VIEW, supersampling=1),
        "views": ViewSettings(views=1, size=VIEW, supersampling=1),
    }
    return IngestSettings(**{**settings, **changes})


def decoder_recipe(part: str, *, steps: int = 4, rate: float = 2e-3) -> Recipe:
    """The recipe of one of the parts that learn from pictures, all of the data in every step."""
    chosen = PARTS[part]
    return Recipe(
        name=f"tiny-{part}",
        summary="Tiny",
        version="trellis",
        stage=chosen.stage,
        trains={name: NetworkFacts(config=NETWORKS[name], parameters=1) for name in chosen.trains},
        data=DataSettings(kind=chosen.kind, resolution=VOXELS, view_size=VIEW),
        batch=BatchSettings(per_gpu=2, splits=1),
        optimizer=AdamSettings(rate=rate),
        precision="float32",
        steps=steps,
        losses=chosen.losses,
        log_every=1,
        save_every=2,
    )
