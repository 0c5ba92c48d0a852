"""Published weights on this machine: in the weights folder, or where timm and torch keep what they downloaded."""

from pathlib import Path
from typing import Any

from experiments import places
from hkd.spec import ModelCard

HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # of a repository of the hub


def on_this_machine(card: ModelCard) -> tuple[Path | None, str]:
    """A file of a model's published weights, or None; and the places that were looked at, for a sentence.

    Args:
        card: with `pretrained`.
    """
    import timm
    import torch
    from huggingface_hub import try_to_load_from_cache

    own = places.weights() / f"{card.name}.safetensors"
    if own.is_file():
        return own, ""
    assert card.pretrained is not None
    cfg: Any = timm.get_pretrained_cfg(card.pretrained)
    if cfg.hf_hub_id:
        for name in filter(None, (cfg.hf_hub_filename, *HUB_FILES)):
            if isinstance(found := try_to_load_from_cache(cfg.hf_hub_id, name), str):
                return Path(found), ""
    if cfg.url:
        kept = Path(torch.hub.get_dir()) / "checkpoints" / Path(cfg.url).name
        if kept.is_file() and kept.suffix in (".pth", ".pt", ".safetensors"):
            return kept, ""
    return None, f"{own} and the caches of timm and torch"
