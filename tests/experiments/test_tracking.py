"""Runs listed, compared, removed and exported, on small made-up stores."""

import json
import struct
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from experiments import cli
from experiments.records import committed
from experiments.records.store import Record, Store
from experiments.results import stats
from experiments.tracking import exporters, removing
from experiments.tracking.comparing import compare, differences, without_parts
from experiments.tracking.facts import chosen, conditions, facts, ordered, record_called
from hkd.errors import UserError


def spec(method="kd", seed=0, student="resnet50", teacher=None, **recipe):
    teachers = {}
    if teacher:
        teachers["teacher"] = {"model": {"name": "swin_l"}, "weights": {"kind": "run", "id": teacher}}
    return {
        "task": "train",
        "seed": seed,
        "evaluate_on": "test",
        "data": {"name": "digits", "options": {}},
        "student": {"name": student, "kwargs": {"depth": len(student)}},
        "method": {"name": method, "options": {"tau": 4.0}},
        "recipe": {"epochs": 3, "lr": 0.1} | recipe,
        "teachers": teachers,
        "init": None,
    }


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("HKD_RUNS", str(tmp_path / "runs"))
    return Store(tmp_path / "runs")


@pytest.fixture
def leave(store, synthetic):
    """Leaves a finished run; of 200 test images the first `right` in a hundred are named rightly."""

    def leave(key, top1=80.0, right=None, curves=None, **options):
        folder = store.folder(key)
        folder.mkdir(parents=True)
        if right is not None:
            wrong = (np.arange(200) % 100 >= right).astype(int)
            np.savez(folder / "predictions.npz", row=np.arange(200), label=np.zeros(200, int), prediction=wrong)
        lines = curves or [{"epoch": i, "loss": 3.0 / i, "train_top1": 20.0 * i, "seconds": 2.0} for i in (1, 2, 3)]
        (folder / "curves.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        held = spec(**options)
        record = Record(
            key=key,
            label=f"{held['method']['name']}-{held['student']['name']} seed {held['seed']}",
            status="done",
            spec=held,
            metrics={"top1": float(top1)},
            cost={"cpu_s": 12.0},
            environment={"versions": {"torch": "2.15.0"}, "device": "cpu"},
            started=1000.0,
            finished=1000.0 + 10 * len(list(store.keys())),
        )
        return synthetic.seal(store, record)

    return leave


def hkd(*arguments):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return ended.value.code


# -- list ----------------------------------------------------------------------------------------------------------


def test_runs_are_filtered_by_names_patterns_and_numbers(leave):
    runs = [
        facts(leave("a", 80.0, method="kd", student="resnet50")),
        facts(leave("b", 85.0, method="kd", student="resnet18", seed=1, lr=0.2)),
        facts(leave("c", 90.0, method="ofa", student="vit_s", teacher="a")),
    ]

    def keys(*texts):
        return "".join(run["key"] for run in chosen(runs, conditions(texts)))

    assert keys("method=kd,student=resnet50") == "a"
    assert keys("method=kd", "student=resnet*") == "ab"
    assert keys("method!=kd") == "c"
    assert keys("top1>=85") == "bc"
    assert keys("top1>80,top1<90") == "b"
    assert keys("recipe.lr=0.1") == keys("lr=1e-1") == "ac"
    assert keys("teacher=swin_l") == "c"
    assert keys("tau=4") == "abc"
    assert keys() == "abc"
    assert [run["key"] for run in ordered(runs, "top1", ["top1"])] == ["c", "b", "a"]
    assert [run["key"] for run in ordered(runs, "student", ["top1"])] == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("kd", "'kd' is no condition"), ("methd=kd", "Did you mean 'method'"), ("top1>high", "compares with no number")],
)
def test_a_condition_that_cannot_be_is_one_sentence(text, sentence, leave):
    with pytest.raises(UserError, match=sentence):
        chosen([facts(leave("a"))], conditions([text]))


def test_the_list_is_filtered_sorted_cut_and_given_as_json(leave, capsys):
    for key, top1 in (("aa", 80.0), ("bb", 90.0), ("cc", 85.0)):
        leave(key, top1)
    leave("dd", 99.0, method="ofa")
    assert hkd("runs", "list", "--filter", "method=kd", "--sort", "top1", "--limit", "2") == 0
    text = capsys.readouterr().out
    assert text.index("bb") < text.index("cc")
    assert "aa" not in text
    assert "2 shown of 3 that fit, 4 in all" in text
    assert hkd("runs", "list", "--filter", "top1>80", "--sort", "finished", "--json") == 0
    assert [run["key"] for run in json.loads(capsys.readouterr().out)] == ["dd", "cc", "bb"]
    assert hkd("runs", "list", "--sort", "top5") == 2


# -- compare -------------------------------------------------------------------------------------------------------


def test_two_runs_are_compared_by_image_and_over_the_seeds_of_both(store, leave):
    a = leave("a", 80.0, right=80, lr=0.1)
    b = leave("b", 90.0, right=90, lr=0.2)
    leave("a1", 81.0, lr=0.1, seed=1)
    leave("b1", 93.0, lr=0.2, seed=1)
    pair = compare(store, a, b)
    assert pair.different == [("recipe.lr", "0.1", "0.2")]
    assert pair.where == []
    found = pair.metrics[0]
    assert (found.first.mean, found.second.mean, found.difference.mean) == (80.0, 90.0, 10.0)
    gain = np.tile(np.r_[np.zeros(80), np.full(10, 100.0), np.zeros(10)], 2)
    assert found.difference == stats.over_images(gain)
    assert pair.seeds == (0, 1)
    assert found.over_seeds.mean == 11.0  # 10 and 12 points


def test_sizes_of_another_model_are_not_listed_beside_its_name():
    one, two = ({"student.name": name, "student.depth": i, "lr": i} for i, name in enumerate(("vit", "swin")))
    assert without_parts(differences(one, two)) == [("student.name", "vit", "swin"), ("lr", "0", "1")]
    assert without_parts([("student.depth", "1", "2")]) == [("student.depth", "1", "2")]
    assert differences({"a": 1}, {}) == [("a", "1", "–")]


def test_a_comparison_is_printed_and_drawn(leave, tmp_path, capsys):
    leave("aaaa", 80.0, right=80, lr=0.1)
    leave("bbbb", 90.0, right=90, lr=0.2)
    assert hkd("runs", "compare", "a", "b", "--to", str(tmp_path / "curves.png")) == 0
    text = capsys.readouterr().out
    assert "80.00 [" in text
    assert "+10.00 [" in text
    assert "recipe.lr" in text
    assert text.count("█▃▁") == 2  # losses of both runs: 3, 1.5, 1
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert hkd("runs", "compare", "a", "b", "--to", "curves.jpg") == 2
    assert hkd("runs", "compare", "a", "z") == 2


# -- remove --------------------------------------------------------------------------------------------------------


def test_a_run_that_another_started_from_stays(store, leave, capsys):
    leave("teacher")
    leave("student", teacher="teacher")
    assert hkd("runs", "remove", "teacher", "--yes") == 2
    assert "1 other run started from it, such as kd-resnet50 seed 0" in capsys.readouterr().err
    assert record_called(store, "teacher")
    assert hkd("runs", "remove", "teacher", "student") == 0  # together they may go; without --yes nothing does
    assert "would be freed; add --yes" in capsys.readouterr().out
    assert sorted(store.keys()) == ["student", "teacher"]
    assert hkd("runs", "remove", "teacher", "student", "--yes") == 0
    assert "2 runs removed" in capsys.readouterr().out
    assert not list(store.root.glob("*/*"))


def test_a_run_that_committed_records_name_stays(store, leave, tmp_path, monkeypatch):
    leave("aaaa")
    path = tmp_path / "laptop" / f"t{committed.SUFFIX}"
    path.parent.mkdir()
    path.touch()
    monkeypatch.setattr(committed, "read", lambda path: SimpleNamespace(by_key={"aaaa": None}))
    found = removing.considered(store, ["aaaa"], tmp_path)
    assert "names it, and `hkd check` compares it" in found.reasons["aaaa"]
    assert not removing.considered(store, ["aaaa"], tmp_path / "other").reasons


def test_a_run_in_use_stays_and_a_damaged_record_may_go(store, leave, tmp_path):
    leave("aaaa")
    with store.lock("aaaa"), pytest.raises(UserError, match="in use by another process"):
        removing.remove(store, ["aaaa"])
    assert record_called(store, "aaaa")
    (store.folder("aaaa") / "record.json").write_text("{")
    leave("bbbb")
    found = removing.considered(store, ["bbbb"], tmp_path)
    assert found.unread == ("aaaa",)
    removing.remove(store, ["aaaa"])
    assert [*store.keys()] == ["bbbb"]


# -- export --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", ["tensorboard", "mlflow", "wandb"])
def test_a_tool_that_is_not_installed_is_one_sentence(tool, leave, tmp_path, monkeypatch, capsys):
    leave("aaaa")
    for name in [name for name in sys.modules if name.partition(".")[0] == tool]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, tool, None)
    assert hkd("runs", "export", "aaaa", f"--{tool}", str(tmp_path / "out")) == 2
    assert f"`pip install {tool}` gets it" in capsys.readouterr().err
    assert hkd("runs", "export", "aaaa") == 2


def test_points_have_the_time_at_which_their_epoch_ended_and_only_numbers(leave):
    record = replace(leave("aaaa"), started=1000.0, finished=1005.0)
    lines = [{"epoch": i, "loss": 3.0 / i, "note": "x", "bad": float("nan"), "seconds": 2.0} for i in (1, 2, 3)]
    assert list(exporters.points(record, lines)) == [
        (1, 1002.0, {"loss": 3.0}),
        (2, 1004.0, {"loss": 1.5}),
        (3, 1005.0, {"loss": 1.0}),
    ]


class Told:
    """Stands for a tool's object: remembers what it was told, and answers with itself."""

    def __init__(self, told, name=""):
        self.told, self.name = told, name

    def __getattr__(self, name):
        return Told(self.told, f"{self.name}.{name}".strip("."))

    def __call__(self, *args, **options):
        self.told.append((self.name, args, options))
        return self


def stand_in(monkeypatch, *names):
    """Modules of these names that remember their calls."""
    told = []
    for name in names:
        module = ModuleType(name)
        module.__getattr__ = Told(told).__getattr__
        monkeypatch.setitem(sys.modules, name, module)
    return told


def test_tensorboard_is_told_every_curve_by_epoch(leave, tmp_path, monkeypatch):
    told = stand_in(monkeypatch, "tensorboard", "torch.utils.tensorboard")
    record = leave("aaaa", 88.0)
    exporters.to_tensorboard(record, [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}], tmp_path)
    assert told[0] == ("SummaryWriter", (), {"log_dir": str(tmp_path / "aaaa")})
    scalars = [(args, options["global_step"]) for name, args, options in told if name.endswith("add_scalar")]
    assert scalars == [(("loss", 2.0), 1), (("loss", 1.0), 2), (("final/top1", 88.0), 2)]
    assert "recipe.lr: 0.1" in next(args[1] for name, args, _ in told if name.endswith("add_text"))
    assert told[-1][0].endswith("close")


def test_mlflow_is_told_settings_and_metrics(leave, tmp_path, monkeypatch):
    told = stand_in(monkeypatch, "mlflow.entities", "mlflow.tracking")
    exporters.to_mlflow(leave("aaaa", 88.0), [{"epoch": 1, "loss": 2.0}], tmp_path / "ml")
    assert ("MlflowClient", (), {"tracking_uri": f"sqlite:///{tmp_path / 'ml' / 'mlflow.db'}"}) in told
    assert ("Param", ("recipe.lr", "0.1"), {}) in told
    metrics = [args for name, args, _ in told if name == "Metric"]
    assert [(name, value, step) for name, value, _, step in metrics] == [("loss", 2.0, 1), ("top1", 88.0, 0)]
    assert told[-1][2]["status"] == "FINISHED"


def test_wandb_is_kept_offline(leave, tmp_path, monkeypatch):
    told = stand_in(monkeypatch, "wandb")
    exporters.to_wandb(leave("aaaa", 88.0), [{"epoch": 1, "loss": 2.0}], tmp_path / "wb")
    begun = next(options for name, _, options in told if name == "init")
    assert begun["mode"] == "offline"
    assert begun["config"]["recipe.lr"] == 0.1
    assert any((args, options) == (({"loss": 2.0},), {"step": 1}) for _, args, options in told)
    assert told[-1][2] == {"exit_code": 0}


def test_tensorboards_event_file_holds_the_curves(leave, tmp_path):
    pytest.importorskip("tensorboard")
    exporters.to_tensorboard(leave("aaaa", 88.0), [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}], tmp_path)
    (file,) = (tmp_path / "aaaa").glob("events.out.tfevents.*")
    content, at, events = file.read_bytes(), 0, []
    while at < len(content):  # length, its check sum, an event, its check sum
        (length,) = struct.unpack("<Q", content[at : at + 8])
        events.append(content[at + 12 : at + 12 + length])
        at += 16 + length
    assert sum(b"loss" in event for event in events) == 2
    assert any(b"final/top1" in event and struct.pack("<f", 88.0) in event for event in events)


def test_mlflows_store_holds_the_run(leave, tmp_path):
    tracking = pytest.importorskip("mlflow.tracking")
    exporters.to_mlflow(leave("aaaa", 88.0), [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}], tmp_path / "ml")
    client = tracking.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'ml' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("hkd").experiment_id])
    assert run.data.metrics["top1"] == 88.0
    assert run.data.params["recipe.lr"] == "0.1"
    assert [each.value for each in client.get_metric_history(run.info.run_id, "loss")] == [2.0, 1.0]


def test_an_offline_run_of_wandb_is_written(leave, tmp_path):
    pytest.importorskip("wandb")
    exporters.to_wandb(leave("aaaa", 88.0), [{"epoch": 1, "loss": 2.0}], tmp_path / "wb")
    (file,) = (tmp_path / "wb" / "wandb").glob("offline-run-*/run-aaaa.wandb")
    assert b"recipe.lr" in file.read_bytes()
