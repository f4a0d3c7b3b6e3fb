"""Tasks for what is made once, a model for instance: in this process, or in several that each make their own."""

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from sage.errors import SageError
from sage.machine.workers import end_with_parent

Make = Callable[[], Any]
Work = Callable[..., Any]  # of what was made, and of arguments; of several processes a function of a module


class Here:
    """This process, in which a task is done when its result is asked for."""

    def __init__(self, make: Make):
        self.made = make()

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def submit(self, work: Work, *arguments: Any) -> Any:
        return _Task(lambda: work(self.made, *arguments))

    def next(self, tasks: Iterable[Any]) -> Any:
        """Of what was submitted one that may be asked for its result."""
        return next(iter(tasks))

    def result(self, task: Any) -> Any:
        return task.do()


@dataclass(frozen=True, eq=False)
class _Task:
    do: Callable[[], Any]


class Processes:
    """Several processes, which end with this one.

    Args:
        alone: each task in a process that has done nothing else.
    """

    def __init__(self, make: Make, count: int, alone: bool = False):
        self.pool = ProcessPoolExecutor(count, get_context("spawn"), _start, (make,),
                                        max_tasks_per_child=1 if alone else None)

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: Any) -> None:
        self.pool.shutdown(cancel_futures=True)

    def submit(self, work: Work, *arguments: Any) -> Any:
        return self.pool.submit(_do, work, *arguments)

    def next(self, tasks: Iterable[Any]) -> Any:
        """Of what was submitted one that is done."""
        return next(as_completed(tasks))

    def result(self, task: Any) -> Any:
        """What it came to.

        Raises:
            SageError: what the task raised.
        """
        found = task.result()
        if isinstance(found, SageError):
            raise found
        return found


def tasks(make: Make, processes: int) -> Here | Processes:
    """Where tasks are done: with 1 there is only this process."""
    return Here(make) if processes <= 1 else Processes(make, processes)


_made: Any = None


def _start(make: Make) -> None:
    global _made
    end_with_parent()
    _made = make()


def _do(work: Work, *arguments: Any) -> Any:
    """A task of a pool; what is wrong with it goes back as a value, since not every error can be sent."""
    try:
        return work(_made, *arguments)
    except SageError as error:
        return error
