"""What all readers of weights share: a file of anybody's becomes tensors by name, without running anything in it.

One tolerance for our own files, timm's and the authors': tensors lie at the top or under "model" or "state_dict";
`module.` and `_orig_mod.` before all names go; buffers that models derive are left out; counters of batch norms, which
torch before 0.4.1 did not have, are zero. The command line, paths, and NumPy's numbers and arrays beside the weights
are passed over unread. Everything else is refused in a sentence.
"""

import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from hkd.errors import UserError
from hkd.files import atomic_write, weights_sha256
from hkd.models.convert.storages import claimed

SUFFIXES = (".safetensors", ".pt", ".pth", ".pth.tar")  # the last is what timm's training script writes
WRAPPERS = ("model", "state_dict")
ZIP = b"PK\x03\x04"
PREFIXES = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before every name
DERIVED = ("relative_position_index", "attn_mask")  # buffers that older checkpoints hold and models rebuild
COUNTER, BESIDE = "num_batches_tracked", "running_mean"  # of a batch norm: younger than the other


class PassedOver:
    """Stands for a value beside the weights that is of no use: takes what its pickle gives it, and keeps nothing."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


PASSED_OVER = (
    "argparse.Namespace",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "mmengine.logging.history_buffer.HistoryBuffer",  # what OpenMMLab's training keeps beside its weights
    "builtins.getattr",
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by bare name, on the CPU.

    Raises:
        UserError: no file, another kind of file, truncated, larger than memory or than it is, with pickled code, or
            without plain tensors by name.
    """
    check_size(path)
    content: Any = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no tensors by name, neither at its top nor under 'model' or 'state_dict'.")
    for name, value in content.items():
        if not isinstance(name, str):
            raise UserError(f"{path} names a tensor {name!r:.80}, which is no string: names are those of a state dict.")
        if problem := _problem(value):
            raise UserError(f"{path}: {name:.80} is {problem}; save plain tensors of numbers.")
    return bare(content)


def classes_of(classifier: Tensor | None) -> int:
    """C of a classifier's weights [C, ...]; 0 where there are none."""
    return 0 if classifier is None or not classifier.numel() or not classifier.ndim else len(classifier)


def check_size(path: Path) -> None:
    """Look at a file before it is hashed or read.

    Raises:
        UserError: there is none, its suffix is another, or it is larger than this machine's memory.
    """
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{path} is not a weights file this suite reads; it takes {', '.join(SUFFIXES)}.")
    if not os.path.isfile(path):
        raise UserError(f"There is no weights file {path}.")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if (size := path.stat().st_size) > memory:
        raise UserError(f"{path} has {size / 2**30:.1f} GiB, and this machine {memory / 2**30:.1f} GiB of memory.")


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error}).") from error
    except (OSError, RuntimeError, ValueError, KeyError, AttributeError) as error:  # a type that torch has not
        raise UserError(f"{path} cannot be read as safetensors ({error}).") from error


def _pickled(path: Path) -> Any:
    """What a PyTorch file holds; only what tensors need of it is carried out."""
    stored = path.stat().st_size
    try:
        with open(path, "rb") as file:
            zipped = file.read(len(ZIP)) == ZIP  # by which torch tells them apart
            file.seek(0)
            if zipped:
                with zipfile.ZipFile(file) as archive:
                    wanted = sum(entry.file_size for entry in archive.infolist())
            else:
                wanted = claimed(file)
        if wanted > stored:
            what = "would unpack to" if zipped else "claims to hold tensors of"
            raise UserError(f"{path} has {stored} bytes and {what} {wanted}; PyTorch packs nothing.")
        with warnings.catch_warnings(), torch.serialization.safe_globals([(PassedOver, name) for name in PASSED_OVER]):
            warnings.simplefilter("ignore")  # torch warns of an unusual pickle protocol, then reads or refuses the file
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except (EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is truncated or not a PyTorch file; get that file again.") from error
    except Exception as error:  # bytes can make torch's reader raise anything, pickle.UnpicklingError to MemoryError
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        named = f" It asks for {asked[1]}." if asked else ""
        raise UserError(
            f"{path} is damaged or holds pickled code, which is never run; convert it to tensors.{named}"
        ) from error


def _problem(value: Tensor) -> str | None:
    """What a tensor is, if it is not an array of numbers on the CPU that is as large as it says."""
    if value.layout != torch.strided:
        return f"sparse ({value.layout})"
    if value.is_quantized or value.is_complex():
        return f"of the type {value.dtype}"
    if value.device.type != "cpu":
        return f"without values (on the device {value.device.type})"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"one value shown many times, {tuple(value.shape)}"
    return None


def bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state without what wrappers of a module put before every name."""
    found = dict(state)
    while prefix := next((p for p in PREFIXES if found and all(name.startswith(p) for name in found)), None):
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def fitted(state: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """The state with bare names, without buffers that a model derives, and with the counters of its batch norms.

    Args:
        state: by name.
        net: the model it is for; not changed.
    """
    own = net.state_dict()
    found = dict(state) if state.keys() == own.keys() else bare(state)
    found = {name: value for name, value in found.items() if name in own or not name.endswith(DERIVED)}
    for name in own:
        if name.endswith(COUNTER) and name not in found and name.replace(COUNTER, BESIDE) in found:
            found[name] = torch.zeros_like(own[name])
    return found


def not_finite(state: Mapping[str, Tensor], net: nn.Module) -> str | None:
    """Name of a parameter of the model whose values in the state are not all finite: its training had diverged."""
    own = dict(net.named_parameters())
    found = ((name, value.to(own[name].dtype)) for name, value in state.items() if name in own)
    return next((name for name, value in found if not torch.isfinite(value).all()), None)


def other_kind(given: Tensor, wanted: Tensor) -> bool:
    """Whether whole numbers or truth values stand where numbers with a point should, or the other way round."""
    return given.is_floating_point() != wanted.is_floating_point()


def check_target(target: Path) -> None:
    """Raise a UserError if a converted file cannot have this name."""
    if target.suffix != ".safetensors":
        raise UserError(f"{target} must end in .safetensors.")
    if target.exists():
        raise UserError(f"{target} is there already; delete it to write it again.")


def write_converted(state: Mapping[str, Tensor], source_sha256: str, target: Path) -> str:
    """Write tensors by name as a weights file of this suite, with the SHA-256 of their source in its metadata.

    Args:
        state: as from `state_dict()`.
        source_sha256: of the file they come from.
        target: its folder is made.

    Returns:
        Name of the target (`hkd.files.weights_sha256`).

    Raises:
        UserError: it cannot be written.
    """
    tensors = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    # One entry only: safetensors writes several in no fixed order, and a file is known by the hash of its bytes.
    content = safetensors.torch.save(tensors, metadata={"source_sha256": source_sha256})
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise UserError(f"{target} could not be written: {error.strerror}.") from error
    return weights_sha256(target)
