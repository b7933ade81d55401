from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from span_sparse.extract.encoders.catalogue import IMAGENET, SPECS
from span_sparse.extract.encoders.transform import Transform


def by_hand(patch: np.ndarray, transform: Transform) -> np.ndarray:
    """Pillow and numpy, in the order of a model card."""
    picture = Image.fromarray(patch)
    if transform.resize_px is not None:
        picture = picture.resize((transform.resize_px,) * 2, Image.Resampling[transform.interpolation.upper()])
    start = (picture.width - transform.crop_px) // 2
    pixels = np.asarray(picture)[start : start + transform.crop_px, start : start + transform.crop_px]
    return ((pixels / 255 - transform.mean) / transform.std).transpose(2, 0, 1)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("edge", [None, 225, 300])
def test_equals_pillow(name: str, edge: int | None, patches) -> None:
    spec = SPECS[name]
    size = edge or spec.input_size_px
    batch = patches(2, size)
    batch[1] = np.random.default_rng(1).integers(0, 256, batch[1].shape)  # white noise: where filters differ most
    found = spec.transform(torch.from_numpy(batch)).numpy()
    for patch, ours in zip(batch, found, strict=True):
        np.testing.assert_allclose(ours, by_hand(patch, spec.transform), atol=1e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("sizes", [(256, 224), (512, 448), (224, 256), (97, 31), (31, 97), (8, 3), (1000, 56)])
def test_every_pixel_of_a_resize_is_pillow_s(sizes: tuple[int, int], interpolation) -> None:
    batch = np.random.default_rng(0).integers(0, 256, (1, sizes[0], sizes[0], 3), dtype=np.uint8)
    found = Transform(sizes[1], sizes[1], interpolation, (0, 0, 0), (1 / 255,) * 3)(torch.from_numpy(batch))
    picture = Image.fromarray(batch[0]).resize((sizes[1],) * 2, Image.Resampling[interpolation.upper()])
    np.testing.assert_array_equal(found[0].round().numpy().transpose(1, 2, 0), np.asarray(picture))


@pytest.mark.parametrize("edge", [224, 256, 512, 180])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_equals_the_evaluation_transform_of_timm(interpolation, edge, timm, torchvision_like, patches) -> None:
    theirs = timm.data.create_transform(
        input_size=(3, 224, 224), is_training=False, crop_pct=0.875, interpolation=interpolation, **IMAGENET
    )
    ours = Transform(256, 224, interpolation, **IMAGENET)
    batch = patches(2, edge)
    expected = torch.stack([theirs(Image.fromarray(patch)) for patch in batch])
    torch.testing.assert_close(ours(torch.from_numpy(batch)), expected, atol=1e-5, rtol=0)


def test_crops_the_centre_by_hand() -> None:
    patch = np.arange(5 * 5 * 3, dtype=np.uint8).reshape(1, 5, 5, 3)
    found = Transform(None, 3, "bicubic", (0, 0, 0), (1 / 255,) * 3)(torch.from_numpy(patch))
    np.testing.assert_allclose(found[0].numpy(), patch[0, 1:4, 1:4].transpose(2, 0, 1), atol=1e-4)
    assert found.is_contiguous()


def test_an_empty_batch_stays_empty() -> None:
    assert Transform(8, 4, "bicubic", **IMAGENET)(torch.zeros((0, 16, 16, 3), dtype=torch.uint8)).shape == (0, 3, 4, 4)


KERNEL = """
import numpy as np, torch
from span_sparse.extract.encoders.resize_kernel import Taps, resize
from span_sparse.extract.encoders.transform import Transform, _normalised, _weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
random = np.random.default_rng(0)
for edge, resize_px, crop_px, filter in [
    (64, 56, 56, "bilinear"), (72, 64, 48, "bicubic"), (40, 56, 51, "bicubic"), (96, 37, 37, "bicubic"),
    (50, 28, 17, "bilinear"), (8, 3, 3, "bilinear"),
]:
    patches = torch.from_numpy(random.integers(0, 256, (3, edge, edge, 3), dtype=np.uint8))
    patches[0] = torch.where(patches[0] > 128, 255, 0)  # where a bicubic filter leaves the grey levels
    taps = Taps.of(_weights(edge, resize_px, filter), torch.device("cpu"))
    found = resize(patches, taps, crop_px, _normalised(MEAN, STD, torch.device("cpu")))
    assert torch.equal(found, Transform(resize_px, crop_px, filter, MEAN, STD)(patches)), (edge, resize_px, filter)
print("equal")
"""


def test_the_kernel_of_gpus_gives_the_same_bits() -> None:
    """In Triton's interpreter, which must be switched on before Triton is imported."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed: pip install triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", KERNEL]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("sizes", [(256, 224, 224), (512, 448, 448), (300, 256, 224), (97, 131, 131)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_gpu_gives_the_bits_of_the_cpu(sizes, interpolation) -> None:
    edge, resize_px, crop_px = sizes
    batch = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, edge, edge, 3), dtype=np.uint8))
    transform = Transform(resize_px, crop_px, interpolation, **IMAGENET)
    assert torch.equal(transform(batch.cuda()).cpu(), transform(batch))
