import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import sage
from sage.bench import engine as engines
from sage.bench import metrics
from sage.bench.configs import CONFIGURATIONS
from sage.bench.files import BenchmarkError
from sage.bench.magicbrush import Turn, final_turns, is_magicbrush, read_magicbrush
from sage.bench.metrics import Extractors
from sage.bench.runner import run
from sage.bench.scoring import DONE, FAILED, score_folder
from sage.commands.main import main
from sage.errors import SageError
from tests.bench.world import StubEngine, picture

PLAIN = CONFIGURATIONS["plain"]
TURNS = {"30": 1, "139": 3}  # turns of each session


def make_set(folder, turns=TURNS):
    sessions, whole, local = {}, {}, {}
    for session, count in turns.items():
        names = [f"{session}-input.png", *(f"{session}-output{i}.png" for i in range(1, count + 1))]
        sessions[session] = [{"input": a, "mask": f"{session}-mask{i}.png", "output": b, "instruction": f"do {i}"}
                             for i, (a, b) in enumerate(zip(names, names[1:], strict=False), start=1)]
        whole[session] = {name: f"a cat, {i}" for i, name in enumerate(names)}
        local[session] = {name: f"cat {i}" for i, name in enumerate(names) if i}
        (folder / "images" / session).mkdir(parents=True)
        for i, name in enumerate(names):
            picture(int(session) + i).save(folder / "images" / session / name)
    for name, table in (("edit_sessions", sessions), ("global_descriptions", whole), ("local_descriptions", local)):
        (folder / f"{name}.json").write_text(json.dumps(table))
    return folder


@pytest.fixture
def folder(tmp_path):
    return make_set(tmp_path / "test")


def extractors():
    return Extractors(image=lambda x: x.mean((0, 1)), text=lambda t: np.array([len(t), 1.0, 2.0]),
                      cls=lambda x: x[0, :9, 0].astype(float))


def test_every_turn_starts_from_the_true_picture_before_it(folder):
    benchmark = read_magicbrush(folder)
    assert is_magicbrush(folder) and [c.name for c in benchmark.cases] == ["30-1", "139-1", "139-2", "139-3"]
    assert benchmark.cases[2] == Turn(
        "139-2", 2, "139/139-output1.png", "a cat, 1", "a cat, 2", (), "do 2", truth="139/139-output2.png",
        session="139", caption="cat 2")
    assert [benchmark.kinds[c.kind] for c in benchmark.cases] == ["first turn", "first turn", "second turn",
                                                                  "third turn"]
    assert np.array_equal(benchmark.source(benchmark.cases[2]), picture(140))
    assert np.array_equal(benchmark.truth(benchmark.cases[2]), picture(141))


def test_results_are_named_as_the_authors_evaluation_wants_them(folder):
    benchmark = read_magicbrush(folder)
    assert [c.stem for c in benchmark.cases] == ["30/30_1", "139/139_1", "139/139_inde_2", "139/139_inde_3"]
    last = final_turns(benchmark)
    assert [c.stem for c in last.cases] == ["30/30_1", "139/139_iter_3"]
    assert [c.truth for c in last.cases] == ["30/30-output1.png", "139/139-output3.png"]
    assert {c.name for c in last.cases} <= {c.name for c in benchmark.cases}


def test_scoring_needs_no_global_descriptions(folder):
    (folder / "global_descriptions.json").unlink()
    assert len(read_magicbrush(folder, prompts=False).cases) == 4
    with pytest.raises(BenchmarkError, match="no global_descriptions.json"):
        read_magicbrush(folder)


def test_another_description_is_another_run(folder):
    before = read_magicbrush(folder).mapping_hash()
    path = folder / "global_descriptions.json"
    path.write_text(path.read_text().replace("a cat, 1", "a dog"))
    assert read_magicbrush(folder).mapping_hash() != before


@pytest.mark.parametrize("file, change, message", [
    ("edit_sessions", {"30": []}, "list of 1 to 9 turns"),
    ("edit_sessions", {"30": {}}, "list of 1 to 9 turns"),
    ("edit_sessions", {"30": [{}] * 10}, "list of 1 to 9 turns"),
    ("edit_sessions", {"30": ["x"]}, "must be a table"),
    ("edit_sessions", {"30": [{"input": 3, "output": "30-output1.png"}]}, "input must be text"),
    ("edit_sessions", {"30": [{"input": "30-input.png"}]}, "output must be text"),
    ("edit_sessions", {"30": [{"input": "x.png", "output": "30-output1.png"}]}, "says nothing of 'x.png'"),
    ("edit_sessions", {"../x": [{"input": "a.png", "output": "b.png"}]}, "without slashes"),
    ("edit_sessions", {"..": [{"input": "a.png", "output": "b.png"}]}, "says nothing"),
    ("edit_sessions", {"x" * 200: [{"input": "a.png", "output": "b.png"}]}, "at most 100"),
    ("local_descriptions", {"30": None}, "local_descriptions.json says nothing of '30-output1.png'"),
    ("local_descriptions", {"30": {"30-output1.png": 7}}, "must be text"),
    ("local_descriptions", {"30": {"30-output1.png": "x" * 5000}}, "at most 4096"),
    ("global_descriptions", {"30": {"30-output1.png": "a"}}, "says nothing of '30-input.png'"),
    ("global_descriptions", {"30": {"30-input.png": "\ud800", "30-output1.png": "a"}}, "must be text"),
])
def test_hostile_entries_are_refused_in_one_line(folder, file, change, message):
    path = folder / f"{file}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SageError, match=message) as caught:
        read_magicbrush(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("session, name", [("..", "../a.png"), ("30", "../../secret.png"), ("30", "/etc/passwd"),
                                           ("a\nb", "a.png"), ("", "a.png")])
def test_no_path_leads_out(folder, session, name):
    said = {session: {name: "a"}}
    for file, table in (("edit_sessions", {session: [{"input": name, "output": name}]}),
                        ("global_descriptions", said), ("local_descriptions", said)):
        (folder / f"{file}.json").write_text(json.dumps(table))
    with pytest.raises(BenchmarkError, match="no plain path"):
        read_magicbrush(folder)


@pytest.mark.parametrize("file", ["edit_sessions", "local_descriptions", "global_descriptions"])
@pytest.mark.parametrize("text", ["{", "[]", "{}", "[" * 100_000])
def test_damaged_files_are_refused(folder, file, text):
    (folder / f"{file}.json").write_text(text)
    with pytest.raises(BenchmarkError, match=f"{file}.json is damaged"):
        read_magicbrush(folder)


# ---- figures


def test_figures_as_the_authors_compute_them():
    result, truth = (np.asarray(picture(i, 40)) for i in (1, 2))
    result = np.asarray(Image.fromarray(result).resize((50, 30)))
    scores = metrics.magic_brush(result, truth, "a cat", extractors())
    fitted = Image.fromarray(result).resize((40, 40))  # Pillow's default
    x, y = (torch.from_numpy(np.asarray(p).transpose(2, 0, 1).copy()).float() / 255 for p in (fitted, truth))
    assert scores["l1"] == pytest.approx(torch.nn.L1Loss()(x, y).item(), rel=1e-5)
    assert scores["l2"] == pytest.approx(torch.nn.MSELoss()(x, y).item(), rel=1e-5)

    def cosine(a, b):
        return torch.nn.functional.cosine_similarity(*(torch.from_numpy(np.asarray(v, float)) for v in (a, b)),
                                                     dim=0).item()

    words = [5, 1, 2]
    assert scores["clip_i"] == pytest.approx(cosine(result.mean((0, 1)), truth.mean((0, 1))))
    assert scores["clip_t"] == pytest.approx(cosine(result.mean((0, 1)), words))
    assert scores["clip_t_truth"] == pytest.approx(cosine(truth.mean((0, 1)), words))
    assert set(metrics.magic_brush(result, truth, "a cat", Extractors())) == {"l1", "l2"}


def test_dino_is_the_cosine_of_the_class_tokens():
    a, b = np.asarray(picture(1)), np.asarray(picture(2))
    x, y = a[0, :9, 0].astype(float), b[0, :9, 0].astype(float)
    assert metrics.magic_brush(a, b, "", extractors())["dino"] == pytest.approx(x @ y / np.sqrt(x @ x * (y @ y)))


# ---- runs and folders


def test_a_run_is_scored_with_local_captions(folder, tmp_path):
    asked = []
    judge = replace(extractors(), text=lambda t: asked.append(t) or np.ones(3))
    benchmark = read_magicbrush(folder)
    lines = run(benchmark, [PLAIN], StubEngine(), tmp_path / "out", extractors=judge)
    assert asked == ["cat 1", "cat 1", "cat 2", "cat 3"] and all(line.status == DONE for line in lines)
    assert [line.picture for line in lines] == [f"plain/annotation_images/{c.stem}.png" for c in benchmark.cases]
    again = score_folder(benchmark, tmp_path / "out/plain", "plain", judge)
    assert [line.scores for line in again] == [line.scores for line in lines]
    assert set(lines[0].scores) == {"l1", "l2", "clip_i", "dino", "clip_t", "clip_t_truth"}


def test_the_inputs_are_not_taken_for_results(folder):
    """Some tools put copies of the inputs beside their results."""
    (folder / "images/30/30_1.png").write_bytes((folder / "images/30/30-output1.png").read_bytes())
    lines = score_folder(read_magicbrush(folder), folder / "images", "theirs", Extractors())
    assert [line.status for line in lines] == [DONE, FAILED, FAILED, FAILED] and lines[0].scores["l1"] == 0


@pytest.fixture
def stubbed(monkeypatch):
    monkeypatch.setattr(sage, "load_model", lambda *args, **kwargs: None)
    monkeypatch.setattr(engines, "ModelEngine", lambda *given: StubEngine())


def test_from_the_command_line(stubbed, folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["bench", "magicbrush", "--data", str(folder), "--out", str(out), "--config", "source", "plain",
                 "--quiet", "--json"]) == 0
    ours = json.loads(capsys.readouterr().out)
    assert {row["kind"] for row in ours["table"]} == {None, "first turn", "second turn", "third turn"}
    page = (out / "report.html").read_text()
    assert "first turn" in page and "change object" not in page

    place = out / "plain/annotation_images/139"
    for i in (2, 3):
        (place / f"139_iter_{i}.png").write_bytes((folder / f"images/139/139-output{i}.png").read_bytes())
    assert main(["score", str(out / "plain"), "--against", str(folder), "--quiet", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)["table"]
    rows = {row["configuration"]: row for row in table if row["kind"] is None}
    assert rows["plain"] == next(r for r in ours["table"] if r["configuration"] == "plain" and r["kind"] is None)
    assert list(rows) == ["plain", "plain, final turn"]
    # The iterated last turn is perfect here, and the session of one turn counts as it is.
    one = score_folder(read_magicbrush(folder), out / "plain", "plain", Extractors())[0].scores["l1"]
    assert rows["plain, final turn"]["l1"]["mean"] == pytest.approx(one / 2) and one > 0
    assert rows["plain, final turn"]["l1"]["count"] == 2
