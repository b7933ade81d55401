"""Which encoders are known by name, and what exactly is each?

One table. A row says which network, how its vector is read, how patches are prepared, for which patches it is meant,
and where its weights are. Numbers are the published ones, with their source; nothing is taken from a file that comes
with the weights, so that the same name always means the same vector (`weights.check_against_config` refuses weights
whose own configuration contradicts the table).

A name that means two vectors elsewhere has a second row with a longer name: Virchow2 is 2560 numbers for most, and its
class token alone, 1280, for others.

Patch size and resolution are defaults: those of the model card, or those everybody uses (256 px at 0.5 µm/px resized to
224 for UNI and GigaPath, 512 px for CONCH). Other patches are resized to the network's input likewise, and the identity
says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from torch import Tensor, nn

from span_sparse.extract.encoders import networks
from span_sparse.extract.encoders.transform import Transform

IMAGENET: Final = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""timm.data.constants IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD; torchvision's reference scripts."""
CLIP: Final = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
"""OpenAI's CLIP; timm.data.constants OPENAI_CLIP_MEAN, OPENAI_CLIP_STD."""
BIOPTIMUS: Final = {"mean": (0.707223, 0.578729, 0.703617), "std": (0.211883, 0.230117, 0.177517)}
"""Model cards of H-optimus-0, H-optimus-1 and H0-mini."""

NON_COMMERCIAL: Final = "CC-BY-NC-ND-4.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSpec:
    """A row of the table.

    Attributes:
        name: what people type.
        readout: how the vector is read, part of the identity.
        dimension: length of the vector.
        transform: from patches to the network's input.
        input_size_px: edge of the patches it is meant for.
        mpp: their µm per pixel.
        build: the network without weights; keywords replace those of the published network.
        read: from network and inputs to vectors.
        convert: from published weights to those of `build`.
        repository: on the Hugging Face hub; empty when the weights are elsewhere.
        files: names of the weights file, the first that is there is taken.
        page: where weights and terms are.
        licence: of the weights.
        gated: access must be asked for.
        version: counts changes of this row or of the transform that change vectors.
    """

    name: str
    readout: str
    dimension: int
    transform: Transform
    input_size_px: int = 224
    mpp: float = 0.5
    build: Callable[..., nn.Module]
    read: Callable[[Any, Tensor], Tensor] = networks.class_token
    convert: Callable[[networks.State], networks.State] = networks.keep
    repository: str = ""
    files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
    page: str = ""
    licence: str
    gated: bool = True
    version: int = 1

    @property
    def source(self) -> str:
        """The web page where weights and terms are."""
        return self.page or f"https://huggingface.co/{self.repository}"


_VIRCHOW2: Final = partial(
    networks.timm_model,
    "vit_huge_patch14_224",
    gated_mlp=True,
    img_size=224,
    init_values=1e-5,
    mlp_ratio=5.3375,
    reg_tokens=4,
    global_pool="",
)
"""huggingface.co/paige-ai/Virchow2: config.json `model_args`, and the two layers of the card."""
_H0_MINI: Final = partial(
    networks.timm_model,
    "vit_base_patch14_reg4_dinov2",
    gated_mlp=True,
    img_size=224,
    init_values=1e-5,
    mlp_ratio=5.33334,
    global_pool="",
)
"""huggingface.co/bioptimus/H0-mini: config.json `model_args`, and the two layers of the card."""


def _specs() -> tuple[EncoderSpec, ...]:
    bilinear_224 = Transform(224, 224, "bilinear", **IMAGENET)
    bicubic_224 = Transform(224, 224, "bicubic", **IMAGENET)
    bioptimus_224 = Transform(224, 224, "bicubic", **BIOPTIMUS)
    virchow2 = EncoderSpec(
        name="virchow2",
        readout="cls+mean",
        dimension=2560,
        transform=bicubic_224,
        build=_VIRCHOW2,
        read=networks.class_and_mean,
        repository="paige-ai/Virchow2",
        licence=NON_COMMERCIAL,
    )
    h0_mini = EncoderSpec(
        name="h0-mini",
        readout="cls",
        dimension=768,
        transform=bioptimus_224,
        build=_H0_MINI,
        repository="bioptimus/H0-mini",
        licence=NON_COMMERCIAL,
    )
    resnet50 = EncoderSpec(
        name="resnet50",  # the first three stages, as CLAM made it the baseline of the field
        readout="stage3-mean",
        dimension=1024,
        transform=bilinear_224,
        input_size_px=256,
        build=partial(networks.timm_model, "resnet50", features_only=True, out_indices=(3,)),
        read=networks.mean_of_map,
        convert=networks.without("layer4.", "fc."),
        repository="timm/resnet50.tv_in1k",
        files=("model.safetensors",),
        licence="BSD-3-Clause",
        gated=False,
    )
    return (
        EncoderSpec(
            name="uni_v1",  # github.com/mahmoodlab/UNI, README: model, Resize(224), ImageNet
            readout="cls",
            dimension=1024,
            transform=bilinear_224,
            input_size_px=256,
            build=partial(networks.timm_model, "vit_large_patch16_224", img_size=224, init_values=1e-5),
            repository="MahmoodLab/UNI",
            files=("pytorch_model.bin", "model.safetensors"),
            licence=NON_COMMERCIAL,
        ),
        EncoderSpec(
            name="uni_v2",  # github.com/mahmoodlab/UNI, README: `timm_kwargs` of UNI2-h, Resize(224), ImageNet
            readout="cls",
            dimension=1536,
            transform=bilinear_224,
            input_size_px=256,
            build=partial(
                networks.timm_model,
                "vit_giant_patch14_224",
                gated_mlp=True,
                img_size=224,
                depth=24,
                num_heads=24,
                init_values=1e-5,
                embed_dim=1536,
                mlp_ratio=2.66667 * 2,
                no_embed_class=True,
                reg_tokens=8,
            ),
            repository="MahmoodLab/UNI2-h",
            files=("pytorch_model.bin", "model.safetensors"),
            licence=NON_COMMERCIAL,
        ),
        EncoderSpec(
            name="conch_v1",  # github.com/mahmoodlab/CONCH, README: `proj_contrast=False, normalize=False`
            readout="attention-pool",
            dimension=512,
            transform=Transform(448, 448, "bicubic", **CLIP),
            input_size_px=512,
            build=networks.Conch,
            read=networks.as_it_is,
            convert=networks.from_conch,
            repository="MahmoodLab/CONCH",
            files=("pytorch_model.bin",),
            licence=NON_COMMERCIAL,
        ),
        virchow2,
        _second(virchow2, name="virchow2-cls", readout="cls", dimension=1280, read=networks.class_token),
        EncoderSpec(
            name="hoptimus0",  # github.com/bioptimus/releases, models/h-optimus/v0
            readout="cls",
            dimension=1536,
            transform=bioptimus_224,
            build=partial(networks.timm_model, "vit_giant_patch14_reg4_dinov2", img_size=224, init_values=1e-5),
            repository="bioptimus/H-optimus-0",
            files=("pytorch_model.bin", "model.safetensors", "checkpoint.pth"),
            licence="Apache-2.0",
        ),
        EncoderSpec(
            name="hoptimus1",  # huggingface.co/bioptimus/H-optimus-1
            readout="cls",
            dimension=1536,
            transform=bioptimus_224,
            build=partial(networks.timm_model, "vit_giant_patch14_reg4_dinov2", img_size=224, init_values=1e-5),
            repository="bioptimus/H-optimus-1",
            licence=NON_COMMERCIAL,
        ),
        h0_mini,
        _second(h0_mini, name="h0-mini-cls-mean", readout="cls+mean", dimension=1536, read=networks.class_and_mean),
        EncoderSpec(
            name="gigapath",  # github.com/prov-gigapath/prov-gigapath, README; config.json `model_args`
            readout="cls",
            dimension=1536,
            transform=Transform(256, 224, "bicubic", **IMAGENET),
            input_size_px=256,
            build=partial(
                networks.timm_model,
                "vit_giant_patch14_dinov2",
                img_size=224,
                patch_size=16,
                embed_dim=1536,
                depth=40,
                num_heads=24,
                init_values=1e-5,
                mlp_ratio=5.33334,
            ),
            repository="prov-gigapath/prov-gigapath",
            files=("pytorch_model.bin", "model.safetensors"),
            licence="Prov-GigaPath terms, research only",
        ),
        EncoderSpec(
            name="phikon_v2",  # arXiv 2409.09173; huggingface.co/owkin/phikon-v2: `last_hidden_state[:, 0, :]`
            readout="cls",
            dimension=1024,
            transform=bicubic_224,
            build=partial(networks.timm_model, "vit_large_patch16_224", img_size=224, init_values=1.0),
            convert=networks.from_dinov2,
            repository="owkin/phikon-v2",
            files=("model.safetensors",),
            licence="Owkin non-commercial",
            gated=False,
        ),
        EncoderSpec(
            name="ctranspath",  # github.com/Xiyue-Wang/TransPath: Resize(224), ImageNet, "first try 1.0 mpp"
            readout="mean",
            dimension=768,
            transform=bilinear_224,
            mpp=1.0,
            build=networks.ctranspath,
            read=networks.as_it_is,
            convert=networks.from_ctranspath,
            files=("ctranspath.pth", "model.safetensors"),
            page="https://github.com/Xiyue-Wang/TransPath",
            licence="GPL-3.0, academic",
            gated=False,
        ),
        resnet50,
        _second(
            resnet50,
            name="resnet50-full",
            readout="mean",
            dimension=2048,
            build=partial(networks.timm_model, "resnet50"),
            read=networks.as_it_is,
            convert=networks.without("fc."),
        ),
    )


def _second(spec: EncoderSpec, **changes: Any) -> EncoderSpec:
    """Another vector of the same weights."""
    return replace(spec, **changes)


SPECS: Final[dict[str, EncoderSpec]] = {spec.name: spec for spec in _specs()}
"""The table, by name."""
