"""How hostile input may end: in a value, or in an error of a promised type that says it in one line.

SAGE_FUZZ=1 (`make test-fuzz`) tries many more inputs, others in every run, SAGE_FUZZ=0.1 a tenth of those; without it
they are few and always the same.
"""

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

from sage.display.console import LONGEST

FUZZ = float(os.environ.get("SAGE_FUZZ") or 0)
SEEN: dict[str, Counter[str]] = {}


def tries(few: int, many: int) -> settings:
    """So many inputs normally, and so many in the long run."""
    number = max(few, round(many * FUZZ)) if FUZZ else few
    return settings(max_examples=number, derandomize=not FUZZ, deadline=None, database=None,
                    suppress_health_check=list(HealthCheck))


def ends_well(kind: str, call: Callable[[], Any], *errors: type[Exception]) -> Any:
    """What `call` gives; None if it ended in one of `errors`.  Anything else it ends in is a failure of the test."""
    seen = SEEN.setdefault(kind, Counter())
    try:
        value = call()
    except errors as error:
        message = str(error)
        assert message and message.isprintable() and len(message) <= LONGEST
        seen[type(error).__name__] += 1
        return None
    seen["accepted"] += 1
    return value
