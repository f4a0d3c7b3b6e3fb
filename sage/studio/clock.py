"""How far an edit is, how long it will take, and the way to stop it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any

TIMED = ("invert", "edit", "generate")
GUIDED = 2.0  # an editing step over an inversion step, about, before one was measured


class Cancelled(Exception):
    """The visitor changed their mind."""


@dataclass
class Pace:
    """Seconds a step by phase, as last measured for one model and size; {} before the first edit."""

    seconds: dict[str, float] = field(default_factory=dict)

    def of(self, phase: str) -> float | None:
        """Seconds a step, guessed from the other phase where this one was not yet seen; None if neither was."""
        if phase in self.seconds:
            return self.seconds[phase]
        if phase == "edit" and "invert" in self.seconds:
            return GUIDED * self.seconds["invert"]
        return None


class Clock:
    """A progress callback that remembers, foresees, and raises Cancelled once `cancel` was called.

    Args:
        plan: the phases to come that take time, with their steps.
        pace: of earlier edits, and corrected by this one.
        now: seconds, for tests.
    """

    def __init__(self, plan: Sequence[tuple[str, int]] = (), pace: Pace | None = None,
                 now: Callable[[], float] = time.monotonic):
        self.plan, self.pace, self.now = tuple(plan), pace or Pace(), now
        self.phase, self.done, self.total, self.rounds = "", 0, 1, 0
        self.began = self._since = self._last = now()
        self._stop, self._over = Event(), list[Callable[[], bool]]()

    def __call__(self, phase: str, done: int, total: int) -> None:
        if self._stop.is_set() or any(over() for over in self._over):
            raise Cancelled
        if phase != self.phase or done < self.done:
            self.phase, self._since = phase, self._last  # the first report of a phase may be that of its first step
            self.rounds += phase == "edit"
        self.done, self.total, self._last = done, total, self.now()
        if phase in TIMED and done:
            self.pace.seconds[phase] = (self._last - self._since) / done

    def begin(self) -> None:
        """Count from now on: until now the work has waited, or was at something else."""
        self.began = self._since = self._last = self.now()
        self.phase, self.rounds = "", 0

    def cancel(self) -> None:
        """Let the work end at its next step."""
        self._stop.set()

    def ends_if(self, over: Callable[[], bool]) -> None:
        """Let the work end too at a step at which this is so."""
        self._over.append(over)

    def as_dict(self) -> dict[str, Any]:
        """How far it is, as JSON values."""
        return {"phase": self.phase, "done": self.done, "total": self.total, "again": self.rounds > 1,
                "left": None if self.left is None else round(self.left, 1), "share": round(self.share, 3)}

    @property
    def cancelled(self) -> bool:
        return self._stop.is_set()

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self.now() - self.began

    @property
    def left(self) -> float | None:
        """Seconds until the end, about; None while there is nothing to tell it from."""
        if self.phase == "decode":
            return 0.0
        names = [phase for phase, _ in self.plan]
        at = names.index(self.phase) if self.phase in names else -1
        ahead = [(self.pace.of(phase), steps - (self.done if i == at else 0))
                 for i, (phase, steps) in enumerate(self.plan) if i >= at]
        if not ahead or any(pace is None for pace, _ in ahead):
            return None
        waited = self.now() - self._last if at >= 0 else 0.0
        return max(0.0, sum(pace * steps for pace, steps in ahead) - waited)

    @property
    def share(self) -> float:
        """Of the whole, from 0 to 1, by time where that is known."""
        if (left := self.left) is not None:
            return min(1.0, self.elapsed / max(self.elapsed + left, 1e-9))
        steps = sum(steps for _, steps in self.plan)
        names = [phase for phase, _ in self.plan]
        if not steps or self.phase not in names:
            return 0.0
        return (sum(n for _, n in self.plan[:names.index(self.phase)]) + self.done) / steps
