"""Training: one loop for every method, recipes as data, checkpoints that resume exactly.

A task is `task(spec, weights, folder, runtime, report) -> Outcome`; see hkd/training/train.py.
"""

TASKS = {
    "train": "hkd.training.train:train",
    "evaluate": "hkd.training.evaluate:evaluate",
    "pretrain": "hkd.training.pretrain:pretrain",
    "probe": "hkd.training.probe:probe",
    "detect": "hkd.downstream.detect:detect",
    "segment": "hkd.downstream.segment:segment",
}
