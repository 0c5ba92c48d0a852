"""docs/scalekd-recipes.md: our recipes beside the settings that ScaleKD released, differing entries marked.

Released settings stand in experiments/published/scalekd.yaml (`recipes`), ours in the `paper` profile. `hkd docs`
writes the page, and a test compares it with what it follows from.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from experiments.planning import schema
from hkd.spec import Recipe

PROFILE = "paper"
NAMES = {  # released recipe -> ours, and for which students
    "traditional_resnet50": {"traditional": "ResNet-50"},
    "traditional_mobilenetv1": {"traditional_mobilenet": "MobileNet-V1"},
    "advanced_resnet50": {"advanced_resnet": "ResNet-50"},
    "advanced_vit_swin_convnext": {"advanced_vit": "ViT", "advanced_swin": "Swin-T", "advanced_convnext": "ConvNeXt-T"},
    "advanced_mixer": {
        "advanced_mixer_s": "Mixer-S/16",
        "advanced_mixer_b16": "Mixer-B/16",
        "advanced_mixer_b14": "Mixer-B/14",
    },
}
OF_SOME = {  # endings of released settings that are for some of a recipe's students -> ours
    "_vit_swin": ("advanced_vit", "advanced_swin"),
    "_swin_t": ("advanced_swin",),
    "_convnext_t": ("advanced_convnext",),
    "_mixer_s16": ("advanced_mixer_s",),
    "_mixer_b14": ("advanced_mixer_b14",),
    "_mixer_b": ("advanced_mixer_b16", "advanced_mixer_b14"),
}
TRANSFER = {
    "coco_cnn": "COCO, ResNet-50",
    "coco_swin": "COCO, Swin-T",
    "ade20k_cnn": "ADE20K, ResNet-50",
    "ade20k_swin": "ADE20K, Swin-T",
    "ade20k_vit": "ADE20K, ViT-B/16",
}
MACHINES = ("gpus", "batch_per_gpu")  # how the global batch was spread, which is no setting of ours
OPTIMIZERS = {"momentum": "SGD", "sgd": "SGD (Nesterov)", "lamb": "LAMB", "adamw": "AdamW"}
LEVELS = {7: 8, 9: 10, 12: 15}  # magnitude of RandAugment in the released code -> how many levels it counts
SAME, DIFFERS, NONE = "", "**differs**", "–"


def schedule(recipe: Recipe) -> str:
    """As the released recipes are described: `linear warm-up 5 epochs from 0.25 x lr, cosine to 1e-05`."""
    parts = []
    if recipe.warmup_epochs:
        start = f" from {recipe.warmup_lr / recipe.lr:g} x lr" if recipe.warmup_lr else ""
        parts.append(f"linear warm-up {recipe.warmup_epochs:g} epochs{start}")
    if recipe.schedule == "step":
        parts.append(f"step, x0.1 at epochs {', '.join(f'{epoch:g}' for epoch in recipe.milestones)}")
    else:
        parts.append(recipe.schedule + (f" to {recipe.min_lr:g}" if recipe.min_lr else ""))
    return ", ".join(parts)


def augmentation(recipe: Recipe) -> str:
    """Crop and flip in words."""
    crop = {"resized": "random resized crop 224", "pad": "padded crop", "none": "no crop"}[recipe.crop]
    return crop + (", horizontal flip" if recipe.flip else "")


FIELDS: Mapping[str, Callable[[Recipe], Any]] = {
    "batch_size": lambda recipe: recipe.batch_size,
    "optimizer": lambda recipe: OPTIMIZERS.get(recipe.optimizer, recipe.optimizer),
    "lr": lambda recipe: recipe.lr,
    "momentum": lambda recipe: recipe.momentum,
    "betas": lambda recipe: list(recipe.betas or (0.9, 0.999)),
    "weight_decay": lambda recipe: recipe.weight_decay,
    "lr_schedule": schedule,
    "epochs": lambda recipe: recipe.epochs,
    "augmentation": augmentation,
    "label_smoothing": lambda recipe: recipe.label_smoothing,
    "loss": lambda recipe: {"bce": "binary cross-entropy (sigmoid)", "ce": "cross-entropy"}[recipe.loss],
    "clip_grad": lambda recipe: recipe.clip_grad,
    "randaugment": lambda recipe: recipe.randaugment,
    "random_erasing": lambda recipe: recipe.erasing,
    "ema_momentum": lambda recipe: None if recipe.ema_decay is None else round(1 - recipe.ema_decay, 8),
    "drop_path": lambda recipe: recipe.drop_path or 0,
    "mixup": lambda recipe: recipe.mixup or None,
    "cutmix": lambda recipe: recipe.cutmix or None,
    "sync_bn": lambda recipe: False,  # batch norms see their device's share
}


def page() -> str:
    """The whole page."""
    released = {entry["id"]: entry for entry in schema.load_published("scalekd").recipes}
    recipes = schema.load_profile(PROFILE).recipes
    lines = [
        "# ScaleKD: our recipes beside the released ones",
        "",
        "Tables 10 and 11 of the paper are its settings; their cells are in no source that was found. What it released",
        "are configuration files, read into `experiments/published/scalekd.yaml`; ours are of the `paper` profile. The",
        "last column says where they differ; where it is empty they are the same. RandAugment's magnitudes are",
        "compared as shares: the released code counts to 8, 10 or 15, timm to 10. `hkd docs` writes this page.",
    ]
    for name, ours in NAMES.items():
        lines += ["", *section(released[name], {key: recipes[key] for key in ours}, ours)]
    mobile = fields(recipes["advanced_mobilenet"])
    lines += [
        "",
        "## Not released",
        "",
        "Of MobileNet-V1 by the advanced strategy no file was released; the LAMB schedule of its student's file, which",
        f"the traditional strategy does not inherit, is taken for it. Ours (`advanced_mobilenet`): {mobile}.",
        "",
        "Settings of the transfer to COCO and ADE20K (the paper's Table 11) were found in no source. Ours:",
        "",
        "| for | recipe | settings |",
        "| --- | --- | --- |",
        *(f"| {what} | `{key}` | {fields(recipes[key])} |" for key, what in TRANSFER.items()),
    ]
    return "\n".join(lines) + "\n"


def section(entry: Mapping[str, Any], recipes: Mapping[str, Recipe], students: Mapping[str, str]) -> Iterator[str]:
    """One released recipe: a line for each of its settings."""
    yield f"## {entry['what'][0].upper()}{entry['what'][1:]}"
    yield ""
    ours = ", ".join(f"`{name}` ({student})" for name, student in students.items())
    yield f"Ours: {ours}. Released: {entry['source']}."
    if note := entry.get("note"):
        yield f"{note[0].upper()}{note[1:].rstrip('.')}."
    yield ""
    yield "| setting | released | ours | |"
    yield "| --- | --- | --- | --- |"
    for key, value in entry["values"].items():
        mine, mark = beside(key, value, recipes, students)
        yield f"| {key} | {shown(value)} | {mine} | {mark} |"


def beside(key: str, value: Any, recipes: Mapping[str, Recipe], students: Mapping[str, str]) -> tuple[str, str]:
    """What our recipes have for a released setting, and whether it is that.

    Args:
        key: of the released setting; its ending may say which students it is for.
        value: that was released.
        recipes: ours, by name.
        students: that these are for.
    """
    if key in MACHINES:
        return NONE, "any number of devices"
    ending = next((each for each in OF_SOME if key.endswith(each)), "")
    read = FIELDS[key.removesuffix(ending)]
    concerned = OF_SOME[ending] if ending else tuple(recipes)
    values = {name: read(recipe) for name, recipe in recipes.items() if name in concerned}
    texts = {name: shown(each) for name, each in values.items()}
    one = len(set(texts.values())) == 1
    ours = (
        next(iter(texts.values())) if one else "; ".join(f"{text} ({students[name]})" for name, text in texts.items())
    )
    apart = [students[name] for name, each in values.items() if not same(value, each)]
    return ours, SAME if not apart else DIFFERS if one else f"{DIFFERS}: {', '.join(apart)}"


def same(released: Any, ours: Any) -> bool:
    """Whether a released setting and ours say the same: numbers by value, RandAugment by the share of its magnitude."""
    if isinstance(released, str) and (found := re.search(r"magnitude (\d+)", released)):
        mine = re.search(r"-m([\d.]+)", str(ours))
        return mine is not None and math.isclose(float(mine[1]) / 10, int(found[1]) / LEVELS[int(found[1])])
    if isinstance(released, str) and isinstance(ours, str):
        return released.replace(" then ", " ").replace("1e-5", "1e-05") == ours
    return bool(released == ours)


def shown(value: Any) -> str:
    """A setting as it is printed."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def fields(recipe: Recipe) -> str:
    """What a recipe says that is not its field's default, in words of the recipe."""
    default = Recipe(epochs=1, batch_size=1)
    names = [name for name in Recipe.__dataclass_fields__ if getattr(recipe, name) != getattr(default, name)]
    return ", ".join(f"{name} {shown(getattr(recipe, name))}" for name in names)
