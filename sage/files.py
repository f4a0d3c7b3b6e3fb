"""Files that are read only if they are plain ones, written whole or not at all, and JSON that strangers wrote."""

import errno
import hashlib
import importlib.util
import json
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from sage.errors import SageError

DEEPEST = 50
LONGEST_NAME = 200  # bytes of a name that is made of another's: file systems take 255, and a number may be added
MAX_HEADER = 2**23  # bytes that list the tensors of a file; Stable Diffusion in one file takes a fiftieth
LONGEST_JOURNAL = 2**30  # bytes
NOTHING_THERE = {errno.ENOENT, errno.ENOTDIR}


# ---- reading


def open_plain(path: str | Path, error: type[SageError], most: int | None = None, advice: str = "") -> BufferedReader:
    """Open a file to read it, whoever named it: only a plain one, for a pipe or a device could be waited for for ever.

    Args:
        error: what is raised where it is not there, cannot be read, or is no plain file.
        most: bytes that it may have; a longer one is refused too.
        advice: what to do then, to be added to what is wrong.
    """
    def refused(why: str) -> SageError:
        return error(f"{path} {why}" + (f": {advice}" if advice else ""))

    try:
        if why := _not_plain(os.stat(path)):
            raise refused(why)
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))
    except OSError as fault:
        raise refused("does not exist" if fault.errno in NOTHING_THERE else f"cannot be read ({fault.strerror})"
                      ) from fault
    except ValueError as fault:  # a name that no file can have here
        raise refused(f"cannot be read ({fault})") from fault
    about = os.fstat(file.fileno())  # it may have been exchanged meanwhile
    if (why := _not_plain(about)) or most is not None and about.st_size > most:
        file.close()
        raise refused(why or f"has more than {(most or 0) // 2**20} MB and was not read")
    return file


def _not_plain(about: os.stat_result) -> str:
    if stat.S_ISREG(about.st_mode):
        return ""
    return "is a folder" if stat.S_ISDIR(about.st_mode) else "is no plain file"


def read_plain(path: str | Path, error: type[SageError], most: int | None = None, advice: str = "") -> bytes:
    """The bytes of a file, as `open_plain` opens it."""
    with open_plain(path, error, most, advice) as file:
        try:
            return file.read()
        except OSError as fault:
            raise error(f"{path} cannot be read ({fault.strerror})") from fault


def check_plain(path: str | Path, error: type[SageError], most: int | None = None, advice: str = "") -> None:
    """What `open_plain` would raise, for a file that a library opens by itself."""
    open_plain(path, error, most, advice).close()


def check_safetensors(path: str | Path, error: type[SageError], advice: str = "") -> None:
    """The same for a .safetensors file, which may also not list its tensors at any length."""
    with open_plain(path, error, advice=advice) as file:
        try:
            header = int.from_bytes(file.read(8), "little")
        except OSError as fault:
            raise error(f"{path} cannot be read ({fault.strerror})") from fault
        if MAX_HEADER < header < os.fstat(file.fileno()).st_size:
            raise error(f"{path} lists its tensors in more than {MAX_HEADER // 2**20} MB and was not read")


def same_file(a: str | Path, b: str | Path) -> bool:
    """Whether two paths lead to the same file, which is there."""
    try:
        return os.path.samefile(a, b)
    except (OSError, ValueError):
        return False


# ---- writing


@contextmanager
def written_whole(path: Path, new: bool = False) -> Iterator[BinaryIO]:
    """A file to write bytes to, that takes the place of `path` once the context is left without an error.

    Args:
        new: nothing may stand there by then, what another process has just written included.
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
        (_linked if new else os.replace)(part, path)
    finally:
        part.unlink(missing_ok=True)


def _linked(part: Path, path: Path) -> None:
    """Give a file its name, if nothing has it: FileExistsError otherwise."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # not every file system has links
        os.replace(part, path)


def unwritable(path: Path) -> str:
    """Why no file can be written there, in one line; "" if nothing is known against it."""
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            if stat.S_ISDIR(os.stat(path).st_mode):
                return f"{path} is a folder"
        folder = next(p for p in path.absolute().parents if os.path.lexists(p))
    except OSError as error:
        return f"{path} cannot be written ({error.strerror})"
    except ValueError as error:  # a name that no file can have here
        return f"{path} cannot be written ({error})"
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        return f"{path} cannot be written: {folder} is not a folder that may be written to"
    return ""


def numbered(path: Path) -> Iterator[Path]:
    """The path itself, then NAME-2, NAME-3, ..."""
    yield path
    for i in count(2):
        yield path.with_name(f"{path.stem}-{i}{path.suffix}")


def named_after(name: str, ending: str) -> str:
    """What a file is called that is made from another, whose name is cut if it is very long.

    Args:
        name: of the other, without its ending.
    """
    while len(os.fsencode(name)) > LONGEST_NAME:
        name = name[:-1]
    return name + ending


# ---- what strangers wrote


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

    Only what the user names for this very command may come here, never what a picture, a table or a model says.

    Args:
        error: what is raised when there is no such file or name, or when the file cannot be imported.
    """
    path, _, name = where.rpartition(":")
    if not os.path.isfile(path):
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
        except (Exception, SystemExit) as fault:
            sys.modules.pop(module_name, None)
            raise error(f"{path} cannot be imported ({type(fault).__name__}: {fault})") from fault
    if name not in vars(module):
        raise error(f"{path} has nothing called {name!r}")
    return vars(module)[name]


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
        with ExitStack() as failed:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._lock.acquire(timeout=0)
                failed.callback(self._lock.release)
                text = read_plain(path, error, LONGEST_JOURNAL) if os.path.lexists(path) else b""
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
                whole = text.rfind(b"\n") + 1
                if whole < len(text):
                    os.ftruncate(self._file, whole)
            except Timeout as other:
                raise error(busy) from other
            except OSError as fault:
                raise self._unwritable(fault) from fault
            failed.pop_all()
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
