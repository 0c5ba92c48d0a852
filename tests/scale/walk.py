"""The paper's profile walked through: a fake ImageNet tree, fake COCO and ADE20K, random weights, small timm models.

Nothing of it can be learned from. It has what the real thing has and small tests forget: a thousand folders, images of
every odd kind, weights from files, recipes with RandAugment, erasing, resized crops, bf16, heads and masks.
"""

import io

import numpy as np
import torch
from PIL import Image

from hkd.data.dense import write_coco
from hkd.data.scenes import Scenes
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel
from hkd.models.weights import save_weights

CLASSES = 1000
ROTATED = 6  # EXIF's orientation of a camera held upright
PAIRS = {  # the table, and how many runs its one pair takes
    "scalekd_table3": 4,
    "hcd_imagenet1k": 6,
    "hgkd_resnet50": 5,
    "hybrid_table1": 4,
}
PROFILE = """\
extends: paper
alone: [data, models, teachers, students, methods, tasks, machine]
title: the paper's profile with fake images, small models and one epoch
by_value: false
model_kind: miniature
data:
  imagenet1k:
    name: imagenet1k
    options: &tree {image_size: 32, expected: {classes: 1000, train: 1000, test: 1000}}
    stand_in: fake images
  imagenet1k_unlabelled: {name: imagenet1k_unlabelled, options: *tree, stand_in: fake images}
  coco: {name: coco, options: {empty: false, image_size: 48, max_size: 64}, stand_in: fake scenes}
  ade20k: {name: ade20k, options: {image_size: 48, max_size: 64, classes: 11}, stand_in: fake maps}
models: {swin_l: swin_l_mini, convnext_t: convnext_t_mini, swin_t_ofa: swin_t_ofa_mini, resnet18: resnet18_mini,
  sparse_resnet50: sparse_resnet50_mini, mae_b16: mae_b16_mini, hybrid_b16: hybrid_b16_mini}
teachers:
  swin_l: {weights: swin_l.safetensors}
  swin_t_ofa: {weights: swin_t_ofa.safetensors}
  mae_b16: {weights: mae_b16.safetensors, classes: 0}
students:
  convnext_t: {advanced: advanced_convnext}
  resnet18: {imagenet: ofa_cnn}
  sparse_resnet50: {pretrain: masked, finetune: masked_tune}
  hybrid_b16: {hybrid_long: hybrid_long, finetune: hybrid_tune, detect: coco_vit, segment: ade20k_vit}
override: {epochs: 1, batch_size: BATCH, warmup_epochs: 0.0}
methods:
  scalekd: {heads_s3: 4, heads_s4: 4}
  hybrid: {depth: 4, class_token: false, decoder_width: 64, decoder_heads: 4}
  hgkd: {queue_size: 500, width: 64}
  masked_pixels: {image_size: 32, width: 64}
tasks:
  detect: {width: 48, strides: [4, 8], pooled_levels: 2, anchors: [14.0, 22.0], rpn_pre_nms: [200, 200],
    rpn_post_nms: [100, 100], rpn_samples: 64, box_samples: 32, box_roi: 5, box_width: 128, mask_roi: 7, mask_layers: 2}
  segment: {head: fpn, width: 48, pyramid: [2.0, 2.0, 1.0, 0.5], loss: sqrt, auxiliary: 0.0, dropout: 0.0,
    scale: [1.0, 1.0], crop: null}
machine: MACHINE
"""


def write(root, *, machine, batch=16):
    """Data, weights and profile of the walk, below a folder.

    Args:
        root: gets data/, weights/ and walk.yaml.
        machine: the profile's, as YAML.
        batch: images of one step: a thousand are an epoch, and sixteen are all scenes.
    """
    write_images(root / "data" / "imagenet")
    write_scenes(root / "data")
    (root / "weights").mkdir()
    torch.manual_seed(0)
    for slug, classes in (("swin_l", CLASSES), ("swin_t_ofa", CLASSES), ("mae_b16", 0)):
        net = TapModel(ZOO[f"{slug}_mini"], classes).net
        save_weights(net.state_dict(), root / "weights" / f"{slug}.safetensors")
    write_profile(root, machine=machine, batch=batch)


def write_profile(root, *, machine, batch=16):
    """The profile alone."""
    (root / "walk.yaml").write_text(PROFILE.replace("MACHINE", machine).replace("BATCH", str(batch)))


def write_images(folder):
    """A thousand class folders of one image each, for training and validation: of all kinds, in turn."""
    kinds = list(odd_images().values())
    for part in ("train", "val"):
        for label in range(CLASSES):
            place = folder / part / f"n{label:08d}"
            place.mkdir(parents=True)
            (place / f"n{label:08d}_1.JPEG").write_bytes(kinds[label % len(kinds)])


def odd_images():
    """Files as ImageNet has them, by kind: all are named .JPEG there."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = ROTATED
    return {
        "plain": saved(image),
        "grey": saved(image.convert("L")),
        "CMYK": saved(image.convert("CMYK")),
        "rotated": saved(image, exif=exif),
        "PNG": saved(image, "PNG"),
        "PNG with alpha": saved(image.convert("RGBA"), "PNG"),
        "progressive": saved(image, progressive=True),
        "of one line": saved(image.resize((64, 1))),
    }


def saved(image, kind="JPEG", **options):
    """An image as the bytes of a file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def write_scenes(root):
    """Scenes of digits in the places and forms of COCO and ADE20K."""
    scenes = Scenes({"n_train": 16, "n_test": 4}, root)
    splits = {part: scenes.load_dense(part, seed=0, select=False) for part in ("train", "test")}
    for part, name in (("train", "train2017"), ("test", "val2017")):
        write_coco(splits[part], root / "coco", name)
    for part, folder, prefix in (("train", "training", "ADE_train_"), ("test", "validation", "ADE_val_")):
        places = [root / "ADEChallengeData2016" / kind / folder for kind in ("images", "annotations")]
        for place in places:
            place.mkdir(parents=True)
        split = splits[part]
        for number in range(len(split)):
            name = f"{prefix}{number:08d}"
            Image.fromarray(split.images[number].transpose(1, 2, 0)).save(places[0] / f"{name}.jpg")
            Image.fromarray(split.maps[number] + np.uint8(1)).save(places[1] / f"{name}.png")
