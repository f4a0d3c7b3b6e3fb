"""The parsers of what strangers write, under a fuzzer that looks for input which reaches code that none reached yet.

    python -m tests.hardening.guided ENTRY [SECONDS]        one of settings, tables, labels, mapping, indexes, masks

Needs atheris (`make fuzz-guided` installs it).  As everywhere in this folder, an input ends in a value or in one line
of a promised error; whatever else it ends in is kept in build/fuzz/ENTRY, as is all that reached new code.
"""

import base64
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sage"]):
    from sage import EditConfig
    from sage.batch.table import read_table
    from sage.bench.cases import decode_mask, read_benchmark
    from sage.errors import SageError
    from sage.models.folders import weight_files
    from sage.pictures.masks import mask_of_text, mask_text
    from sage.pictures.metadata import read_record, settings_in
    from sage.pictures.regions import box_mask, read_move
    from sage.trajectory.label import KEY, read_label

from tests.hardening import files
from tests.hardening.ends import ends_well
from tests.hardening.test_settings_fuzz import RECORD
from tests.hardening.test_tables_fuzz import CASE, check

FOLDER = Path(tempfile.mkdtemp(prefix="sage-fuzz-"))
KEPT = Path("build/fuzz")
MASK = mask_text(box_mask((1, 1, 5, 6), (8, 8)))
V2 = {**{name: value for name, value in RECORD.items() if name != "config"}, "version": 2, "method": "sage",
      "settings": EditConfig().as_dict(), "savings": {"text": True}, "mask": MASK, "paste": True,
      "moves": [[MASK, MASK]], "lora": [{"name": "a.safetensors", "sha256": "0", "scale": 0.5}],
      "composed": [{"reference": {"name": "r.png", "sha256": "0"}, "mask": MASK, "box": [1, 2, 5, 6]}]}
LABEL = {"version": 2, "kind": "recorded", "method": "sage", "settings": EditConfig().as_dict(), "model": "small",
         "fingerprint": "0" * 64, "prediction_type": "epsilon", "source": [{"text": "a", "ids": [1, 2]}],
         "truncate": False, "pictures": ["0" * 64], "picture_size": [8, 8], "name": "p.png", "notes": [], "made": {},
         "wants": [], "orders": {}, "same": {}, "crc32": 0, "target": None, "savings": {}}


def settings(data: bytes) -> None:
    path = FOLDER / "old.png"
    with contextlib.suppress(ValueError):  # more than the format can hold
        path.write_bytes(files.png(files.chunk(b"iTXt", b"sage\0\0\0\0\0" + data)))
        found = ends_well("settings", lambda: settings_in(read_record(path)), SageError)
        assert found is None or type(found).from_dict(json.loads(json.dumps(found.as_dict()))) == found


def tables(data: bytes) -> None:
    path = FOLDER / ("t.jsonl" if data[:1] in b"{[" else "t.csv")
    path.write_bytes(data)
    check(ends_well("tables", lambda: read_table(path), SageError), FOLDER)


def labels(data: bytes) -> None:
    path = FOLDER / "t.safetensors"
    head = json.dumps({"__metadata__": {KEY: data.decode(errors="replace")}, "latents.0": {
        "dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(4))
    ends_well("labels", lambda: read_label(path), SageError)


def mapping(data: bytes) -> None:
    (FOLDER / "mapping_file.json").write_bytes(data)
    for case in getattr(ends_well("mapping files", lambda: read_benchmark(FOLDER), SageError), "cases", ()):
        ends_well("their masks", lambda case=case: decode_mask(case.runs, 8, 8), SageError)


def indexes(data: bytes) -> None:
    (FOLDER / "model.safetensors.index.json").write_bytes(data)
    found = ends_well("indexes", lambda: weight_files(FOLDER, "model", half=False), SageError)
    assert found is None or all(path.parent == FOLDER for path in found)


def masks(data: bytes) -> None:
    if data.startswith(files.PNG):
        text = base64.b64encode(files.rechecked(data)).decode()
        ends_well("masks", lambda: mask_of_text(text), SageError)
    else:
        start, _, end = data.decode(errors="surrogateescape").partition(";")
        ends_well("regions", lambda: read_move(start, end, (32, 24)), SageError)


def dumped(*values: dict) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


ENTRIES: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "settings": (settings, dumped(RECORD, V2)), "labels": (labels, dumped(LABEL)),
    "tables": (tables, [b"picture,source,target,steps\na.png,a cat,a dog,3\n", *dumped(
        {"picture": "a.png", "source": "a cat", "target": "a dog", "reweight": {"dog": 2}, "blend": ["cat", "dog"]})]),
    "mapping": (mapping, dumped({"a": CASE})), "indexes": (indexes, dumped({"weight_map": {"a": "ok.safetensors"}})),
    "masks": (masks, [base64.b64decode(MASK), b"4,4;20,20", b"1,2,9,9;3,4,12,12"])}


def main() -> None:
    entry, seconds = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "150"
    try_one, seeds = ENTRIES[entry]
    corpus = KEPT / entry / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(seeds):
        (corpus / f"seed-{i}").write_bytes(seed)
    atheris.Setup([entry, f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=3000", "-max_len=6000",
                   "-print_final_stats=1", "-verbosity=1", f"-artifact_prefix={KEPT / entry}/", str(corpus)], try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
