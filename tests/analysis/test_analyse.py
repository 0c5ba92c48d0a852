"""`analyse`: models by name and images of a folder, and what is written of them."""

import json
import os
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from torchvision.transforms.v2 import CenterCrop, Compose, InterpolationMode, Resize

from analysis.looking.attention import attention_layers, observed
from analysis.looking.images import ImageFolder, centre_crop
from analysis.looking.model import load, parse
from analysis.measure import ALL, analyse, measure
from analysis.measures.attention_maps import MapsResult
from analysis.measures.base import number
from analysis.measures.fourier import depth_figure
from analysis.report import Analysis, draw, markdown, slug, write
from hkd.errors import Refused, UserError
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel
from hkd.models.weights import save_weights

ROOT = Path(__file__).parents[2]
RANDOM = np.random.default_rng(0)


def picture(path, height=40, width=48):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five images, one of them in a folder below."""
    place = tmp_path_factory.mktemp("images")
    for name in ("b.png", "a.jpg", "c.webp", "D.PNG", "deep/er/a.jpeg"):
        picture(place / name)
    (place / "notes.txt").write_text("no image")
    return place


def weights_of(net, path):
    save_weights(net.state_dict(), path)
    return path


# -- images -----------------------------------------------------------------------------------------------------------


def test_all_images_below_a_folder_are_listed_in_the_order_of_their_names(folder):
    assert ImageFolder(folder).names == ["D.PNG", "a.jpg", "b.png", "c.webp", "deep/er/a.jpeg"]


def test_a_limit_draws_by_its_seed(folder):
    drawn = {tuple(ImageFolder(folder, 2, seed).names) for seed in range(20)}
    assert ImageFolder(folder, 2, 7).names == ImageFolder(folder, 2, 7).names
    assert len(drawn) > 3
    assert all(names == tuple(sorted(names)) for names in drawn)
    assert len(ImageFolder(folder, 99).names) == 5


def test_a_square_crop_is_the_usual_evaluation():
    image = torch.from_numpy(RANDOM.integers(0, 256, (3, 40, 60), dtype=np.uint8))
    usual = Compose([Resize(32, InterpolationMode.BICUBIC, antialias=True), CenterCrop(28)])
    assert (centre_crop(image, (28, 28), 0.875) == usual(image)).all()


def test_a_crop_that_is_not_square_keeps_proportions():
    image = torch.from_numpy(RANDOM.integers(0, 256, (3, 20, 60), dtype=np.uint8))
    assert (centre_crop(image, (20, 30), 1.0) == image[:, :, 15:45]).all()
    assert centre_crop(image, (20, 70), 1.0).shape == (3, 20, 70)
    assert centre_crop(image, (50, 20), 0.9).shape == (3, 50, 20)


def test_batches_hold_all_readable_images_as_numbers_from_0_to_1(folder):
    batches = list(ImageFolder(folder).batches((16, 24), 1.0, 2))
    assert [tuple(batch.shape) for batch in batches] == [(2, 3, 16, 24), (2, 3, 16, 24), (1, 3, 16, 24)]
    assert 0 <= min(batch.min() for batch in batches) < max(batch.max() for batch in batches) <= 1


def test_images_that_cannot_be_read_are_left_out_and_named(tmp_path):
    picture(tmp_path / "good.png")
    (tmp_path / "broken.jpg").write_text("no image")
    whole = tmp_path / "cut.png"
    picture(whole)
    whole.write_bytes(whole.read_bytes()[:300])
    images = ImageFolder(tmp_path)
    for _ in range(2):  # counted anew in every pass
        assert sum(len(batch) for batch in images.batches((8, 8))) == 1
        assert images.corrupt == {"broken.jpg": "not a readable image", "cut.png": "not a readable image"}


def test_images_of_sixteen_bits_and_of_one_channel_are_read(tmp_path):
    Image.fromarray(np.full((9, 9), 65535, dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.full((9, 9), 255, dtype=np.uint8)).save(tmp_path / "grey.png")
    (batch,) = ImageFolder(tmp_path).batches((8, 8))
    assert (batch == 1).all()


def test_folders_without_images_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no images in"):
        ImageFolder(tmp_path)
    with pytest.raises(UserError, match="no folder of images: it is not there"):
        ImageFolder(tmp_path / "absent")
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(UserError, match="no folder of images: it is a file"):
        ImageFolder(tmp_path / "a.png")
    with pytest.raises(UserError, match="limit of images is 0"):
        ImageFolder(tmp_path, 0)
    with pytest.raises(UserError, match=r"None of the 1 images .* \(a.png: not a readable image\)"):
        analyse("resnet18_mini", tmp_path, random=True)


# -- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "random", "sentence"),
    [
        ("vit_tinny_patch16_224", True, "Did you mean 'vit_tiny_patch16_224'?"),
        ("swin_s_minni", True, "Did you mean 'swin_s_mini'?"),
        ("vit_tiny_patch16_224=absent.safetensors", False, "no weights file 'absent.safetensors'"),
        ("vit_tiny_patch16_224=", False, "no weights file ''"),
        ("swin_s_mini", False, "swin_s_mini=FILE.safetensors, or ask for random ones"),
        ("vit_s16_ofa", False, "or take timm's vit_small_patch16_224.augreg_in21k_ft_in1k"),
        ("vit_tiny_patch16_224.augreg_in21k_ft_in1", False, "Did you mean 'augreg_in21k_ft_in1k'?"),
        ("test_vit4.no", False, "has no weights 'no' of test_vit4"),
        ("vit_base_patch16_224.maee", True, "Did you mean 'mae'?"),
        ("vit_base_patch16_224.maee=absent.safetensors", False, "Did you mean 'mae'?"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence_before_anything_is_built(text, random, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        parse(text, random=random)


def test_a_model_without_published_weights_says_so():
    bare = next(name for name in timm.list_models("vit_*") if not timm.is_model_pretrained(name))
    with pytest.raises(UserError, match=f"timm has no published weights of {bare}"):
        parse(bare)


def test_weights_that_cannot_be_downloaded_are_one_sentence(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no\nnetwork.")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"test_vit cannot be had \(OSError: no network\); give a file, test_vit=FILE"):
        load("test_vit")


def test_a_control_sees_the_images_of_its_tag():
    assert load("test_vit", random=True).mean == (0.5, 0.5, 0.5)
    plain, tagged = (load(name, random=True) for name in ("resnet10t", "resnet10t.c3_in1k"))
    assert (tagged.size, tagged.crop_pct, tagged.label) == (plain.size, plain.crop_pct, "resnet10t.c3_in1k (random)")
    assert load("vit_base_patch16_224.mae", random=True).mean == pytest.approx((0.485, 0.456, 0.406))


def test_random_weights_are_those_of_the_seed_and_touch_no_other_generator():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (load("vit_s16_mini", random=True, seed=seed).net.state_dict() for seed in (1, 1, 2))
    assert (torch.get_rng_state() == before).all()
    assert all((first[name] == second[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)


def test_a_file_gives_its_weights_and_its_number_of_classes(tmp_path):
    net = TapModel(ZOO["vit_s16_mini"], 7).net
    subject = load(f"vit_s16_mini={weights_of(net, tmp_path / 'mine.safetensors')}")
    assert all((value == net.state_dict()[name]).all() for name, value in subject.net.state_dict().items())
    assert (subject.label, subject.size, subject.mean) == ("vit_s16_mini (mine)", (32, 32), (0.5, 0.5, 0.5))
    assert not subject.net.training
    assert not any(parameter.requires_grad for parameter in subject.net.parameters())


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("arch", ["test_vit", "test_resnet", "deit_tiny_distilled_patch16_224"])
def test_a_file_of_a_timm_model_is_loaded(tmp_path, arch, classes):
    path = weights_of(timm.create_model(arch, num_classes=classes), tmp_path / "student.safetensors")
    subject = load(f"{arch}={path}")
    assert subject.label == f"{arch} (trained)"
    assert len(subject.net.state_dict()) == len(timm.create_model(arch, num_classes=classes).state_dict())


def test_a_file_of_another_model_or_with_code_is_refused(tmp_path):
    path = weights_of(TapModel(ZOO["resnet18_mini"], 7).net, tmp_path / "mine.safetensors")
    with pytest.raises(UserError, match="weights of another architecture than this VisionTransformer"):
        load(f"vit_s16_mini={path}")
    torch.save(TapModel(ZOO["vit_s16_mini"], 7).net, tmp_path / "whole.pt")
    with pytest.raises(UserError, match="pickled code, which is never run"):
        load(f"vit_s16_mini={tmp_path / 'whole.pt'}")


def test_a_model_takes_images_of_another_size_or_says_why_not():
    assert load("vit_s16_mini", random=True, image_size=(32, 48)).size == (32, 48)
    assert load("test_resnet", random=True, image_size=(32, 48)).size == (32, 48)
    for arch in ("vit_s16_mini", "swin_s_mini", "test_vit"):
        with pytest.raises(UserError, match=f"{arch} cannot take images of 1x3 px"):
            load(arch, random=True, image_size=(1, 3))


@pytest.mark.parametrize("arch", [name for name in ZOO if name.endswith("_mini")])
def test_every_miniature_is_analysed(folder, arch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = analyse(arch, ImageFolder(folder, 1), random=True)
    assert {"fourier", "dct_spectrum"} <= set(found.results)
    assert set(found.results) | set(found.refused) == set(ALL)


# -- measures ---------------------------------------------------------------------------------------------------------


def test_values_are_those_of_measure_on_the_same_crops(folder):
    subject = load("vit_s16_mini", random=True)
    crops = torch.cat(list(ImageFolder(folder).batches((32, 32), subject.crop_pct)))
    expected = measure(subject.net, crops, mean=subject.mean, std=subject.std)
    found = analyse("vit_s16_mini", folder, random=True, batch_size=2)
    assert found.images == 5
    for name in ("attention_distance", "fourier", "dct_spectrum"):
        for key, value in expected[name].arrays().items():
            if value.dtype.kind == "f":
                np.testing.assert_allclose(found.results[name].arrays()[key], value, rtol=1e-4, atol=1e-6)


def test_modules_and_tensors_are_analysed_where_they_are():
    model, images = TapModel(ZOO["vit_s16_mini"], 10), torch.rand(3, 3, 40, 50)
    found = analyse(model, images, ["attention_distance", "attention_maps"])
    assert list(found.results) == ["attention_distance", "attention_maps"]
    assert found.model == "TapModel"
    assert found.results["attention_maps"].images.shape == (3, 40, 50, 3)
    net = model.net.train()
    assert analyse(net, images[:, :, :32, :32], "fourier").images == 3
    assert net.training


def test_a_module_takes_images_of_a_folder_at_its_own_size(folder):
    assert analyse(TapModel(ZOO["vit_s16_mini"], 10).net, folder, "fourier").size == (32, 32)
    assert analyse(TapModel(ZOO["resnet18_mini"], 10), folder, "fourier").size == (32, 32)


def test_maps_are_rows_of_attention_of_the_central_patch(folder):
    subject = load("vit_s16_mini", random=True)
    maps = analyse(subject, folder, "attention_maps").results["attention_maps"]
    crops = next(ImageFolder(folder).batches((32, 32), subject.crop_pct, 4))
    given = (crops - torch.tensor(subject.mean).view(3, 1, 1)) / torch.tensor(subject.std).view(3, 1, 1)
    layers, rows = attention_layers(subject.net, (32, 32)), {}
    with torch.no_grad(), observed(layers, 4, lambda seen: rows.setdefault(seen.layer, seen.maps[:, :, 10].clone())):
        subject.net.forward_features(given)
    assert maps.query == (2, 2)  # token 10 of 4x4
    assert list(maps.maps) == [1, 2, 3]
    for layer, map_ in maps.maps.items():
        np.testing.assert_allclose(map_, rows[layer - 1].unflatten(2, (4, 4)).numpy(), atol=1e-6)
        np.testing.assert_allclose(map_.sum((2, 3)), 1, atol=1e-5)


def test_grids_that_are_not_square_are_measured_and_drawn(tmp_path, folder):
    found = analyse("vit_s16_mini", folder, random=True, image_size=(32, 48))
    assert found.results["dct_spectrum"].unscaled.shape[1:] == (4, 6)
    assert found.results["attention_maps"].maps[1].shape[2:] == (4, 6)
    assert found.results["attention_distance"].pixels().uniform.max() < np.hypot(32, 48)
    found.results = {"attention_maps": found.results["attention_maps"]}
    assert (tmp_path / "attention_maps.png") in found.save(tmp_path)


def test_a_model_without_attention_is_refused_those_measures_alone(folder):
    found = analyse("resnet18_mini", folder, random=True)
    assert list(found.results) == ["fourier", "dct_spectrum"]
    assert list(found.refused) == ["attention_distance", "attention_nmi", "attention_maps"]
    with pytest.raises(Refused, match=r"resnet18_mini \(random\) can be measured by none of attention_nmi: ResNet has"):
        analyse("resnet18_mini", folder, "attention_nmi", random=True)


def test_windows_give_no_maps(folder):
    found = analyse("swin_s_mini", folder, random=True)
    assert list(found.refused) == ["attention_maps"]
    assert "within windows" in found.refused["attention_maps"]
    assert len(found.results["attention_distance"].uniform) == len(found.results["attention_distance"].names)


def test_an_untrained_model_attends_uniformly(folder):
    found = analyse("vit_s16_mini", folder, ["attention_distance"], random=True)
    result = found.results["attention_distance"].pixels()
    np.testing.assert_allclose(result.layer, result.uniform, rtol=0.02)


def test_features_that_are_not_finite_name_their_layer(tmp_path, folder):
    net = TapModel(ZOO["vit_s16_mini"], 10).net
    net.blocks[1].mlp.fc1.weight.data[0] = 3e38  # finite, as all weights of a file must be, and too large for a sum
    path = weights_of(net, tmp_path / "broken.safetensors")
    with pytest.raises(UserError, match=r"first layer of VisionTransformer with such an output is blocks.1.mlp.fc1"):
        analyse(f"vit_s16_mini={path}", folder)


def test_one_image_is_measured_without_intervals(tmp_path, folder):
    with pytest.warns(UserWarning, match="One image was measured"):
        found = analyse("vit_s16_mini", ImageFolder(folder, 1), ["attention_distance", "dct_spectrum"], random=True)
    assert found.table()["low"].isna().all()
    assert found.table()["value"].notna().all()
    assert "±" not in markdown([found])
    assert "no intervals: give at least two" in markdown([found])
    found.save(tmp_path)


def test_mistakes_are_one_sentence(folder):
    with pytest.raises(UserError, match=r"Unknown measure 'forier'\. Did you mean 'fourier'"):
        analyse("vit_s16_mini", folder, ["forier"], random=True)
    with pytest.raises(UserError, match="No measure was asked for"):
        analyse("vit_s16_mini", folder, [], random=True)
    with pytest.raises(UserError, match="No images were measured"):
        analyse(TapModel(ZOO["vit_s16_mini"], 10), torch.zeros(0, 3, 32, 32))


def test_progress_counts_images(folder):
    counted = []
    analyse("resnet18_mini", folder, "dct_spectrum", random=True, batch_size=2, progress=counted.append)
    assert counted == [2, 2, 1]


# -- what is written --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def analyses(folder):
    return [analyse(name, folder, random=True) for name in ("vit_s16_mini", "swin_s_mini", "resnet18_mini")]


def test_the_table_holds_every_number_with_its_interval(analyses):
    frame = analyses[0].table()
    result = analyses[0].results["attention_distance"].pixels()
    rows = frame[(frame.measure == "attention_distance") & (frame.layer == 2)].set_index("quantity")
    mean = rows.loc["mean over heads"]
    assert mean.value == pytest.approx(result.layer[1])
    assert mean.high - mean.low == pytest.approx(2 * result.layer_half[1])
    assert (mean["name"], mean.unit, mean.images) == ("blocks.1.attn", "px", 5)
    assert list(rows.loc["head"].value) == pytest.approx(list(result.mean[1]))
    spectrum = frame[(frame.measure == "fourier") & (frame.layer == 0)]
    assert list(spectrum.frequency) == [0.5]  # K = 2 on a 4x4 grid, and 0 is the reference
    assert (
        frame[frame.quantity == "DC share of energy"].value.item() == analyses[0].results["dct_spectrum"].share_energy
    )


def test_heads_that_a_layer_does_not_have_are_not_in_the_table(analyses):
    frame = analyses[1].table()
    heads = frame[(frame.measure == "attention_nmi") & (frame.quantity == "head")].groupby("layer").size()
    assert list(heads) == [int(np.isfinite(row).sum()) for row in analyses[1].results["attention_nmi"].mean]


def test_the_table_for_reading_has_a_line_per_layer_and_says_what_was_refused(analyses):
    text = markdown(analyses)
    layers = max(len(each.results["fourier"].names) for each in analyses)
    assert f"\n| {layers - 1} " in text
    assert text.count("resnet18_mini (random): attention_distance, attention_nmi, attention_maps: ResNet has no") == 1
    assert number(-1.234, 0.1, 2) == "−1.23 ± 0.10"


def test_files_hold_arrays_figures_and_the_record(tmp_path, analyses):
    files = write(analyses, tmp_path / "new" / "folder", {"seed": 3})
    names = [path.name for path in files]
    figures = ("attention_distance", "attention_nmi", "fourier", "fourier_depth", "dct_spectrum", "attention_maps")
    assert {f"{name}.{ending}" for name in figures for ending in ("png", "svg")} < set(names)
    for name in figures:
        with Image.open(files[names.index(f"{name}.png")]) as image:
            assert image.width == 1440 or name == "attention_maps"  # 7.2 inches at 200 dpi
    with np.load(files[names.index("vit_s16_mini_random.npz")]) as arrays:
        depth, heads = analyses[0].results["attention_distance"].mean.shape
        assert arrays["attention_distance.mean"].shape == (depth, heads)
        assert arrays["attention_maps.block_1"].shape[:2] == (4, heads)
    record = json.loads(files[names.index("analysis.json")].read_text())
    assert (record["seed"], len(record["models"]), record["models"][0]["images"]) == (3, 3, 5)
    assert len(pd.read_csv(files[0])) == sum(len(each.table()) for each in analyses)
    assert all(path.stat().st_size for path in files)


def test_equal_analyses_give_equal_figures(tmp_path, analyses):
    some = replace(analyses[0], results={name: analyses[0].results[name] for name in ("fourier", "attention_maps")})
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        draw([some], tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_more_models_than_colours_have_signs_of_their_own(analyses):
    figure = depth_figure({f"model {index}": analyses[0].results["fourier"] for index in range(9)})
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in figure.axes[0].get_lines()}
    assert len(looks) == 9


def test_extreme_maps_are_drawn(tmp_path):
    """Nothing but zeros, and one cell."""
    maps = MapsResult(np.zeros((1, 8, 8, 3)), {1: np.ones((1, 2, 1, 1))}, (0, 0), 8.0, (8, 8))
    net = timm.create_model("test_resnet")
    net.norm = torch.nn.Identity()
    for parameter in net.parameters():
        parameter.data.zero_()
    found = analyse(net, torch.rand(2, 3, 32, 32), ["fourier", "dct_spectrum"])
    found.results["attention_maps"] = maps
    draw([found], tmp_path)


def test_models_of_one_name_are_told_apart_by_the_caller(analyses, tmp_path):
    with pytest.raises(ValueError, match="needs a name of its own"):
        write([analyses[0], Analysis(model="vit_s16_mini random", size=(32, 32))], tmp_path)
    assert slug("a b/c (d)") == "a_b_c_d"


@pytest.mark.long
@pytest.mark.slow
def test_memory_does_not_grow_from_a_thousand_to_ten_thousand_images(tmp_path):
    picture(tmp_path / "0.png", 16, 16)
    for index in range(1, 10_000):
        os.link(tmp_path / "0.png", tmp_path / f"{index}.png")
    code = f"""
from analysis.measure import analyse
for limit in (200, 1000, 10000):
    found = analyse("vit_s16_mini", {str(tmp_path)!r}, random=True, limit=limit)
    assert found.images == limit
    print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    _, few, many = (int(line) / 2**10 for line in done.stdout.split())
    assert many - few < 4  # MiB, of which the names take one
