"""The tracer for many checkouts at once: third-party packages are imported once, each order runs in a fork.

`python forking_tracer.py TRACER ORDER OUT [ORDER OUT ...]`; two forks at a time.
"""

import importlib.util
import os
import sys
import traceback


def main(tracer, *pairs):
    for name in ("torch", "torchvision", "timm", "lightning_fabric", "transformers", "safetensors.torch", "coverage"):
        importlib.import_module(name)
    import torchvision.models.detection
    import torchvision.transforms.v2
    from transformers.models.upernet import modeling_upernet

    del torchvision, modeling_upernet
    spec = importlib.util.spec_from_file_location("tracer", tracer)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    orders, children = list(zip(pairs[::2], pairs[1::2], strict=True)), 0
    while orders or children:
        if orders and children < 2:
            order, out = orders.pop(0)
            children += 1
            if os.fork() == 0:
                try:
                    module.main(order, out)
                except BaseException:
                    traceback.print_exc()
                os._exit(0)
        else:
            os.wait()
            children -= 1


if __name__ == "__main__":
    main(*sys.argv[1:])
