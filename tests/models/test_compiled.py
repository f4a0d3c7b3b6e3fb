"""Compiled graphs: when they serve, that they give what torch gives, and that torch serves everything else."""

import pytest
import torch

import sage
from sage.guidance import hooks
from sage.models import compiled, latent
from sage.models.compiled import Compiled, compile_networks, installed
from sage.sampling.levels import Level
from tests import small

SOURCE, TARGET = "a cat on a mat", "a dog on a mat"
needs_openvino = pytest.mark.skipif(not installed(), reason="the extra `fast` is not installed")


@pytest.fixture
def made(tmp_path):
    return small.make(tmp_path / "tokenizer")


@pytest.fixture
def served(monkeypatch):
    """What graphs were asked for; they are torch's own passes, of which nothing but this is told."""
    asked = []

    def fake(written, inputs, threads):
        def run(given):
            asked.append(tuple(given[0].shape))
            return written(*given)
        return run

    monkeypatch.setattr(compiled, "installed", lambda: True)
    monkeypatch.setattr(torch.jit, "trace", lambda run, inputs, check_trace: run)
    monkeypatch.setattr(compiled, "_compiled", fake)
    return asked


def passed(model, k=0, side=16, batch=1):
    """One pass under a prompt: x0 and eps."""
    z = torch.randn(batch, 4, side, side, generator=torch.Generator().manual_seed(k))
    text = model.embed([model.prompts.parse(SOURCE)])
    with torch.no_grad():
        found = model.predict(z, Level(0.6, 0.8, 499), text)
    return torch.stack([found.x0, found.eps])


def off(a, b) -> float:
    return ((a - b).norm() / b.norm()).item()


@needs_openvino
def test_graphs_give_what_torch_gives_and_their_makers_are_not_told(made):
    x = torch.rand(1, 3, 64, 64) * 2 - 1

    def all_of_them():
        return [passed(made.model), passed(made.model, 1), made.model.encode(x),
                made.model.decode(torch.ones(1, 4, 16, 16))]

    wanted = all_of_them()
    calls = compile_networks(made.model)
    for _ in range(2):  # by torch, then by graphs
        found = all_of_them()
        assert calls.wait() and max(map(off, found, wanted)) < 1e-4
    assert [len(each.graphs) for each in calls.calls] == [1, 1, 1]
    assert not all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))  # so somebody else reckoned
    from openvino.tools.ovc import telemetry_utils
    assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"


@needs_openvino
def test_so_does_a_whole_edit_with_an_inversion_network(made):
    made.model.inversion = small.inversion(made.model)
    settings = sage.method("turbo").Settings(cross_level=0, corrections=1)
    wanted = sage.edit(made.model, small.picture(), SOURCE, TARGET, settings).latents
    calls = compile_networks(made.model)
    sage.edit(made.model, small.picture(), SOURCE, TARGET, settings)
    assert calls.wait() and len(calls.calls) == 4 and all(each.graphs for each in calls.calls)
    assert off(sage.edit(made.model, small.picture(), SOURCE, TARGET, settings).latents, wanted) < 1e-3


def test_torch_serves_a_shape_once_and_graphs_from_then_on(made, served):
    calls = compile_networks(made.model)
    first = passed(made.model)
    assert calls.wait() and served == [(1, 4, 16, 16)]  # the graph was held to what torch gave
    assert off(passed(made.model), first) < 1e-5 and len(served) == 2
    passed(made.model, batch=2)
    assert calls.wait() and served[2:] == [(2, 4, 16, 16)]


def test_who_listens_swaps_or_passes_over_is_served_by_torch(made, served):
    calls, sites = compile_networks(made.model), made.model.sites()
    passed(made.model)
    calls.wait()
    del served[:]
    with hooks.listen(sites[:1]) as tap:
        passed(made.model)
        assert len(tap.pop()) == 1
    with hooks.detour([made.model.blocks()[0].module], lambda plain, module, *given: 0 * plain(*given)):
        other = passed(made.model)
    assert served == []
    assert off(passed(made.model), other) > 1e-3 and len(served) == 1


def test_who_wants_a_gradient_or_more_precision_is_too(made, served):
    calls = compile_networks(made.model)
    passed(made.model)
    calls.wait()
    del served[:]
    z = torch.randn(1, 4, 16, 16, requires_grad=True)
    text = made.model.embed([made.model.prompts.parse(SOURCE)])
    made.model.predict(z, Level(0.6, 0.8, 499), text).eps.sum().backward()
    assert z.grad.abs().sum() > 0
    with made.model.full_precision(dtype=torch.float64):
        assert made.model.predict(z.detach().double(), Level(0.6, 0.8, 499), text).eps.dtype == torch.float64
    assert served == []


def test_weights_that_change_are_compiled_anew(made, served):
    calls = compile_networks(made.model)
    before = passed(made.model)
    calls.wait()
    made.model.unet.conv_out.weight.mul_(2)
    after = passed(made.model)
    assert calls.wait() and off(after, before) > 0.1 and off(passed(made.model), after) < 1e-5


@pytest.mark.parametrize("fault", ["raises", "differs", "nan"])
def test_a_graph_that_fails_or_differs_is_never_used(made, served, monkeypatch, fault):
    def bad(written, inputs, threads):
        if fault == "raises":
            raise RuntimeError("no such operation")
        return lambda given: written(*given) * (1.01 if fault == "differs" else float("nan"))

    monkeypatch.setattr(compiled, "_compiled", bad)
    wanted = passed(made.model)
    calls = compile_networks(made.model)
    with pytest.warns(UserWarning, match="torch serves it"):
        passed(made.model)
        assert not calls.wait()
    assert torch.equal(passed(made.model), wanted)


def test_no_more_shapes_are_kept_than_said(made, served, monkeypatch):
    monkeypatch.setattr(compiled, "SHAPES", 2)
    calls = Compiled([made.model.unet])
    for side in (8, 16, 24):
        passed(made.model, side=side)
    calls.wait()
    assert [key[1] for key in calls.calls[0].graphs] == [(1, 4, 16, 16), (1, 4, 24, 24)]


def test_torch_serves_while_they_rest(made, served):
    calls = compile_networks(made.model)
    passed(made.model)
    calls.wait()
    calls.serving = False
    del served[:]
    passed(made.model)
    assert served == []
    with calls.served():
        passed(made.model)
    passed(made.model)
    assert len(served) == 1


def test_closed_they_are_torchs_again(made, served):
    calls = compile_networks(made.model)
    passed(made.model)
    calls.wait()
    calls.close()
    del served[:]
    passed(made.model)
    assert served == [] and not any("forward" in vars(m) for m in made.model.unet.modules())


def test_nothing_is_done_where_nothing_is_gained(made, served, monkeypatch):
    monkeypatch.setattr(latent, "SMALL", 1000)
    assert compile_networks(made.model) is None
    monkeypatch.undo()
    monkeypatch.setattr(compiled, "installed", lambda: False)
    assert compile_networks(made.model) is None and compile_networks(object()) is None
