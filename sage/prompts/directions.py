"""Where an edit leads in the embedding of text: from the old words to the new (Parmar et al. 2302.03027, sec. 3.1)."""

from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

from sage import kit
from sage.errors import SettingsError

if TYPE_CHECKING:
    from sage.job import Job


def direction(job: "Job[Any]") -> "kit.Text":
    """(B, M, D) to be added to the source prompts.

    From sentences it is mean E(new) - mean E(old), summed over what is changed; else E(target) - E(source).  What was
    given as the text "direction" comes before both.

    Raises:
        SageError: sentences of the user's own that are none.
    """
    def made() -> "kit.Text":
        plain = job.target - job.source
        found = [_between(job, row) for row in range(len(plain))]
        return kit.Text.cat([plain.rows([row]) if d is None else d for row, d in enumerate(found)])

    return job.text("direction", made)


def _between(job: "Job[Any]", row: int) -> "kit.Text | None":
    """That of one picture from the user's own sentences, else of the rendered world's if wanted; None without any."""
    from sage.prompts.sentences import check_sentences
    from sage.stilllife.sentences import sentences
    plan, own, prompts = job.plans[row], job.requests[row].sentences, job.model.prompts
    if own:
        if len(own) != 2:
            raise SettingsError("sentences must be two lists: with the old words, and with the new")
        banks = [tuple(map(check_sentences, own, ("the old sentences", "the new sentences")))]
    elif job.settings.direction == "prompts":
        return None
    else:
        phrases = [(prompts.phrase(plan.source, span.source), prompts.phrase(plan.target, span.target))
                   for span in plan.edited]
        banks = [sentences(*pair) for pair in phrases]
        if unknown := [pair for pair, (old, _) in zip(phrases, banks, strict=True) if not old]:
            old, new = unknown[0]
            job.note(row, f"there are no sentences with {old!r} or {new!r}: the edit leads from prompt to prompt; give "
                          "sentences of your own")
            return None

    def mean(bank: tuple[str, ...]) -> "kit.Text":
        return job.model.embed([prompts.parse(text, truncate=True) for text in bank]).mean()

    return reduce(add, (mean(new) - mean(old) for old, new in banks)) if banks else None
