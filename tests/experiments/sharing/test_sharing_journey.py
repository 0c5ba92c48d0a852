"""A student trained for one epoch, exported and verified by the commands: the accuracy is the one it was trained to."""

import json
from dataclasses import asdict

import pytest

from experiments import cli
from experiments.records.store import Record, Store
from hkd.runs import run_document
from hkd.spec import MethodSpec, Recipe
from tests.experiments.conftest import seal
from tests.experiments.sharing.conftest import spec_of

KEY = "e" * 16


def hkd(*arguments):
    with pytest.raises(SystemExit) as left:
        cli.main([*map(str, arguments)])
    return left.value.code


@pytest.mark.slow
@pytest.mark.parametrize("card", ["resnet50_mini", "vit_s16_mini"])
def test_a_trained_student_is_exported_and_verified(card, tmp_path, monkeypatch, capsys):
    for name in ("HKD_RUNS", "HKD_RESULTS", "HKD_WEIGHTS", "HKD_DATA"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    store = Store(tmp_path / "hkd_runs")
    recipe = Recipe(epochs=1, batch_size=20)
    spec = spec_of(card, teachers={}, method=MethodSpec(name="supervised"), recipe=recipe)
    document = json.loads(json.dumps(asdict(spec)))
    done = run_document(document, {}, str(store.folder(KEY)), {"accelerator": "cpu"}, lambda report: None)
    record = Record(key=KEY, label=card, status="done", spec=document, metrics=done["metrics"], cost=done["cost"])
    seal(store, record)
    assert hkd("export", KEY[:6], "--to", tmp_path / "out", "--hub-format") == 0
    assert "the same logits to the bit" in capsys.readouterr().out
    assert hkd("verify", tmp_path / "out", "--json", tmp_path / "found.json") == 0
    assert "these images do not contradict them" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["top1"]["mean"] == pytest.approx(done["metrics"]["top1"], abs=0.1)  # one of 1020 images, if any
    assert found["holds"] is True
    assert hkd("export", KEY, "--to", tmp_path / "out") == 2
    assert "is not empty" in capsys.readouterr().err
