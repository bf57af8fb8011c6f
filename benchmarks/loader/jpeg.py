"""Images that are decoded from JPEG files, as training on photographs does."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from benchmarks.loader.datasets import LENGTH

SIZE = (500, 375)
SHORTER_SIDE = 256
CROPPED = 224


class JpegFiles(Dataset[Any]):
    """Files of 500 x 375, decoded, resized to a shorter side of 256 and cropped to 224 x 224."""

    def __init__(self, stored: int, length: int = LENGTH, folder: Path | None = None) -> None:
        folder = folder or Path(tempfile.gettempdir()) / f"vramkit-bench-jpeg-{stored}"
        self.length = length
        self.paths = [folder / f"{number:05}.jpg" for number in range(stored)]
        if not self.paths[-1].exists():
            folder.mkdir(exist_ok=True)
            for number, path in enumerate(self.paths):
                write_image(path, seed=number)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        with Image.open(self.paths[index % len(self.paths)]) as file:
            image = file.convert("RGB")
        scale = SHORTER_SIDE / min(image.size)
        image = image.resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR
        )
        left, top = (image.width - CROPPED) // 2, (image.height - CROPPED) // 2
        image = image.crop((left, top, left + CROPPED, top + CROPPED))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), index % 1000


def write_image(path: Path, *, seed: int) -> None:
    """Write shapes of all sizes and some grain, which take about as long to decode as a photo."""
    from PIL import Image

    random = np.random.default_rng(seed)
    width, height = SIZE
    picture = random.normal(0, 6, (height, width, 3))
    for cells in (4, 16, 64):
        noise = random.integers(0, 255, (cells, cells, 3), np.uint8)
        shapes = Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC)
        picture += np.asarray(shapes, np.float64) / 3
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path, quality=90)
