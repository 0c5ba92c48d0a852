"""Carries out small runs with the library of one checkout and writes down every number that they pass through.

A program of its own (`python tracer.py ORDER OUT`), because it runs with the library of whichever checkout the order
names, today's or an earlier one's: of that it uses `hkd.runs.run_document` alone. What it observes are torch's own
hooks, so that it sees the same in code that is written another way:

- every dictionary of scalar tensors that a module returns (the loss terms), value by value,
- before every optimiser step the gradients, after it the parameters, and at the end the optimiser's state,
- all files that a run leaves, tensor by tensor and array by array, with its metrics, counts and curves,
- which lines of the library ran, for each run and for imports (coverage.py).

A run that is to be interrupted is killed by an exception at an optimiser step, and then resumed.
"""

# mypy: allow-untyped-defs
import ast
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import pkgutil
import sys
import traceback
from pathlib import Path

BRANCHES = 10_000  # the line of a module's first branch; much larger ones make coverage slow
CLOCK = {"seconds", "wall_s", "cpu_s", "gpu_s", "step_ms", "peak_memory_mib"}  # never the same twice


def main(order_path, out_path):
    order, out = json.loads(Path(order_path).read_text()), Path(out_path)
    root = str(Path(order["root"]).resolve())
    # Neither this program's own folder nor another checkout that is installed may come first.
    sys.path[:] = [root] + [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]
    os.environ["PYTHONPATH"] = root
    sys.meta_path.insert(0, BranchFinder(root))
    coverage = start_coverage(root)
    import torch

    torch.set_num_threads(1)
    import_everything(root)
    from hkd.errors import Diverged, UserError
    from hkd.runs import run_document

    watch = Watch(torch)
    for run in order["runs"]:
        result = out / f"{run['id']}.json"
        if coverage:
            coverage.switch_context(run["id"])
        watch.begin(run["interrupt_at"])
        folder = out / run["id"]
        weights = {name: str(out / other / "student.safetensors") for name, other in run["weights"].items()}
        runtime = {**run["runtime"], "data_root": order["data"], "cache_dir": str(out / "cache")}
        document: dict = {"status": "done", "facts": {}, "reason": None}
        try:
            while True:
                try:
                    facts = run_document(run["spec"], weights, str(folder), runtime, lambda news: None)
                    break
                except Interrupted:
                    watch.events.append(["interrupted"])
            document["facts"] = without_clock(facts)
        except (UserError, Diverged) as error:
            document.update(status=type(error).__name__, reason=str(error).replace(str(out), ""))
        except Exception as error:
            document.update(status="error", reason=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
        document["events"], document["files"] = watch.end(), digests(folder)
        result.write_text(json.dumps(document))
    if coverage:
        coverage.stop()
        (out / "lines.json").write_text(json.dumps(lines_run(coverage, root)))
    (out / "finished").write_text("")


class Interrupted(BaseException):
    """What a kill is to a run that is observed."""


class Watch:
    """Records what passes through torch while a run is carried out.

    Events are lists: ["losses", {term: hex}], ["gradients", [digest ...]], ["parameters", [digest ...]],
    ["optimizer", [digest ...]], ["interrupted"]; digests are sorted, so that the order of parameters is no part.
    """

    def __init__(self, torch):
        self.torch, self.events, self.optimizer, self.steps, self.interrupt_at = torch, [], None, 0, None
        torch.nn.modules.module.register_module_forward_hook(self.forwarded)
        hooks = importlib.import_module("torch.optim.optimizer")
        hooks.register_optimizer_step_pre_hook(self.stepping)
        hooks.register_optimizer_step_post_hook(self.stepped)

    def begin(self, interrupt_at):
        self.events, self.optimizer, self.steps, self.interrupt_at = [], None, 0, interrupt_at

    def end(self):
        if self.optimizer is not None:
            state = self.optimizer.state_dict()["state"].values()
            tensors = [
                tensor_digest(value)
                for entry in state
                for _, value in sorted(entry.items(), key=lambda item: str(item[0]))
            ]
            self.events.append(["optimizer", sorted(tensors)])
        return self.events

    def forwarded(self, module, inputs, output):
        if not (isinstance(output, dict) and output):
            return
        if not all(isinstance(value, self.torch.Tensor) and value.ndim == 0 for value in output.values()):
            return
        event = ["losses", {str(name): float(value.detach()).hex() for name, value in output.items()}]
        if not self.events or self.events[-1] != event:  # a wrapper returns what it wraps
            self.events.append(event)

    def stepping(self, optimizer, args, kwargs):
        if self.steps == self.interrupt_at:
            self.interrupt_at = None
            raise Interrupted
        self.steps += 1
        self.optimizer = optimizer
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.events.append(["gradients", sorted(tensor_digest(gradient) for gradient in gradients)])

    def stepped(self, optimizer, args, kwargs):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.events.append(["parameters", sorted(tensor_digest(parameter) for parameter in parameters)])


def tensor_digest(value):
    """Type, shape and every bit of a tensor; other values by what they print."""
    import torch

    if not isinstance(value, torch.Tensor):
        return f"{type(value).__name__} {value!r}"
    array = value.detach().cpu().contiguous().reshape(-1)
    content = array.view(torch.uint8).numpy().tobytes() if array.numel() else b""
    return short(f"{value.dtype} {tuple(value.shape)}".encode() + content)


def short(content):
    return hashlib.blake2b(content, digest_size=6).hexdigest()


def without_clock(value):
    if isinstance(value, dict):
        return {key: without_clock(item) for key, item in value.items() if key not in CLOCK}
    if isinstance(value, list):
        return [without_clock(item) for item in value]
    return value.hex() if isinstance(value, float) else value


def digests(folder):
    """What every file of a run holds: tensors and arrays by name, other files as a whole."""
    import numpy as np
    from safetensors import safe_open

    held = {}
    for path in sorted(folder.glob("*")) if folder.is_dir() else ():
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    held[f"{path.name}: {name}"] = tensor_digest(file.get_tensor(name))
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                for name in sorted(arrays):
                    array = arrays[name]
                    held[f"{path.name}: {name}"] = short(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        elif path.suffix == ".jsonl":
            lines = [without_clock(json.loads(line)) for line in path.read_text().splitlines()]
            held[path.name] = short(json.dumps(lines, sort_keys=True).encode())
        elif path.is_file() and not path.name.startswith("."):
            held[path.name] = "there"
    return held


def number_branches(tree):
    """Give every part of an expression that is not always evaluated a line of its own, far below the file's.

    The sides of `x if c else y`, what follows `and` and `or`, what a comprehension or lambda computes: with lines of
    their own, a record of lines says which of them ran. Gives (node, line) of each; the same for equal trees.
    """
    found: list = []

    def visit(node, line):
        if isinstance(node, ast.IfExp):
            parts = [node.body, node.orelse]
        elif isinstance(node, ast.BoolOp):
            parts = node.values[1:]
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp):
            parts = [node.elt, *(condition for generator in node.generators for condition in generator.ifs)]
        elif isinstance(node, ast.DictComp):
            parts = [node.value, *(condition for generator in node.generators for condition in generator.ifs)]
        elif isinstance(node, ast.Lambda):
            parts = [node.body]
        else:
            parts = []
        for child in ast.iter_child_nodes(node):
            own = line
            if any(child is part for part in parts):
                found.append((child, own := BRANCHES + len(found)))
            visit(child, own)
        if line is not None and hasattr(node, "lineno"):
            node.shown, node.lineno, node.end_lineno = node.lineno, line, line
            node.col_offset = node.end_col_offset = 0  # of several lines before, which now would end before it begins

    visit(tree, None)
    return found


class BranchFinder(importlib.abc.MetaPathFinder):
    """Imports the library with numbered branches."""

    def __init__(self, root):
        self.root = root

    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] != "hkd":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path or [self.root])
        if spec is not None and spec.origin and spec.origin.endswith(".py"):
            spec.loader = BranchLoader(name, spec.origin)
        return spec


class BranchLoader(importlib.machinery.SourceFileLoader):
    """Compiles a source file anew with numbered branches."""

    def path_stats(self, path):
        raise OSError("byte code of this file knows no branches")  # so none is read or written

    def source_to_code(self, data, path, *, _optimize=-1):  # type: ignore[override]
        tree = ast.parse(data, path)
        number_branches(tree)
        return compile(tree, path, "exec", dont_inherit=True)


def start_coverage(root):
    if os.environ.get("HKD_TRACER_COVERAGE") == "0":
        return None
    from coverage import Coverage

    # The exclusion of nothing: every line counts. Contexts tell runs apart.
    coverage = Coverage(data_file=None, config_file=False, include=[f"{root}/hkd/*"], messages=False)
    coverage.start()
    coverage.switch_context("import")
    return coverage


def import_everything(root):
    """Import every module of the library, so that lines that run on import belong to no run."""
    import hkd

    assert Path(hkd.__file__).is_relative_to(root), f"{hkd.__file__} is not below {root}"
    for module in pkgutil.walk_packages(hkd.__path__, "hkd."):
        importlib.import_module(module.name)


def lines_run(coverage, root):
    """Module -> {line: [contexts]}."""
    data = coverage.get_data()
    found = {}
    for path in data.measured_files():
        name = ".".join(Path(path).relative_to(root).with_suffix("").parts)
        found[name] = {str(line): sorted(contexts) for line, contexts in data.contexts_by_lineno(path).items()}
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
