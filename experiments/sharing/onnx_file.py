"""model.onnx: the network on normalised images, checked by ONNX Runtime. Needs the extra `onnx`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hkd.errors import UserError

NEEDED = ("onnx", "onnxscript", "onnxruntime")


def write_onnx(net: nn.Module, images: Tensor, wanted: Tensor, path: Path, tolerance: float) -> float:
    """Write a network with a free batch size, and compare it with itself.

    Args:
        net: in evaluation mode.
        images: normalised, [B, 3, S, S].
        wanted: its logits for them, [B, C].
        path: of the file.
        tolerance: largest difference of a logit.

    Returns:
        The largest difference.

    Raises:
        UserError: a package is missing, PyTorch cannot export the network, or ONNX Runtime computes something else.
    """
    runtime = packages()
    try:
        program = torch.onnx.export(
            net,
            (images,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(str(path))
    except (RuntimeError, ValueError, torch.onnx.OnnxExporterError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"PyTorch {torch.__version__} cannot write this model as ONNX ({first.rstrip('.')})."
        ) from error
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    got = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    difference = float((got - wanted).abs().max())
    if not difference <= tolerance:
        raise UserError(
            f"ONNX Runtime computes other logits (by {difference:.2g}, and {tolerance:g} is allowed); "
            "nothing was exported."
        )
    return difference


def packages() -> Any:
    """ONNX Runtime. Raises UserError where it, or what writes the file, is not installed."""
    from importlib import import_module

    try:
        return [import_module(name) for name in NEEDED][-1]
    except ImportError as error:
        raise UserError(
            f"--onnx needs the packages {', '.join(NEEDED)}, and {error.name} is not installed: "
            'run `pip install "hkd[onnx]"`.'
        ) from error
