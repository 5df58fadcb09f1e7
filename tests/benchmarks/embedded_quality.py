"""How good the embedded model is, measured honestly: held-out seeds in order, none left out.

    python -m tests.benchmarks.embedded_quality --train-judges --data DATA --judges judges.safetensors
    python -m tests.benchmarks.embedded_quality --n 200 --judges judges.safetensors --data DATA
        [--json FILE] [--model PATH] [--device cuda|cpu] [--surface raw|asset]
        [--only picture,text,novel,renderer,strange,speed]

DATA is a folder of dataset shards; seeds from 0 on are made there when they are missing. It is used to train
the judges and to look pictures up among the first 5,000; without it these rows are left out. `--surface raw`
measures the decoder's mesh (plain torch), `asset` the exported one (needs the whole package). Parts that were
measured before are kept in the JSON file, so that `--only` adds to it.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from tests.benchmarks.quality import report as words
from tests.benchmarks.quality.baselines import TrainingPictures, nearest_by_pixels, same_category
from tests.benchmarks.quality.generate import Model, generate, open_model, picture_tokens, reconstruct
from tests.benchmarks.quality.judges import (
    Judges,
    JudgeTraining,
    LabelledShapes,
    accuracy,
    load_judges,
    train_judges,
)
from tests.benchmarks.quality.measures import Surface
from tests.benchmarks.quality.strange import judge_strange
from tests.benchmarks.quality.table import Surfacer, other_points, raw_surface, score, truth_again
from tests.benchmarks.quality.text import (
    judge_prompts,
    prompt_tokens,
    rates,
    share,
    takes_text,
    true_cases,
)
from tests.benchmarks.quality.truth import Truth, from_another_renderer, make_truths, on_white
from trellis_core import __version__
from trellis_core.errors import InputError
from trellis_core.geometry.types import VoxelMesh
from trellis_core.image.background import choose_background_remover
from trellis_core.image.preprocess import preprocess_picture
from trellis_core.models.familiarity import FamiliarityFacts, familiarity, fit_familiarity, mean_token
from trellis_core.training.synthetic.captions import make_captions, prompt_cases
from trellis_core.training.synthetic.objects import (
    CATEGORIES,
    HELD_OUT,
    ROLES,
    SyntheticObject,
    make_novel,
    make_object,
)
from trellis_core.training.synthetic.shards import (
    Dataset,
    DatasetSettings,
    load_shards,
    make_shard,
    write_shards,
)

UNSEEN = HELD_OUT + 50_000  # seeds that calibrate nothing
TIMED = 5  # single runs
JUDGES = Path(__file__).parent / "quality" / "judges.safetensors"


@dataclass(frozen=True, slots=True)
class Bench:
    """What every part of the benchmark needs."""

    model: Model
    judges: Judges | None
    surfacer: Surfacer
    data: Path | None
    n: int
    lookups: int  # training pictures
    log: Callable[[str], None]

    def truths(self, objects: Sequence[SyntheticObject]) -> list[Truth]:
        return make_truths(objects, self.model.resolution, self.model.tokens, self.model.runtime.device)

    def held_out(self) -> list[Truth]:
        return self.truths([make_object(seed) for seed in range(HELD_OUT, HELD_OUT + self.n)])

    def row(self, name: str, results: Sequence[Any], truths: Sequence[Truth], made: bool = True) -> Any:
        """Score one way to get shapes; `made` ones come from decoders and are exported when assets are."""
        row = score(results, truths, self.judges, self.surfacer if made else raw_surface)
        self.log(f"{name}: " + ", ".join(f"{k} {v}" for k, v in row["mean"].items()))
        return row

    def from_pictures(self, truths: Sequence[Truth]) -> Any:
        cond = picture_tokens(self.model, [t.picture for t in truths])
        return generate(self.model, cond, [t.seed for t in truths])


def judge_pictures(bench: Bench) -> dict[str, Any]:
    """The model beside what it has to beat and what it cannot beat."""
    truths = bench.held_out()
    cond = picture_tokens(bench.model, [t.picture for t in truths])
    seeds = [t.seed for t in truths]
    began = time.perf_counter()
    results = generate(bench.model, cond, seeds)
    seconds = (time.perf_counter() - began) / len(truths)
    rows = {"model": bench.row("model", results, truths)}
    rows["true structure"] = bench.row(
        "true structure", generate(bench.model, cond, seeds, [t.cells for t in truths]), truths
    )
    rows["autoencoders"] = bench.row(
        "autoencoders", reconstruct(bench.model, [t.voxels for t in truths]), truths
    )
    rows |= lookup_rows(bench, truths)
    rows["truth"] = score([truth_again(t) for t in truths], truths, bench.judges, other_points)
    return {"rows": rows, "seconds in batches": round(seconds, 4)}


def lookup_rows(bench: Bench, truths: Sequence[Truth]) -> dict[str, Any]:
    """Retrieval by pixels, and a random object of the right category."""
    if bench.data is None:
        bench.log("no --data: the rows of training objects are left out")
        return {}
    training = TrainingPictures.of(*first_views(bench))
    names = list(CATEGORIES)
    chosen = {
        "retrieval": nearest_by_pixels([t.picture for t in truths], training),
        "same category": same_category([names.index(t.category) for t in truths], training),
    }
    rows = {}
    for name, seeds in chosen.items():
        found = bench.truths([make_object(seed) for seed in seeds])
        rows[name] = bench.row(name, [truth_again(t) for t in found], truths, made=False)
        rows[name]["training pictures"] = len(training.seeds)
    return rows


def judge_texts(bench: Bench) -> dict[str, Any]:
    """Fixed prompts with seeds 0 and 1, colors never seen with a category, captions of held-out objects."""
    if bench.judges is None:
        bench.log("no judges: nothing about prompts is measured; make some with --train-judges")
        return {}
    judges = bench.judges
    truths = bench.held_out()
    found: dict[str, Any] = {}
    for name, parts in (("truth: main color", 1), ("truth: two parts", 2)):
        chosen, cases = true_cases(truths, parts)
        found[name] = rates(judge_prompts([truth_again(t) for t in chosen], cases, judges))
    if not takes_text(bench.model):
        bench.log("the model has no text encoder: only the judge's own ceiling is measured")
        return found
    cases = {"prompts": prompt_cases(), "unseen colors": prompt_cases(novel=True)}
    for name, group in cases.items():
        cond = prompt_tokens(bench.model, [case.prompt for case in group])
        entries = []
        for seed in (0, 1):
            results = generate(bench.model, cond, [seed] * len(group))
            entries += [{"seed": seed, **e} for e in judge_prompts(results, group, judges)]
        found[name] = {**rates(entries), "entries": entries}
    entries = found["prompts"]["entries"]
    found["main color"] = rates([e for e in entries if len(e["wanted"]) == 1])
    found["two parts"] = rates([e for e in entries if len(e["wanted"]) == 2])
    found["captions of held-out objects"] = judge_captions(bench, truths, judges)
    for name, entry in found.items():
        bench.log(f"{name}: " + ", ".join(f"{k} {v}" for k, v in entry.items() if k != "entries"))
    return found


def judge_captions(bench: Bench, truths: Sequence[Truth], judges: Judges) -> dict[str, Any]:
    captions = [make_captions(t.object, 1, np.random.default_rng((t.seed, 5)))[0] for t in truths]
    results = generate(bench.model, prompt_tokens(bench.model, captions), [t.seed for t in truths])
    row = score(results, truths, judges, bench.surfacer)
    return {"n": len(truths), "category": row["mean"]["category"], "IoU": row["mean"]["IoU"]}


def judge_novel(bench: Bench) -> dict[str, Any]:
    """Objects that no training seed can make: other main colors, corners of the parameter ranges."""
    rows: dict[str, Any] = {}
    for novelty in ("color", "corner"):
        seeds = range(HELD_OUT, HELD_OUT + bench.n)
        truths = bench.truths([make_novel(seed, novelty) for seed in seeds])
        rows[f"{novelty}: model"] = bench.row(f"{novelty}: model", bench.from_pictures(truths), truths)
        rows[f"{novelty}: autoencoders"] = bench.row(
            f"{novelty}: autoencoders", reconstruct(bench.model, [t.voxels for t in truths]), truths
        )
        rows |= {f"{novelty}: {name}": row for name, row in lookup_rows(bench, truths).items()}
    return {"rows": rows}


def judge_renderer(bench: Bench) -> dict[str, Any]:
    """Pictures by the mesh renderer instead of the dataset's: cut out, and before white."""
    truths = bench.held_out()
    pictures = from_another_renderer(truths, bench.model.runtime)
    seeds = [t.seed for t in truths]
    rows = {
        "cut out": bench.row(
            "cut out", generate(bench.model, picture_tokens(bench.model, pictures), seeds), truths
        )
    }
    keyed, kept = [], []
    for truth, picture in zip(truths, pictures, strict=True):
        try:
            keyed.append(preprocess_picture(on_white(picture), choose_background_remover("auto")[0]))
            kept.append(truth)
        except InputError as error:
            bench.log(f"seed {truth.seed} before white: {error}")
    results = generate(bench.model, picture_tokens(bench.model, keyed), [t.seed for t in kept])
    rows["before white"] = bench.row("before white", results, kept)
    return {"rows": rows, "refused before white": len(truths) - len(kept)}


def judge_others(bench: Bench) -> dict[str, Any]:
    """Pictures of other things, and how often the same warning would come for pictures of the right kind."""
    facts = familiarity_facts(bench)
    entries, _, _ = judge_strange(bench.model, bench.judges, facts)
    found: dict[str, Any] = {"pictures": entries}
    if facts is not None:
        truths = bench.truths([make_object(seed) for seed in range(UNSEEN, UNSEEN + bench.n)])
        groups = {
            "held-out pictures": [t.picture for t in truths],
            "by another renderer": from_another_renderer(truths, bench.model.runtime),
        }
        for name, pictures in groups.items():
            known = [familiarity(tokens, facts) for tokens in picture_tokens(bench.model, pictures)]
            found[f"warned of {name}"] = share([k < 1 for k in known])
        found["warned of strange pictures"] = share([e["familiarity"] < 1 for e in entries])
        bench.log(", ".join(f"{k} {v}" for k, v in found.items() if k != "pictures"))
    return found


def familiarity_facts(bench: Bench) -> FamiliarityFacts | None:
    """What the model's own file says, else what training and held-out pictures say; None without either."""
    args = json.loads((bench.model.folder / "pipeline.json").read_text(encoding="utf-8"))["args"]
    if "familiarity" in args:
        return FamiliarityFacts.from_json(args["familiarity"])
    if bench.data is None:
        bench.log("no --data: familiarity is not measured")
        return None
    _, _, pictures = first_views(bench)
    seen = [Image.fromarray(p) for p in pictures[:, 0].cpu().numpy()]
    known = mean_token(picture_tokens(bench.model, seen))
    cond = picture_tokens(bench.model, [t.picture for t in bench.held_out()])
    return fit_familiarity(known, mean_token(cond))


def judge_speed(bench: Bench) -> dict[str, Any]:
    """Seconds of single runs as a user makes them, the first (which reads the weights) apart."""
    truths = bench.truths([make_object(seed) for seed in range(HELD_OUT, HELD_OUT + TIMED + 1)])
    pipeline, sampled, decoded = bench.model.pipeline, [], []
    for truth in truths:
        began = time.perf_counter()
        bundle = pipeline.sample(truth.picture, seed=truth.seed)
        sampled.append(time.perf_counter() - began)
        pipeline.decode(bundle)[0].mesh.vertices.cpu()
        decoded.append(time.perf_counter() - began - sampled[-1])
    return {
        "first sample": round(sampled[0], 3),
        "sample": round(sum(sampled[1:]) / TIMED, 3),
        "decode": round(sum(decoded[1:]) / TIMED, 3),
    }


PARTS: Mapping[str, Callable[[Bench], dict[str, Any]]] = {
    "picture": judge_pictures,
    "text": judge_texts,
    "novel": judge_novel,
    "renderer": judge_renderer,
    "strange": judge_others,
    "speed": judge_speed,
}


def first_views(bench: Bench) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Seeds, categories and pictures uint8 [n, 1, S, S, 3] of the first training objects."""
    device, folder = bench.model.runtime.device, bench.data or Path()
    make_training_shards(folder, bench.lookups, device)
    parts = []
    for path in shards_below(folder, bench.lookups):
        with safe_open(path, "pt", device=str(device)) as file:
            first = file.get_slice("pictures")[:, :1]
            parts.append((file.get_tensor("seeds"), file.get_tensor("category"), first))
    seeds, category, pictures = (torch.cat(tensors)[: bench.lookups] for tensors in zip(*parts, strict=True))
    return seeds, category, pictures


def make_training_shards(folder: Path, count: int, device: torch.device) -> None:
    """Make shards until the folder holds the seeds 0 to `count`."""
    done = covered(folder)
    if done < count:
        write_shards(folder, range(done, count), DatasetSettings(views=1, captions=1), str(device))


def covered(folder: Path) -> int:
    """How many seeds from 0 on the folder's shards hold without a gap."""
    end = 0
    for path in sorted(folder.glob("*.safetensors")):
        if int(path.stem) == end:
            with safe_open(path, "pt") as file:
                end += file.get_slice("seeds").get_shape()[0]
    return end


def shards_below(folder: Path, count: int) -> list[Path]:
    return [p for p in sorted(folder.glob("*.safetensors")) if int(p.stem) < count]


def learn_judges(options: argparse.Namespace, log: Callable[[str], None]) -> dict[str, Any]:
    """Train the judges on training shards, store them, and measure them on held-out truth."""
    began = time.perf_counter()
    device = torch.device(options.device)
    make_training_shards(options.data, options.judge_objects, device)
    dataset = load_shards(shards_below(options.data, options.judge_objects), device)
    settings = JudgeTraining(steps=options.judge_steps, batch_size=options.judge_batch)
    resolution = DatasetSettings().resolution
    shapes = LabelledShapes.of(dataset, resolution)
    log(f"judges learn from {len(shapes)} objects")
    train_judges(shapes, tuple(CATEGORIES), ROLES, settings, log).save(options.judges)
    log(f"trained in {time.perf_counter() - began:.0f} s, {options.judges.stat().st_size / 1e6:.2f} MB")
    return {"objects": len(shapes), "steps": settings.steps}


def examine_judges(judges: Judges, options: argparse.Namespace) -> dict[str, Any]:
    """How often the judges are right on held-out truth, as they were stored."""
    made = make_shard(
        range(HELD_OUT, HELD_OUT + options.n), DatasetSettings(views=1, captions=1), options.device
    )
    lengths = made.pop("lengths")
    starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    dataset = Dataset(starts=starts, **made).to(options.device)
    shapes = LabelledShapes.of(dataset, DatasetSettings().resolution)
    return {"n": options.n, **{k: round(v, 4) for k, v in accuracy(judges, shapes).items()}}


def asset_surface(model: Model) -> Surfacer:
    """Points on the exported, textured mesh."""
    from tests.benchmarks.quality.assets import sample_asset

    def sample(shape: VoxelMesh) -> Surface:
        return sample_asset(model.pipeline.export(shape))

    return sample


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(arguments)
    log = print_now
    written: dict[str, Any] = {}
    if options.json and options.json.exists():
        written = json.loads(options.json.read_text())
    trained = learn_judges(options, log) if options.train_judges else {}
    judges = load_judges(options.judges, options.device) if options.judges.exists() else None
    if judges is None:
        log(f"no judges at {options.judges}: categories and colors of parts are not judged")
    else:
        written["judges"] = {**written.get("judges", {}), **trained, **examine_judges(judges, options)}
        log(f"judges on held-out truth: {written['judges']}")
    if not options.only:
        save(options.json, written)
        return
    model = open_model(options.model, options.device, options.batch)
    surfacer = raw_surface if options.surface == "raw" else asset_surface(model)
    bench = Bench(model, judges, surfacer, options.data, options.n, options.lookups, log)
    written["settings"] = facts(options, model)
    for part in options.only:
        began = time.perf_counter()
        written[part] = {**PARTS[part](bench), "n": options.n}
        written[part]["benchmark seconds"] = round(time.perf_counter() - began, 1)
        written["gates"] = words.check_gates(written)
        save(options.json, written)
        log(f"{part}: {written[part]['benchmark seconds']} s")
    log(words.markdown(written))


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=64, help="held-out objects")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, help="objects that run together")
    parser.add_argument("--surface", choices=("raw", "asset"), default="raw")
    parser.add_argument("--only", help=f"comma-separated, of: {', '.join(PARTS)}")
    parser.add_argument("--judges", type=Path, default=JUDGES, help="the judges' file")
    parser.add_argument("--data", type=Path, help="a folder of dataset shards")
    parser.add_argument("--lookups", type=int, default=5000, help="training pictures to retrieve from")
    parser.add_argument("--train-judges", action="store_true")
    parser.add_argument("--judge-objects", type=int, default=6000)
    parser.add_argument("--judge-steps", type=int, default=1500)
    parser.add_argument("--judge-batch", type=int, default=32)
    options = parser.parse_args(arguments)
    if options.train_judges and not options.data:
        parser.error("--train-judges needs --data")
    if options.only is None:
        options.only = () if options.train_judges else tuple(PARTS)
    else:
        options.only = tuple(options.only.split(","))
    unknown = set(options.only) - set(PARTS)
    if unknown:
        parser.error(f"--only knows {', '.join(PARTS)}, not {', '.join(sorted(unknown))}")
    return options


def facts(options: argparse.Namespace, model: Model) -> dict[str, Any]:
    """Everything that the numbers depend on."""
    settings, device = model.pipeline.settings, model.runtime.device
    samplers = {s: asdict(getattr(settings, f"{s}_sampler")) for s in ("structure", "shape", "texture")}
    name = (
        torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    )
    return {
        "model": asdict(model.pipeline.identity),
        "samplers": samplers,
        "n": options.n,
        "held-out seeds": [HELD_OUT, HELD_OUT + options.n],
        "sampling seed": "the object's seed; prompts: 0 and 1",
        "surface": options.surface,
        "device": name,
        "dtype": str(model.runtime.dtype).removeprefix("torch."),
        "kernels": dict(model.runtime.kernels.choices),
        "versions": {"trellis": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def save(path: Path | None, content: Mapping[str, Any]) -> None:
    if path:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def print_now(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
