"""The words of the page: whole in every language, and none that is left of what was said once."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

import sage
from sage.method import METHODS, method
from sage.settings import Phrases
from sage.studio import form
from sage.studio.words import _phrases, names_of

PAGE = Path(form.__file__).parent / "page"
TEXTS = json.loads((PAGE / "texts.json").read_text())
TABLES = {"settings", "choices", "said"}  # of what stands in the code in English
OTHERS = [language for language in TEXTS if language != "en"]
SIDES = {"width", "height"}  # of a picture from text: no settings, but refused like these


def page(language: str) -> dict[str, str]:
    """The texts that the page has of its own."""
    return {key: text for key, text in TEXTS[language].items() if key not in TABLES}


def table(language: str, name: str) -> dict[str, str]:
    return TEXTS[language].get(name, {})


def braces(text: str) -> set[str]:
    return set(re.findall(r"\{\w+\}", text))


def said(node: ast.AST) -> str:
    """A string of the code, what is filled in as an empty pair of braces."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


@cache
def code() -> frozenset[str]:
    """All strings of the code."""
    return frozenset(said(node) for path in Path(sage.__file__).parent.rglob("*.py")
                     for node in ast.walk(ast.parse(path.read_text())))


def is_said(template: str) -> bool:
    """Whether the engine says this: as it is, or each piece around what is filled in, in some string of the code."""
    if "{" not in template:
        return template in code()
    pieces = [piece.strip(" ,:") for piece in re.split(r"\{\w+\}", template) if len(piece) > 2]
    return all(any(piece in string for string in code()) for piece in pieces)


@cache
def shown() -> dict[str, frozenset[str]]:
    """What the page shows as it stands in the code: names of settings, choices, titles, and all other texts."""
    pytest.importorskip("fastapi", reason="the extra `ui` is not installed")
    from sage.studio.api import api
    every = [method(name) for name in METHODS]
    groups = [group for found in every for group in form.shown(found.Settings())["groups"]]
    fields = [field for _, members in groups for field in members]
    phrases = {_phrases(found.Settings(), name)["title"] for found in every
               for name in names_of(found.Settings, Phrases)}
    described = api(None).openapi()  # type: ignore[arg-type]  # which is asked for nothing
    paths = {about["description"] for verbs in described["paths"].values() for about in verbs.values()}
    return {"settings": frozenset(field["name"] for field in fields),
            "choices": frozenset(choice for field in fields for choice in field["choices"]),
            "titles": frozenset(found.title for found in every),
            "said": frozenset({heading for heading, _ in groups} | {field["help"] for field in fields} | phrases | paths
                              | {form.sentence(found.about) for found in every} | {described["info"]["description"]})}


def test_texts_are_whole_in_every_language():
    assert len(TEXTS) >= 2 and all(page(language).keys() == page("en").keys() for language in TEXTS)
    for language in TEXTS:
        for key, text in page(language).items():
            assert text and braces(page("en")[key]) == braces(text), (language, key)
    scripts = "".join(path.read_text() for path in PAGE.iterdir() if path.suffix in (".js", ".html"))
    for key in re.findall(r'(?:\bt\("|data-(?:text|label|title|hint)=")([\w. ]+)"', scripts):
        assert key in page("en"), key


@pytest.mark.parametrize("language", OTHERS)
@pytest.mark.parametrize("kind", sorted(TABLES))
def test_what_stands_in_the_code_is_translated(language, kind):
    """English where it is not: write it into texts.json. Titles of methods may stay as they are."""
    missing = sorted(shown()[kind] - table(language, kind).keys())
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("kind", sorted(TABLES))
def test_no_translation_is_of_what_is_said_no_more(language, kind):
    """The English was changed: see what it says now, and move the translation there."""
    here = shown()[kind] | (SIDES if kind == "settings" else shown()["titles"] if kind == "said" else set())
    stale = [text for text in table(language, kind) if text not in here and not (kind == "said" and is_said(text))]
    assert not stale, "\n".join(stale)


@pytest.mark.parametrize("language", TEXTS)
def test_translations_say_no_more_than_there_is(language):
    names = shown()["settings"]
    for text, translation in table(language, "said").items():
        assert translation and braces(translation) <= braces(text), text
        for given in (*re.findall(r"`(\w+)`", translation), *re.findall(r"\b[a-z]+_\w+", translation)):
            assert given in names or given in text, (given, text)  # for which the page puts its label
        for quoted in re.findall("[“„]([^“”„]+)[”“]", translation):
            assert quoted in page(language).values(), quoted  # as it stands on the page


def test_the_engine_is_translated():
    assert sum("{" in text for text in table("de", "said")) > 25
    assert is_said("auto takes {method}, as recorded for {model}") and not is_said("auto takes {method}, as it likes")
