import pytest

from sage.bench.search import Trial, best, halton, race, search, space, start, strengths, whole_numbers
from sage.errors import SettingsError
from sage.method import able, method
from sage.settings import Span, annotations
from tests import small

EDITING = able("edit")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("search") / "tokenizer").model


def peak(**at):
    """A judge of settings: the nearer to `at`, the better."""
    def judge(values, leader=None):
        return Trial(values, -sum((values[name] - value) ** 2 for name, value in at.items()))
    return judge


def test_halton_fills_every_half_and_third():
    points = [p for p, _ in zip(halton(2), range(6), strict=False)]
    assert [p[0] for p in points] == [0.5, 0.25, 0.75, 0.125, 0.625, 0.375]
    assert [round(p[1] * 9) for p in points] == [3, 6, 1, 4, 7, 2]


def test_a_span_goes_evenly_or_by_equal_factors_and_back():
    even, log = Span(0, 10), Span(1, 100, log=True)
    assert [even.at(s) for s in (0, 0.5, 1)] == [0, 5, 10] and [log.at(s) for s in (0, 0.5, 1)] == [1, 10, 100]
    for span in (even, log):
        assert span.share(span.at(0.25)) == pytest.approx(0.25, abs=1e-2)
        assert (span.share(-5), span.share(1e9)) == (0, 1)


def test_the_search_begins_where_it_is_told_spends_its_budget_and_comes_nearer():
    kinds = {"a": Span(0, 1), "b": Span(1, 100, log=True)}
    seen = []
    judge = peak(a=0.3, b=20)
    tried = search(kinds, {"a": 1.0, "b": 100.0}, 12, lambda v, leader: seen.append(v) or judge(v))
    assert len(tried) == 12 == len(seen) and tried[0].values == {"a": 1.0, "b": 100.0}
    assert len({tuple(t.values.values()) for t in tried}) == 12
    assert [t.values for t in search(kinds, {"a": 1.0, "b": 100.0}, 12, judge)] == seen  # the same again
    assert all(kinds[name].low <= v <= kinds[name].high for t in tried for name, v in t.values.items())


def test_the_second_half_comes_nearer_than_as_many_more_points_spread_evenly():
    kinds, first = {"a": Span(0, 1), "b": Span(0, 1)}, {"a": 1.0, "b": 1.0}
    nearer = []
    for a in (0.1, 0.3, 0.45, 0.6, 0.85):
        for b in (0.15, 0.4, 0.7, 0.9):
            judge = peak(a=a, b=b)
            tried = search(kinds, first, 16, judge)
            even = [judge(dict(zip(kinds, p, strict=True))) for p, _ in zip(halton(2), range(15), strict=False)]
            nearer.append(best(tried).score - best(even).score)
    assert sum(n > 0 for n in nearer) > 0.7 * len(nearer)


def test_few_choices_are_tried_once_each_and_impossible_ones_never_win():
    kinds = {"kind": ("x", "y", "z")}
    tried = search(kinds, {"kind": "y"}, 10, lambda v, leader: Trial(v, None if v["kind"] == "x" else 1.0))
    assert sorted(t.values["kind"] for t in tried) == ["x", "y", "z"]
    assert best(tried).values == {"kind": "y"}
    assert len(search({}, {}, 5, lambda v, leader: Trial(v, 0.0))) == 1


def test_a_trial_that_is_far_behind_is_given_up_and_never_wins():
    asked = []

    def parts(*scores):
        for part in scores:
            asked.append(part)
            yield part

    first = race({"a": 1}, parts([20.0, 10.0], [24.0, None]), None)
    assert first == Trial({"a": 1}, 13.5, 1, (20.0, 10.0, 24.0, 0.0))
    behind = race({"a": 2}, parts([18.0, 9.0], [100.0, 100.0]), first)
    assert behind == Trial({"a": 2}, 12.0, 0, (18.0, 9.0)) and asked[2:] == [[18.0, 9.0]]
    level = race({"a": 3}, parts([19.0, 9.5], [25.0, 0.0]), first)
    assert len(level.each) == 4 and level.score == pytest.approx(13.375)
    assert best([first, behind, level]) is first
    assert len(race({}, parts([1.0]), Trial({}, None)).each) == 1


def test_the_leader_that_a_trial_is_told_of_is_the_best_so_far():
    told = []
    scores = iter([1.0, 3.0, 2.0, 5.0])
    tried = search({"a": Span(0, 1)}, {"a": 1.0}, 4, lambda v, leader: told.append(leader) or Trial(v, next(scores)))
    assert told == [None, tried[0], tried[1], tried[1]]


def test_whole_numbers_stay_whole():
    tried = search({"n": Span(0, 12)}, {"n": 4}, 6, peak(n=9), ["n"])
    assert all(isinstance(t.values["n"], int) for t in tried)
    assert strengths(Span(0, 3), 4, True) == [0, 1, 2, 3] and strengths(Span(1, 8, log=True), 4, False) == [1, 2, 4, 8]


@pytest.mark.parametrize("name", EDITING)
def test_what_a_method_declares_is_possible(name, model):
    found = method(name)
    kinds, whole = space(found), whole_numbers(found.Settings)
    if found.fits(model):
        pytest.skip("this model is not for it")
    first = start(found, model, 7)
    assert found.strength in kinds or not kinds, f"{found.strength} is the strength of {name}, and is not searched"
    assert len(kinds) <= 6 and getattr(first, "steps", 7) == 7
    for key, kind in kinds.items():
        values = [kind.at(0), kind.at(1)] if isinstance(kind, Span) else kind
        for value in values:
            try:
                first.but(**{key: round(value) if key in whole else value})
            except SettingsError as error:  # only what it makes of another setting may forbid it
                assert not str(error).startswith(key), error
        assert isinstance(kind, Span) or {type(v) for v in kind} == {annotations(found.Settings)[key]}
    assert all(method(f"{name}+{more}").variant for more in found.beside)


@pytest.mark.parametrize("name", [name for name in EDITING if "sage" in method(name).beside])
def test_sages_loss_is_searched_only_where_a_name_adds_it(name, model):
    alone, beside = method(name), method(f"{name}+sage")
    assert set(space(beside)) - set(space(alone)) == {"preserve_scale"} and set(space(alone)) < set(space(beside))
    without, first = start(alone, model, 7), start(beside, model, 7)
    assert without.preserve_scale == 0 and first == without.but(preserve_scale=14100.0)
    assert space(beside)["preserve_scale"] == Span(2000, 100_000, log=True)


@pytest.mark.parametrize("name", ("p2p", "masactrl", "pnp", "pix2pix-zero"))
def test_methods_compete_with_ddims_inversion_and_with_direct(name):
    alone, held = method(name), method(f"{name}+direct")
    assert "direct" in alone.beside and alone.Settings.default("inversion") == "ddim"
    assert held.preset("published").inversion == "direct" != alone.preset("published").inversion


def test_a_search_may_leave_the_noises_of_an_inversion_as_they_are():
    """Rounds that make noise of a larger network's predictions can break a smaller one's."""
    searched = space(method("pix2pix-zero"))
    assert searched["noise_rounds"] == (0, 1, 5) and searched["cross_guidance"].low <= 0.001


def test_a_search_begins_at_the_published_numbers_and_the_models_levels(model):
    p2p = method("p2p+direct")
    first = start(p2p, model, 20)
    assert (first.guidance_scale, first.cross_fraction, first.self_fraction) == (7.5, 0.4, 0.6)
    assert (first.steps, first.inversion, first.conventions) == (20, "direct", "consistent")
    assert "inversion" not in space(p2p)
    told = dict(model.recommends, sage={"self_level": 0, "cross_level": 0, "guidance_scale": 1.25, "step_limit": 0.5},
                ddpm={"preserve_level": 0, "strength": 0.1})
    before, model.recommends = model.recommends, told
    try:
        ours, theirs = start(method("sage"), model, 20), start(method("ddpm+sage"), model, 20)
    finally:
        model.recommends = before
    # Its levels are the model's; the numbers that somebody has found for it are not a part of a fair start.
    assert (ours.self_level, ours.guidance_scale, ours.step_limit, ours.reconstruction_scale) == (0, 7.5, 0.0, 200.0)
    assert (theirs.preserve_level, theirs.strength) == (0, 0.64)
