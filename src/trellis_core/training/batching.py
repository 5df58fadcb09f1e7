"""Batches of samples of different size: splitting by load, and an order of samples that can be resumed.

A load is whatever a sample costs: voxels or tokens. Every rank of a distributed run computes the whole
order and takes its share, so that nothing is communicated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch


def balanced_groups(loads: Sequence[int], groups: int, *, equal_size: bool = False) -> list[list[int]]:
    """Indices of the samples of each group: largest first, each to the group with the least load so far.

    Of equal samples the last comes first. With `equal_size` every group gets `len(loads) / groups` samples.
    Graham, "Bounds on Multiprocessing Timing Anomalies" (1969).
    """
    if groups < 1 or (equal_size and len(loads) % groups):
        raise ValueError(f"{len(loads)} samples cannot be split into {groups} groups")
    room = len(loads) // groups if equal_size else len(loads)
    members: list[list[int]] = [[] for _ in range(groups)]
    totals = [0] * groups
    for index in sorted(range(len(loads)), key=lambda i: (-loads[i], -i)):
        open_groups = [g for g in range(groups) if len(members[g]) < room]
        lightest = min(open_groups, key=lambda g: totals[g])
        members[lightest].append(index)
        totals[lightest] += loads[index]
    return members


def micro_batches(loads: Sequence[int], splits: int) -> list[list[int]]:
    """A batch cut into at most `splits` parts of similar load, none empty, for gradient accumulation."""
    return [part for part in balanced_groups(loads, min(splits, len(loads))) if part]


def epoch_order(
    count: int,
    epoch: int,
    *,
    seed: int = 0,
    ranks: int = 1,
    shuffle: bool = True,
    drop_last: bool = False,
) -> list[int]:
    """The order of one epoch for all ranks; rank r takes every `ranks`-th from r on.

    The length is a multiple of `ranks`: the first samples are repeated at the end, or with `drop_last` the
    last ones left out.
    """
    order = list(range(count))
    if shuffle:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
    if drop_last:
        return order[: count // ranks * ranks]
    total = -(-count // ranks) * ranks
    return (order * (-(-total // count)))[:total] if count else []


class SampleOrder:
    """Endless indices of one rank, epoch after epoch, resumable at (epoch, index).

    With `loads` and `batch_size`, each global batch is dealt so that ranks get similar loads.
    """

    def __init__(
        self,
        count: int,
        *,
        rank: int = 0,
        ranks: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        loads: Sequence[int] | None = None,
        batch_size: int = 1,  # per rank; matters with loads only
    ) -> None:
        if count < 1 or not 0 <= rank < ranks or (drop_last and count < ranks):
            raise ValueError(f"{count} samples cannot be dealt to rank {rank} of {ranks}")
        if loads is not None and len(loads) != count:
            raise ValueError(f"{count} samples, but {len(loads)} loads")
        self.count, self.rank, self.ranks, self.seed = count, rank, ranks, seed
        self.shuffle, self.drop_last = shuffle, drop_last
        self.loads, self.batch_size = loads, batch_size
        self.epoch, self.index = 0, 0  # index: samples of this rank already given in this epoch

    def epoch_share(self) -> list[int]:
        """All samples of this rank in the current epoch."""
        order = epoch_order(
            self.count,
            self.epoch,
            seed=self.seed,
            ranks=self.ranks,
            shuffle=self.shuffle,
            drop_last=self.drop_last,
        )
        if self.loads is None:
            return order[self.rank :: self.ranks]
        share: list[int] = []
        step = self.batch_size * self.ranks
        for start in range(0, len(order), step):
            batch = order[start : start + step]
            mine = balanced_groups([self.loads[i] for i in batch], self.ranks, equal_size=True)[self.rank]
            share += [batch[i] for i in mine]
        return share

    def __iter__(self) -> Iterator[int]:
        while True:
            for sample in self.epoch_share()[self.index :]:
                self.index += 1
                yield sample
            self.epoch, self.index = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "index": self.index}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.index = state["epoch"], state["index"]
