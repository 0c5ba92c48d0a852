"""Checkpoints of other projects, with names as timm has them."""
