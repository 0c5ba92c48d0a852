"""Models: the zoo, the families that build it, and the taps that every architecture yields."""

FAMILIES = {
    "resnet": "hkd.models.resnet:ResNetFamily",
    "mobilenet": "hkd.models.mobilenet:MobileNetFamily",
    "mobilenet_v2": "hkd.models.mobilenet_v2:MobileNetV2Family",
    "convnext": "hkd.models.convnext:ConvNeXtFamily",
    "mixer": "hkd.models.mixer:MixerFamily",
    "resmlp": "hkd.models.resmlp:ResMLPFamily",
    "vit": "hkd.models.vit:ViTFamily",
    "eva": "hkd.models.eva:EvaFamily",
    "swin": "hkd.models.swin:SwinFamily",
    "mim_vit": "hkd.models.mim_vit:MimViTFamily",
    "beit": "hkd.models.beit:BeitFamily",
    "hybrid_vit": "hkd.models.hybrid_vit:HybridViTFamily",
    "hybrid_beit": "hkd.models.hybrid_beit:HybridBeitFamily",
    "view_vit": "hkd.models.view_vit:ViewViTFamily",
    "sparse_resnet": "hkd.models.sparse_families:SparseResNetFamily",
    "sparse_convnext": "hkd.models.sparse_families:SparseConvNeXtFamily",
    "sparse_mobilenet_v2": "hkd.models.sparse_families:SparseMobileNetV2Family",
}
