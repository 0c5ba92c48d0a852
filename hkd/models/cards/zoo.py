"""Every model by name: the papers' models, their miniatures, and sizes for real 32-px images.

Slugs: `<model>` as the papers have it (224 px), `<model>_mini` its miniature of the same family for composed digits
(32 px; 35 px and a 5x5 grid for patch-14 models), `<model>_64px` a miniature for larger photographs, `<model>_32px` the
form for CIFAR-like images. A miniature is built by timm's own class with smaller numbers; those of two sizes of a
family differ in width (B is 1.5 times S).

`channels_last` is set where a training step on one CPU thread was faster with it (benchmarks/test_memory_format.py);
paper-size cards keep torch's default, as they were not measured on the machines they are for.
No torch here: planning reads this file.
"""

from dataclasses import replace
from typing import Any

from hkd.spec import ModelCard

HALF = (0.5, 0.5, 0.5)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CIFAR: dict[str, Any] = {"mean": (0.5071, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2762), "image_size": 32}
MINI: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "image_size": 32}

BEIT = "timm.models.beit:Beit"
CONVNEXT = "timm.models.convnext:ConvNeXt"
EFFICIENTNET = "timm.models.efficientnet:EfficientNet"
MIXER = "timm.models.mlp_mixer:MlpMixer"
SWIN = "timm.models.swin_transformer:SwinTransformer"
VIT = "timm.models.vision_transformer:VisionTransformer"

# Patch tokens only, pooled by their mean after the final norm: how ScaleKD builds its ViT students.
AVERAGE: dict[str, Any] = {"class_token": False, "global_pool": "avg", "fc_norm": False}
# Where the OFA-KD comparison taps twelve isotropic blocks.
OFA = (1, 3, 9, 11)
# Isotropic models have no stages: taps are the ends of the quarters of depth (12 blocks), as ScaleKD's ViT taps are.
QUARTERS = (2, 5, 8, 11)
QUARTERS_OF_24 = (5, 11, 17, 23)
# MAE's first two taps are the ends of the first two thirds, where Hybrid Distill's mask looks at its tokens.
THIRDS, THIRDS_OF_24 = (3, 7, 9, 11), (7, 15, 19, 23)


def _paper() -> list[ModelCard]:
    """The papers' models with their constructor arguments."""
    return [
        # Drop-path rates of the teachers are those of ScaleKD's configs; they act only in teacher_mode=train.
        ModelCard(
            name="swin_t",
            family="swin",
            arch="swin_tiny_patch4_window7_224",
            kwargs={"drop_path_rate": 0.05},
            stages=(0, 1, 2, 3),
            pretrained="swin_tiny_patch4_window7_224.ms_in1k",
        ),
        ModelCard(
            name="swin_s",
            family="swin",
            arch="swin_small_patch4_window7_224",
            kwargs={"drop_path_rate": 0.3},
            stages=(0, 1, 2, 3),
            pretrained="swin_small_patch4_window7_224.ms_in1k",
        ),
        ModelCard(
            name="swin_b",
            family="swin",
            arch="swin_base_patch4_window7_224",
            kwargs={"drop_path_rate": 0.5},
            stages=(0, 1, 2, 3),
            pretrained="swin_base_patch4_window7_224.ms_in22k_ft_in1k",
        ),
        ModelCard(
            name="swin_l",
            family="swin",
            arch="swin_large_patch4_window7_224",
            kwargs={"drop_path_rate": 0.1},
            stages=(0, 1, 2, 3),
            pretrained="swin_large_patch4_window7_224.ms_in22k_ft_in1k",
        ),
        # Stage 3 is the input of the last two blocks, which are ScaleKD's tail.
        ModelCard(
            name="eva_l14",
            family="eva",
            arch="eva_large_patch14_196",
            kwargs={"img_size": 224},
            stages=(5, 11, 21, 23),
            mean=CLIP_MEAN,
            std=CLIP_STD,
            pretrained="eva_large_patch14_196.in22k_ft_in22k_in1k",
        ),
        ModelCard(name="mobilenet_v1", family="mobilenet", arch="mobilenetv1_100", kwargs={"act_layer": "relu"}),
        ModelCard(name="resnet18", family="resnet", arch="resnet18"),
        ModelCard(name="resnet50", family="resnet", arch="resnet50", pretrained="resnet50.a1_in1k"),
        ModelCard(name="resnet50d", family="resnet", arch="resnet50d"),
        ModelCard(
            name="convnext_t",
            family="convnext",
            arch="convnext_tiny",
            kwargs={"head_norm_first": True},
            stages=(0, 1, 2, 3),
        ),
        ModelCard(name="mixer_s16", family="mixer", arch="mixer_s16_224", stages=(1, 3, 5, 7)),
        ModelCard(name="mixer_b16", family="mixer", arch="mixer_b16_224", stages=(5, 7, 9, 11)),
        ModelCard(
            name="mixer_b14",
            family="mixer",
            arch=MIXER,
            kwargs={"img_size": 224, "patch_size": 14, "num_blocks": 12, "embed_dim": 768},
            stages=(5, 7, 9, 11),
        ),
        ModelCard(name="vit_s16", family="vit", arch="vit_small_patch16_224", kwargs=AVERAGE, stages=QUARTERS),
        ModelCard(name="vit_b16", family="vit", arch="vit_base_patch16_224", kwargs=AVERAGE, stages=QUARTERS),
        ModelCard(
            name="vit_b14",
            family="vit",
            arch="vit_base_patch16_224",
            kwargs={"patch_size": 14, **AVERAGE},
            stages=QUARTERS,
        ),
        # HCD and OFA-KD: students, then teachers ("_ofa": built as timm does and tapped as that comparison does).
        ModelCard(name="mobilenet_v2", family="mobilenet_v2", arch="mobilenetv2_100", stages=(1, 2, 3, 5)),
        ModelCard(
            name="deit_t",
            family="vit",
            arch="deit_tiny_patch16_224",
            stages=OFA,
            pretrained="deit_tiny_patch16_224.fb_in1k",
        ),
        ModelCard(name="resmlp_s12", family="resmlp", arch="resmlp_12_224", stages=OFA),
        _swin_small("swin_p", width=48),
        _swin_small("swin_n", width=64),
        ModelCard(
            name="swin_t_ofa",
            family="swin",
            arch="swin_tiny_patch4_window7_224",
            stages=(0, 1, 2, 3),
            pretrained="swin_tiny_patch4_window7_224.ms_in1k",
        ),
        ModelCard(
            name="vit_s16_ofa",
            family="vit",
            arch="vit_small_patch16_224",
            stages=OFA,
            mean=HALF,
            std=HALF,
            pretrained="vit_small_patch16_224.augreg_in21k_ft_in1k",
        ),
        ModelCard(
            name="mixer_b16_ofa",
            family="mixer",
            arch="mixer_b16_224",
            stages=OFA,
            mean=HALF,
            std=HALF,
            pretrained="mixer_b16_224.goog_in21k_ft_in1k",
        ),
        ModelCard(
            name="convnext_t_ofa",
            family="convnext",
            arch="convnext_tiny",
            stages=(0, 1, 2, 3),
            pretrained="convnext_tiny.fb_in1k",
        ),
    ]


def _swin_small(name: str, *, width: int) -> ModelCard:
    """Swin-P and Swin-N of the OFA-KD repository, which timm has no names for."""
    kwargs = {"embed_dim": width, "depths": (2, 2, 2, 2), "num_heads": (2, 4, 8, 16)}
    return ModelCard(name=name, family="swin", arch=SWIN, kwargs=kwargs, stages=(0, 1, 2, 3))


def _resnet_mini(name: str, **kwargs: Any) -> ModelCard:
    """Maps 16, 8, 4, 2."""
    shape: dict[str, Any] = {"layers": (1, 1, 1, 1), "stem_type": "deep", "stem_width": 8, "maxpool": False}
    return ModelCard(
        name=name, family="resnet", arch="resnet18", kwargs={**shape, **kwargs}, channels_last=True, **MINI
    )


def _mixer_mini(name: str, *, width: int, patch_size: int = 8, image_size: int = 32) -> ModelCard:
    kwargs = {"img_size": image_size, "patch_size": patch_size, "num_blocks": 3, "embed_dim": width}
    sizes = {**MINI, "image_size": image_size, "channels_last": True}
    return ModelCard(name=name, family="mixer", arch=MIXER, kwargs=kwargs, stages=(0, 0, 1, 2), **sizes)


def _vit_mini(
    name: str, *, width: int, heads: int, patch_size: int = 8, image_size: int = 32, depth: int = 3
) -> ModelCard:
    kwargs = {"img_size": image_size, "patch_size": patch_size, "embed_dim": width, "depth": depth, "num_heads": heads}
    sizes = {**MINI, "image_size": image_size, "channels_last": True}
    stages = (0, depth - 3, depth - 2, depth - 1)
    return ModelCard(name=name, family="vit", arch=VIT, kwargs=kwargs | AVERAGE, stages=stages, **sizes)


def _swin_mini(
    name: str,
    *,
    width: int,
    heads: tuple[int, ...],
    drop_path: float = 0.1,
    depths: tuple[int, ...] = (1, 2, 1),
    **kwargs: Any,
) -> ModelCard:
    """Three stages with maps 8, 4, 2; stages 1 and 2 of the taps are the same map, stages 3 and 4 the last two.

    The widest miniature stays narrow because ScaleKD trains through its last stage.
    """
    shape: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 4,
        "window_size": 4,
        "embed_dim": width,
        "depths": depths,
        "num_heads": heads,
        "drop_path_rate": drop_path,
    }
    return ModelCard(name=name, family="swin", arch=SWIN, kwargs=shape | kwargs, stages=(0, 0, 1, 2), **MINI)


def _mini() -> list[ModelCard]:
    """Miniatures."""
    return [
        _swin_mini("swin_t_mini", width=12, heads=(1, 2, 4), drop_path=0.05),
        _swin_mini("swin_s_mini", width=16, heads=(2, 4, 8)),
        _swin_mini("swin_b_mini", width=24, heads=(2, 4, 8)),
        _swin_mini("swin_l_mini", width=28, heads=(2, 4, 8)),
        ModelCard(
            name="eva_l14_mini",
            family="eva",
            arch=VIT,  # the class timm builds EVA-L by: class token, no final norm but one after pooling
            kwargs={
                "img_size": 35,
                "patch_size": 7,
                "embed_dim": 64,
                "depth": 4,
                "num_heads": 4,
                "global_pool": "avg",
            },
            stages=(0, 0, 1, 3),  # stage 3 feeds the last two blocks, as in eva_l14
            **{**MINI, "image_size": 35},
        ),
        # All thirteen blocks of MobileNet-V1 at a quarter of the width; stage maps 16, 8, 4, 2.
        ModelCard(
            name="mobilenet_v1_mini",
            family="mobilenet",
            arch=EFFICIENTNET,
            kwargs={
                "blocks": (
                    ("dsa_r1_k3_s1_c64",),
                    ("dsa_r1_k3_s2_c128",),
                    ("dsa_r1_k3_s2_c256",),
                    ("dsa_r2_k3_s2_c512",),
                    ("dsa_r1_k3_s2_c1024",),
                ),
                "width": 0.25,
                "stem_size": 32,
                "stem_stride": 1,
                "num_features": 0,
                "act_layer": "relu",
            },
            channels_last=True,
            **MINI,
        ),
        # Maps 8, 4, 2, 2, for a third of the time; the last stays 2x2 for the same reason as ConvNeXt's below.
        _resnet_mini("resnet18_mini", channels=(12, 24, 48, 96), maxpool=True, output_stride=16),
        _resnet_mini("resnet50_mini", channels=(16, 32, 64, 128)),
        _resnet_mini("resnet50d_mini", channels=(16, 32, 64, 128), avg_down=True),
        ModelCard(
            name="convnext_t_mini",
            family="convnext",
            arch=CONVNEXT,
            kwargs={
                "dims": (16, 32, 64, 128),
                "depths": (1, 1, 1, 1),
                "kernel_sizes": 3,
                "output_stride": 16,  # the last map stays 2x2: one position would leave attention nothing to attend to
                "head_norm_first": True,
                "ls_init_value": None,
            },
            stages=(0, 1, 2, 3),
            **MINI,
        ),
        _mixer_mini("mixer_s16_mini", width=48),
        _mixer_mini("mixer_b16_mini", width=72),
        _mixer_mini("mixer_b14_mini", width=72, patch_size=7, image_size=35),
        _vit_mini("vit_s16_mini", width=64, heads=4),
        _vit_mini("vit_b16_mini", width=96, heads=6),
        _vit_mini("vit_b14_mini", width=96, heads=6, patch_size=7, image_size=35),
        # HCD and OFA-KD. Narrow Swins learn faster with the initial weights of the JAX ViTs (timm's "jax").
        ModelCard(
            name="mobilenet_v2_mini",
            family="mobilenet_v2",
            arch=EFFICIENTNET,
            kwargs={
                "blocks": (
                    ("ds_r1_k3_s1_c16",),
                    ("ir_r1_k3_s2_e3_c24",),
                    ("ir_r1_k3_s1_e3_c32",),
                    ("ir_r1_k3_s2_e3_c64",),
                    ("ir_r1_k3_s1_e3_c96",),
                    ("ir_r1_k3_s2_e3_c160",),
                ),
                "width": 0.5,
                "stem_size": 16,
                "num_features": 256,
                "act_layer": "relu6",
            },
            channels_last=True,
            **MINI | {"stages": (1, 2, 3, 5)},
        ),
        _vit_mini("deit_t_mini", width=72, heads=4),
        ModelCard(
            name="resmlp_s12_mini",
            family="resmlp",
            arch=MIXER,
            kwargs={"img_size": 32, "patch_size": 8, "num_blocks": 3, "embed_dim": 64, "layer_scale": 1.0},
            stages=(0, 0, 1, 2),
            **MINI,
        ),
        _swin_mini("swin_p_mini", width=16, heads=(2, 4, 8), depths=(1, 1, 1), weight_init="jax"),
        _swin_mini("swin_n_mini", width=20, heads=(2, 4, 8), depths=(1, 1, 1), weight_init="jax"),
        _swin_mini("swin_t_ofa_mini", width=24, heads=(2, 4, 8), drop_path=0.05, weight_init="jax"),
        _vit_mini("vit_s16_ofa_mini", width=96, heads=6, depth=4),
        _mixer_mini("mixer_b16_ofa_mini", width=96),
        ModelCard(
            name="convnext_t_ofa_mini",
            family="convnext",
            arch=CONVNEXT,
            kwargs={
                "dims": (24, 48, 96, 192),
                "depths": (1, 1, 1, 1),
                "kernel_sizes": 3,
                "output_stride": 16,
                "ls_init_value": None,
            },
            stages=(0, 1, 2, 3),
            **MINI,
        ),
    ]


def _small_images() -> list[ModelCard]:
    """The papers' models in the forms usual at 32 px: maps 16, 8, 4, 2 (ResNet, ConvNeXt: 32, 16, 8, 4), tokens 8x8."""
    return [
        ModelCard(
            name="resnet18_32px",
            family="resnet",
            arch="resnet18",
            kwargs={"stem": "3x3", "maxpool": False},
            channels_last=True,
            **CIFAR,
        ),
        ModelCard(
            name="resnet50_32px",
            family="resnet",
            arch="resnet50",
            kwargs={"stem": "3x3", "maxpool": False},
            channels_last=True,
            **CIFAR,
        ),
        ModelCard(
            name="mobilenet_v1_32px",
            family="mobilenet",
            arch="mobilenetv1_100",
            kwargs={"act_layer": "relu", "stem_stride": 1},
            channels_last=True,
            **CIFAR,
        ),
        ModelCard(
            name="convnext_t_32px",
            family="convnext",
            arch="convnext_tiny",
            kwargs={"patch_size": 1, "head_norm_first": True},
            stages=(0, 1, 2, 3),
            **CIFAR,
        ),
        ModelCard(
            name="mixer_s16_32px",
            family="mixer",
            arch=MIXER,
            kwargs={"img_size": 32, "patch_size": 4, "num_blocks": 8, "embed_dim": 512},
            stages=(1, 3, 5, 7),
            **CIFAR,
        ),
        ModelCard(
            name="vit_s16_32px",
            family="vit",
            arch="vit_small_patch16_224",
            kwargs={"img_size": 32, "patch_size": 4, **AVERAGE},
            stages=QUARTERS,
            **CIFAR,
        ),
        # Swin-Pico (width 48), for teachers trained on a CPU.
        ModelCard(
            name="swin_p_32px",
            family="swin",
            arch=SWIN,
            kwargs={
                "img_size": 32,
                "patch_size": 2,
                "window_size": 4,
                "embed_dim": 48,
                "depths": (2, 2, 2, 2),
                "num_heads": (2, 4, 8, 16),
            },
            stages=(0, 1, 2, 3),
            **CIFAR,
        ),
        ModelCard(
            name="swin_t_32px",
            family="swin",
            arch=SWIN,
            kwargs={"img_size": 32, "patch_size": 2, "window_size": 4, "drop_path_rate": 0.05},
            stages=(0, 1, 2, 3),
            **CIFAR,
        ),
    ]


def _larger_images() -> list[ModelCard]:
    """Miniatures for photographs at 64 px (CUB-200 on a CPU): all maps are twice as wide."""
    minis = {card.name.removesuffix("_mini"): card for card in _mini()}
    sized = {"swin_t_ofa": {"img_size": 64}, "resnet18": {}, "mobilenet_v2": {}}
    return [
        replace(minis[name], name=f"{name}_64px", image_size=64, kwargs=minis[name].kwargs | kwargs)
        for name, kwargs in sized.items()
    ]


def _masked() -> list[ModelCard]:
    """H-GKD and Hybrid Distill: sparse and ViT students, masked-image-modelling teachers, and their miniatures.

    Students' miniatures keep a stride of 8, so that 32 px are 4x4 cells of the mask as 224 px are 7x7, and their
    teachers' patches are half a cell a side, as they are at 224 px.
    """
    patches: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 6}
    quarters = MINI | {"stages": (0, 1, 2, 3)}
    minis = {card.name: card for card in _mini()}
    mini = {
        **minis["resnet50_mini"].kwargs,
        "output_stride": 16,
    }  # timm counts the max-pooling in
    mobilenet = minis["mobilenet_v2_mini"]
    *blocks, last = mobilenet.kwargs["blocks"]
    return [
        ModelCard(name="sparse_resnet50", family="sparse_resnet", arch="resnet50"),
        ModelCard(name="sparse_resnet18", family="sparse_resnet", arch="resnet18"),
        ModelCard(
            name="sparse_mobilenet_v2", family="sparse_mobilenet_v2", arch="mobilenetv2_100", stages=(1, 2, 3, 5)
        ),
        ModelCard(
            name="mae_b16",
            family="mim_vit",
            arch="vit_base_patch16_224",
            stages=THIRDS,
            pretrained="vit_base_patch16_224.mae",
        ),
        # Pre-trained BEiTs have one norm, over all tokens; timm's own default is another after pooling.
        ModelCard(
            name="beit_b16",
            family="beit",
            arch="beit_base_patch16_224",
            kwargs={"use_fc_norm": False},
            stages=QUARTERS,
            mean=HALF,
            std=HALF,
        ),
        # The EfficientNet without squeeze-and-excitation, which pools over all positions and has no masked form.
        ModelCard(
            name="sparse_efficientnet_lite0",
            family="sparse_mobilenet_v2",
            arch="efficientnet_lite0",
            stages=(1, 2, 3, 5),
        ),
        ModelCard(name="channel_resnet50", family="channel_resnet", arch="resnet50"),
        # CAE's encoder is a BEiT without relative positions, with fixed sine-cosine ones instead.
        ModelCard(
            name="cae_b16",
            family="beit",
            arch="beit_base_patch16_224",
            kwargs={"use_abs_pos_emb": True, "use_rel_pos_bias": False, "use_fc_norm": False},
            stages=QUARTERS,
        ),
        ModelCard(name="hybrid_b16", family="hybrid_vit", arch="vit_base_patch16_224", stages=QUARTERS),
        ModelCard(name="hybrid_l16", family="hybrid_vit", arch="vit_large_patch16_224", stages=QUARTERS_OF_24),
        # Hybrid Distill's encoder unlike its teachers' (FD): biases of queries and values, one relative position bias.
        ModelCard(
            name="hybrid_fd_b16",
            family="hybrid_beit",
            arch="beit_base_patch16_224",
            kwargs={"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "use_fc_norm": False},
            stages=QUARTERS,
        ),
        ModelCard(
            name="mae_l16",
            family="mim_vit",
            arch="vit_large_patch16_224",
            stages=THIRDS_OF_24,
            pretrained="vit_large_patch16_224.mae",
        ),
        ModelCard(
            name="deit_b16",
            family="vit",
            arch="deit_base_patch16_224",
            stages=QUARTERS,
            pretrained="deit_base_patch16_224.fb_in1k",
        ),
        # OpenAI's weights were trained with QuickGELU.
        ModelCard(
            name="clip_b16",
            family="view_vit",
            arch="vit_base_patch16_clip_quickgelu_224",
            stages=QUARTERS,
            mean=CLIP_MEAN,
            std=CLIP_STD,
            pretrained="vit_base_patch16_clip_quickgelu_224.openai",
        ),
        # At 196 px its grid is the 14x14 of the other models'.
        ModelCard(
            name="clip_l14",
            family="view_vit",
            arch="vit_large_patch14_clip_quickgelu_224",
            kwargs={"img_size": 196},
            image_size=196,
            stages=QUARTERS_OF_24,
            mean=CLIP_MEAN,
            std=CLIP_STD,
            pretrained="vit_large_patch14_clip_quickgelu_224.openai",
        ),
        ModelCard(
            name="dino_b16",
            family="view_vit",
            arch="vit_base_patch16_224",
            stages=QUARTERS,
            pretrained="vit_base_patch16_224.dino",
        ),
        ModelCard(
            name="sparse_resnet50_mini",
            family="sparse_resnet",
            arch="resnet18",
            kwargs=mini,
            channels_last=True,
            **MINI,
        ),
        ModelCard(
            name="sparse_resnet18_mini",
            family="sparse_resnet",
            arch="resnet18",
            kwargs={**mini, "channels": (12, 24, 48, 96)},
            channels_last=True,
            **MINI,
        ),
        ModelCard(
            name="sparse_mobilenet_v2_mini",
            family="sparse_mobilenet_v2",
            arch=EFFICIENTNET,
            kwargs={**mobilenet.kwargs, "blocks": (*blocks, (last[0].replace("_s2", "_s1"),))},
            channels_last=True,
            **MINI | {"stages": (0, 1, 2, 5)},
        ),
        ModelCard(
            name="sparse_efficientnet_lite0_mini",
            family="sparse_mobilenet_v2",
            arch=EFFICIENTNET,
            kwargs={
                "blocks": (
                    ("ds_r1_k3_s1_c16",),
                    ("ir_r1_k3_s2_e4_c24",),
                    ("ir_r1_k5_s1_e4_c40",),
                    ("ir_r1_k3_s2_e4_c80",),
                    ("ir_r1_k5_s1_e4_c112",),
                    ("ir_r1_k5_s1_e4_c192",),
                ),
                "width": 0.5,
                "stem_size": 16,
                "num_features": 256,
                "act_layer": "relu6",
            },
            channels_last=True,
            **MINI | {"stages": (0, 1, 2, 5)},
        ),
        ModelCard(
            name="channel_resnet50_mini",
            family="channel_resnet",
            arch="resnet18",
            kwargs=mini,
            channels_last=True,
            **MINI,
        ),
        ModelCard(
            name="cae_b16_mini",
            family="beit",
            arch=BEIT,
            kwargs={
                **patches,
                "use_abs_pos_emb": True,
                "use_rel_pos_bias": False,
                "init_values": 0.1,
                "use_fc_norm": False,
            },
            **quarters,
        ),
        ModelCard(name="mae_b16_mini", family="mim_vit", arch=VIT, kwargs=patches | AVERAGE, **quarters),
        ModelCard(name="hybrid_b16_mini", family="hybrid_vit", arch=VIT, kwargs=patches | AVERAGE, **quarters),
        ModelCard(name="deit_b16_mini", family="vit", arch=VIT, kwargs=patches | AVERAGE, **quarters),
        ModelCard(name="dino_b16_mini", family="view_vit", arch=VIT, kwargs=patches | AVERAGE, **quarters),
        ModelCard(
            name="clip_b16_mini",
            family="view_vit",
            arch=VIT,
            kwargs={**patches, **AVERAGE, "pre_norm": True, "act_layer": "quick_gelu"},
            **quarters | {"mean": CLIP_MEAN, "std": CLIP_STD},
        ),
        ModelCard(
            name="hybrid_fd_b16_mini",
            family="hybrid_beit",
            arch=BEIT,
            kwargs={
                **patches,
                "use_abs_pos_emb": False,
                "use_rel_pos_bias": False,
                "use_shared_rel_pos_bias": True,
                "use_fc_norm": False,
            },
            **quarters,
        ),
        ModelCard(
            name="beit_b16_mini",
            family="beit",
            arch=BEIT,
            kwargs={
                **patches,
                "use_abs_pos_emb": False,
                "use_rel_pos_bias": True,
                "init_values": 0.1,
                "use_fc_norm": False,
            },
            **quarters,
        ),
    ]


# Millions of parameters at 1000 classes; GMACs of one image (convolutions and matrix products, attention included).
SIZES = {
    "swin_t": (28.288, 4.491),
    "swin_s": (49.606, 8.741),
    "swin_b": (87.768, 15.43),
    "swin_l": (196.532, 34.48),
    "eva_l14": (304.204, 81.01),
    "mobilenet_v1": (4.232, 0.5687),
    "resnet18": (11.690, 1.814),
    "resnet50": (25.557, 4.089),
    "resnet50d": (25.576, 4.329),
    "convnext_t": (28.589, 4.456),
    "mixer_s16": (18.528, 3.777),
    "mixer_b16": (59.880, 12.6),
    "mixer_b14": (60.296, 16.42),
    "vit_s16": (22.050, 4.574),
    "vit_b16": (86.566, 17.47),
    "vit_b14": (86.474, 23.07),
    "swin_t_mini": (0.101, 0.000615),
    "swin_s_mini": (0.156, 0.00103),
    "swin_b_mini": (0.298, 0.00219),
    "swin_l_mini": (0.386, 0.00293),
    "eva_l14_mini": (0.276, 0.00576),
    "mobilenet_v1_mini": (0.323, 0.00156),
    "resnet50_mini": (0.438, 0.00456),
    "resnet50d_mini": (0.438, 0.00456),
    "convnext_t_mini": (0.352, 0.00131),
    "mixer_s16_mini": (0.117, 0.00119),
    "mixer_b16_mini": (0.217, 0.00253),
    "mixer_b14_mini": (0.216, 0.00384),
    "vit_s16_mini": (0.228, 0.00272),
    "vit_b16_mini": (0.453, 0.00585),
    "vit_b14_mini": (0.449, 0.0091),
    "mobilenet_v2": (3.505, 0.3008),
    "deit_t": (5.717, 1.254),
    "resmlp_s12": (15.351, 3.01),
    "swin_p": (5.507, 0.7999),
    "swin_n": (9.600, 1.394),
    "swin_t_ofa": (28.288, 4.491),
    "vit_s16_ofa": (22.051, 4.599),
    "mixer_b16_ofa": (59.880, 12.6),
    "convnext_t_ofa": (28.589, 4.456),
    "mixer_b16_ofa_mini": (0.344, 0.004372),
    "convnext_t_ofa_mini": (0.690, 0.002804),
    "resmlp_s12_mini": (0.179, 0.001883),
    "swin_p_mini": (0.143, 0.0008197),
    "swin_n_mini": (0.202, 0.001229),
    "swin_t_ofa_mini": (0.298, 0.002188),
    "deit_t_mini": (0.278, 0.00339),
    "vit_s16_ofa_mini": (0.565, 0.007665),
    "resnet18_32px": (11.682, 0.5559),
    "resnet50_32px": (25.549, 1.3),
    "mobilenet_v1_32px": (4.232, 0.04737),
    "convnext_t_32px": (28.585, 1.451),
    "mixer_s16_32px": (17.618, 1.21),
    "vit_s16_32px": (21.723, 1.398),
    "swin_p_32px": (5.497, 0.06209),
    "swin_t_32px": (28.266, 0.3585),
    "swin_t_ofa_64px": (0.299, 0.008501),
    "mobilenet_v2_mini": (0.314, 0.001021),
    "mobilenet_v2_64px": (0.314, 0.003315),
    "resnet18_mini": (0.273, 0.001574),
    "resnet18_64px": (0.273, 0.006007),
    "sparse_efficientnet_lite0": (4.652, 0.3852),
    "channel_resnet50": (25.560, 4.129),
    "sparse_efficientnet_lite0_mini": (0.356, 0.002289),
    "channel_resnet50_mini": (0.438, 0.007329),
    "cae_b16_mini": (0.556, 0.03239),
    "sparse_resnet50": (25.557, 4.089),
    "sparse_resnet18": (11.690, 1.814),
    "sparse_mobilenet_v2": (3.505, 0.3008),
    "mae_b16": (86.568, 17.56),
    "beit_b16": (86.531, 17.56),
    "cae_b16": (86.577, 17.56),
    "sparse_resnet50_mini": (0.438, 0.00731),
    "sparse_resnet18_mini": (0.273, 0.004514),
    "sparse_mobilenet_v2_mini": (0.314, 0.00142),
    "mae_b16_mini": (0.555, 0.03185),
    "hybrid_b16": (86.416, 17.56),
    "hybrid_b16_mini": (0.549, 0.03185),
    "beit_b16_mini": (0.555, 0.03239),
    "hybrid_l16": (304.125, 61.55),
    "hybrid_fd_b16": (86.434, 17.56),
    "mae_l16": (304.327, 61.55),
    "deit_b16": (86.568, 17.56),
    "clip_b16": (86.568, 17.56),
    "clip_l14": (304.143, 61.52),
    "dino_b16": (86.568, 17.56),
    "deit_b16_mini": (0.555, 0.03185),
    "dino_b16_mini": (0.555, 0.03185),
    "clip_b16_mini": (0.555, 0.03185),
    "hybrid_fd_b16_mini": (0.550, 0.03239),
}

ZOO: dict[str, ModelCard] = {
    card.name: replace(card, params_m=SIZES[card.name][0], gmacs=SIZES[card.name][1])
    for card in (*_paper(), *_mini(), *_small_images(), *_larger_images(), *_masked())
}
