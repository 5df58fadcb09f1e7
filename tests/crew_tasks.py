"""Tasks for worker processes, in a module that imports nothing heavy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable


def start() -> Callable[[str], str]:
    return work


def work(task: str) -> str:
    if task == "dies":
        os._exit(3)
    if task == "sleeps":
        time.sleep(60)
    return task.upper()
