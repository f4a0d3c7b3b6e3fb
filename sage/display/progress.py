"""A bar on stderr for whatever is called with (phase, done, total)."""

from typing import Any


class Progress:
    """One bar at a time, a new one for each phase; silent unless `shown`.

    Args:
        resumes: work that was done when a phase began does not count towards its speed.
    """

    def __init__(self, shown: bool, unit: str = "step", resumes: bool = False):
        self.shown, self.unit, self.resumes, self.phase = shown, unit, resumes, ""
        self.bar: Any = None

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Show how far a phase has come."""
        if not self.shown:
            return
        if self.bar is None or phase != self.phase or done < self.bar.n:
            from tqdm import tqdm  # only where a bar is wanted
            self.close()
            self.phase, self.bar = phase, tqdm(total=total, initial=done if self.resumes else 0, desc=f"{phase:>11}",
                                               leave=total > 1, unit=self.unit)
        self.bar.update(done - self.bar.n)

    def say(self, text: object) -> None:
        """Print a line on stdout, with no bar open on the terminal that it would run into."""
        self.close()
        print(text, flush=True)

    def close(self) -> None:
        """End the bar, if there is one."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
