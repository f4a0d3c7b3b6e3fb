"""What a user can get wrong.  Each carries one clear line that says what to do; the command line exits with 2."""

LONGEST = 1000


def one_line(text: str) -> str:
    """Text on one line without control characters, whatever a file name or a stranger's file says; cut if very long."""
    text = text if len(text) <= LONGEST else f"{text[:LONGEST - 200]} ... {text[-195:]}"
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


class SageError(Exception):
    """Base of every error that is the input's fault, not the program's."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


class ModelError(SageError):
    """A model that is not there, not whole, not of a known kind, or refused."""


class PictureError(SageError):
    """A picture that cannot be read or written, or is refused."""


class PromptError(SageError):
    """A prompt too long for the model, or a phrase that is not in its prompt."""


class SettingsError(SageError):
    """A setting out of its range, of the wrong type, or that contradicts another."""


class NumericsError(SageError):
    """A stage that gave non-finite numbers even in float32."""
