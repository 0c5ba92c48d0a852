"""What names weights, what is refused, and what is said where nothing can be downloaded."""

import hashlib
import threading
import time

import pytest
import timm
import torch

import experiments.commands.weights as weights
from experiments import places, teachers
from experiments.planning import schema
from experiments.planning.plan import cached_sha256, plan
from hkd.errors import UserError
from hkd.files import weights_sha256
from hkd.models.convert.files import write_converted
from hkd.models.weights import save_weights

STATE = {
    "head.weight": torch.arange(6.0).view(2, 3),
    "blocks.0.bias": torch.ones(3, dtype=torch.float16),
    "count": torch.tensor(7),
}


def test_the_same_tensors_have_one_name_whether_fetched_or_converted(tmp_path):
    fetched, converted = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_weights(STATE, fetched)
    said = write_converted(STATE, "12" * 32, converted)
    assert fetched.read_bytes() != converted.read_bytes()
    assert said == weights_sha256(converted) == weights_sha256(fetched)
    assert weights_sha256(fetched) == hashlib.sha256(fetched.read_bytes()).hexdigest()  # what it was called before


def test_other_tensors_and_other_names_of_tensors_have_other_names(tmp_path):
    names = set()
    changed = STATE | {"head.weight": STATE["head.weight"] + 1}
    renamed = {("tail" if name == "count" else name): value for name, value in STATE.items()}
    for number, state in enumerate((STATE, changed, renamed)):
        names.add(write_converted(state, "12" * 32, tmp_path / f"{number}.safetensors"))
    assert len(names) == 3


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]rest", b"\x09\0\0\0\0\0\0\0{damaged}"])
def test_what_is_no_safetensors_file_is_named_by_its_bytes(tmp_path, content):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)
    assert weights_sha256(path) == hashlib.sha256(content).hexdigest()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of weights, and a manifest of one's own."""
    monkeypatch.setattr(places, "weights", lambda: tmp_path)
    (tmp_path / "manifests").mkdir()
    own = tmp_path / "manifests" / "teachers.yaml"
    own.write_text((schema.HERE / "manifests" / "teachers.yaml").read_text())
    here = schema.HERE
    monkeypatch.setattr(schema, "HERE", tmp_path)
    for name in ("tables", "profiles", "published", "recipes", "claims"):
        (tmp_path / name).symlink_to(here / name)
    (tmp_path / "manifests" / "names.yaml").symlink_to(here / "manifests" / "names.yaml")
    forget()
    yield tmp_path
    forget()


def forget():
    for cached in (schema.read, schema.document, cached_sha256):
        cached.cache_clear()


def arriving(monkeypatch, state):
    """In the place of a download."""

    class Model:
        def state_dict(self):
            return state

    monkeypatch.setattr(weights, "reachable", lambda card: None)
    monkeypatch.setattr(timm, "create_model", lambda *args, **options: Model())


def test_the_first_file_is_trusted_aloud_and_another_one_is_refused_from_then_on(folder, monkeypatch, capsys):
    arriving(monkeypatch, STATE)
    weights.fetch("swin_s")
    assert "trusted on first use" in " ".join(capsys.readouterr().out.split())
    path = folder / "swin_s.safetensors"
    forget()
    assert teachers.stated_sha256("swin_s") == weights_sha256(path)
    path.unlink()
    forget()
    weights.fetch("swin_s")  # the same again
    assert "as in" in capsys.readouterr().out
    path.unlink()
    arriving(monkeypatch, STATE | {"count": torch.tensor(8)})
    with pytest.raises(UserError, match="it was deleted"):
        weights.fetch("swin_s")
    assert not path.exists()


def test_a_file_that_is_not_the_stated_one_starts_no_run(folder):
    save_weights(STATE, folder / "swin_s.safetensors")
    runs = plan("scalekd_table9", "paper", 1).runs.values()
    waiting = [run for run in runs if run.files and "swin_s" in run.files[0][1]]
    assert waiting
    assert not any("another file" in (run.missing or "") for run in waiting)
    assert teachers.record_sha256("swin_s", "ab" * 32)
    forget()
    runs = plan("scalekd_table9", "paper", 1).runs.values()
    waiting = [run for run in runs if run.files and "swin_s" in run.files[0][1]]
    assert waiting
    assert all("is another file than" in (run.missing or "") for run in waiting)


def test_without_a_connection_one_sentence_says_what_else_can_be_done(folder, monkeypatch):
    over = threading.Event()

    def never():
        over.wait(60)
        raise TimeoutError

    monkeypatch.setattr("huggingface_hub.utils.get_session", never)
    monkeypatch.setattr(weights, "PATIENCE_S", 0.2)
    began = time.monotonic()
    with pytest.raises(UserError) as told:
        weights.fetch("swin_s")
    over.set()
    assert time.monotonic() - began < 10
    assert all(name in str(told.value) for name in ("HF_HOME", "HF_ENDPOINT", "hkd weights convert"))
