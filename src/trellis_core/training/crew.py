"""Worker processes that get one task at a time, so that a task which kills its process harms no other.

Knows nothing about the tasks. A pool of the standard library would give up as a whole when one process dies.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar, cast

from trellis_core.errors import TrellisError

Task = TypeVar("Task")
Result = TypeVar("Result")
READY = "ready"  # what a process says when it is prepared
Start = Callable[[], Callable[[Task], Result]]  # prepares a process, once; must be picklable


@dataclass(frozen=True, slots=True)
class Lost:
    """What is left of a task whose process died or took too long."""

    reason: str


@dataclass(slots=True)
class Worker(Generic[Task]):
    process: BaseProcess
    pipe: Connection
    ready: bool = False  # prepared: it takes tasks
    task: Task | None = None
    since: float = 0.0


def run_tasks(
    tasks: Sequence[Task],
    start: Start[Task, Result],
    *,
    workers: int,  # processes; 0: this one
    seconds: float = float("inf"),  # limit of one task
    on_result: Callable[[Task, Result | Lost], None],
) -> None:
    """Run every task and hand over its result as it comes. When interrupted, the processes are stopped.

    Raises the `TrellisError` with which a process could not be prepared, or another error of a task.
    """
    if workers == 0:
        work = start()
        for each in tasks:
            on_result(each, work(each))
        return
    waiting, crew = deque(tasks), [hire(start) for _ in range(min(workers, len(tasks)))]
    try:
        while crew:
            for worker in list(crew):
                if worker.ready and worker.task is None and waiting:
                    give(worker, waiting.popleft())
                elif worker.task is None and not waiting:
                    dismiss(worker)
                    crew.remove(worker)
            for worker in look_after(crew, seconds):
                result = answer_of(worker, seconds)
                if not worker.ready:
                    require_ready(worker, result)
                    continue
                task, worker.task = cast(Task, worker.task), None
                if isinstance(result, Lost):
                    crew.remove(worker)
                    if waiting:
                        crew.append(hire(start))
                on_result(task, result)
    finally:
        for worker in crew:
            worker.process.terminate()
        for worker in crew:
            worker.process.join()


def hire(start: Start[Task, Result]) -> Worker[Task]:
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's and CUDA's threads half
    mine, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, start), daemon=True)
    process.start()
    theirs.close()
    return Worker(process, mine)


def give(worker: Worker[Task], task: Task) -> None:
    worker.task, worker.since = task, time.monotonic()
    with suppress(OSError):  # a dead process: its answer will say so
        worker.pipe.send(task)


def dismiss(worker: Worker[Task]) -> None:
    worker.pipe.close()  # its end of the pipe ends its loop
    if not worker.ready:
        worker.process.terminate()
    worker.process.join()


def look_after(crew: Sequence[Worker[Task]], seconds: float) -> list[Worker[Task]]:
    """The workers that have an answer, are dead, or are late."""
    ready = set(wait([worker.pipe for worker in crew], timeout=0.5))
    now = time.monotonic()
    return [w for w in crew if w.pipe in ready or (w.task is not None and now - w.since > seconds)]


def require_ready(worker: Worker[Task], answer: Any) -> None:
    if isinstance(answer, Lost):
        raise TrellisError(f"a worker process could not start: {answer.reason}", hint="try `--workers 1`")
    worker.ready = True


def answer_of(worker: Worker[Task], seconds: float) -> Any:
    try:
        if worker.pipe.poll():
            answer = worker.pipe.recv()
            if isinstance(answer, Exception):
                raise answer
            return answer
    except (EOFError, ConnectionResetError):
        worker.process.join()
        return Lost(cause_of_death(worker.process.exitcode))
    worker.process.kill()
    worker.process.join()
    return Lost(f"it took longer than {seconds:.0f} seconds")


def cause_of_death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ", as when memory runs out" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with code {code}"


def serve(pipe: Connection, start: Start[Task, Result]) -> None:
    """The loop of a worker process. Interrupting is the business of the process that hired it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    work: Callable[[Task], Result] | None = None
    answer: Any
    while True:
        try:
            if work is None:
                work, answer = start(), READY
            else:
                answer = work(pipe.recv())
        except EOFError:
            return
        except TrellisError as error:
            answer = type(error)(error.message, error.hint)
        except Exception as error:
            answer = RuntimeError(f"{type(error).__name__}: {error}")
        try:
            pipe.send(answer)
        except OSError:  # nobody waits for it any more
            return
