"""Checkpoints of masked image modelling, as their authors publish them, as weights of our encoders.

What a file is, is told by its names; decoders, heads of the pretext task and mask tokens are left behind, the rest is
renamed one to one, and what does not fit exactly is refused. The layouts, from the authors' code:

| of | file | encoder | left behind |
| --- | --- | --- | --- |
| MAE | `mae_pretrain_vit_base.pth` | `blocks.0.attn.qkv.bias`, `pos_embed`, `norm` | none |
| MAE | `mae_visualize_vit_base.pth`, full checkpoints | the same | `mask_token`, `decoder_...` |
| BEiT | `beit_base_patch16_224_pt22k.pth` | `blocks.0.attn.q_bias`, `rel_pos_bias.relative_position_bias_table`, `norm` | `mask_token`, `lm_head` |
| BEiT, fine-tuned | `..._pt22k_ft22k.pth` | a table per block, `fc_norm`, `head` | none |
| CAE | checkpoints of its repository | `encoder.blocks.0.attn.q_bias`, `encoder.pos_embed`, `encoder.norm` | `alignment_encoder`, `regresser`, `decoder`, `rd_pos_embed`, `encoder_to_regresser...`, `mask_token` |
| CAE, older | the same, before names were changed | the same | `teacher`, `pretext_neck`, `encoder_to_decoder...`, `mask_token` |

BEiT shares one table of relative positions between its blocks; a model with one per block gets a copy in each, as in
BEiT's own fine-tuning. A plain encoder without a head has the same names whoever trained it, so a headless ViT of timm
(or of DINO) counts as MAE's; its hash tells.
"""  # noqa: E501 (a table)

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from hkd.errors import UserError
from hkd.files import weights_sha256
from hkd.models.convert.files import DERIVED, bare, check_size, check_target, read_weights, write_converted
from hkd.models.convert.legacy import modernise
from hkd.models.tap_model import TapModel
from hkd.spec import ModelCard

Origin = Literal["mae", "beit", "cae", "timm", "beit2", "simmim", "spark", "unknown"]
Encoder = Literal["mae", "beit", "cae"]

SHOWN = {
    "mae": "MAE",
    "beit": "BEiT",
    "cae": "CAE",
    "timm": "a timm classifier",
    "beit2": "BEiT v2",
    "simmim": "SimMIM",
    "spark": "SparK",
    "unknown": "nothing that is known here",
}
LEFT_BEHIND = {
    "mae": r"mask_token$|decoder_(embed|pos_embed|blocks|norm|pred)\b",
    "beit": r"mask_token$|lm_head\.",
    "cae": r"(mask_token|rd_pos_embed)$|(teacher|alignment_encoder|pretext_neck|regresser|decoder)\.|"
    r"encoder_to_(decoder|regresser)(_norm)?\.",
}
SHARED, OWN = "rel_pos_bias.relative_position_bias_table", "attn.relative_position_bias_table"


def recognise(state: Mapping[str, Tensor]) -> Origin:
    """Who trained these weights, by their names.

    Returns:
        `timm`: a transformer with a classifier under the names of timm. `unknown`: none of the others.
    """
    names = list(bare(state))

    def has(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in names)

    if has(r"(sparse_encoder|dense_decoder|densify_\w+)\."):
        return "spark"
    if has(r"encoder\.mask_token$"):
        return "simmim"
    if has(r"encoder\.blocks\."):
        return "cae"
    if has(r"cls_pt_layers\."):
        return "beit2"
    if not has(r"blocks\.0\.attn\."):
        return "unknown"
    if has(r"blocks\.0\.attn\.q_bias$"):
        return "cae" if has("pos_embed$") and not has(r".*relative_position_bias_table$") else "beit"
    if has(r"decoder_blocks\."):
        return "mae"
    if has(r"(head|fc_norm)\."):
        return "timm"
    return "mae" if has("cls_token$") and has(r"blocks\.0\.attn\.qkv\.bias$") and has(r"norm\.") else "unknown"


def trained_as(net: nn.Module) -> Encoder:
    """Whose encoder a model is, by what it has: tables of relative positions BEiT's, its block without them CAE's, and
    a plain transformer MAE's."""
    names = net.state_dict().keys()
    if not any(name.endswith("attn.q_bias") for name in names):
        return "mae"
    return "beit" if any(name.endswith("relative_position_bias_table") for name in names) else "cae"


def convert(state: Mapping[str, Tensor], net: nn.Module, expected: Encoder) -> dict[str, Tensor]:
    """Weights of a checkpoint under the names of our encoder.

    Args:
        state: tensors by name, as published; names that timm gives already stay.
        net: the model they are for; not changed. Pre-trained encoders have no classifier: 0 classes.
        expected: whose they should be; a file of `timm` is taken if it fits.

    Returns:
        Exactly the names and shapes of `net.state_dict()`.

    Raises:
        UserError: a checkpoint of somebody else, who is named, or one that does not fit exactly.
    """
    found = recognise(state)
    if found not in (expected, "timm"):
        raise UserError(
            f"By its names this is a checkpoint of {SHOWN[found]}, and one of {SHOWN[expected]} was asked for: give "
            f"that, or take a model of the other kind."
        )
    state = bare(state)
    own = net.state_dict()
    kept = {
        name.removeprefix("encoder.") if expected == "cae" else name: value
        for name, value in state.items()
        if not re.match(LEFT_BEHIND[expected], name) and not name.endswith(DERIVED)
    }
    if SHARED in kept and SHARED not in own:
        table = kept.pop(SHARED)
        kept |= {name: table for name in own if name.endswith(OWN)}
    if "norm.weight" in kept and "fc_norm.weight" in own and "norm.weight" not in own:
        raise UserError(
            "This encoder norms its tokens before pooling, and the model after it: build the model with use_fc_norm "
            "(of a ViT: fc_norm) False."
        )
    if any(name.startswith("head.") for name in own) and not any(name.startswith("head.") for name in kept):
        raise UserError("This is an encoder without a classifier: build the model with 0 classes.")
    return modernise(kept, net)


def load_encoder(net: nn.Module, path: Path, expected: Encoder, expected_sha256: str | None = None) -> str:
    """Load a published checkpoint into our encoder, strictly.

    Args:
        net: the model, changed in place only if everything fits.
        path: .safetensors, or .pt/.pth holding tensors by name, possibly under "model"; code in it is never run.
        expected: whose checkpoint it should be.
        expected_sha256: refuse a file of another name (`hkd.files.weights_sha256`).

    Returns:
        The file's name.

    Raises:
        UserError: the file is missing, damaged, of another hash, of somebody else, or does not fit.
    """
    check_size(path)
    found = weights_sha256(path)
    if expected_sha256 is not None and found != expected_sha256.lower():
        raise UserError(f"{path} has SHA-256 {found}, but {expected_sha256} was asked for; get that file again.")
    state = read_weights(path)
    try:
        net.load_state_dict(convert(state, net, expected))
    except UserError as error:
        raise UserError(f"{path} cannot be loaded. {error}") from error
    return found


def convert_file(source: Path, card: ModelCard, num_classes: int, target: Path) -> str:
    """Write a published checkpoint as a weights file of this suite, with the SHA-256 of its source in the metadata.

    Args:
        source: as `path` of `load_encoder`.
        card: the encoder; whose checkpoint is expected follows from it (`trained_as`).
        num_classes: size of its classifier; 0 for pre-trained encoders.
        target: .safetensors; its folder is made.

    Returns:
        SHA-256 of the target.

    Raises:
        UserError: the source is missing, damaged, of somebody else or does not fit, or the target exists or cannot be
            written.
    """
    check_target(target)
    net = TapModel(card, num_classes).net
    digest = load_encoder(net, source, trained_as(net))
    return write_converted(net.state_dict(), digest, target)
