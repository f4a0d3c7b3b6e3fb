"""What a table may hold, and what of it is refused."""

import csv
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage import EditConfig
from sage.batch.table import Row, TableError, columns_of, read_table

GOOD = {"picture": "p.png", "source": "a red mug", "target": "a blue mug"}


def table(tmp_path, text: str | bytes, name: str = "t.csv") -> list[Row]:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_table(path)


def one(tmp_path, **cells) -> Row:
    """The only row of a CSV file with these cells."""
    cells = GOOD | cells
    with open(tmp_path / "one.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([cells.keys(), cells.values()])
    return read_table(tmp_path / "one.csv")[0]


def line(tmp_path, **cells) -> Row:
    """The only row of a file of JSON lines."""
    return table(tmp_path, json.dumps(GOOD | cells), "one.jsonl")[0]


def test_rows_of_csv_and_json_lines_are_the_same(tmp_path):
    a = table(tmp_path, 'picture,source,target,steps,replace,name\nd/p.png,"a red, old mug",a blue mug,9,none,x\n')[0]
    b = table(tmp_path, json.dumps({"picture": "d/p.png", "source": "a red, old mug", "target": "a blue mug",
                                    "steps": 9, "replace": None, "name": "x"}), "t.jsonl")[0]
    assert (a.picture, a.source, a.out, a.settings) == (tmp_path / "d/p.png", "a red, old mug", "x.png",
                                                        {"steps": 9, "replace": None})
    assert (b.picture, b.source, b.target, b.out, b.settings) == (a.picture, a.source, a.target, a.out, a.settings)
    assert (a.number, a.line, b.line) == (1, 2, 1)


@pytest.mark.parametrize("text", [
    "\ufeffpicture,source,target\r\np.png,a red mug,a blue mug\r\n",
    "Picture, Source ,TARGET\np.png,a red mug,a blue mug",
    "picture;source;target\np.png;a red mug;a blue mug\n",
    '"picture"\t"source"\t"target"\np.png\ta red mug\ta blue mug\n',
    "\n\npicture,source,target,# mine\n\np.png,a red mug,a blue mug,=1\n,,,\n",
    "picture,source,target\rp.png,a red mug,a blue mug\r",
    "target,guidance-scale,picture,source\na blue mug,,p.png,a red mug"])
def test_tables_as_programs_write_them(tmp_path, text):
    (row,) = table(tmp_path, text)
    assert not row.wrong and row.picture == tmp_path / "p.png" and row.settings == {}
    assert (row.source, row.target, row.out) == ("a red mug", "a blue mug", "0001-p.png")


def test_every_setting_is_a_column_read_as_its_flag_is(tmp_path):
    cells = {"steps": "7", "guidance_scale": "1.5", "replace": "red mug, blue mug", "blend": "none", "size": "128",
             "reweight": "blue:2,mug:0.5", "decay": "none", "seed": ""}
    assert one(tmp_path, **cells).settings == {
        "steps": 7, "guidance_scale": 1.5, "replace": ("red mug", "blue mug"), "blend": None, "size": 128,
        "reweight": {"blue": 2.0, "mug": 0.5}, "decay": "none"}
    assert {*EditConfig().as_dict()} < {*columns_of()}
    whole = line(tmp_path, **EditConfig(reweight={"mug": 2}).as_dict())
    assert not whole.wrong and EditConfig(**whole.settings) == EditConfig(reweight={"mug": 2})


@pytest.mark.parametrize("text, value", [
    ("7,5", 7.5), ("0,125", 0.125), ("12,25", 12.25), (" 1,5 ", 1.5), ("2.5", 2.5), ("1,000", None), ("1,2,3", None),
    (",5", None)])
def test_decimal_commas(tmp_path, text, value):
    row = one(tmp_path, guidance_scale=text)
    assert row.settings == {"guidance_scale": value} if value else "guidance_scale" in row.wrong
    rows = table(tmp_path, f"picture;source;target;guidance_scale\np.png;a, b;c;{text}\n")
    assert (rows[0].settings, rows[0].wrong) == (row.settings, row.wrong)


def test_commas_in_words_are_no_decimal_commas(tmp_path):
    assert one(tmp_path, replace="1,5", steps="7").settings == {"replace": ("1", "5"), "steps": 7}
    assert "steps is '7,5': must be a number" in one(tmp_path, steps="7,5").wrong


def test_comments_are_left_alone(tmp_path):
    rows = table(tmp_path, "Comment,picture,source,target,Notes,#,#\nold,p.png,a,b,x,y,z\n")
    assert not rows[0].wrong and rows[0].settings == {}
    assert not line(tmp_path, comment="old", remarks=3).wrong


def test_settings_are_those_of_the_rows_method(tmp_path):
    own = one(tmp_path, method="sdedit", strength="0,5", steps="7", self_level="")
    assert (own.method, own.settings, own.wrong) == ("sdedit", {"strength": 0.5, "steps": 7}, "")
    assert "sdedit has no setting self_level: it has" in one(tmp_path, method="sdedit", self_level="1").wrong
    assert "sage has no setting strength" in one(tmp_path, method="", strength="0.5").wrong
    assert "no method is called 'sdedid': did you mean sdedit?" in one(tmp_path, method="sdedid").wrong
    assert "may not say which code" in one(tmp_path, method="x.py:Y").wrong
    assert "strength is" in one(tmp_path, method="sdedit", strength="2").wrong
    assert "text" in line(tmp_path, method=["sdedit"]).wrong
    one(tmp_path, strength="0.5")
    (row,) = read_table(tmp_path / "one.csv", "sdedit")
    assert (row.method, row.settings, row.wrong) == ("sdedit", {"strength": 0.5}, "")


@pytest.mark.parametrize("text, word", [
    ("", "no rows"), ("\n\n", "no rows"), ("picture,source,target\n", "no rows"),
    ("picture,source\np.png,a\n", "no column target"),
    (b"\xff\xfep\x00i\x00", "not UTF-8"), (b"picture,source,target\np.png,\xe9,b\n", "not UTF-8"),
    ("picture,source,target,steps,Steps\np.png,a,b,1,2\n", "steps twice"),
    ("picture,source,target,stpes\np.png,a,b,1\n", "there is no column 'stpes': did you mean steps. .begin the"),
    ("picture,source,target,guidance\np.png,a,b,1\n",
     "there is no column 'guidance': did you mean guidance_by or guidance_scale"),
    ("picture,source,target,zzz\np.png,a,b,1\n",
     "'zzz': there are picture, source, target, instruction, out, name, id, method and any"),
    ('picture,source,target\np.png,"a,b\n', "line 2"), ('picture,source,target\np.png,"a"x,b\n', "line 2"),
    ("p\0i\0c\0t\0u\0r\0e\0,\0\n1,2\n", "no column")])
def test_mistakes_of_a_whole_table(tmp_path, text, word):
    with pytest.raises(TableError, match=word):
        table(tmp_path, text)


@pytest.mark.parametrize("text", ["{", "[1]", "null", "1", '{"picture": "p.png"}', "[" * 100_000])
def test_mistakes_of_whole_json_lines(tmp_path, text):
    with pytest.raises(TableError):
        table(tmp_path, text, "t.jsonl")


def test_tables_that_cannot_be_read(tmp_path):
    with pytest.raises(TableError, match="does not exist"):
        read_table(tmp_path / "gone.csv")
    with pytest.raises(TableError, match="is a folder"):
        read_table(tmp_path)


BAD = {
    "no picture": ({"picture": " "}, "picture is empty"), "no source": ({"source": ""}, "source prompt is empty"),
    "endless": ({"target": "a" * 5000}, "5000 characters"),
    "huge": ({"target": "a" * 10_000_000}, "10000000 characters"),
    "nul": ({"source": "a\0b"}, "control character"), "nul in a path": ({"picture": "a\0.png"}, "control character"),
    "escape": ({"name": "a\x1b[2J"}, "control character"), "formula": ({"steps": "=1+1"}, "steps is '=1+1'"),
    "no number": ({"guidance_scale": "much"}, "guidance_scale is 'much'"), "range": ({"steps": "0"}, "at least 1"),
    "digits": ({"steps": "9" * 5000}, "steps is"), "infinite": ({"guidance_scale": "inf"}, "finite"),
    "choice": ({"decay": "slow"}, "decay"), "phrases": ({"replace": "a,b,c"}, "SOURCE,TARGET"),
    "factors": ({"reweight": "blue"}, "PHRASE:FACTOR"),
    "up": ({"name": "../x"}, "usable name"), "down and up": ({"out": "a/../../x.png"}, "usable name"),
    "long": ({"name": "n" * 300}, "usable name"), "dots": ({"out": ".."}, "usable name"),
    "the sheet": ({"out": "Contact-Sheet-2.png"}, "contact sheet"),
}


@pytest.mark.parametrize("cells, word", BAD.values(), ids=BAD)
def test_a_bad_row_says_why_and_is_no_error(tmp_path, cells, word):
    row = one(tmp_path, **cells)
    assert word in row.wrong and (row.number, len(row.wrong) < 400) == (1, True)


@pytest.mark.parametrize("cells, word", [
    ({"picture": 3}, "must be a text"), ({"source": None}, "empty"),
    ({"stpes": 3}, "no column 'stpes': did you mean steps?"),
    ({"steps": True}, "steps"), ({"steps": "many"}, "steps"), ({"steps": 7.5}, "whole number"),
    ({"Steps": 3, "steps": 4}, "steps twice"), ({"target": "\ud800"}, "control character"),
    ({"reweight": {"a": "b"}}, "factors"), ({"guidance_scale": 10**400}, "guidance_scale"), ({"name": ["x"]}, "text")])
def test_a_bad_json_line_says_why(tmp_path, cells, word):
    assert word in line(tmp_path, **cells).wrong


def test_damaged_json_lines_are_rows_that_are_wrong(tmp_path):
    good = json.dumps(GOOD)
    named = json.dumps(GOOD | {"name": "b"})
    rows = table(tmp_path, f'{good}\n\n{{"picture": \n[]\n{{"steps": 1, "steps": 2}}\n{named}\n', "t.jsonl")
    assert [(row.number, row.line, bool(row.wrong)) for row in rows] == [
        (1, 1, False), (2, 3, True), (3, 4, True), (4, 5, True), (5, 6, False)]
    assert "twice" in rows[3].wrong


def test_too_many_cells_are_one_bad_row_and_too_few_are_empty(tmp_path):
    rows = table(tmp_path, "picture,source,target,steps\np.png,a,b,3,4\np.png,a,b\n")
    assert "5 cells" in rows[0].wrong and not rows[1].wrong and rows[1].settings == {}


def test_names(tmp_path):
    def name(**cells):
        return one(tmp_path, **cells).out

    assert name(name="dog") == "dog.png" and name(id="7") == "7.png" and name(out="a/b.jpg", name="x") == "a/b.jpg"
    assert name(name="v1.2") == "v1.2.png" and line(tmp_path, id=7).out == "7.png"
    assert name(picture="../../we ird:*\U0001f600.png") == "0001-we ird___.png"
    assert name(picture="犬" * 200 + ".png").startswith("0001-犬") and not one(tmp_path, picture="犬" * 200).wrong
    rows = table(tmp_path, "picture,source,target,name\np,a,b,Dog\np,a,b,dog\np,a,b,e\u0301\np,a,b,\u00e9\n")
    assert [row.wrong for row in rows] == ["", "dog.png is also the name of row 1", "",
                                           "\u00e9.png is also the name of row 3"]


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.lists(st.text(max_size=12), max_size=7), max_size=5), st.sampled_from(["t.csv", "t.jsonl"]))
def test_whatever_stands_in_a_table_is_a_row_or_a_clear_error(tmp_path_factory, cells, name):
    path = tmp_path_factory.mktemp("table") / name
    text = "\n".join(["picture,source,target,out,steps,reweight,blend", *(",".join(row) for row in cells)])
    path.write_bytes(text.encode("utf-8", "replace"))
    try:
        for row in read_table(path):
            assert row.wrong or (row.out and not row.out.startswith(("/", ".")) and ".." not in row.out.split("/"))
    except TableError:
        pass
