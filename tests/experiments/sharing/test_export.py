"""What is exported is what was trained: timm's logits equal to the bit, a card that tells all, and no half folder."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest
import timm
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from experiments.planning.schema import load_profile
from experiments.sharing import model_card
from experiments.sharing.export import export, fixed_batch, loaded
from experiments.sharing.model_card import teachers_of
from experiments.sharing.onnx_file import NEEDED
from experiments.sharing.source import found
from experiments.sharing.timm_form import timm_form
from hkd.errors import UserError
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel
from hkd.models.taps import Want
from hkd.models.weights import load_weights
from hkd.spec import DataSpec
from tests.experiments.sharing.conftest import spec_of

FEW = ("resnet50_mini", "mixer_b14_mini", "swin_t_mini")
FOUR_CHANNELS = "channel_resnet50_mini"
OTHERS = sorted({*load_profile("laptop").models.values()} - {*FEW, FOUR_CHANNELS})
FIRST = {ZOO[name].family: name for name in reversed(OTHERS)}  # one of each family; the rest is for `-m long`


def exported(finished, card, folder, **options):
    finished.run(card)
    source = found("a" * 16, finished.store)
    return export(source, folder, teachers_of(source, finished.store), data_root=folder.parent, **options)


def trained_logits(finished, card):
    model = TapModel(ZOO[card], 10)
    load_weights(model.net, finished.store.folder("a" * 16) / "student.safetensors")
    model.net.to(memory_format=torch.contiguous_format)
    with torch.no_grad():
        return model.eval().family.forward(model.net, model.card, fixed_batch(model.card), Want()).logits


def check(finished, card, folder):
    done = exported(finished, card, folder)
    assert done.folder == folder
    with torch.no_grad():
        assert torch.equal(loaded(folder)(fixed_batch(ZOO[card])), trained_logits(finished, card))


@pytest.mark.parametrize("card", FEW)
def test_timm_makes_the_same_logits_of_an_exported_folder(finished, tmp_path, card):
    check(finished, card, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(
    "card",
    [pytest.param(name, marks=() if FIRST[ZOO[name].family] == name else pytest.mark.long) for name in OTHERS],
)
def test_every_student_of_the_laptop_profile_is_exported_with_its_logits(finished, tmp_path, card):
    check(finished, card, tmp_path / "out")


def test_a_network_of_four_channels_is_not_exported():
    with pytest.raises(UserError, match="reads a fourth channel, the mask"):
        timm_form(ZOO[FOUR_CHANNELS])


@pytest.mark.parametrize("card", ["resnet50_mini", "mobilenet_v1_mini", "resmlp_s12_mini", "hybrid_fd_b16_mini"])
def test_what_timm_has_no_name_for_has_one_that_timm_refuses(card):
    form = timm_form(ZOO[card])
    assert form.own
    assert form.architecture.startswith("hkd_")


def test_a_folder_holds_the_student_alone_with_its_statistics_and_can_be_fine_tuned(finished, tmp_path):
    done = exported(finished, "vit_b14_mini", tmp_path / "out")
    assert done.files == ("README.md", "config.json", "model.safetensors")
    assert "projector" not in load_file(tmp_path / "out" / "model.safetensors")
    net = loaded(tmp_path / "out")
    config = timm.data.resolve_model_data_config(net)
    assert (config["input_size"], tuple(config["mean"]), config["crop_pct"]) == ((3, 35, 35), (0.5, 0.5, 0.5), 1.0)
    three = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=3)
    assert three.get_classifier().out_features == 3
    assert torch.equal(three.blocks[0].norm1.weight, net.blocks[0].norm1.weight)


@pytest.mark.slow
def test_modeling_py_needs_timm_alone_and_without_it_timm_refuses(finished, tmp_path):
    exported(finished, "resnet50_mini", tmp_path / "out")
    script = """
import sys, torch, timm
try:
    timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True)
except RuntimeError as error:
    assert "Unknown model (hkd_resnet)" in str(error), error
else:
    raise SystemExit("loaded as something else")
sys.path.insert(0, sys.argv[1])
import modeling
net = timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True).eval()
assert not {"hkd", "experiments"} & {*sys.modules}
with torch.no_grad():
    torch.save(net(torch.load(sys.argv[2])), sys.argv[3])
"""
    torch.save(fixed_batch(ZOO["resnet50_mini"]), tmp_path / "x")
    command = [sys.executable, "-c", script, tmp_path / "out", tmp_path / "x", tmp_path / "y"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "y"), trained_logits(finished, "resnet50_mini"))


def test_a_student_without_max_pooling_under_timms_own_name_is_found_out(finished, tmp_path, monkeypatch):
    from experiments.sharing import export as module
    from experiments.sharing.timm_form import TimmForm

    args = {name: value for name, value in ZOO["resnet50_mini"].kwargs.items() if name != "maxpool"}
    monkeypatch.setattr(module, "timm_form", lambda card: TimmForm("resnet18", args))
    with pytest.raises(UserError, match="other logits of resnet50_mini as 'resnet18'"):
        exported(finished, "resnet50_mini", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]  # nothing half written


def test_the_card_tells_all_to_people_and_to_the_hub(finished, tmp_path):
    finished.run("resnet18_mini", "b" * 16, seed=1, top1=72.0)
    finished.run("resnet18_mini", "c" * 16, seed=2, top1=74.0)
    finished.run("swin_l_mini", "7e" * 8, top1=95.0, spec=spec_of("swin_l_mini", teachers={}))
    exported(finished, "resnet18_mini", tmp_path / "out", hub=True, benchmark="some/digits:test", licence="mit")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\n")
    assert "license: mit" in card
    # t-interval of 70, 72, 74: 72 +- 4.3027 * 2 / sqrt 3
    assert "| top-1 accuracy | 70.00 | 72.00 [67.03, 76.97] | 0–2 |" in card
    assert "over its 100 test images: 70.00 [60.42, 78.11] (Wilson" in card
    sha = finished.store.load("7e" * 8).artifacts["student.safetensors"]
    for fact in (sha, "tau 2.0", "CC BY 4.0", "12.5 wall s", "commit c0ffee", "swin_l_mini", "epochs 1", "95.00"):
        assert fact in card
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["hkd"]["seeds"]["2"] == {"top1": 74.0}
    [model] = YAML(typ="safe").load(card.split("---\n")[1])["model-index"]
    assert model["results"][0]["metrics"][0]["value"] == 70.0
    parse = pytest.importorskip("huggingface_hub").parse_eval_result_entries
    [entry] = parse(YAML(typ="safe").load((tmp_path / "out" / ".eval_results" / "digits.yaml").read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("some/digits", "test", 70.0)


def test_a_stand_in_is_no_benchmark_of_the_hub(finished):
    finished.run("resnet18_mini")
    text, why = model_card.eval_results(found("a" * 16, finished.store), None)
    assert text is None
    assert "--benchmark" in why
    assert model_card.hub_data(DataSpec(name="cifar100")) == "uoft-cs/cifar100"
    assert model_card.hub_data(DataSpec(name="cifar100", options={"n_test": 10})) is None
    with pytest.raises(UserError, match="it names a data set of the hub"):
        model_card.eval_results(found("a" * 16, finished.store), "digits")


def test_onnx_is_checked_or_refused_in_a_sentence(finished, tmp_path):
    if not all(map(find_spec, NEEDED)):
        with pytest.raises(UserError, match=r"--onnx needs the packages .* run `pip install"):
            exported(finished, "vit_b14_mini", tmp_path / "out", onnx=True)
        assert not (tmp_path / "out").exists()
        return
    assert exported(finished, "vit_b14_mini", tmp_path / "out", onnx=True).onnx_difference <= 1e-4


# -- mistakes ------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_empty_is_left_alone(finished, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(UserError, match="is not empty"):
        exported(finished, "resnet18_mini", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("b" * 16, "There is no run"),
        ("scalekd_table3", "is a table; name one of its cells"),
        ("scalekd_tabel3/x/kd", "Did you mean 'scalekd_table3'"),
        ("scalekd_table3/swin_l-resnet5/kd", "Did you mean 'swin_l-resnet50'"),
        ("scalekd_table3/swin_l-resnet50/scalkd", "Did you mean 'scalekd'"),
        ("scalekd_table3/swin_l-convnext_t/scalekd/1", "have none; `hkd run scalekd_table3 --profile smoke`"),
    ],
)
def test_an_unknown_cell_or_run_names_the_nearest(finished, name, said):
    finished.run("resnet18_mini")
    with pytest.raises(UserError, match=said):
        found(name, finished.store, "smoke")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trained": False}, "has no student.safetensors"),
        ({"status": "diverged"}, r"diverged \(the loss is not finite\), and left no weights"),
        ({"spec": spec_of("resnet18_mini", task="detect")}, "is a 'detect', which leaves no plain timm model"),
    ],
)
def test_a_run_without_a_student_is_refused(finished, options, said):
    finished.run("resnet18_mini", **options)
    with pytest.raises(UserError, match=said):
        found("a" * 16, finished.store)


def test_an_altered_student_is_not_exported(finished):
    finished.run("resnet18_mini")
    path = finished.store.folder("a" * 16) / "student.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="is not what its run wrote"):
        found("a" * 16, finished.store)
