"""`hkd distill`: from a folder of images and names of models to a table; what is refused; and the journey itself."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import own as module
from experiments.cli import main
from experiments.own import Asked, own, read
from experiments.planning.own import OWN
from hkd.errors import UserError
from hkd.methods import METHODS
from hkd.methods.base import method_of

SIDE = 32


def images(folder: Path, counts: dict[str, int]) -> Path:
    """`<folder>/<class>/<number>.png`: noise around a colour of the class, some of them grey, of several sizes."""
    rng = np.random.default_rng(0)
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise = rng.integers(0, 80, (SIDE + i % 3, SIDE, 3)) + np.array([60, 120, 30]) * (label + 1) // 3
            image = Image.fromarray(noise.astype(np.uint8))
            (image.convert("L") if i % 4 == 3 else image).save(folder / name / f"image {i}.png")
    return folder


@pytest.fixture
def asked(tmp_path, monkeypatch) -> Asked:
    """What is asked for in a folder of one's own; results go there."""
    monkeypatch.chdir(tmp_path)
    OWN.clear()  # files of other tests have the same names
    for name in ("HKD_RESULTS", "HKD_RUNS", "HKD_WEIGHTS"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    data = images(tmp_path / "my images", {"a cat": 10, "dog": 10, "owl": 10})
    return Asked(student="resnet18_mini", teacher="vit_s16_mini", data=data, methods=("kd", "fitnet"), name="mine")


def test_a_table_of_ones_own_is_a_file_that_plans_the_same_runs_when_it_is_read(asked):
    made = own(asked)
    again = read(made.file)
    assert [*again.plan().runs] == [*made.plan().runs]
    assert [cell.label for cell in made.plan().cells] == ["alone", "kd", "fitnet"]
    assert len(made.plan().runs) == 1 + 3 * asked.seeds  # the teacher, and each column at each seed
    assert again.said == made.said


def test_the_cut_of_the_images_is_written_and_names_each_image_once(asked):
    with open(own(asked).file.with_name("mine.split.csv"), newline="") as file:
        lines = [*csv.DictReader(file)]
    assert len({line["image"] for line in lines}) == len(lines) == 30
    assert {line["part"] for line in lines} == {"train", "val", "test"}
    assert all((asked.data / line["image"]).is_file() for line in lines)


def test_keys_depend_on_the_images_and_not_on_where_they_are_or_what_the_table_is_called(asked, tmp_path):
    first = {*own(asked).plan().runs}
    moved = asked.data.rename(tmp_path / "elsewhere")
    assert {*own(replace(asked, data=moved, name="another")).plan().runs} == first
    Image.new("RGB", (SIDE, SIDE)).save(moved / "dog" / "image 0.png")
    assert first.isdisjoint(own(replace(asked, data=moved, name="third")).plan().runs)


def test_models_whose_names_are_alike_as_slugs_are_two_models(asked, tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n\ndef tiny(num_classes, width=16):\n    return nn.Sequential(nn.Conv2d(3, width, 3), "
        "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))\n\n\n"
        "def Tiny(num_classes):\n    return tiny(num_classes, 8)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    made = own(replace(asked, student="nets:tiny", teacher="nets:Tiny", methods=("kd",), image_size=SIDE))
    students = {run.spec.student.arch for run in made.plan().runs.values() if run.spec.method.name == "kd"}
    teachers = {run.spec.teachers["teacher"].model.arch for run in made.plan().runs.values() if run.spec.teachers}
    assert (students, teachers) == ({"nets:tiny"}, {"nets:Tiny"})
    assert module.slugs_of("start", "kd_net") == ("start-model", "kd_net")
    assert module.slugs_of("a", "a") == ("a", "a")


@pytest.mark.slow
@pytest.mark.long
def test_a_factorys_file_is_part_of_the_key(asked, tmp_path, monkeypatch):
    text = (
        "from torch import nn\n\n\ndef make(num_classes):\n    return nn.Sequential(nn.Conv2d(3, 4, 3), "
        "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    keys = {}
    for name, content in (("net_one", text), ("net_two", text), ("net_three", text.replace("4", "5"))):
        (tmp_path / f"{name}.py").write_text(content)
        made = own(replace(asked, student=f"{name}:make", methods=("kd",), image_size=SIDE, name=name))
        student = next(iter(made.plan().runs.values())).spec.student
        keys[name] = student.source
    assert keys["net_one"] == keys["net_two"] != keys["net_three"]


def test_small_data_get_small_batches_and_it_is_said(asked):
    made = own(asked)
    trained = made.plan().runs[made.plan().cells[0].runs[0]].spec.recipe
    assert trained.batch_size == 18 // module.STEPS  # 18 of 30 images are for training
    assert any("Batches: of 2" in sentence for sentence in made.said)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--epochs", "7", "--image-size", "64"], "t.yaml says what to run: leave out --image-size, --epochs, or say"),
        (["--no-tune"], "t.yaml says what to run: leave out --tune"),
        (["--until", "decided", "--seeds", "0"], "--until decided chooses the seeds itself: leave out --seeds"),
        (["--until", "decided", "--minutes", "1"], "--until decided chooses the seeds itself: leave out --minutes"),
        (["--seeds", "0"], "--seeds is 0; it must be at least 1"),
    ],
)
def test_what_a_table_says_is_not_said_again(asked, capsys, arguments, sentence):
    assert hkd("distill", "t.yaml", *arguments) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_a_teacher_of_other_classes_is_tuned_first_and_one_of_the_same_is_taken_as_it_is(asked, tmp_path):
    from hkd.models.cards.zoo import ZOO
    from hkd.models.tap_model import TapModel
    from hkd.models.weights import save_weights

    for classes in (3, 7):
        save_weights(TapModel(ZOO[asked.teacher], classes).net.state_dict(), tmp_path / f"{classes}.safetensors")
    same = replace(asked, teacher_weights=str(tmp_path / "3.safetensors"))
    assert "as it is" in own(same).said[1]
    other = replace(asked, teacher_weights=str(tmp_path / "7.safetensors"), name="other")
    assert "tuned to these training images first (7 classes there, 3 here)" in own(other).said[1]
    with pytest.raises(UserError, match=r"Method 'kd' compares scores.*7 classes where the data has 3: leave out"):
        own(replace(other, tune=False))
    features = own(replace(other, tune=False, methods=("fitnet",), name="features"))
    assert "linear probe" in features.said[1]
    assert {run.spec.task for run in features.plan().runs.values()} == {"probe", "train"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seeds": 0}, "--seeds is 0; it must be at least 1"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"epochs": 10**11}, "--epochs is 100000000000; it must be from 1 to 1000000."),
        ({"train_images": 9}, "--train-images is 9 of each class, and 'a cat' has 6 to train on: ask for no more"),
        ({"student_weights": __file__}, "test_own.py is not a weights file this suite reads"),
        ({"methods": ("kdd",)}, "Unknown method 'kdd'. Did you mean 'kd'?"),
        ({"methods": ("mae",)}, "Method 'mae' pre-trains without labels"),
        ({"student": "resnet81"}, "There is no model 'resnet81'"),
        ({"teacher": "resnet18.nonsense"}, "has no weights 'nonsense' of resnet18"),
        ({"recipe": "cifr"}, "There is no recipe 'cifr', nor a file of that name. Did you mean 'cifar'?"),
        ({"teacher_weights": "nowhere.pth"}, "which is no file"),
        ({"teacher": "regnety_002"}, "are not on this machine"),
        ({"student_weights": "pretrained"}, "Nobody published weights of resnet18_mini"),
    ],
)
def test_what_cannot_be_is_one_sentence(changes, sentence, asked, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nothing"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    with pytest.raises(UserError) as error:
        own(replace(asked, **changes))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_images_that_cannot_be_read_are_counted_before_anything_runs(asked):
    for i in range(5):
        (asked.data / "dog" / f"image {i}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"^5 images cannot be read: .*; and 2 more; replace them"):
        own(asked)


def test_a_results_folder_that_cannot_be_written_is_one_sentence(asked, monkeypatch, tmp_path):
    (tmp_path / "hkd_results").write_text("a file")
    with pytest.raises(UserError, match="no folder can be"):
        own(asked)


def test_all_means_the_methods_that_train_a_classifier_cheap_ones_first():
    assert module.methods_of(("all",)) == module.CHEAP_FIRST
    assert module.methods_of(("at", "mlkd")) == ("at", "mlkd")
    assert module.methods_of(("fitnet", "kd", "fitnet", "supervised")) == ("fitnet", "kd")


def hkd(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main([*arguments])
    return left.value.code


@pytest.mark.slow
def test_the_journey_from_images_to_the_best_method(asked, capsys, monkeypatch):
    fixed = ("--epochs", "1", "--seeds", "2", "--workers", "0", "--name", "journey")
    names = ("--student", asked.student, "--teacher", asked.teacher, "--data", str(asked.data), "--method", "kd", "dkd")
    assert hkd("distill", *names, *fixed) == 0
    text = capsys.readouterr().out
    folder = Path(os.environ["HKD_RESULTS"]) / "journey"
    assert "3 classes, 30 images: 18 to train, 6 to validate, 6 to test" in text
    assert "First result" in text
    assert "7 of 7 runs executed" in text
    assert all(any(line.startswith(name) for line in text.splitlines()) for name in ("alone", "kd", "dkd"))
    for name in ("journey.yaml", "journey.split.csv", "journey/table.csv", "journey/comparison.png"):
        assert (folder / name).is_file(), name
    assert (folder / "journey.report" / "index.html").is_file()

    assert hkd("distill", str(folder / "journey.yaml"), "--workers", "0") == 0  # everything is there
    assert "0 of 7 runs executed" in capsys.readouterr().out
    assert hkd("show", str(folder / "journey.yaml")) == 0
    assert "dkd" in capsys.readouterr().out
    assert hkd("run", str(folder / "journey.yaml"), "--workers", "0", "--data", str(asked.data)) == 0
    assert "0 of 7 runs executed" in capsys.readouterr().out

    store, student = Path(os.environ["HKD_RUNS"]), folder / "student"
    key = next(path.parent.name for path in store.glob("*/record.json") if '"method": "kd"' in spaced(path))
    assert hkd("export", key[:8], "--to", str(student), "--data", str(asked.data)) == 0
    assert "the same logits to the bit" in capsys.readouterr().out
    assert json.loads((student / "config.json").read_text())["label_names"] == ["a cat", "dog", "owl"]
    assert hkd("verify", str(student), "--data", str(asked.data)) == 0
    text = capsys.readouterr().out
    assert "of 6 images" in text  # the test split of the cut, not the images that it learned from
    assert "The images are the test split" in text
    assert hkd("verify", str(student)) == 2
    assert "say where they are, --data FOLDER" in capsys.readouterr().err


def spaced(path: Path) -> str:
    """A record's method as JSON with spaces, however it was written."""
    return json.dumps(json.loads(path.read_text())["spec"]["method"]).replace('"name": ', '"method": ')


def test_every_method_is_taken_by_name_but_those_that_train_otherwise():
    refused = module.LABEL_FREE | module.SEVERAL_TEACHERS
    for name in METHODS:
        needs = method_of(name).needs(method_of(name).Config())
        if name in refused:
            with pytest.raises(UserError, match=f"Method '{name}' (pre-trains|asks)"):
                module.methods_of((name,))
        elif name != "supervised":
            assert {*needs.teachers} == {"teacher"}
            assert module.methods_of((name,)) == (name,)
