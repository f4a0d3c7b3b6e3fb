"""The folder in which the studio keeps its results beyond their visitors' visits, for all to see."""

from pathlib import Path

from sage import pictures
from sage.errors import SettingsError
from sage.files import numbered, written_whole

SHOWN = 200  # the newest


class Gallery:
    """Results as files.

    Args:
        folder: None for a gallery that keeps nothing.
    Raises:
        PictureError: nothing can be written there.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        if folder is not None:
            pictures.check_writable(folder / "result.png")

    def paths(self) -> list[Path]:
        """What it holds, the newest first."""
        found = [] if self.folder is None else [p for p in self.folder.glob("*.png") if p.is_file()]
        return sorted(found, key=lambda path: (path.stat().st_mtime, path.name), reverse=True)[:SHOWN]

    def path(self, name: str) -> Path:
        """A file of it by its name.

        Raises:
            SettingsError: there is none.
        """
        if (path := next((path for path in self.paths() if path.name == name), None)) is None:
            raise SettingsError("that picture is not in the gallery")
        return path

    def keep(self, result: Path) -> str:
        """Copy a result.

        Returns:
            What is to be said where there was no room for it, else "".
        """
        if self.folder is None:
            return ""
        path = next(path for path in numbered(self.folder / result.name) if not path.exists())
        try:
            with written_whole(path) as file:
                file.write(result.read_bytes())
        except OSError as error:
            return f"the gallery could not keep it ({error.strerror})"
        return ""
