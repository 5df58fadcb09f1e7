"""What a training run leaves to read.

Properties: every entry is one JSON line; entries that a resumed run repeats replace the lost ones; curves are
a picture, also when an entry lacks a value; TensorBoard reads events and pictures.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from trellis_core.training.loop import LogEntry
from trellis_core.training.records import (
    all_of,
    draw_curves,
    read_lines,
    write_events,
    write_lines,
    write_picture,
)


def entry(step: int, loss: float) -> LogEntry:
    return LogEntry(step, step / 10, {"loss": loss, "norm": 1.0})


def test_entries_are_read_back_and_a_resumed_run_replaces_what_was_lost(tmp_path):
    log = write_lines(tmp_path / "run" / "stage.jsonl")
    for step, loss in ((10, 1.0), (20, 0.9), (30, 0.8), (20, 0.7), (30, 0.6)):
        log(entry(step, loss))
    assert [(e["step"], e["loss"]) for e in read_lines(tmp_path / "run" / "stage.jsonl")] == [
        (10, 1.0),
        (20, 0.7),
        (30, 0.6),
    ]


def test_curves_are_drawn_as_a_picture(tmp_path):
    entries = [{"step": i, "elapsed": i, "loss": 1 / (i + 1), "norm": 1.0} for i in range(20)]
    draw_curves({"flow": entries, "vae": entries[:5]}, tmp_path / "curves.png")
    picture = np.asarray(Image.open(tmp_path / "curves.png").convert("L"))
    assert picture.shape[1] > picture.shape[0]
    assert picture.std() > 5
    draw_curves({"flow": [{"step": 1, "loss": 1.0}, {"step": 2, "kl": 2.0}], "none": []}, tmp_path / "b.png")
    assert (tmp_path / "b.png").stat().st_size > 1000


def test_events_reach_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = all_of(write_events(tmp_path / "events"), write_lines(tmp_path / "a.jsonl"))
    log(entry(10, 0.5))
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(10, 0.5)]
    assert (tmp_path / "a.jsonl").exists()


def test_pictures_reach_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_picture(tmp_path, "samples", torch.zeros(4, 6, 3, dtype=torch.uint8), 7)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.width, e.height) for e in events.Images("samples")] == [(7, 6, 4)]
