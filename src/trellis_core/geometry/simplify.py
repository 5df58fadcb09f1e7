"""Fewer faces, same surface: quadric edge collapse down to a face target.

Garland & Heckbert, "Surface simplification using quadric error metrics" (1997), by the package
`fast-simplification`. Low aggressiveness keeps the order of the costs and with it the quality.
"""

from __future__ import annotations

import torch

from trellis_core.geometry.types import Mesh

AGGRESSIVENESS = (3.0, 5.0, 7.0, 9.0)  # the next one only when a round stops above the target


def simplify(mesh: Mesh, target_faces: int) -> Mesh:
    """Collapse edges until at most `target_faces` are left, or nothing more can go."""
    import fast_simplification

    points = mesh.vertices.cpu().double().numpy()
    faces = mesh.faces.cpu().numpy()
    for aggressiveness in AGGRESSIVENESS:
        if len(faces) <= target_faces:
            break
        points, faces = fast_simplification.simplify(
            points, faces, target_count=target_faces, agg=aggressiveness
        )
    vertices = torch.from_numpy(points.astype("float32")).to(mesh.vertices.device)
    return Mesh(vertices, torch.from_numpy(faces.astype("int32")).to(mesh.faces.device))
