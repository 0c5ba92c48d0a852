"""Weights on disk: strict loading from .safetensors and .pt files without running code, atomic saving, hashes."""

import logging
import math
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from hkd.errors import UserError
from hkd.files import atomic_write, sha256

log = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pt", ".pth")
DERIVED = ("relative_position_index", "attn_mask")  # buffers that older checkpoints hold and models rebuild
SHOWN = 3  # names per kind of difference in a message


def load_weights(net: nn.Module, path: Path, expected_sha256: str | None = None) -> str:
    """Load a file strictly into a plain timm model: every key and every shape must agree.

    Two differences are not of architecture and are bridged: buffers that the model derives itself are ignored, and
    absolute position embeddings of another grid are resampled as timm does (EVA-L/14 of 196 px used at 224), logged.

    Args:
        net: the model, changed in place only if everything fits.
        path: .safetensors, or .pt/.pth holding tensors by name, possibly under "model" or "state_dict".
        expected_sha256: refuse a file with another hash.

    Returns:
        The file's SHA-256.

    Raises:
        UserError: the file is missing, truncated, of another kind, hash or architecture, or holds pickled code.
    """
    if not path.is_file():
        raise UserError(f"There is no weights file {path}.")
    found = sha256(path)
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
    }
    if any(differences.values()):
        shown = "; ".join(f"{kind}: {_first(names)}" for kind, names in differences.items() if names)
        raise UserError(f"{path} holds weights of another architecture than this {type(net).__name__} ({shown}).")
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


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU.

    Raises:
        UserError: another kind of file, truncated, with pickled code, or without tensors by name.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} is not a weights file this suite reads; it takes {', '.join(SUFFIXES)}.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of an unusual pickle protocol, then reads or refuses the file
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error}).") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is damaged or holds pickled code, which is never run; convert it to tensors."
        ) from error
    except (EOFError, RuntimeError) as error:
        raise UserError(f"{path} is truncated or not a PyTorch file; get that file again.") from error
    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no tensors by name, neither at its top nor under 'model' or 'state_dict'.")
    return content


def _adapted(net: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state without derived buffers, and with position embeddings on the model's grid."""
    own = net.state_dict()
    state = {name: value for name, value in state.items() if name in own or not name.endswith(DERIVED)}
    given, wanted = state.get("pos_embed"), own.get("pos_embed")
    if given is None or wanted is None or given.shape == wanted.shape or given.shape[::2] != wanted.shape[::2]:
        return state
    grid = net.patch_embed.grid_size
    prefix = wanted.shape[1] - math.prod(grid)
    side = math.isqrt(max(given.shape[1] - prefix, 0))
    if side**2 + prefix == given.shape[1]:
        log.info("position embeddings resampled from a %dx%d grid to %dx%d", side, side, *grid)
        state["pos_embed"] = resample_abs_pos_embed(given, list(grid), [side, side], prefix)
    return state


def _first(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
