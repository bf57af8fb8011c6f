"""The datasets of the loader's benchmark have the shapes that their names say."""

from pathlib import Path

import pytest
import torch

from benchmarks.loader.datasets import image_tensors, rows
from benchmarks.loader.jpeg import JpegFiles
from benchmarks.loader.text import IGNORED_LABEL, Blocks, Documents, TokenFile, pad


def test_arrays_are_repeated_tiles() -> None:
    images = image_tensors(128)
    assert images.tensors[0].shape == (128, 3, 224, 224)
    assert torch.equal(images[64][0], images[0][0])
    assert rows(1 << 10, 256)[5][0].shape == (64,)


def test_images_are_decoded_and_cropped(tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed")
    files = JpegFiles(2, length=4, folder=tmp_path)
    image, label = files[3]
    assert (image.shape, image.dtype, label) == ((3, 224, 224), torch.uint8, 3)
    assert image.float().std() > 20
    assert torch.equal(image, files[1][0])
    # As heavy as photographs of this size are.
    assert 30_000 < files.paths[0].stat().st_size < 200_000
    assert len(JpegFiles(2, length=4, folder=tmp_path)) == 4


def test_documents_are_padded(tmp_path: Path) -> None:
    documents = Documents(TokenFile(1 << 14, folder=tmp_path))
    taken = [documents[number] for number in range(8)]
    assert {document.dtype for document in taken} == {torch.int64}
    lengths = [len(document) for document in taken]
    assert 16 <= min(lengths) < max(lengths) <= 1024
    batch = pad(taken)
    assert batch["input_ids"].shape == (8, max(lengths))
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert (batch["labels"] == IGNORED_LABEL).sum(1).tolist() == [
        max(lengths) - length for length in lengths
    ]
    assert torch.equal(documents[len(documents.ends)], documents[0])


def test_targets_are_shifted_by_one(tmp_path: Path) -> None:
    blocks = Blocks(TokenFile(1 << 10, folder=tmp_path), 64)
    inputs, targets = blocks[1]
    assert (len(inputs), len(targets)) == (64, 64)
    assert torch.equal(inputs[1:], targets[:-1])
    assert torch.equal(blocks[0][1][-1], inputs[0])
