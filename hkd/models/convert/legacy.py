"""Checkpoints in the layouts of older timm versions (0.6.5: the OFA release) and of the models' authors.

timm 0.6.5 has Swin's down-sampling at the end of a stage, keeps buffers that are derived, and calls the classifier
`head`; today's has it at the start of the next stage, and `head.fc`. Of our models only Swin is known to differ.
timm's own filter of a model's module renames; nothing here resizes, and what does not fit exactly is refused.
"""

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from hkd.errors import UserError
from hkd.files import sha256
from hkd.models.convert.files import check_target, fitted, not_finite, other_kind, read_weights, write_converted
from hkd.models.tap_model import TapModel
from hkd.spec import ModelCard


def modernise(state: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Weights under the names of today's timm; those that have them already come back as they are.

    Args:
        state: weights by name, in this or an older layout.
        net: the model they are for; not changed.

    Returns:
        Exactly the names and shapes of `net.state_dict()`.

    Raises:
        UserError: something is missing, left over, of another shape, or would have to be resized or made up.
    """
    own = net.state_dict()
    found = fitted(state, net)
    if found.keys() != own.keys():
        found = fitted(_renamed(found, net), net)
    for what, names in (
        ("it lacks", [name for name in own if name not in found]),
        ("it also has", [name for name in found if name not in own]),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(
                f"These are weights of another architecture than {type(net).__name__}: {what} {names[0]:.120}{more}."
            )
    for name, value in found.items():
        if value.shape != own[name].shape:
            shapes = f"{tuple(value.shape)} instead of {tuple(own[name].shape)}"
            raise UserError(
                f"These are weights of another {type(net).__name__}, or for other classes: {name} is {shapes}."
            )
        if other_kind(value, own[name]):
            raise UserError(f"These are no weights of {type(net).__name__}: {name} is of the type {value.dtype}.")
    if broken := not_finite(found, net):
        raise UserError(f"{broken} holds NaN or infinities, as after a training that diverged; take other weights.")
    return {name: found[name] for name in own}


def _renamed(state: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """What timm's filter makes of a state, as long as it renames one to one; else the state unchanged."""
    rename = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if rename is None:
        return state
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of resizing, which is refused below
            renamed = rename(dict(state), net)
    except Exception:  # so do filters of timm meet names that they do not know
        return state
    given = {value.untyped_storage().data_ptr() for value in state.values()}
    if new := [name for name, value in renamed.items() if value.untyped_storage().data_ptr() not in given]:
        kind = type(net).__name__
        raise UserError(f"These are weights of another {kind}: {new[0]} would have to be resized or made up.")
    return renamed if len(renamed) == len(state) else state


def convert(source: Path, card: ModelCard, num_classes: int, target: Path) -> str:
    """Write an old checkpoint as a weights file of this suite, with the SHA-256 of its source in the metadata.

    Args:
        source: .safetensors, or .pt/.pth holding tensors by name, possibly under "model" or "state_dict", as timm's
            training script saves them; code in it is never run.
        card: the model.
        num_classes: size of its classifier.
        target: .safetensors; its folder is made.

    Returns:
        SHA-256 of the target.

    Raises:
        UserError: the source is missing, damaged or of another model, or the target exists or cannot be written.
    """
    check_target(target)
    state = read_weights(source)
    net = TapModel(card, num_classes).net
    try:
        state = modernise(state, net)
    except UserError as error:
        raise UserError(f"{source} is not for {card.name} with {num_classes} classes. {error}") from error
    return write_converted(state, sha256(source), target)
