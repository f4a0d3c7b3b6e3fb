"""An edit asks for less when memory is short, goes on when it runs out, and says so; or ends in one line."""

import pytest
import torch

from sage import EditConfig
from sage.editing import edit, invert, task_of
from sage.errors import MemoryRunOut
from sage.machine import memory
from sage.models.memory import free_memory
from sage.models.savings import Savings
from tests import small

SOURCE, TARGET = "a cat on a mat", "a dog on a mat"
GUIDED = EditConfig(steps=3, guidance_scale=2.0, reconstruction_scale=1.0, replace=None, blend=None)
GPU = "cuda"


@pytest.fixture
def model(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("memory") / "tokenizer").model


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    model = small.make(tmp_path_factory.mktemp("usual") / "tokenizer").model
    return edit(model, small.picture(), SOURCE, TARGET, GUIDED)


ERRORS = (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError(),
          RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"))


@pytest.mark.parametrize("error", ERRORS, ids=("cuda", "python", "cpu"))
@pytest.mark.parametrize("stage", ("encode", "predict", "decode"))
def test_memory_that_runs_out_once_is_saved_and_the_edit_goes_on(model, usual, monkeypatch, stage, error):
    whole, failed = getattr(model, stage), []

    def short(*args):
        if not model.savings.tiles:
            failed.append(stage)
            raise error
        return whole(*args)

    monkeypatch.setattr(model, stage, short)
    result = edit(model, small.picture(), SOURCE, TARGET, GUIDED)
    assert len(failed) == 1 and result.savings == Savings(tiles=True)
    assert model.savings == Savings()  # it was this edit's
    assert [n for n in result.notes if n.startswith("memory ran out while")] and "tiles" in result.notes[0]
    assert torch.allclose(result.latents, usual.latents, atol=1e-3)  # one tile holds the whole of so small a picture


@pytest.mark.parametrize("stage, said", (("encode", "inverting the picture"), ("predict", "inverting the picture"),
                                         ("decode", "decoding the picture")))
def test_the_last_rung_ends_in_one_line(model, monkeypatch, stage, said):
    def short(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB")

    monkeypatch.setattr(model, stage, short)
    with pytest.raises(MemoryRunOut, match=f"out of memory while {said}: about .* needed .* GiB are free; try"):
        edit(model, small.picture(), SOURCE, TARGET, GUIDED)


def test_while_sampling_too_and_other_errors_pass(model, usual, monkeypatch):
    trajectory = invert(model, small.picture(), SOURCE, GUIDED)
    predict = model.predict

    def short(*args):
        if not model.savings.tiles:
            raise MemoryError
        return predict(*args)

    monkeypatch.setattr(model, "predict", short)
    result = edit(model, small.picture(), SOURCE, TARGET, GUIDED, trajectory=trajectory)
    assert torch.allclose(result.latents, usual.latents, atol=1e-3) and "while sampling" in result.notes[0]
    monkeypatch.setattr(model, "predict", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        edit(model, small.picture(), SOURCE, TARGET, GUIDED, trajectory=trajectory)


def test_what_is_free_decides_beforehand_and_is_said(model, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    result = edit(model, small.picture(), SOURCE, TARGET, GUIDED)
    assert result.savings == Savings(tiles=True) and model.savings == Savings()
    assert [n for n in result.notes if n.startswith("about ") and "are free: the autoencoder works in tiles" in n]
    monkeypatch.setattr(memory, "free_memory", lambda device: None)  # cannot be told
    notes = edit(model, small.picture(), SOURCE, TARGET, GUIDED).notes
    assert not [n for n in notes if "are free" in n]


def test_the_ladder_of_a_gpu():
    rungs, at = [], Savings()
    while at := at.next(GPU):
        rungs.append(at)
    assert rungs == [Savings(True), Savings(True, True), Savings(True, True, True)]
    assert str(rungs[0]) == "recorded attention is kept on the host"
    assert "text encoder" in str(rungs[1]) and "tiles" in str(rungs[2])


def test_a_rung_at_a_time_as_far_as_needed(model, monkeypatch):
    """As on a GPU: what is needed falls with the references, then no further."""
    monkeypatch.setattr(Savings, "next", lambda savings, device, real=Savings.next: real(savings, GPU))
    task = task_of(model, [small.picture()], GUIDED)
    with_references = task.need()
    model.save(Savings(references=True))
    without = task.need()
    assert without < with_references
    model.save(Savings())
    monkeypatch.setattr(memory, "free_memory", lambda device: int(without / memory.SHARE) + 1)
    assert "recorded attention" in memory.settle(task)[0] and model.savings == Savings(references=True)


def test_the_estimate_of_what_is_recorded_is_what_is_recorded(model):
    config = GUIDED.but(reconstruction="cross", replace="auto", replace_fraction=0.5)
    for c in (GUIDED, config):
        task, trajectory = task_of(model, [small.picture()], c), invert(model, small.picture(), SOURCE, c)
        estimate = task.need()
        model.save(Savings(references=True))
        estimate -= task.need()
        model.save(Savings())
        queries = sum(t.nbytes for m in trajectory.maps for pair in (*m.self, *m.cross) for t in pair[:1])
        keys = {t.data_ptr(): t.nbytes for m in trajectory.maps for pair in (*m.self, *m.cross) for t in pair[1:]}
        recorded = queries + (sum(keys.values()) if c is GUIDED else 0)  # the keys of a text are counted as nothing
        assert estimate == recorded


def test_the_text_encoder_works_on_the_host(model, usual):
    model.save(Savings(text=True, references=True))
    assert {p.device.type for p in model.text.parameters()} == {"cpu"}
    assert torch.equal(edit(model, small.picture(), SOURCE, TARGET, GUIDED).latents, usual.latents)


def test_what_the_page_cache_holds_is_free(tmp_path, monkeypatch):
    """In a container of 1,000 bytes with 700 used, 400 of which are files that were read."""
    monkeypatch.setattr("sage.models.memory.ROOT", tmp_path)
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 8 kB\n")
    assert free_memory(torch.device("cpu")) == 8 * 1024  # no container
    (group / "memory.max").write_text("1000\n")
    (group / "memory.current").write_text("700\n")
    assert free_memory(torch.device("cpu")) == 300
    (group / "memory.stat").write_text("anon 250\nworkingset_inactive_file 5\ninactive_file 400\nactive_file 50\n")
    assert free_memory(torch.device("cpu")) == 700
    (group / "memory.max").write_text("max\n")
    assert free_memory(torch.device("cpu")) == 8 * 1024


def test_free_memory_is_a_number_here():
    assert free_memory(torch.device("cpu")) > 2**20
