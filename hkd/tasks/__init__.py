"""What a run can be: each task is one function of a spec, above everything that it names.

A task is `task(spec, weights, folder, runtime, report) -> Outcome`; see hkd/tasks/train.py.
"""

TASKS = {
    "train": "hkd.tasks.train:train",
    "evaluate": "hkd.tasks.evaluate:evaluate",
    "pretrain": "hkd.tasks.pretrain:pretrain",
    "probe": "hkd.tasks.probe:probe",
    "detect": "hkd.tasks.detect:detect",
    "segment": "hkd.tasks.segment:segment",
}
