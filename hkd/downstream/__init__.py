"""Detection and semantic segmentation on top of a distilled backbone."""
