"""Independent judges: which category a shape is, and which part of it each surface point belongs to.

Both see geometry only, so that a color never tells a judge what it is asked about. They are trained on ground
truth with light damage (shift, stretch, noise, missing and stray points), never on anything a model made.
Letters: B samples, N points of all samples, C categories, K roles.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from trellis_core.training.synthetic.shards import Dataset

CELLS = 32  # the judges' grid; each cell is seen as 2 x 2 x 2 halves by the part judge


@dataclass(frozen=True, slots=True)
class PointCloud:
    """Surface points of several samples, sample after sample."""

    points: Tensor  # float32 [N, 3]  world space
    sample: Tensor  # int64 [N]
    count: int  # B

    @classmethod
    def of(cls, clouds: Sequence[Tensor]) -> PointCloud:
        lengths = torch.tensor([len(c) for c in clouds])
        points = torch.cat(list(clouds))
        sample = torch.arange(len(clouds)).repeat_interleave(lengths).to(points.device)
        return cls(points, sample, len(clouds))


class CategoryJudge(nn.Module):
    """Occupancy float32 [B, 1, 32, 32, 32] -> logits [B, C]."""

    def __init__(self, categories: int) -> None:
        super().__init__()
        widths = (1, 16, 32, 64, 96)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv3d(a, b, 3, 2 if i else 1, 1), nn.GroupNorm(8, b), nn.SiLU())
            for i, (a, b) in enumerate(pairwise(widths))
        )
        self.head = nn.Linear(2 * widths[-1], categories)

    def forward(self, occupancy: Tensor) -> Tensor:
        h = occupancy
        for layer in self.layers:
            h = layer(h)
        h = h.flatten(2)
        return self.head(torch.cat([h.mean(dim=2), h.amax(dim=2)], dim=1))


class PartJudge(nn.Module):
    """Points and the grid around them -> role logits [N, K]: a small U-Net, read out between its cells."""

    def __init__(self, categories: int, roles: int, widths: tuple[int, int, int] = (24, 48, 80)) -> None:
        super().__init__()
        fine, half, low = widths
        self.enter = _block(32, fine, kernel=1)
        self.down1 = _block(fine, half, stride=2)
        self.mix1 = _block(half, half)
        self.down2 = _block(half, low, stride=2)
        self.whole = nn.Linear(low, low)
        self.category = nn.Embedding(categories, low)
        self.middle = _block(low, low)
        self.up1 = nn.Conv3d(low, half, 1)
        self.mix2 = _block(half, half)
        self.up2 = nn.Conv3d(half, fine, 1)
        self.mix3 = _block(fine, fine)
        self.head = nn.Sequential(
            nn.Linear(fine + half + 6, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, roles)
        )

    def forward(
        self,
        grid: Tensor,  # float32 [B, 32, 32, 32, 32]
        cloud: PointCloud,
        category: Tensor,  # int64 [B]
    ) -> Tensor:
        fine = self.enter(grid)
        half = self.mix1(self.down1(fine))
        low = self.down2(half)
        told = self.whole(low.mean(dim=(2, 3, 4))) + self.category(category)
        low = self.middle(low + told[:, :, None, None, None])
        half = self.mix2(half + F.interpolate(self.up1(low), scale_factor=2))
        fine = self.mix3(fine + F.interpolate(self.up2(half), scale_factor=2))
        place = (cloud.points + 0.5).clamp(0, 1) * CELLS
        within = place - place.floor() - 0.5
        read = [read_between(fine, cloud), read_between(half, cloud)]
        return self.head(torch.cat([*read, 2 * cloud.points, within], dim=1))


def _block(a: int, b: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(a, b, kernel, stride, kernel // 2), nn.GroupNorm(8, b), nn.SiLU())


def read_between(grid: Tensor, cloud: PointCloud) -> Tensor:  # [B, C, R, R, R] -> float32 [N, C]
    """Trilinear interpolation at the points; beyond the outermost centers the border's value."""
    lengths = torch.bincount(cloud.sample, minlength=cloud.count).tolist()
    places = (2 * cloud.points.flip(1)).split(lengths)  # grid_sample takes the last axis first
    rows = [
        F.grid_sample(one[None].float(), at[None, None, None], padding_mode="border", align_corners=False)
        for one, at in zip(grid, places, strict=True)
    ]
    return torch.cat([r[0, :, 0, 0].T for r in rows])


def occupancy_of(cloud: PointCloud, cells: int = CELLS) -> Tensor:  # float32 [B, 1, R, R, R]
    """1 where a cell holds a point."""
    grid = torch.zeros(cloud.count * cells**3, device=cloud.points.device)
    grid[_cell_of(cloud, cells)] = 1
    return grid.view(cloud.count, 1, cells, cells, cells)


def detail_of(cloud: PointCloud) -> Tensor:  # float32 [B, 32, 32, 32, 32]
    """For each half cell whether it holds points and where their mean lies, folded into channels."""
    cells = 2 * CELLS
    index = _cell_of(cloud, cells)
    place = (cloud.points + 0.5).clamp(0, 1) * cells
    facts = torch.cat([torch.ones_like(place[:, :1]), place - place.floor() - 0.5], dim=1)
    sums = torch.zeros(cloud.count * cells**3, 4, device=place.device).index_add_(0, index, facts)
    sums[:, 1:] /= sums[:, :1].clamp_min(1)
    sums[:, 0].clamp_(max=1)
    halves = sums.view(cloud.count, CELLS, 2, CELLS, 2, CELLS, 2, 4)
    return halves.permute(0, 2, 4, 6, 7, 1, 3, 5).reshape(cloud.count, 32, CELLS, CELLS, CELLS)


def _cell_of(cloud: PointCloud, cells: int) -> Tensor:
    x, y, z = ((cloud.points + 0.5) * cells).long().clamp(0, cells - 1).unbind(1)
    return ((cloud.sample * cells + x) * cells + y) * cells + z


@dataclass(frozen=True, slots=True)
class Judges:
    """Both networks and the words they use."""

    category: CategoryJudge
    parts: PartJudge
    possible: Tensor  # bool [C, K]  roles that a category has in the training data
    categories: tuple[str, ...]
    roles: tuple[str, ...]

    @classmethod
    def fresh(cls, categories: Sequence[str], roles: Sequence[str], possible: Tensor) -> Judges:
        device = possible.device
        return cls(
            CategoryJudge(len(categories)).to(device),
            PartJudge(len(categories), len(roles)).to(device),
            possible,
            tuple(categories),
            tuple(roles),
        )

    @torch.no_grad()
    def categories_of(self, cloud: PointCloud) -> list[str]:  # B names
        """The category of each sample; an empty sample is judged as what no points look like."""
        found = self.category(occupancy_of(cloud)).argmax(dim=1)
        return [self.categories[i] for i in found.tolist()]

    @torch.no_grad()
    def roles_of(self, cloud: PointCloud, categories: Sequence[str]) -> Tensor:  # int64 [N]
        """The role of each point, among those that the category named for its sample has."""
        numbers = torch.tensor([self.categories.index(c) for c in categories], device=cloud.points.device)
        logits = self.parts(detail_of(cloud), cloud, numbers)
        return logits.masked_fill(~self.possible[numbers][cloud.sample], -torch.inf).argmax(dim=1)

    def save(self, path: Path) -> None:
        """One safetensors file, float16."""
        tensors = {f"category.{k}": v.half().contiguous() for k, v in self.category.state_dict().items()}
        tensors |= {f"parts.{k}": v.half().contiguous() for k, v in self.parts.state_dict().items()}
        tensors["possible"] = self.possible.byte()
        facts = {"categories": json.dumps(self.categories), "roles": json.dumps(self.roles)}
        save_file(tensors, path, facts)


def load_judges(path: Path, device: torch.device | str = "cpu") -> Judges:
    """Judges from a file of `Judges.save`, in evaluation mode."""
    with safe_open(path, "pt", device=str(device)) as file:
        facts = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    judges = Judges.fresh(
        json.loads(facts["categories"]), json.loads(facts["roles"]), tensors.pop("possible").bool()
    )
    for name, network in (("category.", judges.category), ("parts.", judges.parts)):
        network.load_state_dict({k[len(name) :]: v.float() for k, v in tensors.items() if k.startswith(name)})
        network.eval()
    return judges


@dataclass(frozen=True, slots=True)
class LabelledShapes:
    """Ground truth to learn from: voxels with roles, objects with categories."""

    coords: Tensor  # uint8 [T, 3]
    position: Tensor  # uint8 [T, 3]  dual vertex in its voxel, 255 = 1
    roles: Tensor  # uint8 [T]
    starts: Tensor  # int64 [n + 1]
    category: Tensor  # uint8 [n]
    resolution: int

    def __len__(self) -> int:
        return len(self.category)

    @classmethod
    def of(cls, dataset: Dataset, resolution: int) -> LabelledShapes:
        return cls(
            dataset.coords, dataset.position, dataset.roles, dataset.starts, dataset.category, resolution
        )

    def cloud(self, chosen: Tensor, limit: int | None = None) -> tuple[PointCloud, Tensor]:
        """Points and roles int64 of the chosen objects, at most `limit` of each."""
        first, length = self.starts[chosen], (self.starts[1:] - self.starts[:-1])[chosen]
        taken = length if limit is None else length.clamp(max=limit)
        sample = torch.arange(len(chosen), device=first.device).repeat_interleave(taken)
        rank = torch.arange(len(sample), device=first.device) - (taken.cumsum(0) - taken)[sample]
        # an even comb through the object's voxels, so that a limit thins the surface everywhere
        rows = first[sample] + rank * length[sample] // taken[sample]
        points = (self.coords[rows] + self.position[rows] / 255) / self.resolution - 0.5
        return PointCloud(points, sample, len(chosen)), self.roles[rows].long()


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeTraining:
    steps: int = 1500
    batch_size: int = 32
    points: int = 3000  # of each object
    rate: float = 2e-3


def train_judges(
    shapes: LabelledShapes,
    categories: Sequence[str],
    roles: Sequence[str],
    settings: JudgeTraining,
    log: Callable[[str], None] = lambda line: None,
) -> Judges:
    """Train both judges on `shapes`, on the device they lie on."""
    device = shapes.coords.device
    judges = Judges.fresh(categories, roles, roles_by_category(shapes, len(categories), len(roles)))
    parameters = [*judges.category.parameters(), *judges.parts.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.rate, total_steps=settings.steps)
    generator = torch.Generator(device=device).manual_seed(0)
    for step in range(settings.steps):
        chosen = torch.randint(len(shapes), (settings.batch_size,), device=device, generator=generator)
        clean, labels = shapes.cloud(chosen, settings.points)
        cloud, keep = damaged(clean, generator)
        category = shapes.category[chosen].long()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            named = judges.category(occupancy_of(with_strays(cloud, generator)))
            told = judges.parts(detail_of(cloud), cloud, category)
        told = told.float().masked_fill(~judges.possible[category][cloud.sample], -1e4)
        loss = F.cross_entropy(named.float(), category) + F.cross_entropy(told, labels[keep])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == settings.steps - 1:
            object_right = float((named.argmax(1) == category).float().mean())
            point_right = float((told.argmax(1) == labels[keep]).float().mean())
            log(
                f"judges {step:5d}  loss {float(loss.detach()):.3f}  "
                f"category {object_right:.3f}  part {point_right:.3f}"
            )
    judges.category.eval()
    judges.parts.eval()
    return judges


def damaged(cloud: PointCloud, generator: torch.Generator) -> tuple[PointCloud, Tensor]:
    """Shift, stretch and shake the shape, and lose points; also which points were kept, bool [N]."""
    device = cloud.points.device

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device, generator=generator)

    shift = (draw(cloud.count, 3) - 0.5) * 0.06
    stretch = 1 + (draw(cloud.count, 3) - 0.5) * 0.1
    shake = 0.006 * draw(cloud.count, 1)
    noise = torch.randn(cloud.points.shape, device=device, generator=generator) * shake[cloud.sample]
    points = cloud.points * stretch[cloud.sample] + shift[cloud.sample] + noise
    lost = 0.3 * draw(cloud.count)
    keep = draw(len(points)) >= lost[cloud.sample]
    # now and then a hole: everything within a ball is missing
    center = (draw(cloud.count, 3) - 0.5)[cloud.sample]
    radius = (0.15 * draw(cloud.count) * (draw(cloud.count) < 0.3))[cloud.sample]
    keep &= (points - center).norm(dim=1) >= radius
    return PointCloud(points[keep], cloud.sample[keep], cloud.count), keep


def with_strays(cloud: PointCloud, generator: torch.Generator, most: int = 12) -> PointCloud:
    """A few points anywhere, as a generated shape's crumbs."""
    device = cloud.points.device
    stray = torch.rand(cloud.count * most, 3, device=device, generator=generator) - 0.5
    owner = torch.arange(cloud.count, device=device).repeat_interleave(most)
    share = torch.rand(cloud.count, device=device, generator=generator) ** 2
    keep = torch.rand(len(owner), device=device, generator=generator) < share[owner]
    return PointCloud(
        torch.cat([cloud.points, stray[keep]]), torch.cat([cloud.sample, owner[keep]]), cloud.count
    )


def roles_by_category(shapes: LabelledShapes, categories: int, roles: int) -> Tensor:  # bool [C, K]
    """Which roles occur in which category."""
    lengths = shapes.starts[1:] - shapes.starts[:-1]
    owner = shapes.category.long().repeat_interleave(lengths)
    seen = torch.zeros(categories * roles, dtype=torch.bool, device=shapes.coords.device)
    seen[owner * roles + shapes.roles.long()] = True
    return seen.view(categories, roles)


@torch.no_grad()
def accuracy(judges: Judges, shapes: LabelledShapes, batch: int = 16) -> dict[str, float]:
    """How often the judges are right on ground truth: objects, points, and points averaged by role."""
    named, told, wanted = [], [], []
    for chosen in torch.arange(len(shapes), device=shapes.coords.device).split(batch):
        cloud, labels = shapes.cloud(chosen)
        truth = [judges.categories[i] for i in shapes.category[chosen].tolist()]
        named += [a == b for a, b in zip(judges.categories_of(cloud), truth, strict=True)]
        told.append(judges.roles_of(cloud, truth))
        wanted.append(labels)
    role, label = torch.cat(told), torch.cat(wanted)
    count = torch.bincount(label, minlength=len(judges.roles))
    hits = torch.bincount(label[role == label], minlength=len(judges.roles))
    by_role = (hits / count.clamp_min(1))[count > 0]
    return {
        "category": sum(named) / len(named),
        "points": float((role == label).float().mean()),
        "points by role": float(by_role.mean()),
    }
