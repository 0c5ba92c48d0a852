"""Models: the zoo, the families that build it, and the taps that every architecture yields."""

FAMILIES = {
    "resnet": "hkd.models.families.resnet:ResNetFamily",
    "mobilenet": "hkd.models.families.mobilenet:MobileNetFamily",
    "mobilenet_v2": "hkd.models.families.mobilenet_v2:MobileNetV2Family",
    "convnext": "hkd.models.families.convnext:ConvNeXtFamily",
    "mixer": "hkd.models.families.mixer:MixerFamily",
    "resmlp": "hkd.models.families.resmlp:ResMLPFamily",
    "vit": "hkd.models.families.vit:ViTFamily",
    "eva": "hkd.models.families.eva:EvaFamily",
    "swin": "hkd.models.families.swin:SwinFamily",
    "mim_vit": "hkd.models.families.mim_vit:MimViTFamily",
    "beit": "hkd.models.families.beit:BeitFamily",
    "hybrid_vit": "hkd.models.families.hybrid_vit:HybridViTFamily",
    "hybrid_beit": "hkd.models.families.hybrid_beit:HybridBeitFamily",
    "view_vit": "hkd.models.families.view_vit:ViewViTFamily",
    "sparse_resnet": "hkd.models.families.sparse:SparseResNetFamily",
    "sparse_convnext": "hkd.models.families.sparse:SparseConvNeXtFamily",
    "sparse_mobilenet_v2": "hkd.models.families.sparse:SparseMobileNetV2Family",
}
