"""`hkd analyse`, called in this process on miniatures with random weights, and its pages."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from analysis.measure import ALL
from experiments import analyse, cli
from hkd.errors import UserError
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel
from hkd.models.weights import save_weights

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / "analysis.md", *sorted((ROOT / "docs" / "analysis").glob("*.md"))]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    place = tmp_path_factory.mktemp("photographs")
    numbers = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(numbers.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(place / f"{index}.png")
    return place


def hkd(*arguments):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    return left.value.code


def record(folder):
    return json.loads((folder / "analysis.json").read_text())


def test_several_models_are_measured_in_one_call(tmp_path, photographs, capsys):
    code = hkd("analyse", "vit_s16_mini", "resnet18_mini", "--random", "--images", photographs, "--output", tmp_path)
    said = capsys.readouterr()
    assert code == 0
    assert said.err == ""
    assert "## attention_distance (px" in said.out
    assert "resnet18_mini (random): attention_distance, attention_nmi, attention_maps: ResNet has no blocks" in said.out
    assert f"3 images; {len(list(tmp_path.iterdir()))} files are in {tmp_path}" in said.out
    assert [model["model"] for model in record(tmp_path)["models"]] == [
        "vit_s16_mini (random)",
        "resnet18_mini (random)",
    ]


def test_measures_are_chosen_by_words_or_by_commas(tmp_path, photographs):
    for measures in (["fourier", "dct_spectrum"], ["fourier,dct_spectrum"]):
        arguments = ("--measures", *measures, "--output", tmp_path, "--images", photographs)
        assert hkd("analyse", "vit_s16_mini", "--random", *arguments) == 0
        assert record(tmp_path)["models"][0]["measures"] == ["fourier", "dct_spectrum"]
    assert not (tmp_path / "attention_nmi.png").exists()


def test_a_control_has_the_same_architecture_and_random_weights(tmp_path, photographs):
    net = TapModel(ZOO["vit_s16_mini"], 10).net
    for block in net.blocks:
        block.attn.qkv.weight.data.mul_(30)
    save_weights(net.state_dict(), tmp_path / "mine.safetensors")
    output = tmp_path / "found"
    model = f"vit_s16_mini={tmp_path / 'mine.safetensors'}"
    arguments = ("--measures", "attention_nmi", "--images", photographs, "--output", output, "--seed", "4")
    assert hkd("analyse", model, "--control", *arguments) == 0
    mine, control = record(output)["models"]
    assert (mine["model"], control["model"]) == ("vit_s16_mini (mine)", "vit_s16_mini (random)")
    assert control["weights"] == "random, seed 4"
    assert re.search(r"SHA-256 [0-9a-f]{64}$", mine["weights"])
    with np.load(output / "vit_s16_mini_random.npz") as found:
        assert found["attention_nmi.mean"].max() < 0.01
    with np.load(output / "vit_s16_mini_mine.npz") as found:
        assert found["attention_nmi.mean"].min() > 0.01


def test_equal_names_are_numbered(tmp_path, photographs):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save_weights(TapModel(ZOO["resnet18_mini"], 10).net.state_dict(), tmp_path / folder / "mine.safetensors")
    models = [f"resnet18_mini={tmp_path / folder / 'mine.safetensors'}" for folder in ("a", "b")]
    arguments = ("--measures", "dct_spectrum", "--images", photographs, "--output", tmp_path / "found")
    assert hkd("analyse", *models, *arguments) == 0
    names = [model["model"] for model in record(tmp_path / "found")["models"]]
    assert names == ["resnet18_mini (mine)", "resnet18_mini (mine) 2"]


def test_corrupt_images_are_counted_and_named_and_the_others_measured(tmp_path, photographs, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for path in photographs.iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    (images / "broken.jpg").write_text("no image")
    arguments = ("--measures", "dct_spectrum", "--images", images, "--output", tmp_path / "found")
    assert hkd("analyse", "resnet18_mini", "--random", *arguments) == 0
    assert "1 of 4 images were left out: broken.jpg (not a readable image)" in capsys.readouterr().err
    found = record(tmp_path / "found")
    assert found["images"] == ["0.png", "1.png", "2.png"]
    assert found["corrupt"] == {"broken.jpg": "not a readable image"}


def test_one_image_gives_no_intervals_and_says_so(tmp_path, photographs, capsys):
    arguments = ("--measures", "dct_spectrum", "--images", photographs, "--limit", "1", "--output", tmp_path)
    assert hkd("analyse", "vit_s16_mini", "--random", *arguments) == 0
    assert "One image was measured of vit_s16_mini (random), so there are no intervals" in capsys.readouterr().out


def test_a_model_that_fails_does_not_stop_the_others(tmp_path, photographs, capsys):
    net = TapModel(ZOO["vit_s16_mini"], 10).net
    net.blocks[2].mlp.fc1.weight.data[0] = 3e38  # finite, as a file's must be, and too large for a sum
    save_weights(net.state_dict(), tmp_path / "broken.safetensors")
    models = (f"vit_s16_mini={tmp_path / 'broken.safetensors'}", "resnet18_mini")
    arguments = ("--measures", "dct_spectrum", "--images", photographs, "--output", tmp_path / "found")
    assert hkd("analyse", *models, "--random", *arguments) == 2
    said = capsys.readouterr()
    assert "failed: vit_s16_mini=" in said.err
    assert "with such an output is blocks.2.mlp.fc1" in said.err
    assert [model["model"] for model in record(tmp_path / "found")["models"]] == ["resnet18_mini (random)"]


def test_a_model_of_which_nothing_can_be_measured_is_refused_and_the_others_go_on(tmp_path, photographs, capsys):
    arguments = ("--measures", "attention_nmi", "--images", photographs, "--output", tmp_path / "found", "--random")
    assert hkd("analyse", "resnet18_mini", "vit_s16_mini", *arguments) == 0
    assert "refused: resnet18_mini: resnet18_mini (random) can be measured by none" in capsys.readouterr().err
    assert hkd("analyse", "resnet18_mini", *arguments) == 2
    assert "refused: resnet18_mini" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("vit_s16_mimi", "--random"), "Did you mean 'vit_s16_mini'?"),
        (("vit_s16_mini",), "or ask for random ones"),
        (("vit_s16_mini", "--random", "--measures", "forier"), "Did you mean 'fourier'?"),
        (("vit_s16_mini", "--random", "--image-size", "32,48"), "height x width, 192x256"),
        (("vit_s16_mini", "--random", "--batch-size", "0"), "--batch-size is 0"),
        (("vit_s16_mini", "--random", "--limit", "0"), 'Invalid value "0" for --limit. Must be >= 1.'),
        (("vit_s16_mini", "--random", "--device", "tpu9"), "Unknown device 'tpu9'"),
        (("vit_s16_mini", "--random", "--device", "mps"), "double precision"),
        (("--random",), "Name at least one model"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(arguments, sentence, photographs, tmp_path, capsys):
    assert hkd("analyse", *arguments, "--images", photographs, "--output", tmp_path / "found") == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "found").exists()


def test_a_folder_without_images_is_one_line(tmp_path, capsys):
    assert hkd("analyse", "vit_s16_mini", "--random", "--images", tmp_path) == 2
    assert "There are no images in" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_one_line_before_anything_is_measured(tmp_path, photographs, capsys):
    (tmp_path / "found").write_text("a file")
    assert hkd("analyse", "vit_s16_mini", "--random", "--images", photographs, "--output", tmp_path / "found") == 2
    assert f"--output is {tmp_path / 'found'}, where no folder can be" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert analyse.parsed_device("cuda:0").type == "cuda"
    with pytest.raises(UserError, match="no device 'cuda:1' here; torch sees 1"):
        analyse.parsed_device("cuda:1")


def test_the_default_folder_is_among_the_results(tmp_path, photographs, monkeypatch):
    monkeypatch.setenv("HKD_RESULTS", str(tmp_path))
    arguments = ("--measures", "dct_spectrum", "--images", photographs)
    assert hkd("analyse", "resnet18_mini", "--random", *arguments) == 0
    assert (tmp_path / "analysis" / "table.md").is_file()


# -- its pages --------------------------------------------------------------------------------------------------------


def test_there_is_a_page_for_every_measure_with_formula_units_and_a_picture():
    assert {page.stem for page in PAGES[1:]} >= set(ALL)
    for name in ALL:
        text = (ROOT / "docs" / "analysis" / f"{name}.md").read_text()
        for part in ("## Formula", "## Units", "## How to read it", f"](../pictures/analysis_{name}.png)"):
            assert part in text, f"{name}: {part}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere_and_commands_parse(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        assert re.match(r"[a-z]+:|#", target) or (page.parent / target.partition("#")[0]).exists(), target
    for block in re.findall(r"^```sh\n(.*?)^```$", text, flags=re.M | re.S):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if "hkd" in words:
                cli.app.parse_args(words[words.index("hkd") + 1 :], exit_on_error=False, print_error=False)


@pytest.mark.slow
@pytest.mark.long
def test_the_three_lines_of_the_page_run(tmp_path, photographs):
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGES[0].read_text(), flags=re.M | re.S)
    assert len([line for line in code.splitlines() if line and not line.startswith(("#", "print"))]) == 3
    (tmp_path / "photographs").symlink_to(photographs)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "attention_distance" in done.stdout
    assert (tmp_path / "found" / "attention_distance.png").is_file()
