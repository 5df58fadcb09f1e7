"""Two processes on one machine train as one does with both their batches.

Properties: processes that start with different weights end with the very same; these are the weights of one
process with the whole batch, up to rounding; a parameter that no process uses stays as it is; a run of two
processes that is stopped and continued ends, bit for bit, as one that is not; a stop that one process hears
ends both at one step; logged means are those of all. Not tested here: NCCL, which is the same code on GPUs.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, multiprocessing, nn

from trellis_core.training.checkpoints import read_checkpoint
from trellis_core.training.distributed import World, join_world, leave_world
from trellis_core.training.loop import LogEntry, LoopSettings, train
from trellis_core.training.optimizer import OptimizerSettings

STEPS, BATCH = 12, 8


class Net(nn.Module):
    """Matrices for Muon, rims and vectors for AdamW, and a weight that nothing uses."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.input_layer, self.hidden, self.out = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 1)
        self.unused = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(torch.tanh(self.input_layer(x)))))


def run(world: World, folder: Path, noise: float = 0.0, **settings) -> list[LogEntry]:
    """Fit a plane with this process's share of every batch; noise is drawn by each process for itself."""
    model = Net(seed=world.rank)  # the first process's weights count
    generator = torch.Generator().manual_seed(100 + world.rank)
    entries: list[LogEntry] = []

    def objective(step: int) -> dict[str, Tensor]:
        x = torch.randn(BATCH, 3, generator=torch.Generator().manual_seed(step))[world.rank :: world.size]
        x = x + noise * torch.randn(x.shape, generator=generator)
        return {"loss": (model(x)[:, 0] - x.sum(dim=1)).square().mean()}

    train(
        model,
        objective,
        OptimizerSettings(ema=0.5),
        LoopSettings(steps=STEPS, world=world, log_every=4, **settings),
        folder / "net.safetensors",
        entries.append,
        {"noise": generator},
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(model.state_dict()), folder / f"weights.{world.rank}.safetensors")
    return entries


def work(rank: int, size: int, folder: str) -> None:
    """Every run of two processes that the tests look at."""
    home = Path(folder)
    meeting = f"file://{home / 'meeting'}"
    wait = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size, timeout=wait)
    world = join_world(rank, size, torch.device("cpu"))
    entries = run(world, home / "plain")
    if world.leads:
        save_file({"losses": torch.tensor([e.values["loss"] for e in entries])}, home / "losses.safetensors")
    assert world.leads == bool(entries)
    run(world, home / "whole", noise=0.1)
    for piece in (5, 2, None):
        run(world, home / "pieces", noise=0.1, stop_after=piece)
    asked = iter(range(STEPS))
    run(world, home / "stopped", stop=lambda: rank == 1 and next(asked) == 3)
    leave_world(world)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(work, (2, str(folder)), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Path, list[LogEntry]]:
    folder = tmp_path_factory.mktemp("alone")
    return folder, run(World(), folder)


def test_all_processes_end_with_the_same_weights(home):
    for name in ("plain", "whole", "pieces", "stopped"):
        first, second = (load_file(home / name / f"weights.{rank}.safetensors") for rank in (0, 1))
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_half_batches_of_two_processes_train_as_one_process_with_the_whole_batch(home, alone):
    two, one = (load_file(f / "weights.0.safetensors") for f in (home / "plain", alone[0]))
    for name, weight in one.items():
        assert torch.allclose(two[name], weight, atol=1e-5), name
    start = Net(seed=0).state_dict()
    assert not torch.allclose(one["hidden.weight"], start["hidden.weight"], atol=1e-2)
    assert torch.equal(two["unused"], start["unused"])


def test_the_log_tells_the_means_of_all_processes(home, alone):
    losses = load_file(home / "losses.safetensors")["losses"]
    assert losses.tolist() == pytest.approx([entry.values["loss"] for entry in alone[1]], rel=1e-4)


def test_an_interrupted_run_of_two_processes_ends_as_an_uninterrupted_one(home):
    whole, _ = read_checkpoint(home / "whole" / "net.safetensors")
    pieces, counts = read_checkpoint(home / "pieces" / "net.safetensors")
    assert counts["step"] == STEPS
    assert whole.keys() == pieces.keys()
    assert {"generator.noise.0", "generator.noise.1"} <= whole.keys()
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)


def test_a_stop_that_one_process_hears_ends_both_with_a_checkpoint(home):
    _, counts = read_checkpoint(home / "stopped" / "net.safetensors")
    assert counts["step"] == 3


def test_one_process_needs_nobody():
    world = join_world(0, 1, torch.device("cpu"))
    model = nn.Linear(1, 1)
    world.average_gradients(model.parameters())
    assert (world.leads, world.any(True), world.any(False), world.agree(2.5)) == (True, True, False, 2.5)
    assert world.mean({"a": 1.0}) == {"a": 1.0}
    assert model.weight.grad is None
    leave_world(world)
