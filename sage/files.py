"""Files that are written whole or not at all, and JSON that strangers wrote."""

import hashlib
import importlib.util
import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from sage.errors import SageError

DEEPEST = 50


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write bytes to, that takes the place of `path` once the context is left without an error.

    Raises:
        OSError: a place that cannot be written to, or a full disk; `path` is then as it was.
    """
    part = path.with_name(f".sage-{secrets.token_hex(6)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not tempfile, whose files only their owner may read.
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def unwritable(path: Path) -> str:
    """Why no file can be written there, in one line; "" if nothing is known against it."""
    try:
        if path.is_dir():
            return f"{path} is a folder"
        folder = next(p for p in path.absolute().parents if p.exists())
    except OSError as error:
        return f"{path} cannot be written ({error.strerror})"
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return f"{path} cannot be written: {folder} is not a folder that may be written to"
    return ""


def numbered(path: Path) -> Iterator[Path]:
    """The path itself, then NAME-2, NAME-3, ..."""
    yield path
    for i in count(2):
        yield path.with_name(f"{path.stem}-{i}{path.suffix}")


def parse_json(text: str) -> Any:
    """The value of a JSON text, nested no deeper than anything that is meant to be read here.

    Raises:
        ValueError: no JSON, or nested too deeply: printing such a value can exhaust the stack that parsing it did not.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level if isinstance(outer, (dict, list))
                 for inner in (outer.values() if isinstance(outer, dict) else outer)]
        if not level:
            return value
    raise ValueError("nested too deeply")


def named_in_file(where: str, error: type[SageError]) -> Any:
    """What a user's own Python file calls by a name, given as `path/to/file.py:Name`.  The file is run.

    Only what the user names for this very command may come here, never what a picture, a table or a model's folder
    says.

    Args:
        error: what is raised when there is no such file or name, or when the file cannot be imported.
    """
    path, _, name = where.rpartition(":")
    if not Path(path).is_file():
        raise error(f"there is no file {path} to take {name} from")
    module_name = "sage_user_" + hashlib.sha256(str(Path(path).resolve()).encode()).hexdigest()[:16]
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise error(f"{path} is no Python file")
        module = sys.modules[module_name] = importlib.util.module_from_spec(spec)  # where dataclasses look names up
        try:
            spec.loader.exec_module(module)
        except Exception as fault:
            del sys.modules[module_name]
            raise error(f"{path} cannot be imported ({type(fault).__name__}: {fault})") from fault
    if not hasattr(module, name):
        raise error(f"{path} has nothing called {name!r}")
    return getattr(module, name)


class Journal:
    """A file of JSON objects, one a line, each on the disk before the next is begun; open for one process at a time.

    What a killed process left of a line is cut off when the next one opens it.  The lock goes with the process, however
    it ends.

    Args:
        path: in a folder that is made if it is not there.
        lock: the file to lock.
        error: what is raised when it cannot be written to, or when another process has it.
        busy: what is said of the latter.
    Attributes:
        text: what it held when it was opened.
    """

    def __init__(self, path: Path, lock: Path, error: type[SageError], busy: str):
        self.path, self._lock, self._error = path, FileLock(lock), error
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            text = path.read_bytes()
            whole = text.rfind(b"\n") + 1
            if whole < len(text):
                os.ftruncate(self._file, whole)
        except Timeout as other:
            raise error(busy) from other
        except OSError as fault:
            raise self._unwritable(fault) from fault
        self.text = text[:whole]

    def append(self, line: dict[str, Any]) -> None:
        """Write a line, for good; where that fails, nothing of it stays."""
        end, rest = os.fstat(self._file).st_size, (json.dumps(line) + "\n").encode()
        try:
            while rest:  # a disk that fills up takes a part, and only then says that it is full
                rest = rest[os.write(self._file, rest):]
            os.fsync(self._file)
        except OSError as fault:
            with suppress(OSError):
                os.ftruncate(self._file, end)
            raise self._unwritable(fault) from fault

    def close(self) -> None:
        """Let others have it."""
        os.close(self._file)
        self._lock.release()

    def _unwritable(self, fault: OSError) -> SageError:
        return self._error(f"{self.path} cannot be written ({fault.strerror or fault})")
