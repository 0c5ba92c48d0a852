"""Which method to take: the random-effects model by hand and by simulation, what counts as a pair, and the command."""

import copy
import math
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects

from experiments.cli import main
from experiments.commands import rank
from experiments.planning.asked import planned
from experiments.results import preference
from experiments.results.preference import Measured, Pair, Seen, effect, family, gains_of, kind_of, prefer, seen_of
from hkd.errors import UserError


def test_three_pairs_of_one_seed_by_hand():
    found = effect([[{0: 1.0}], [{0: 2.0}], [{0: 3.0}]])  # variance of pairs 1; of the mean 1/3; t of 2 degrees 4.3027
    assert (found.mean.mean, found.tau) == pytest.approx((2.0, 1.0))
    assert found.mean.high - 2 == pytest.approx(4.302653 * math.sqrt(1 / 3), rel=1e-5)
    assert found.new.high - 2 == pytest.approx(4.302653 * math.sqrt(4 / 3), rel=1e-5)
    assert found.chance == pytest.approx(stats.t.cdf(2 / math.sqrt(4 / 3), 2))


def test_pairs_that_differ_no_more_than_their_seeds_have_no_spread_of_their_own():
    found = effect([[{0: 1.0, 1: 3.0}], [{0: 1.5, 1: 2.5}], [{0: 0.0, 1: 4.0}]])
    assert found.tau == 0
    assert found.mean.mean == pytest.approx(2.0)
    pooled = (2.0 + 0.5 + 8.0) / 3  # of variances with one degree of freedom each
    assert found.mean.high - 2 == pytest.approx(stats.t.ppf(0.975, 2) * math.sqrt(pooled / 6), rel=1e-6)


def test_the_spread_of_pairs_and_the_mean_are_those_of_statsmodels():
    rng = np.random.default_rng(0)
    gains = [dict(enumerate(rng.normal(rng.normal(3, 4), 1, size=3))) for _ in range(7)]
    found = effect([[each] for each in gains])
    y = np.array([np.mean(list(each.values())) for each in gains])
    v = np.full(7, np.mean([np.var(list(each.values()), ddof=1) for each in gains]) / 3)
    theirs = combine_effects(y, v, method_re="iterated", use_t=True)
    assert found.tau**2 == pytest.approx(theirs.tau2, rel=1e-3)
    assert found.mean.mean == pytest.approx(theirs.mean_effect_re, rel=1e-3)


def test_intervals_of_mean_and_of_a_new_pair_hold_what_they_say():
    rng = np.random.default_rng(1)
    held = []
    for _ in range(400):
        truths = rng.normal(2, 3, size=7)
        found = effect([[dict(enumerate(rng.normal(truth, 1, size=3)))] for truth in truths[:6]])
        held.append((found.mean.low <= 2 <= found.mean.high, found.new.low <= truths[6] <= found.new.high))
    for share in np.mean(held, axis=0):
        assert 0.92 < share < 0.98


def test_fewer_than_three_pairs_say_nothing():
    assert effect([[{0: 5.0}], [{0: 5.1}]]) is None


def test_settings_of_a_pair_are_no_further_pairs():
    assert effect([[{0: 5.0}, {0: 5.1}, {0: 4.9}], [{0: 1.0}]]) is None
    found = effect([[{0: 1.0}, {0: 3.0}, {0: 5.0}], [{0: 2.0}], [{0: 1.0}]])  # means 3, 2, 1
    assert found == effect([[{0: 1.0}], [{0: 2.0}], [{0: 3.0}]])
    # Two seeds in each of two settings: variances 2 and 8, 5 pooled; of the pair's mean 5 (1/2 + 1/2) / 4.
    pair = [{0: 1.0, 1: 3.0}, {0: 0.0, 1: 4.0}]
    found = effect([pair, pair, pair])
    assert found.mean.high - 2 == pytest.approx(stats.t.ppf(0.975, 2) * math.sqrt(5 / 4 / 3), rel=1e-6)


def pairs_of(*gains):
    return {
        Pair("mlp", "cnn", f"pair {i}"): Measured(gains={"here": dict(enumerate(each))}) for i, each in enumerate(gains)
    }


def test_the_highest_mean_that_is_shown_to_help_is_taken_and_what_is_worse_is_told_from_what_may_be_as_good():
    found = prefer(
        {
            "wild": pairs_of((30.0, 31.0), (-9.0, -8.0), (2.0, 3.0)),
            "steady": pairs_of((4.0, 4.2), (4.1, 4.3), (3.9, 4.0), (4.0, 4.1)),
            "twin": pairs_of((3.9, 4.1), (4.2, 4.3), (3.8, 3.9), (4.0, 4.1)),
            "weak": pairs_of((1.0, 1.1), (0.9, 1.2), (1.1, 1.0), (1.0, 0.8)),
            "few": pairs_of((9.0, 9.0), (9.0, 9.1)),
        }
    )
    assert next(iter(found.effects)) == "wild"
    assert found.taken == "steady"
    assert found.rivals == ["wild", "twin"]
    assert found.unknown == {"few": 2}


def test_nothing_is_taken_where_nothing_is_shown_to_help():
    assert prefer({"kd": pairs_of((3.0,), (-3.0,), (0.5,))}).taken is None


def seen(method, top1, *, seed=0, student="resmlp", teacher=None, data="numbers100", cost=None, epochs=1):
    teachers = {"teacher": {"model": {"name": f"{teacher}_t", "family": teacher}}} if teacher else {}
    spec = {
        "task": "train", "init": None, "evaluate_on": "test", "seed": seed, "recipe": {"epochs": epochs},
        "data": {"name": data}, "student": {"name": f"{student}_s", "family": student}, "teachers": teachers,
        "method": {"name": method.partition("/")[0], "options": {}},
    }  # fmt: skip
    return Seen(method=method, spec=spec, identity=spec, top1=top1, cost=cost or {})


def test_gains_are_paired_by_seed_within_a_setting_and_a_run_of_two_tables_counts_once():
    runs = [
        seen("supervised", 50.0, cost={"step_ms": 10.0}),
        seen("supervised", 60.0, seed=1),
        seen("supervised", 10.0, data="cifar100"),
        seen("kd", 53.0, teacher="swin", cost={"step_ms": 15.0, "cpu_s": 4.0}),
        seen("kd", 53.0, teacher="swin", cost={"step_ms": 15.0, "cpu_s": 4.0}),
        seen("kd", 61.0, seed=1, teacher="swin"),
        seen("supervised", 70.0, epochs=9, cost={"step_ms": 10.0}),
        # its 100 steps would take 2 s of the 1 s of its process: other work was timed with them
        seen("kd", 69.0, teacher="swin", epochs=9, cost={"step_ms": 20.0, "steps": 100.0, "cpu_s": 1.0}),
        seen("kd", 99.0, seed=2, teacher="swin"),  # whose student alone was not measured
        seen("kd", 12.0, teacher="convnext", data="cifar100"),
        seen("hcd/detached", 40.0, teacher="swin"),
        seen("kd", 90.0, student="resnet", teacher="swin"),
    ]
    found = gains_of(runs, "mlp")
    by_name = {pair.name: each for pair, each in found["kd"].items()}
    assert [*by_name["swin_t to resmlp_s on numbers100"].gains.values()] == [{0: 3.0, 1: 1.0}, {0: -1.0}]
    assert [*by_name["convnext_t to resmlp_s on cifar100"].gains.values()] == [{0: 2.0}]
    assert by_name["swin_t to resmlp_s on numbers100"].slower == 1.5
    assert by_name["swin_t to resmlp_s on numbers100"].seconds == 2.5
    assert len(found["hcd/detached"]) == 1
    assert list(gains_of(runs, "resmlp", "transformer")) == ["hcd/detached", "kd"]
    assert len(gains_of(runs, "mlp", "cnn")["kd"]) == 1
    assert gains_of(runs, "transformer") == {}


@pytest.mark.parametrize("text", ["0h", "0.000s"])
def test_a_budget_of_nothing_is_one_sentence(text):
    with pytest.raises(UserError, match="must be above 0"):
        rank.seconds_of(text)


@pytest.mark.parametrize("text", ["", "1", "an hour", "-1h", "1 h", "1e9h", "nanh"])
def test_a_budget_that_is_no_time_is_one_sentence(text):
    with pytest.raises(UserError, match="is no time"):
        rank.seconds_of(text)


def test_budgets_as_people_write_them():
    assert [rank.seconds_of(text) for text in ("90s", "20min", "1.5h", "2d")] == [90, 1200, 5400, 172800]


def asked(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main(["rank", *words])
    return ended.value.code, *capsys.readouterr()


@pytest.fixture
def nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HKD_RESULTS", str(tmp_path))
    monkeypatch.setattr("experiments.places.references", lambda: tmp_path)


def test_without_records_it_does_not_know(nothing, capsys):
    code, said, _ = asked(capsys, "--student", "mlp")
    assert code == 1
    assert said.startswith("I do not know: there are records of no pair of mlp students")


def test_an_unknown_kind_is_one_sentence(nothing, capsys):
    code, _, said = asked(capsys, "--student", "mpl")
    assert code == 2
    assert "Unknown kind or family 'mpl'. Did you mean 'mlp'?" in said


def test_it_says_what_to_take_what_that_rests_on_and_what_it_costs(nothing, monkeypatch, capsys):
    cost = {"cpu_s": 10.0, "step_ms": 2.0}
    runs = [seen("supervised", 50.0, seed=s, data=str(d), cost={"step_ms": 1.0}) for d in range(4) for s in range(3)]
    runs += [
        seen("kd", 53.0 + 0.1 * s, seed=s, teacher="swin", data=str(d), cost=cost) for d in range(4) for s in range(3)
    ]
    runs += [seen("at", 51.0 - 0.1 * s, seed=s, teacher="swin", data=str(d)) for d in range(4) for s in range(3)]
    monkeypatch.setattr(preference, "at_hand", lambda *places: runs)
    code, said, _ = asked(capsys, "--student", "mlp", "--budget", "30s")
    assert code == 0
    assert "For mlp students, take kd: +3.1 points" in said
    assert "it is shown to be the best" in said
    assert "30s is not enough" in said
    assert "2.00" in said


def test_runs_that_were_written_down_at_other_times_are_paired():
    plan = planned("scalekd_table3", "smoke")
    specs = [asdict(run.spec) for run in plan.runs.values() if run.spec.task == "train"]
    alone, taught = (next(spec for spec in specs if bool(spec["teachers"]) == has) for has in (False, True))
    taught |= {name: alone[name] for name in ("data", "student", "recipe", "seed")}
    older = copy.deepcopy(alone)
    assert older["recipe"].pop("validate_every") is None  # a field that came later
    runs = [("supervised", older, 50.0), ("kd", taught, 53.0)]
    found = [seen_of(name, "", {"status": "done", "spec": spec, "metrics": {"top1": x}}) for name, spec, x in runs]
    (pairs,) = gains_of(found, kind_of(family(alone["student"]))).values()
    assert [[*each.gains.values()] for each in pairs.values()] == [[{alone["seed"]: 3.0}]]
