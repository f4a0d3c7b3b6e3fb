"""What a user can get wrong.  Each carries one clear line that says what to do; the command line exits with 2."""

from sage.console import one_line


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out: Python's, torch's on a GPU, or torch's on a CPU."""
    return (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
            or isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))


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


class MemoryRunOut(SageError):
    """An edit that does not fit into memory, however much of it is saved."""
