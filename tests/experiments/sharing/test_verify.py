"""What verify says of a checkpoint: its accuracy with an interval, its size, its calibration, and what is not so."""

import json
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import cli
from experiments.results import stats
from experiments.sharing import verify as verifying
from experiments.sharing.checkpoint import Claims, akin, build, checkpoint
from experiments.sharing.verify import calibration_error, counted, images_in, verify
from hkd.errors import UserError
from hkd.models.cards.zoo import ZOO

CLASSES = ("bee", "cat", "dog")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Weights of a ResNet of ours with three classes."""
    path = tmp_path_factory.mktemp("weights") / "student.pth.tar"
    torch.manual_seed(0)
    torch.save({"state_dict": build("resnet18_mini", ZOO["resnet18_mini"], 3).state_dict(), "epoch": 3}, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of seven images, and one that is none."""
    place = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (place / "val" / name).mkdir(parents=True)
        for i in range(7):
            pixels = rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "val" / name / f"{i}.png")
    (place / "val" / "cat" / "broken.png").write_bytes(b"no image")
    return place


def hkd(*arguments):
    with pytest.raises(SystemExit) as left:
        cli.main([*map(str, arguments)])
    return left.value.code


def test_accuracy_is_the_share_of_images_that_are_right_with_wilsons_interval(file, folder):
    subject = checkpoint(file, "resnet18_mini")
    images = images_in(folder, subject)
    done = verify(subject, images)
    shown = torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in images.split.paths
                         if path.name != "broken.png"])  # fmt: skip
    assert len(shown) == done.images == 21
    assert list(done.unread) == [str(folder / "val" / "cat" / "broken.png")]
    right = done.top1.mean / 100 * 21
    assert right == pytest.approx(round(right))
    p, z, n = right / 21, 1.959964, 21
    centre, half = (
        (p + z * z / 2 / n) / (1 + z * z / n),
        z * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n) / (1 + z * z / n),
    )
    assert (done.top1.low, done.top1.high) == pytest.approx((100 * (centre - half), 100 * (centre + half)), abs=1e-4)
    assert sum(each.top1.mean / 100 * each.top1.n for each in done.classes) == pytest.approx(right)
    assert [each.name for each in done.classes] == [*CLASSES]
    assert done.top5 is None
    assert done.params_m == pytest.approx(sum(p.numel() for p in subject.net.parameters()) / 1e6)


def test_calibration_error_is_the_gap_weighted_by_images():
    # Two bins: three images at 0.9 of which two are right, one at 0.5 which is wrong.
    confidence = torch.tensor([0.9, 0.9, 0.9, 0.5])
    right = torch.tensor([True, True, False, False])
    assert calibration_error(confidence, right) == pytest.approx(100 * (abs(2 - 2.7) + 0.5) / 4, rel=1e-5)
    assert calibration_error(torch.ones(5), torch.ones(5, dtype=torch.bool)) == 0


@pytest.mark.parametrize(("value", "holds"), [(0.0, True), (20.0, True), (30.0, False)])
def test_a_claim_holds_inside_the_interval(file, folder, value, holds, monkeypatch):
    subject = checkpoint(file, "resnet18_mini")
    monkeypatch.setattr(verifying, "share", lambda right: stats.binomial(2, 21))  # 9.5 [2.7, 28.9]
    claims = [Claims(top1=max(value, 2.7), who="that are claimed")]
    done = verify(subject, images_in(folder, subject), claims)
    assert done.holds is holds
    assert ("inside" in done.verdict) is holds
    assert done.as_claimed is holds


def test_counts_that_do_not_fit_are_said_and_whose_they_would_be():
    one, two = counted(4.232, 0.5687, [Claims(params_m=3.5, gmacs=0.3, who="that are claimed")])
    assert not one.fits
    assert one.text.startswith("It has 4.232 M parameters, not the 3.5 that are claimed; ")
    assert "mobilenet_v2" in one.text
    assert not two.fits
    [fits] = counted(3.505, 0.3, [Claims(params_m=3.5, who="of its card")])
    assert fits.fits
    [flops] = counted(25.6, 4.089, [Claims(gmacs=8.2, who="that are claimed")])
    assert "about twice" in flops.text


@pytest.mark.slow
def test_a_checkpoint_of_another_architecture_names_the_nearest(file):
    with pytest.raises(UserError, match=r"is no vit_s16_mini.*nearest to resnet18"):
        checkpoint(file, "vit_s16_mini")
    with torch.device("meta"):
        v1 = build("mobilenet_v1", ZOO["mobilenet_v1"], 10).state_dict()
    assert "nearest to mobilenet_v1, a 'mobilenet' (100 % agree" in akin(v1, 10)


def test_classes_are_found_by_name_else_by_order_else_refused(file, folder):
    subject = checkpoint(file, "resnet18_mini")
    assert images_in(folder, subject).told == ("Classes are in the order of their sorted names.",)
    named = images_in(folder, replace(subject, labels=("dog", "cow", "bee")))
    assert {name: label for label, name in named.names.items()} == {"dog": 0, "bee": 2}
    assert named.told[1] == "1 folders are no class of it and were left out."
    with pytest.raises(UserError, match=r"None of the 3 class folders .* is among the 2 classes"):
        images_in(folder, replace(subject, labels=("cow", "hen"), classes=2))
    with pytest.raises(UserError, match=r"has 3 class folders .* and resnet18_mini 4 classes without names"):
        images_in(folder, replace(subject, classes=4))


def test_the_command_prints_the_finding_first_and_says_what_is_not_so(file, folder, capsys, tmp_path):
    command = [
        "verify",
        file,
        "--model",
        "resnet18_mini",
        "--data",
        folder,
        "--claims",
        99,
        "--json",
        tmp_path / "v.json",
    ]
    assert hkd(*command) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("resnet18_mini: top-1 ")
    assert "are not what these images show" in lines[1]
    assert "All names are as timm has them." in lines
    assert (tmp_path / "v.json").read_text().startswith("{")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--claims", "782"], "--claims is 782; a claimed accuracy is in percent, from 1 to 100."),
        (["--claims", "0.78"], "if 0.78 is a fraction, write 78."),
        (["--claims-params", "-3"], "--claims-params is -3"),
        (["--crop-pct", "7"], "--crop-pct is 7"),
        (["--model", "resnet18_minni"], "Did you mean 'resnet18_mini'?"),
        ([], "does not say what it is: name its model with --model"),
        (["--model", "resnet18_mini", "--data", "/nowhere"], "There is no folder /nowhere"),
        (["--model", "resnet18_mini"], "Say where the test images are: --data FOLDER"),
        (["--model", "resnet18_mini", "--json", ""], "--json is ., which is no file"),
        (["--model", "resnet18_mini", "--json", "/dev/null"], "--json is /dev/null, which is no file"),
        (["--model", "resnet18_mini", "--device", "bogus"], "Unknown device 'bogus'"),
    ],
)
def test_mistakes_are_one_sentence(file, arguments, said, capsys):
    assert hkd("verify", file, *arguments) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_what_a_model_cannot_take_is_one_sentence(tmp_path, folder, file, capsys):
    torch.manual_seed(0)
    net = build("deit_t_mini", ZOO["deit_t_mini"], 3)
    torch.save(net.state_dict(), tmp_path / "vit.pth")
    assert hkd("verify", tmp_path / "vit.pth", "--model", "deit_t_mini", "--data", folder, "--image-size", 64) == 2
    assert "deit_t_mini does not take images of 64 px" in capsys.readouterr().err
    assert hkd("verify", file, "--model", "resnet18_mini", "--data", folder, "--std", *["1e-300"] * 3) == 2
    assert "gives no numbers for these images" in capsys.readouterr().err


def test_a_link_is_followed_and_a_pipe_stays_one(file, folder, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.json").symlink_to("aim.json")
    command = ["verify", file, "--model", "resnet18_mini", "--data", folder, "--json"]
    assert hkd(*command, tmp_path / "pipe") == 2
    assert hkd(*command, tmp_path / "link.json") == 0
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "aim.json").read_text())


def test_code_that_came_with_weights_is_never_run(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "hkd_x", "pretrained_cfg": {"input_size": [3, 32, 32], '
                                          '"mean": [0, 0, 0], "std": [1, 1, 1]}}')  # fmt: skip
    torch.manual_seed(0)
    from hkd.models.weights import save_weights

    save_weights({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "modeling.py").write_text("raise SystemExit(7)")
    with pytest.raises(UserError, match="is not the file that `hkd export` writes, and is not run"):
        checkpoint(tmp_path, None)


@pytest.fixture
def exported(finished, tmp_path, monkeypatch):
    """Folder that `hkd export` wrote, and a way to write its config.json again with a value at a path of keys."""
    finished.run("resnet18_mini")
    monkeypatch.setenv("HKD_RUNS", str(finished.store.root))
    assert hkd("export", "a" * 16, "--to", tmp_path / "out") == 0
    folder = tmp_path / "out"
    document = (folder / "config.json").read_text()

    def changed(way, value):
        place = whole = json.loads(document)
        *front, last = (int(part) if part.isdigit() else part for part in way.split("/"))
        for part in front:
            place = place[part]
        place[last] = value
        (folder / "config.json").write_text(json.dumps(whole))
        return folder

    return changed


BAD = [None, True, -1, 10**400, float("nan"), 1e308, "x", "", [], {}, ["x"], [1, 2], {"a": 1}]
WRONG = {
    "architecture": [*(value for value in BAD if value not in ("x", "")), "x", ""],
    "pretrained_cfg": BAD,
    "pretrained_cfg/input_size": BAD,
    "pretrained_cfg/input_size/2": [*BAD, 0, 2**20],
    "pretrained_cfg/mean": BAD,
    "pretrained_cfg/mean/0": BAD[0:2] + BAD[3:],
    "pretrained_cfg/std": BAD,
    "pretrained_cfg/std/1": [*BAD[:5], *BAD[6:], 0],
    "pretrained_cfg/crop_pct": [*BAD[1:], 0, 2],
    "label_names": [*(value for value in BAD if value not in (None, [], ["x"])), *([value] for value in BAD[:6])],
    "hkd": [value for value in BAD if value not in (None, {}, {"a": 1})],
    "hkd/metrics/top1": [*BAD[1:], 101],
    "hkd/params_m": BAD[1:],
    "hkd/gmacs": BAD[1:],
    "hkd/data": BAD[1:],
    "hkd/data/name": [*BAD[:6], *BAD[8:], "nothing", "os:system", "digits "],
    "hkd/data/options": [*BAD[1:9], *BAD[10:]],
}


@pytest.mark.parametrize("way", WRONG)
def test_a_config_that_is_not_what_timm_writes_is_one_sentence(way, exported, folder, capsys):
    for value in WRONG[way]:
        place = exported(way, value)
        data = [] if way.startswith("hkd/data/") else ["--data", folder]
        assert hkd("verify", place, *data) == 2, value
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1, err
        assert "Traceback" not in err


def test_no_code_that_a_config_names_is_run(exported, tmp_path, monkeypatch, capsys):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nMine = None")
    monkeypatch.chdir(tmp_path)
    for name in ("evil:Mine", "pty:spawn"):
        place = exported("hkd/data", {"name": name, "options": {"argv": ["touch", str(tmp_path / "ran")]}})
        assert hkd("verify", place) == 2
        assert f"names '{name}', code of somebody's own" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", [b"", b"[" * 10**5, b'{"a":' * 10**5, b"\xff\xfe", b"\0", b"[]", b"5"])
def test_a_config_that_is_no_document_is_one_sentence(text, exported, capsys):
    place = exported("hkd", None)
    (place / "config.json").write_bytes(text)
    assert hkd("verify", place) == 2
    err = capsys.readouterr().err
    assert "config.json is not what timm writes" in err
    assert len(err.splitlines()) == 1
