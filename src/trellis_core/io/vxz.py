"""vxz: voxels with byte attributes, in chunks, as compressed octrees.

    "VXZ" | version 0 | big-endian uint32: start of the binary part | JSON header | binary part

Inside a chunk the voxels are in Morton order: the occupied cells are an octree in depth-first order, one byte
of child bits per inner node; the attributes follow that order, optionally as differences. Every stream is
compressed on its own. Letters: N voxels, n voxels of a chunk, C channels of all attributes.
"""

from __future__ import annotations

import json
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from trellis_core.errors import InputError, TrellisError
from trellis_core.sparse.order import morton_decode, morton_encode

Attributes = Mapping[str, Tensor]  # name -> uint8 [N, channels]
Filter = Literal["none", "parent", "neighbor"]
Compression = Literal["auto", "none", "deflate", "lzma", "zstd"]
Interleave = Literal["none", "as_is", "all"]

MAGIC = b"VXZ\x00"
DEFAULT_LEVELS = {"none": 0, "deflate": 6, "lzma": 6, "zstd": 9}
MAX_LZMA_LEVEL = 6  # above, every stream of the encoder takes hundreds of megabytes
MAX_CHUNK_SIZE = 1 << 10  # 30-bit codes
NEIGHBORS = ((1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))  # best first


def write_vxz(path: str | Path, coords: Tensor, attributes: Attributes, **options: Any) -> None:
    """Write voxels to a file; `options` are those of `encode_vxz`."""
    Path(path).write_bytes(encode_vxz(coords, attributes, **options))


def read_vxz(path: str | Path) -> tuple[Tensor, dict[str, Tensor]]:
    """Read coords int32 [N, 3] and attributes uint8 [N, channels], chunk by chunk in Morton order."""
    try:
        return decode_vxz(Path(path).read_bytes())
    except InputError as error:
        raise InputError(f"cannot read `{path}`: {error.message}", error.hint) from error


def encode_vxz(
    coords: Tensor,  # int [N, 3]     unique, not negative
    attributes: Attributes,  # uint8 [N, channels] each
    *,
    chunk_size: int = 256,  # power of two
    filter: Filter = "parent",
    compression: Compression = "auto",  # zstd if it is there, else deflate
    level: int | None = None,
    interleave: Interleave = "as_is",
) -> bytes:
    """The complete file. Raises ValueError when the arrays or options make no sense."""
    if compression == "auto":
        compression = "zstd" if find_zstd() else "deflate"
    if filter not in FILTERS or compression not in COMPRESS or interleave not in ("none", "as_is", "all"):
        raise ValueError(f"unknown vxz option: {filter}, {compression}, {interleave}")
    if not 2 <= chunk_size <= MAX_CHUNK_SIZE or chunk_size & (chunk_size - 1):
        raise ValueError(f"chunk size must be a power of two up to {MAX_CHUNK_SIZE}, got {chunk_size}")
    level = DEFAULT_LEVELS[compression] if level is None else level
    level = min(level, MAX_LZMA_LEVEL) if compression == "lzma" else level
    cells = coords.cpu().numpy().astype(np.int64).reshape(-1, 3)
    matrix = attribute_matrix(len(cells), attributes)
    layout = [(name, channels_of(tensor).shape[1]) for name, tensor in attributes.items()]

    chunks, parts, offset = [], [], 0
    for index, rows, codes in split_chunks(cells, chunk_size):
        tree = Octree(codes, chunk_size)
        filtered = FILTERS[filter][0](matrix[rows], tree)
        streams = {"svo": tree.masks} | dict(attribute_streams(filtered, layout, interleave))
        entry: dict[str, Any] = {"idx": index}
        size = 0
        for name, stream in streams.items():
            packed = COMPRESS[compression](stream.tobytes(), level)
            parts.append(packed)
            entry[name] = [size, len(packed)]
            size += len(packed)
        chunks.append(entry | {"ptr": [offset, size]})
        offset += size
    raw = 12 * len(cells) + matrix.size
    header = {
        "num_voxel": len(cells),
        "chunk_size": chunk_size,
        "filter": filter,
        "compression": compression,
        "compression_level": level,
        "raw_size": raw,
        "compressed_size": offset,
        "compress_ratio": raw / max(offset, 1),
        "attr_interleave": interleave,
        "attr": layout,
        "chunks": chunks,
    }
    text = json.dumps(header).encode()
    return MAGIC + struct.pack(">I", 8 + len(text)) + text + b"".join(parts)


def decode_vxz(data: bytes) -> tuple[Tensor, dict[str, Tensor]]:
    """Inverse of `encode_vxz`; the voxels come chunk by chunk. Raises InputError when the file is damaged."""
    if data[:4] != MAGIC:
        raise InputError("it is no vxz file of version 0")
    try:
        start = struct.unpack(">I", data[4:8])[0]
        header = json.loads(data[8:start])
        return decode_chunks(header, memoryview(data)[start:])
    except (TrellisError, MemoryError):
        raise
    except (ValueError, KeyError, IndexError, TypeError, struct.error, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"the vxz file is damaged: {error}") from error


def decode_chunks(header: dict[str, Any], body: memoryview) -> tuple[Tensor, dict[str, Tensor]]:
    chunk_size, level, interleave = (
        header["chunk_size"],
        header["compression_level"],
        header["attr_interleave"],
    )
    if not 2 <= chunk_size <= MAX_CHUNK_SIZE or chunk_size & (chunk_size - 1):
        raise ValueError(f"chunk size {chunk_size}")
    layout = [(str(name), int(channels)) for name, channels in header["attr"]]
    unpack, restore = DECOMPRESS[header["compression"]], FILTERS[header["filter"]][1]
    coords = [np.zeros((0, 3), np.int64)]
    matrices = [np.zeros((0, sum(c for _, c in layout)), np.uint8)]
    for chunk in header["chunks"]:
        offset, size = chunk["ptr"]
        block = body[offset : offset + size]

        def stream(name: str, block: memoryview = block, chunk: dict[str, Any] = chunk) -> np.ndarray:
            first, length = chunk[name]
            return np.frombuffer(unpack(bytes(block[first : first + length]), level), np.uint8)

        tree = Octree(read_octree(stream("svo"), chunk_size), chunk_size)
        coords.append(tree.coords + np.asarray(chunk["idx"], np.int64) * chunk_size)
        matrices.append(restore(join_streams(stream, len(tree.codes), layout, interleave), tree))
    cells, matrix = np.concatenate(coords), np.concatenate(matrices)
    if len(cells) != header["num_voxel"]:
        raise ValueError(f"{len(cells)} voxels instead of {header['num_voxel']}")
    ends = np.cumsum([c for _, c in layout])
    columns = np.split(matrix, ends[:-1], axis=1) if layout else []
    found = {name: torch.from_numpy(c.copy()) for (name, _), c in zip(layout, columns, strict=True)}
    return torch.from_numpy(cells).int(), found


# --- layout ------------------------------------------------------------------------------------------


def attribute_matrix(count: int, attributes: Attributes) -> np.ndarray:
    """All channels side by side: uint8 [N, C]."""
    for name, tensor in attributes.items():
        if tensor.dtype != torch.uint8 or len(tensor) != count:
            raise ValueError(
                f"attribute `{name}` must be uint8 [{count}, channels], got {tensor.dtype} {len(tensor)}"
            )
    columns = [channels_of(tensor).cpu().numpy() for tensor in attributes.values()]
    return np.concatenate([np.zeros((count, 0), np.uint8), *columns], axis=1)


def channels_of(attribute: Tensor) -> Tensor:
    """[N] or [N, channels] -> [N, channels]."""
    return attribute[:, None] if attribute.dim() == 1 else attribute.flatten(1)


def split_chunks(cells: np.ndarray, chunk_size: int) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """(chunk index, rows of its voxels in Morton order, their codes), in lexicographic order of the index."""
    if not len(cells):
        return
    if cells.min() < 0:
        raise ValueError("voxel coordinates must not be negative")
    index = cells // chunk_size
    codes = morton_encode(torch.from_numpy(cells % chunk_size), MAX_CHUNK_SIZE.bit_length() - 1).numpy()
    order = np.lexsort((codes, index[:, 2], index[:, 1], index[:, 0]))
    index, codes = index[order], codes[order]
    same = (index[1:] == index[:-1]).all(1)
    if (same & (codes[1:] == codes[:-1])).any():
        raise ValueError("voxel coordinates must be unique")
    starts = [0, *(np.nonzero(~same)[0] + 1).tolist(), len(cells)]
    for first, last in pairwise(starts):
        yield index[first].tolist(), order[first:last], codes[first:last]


def attribute_streams(
    matrix: np.ndarray, layout: list[tuple[str, int]], interleave: Interleave
) -> Iterator[tuple[str, np.ndarray]]:
    if interleave == "all":
        yield "attr", matrix
        return
    first = 0
    for name, channels in layout:
        block = matrix[:, first : first + channels]
        first += channels
        if interleave == "as_is":
            yield name, block
        else:
            yield from ((f"{name}_{i}", block[:, i]) for i in range(channels))


def join_streams(
    stream: Callable[[str], np.ndarray], count: int, layout: list[tuple[str, int]], interleave: Interleave
) -> np.ndarray:
    """Inverse of `attribute_streams`: uint8 [n, C]."""
    if interleave == "all":
        return stream("attr").reshape(count, sum(c for _, c in layout))
    if interleave not in ("none", "as_is"):
        raise ValueError(f"interleave `{interleave}`")
    blocks = [np.zeros((count, 0), np.uint8)]
    for name, channels in layout:
        if interleave == "as_is":
            blocks.append(stream(name).reshape(count, channels))
        else:
            blocks += [stream(f"{name}_{i}").reshape(count, 1) for i in range(channels)]
    return np.concatenate(blocks, axis=1)


# --- octree ------------------------------------------------------------------------------------------


class Octree:
    """The inner nodes over sorted Morton codes, in depth-first order."""

    def __init__(self, codes: np.ndarray, chunk_size: int) -> None:
        self.codes = codes  # int64 [n]   ascending
        self.depth = chunk_size.bit_length() - 1
        starts = [first_of_runs(codes >> 3 * (self.depth - level)) for level in range(self.depth + 1)]
        self.children = starts[1:]  # per level: the first leaf of every child, in order
        self.owners = [  # per level: the first leaf of the node each child belongs to
            nodes[np.searchsorted(nodes, below, side="right") - 1] for nodes, below in pairwise(starts)
        ]

    @property
    def coords(self) -> np.ndarray:
        return morton_decode(torch.from_numpy(self.codes)).numpy().astype(np.int64)

    @property
    def masks(self) -> np.ndarray:
        """One byte of child bits per node: uint8."""
        masks, first, level = [], [], []
        for depth, (below, owner) in enumerate(zip(self.children, self.owners, strict=True)):
            bits = 1 << (self.codes[below] >> 3 * (self.depth - depth - 1) & 7)
            runs = first_of_runs(owner)
            masks.append(np.add.reduceat(bits, runs))
            first.append(owner[runs])
            level.append(np.full(len(runs), depth))
        order = np.lexsort((np.concatenate(level), np.concatenate(first)))
        return np.concatenate(masks)[order].astype(np.uint8)

    def later_siblings(self) -> tuple[np.ndarray, np.ndarray]:
        """(leaf, leaf of the sibling before) of every child but the first of its node, node by node."""
        leaf, before, owner, level = [], [], [], []
        for depth, (below, parent) in enumerate(zip(self.children, self.owners, strict=True)):
            later = np.nonzero(parent[1:] == parent[:-1])[0] + 1
            leaf.append(below[later])
            before.append(below[later - 1])
            owner.append(parent[later])
            level.append(np.full(len(later), depth))
        order = np.lexsort(tuple(map(np.concatenate, (leaf, level, owner))))
        return np.concatenate(leaf)[order], np.concatenate(before)[order]


def first_of_runs(values: np.ndarray) -> np.ndarray:
    """Where a sorted array changes, and 0."""
    return np.concatenate([[0], np.nonzero(values[1:] != values[:-1])[0] + 1])


def read_octree(masks: np.ndarray, chunk_size: int) -> np.ndarray:
    """Morton codes of the leaves: int64 [n]."""
    depth = chunk_size.bit_length() - 1
    children = [[i for i in range(7, -1, -1) if mask >> i & 1] for mask in range(256)]  # last child first
    pending = [(0, 0)]  # (level, code of the node), a stack
    parents, bits = [], []
    for mask in masks.tolist():
        if not pending or not mask:
            raise ValueError("octree with superfluous or empty nodes")
        level, code = pending.pop()
        if level == depth - 1:
            parents.append(code)
            bits.append(mask)
        else:
            pending += [(level + 1, code << 3 | child) for child in children[mask]]
    if pending:
        raise ValueError("octree ends early")
    exists = np.unpackbits(np.asarray(bits, np.uint8)[:, None], axis=1, bitorder="little").astype(bool)
    return (np.asarray(parents, np.int64)[:, None] << 3 | np.arange(8))[exists]


# --- filters: differences modulo 256 -----------------------------------------------------------------


def keep(matrix: np.ndarray, tree: Octree) -> np.ndarray:
    return matrix


def difference_of_siblings(matrix: np.ndarray, tree: Octree) -> np.ndarray:
    """Row 0 as it is, then for every node the differences between the first leaves of successive children."""
    leaf, before = tree.later_siblings()
    return np.concatenate([matrix[:1], matrix[leaf] - matrix[before]])


def sum_of_siblings(stored: np.ndarray, tree: Octree) -> np.ndarray:
    leaf, _ = tree.later_siblings()
    step = np.zeros_like(stored)
    step[leaf] = stored[1:]
    values = np.zeros_like(stored)
    values[0] = stored[0]
    for below, owner in zip(tree.children, tree.owners, strict=True):  # from the root down
        moved = step[below]
        runs = first_of_runs(owner)
        moved[runs] = values[owner[runs]]  # the first child has its parent's leaf
        total = np.cumsum(moved, axis=0, dtype=np.uint8)
        ahead = (total[runs] - moved[runs]).repeat(np.diff([*runs, len(owner)]), axis=0)
        values[below] = total - ahead
    return values


def reference_rows(tree: Octree) -> np.ndarray:
    """The neighbour each voxel is compared with, -1 where it has none: int64 [n]."""
    coords, rows = tree.coords, np.full(len(tree.codes), -1)
    for offset in NEIGHBORS[::-1]:  # the best one overwrites the others
        where = coords - np.asarray(offset)
        valid = (where >= 0).all(1)
        wanted = morton_encode(torch.from_numpy(where[valid]), tree.depth).numpy()
        position = np.searchsorted(tree.codes, wanted).clip(max=len(tree.codes) - 1)
        found = tree.codes[position] == wanted
        rows[np.nonzero(valid)[0][found]] = position[found]
    return rows


def difference_to_neighbor(matrix: np.ndarray, tree: Octree) -> np.ndarray:
    rows = reference_rows(tree)
    return matrix - np.where(rows[:, None] >= 0, matrix[rows], 0).astype(np.uint8)


def sum_of_neighbors(stored: np.ndarray, tree: Octree) -> np.ndarray:
    """Sums along the chains of references, doubling the reach in every round."""
    rows, values = reference_rows(tree), stored.copy()
    while (rows >= 0).any():
        linked = rows >= 0
        values = np.where(linked[:, None], values + values[rows], values).astype(np.uint8)
        rows = np.where(linked, rows[rows], -1)
    return values


FILTERS: Mapping[str, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]] = {
    "none": (keep, keep),
    "parent": (difference_of_siblings, sum_of_siblings),
    "neighbor": (difference_to_neighbor, sum_of_neighbors),
}


# --- compression -------------------------------------------------------------------------------------


def raw_deflate(data: bytes, level: int) -> bytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def lzma_filters(level: int) -> list[dict[str, int]]:
    return [{"id": lzma.FILTER_LZMA2, "preset": level}]


def find_zstd() -> str | None:
    """The module that can compress with zstd, if any: from Python 3.14 it is in the standard library."""
    for package, name in (("zstandard", "zstandard"), ("compression", "compression.zstd")):
        if find_spec(package) is not None:
            return name
    return None


def load_zstd() -> Any:
    name = find_zstd()
    if name is None:
        raise InputError("it needs zstd", hint="install it with `pip install zstandard`")
    return import_module(name)


def zstd_compress(data: bytes, level: int) -> bytes:
    return bytes(load_zstd().compress(data, level))


def zstd_decompress(data: bytes, level: int) -> bytes:
    zstd = load_zstd()
    try:
        return bytes(zstd.decompress(data))
    except zstd.ZstdError as error:
        raise ValueError(str(error)) from error


COMPRESS: Mapping[str, Callable[[bytes, int], bytes]] = {
    "none": lambda data, level: data,
    "deflate": raw_deflate,
    "lzma": lambda data, level: lzma.compress(data, format=lzma.FORMAT_RAW, filters=lzma_filters(level)),
    "zstd": zstd_compress,
}
DECOMPRESS: Mapping[str, Callable[[bytes, int], bytes]] = {
    "none": lambda data, level: data,
    "deflate": lambda data, level: zlib.decompress(data, -15),
    "lzma": lambda data, level: lzma.decompress(data, format=lzma.FORMAT_RAW, filters=lzma_filters(level)),
    "zstd": zstd_decompress,
}
