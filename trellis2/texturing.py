"""Texture a mesh from a picture: mesh -> dual grid -> shape latent -> texture latent -> material voxels.

The texture decoder reuses the voxels that the shape encoder recorded, so the material comes out on
exactly the voxels of the mesh. Letters: V vertices, F faces, N voxels, T tokens, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trellis2.dual_grid import DualGrid, mesh_to_dual_grid
from trellis_core.errors import InputError
from trellis_core.geometry.asset import ExportSettings
from trellis_core.geometry.cleanup import DEGENERATE_AREA, number_places
from trellis_core.geometry.connectivity import connected_components, edges_of, number_labels
from trellis_core.geometry.normals import crease_normals
from trellis_core.geometry.quality import coverage_metrics
from trellis_core.geometry.triangles import face_areas
from trellis_core.geometry.types import Mesh
from trellis_core.kernels.table import Kernels
from trellis_core.sparse.tensor import SparseTensor

SPILL = 1e-3  # of the texture's side; coordinates outside by less are rounding
LARGEST_LOSS = 0.01  # share of the surface that may have no place in the texture
SHARED = 1e-3  # share of the texels; when more belong to two faces it is said
LARGEST_SHARED = 0.5  # share of the texels; more is refused
UNWRAP = "leave `--keep-uv` out, and it is unwrapped anew"


def mesh_voxels(
    mesh: Mesh,  # inside the unit cube
    resolution: int,  # R, voxel grid
) -> DualGrid:
    """The dual grid of a mesh. Raises `InputError` when it crosses no grid edge."""
    if len(mesh.faces) == 0:
        raise InputError("the mesh has no faces", hint="give a mesh with triangles")
    grid = mesh_to_dual_grid(mesh.vertices, mesh.faces, resolution)
    if len(grid.coords) == 0:
        raise InputError("the mesh has no surface to paint", hint="check that its triangles have an area")
    return grid


def encode_shape(
    encoder: nn.Module,
    coords: Tensor,  # int32 [N, 3]
    dual_vertices: Tensor,  # float32 [N, 3]  in [0, 1], relative to each voxel's lower corner
    crossings: Tensor,  # bool [N, 3]
) -> SparseTensor:  # [T, C] raw shape latent (posterior mean); remembers its voxels
    """Shape latent of one dual grid."""
    rows = torch.cat([torch.zeros_like(coords[:, :1]), coords], dim=1)
    mean, _ = encoder(SparseTensor(dual_vertices.float(), rows, batch_size=1), crossings)
    return mean


def own_uvs(
    mesh: Mesh,
    settings: ExportSettings,
    kernels: Kernels,
) -> tuple[Mesh, str]:
    """A mesh whose own texture coordinates can be painted on, with normals, and what there is to say of them.

    Charts that lie in another tile of a repeating texture are moved to the unit square as they are. Parts
    that share a place in the texture (mirrored halves, say) get the same colors, which is worth a note.
    Raises `InputError` when there are no coordinates, when more than 1 % of the surface has no place in the
    texture, and when more than half of the texture is used twice.
    """
    if mesh.uvs is None:
        raise InputError(
            "the mesh has no texture coordinates of its own",
            hint=f"{UNWRAP}; coordinates are read from GLB, glTF and OBJ files",
        )
    mesh = Mesh(mesh.vertices, mesh.faces[face_areas(mesh.vertices, mesh.faces) >= DEGENERATE_AREA], mesh.uvs)
    if len(mesh.faces) == 0:
        raise InputError("the mesh has no faces with an area", hint="give a mesh with triangles")
    uvs = into_unit_square(mesh)
    lost = lost_share(mesh, uvs)
    if lost > LARGEST_LOSS:
        raise InputError(
            f"{lost:.0%} of the mesh has no place in its texture: its coordinates repeat the texture or "
            "cover no area of it",
            hint=UNWRAP,
        )
    mesh = shaded(Mesh(mesh.vertices, mesh.faces, uvs.clamp(0, 1)), settings.crease_angle)
    shared = coverage_metrics(mesh, kernels, settings.texture_size)["uv_overlap"]
    if shared > LARGEST_SHARED:
        raise InputError(f"{shared:.0%} of the mesh's texture is used by several parts of it", hint=UNWRAP)
    note = "of the mesh's texture is used by several parts, which get the same colors"
    return mesh, f"{shared:.1%} {note}" if shared > SHARED else ""


def into_unit_square(mesh: Mesh) -> Tensor:  # float32 [V, 2]
    """Texture coordinates with every chart moved by whole tiles, so that it begins in the unit square."""
    assert mesh.uvs is not None
    finite = torch.nan_to_num(mesh.uvs.double(), nan=torch.inf)
    chart, charts = number_labels(connected_components(edges_of(mesh.faces).vertices, len(finite)))
    low = torch.full((charts, 2), torch.inf, dtype=torch.float64, device=finite.device)
    low.scatter_reduce_(0, chart[:, None].expand(-1, 2), finite, "amin")
    return (finite - (low + SPILL).floor()[chart]).nan_to_num(torch.inf).float()


def lost_share(
    mesh: Mesh,
    uvs: Tensor,  # float32 [V, 2]
) -> float:
    """Share of the surface whose faces leave the unit square, or have no area in it."""
    corners = uvs.double()[mesh.faces.long()]
    inside = ((corners >= -SPILL) & (corners <= 1 + SPILL)).all(2).all(1)
    (u, v), (s, t) = (corners[:, k].sub(corners[:, 0]).unbind(1) for k in (1, 2))
    area = face_areas(mesh.vertices.double(), mesh.faces)
    return float(area[~(inside & (u * t != v * s))].sum() / area.sum())


def shaded(
    mesh: Mesh,  # with uvs
    crease_angle: float,  # degrees
) -> Mesh:
    """The mesh with normals that are smooth across texture seams and hard at creases."""
    assert mesh.uvs is not None
    place = number_places(mesh.vertices)
    corner, normals = crease_normals(place_mesh(mesh, place), crease_angle)
    key, faces = torch.unique(mesh.faces.long() * len(normals) + corner, return_inverse=True)
    vertex, group = key // len(normals), key % len(normals)
    return Mesh(mesh.vertices[vertex], faces.to(torch.int32), mesh.uvs[vertex], normals[group])


def place_mesh(
    mesh: Mesh,
    place: Tensor,  # int64 [V]
) -> Mesh:
    """The same triangles with one vertex for each place."""
    vertices = torch.zeros(int(place.max()) + 1, 3, dtype=mesh.vertices.dtype)
    vertices[place] = mesh.vertices
    return Mesh(vertices, place[mesh.faces.long()].to(torch.int32))
