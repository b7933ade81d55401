"""What timm imports from torchvision, for machines where torchvision has no build that fits torch's.

torchvision's wheels on the package index link to CUDA and cannot be imported beside a CPU build of torch, and timm
cannot be imported without torchvision. Used of it, by the networks and transforms of these tests, are five small
classes; here they are Pillow and numpy, written from torchvision's documentation, and so an oracle of the transform as
well. Everything else timm names is a class that is never used. The stand-in is gone when timm is there, so that other
libraries do not find a torchvision that is none.
"""

from __future__ import annotations

import enum
import importlib
import importlib.util
import sys
import types
from typing import Any

import numpy as np
import torch
from PIL import Image


class InterpolationMode(enum.Enum):
    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class Compose:
    def __init__(self, steps: list[Any]) -> None:
        self.steps = steps

    def __call__(self, picture: Any) -> Any:
        for step in self.steps:
            picture = step(picture)
        return picture


class Resize:
    """The shorter edge becomes `size`."""

    def __init__(self, size: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR) -> None:
        self.size, self.filter = size, Image.Resampling[interpolation.name]

    def __call__(self, picture: Image.Image) -> Image.Image:
        short = min(picture.size)
        width, height = (edge * self.size // short for edge in picture.size)
        return picture if short == self.size else picture.resize((width, height), self.filter)


class CenterCrop:
    def __init__(self, size: int | tuple[int, int]) -> None:
        self.size = size if isinstance(size, int) else size[0]

    def __call__(self, picture: Image.Image) -> Image.Image:
        left, top = (round((edge - self.size) / 2.0) for edge in picture.size)
        return picture.crop((left, top, left + self.size, top + self.size))


class ToTensor:
    def __call__(self, picture: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).astype(np.float32) / 255)


class Normalize:
    def __init__(self, mean: Any, std: Any) -> None:
        self.mean, self.std = (torch.as_tensor(values).view(3, 1, 1) for values in (mean, std))

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        return (tensor - self.mean) / self.std


def import_timm() -> Any:
    """Import timm, with the stand-in unless torchvision works.

    Raises:
        ImportError: timm is not installed.
    """
    if "timm" in sys.modules or _works():
        return importlib.import_module("timm")
    functional = _module("torchvision.transforms.functional", InterpolationMode=InterpolationMode)
    transforms = _module(
        "torchvision.transforms",
        functional=functional,
        **{cls.__name__: cls for cls in (Compose, Resize, CenterCrop, ToTensor, Normalize, InterpolationMode)},
    )
    functional.to_tensor = ToTensor()  # type: ignore[attr-defined]
    unused = ("CIFAR100", "CIFAR10", "MNIST", "KMNIST", "FashionMNIST", "ImageFolder")
    datasets = _module("torchvision.datasets", **dict.fromkeys(unused, object))
    misc = _module("torchvision.ops.misc", FrozenBatchNorm2d=type("FrozenBatchNorm2d", (torch.nn.Module,), {}))
    _module("torchvision", transforms=transforms, datasets=datasets, ops=_module("torchvision.ops", misc=misc))
    try:
        importlib.import_module("timm.data")
        return importlib.import_module("timm")
    finally:
        _forget()


def _works() -> bool:
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        import torchvision  # noqa: F401  # type: ignore[import-not-found]
    except RuntimeError:  # "operator torchvision::nms does not exist"
        _forget()
        return False
    return True


def _forget() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]


def _module(name: str, **content: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(content)
    sys.modules[name] = module
    return module
