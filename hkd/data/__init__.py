"""Data sets by name, augmentation on whole batches, and the loader that joins them."""

DATASETS = {
    "digits": "hkd.data.digits:Digits",
    "cifar100": "hkd.data.cifar100:Cifar100",
    "imagenet1k": "hkd.data.imagenet1k:ImageNet1k",
    "folder": "hkd.data.folder:ClassFolder",
}
