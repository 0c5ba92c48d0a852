"""The prover: every seeded change of a number is refused, every seeded rewriting is accepted."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hkd
from experiments.planning.code import Code
from experiments.proving import prove, trace
from experiments.proving.canaries import Flock, canaries
from experiments.proving.prove import judge, needed, raised_units, shared
from experiments.proving.samples import write_samples
from experiments.proving.trace import TRACER, Side, Trace, joined, keep, kept, read_trace, shares
from hkd.methods import METHODS
from hkd.models.cards.zoo import ZOO
from hkd.spec import DataSpec, MethodSpec, Recipe, RunSpec, TeacherSpec, Weights
from hkd.units import units

SOURCES = Path(hkd.__file__).parent
FORKING = Path(__file__).with_name("forking_tracer.py")

# Where, what stands there, and what is put in its place: each moves a number of some runs.
MUTATIONS = {
    "order of later epochs": ("data/loading/loader.py", '"order", epoch)', '"order", min(epoch, 1))'),
    "weight decay of 1-d parameters": ("training/recipe.py", "not recipe.decay_1d", "recipe.decay_1d"),
    "a loss coefficient": ("methods/kd.py", "config.w_kd * kd", "0.5 * config.w_kd * kd"),
    "an off-by-one in the schedule": ("training/loop.py", "step_update(here.updates)", "step_update(here.updates + 1)"),
    "the start of the moving average": ("training/loop.py", "if run.ema is not None:", "if run.ema and here.updates:"),
    "the moving average is not kept": (
        "training/session.py",
        "if run.ema is not None:",
        "if run.ema is None and False:",
    ),
    "an offset of crops": ("data/loading/augment.py", "- draws.shift[:, :1]).clamp", "- draws.shift[:, :1] - 1).clamp"),
    "an eps": ("methods/parts/feature_mimicking.py", "eps=EPS)", "eps=10.0)"),
    "a constant": ("data/loading/augment.py", "ATTEMPTS = 10", "ATTEMPTS = 9"),
    "a swapped norm": ("training/loop.py", "max_norm=run.recipe.clip_grad,", "max_norm=0.1 * run.recipe.clip_grad,"),
    "a stream of random numbers": ("tasks/train.py", 'seed_all(spec.seed, "adapters")', "seed_all(spec.seed)"),
    "a teacher left in training mode": ("models/tap_model.py", "super().train(train_mode)", "super().train(True)"),
    "a student evaluated in training mode": ("tasks/evaluate.py", "with evaluation_mode(model):", "if model.train():"),
    "smoothing of soft targets": ("training/recipe.py", "if targets.ndim == 1 else 0.0", "if True else 0.0"),
    "means of curves": ("training/journal.py", "total / (self.read *", "total / (self.read * 2 *"),
    "an optimiser that forgets": (
        "training/checkpoint.py",
        'run.optimizer.load_state_dict(content["optimizer"])',
        'content["optimizer"]',
    ),
    "random numbers after a resumption": (
        "training/checkpoint.py",
        'set_rng_state(content["rng"][run.fabric.global_rank])',
        "pass",
    ),
    "shares of micro-batches": ("training/loop.py", "backward(share * sum", "backward(sum"),
    "the length of the warm-up": (
        "training/recipe.py",
        "warmup_epochs=round(recipe.warmup_epochs * steps)",
        "warmup_epochs=int(recipe.warmup_epochs * steps)",
    ),
    "labels that are drawn": ("data/base.py", "rng.permutation(held)[:count]", "held[:count]"),
    "the number of a fixed view": ("data/loading/loader.py", "view = item.epoch % self.views", "view = 0"),
    "a learning rate by layer": ("training/recipe.py", "layer_decay=layer_decay, **", "layer_decay=0.5, **"),
    "a place that few runs reach": ("training/cost.py", "wall_s * processes", "wall_s * 2 * processes"),
}

# Where, and pairs of what stands there and what is put in its place: no number moves.
REWRITINGS = {
    "a local variable renamed": [("training/loop.py", "total", "sums")],
    "a function extracted": [
        (
            "training/recipe.py",
            "    return recipe.lr * recipe.batch_size / recipe.lr_batch if recipe.lr_batch else recipe.lr\n",
            "    return scaled(recipe) if recipe.lr_batch else recipe.lr\n\n\n"
            "def scaled(recipe: Recipe) -> float:\n    return recipe.lr * recipe.batch_size / recipe.lr_batch\n",
        )
    ],
    "a function moved to another module": [
        ("training/loop.py", "MOVE parts", "data/batch.py"),
        ("training/loop.py", "from hkd.data.batch import Batch\n", "from hkd.data.batch import Batch, parts\n"),
        (
            "data/batch.py",
            "from collections.abc import Callable\n",
            "from collections.abc import Callable, Iterator\n",
        ),
    ],
    "pure statements in another order": [
        (
            "methods/kd.py",
            "    log_p_s = F.log_softmax(logits_s / tau, dim=1)\n"
            "    log_p_t = F.log_softmax(logits_t.detach() / tau, dim=1)\n",
            "    log_p_t = F.log_softmax(logits_t.detach() / tau, dim=1)\n"
            "    log_p_s = F.log_softmax(logits_s / tau, dim=1)\n",
        )
    ],
    "the text of an error": [("methods/parts/logits.py", "compares logits, but", "compares logits;")],
    "an annotation in quotes": [("training/recipe.py", "recipe: Recipe) -> float", 'recipe: "Recipe") -> "float"')],
    "a module renamed": [("methods/parts/logits.py", "RENAME", "methods/parts/of_logits.py")],
    "a variable put in place": [
        (
            "methods/kd.py",
            '        kd = kd_loss(taps_s.logits, taps_t["teacher"].logits, tau=config.tau)\n',
            '        logits_t = taps_t["teacher"].logits\n'
            "        kd = kd_loss(taps_s.logits, logits_t, tau=config.tau)\n",
        )
    ],
    "a private function renamed": [("training/recipe.py", "_cross_entropy", "_smoothed")],
    "a comment, a docstring and layout": [
        ("training/loop.py", '"""The training loop: one', '"""A loop: one'),
        (
            "training/loop.py",
            "    run.step.train()\n",
            "    # Dropout and statistics are on.\n\n    run.step.train()\n",
        ),
    ],
}


def edited(root: Path, edits: list[tuple[str, str, str]]) -> Path:
    """A copy of the library below a folder, with some text in it replaced."""
    copy = root / "hkd"
    shutil.copytree(SOURCES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name, old, new in edits:
        path = copy / name
        text = path.read_text()
        if old == "RENAME":
            path.rename(copy / new)
            before, after = (f"hkd.{file.removesuffix('.py').replace('/', '.')} import" for file in (name, new))
            for other in copy.rglob("*.py"):
                other.write_text(other.read_text().replace(before, after))
        elif old.startswith("MOVE "):
            start = text.index(f"\n\ndef {old[5:]}(")
            end = text.find("\n\n\n", start + 2)
            path.write_text(text[:start] + text[end:])
            (copy / new).write_text((copy / new).read_text() + "\n" + text[start:end] + "\n")
        else:
            assert old in text, f"{old!r} is no longer in {name}"
            path.write_text(text.replace(old, new))
    return root


def chosen(flock):
    """A dozen canaries that between them do what a training can do, and those whose weights they take."""
    wishes = [
        lambda c, r: c.spec.method.name == "kd" and c.spec.data.name == "digits" and r.views,
        lambda c, r: c.spec.method.name == "scalekd" and r.views,
        lambda c, r: c.spec.method.name == "hcd" and c.spec.data.name == "numbers100",
        lambda c, r: c.spec.method.name == "hgkd",
        lambda c, r: c.spec.method.name == "hybrid",
        lambda c, r: c.spec.method.name == "dkd",
        lambda c, r: c.spec.method.name == "dist",
        lambda c, r: c.spec.method.name == "ofa",
        lambda c, r: c.spec.task == "evaluate",
        lambda c, r: c.spec.task == "probe",
        lambda c, r: r and r.ema_decay and r.clip_grad and r.randaugment and r.label_smoothing,
        lambda c, r: r and r.layer_decay and r.mixup and r.label_smoothing,
        lambda c, r: r and r.lr_batch,
        lambda c, r: r and r.decay_1d and r.crop == "resized",
        lambda c, r: c.runtime.get("micro_batch") and c.spec.method.name == "kd",
        lambda c, r: c.spec.student.family == "swin" and c.spec.teachers,
    ]
    names = {next(n for n, c in flock.items() if wish(c, c.spec.recipe)) for wish in wishes}
    for name in reversed(list(flock)):
        if name in names:
            names |= set(flock[name].weights.values())
    return {name: canary for name, canary in flock.items() if name in names}


@pytest.fixture(scope="module")
def traced(request, tmp_path_factory):
    """(canaries, side and trace of the code as it is, sides and traces by name of the edits that are tried)."""
    tried = {getattr(item, "callspec", None) and item.callspec.params.get("name") for item in request.session.items}
    tried |= {"a loss coefficient", "a learning rate by layer"}
    scratch = tmp_path_factory.mktemp("proving")
    write_samples(scratch / "samples")
    flock = chosen(canaries(scratch / "samples"))
    edits = {name: [edit] for name, edit in MUTATIONS.items()} | REWRITINGS
    edits = {"as it is": []} | {name: edit for name, edit in edits.items() if name in tried}
    arguments, sides = [], {}
    for number, (name, changes) in enumerate(edits.items()):
        root, out = edited(scratch / f"code{number}", changes), scratch / f"out{number}"
        out.mkdir()
        shutil.copytree(scratch / "samples", out / "data")
        order = {"root": str(root), "data": str(out / "data"), "runs": [c.order() for c in flock.values()]}
        (out / "order.json").write_text(json.dumps(order))
        arguments += [out / "order.json", out]
        sides[name] = Side(root, Code(root), units()), out
    subprocess.run(
        [sys.executable, FORKING, TRACER, *arguments], check=True, timeout=3000, env={**os.environ, "PYTHONPATH": ""}
    )
    read = {name: (side, read_trace(out, flock)) for name, (side, out) in sides.items()}
    return flock, *read["as it is"], read


def verdicts(traced, name):
    flock, old, before, edits = traced
    new, after = edits[name]
    moved = [unit for unit in new.units if new.digest(unit) != old.digest(unit)]
    entered = {unit for canary in flock.values() for unit in canary.units}
    return {u: v for u, v in judge(moved, flock, new, old, (after, before)).items() if u in entered}


@pytest.mark.timeout(3000)
@pytest.mark.long
@pytest.mark.parametrize("name", MUTATIONS)
def test_an_edit_that_moves_a_number_is_refused(traced, name):
    assert {verdict.status for verdict in verdicts(traced, name).values()} & {"differs", "unreached"}


@pytest.mark.timeout(3000)
@pytest.mark.long
@pytest.mark.parametrize("name", REWRITINGS)
def test_an_edit_that_moves_no_number_is_accepted(traced, name):
    refused = [verdict for verdict in verdicts(traced, name).values() if verdict.status != "proved"]
    assert refused == []


@pytest.mark.long
def test_a_difference_is_told_by_step_term_and_tensor(traced):
    found = verdicts(traced, "a loss coefficient")["method/kd"]
    assert "losses of step 0: kd" in found.differences[0]
    assert "gradients of step 0" in verdicts(traced, "a learning rate by layer")["task/train"].differences[0] or (
        "parameters after the update of step"
        in verdicts(traced, "a learning rate by layer")["task/train"].differences[0]
    )


@pytest.mark.long
def test_the_fewest_versions_rise_that_give_every_differing_run_a_new_key(traced):
    flock, _, before, edits = traced
    after = edits["a loss coefficient"][1]
    found = verdicts(traced, "a loss coefficient")
    differing = {name for name in flock if after.results[name]["events"] != before.results[name]["events"]}
    raised = raised_units(found, flock, dict.fromkeys(differing, ""))
    assert raised
    assert all(flock[name].units & set(raised) for name in differing)
    assert not any(unit.startswith(("data/", "family/", "task/")) for unit in raised)


def test_canaries_that_no_changed_unit_enters_are_not_run_unless_their_weights_are_taken(tmp_path):
    write_samples(tmp_path)
    flock = canaries(tmp_path, tables=("scalekd_table9",))
    few = needed(flock, {"method/scalekd"})
    assert set(few) < set(flock)
    assert all("method/scalekd" in few[name].units or any(name in c.weights for c in few.values()) for name in few)
    assert list(few) == [name for name in flock if name in few]


def test_canaries_of_methods_that_the_old_side_has_not_are_left_out_with_those_that_take_their_weights(tmp_path):
    write_samples(tmp_path)
    flock = canaries(tmp_path, tables=("scalekd_table9",))
    known = {unit for canary in flock.values() for unit in canary.units}
    assert shared(flock, known) == flock
    assert shared(flock, known - {"task/train"}) == {}
    without = shared(flock, known - {"method/supervised"})
    assert set(without) < set(flock)
    assert not any("method/supervised" in canary.units for canary in without.values())
    assert all(set(canary.weights.values()) <= set(without) for canary in without.values())


def test_a_method_of_no_table_has_canaries_of_its_defaults_its_choices_and_other_values(monkeypatch):
    monkeypatch.delitem(METHODS, "fake", raising=False)  # what tests of other files register
    flock = Flock("cpu")
    taught = TeacherSpec(model=ZOO["swin_t_mini"], weights=Weights(kind="random", id="7"))
    flock.add(
        RunSpec(
            task="train",
            data=DataSpec(name="digits"),
            student=ZOO["resnet18_mini"],
            method=MethodSpec(name="kd"),
            recipe=Recipe(epochs=3, batch_size=8),
            teachers={"teacher": taught},
        ),
        {},
        "KD",
    )
    flock.add_others()
    found = [canary.spec.method.options for canary in flock.canaries.values() if "method/rsd" in canary.units]
    assert {} in found
    assert {"tap": "logits"} in found
    assert {"projector": "none"} in found
    assert any(options.get("kappa") == pytest.approx(0.008) for options in found)
    assert not any("method/crd" in canary.units for canary in flock.canaries.values())  # it needs labels


def test_parts_for_several_processes_keep_canaries_with_those_whose_weights_they_take(tmp_path):
    write_samples(tmp_path)
    flock = canaries(tmp_path, tables=("scalekd_table9",))
    one, two = shares(flock, 2)
    assert {**one, **two} == flock
    assert not set(one) & set(two)
    assert all(set(canary.weights.values()) <= set(part) for part in (one, two) for canary in part.values())
    assert all(list(part) == [name for name in flock if name in part] for part in (one, two))
    assert shares(flock, 1) == [flock]


def test_a_kept_trace_is_what_was_traced(tmp_path):
    parts = [Trace({"a": {"status": "done"}}, {"hkd.x": {3: {"a"}}}), Trace({"b": {}}, {"hkd.x": {3: {"b"}, 4: {""}}})]
    keep(joined(parts), tmp_path / "proofs" / "x.json.gz")
    whole = kept(tmp_path / "proofs" / "x.json.gz")
    assert whole == Trace({"a": {"status": "done"}, "b": {}}, {"hkd.x": {3: {"a", "b"}, 4: {""}}})


def test_the_wording_of_a_refusal_is_no_number_and_that_of_a_crash_is_told():
    def ended(status, reason):
        return {"events": [], "status": status, "reason": reason, "facts": {}, "files": {}}

    assert prove.first_difference(ended("Refused", "no tail: take a ViT"), ended("Refused", "no tail")) is None
    assert prove.first_difference(ended("Refused", "no tail"), ended("done", None)).startswith("status")
    assert prove.first_difference(ended("error", "a"), ended("error", "b")).startswith("reason")


def test_fields_that_came_to_specs_since_are_not_told_to_a_side_that_lacks_them():
    known = trace.fields_of(Path(hkd.__file__).parents[1]) - {"validate_every", "source"}
    spec = {"recipe": {"epochs": 1, "validate_every": None}, "student": {"source": "timm", "kwargs": {"width": None}}}
    assert trace.without_new(spec, known) == {
        "recipe": {"epochs": 1},
        "student": {"source": "timm", "kwargs": {"width": None}},  # what is set is told, and refused there
    }
