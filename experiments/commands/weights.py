"""`hkd weights` and `hkd teachers`: published weights."""

from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rich.text import Text

from experiments import places
from experiments.commands.app import app, weights_app
from experiments.commands.given import Whole
from experiments.commands.printed import out, tell_stand_ins
from experiments.grids import new_table
from experiments.planning import schema, standins
from experiments.records.store import Store
from hkd.errors import UserError
from hkd.registry import lookup

if TYPE_CHECKING:
    from hkd.spec import ModelCard

MANIFEST = "experiments/manifests/teachers.yaml"
PATIENCE_S = 8.0  # to wait for a host
ELSEWHERE = (
    "Set HF_ENDPOINT to a mirror that answers, or HF_HOME to a folder of downloads that has them, or bring the file "
    "from another machine and make it ours with `hkd weights convert`."
)


@weights_app.command
def fetch(name: str) -> int:
    """Get the published weights of a model through timm, as safetensors in the weights folder.

    Args:
        name: of a model in hkd/models/cards/zoo.py, such as swin_s, or of timm, such as resnet18.a1_in1k.
    """
    from experiments.teachers import record_sha256, stated_sha256
    from hkd.models.cards.named import card_of
    from hkd.models.cards.zoo import ZOO

    card = card_of(name)
    if card.pretrained is None:
        known = ", ".join(sorted(model for model, other in ZOO.items() if other.pretrained))
        raise UserError(f"Model '{name}' has no published weights. Those that have: {known}.")
    path = places.weights() / f"{name}.safetensors"
    if path.exists():
        raise UserError(f"{path} is there already; delete it to get it again.")
    # Teachers of Hybrid Distill are encoders at the card's own size: without CLIP's projection, positions resampled.
    options = {**card.kwargs, "num_classes": 0} if card.family == "view_vit" else {}
    stated = stated_sha256(name)
    reachable(card)
    digest = fetch_weights(card.pretrained, path, options)
    if stated not in (None, digest):
        path.unlink()
        raise UserError(
            f"What arrived for {card.pretrained} has SHA-256 {digest}, and {MANIFEST} says {stated}: it was deleted. "
            "Get it from another place, or correct the manifest if you know that the weights were published anew."
        )
    kept = stated is not None or (name in ZOO and record_sha256(name, digest))
    if stated is not None:
        said = f"as in {MANIFEST}"
    else:
        said = "which nobody had stated: trusted on first use" + (f", kept in {MANIFEST}" if kept else "")
    out().print(Text(f"{card.pretrained} -> {path}\nSHA-256 {digest}, {said}"))
    return 0


@weights_app.command
def convert(card: str, source: Path, *, classes: Whole = 1000) -> int:
    """Make a checkpoint of an older timm, or of a model's authors, a weights file of this suite.

    Args:
        card: name of its model in hkd/models/cards/zoo.py, such as swin_t.
        source: .pth, .pt or .safetensors with tensors by name; code in it is never run.
        classes: of its classifier; other than 1000, the file's name says so. Encoders of masked image modelling (MAE,
            BEiT, CAE) have none, and this is not read.
    """
    from hkd.models.cards.zoo import ZOO

    model = lookup("model", card, ZOO)
    if model.family in ("mim_vit", "beit"):
        from hkd.models.convert.mim_checkpoints import convert_file as convert_weights

        classes, path = 0, places.weights() / f"{card}.safetensors"
    else:
        from hkd.models.convert.legacy import convert as convert_weights

        if classes < 1:
            raise UserError(f"--classes is {classes}; it must be at least 1.")
        path = places.weights() / (f"{card}.safetensors" if classes == 1000 else f"{card}_{classes}classes.safetensors")
    digest = convert_weights(source, model, classes, path)
    out().print(Text(f"{source} -> {path}\nSHA-256 {digest}"))
    return 0


@app.command
def teachers(*, profile: str | None = None) -> int:
    """List the teachers: architecture, source, licence, SHA-256, and accuracy as published and as measured.

    The published accuracy is of the paper's teacher on the paper's data, whatever stands for them at the profile.

    Args:
        profile: scale; the default is in params.yaml.
    """
    from experiments.planning.schema import load_params
    from experiments.teachers import teachers as listed

    chosen = load_params().profile if profile is None else profile

    shown = new_table(
        "teacher", "architecture", "made here by", "published weights", "licence", "SHA-256", "published", "source"
    )
    shown.add_column("measured", justify="right")
    for facts in listed(chosen, Store(places.runs())):
        entry, arch = facts.entry, facts.card.arch.rpartition(":")[2]
        texts = [facts.name, f"{facts.card.name} ({arch})", facts.made, entry.weights or "", entry.licence or ""]
        texts += [(facts.sha256 or "")[:12], "" if entry.published is None else f"{entry.published:.2f}"]
        texts += [entry.source or "", measured_text(facts.measured, facts.committed)]
        shown.add_row(*map(Text, texts))
    out().print(shown)
    tell_stand_ins(standins.of_profile(schema.load_profile(chosen)))
    return 0


def measured_text(measured: tuple[str, float] | None, committed: str | None) -> str:
    """A teacher's measured value; what it is unless it is plain accuracy, and that it is committed where it is."""
    if measured is None:
        return "not yet"
    metric, value = measured
    notes = [text for text in ("" if metric == "top1" else metric, committed) if text]
    return f"{value:.2f}" + (f" ({', '.join(notes)})" if notes else "")


def reachable(card: "ModelCard") -> None:
    """Raise UserError within `PATIENCE_S` where the host of a model's published weights cannot be reached.

    Libraries try again for minutes. Asked once, by the hub's own client: with its proxies and certificates. Nothing is
    asked where the file is here already.
    """
    import timm
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    from experiments.weights import on_this_machine

    assert card.pretrained is not None
    cfg: Any = timm.get_pretrained_cfg(card.pretrained)
    if on_this_machine(card)[0] is not None:
        return
    place = constants.ENDPOINT if cfg.hf_hub_id else cfg.url
    answered: list[bool] = []

    def ask() -> None:
        with suppress(Exception):  # of whichever library is the hub's client: no answer is no answer
            get_session().head(place, timeout=PATIENCE_S)
            answered.append(True)

    if not constants.HF_HUB_OFFLINE:
        asking = Thread(target=ask, daemon=True)  # looking up a name takes as long as it likes
        asking.start()
        asking.join(PATIENCE_S)
    if not answered:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{urlsplit(place).hostname} does not answer"
        raise UserError(f"The weights '{card.pretrained}' cannot be downloaded: {why}. {ELSEWHERE}")


def fetch_weights(pretrained: str, path: Path, options: dict[str, Any]) -> str:
    """Download timm's `name.tag` to a file and return its SHA-256.

    Args:
        pretrained: name and tag.
        path: of the file.
        options: of timm.create_model.

    Raises:
        UserError: it cannot be downloaded or written.
    """
    import timm

    from hkd.files import weights_sha256
    from hkd.models.weights import save_weights

    try:
        state = timm.create_model(pretrained, pretrained=True, **options).state_dict()
        path.parent.mkdir(parents=True, exist_ok=True)
        save_weights(state, path)
    except (OSError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"The weights '{pretrained}' could not be put at {path}: {type(error).__name__}: "
            f"{first.rstrip('.')}. {ELSEWHERE}"
        ) from error
    return weights_sha256(path)
