"""Weights on disk: strict loading from .safetensors and .pt files without running code, atomic saving, hashes."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from hkd.errors import UserError
from hkd.files import atomic_write, weights_sha256
from hkd.models.convert.files import check_size, fitted, not_finite, other_kind, read_weights

log = logging.getLogger(__name__)

SHOWN = 3  # names per kind of difference in a message


def load_weights(net: nn.Module, path: Path, expected_sha256: str | None = None) -> str:
    """Load a file strictly into a plain timm model: every key and every shape must agree.

    Differences that are not of architecture are bridged: those of `hkd.models.convert.files` (names behind `module.`,
    derived buffers, counters), and absolute position embeddings of another grid, which are resampled as timm does
    (EVA-L/14 of 196 px used at 224), logged.

    Args:
        net: the model, changed in place only if everything fits.
        path: .safetensors, or .pt/.pth holding tensors by name, possibly under "model" or "state_dict".
        expected_sha256: refuse a file of another name (`hkd.files.weights_sha256`).

    Returns:
        The file's name.

    Raises:
        UserError: the file is missing, truncated, of another kind, hash or architecture, or holds pickled code.
    """
    check_size(path)
    found = weights_sha256(path)
    if expected_sha256 is not None and found != expected_sha256.lower():
        raise UserError(f"{path} has SHA-256 {found}, but {expected_sha256} was asked for; get that file again.")
    state = _adapted(net, read_weights(path))
    own = net.state_dict()
    differences = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
        "of another type": [
            f"{name} {state[name].dtype} instead of {own[name].dtype}"
            for name in own
            if name in state and other_kind(state[name], own[name])
        ],
    }
    if any(differences.values()):
        shown = "; ".join(f"{kind}: {_first(names)}" for kind, names in differences.items() if names)
        raise UserError(f"{path} holds weights of another architecture than this {type(net).__name__} ({shown}).")
    if name := not_finite(state, net):
        raise UserError(
            f"{path}: {name} holds NaN or infinities, as after a training that diverged; take other weights."
        )
    net.load_state_dict(state)
    return found


def save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name as .safetensors, atomically: a reader sees the old file, the new one, or none.

    Tensors are written contiguous and each with its own storage, so equal states give equal bytes.

    Args:
        state: as from `state_dict()`.
        path: its folder must exist.
    """
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()
    }
    with atomic_write(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors))


def _adapted(net: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state as `fitted` has it, with position embeddings on the model's grid."""
    own = net.state_dict()
    state = fitted(state, net)
    given, wanted = state.get("pos_embed"), own.get("pos_embed")
    grid = getattr(getattr(net, "patch_embed", None), "grid_size", None)
    if given is None or wanted is None or grid is None or given.shape == wanted.shape or given.ndim != 3:
        return state
    if given.shape[::2] != wanted.shape[::2]:
        return state
    prefix = wanted.shape[1] - math.prod(grid)
    side = math.isqrt(max(given.shape[1] - prefix, 0))
    if side**2 + prefix == given.shape[1]:
        log.info("position embeddings resampled from a %dx%d grid to %dx%d", side, side, *grid)
        state["pos_embed"] = resample_abs_pos_embed(given, list(grid), [side, side], prefix)
    return state


def _first(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(name[:120] for name in names[:SHOWN]) + more
