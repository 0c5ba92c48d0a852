"""Data sets by name, augmentation on whole batches, and the loader that joins them."""

DATASETS = {
    "digits": "hkd.data.digits:Digits",
    "numbers100": "hkd.data.numbers:Numbers100",
    "numbers200": "hkd.data.numbers:Numbers200",
    "cifar100": "hkd.data.cifar100:Cifar100",
    "cub200": "hkd.data.cub200:Cub200",
    "imagenet1k": "hkd.data.imagenet1k:ImageNet1k",
    "folder": "hkd.data.folder:ClassFolder",
    "digits_unlabelled": "hkd.data.unlabelled:UnlabelledDigits",
    "cifar100_unlabelled": "hkd.data.unlabelled:UnlabelledCifar100",
    "imagenet1k_unlabelled": "hkd.data.unlabelled:UnlabelledImageNet1k",
    "scenes": "hkd.data.scenes:Scenes",
    "coco": "hkd.data.coco:Coco",
    "ade20k": "hkd.data.ade20k:Ade20k",
}
