"""Tables that strangers wrote, of a batch and of a benchmark: rows that can be done or one error; no path leads out."""

import json

from hypothesis import given
from hypothesis import strategies as st

from sage import EditConfig
from sage.batch.manifest import Line as BatchLine
from sage.batch.manifest import Manifest
from sage.batch.table import TableError, read_table
from sage.bench.cases import decode_mask, read_benchmark
from sage.bench.files import BenchmarkError, inside
from sage.bench.runner import read_manifests
from sage.errors import PictureError
from tests.hardening import files
from tests.hardening.ends import ends_well, tries

CELLS = st.one_of(st.text(max_size=20), st.sampled_from(
    ("", " ", "cat.png", "../../x.png", "/etc/passwd", "a cat", '"', '""', 'say "hi"', "a,b", "a\nb", "\0", "1e308",
     "nan", "-1", "none", "auto", "a:1,b:2", "9" * 5000, "x" * 70_000, "CON", "con.png", "\ud800", "😀.png", ".",
     "..")))
COLUMNS = st.sampled_from(("picture", "source", "target", "out", "name", "id", "steps", "seed", "reweight", "blend",
                           "size", "# mine", "Guidance-Scale", "", "other"))
CASE = {"image_path": "0_kind/a.png", "original_prompt": "a [cat]", "editing_prompt": "a [dog]", "editing_type_id": "1",
        "editing_instruction": "it", "blended_word": "cat dog", "mask": [0, 4, 9, 2], "blend_phrases": ["cat", "dog"],
        "true_edit": "0_kind/a.png"}
LINE = {"configuration": "plain", "case": "a", "kind": 1, "status": "done", "picture": "plain/annotation_images/a.png",
        "reason": "", "notes": [], "scores": {"psnr": 1.0}, "seconds": 1.0, "judges": "", "anew": 0}


def check(rows, folder):
    """Rows that may be done have settings that hold, prompts, and a place below the folder."""
    for row in rows or ():
        assert row.wrong or row.source.strip() and row.target.strip() and EditConfig().but(**row.settings)
        assert row.wrong.isprintable()
        if not row.wrong:
            path = ends_well("rows of tables, their places", lambda row=row: inside(folder, row.out), BenchmarkError)
            assert path is None or path.is_relative_to(folder.resolve())


@tries(50, 3000)
@given(st.data())
def test_any_csv_gives_rows_or_one_error(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("csv")
    header = [*data.draw(st.permutations(("picture", "source", "target"))), *data.draw(st.lists(COLUMNS, max_size=3))]
    rows = data.draw(st.lists(st.lists(CELLS, max_size=7), max_size=5))
    quoted = data.draw(st.booleans())

    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if quoted else text

    delimiter, end = data.draw(st.sampled_from(",,,;\t|")), data.draw(st.sampled_from(("\n", "\r\n", "\r")))
    text = end.join(delimiter.join(map(cell, row)) for row in [header, *rows])
    raw = text.encode(data.draw(st.sampled_from(("utf-8", "utf-8", "utf-8-sig", "utf-16"))), "surrogatepass")
    if not data.draw(st.integers(0, 3)):
        raw = data.draw(files.damaged(raw))
    (folder / "t.csv").write_bytes(raw)
    check(ends_well("tables, CSV", lambda: read_table(folder / "t.csv"), TableError), folder)


@tries(40, 2000)
@given(st.lists(st.one_of(files.hostile_json({"picture": "cat.png", "source": "a cat", "target": "a dog", "steps": 3,
                                              "name": "x", "reweight": {"dog": 2}, "blend": ["cat", "dog"]}),
                          st.text(max_size=30)), min_size=1, max_size=4))
def test_any_json_lines_give_rows_or_one_error(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("jsonl")
    (folder / "t.jsonl").write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    check(ends_well("tables, JSON lines", lambda: read_table(folder / "t.jsonl"), TableError), folder)


@tries(50, 3000)
@given(st.data())
def test_any_mapping_file_gives_cases_or_one_error(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("bench")
    text = data.draw(files.hostile_json(CASE))
    name = data.draw(st.one_of(st.just("a"), st.text(max_size=30)))
    text = data.draw(st.sampled_from(("{" + json.dumps(name) + ": " + text + "}", text, f"[{text}]")))
    (folder / "mapping_file.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    found = ends_well("mapping files", lambda: read_benchmark(folder), BenchmarkError)
    for case in found.cases if found else ():
        for where in (case.picture, case.truth or case.picture):
            assert inside(folder, where).is_relative_to(folder.resolve())
        mask = ends_well("masks", lambda case=case: decode_mask(case.runs, 8, 8), BenchmarkError)
        assert mask is None or mask.shape == (8, 8)
        assert ends_well("cases, opened", lambda case=case: found.source(case), BenchmarkError, PictureError) is None


@tries(25, 600)
@given(st.lists(st.one_of(files.hostile_json(LINE), files.hostile_json(BatchLine(1, 2, "done", "a.png").as_dict()),
                          st.text(max_size=20)), max_size=4), st.booleans())
def test_any_manifest_is_read_as_far_as_it_goes(tmp_path_factory, lines, ended):
    folder = tmp_path_factory.mktemp("manifest")
    text = "\n".join(lines) + "\n" * ended
    (folder / "manifest.jsonl").write_text(text, encoding="utf-8", errors="surrogatepass")
    for line in ends_well("manifests of benchmarks", lambda: read_manifests(folder)).values():
        json.dumps(line.as_dict())
    with ends_well("manifests of batches", lambda: Manifest(folder)) as manifest:
        assert all(isinstance(name, str) for name in manifest.done)
        manifest.append(BatchLine(1, 2, "done", "b.png"))
    with Manifest(folder) as manifest:
        assert "b.png" in manifest.done
