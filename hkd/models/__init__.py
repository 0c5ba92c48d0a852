"""Models: the zoo, the families that build it, and the taps that every architecture yields."""

FAMILIES = {
    "resnet": "hkd.models.resnet:ResNetFamily",
    "mobilenet": "hkd.models.mobilenet:MobileNetFamily",
    "convnext": "hkd.models.convnext:ConvNeXtFamily",
    "mixer": "hkd.models.mixer:MixerFamily",
    "vit": "hkd.models.vit:ViTFamily",
    "eva": "hkd.models.eva:EvaFamily",
    "swin": "hkd.models.swin:SwinFamily",
}
