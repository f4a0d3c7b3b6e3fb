"""What a user can get wrong.  Each carries one clear line that says what to do; the command line exits with 2."""

import errno
import os

from sage.display.console import one_line


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out: Python's, torch's on a GPU, or torch's on a CPU."""
    return (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
            or isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))


def disk_full(error: BaseException) -> bool:
    """Whether an error says that there is no room for a file."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def of_the_machine(error: BaseException) -> str:
    """What to say of an error that is neither the input's fault nor the program's; "" for any other."""
    if out_of_memory(error):
        return "out of memory: try a smaller --size, --dtype float16 on a GPU, or --device cpu"
    if isinstance(error, OSError) and error.errno is not None:
        what = error.strerror or os.strerror(error.errno)
        if disk_full(error):
            return f"the disk is full ({what}): not all of the output could be written"
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return f"{what}: let this process have more (ulimit -n 1024)"
        if error.errno == errno.ENOMEM:
            return f"{what}: let this process have more memory (ulimit -v unlimited)"
        if what.startswith("No usable temporary directory"):  # of tempfile
            return f"{what}: name one with TMPDIR"
        return what if error.filename is None else f"{error.filename}: {what}"
    if isinstance(error, ImportError) and ".so" in str(error):  # none of which is ours
        return f"a library cannot be loaded ({error}): is it whole, and is there memory for it (ulimit -v)?"
    return ""


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
