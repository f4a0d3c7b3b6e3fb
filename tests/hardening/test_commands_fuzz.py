"""`sage drag`, `compose`, `grid` and `serve` with any flags of any values: a job that can be done, or one line."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sage.commands import edit, grid
from sage.commands import main as cli
from sage.method import METHODS, able, method
from sage.pictures.regions import box_mask
from tests.hardening import files
from tests.hardening.ends import SEEN, tries
from tests.hardening.test_methods_fuzz import WORDS, flags

NUMBERS = st.one_of(st.integers(-9, 40).map(str), st.sampled_from(
    ("1" * 400, "9" * 5000, "0.5", "1e9", "nan", "inf", "-0", "", " 1", "2147483648", "-99999999999", "0." + "3" * 99)))
REGIONS = st.one_of(
    st.sampled_from(("mask.png", "p.png", "4,4,20,20")), st.lists(NUMBERS, min_size=2, max_size=4).map(",".join),
    st.sampled_from(("p.png", "mask.png", "black.png", "wide.png", "20,20", "-3,2,9,9", "5,5,5,5", "gone.png")), WORDS)
AXES = st.builds("{}{}{}".format, st.one_of(st.sampled_from(sorted(
    {"target", "method", *(name for owner in METHODS for name in method(owner).Settings.names())})), WORDS),
    st.sampled_from(("=", "=", "=", "==", "")), st.lists(st.one_of(WORDS, NUMBERS, st.sampled_from(tuple(METHODS))),
                                                         max_size=4).map(",".join))
OWN = {"--from": REGIONS, "--to": REGIONS, "--mask": REGIONS, "--box": REGIONS, "--reference": REGIONS,
       "--reference-mask": REGIONS, "--radius": NUMBERS, "--x": AXES, "--y": AXES, "--z": AXES, "--port": NUMBERS,
       "--queue": NUMBERS, "--config-from": st.sampled_from(("p.png", "old.png", "gone.png"))}
# What a command needs, and a value of each that can be.
NEEDED = {"drag": {"--from": "4,4,20,20", "--to": "mask.png"}, "grid": {"--x": "seed=1,2"},
          "compose": {"--reference": "p.png", "--reference-mask": "mask.png", "--box": "4,4,20,20"}}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of pictures, and what would be done: nothing is, but for plain pixels."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32), "teal").save("p.png")
    for name, size, box in (("mask", (32, 32), (4, 4, 12, 20)), ("black", (32, 32), (0, 0, 0, 0)),
                            ("wide", (64, 8), (0, 0, 9, 8))):
        box_mask(box, size).save(f"{name}.png")
    (tmp_path / "old.png").write_bytes(files.with_settings("{}"))
    jobs = []
    monkeypatch.setattr(edit, "carry_out", lambda job, *_: jobs.append(job))
    monkeypatch.setattr(grid, "carry_out", lambda job, *_: jobs.append(job))
    monkeypatch.setattr("sage.studio.server.serve", lambda *given: jobs.append(given))
    return jobs


def ends_in_a_job_or_one_line(command: str, words: list[str], jobs: list, capsys) -> None:
    capsys.readouterr()
    try:
        status = cli.main([command, *words])
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr().err
    assert status in (0, 2) and (status == 0 or said.count("\n") == 1), (words, said)
    assert all(c.isprintable() or c == "\n" for c in said), said
    how = "refused" if status else "planned" if jobs else "written" if "--pixels" in words else "nothing"
    assert how != "nothing", words
    SEEN.setdefault(f"flags of sage {command}", Counter())[how] += 1
    jobs.clear()


def drawn(data, command: str, names: list[str], words: list[str]) -> list[str]:
    """A command's words, and some of its flags with values; those that it needs are mostly there."""
    for flag, honest in NEEDED.get(command, {}).items():
        words = [*words, flag, data.draw(st.one_of(st.just(honest), st.just(honest), OWN[flag]))]
    for flag in data.draw(st.one_of(st.just([]), st.lists(st.sampled_from(names), max_size=3))):
        words = [*words, flag, *data.draw(st.lists(OWN.get(flag, WORDS), max_size=1))]
    return words


@pytest.mark.parametrize("command, other", (("drag", "regiondrag"), ("compose", "infedit")))
@tries(10, 800)
@given(st.data())
def test_any_flags_of_what_moves_and_puts_in(here, capsys, command, other, data):
    name = data.draw(st.one_of(st.just(other), st.sampled_from(able("edit"))))
    words = drawn(data, command, flags([command, "--method", name]), ["p.png", "--method", name])
    ends_in_a_job_or_one_line(command, words + ["--model", "stilllife"], here, capsys)


@tries(10, 800)
@given(st.data())
def test_any_flags_of_a_grid(here, capsys, data):
    name = data.draw(st.sampled_from(able("edit")))
    words = ["p.png", "--source", "a cat", "--target", "a dog", "--method", name]
    words = drawn(data, "grid", flags(["grid", "--method", name]), words)
    ends_in_a_job_or_one_line("grid", [*words, "--model", "stilllife"], here, capsys)


@pytest.mark.parametrize("command", ("serve", "ui"))
@tries(10, 800)
@given(st.data())
def test_any_flags_of_a_server(here, capsys, command, data):
    pytest.importorskip("fastapi", reason="the extra `ui` is not installed")
    ends_in_a_job_or_one_line(command, drawn(data, command, flags([command]), []), here, capsys)
