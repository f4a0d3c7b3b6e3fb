"""The API page has every public name, is up to date, and reads as the source does."""

import re
from collections import Counter
from importlib import util
from pathlib import Path

import pytest

import sage
from sage import kit
from sage.settings import Settings, frozen, setting

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "make_api.py"
spec = util.spec_from_file_location("make_api", SCRIPT)
make_api = util.module_from_spec(spec)
spec.loader.exec_module(make_api)


@pytest.fixture(scope="module")
def page() -> str:
    return make_api.page()


def test_the_page_is_up_to_date(page):
    assert make_api.PAGE.read_text(encoding="utf-8") == page, "docs/api.md is older than the docstrings: make docs"


def test_every_public_name_is_there_and_described(page):
    for title in (*(f"sage.{name}" for name in sage.__all__), *(f"sage.kit.{name}" for name in kit.__all__)):
        entry = re.search(rf"^### {re.escape(title)}\n\n((?:(?!^#).*\n)+)", page, re.MULTILINE)
        assert entry and len(entry[1].strip()) > 20, title


def test_every_link_of_the_contents_leads_to_a_heading(page):
    taken: Counter[str] = Counter()
    anchors = {make_api.anchor(heading, taken) for heading in re.findall(r"^#+ (.*)", page, re.MULTILINE)}
    links = re.findall(r"\]\(#([^)]+)\)", page)
    assert len(links) == len(set(links)) > 50 and set(links) <= anchors


def test_signatures_are_as_written():
    def plain(first, second: "int | None" = None, *rest: str, loud: bool = False, **more: "Thing") -> "str":
        """Says so."""

    class Thing:
        """A thing."""

        def __init__(self, sides: tuple[int, ...] = (1, 2)):
            """Not shown."""

        def turned(self, by: float = 0.5) -> "Thing":
            """Another thing."""

        @classmethod
        def cube(cls) -> "Thing":
            """A cube."""

        @property
        def volume(self) -> float:
            """In litres."""

        def _hidden(self):
            """Hidden."""

    assert make_api.signature("plain", plain) == (
        "plain(first, second: int | None = None, *rest: str, loud: bool = False, **more: Thing) -> str")
    text = make_api.described("Thing", Thing)
    assert "class Thing(sides: tuple[int, ...] = (1, 2))" in text
    assert [*re.findall(r"\*\*`(.*)`\*\*", text)] == ["turned(by: float = 0.5) -> Thing", "cube() -> Thing",
                                                     "volume -> float"]
    assert "idden" not in text and "Not shown" not in text


def test_sections_become_lists_and_formulas_stay():
    assert make_api.markdown("One.\n\n    a = b\n\nArgs:\n    x, y: two\n        of them\n    **more: others\n"
                             "Raises:\n    SageError: no.") == (
        "One.\n\n    a = b\n\nArgs:\n\n- `x`, `y`: two\n  of them\n- `**more`: others\n\nRaises:\n\n- `SageError`: no.")


def test_settings_are_tables_with_choices_and_ranges():
    @frozen
    class Shape(Settings):
        """Shape. Of things."""

        sides: int = setting(3, "how many", low=3, high=12)
        colour: str = setting("red", "which | of these", "red", "blue")

    text = make_api.described("Shape", Shape)
    assert "| shape | default | |\n|---|---|---|\n| `sides` | `3` | how many (at least 3, at most 12) |" in text
    assert '| `colour` | `"red"` | which \\| of these (`red`, `blue`) |' in text
