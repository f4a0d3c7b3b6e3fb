"""Phrases and factors as people write them: on the command line and in the studio."""

from sage.errors import SettingsError
from sage.settings import AUTO, Phrases


def read_phrases(text: str) -> Phrases:
    """`auto`, `none` or `SOURCE,TARGET`.

    Raises:
        SettingsError: anything else.
    """
    if text in (AUTO, "none"):
        return None if text == "none" else AUTO
    parts = tuple(part.strip() for part in text.split(","))
    if len(parts) != 2:
        raise SettingsError(f"{text!r} must be auto, none or SOURCE,TARGET")
    return parts


def read_factors(text: str) -> dict[str, float]:
    """`none` or `PHRASE:FACTOR,...`.

    Raises:
        SettingsError: anything else.
    """
    factors = {}
    for part in [] if text == "none" else text.split(","):
        phrase, colon, factor = part.rpartition(":")
        try:
            factors[phrase.strip()] = float(factor)
        except ValueError:
            colon = ""
        if not colon or not phrase.strip():
            raise SettingsError(f"{part!r} must be PHRASE:FACTOR, such as fluffy:2")
    return factors
