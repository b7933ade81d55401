"""Filters that shrink patches, compared by the features that come of them.

Crops of slides (`--crop` pixels, where there is colour) are shrunk to `--size` pixels by LANCZOS in one step, by the
steps of this package, by other filters, and by LANCZOS with a JPEG of quality 90 behind it. Each way is compared with
the first: grey levels, `stain-texture` and a ViT-tiny of random weights. Given is the median over the crops of the
length of the difference over the length of the vector.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import torch
from extract_network import import_timm
from PIL import Image

from span_sparse.extract import StainTextureEncoder
from span_sparse.wsi.openslide_reader import _resampled

Filter = Image.Resampling
MEAN, STD = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="slides, or pictures of at least the crop")
    parser.add_argument("--crop", type=int, default=448)
    parser.add_argument("--size", type=int, default=224, help="a multiple of 8")
    parser.add_argument("--crops", type=int, default=20, help="of each file, at most")
    options = parser.parse_args()
    crops = [crop for path in options.files for crop in crops_of(path, options.crop, options.crops)]
    encoders = [StainTextureEncoder(options.size, 0.5), vision_transformer()]
    print(f"{len(crops)} crops, shrunk {options.crop / options.size:.3g} times: grey levels, stain-texture, ViT-tiny")
    first: list[np.ndarray] = []
    for name, shrink in ways(options.crop, options.size).items():
        pixels = np.stack([np.asarray(shrink(crop)) for crop in crops])
        values = [pixels.astype(float), *(encode(pixels) for encode in encoders)]
        first = first or values
        grey = np.sqrt(((values[0] - first[0]) ** 2).mean())
        print(f"{name:16}{grey:6.2f}", *(f"{relative(*pair):8.4f}" for pair in zip(values[1:], first[1:], strict=True)))


def crops_of(path: Path, edge: int, count: int) -> list[Image.Image]:
    """Crops with colour: of a slide at level 0, or the corner of a picture."""
    if path.suffix.lower() in (".png", ".jpg"):
        return [Image.open(path).convert("RGB").crop((0, 0, edge, edge))]
    with openslide.OpenSlide(path) as slide:
        overview = np.asarray(slide.get_thumbnail((400, 400))).astype(int)
        scale = slide.dimensions[0] / overview.shape[1]
        corners = np.argwhere(np.ptp(overview, axis=2) > 30)[:, ::-1] * scale
        corners = corners[(corners + edge < slide.dimensions).all(axis=1)].astype(int)
        chosen = np.random.default_rng(1).permutation(corners)[:count].tolist()
        return [slide.read_region((x, y), 0, (edge, edge)).convert("RGB") for x, y in chosen]


def ways(edge: int, size: int) -> dict[str, Callable[[Image.Image], Image.Image]]:
    """The ways to shrink by name, the yardstick first."""
    shape = (size, size)

    def jpeg(crop: Image.Image) -> Image.Image:
        file = io.BytesIO()
        crop.resize(shape, Filter.LANCZOS).save(file, "jpeg", quality=90, subsampling="4:4:4")
        return Image.open(file)

    return {
        "lanczos": lambda crop: crop.resize(shape, Filter.LANCZOS),
        "box, lanczos": lambda crop: _resampled(crop, shape, (0, 0, edge, edge)),
        "bicubic": lambda crop: crop.resize(shape, Filter.BICUBIC),
        "bilinear": lambda crop: crop.resize(shape, Filter.BILINEAR),
        "jpeg 90": jpeg,
    }


def vision_transformer() -> Callable[[np.ndarray], np.ndarray]:
    """Vectors of a ViT-tiny of random weights for patches of any size."""
    timm = import_timm()
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0).eval()

    def encode(pixels: np.ndarray) -> np.ndarray:
        large = [np.asarray(Image.fromarray(patch).resize((224, 224), Filter.BICUBIC)) for patch in pixels]
        inputs = torch.from_numpy(((np.stack(large) / 255 - MEAN) / STD).transpose(0, 3, 1, 2)).float()
        with torch.inference_mode():
            return network(inputs).numpy()

    return encode


def relative(vectors: np.ndarray, others: np.ndarray) -> float:
    """Median of the relative lengths of the differences."""
    return float(np.median(np.linalg.norm(vectors - others, axis=1) / np.linalg.norm(others, axis=1)))


if __name__ == "__main__":
    main()
