"""Hugging Face datasets: which are gathered, and that the batches are PyTorch's."""

from __future__ import annotations

import copy
import itertools
import math
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.batches import assert_parity, assert_same, seed_all
from helpers.documents import DOCUMENTS, python_blocks
from torch.utils.data import ConcatDataset, DataLoader, StackDataset, Subset

import vramkit
from vramkit.loader._arrays import find_arrays
from vramkit.loader._columns import columns_of

datasets = pytest.importorskip("datasets", reason="datasets is not installed")
pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")

NUMBERS = ("int8", "int16", "int32", "int64", "uint8", "float16", "float32", "float64")
LENGTH = 61


def _values(draw: random.Random, dtype: str, count: int) -> Any:
    raw = np.frombuffer(draw.randbytes(count * np.dtype(dtype).itemsize), dtype).copy()
    if raw.dtype.kind == "f":
        # A signalling NaN becomes a quiet one as soon as it is a scalar.
        raw[np.isnan(raw)] = np.nan
    return pa.array(raw)


def _fixed(draw: random.Random, values: Any, rows: int) -> Any:
    """Lists of lists of a size that is a part of the type, or of equal lists of any size."""
    for size in _divisors(len(values) // rows):
        if draw.random() < 0.5:
            values = pa.FixedSizeListArray.from_arrays(values, size)
            continue
        kind = draw.choice([(pa.ListArray, pa.int32()), (pa.LargeListArray, pa.int64())])
        offsets = pa.array(range(0, len(values) + 1, size), kind[1])
        values = kind[0].from_arrays(offsets, values)
    return values


def _divisors(count: int) -> tuple[int, ...]:
    return {1: (), 6: (3, 2), 4: (4,), 1500: (10, 150)}[count]


def _chunks(draw: random.Random, array: Any) -> Any:
    """The same column in several parts, some of them empty or cut out of larger ones."""
    cuts = sorted(draw.choices(range(LENGTH + 1), k=draw.choice([0, 0, 1, 4])))
    ends = [0, *cuts, LENGTH]
    return pa.chunked_array([array[a:b] for a, b in itertools.pairwise(ends)])


def _random_table(draw: random.Random, dtypes: tuple[str, ...]) -> Any:
    columns = {}
    for number in range(draw.randint(1, 4)):
        width = draw.choice([1, 1, 6, 4, 1500])
        values = _values(draw, draw.choice(dtypes), LENGTH * width)
        columns[f"column {number}"] = _chunks(draw, _fixed(draw, values, LENGTH))
    return pa.table(columns)


def _random_view(draw: random.Random, made: Any) -> Any:
    """The dataset in another order, several times over."""
    for _ in range(draw.choice([0, 1, 2])):
        count = len(made)
        change = draw.choice(["shuffle", "select", "range", "filter", "flatten"])
        if change == "shuffle":
            made = made.shuffle(seed=draw.randrange(100))
        elif change == "select":
            made = made.select(draw.choices(range(count), k=count))
        elif change == "range":
            made = made.select(range(count // 4, count))
        elif change == "flatten":
            made = made.flatten_indices()
        else:
            made = made.filter(lambda _, at: at % 3 > 0, with_indices=True)
    return made


def _gathered(loader_options: dict[str, Any], made: Any) -> None:
    loader = vramkit.DataLoader(made, **loader_options)
    batches = list(loader)
    stats = loader.stats()
    assert (stats.path, stats.reason, stats.batches) == ("arrays", "", len(batches))


def hf(table: Any) -> Any:
    return datasets.Dataset(pa.table(table))


@pytest.fixture(autouse=True)
def quiet() -> Any:
    datasets.disable_progress_bars()


@pytest.mark.parametrize("seed", range(24))
def test_any_columns_in_any_order(seed: int) -> None:
    draw = random.Random(seed)
    style = draw.choice(["torch", "numpy"])
    kept = draw.random() < 0.7
    dtypes = NUMBERS if kept else ("int64", "float32")
    made = datasets.Dataset(_random_table(draw, dtypes))
    chosen = draw.sample(made.column_names, draw.randint(1, len(made.column_names)))
    made = _random_view(draw, made)
    made = made.with_format(style, chosen, **({"dtype": None} if kept else {}))
    made = _random_view(draw, made)
    options: dict[str, Any] = {
        "batch_size": draw.choice([1, 4, 16]),
        "shuffle": draw.random() < 0.7,
        "drop_last": draw.random() < 0.5,
        "num_workers": 2 if seed % 6 == 0 else 0,
    }
    _gathered(options, made)
    assert_parity(made, epochs=2, **options)


@pytest.mark.parametrize("style", ["torch", "numpy"])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_a_type_that_the_format_keeps(dtype: str, style: str) -> None:
    draw = random.Random(dtype)
    made = hf({"x": _values(draw, dtype, 30), "y": _fixed(draw, _values(draw, dtype, 180), 30)})
    kept = getattr({"torch": torch, "numpy": np}[style], dtype)
    for given in (kept, None):
        styled = made.with_format(style, dtype=given)
        _gathered({"batch_size": 7}, styled)
        assert_parity(styled, batch_size=7, shuffle=True)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_nans_keep_their_bits(dtype: str) -> None:
    width = np.dtype(dtype).itemsize
    raw = np.full((64, width), 255, np.uint8)
    raw[:, :-2] = np.random.default_rng(0).integers(0, 256, (64, width - 2))
    raw[32:, -1] = 127
    raw[::2, -2] = {2: 125, 4: 191, 8: 247}[width]
    values = pa.array(raw.view(dtype).reshape(-1))
    assert_parity(hf({"x": values}).with_format("torch", dtype=None), batch_size=9)


def test_arrays_of_several_dimensions() -> None:
    features = {
        "a": datasets.Array2D((2, 3), "float32"),
        "b": datasets.Array3D((2, 2, 4), "uint8"),
        "c": datasets.Array2D((None, 5), "int64"),
    }
    shapes = {"a": (2, 3), "b": (2, 2, 4), "c": (4, 5)}
    rows = {
        name: np.arange(12 * math.prod(shape)).reshape(12, *shape).tolist()
        for name, shape in shapes.items()
    }
    made = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    for style in ("torch", "numpy"):
        styled = made.with_format(style, dtype=None).shuffle(seed=3)
        _gathered({"batch_size": 5}, styled)
        assert_parity(styled, batch_size=5)


def test_an_array_of_another_shape_than_its_type_is_not_gathered() -> None:
    kind = datasets.Array2D((2, 3), "int64")()
    storage = pa.array([[[1, 2], [3, 4], [5, 6]]] * 4, kind.storage_type)
    made = hf({"x": pa.ExtensionArray.from_storage(kind, storage)}).with_format("torch")
    loader = vramkit.DataLoader(made)
    iter(loader)
    assert loader.stats().reason == "column 'x' has shape (2, 3), but is stored as (3, 2)"
    assert_parity(made, batch_size=3)


def _simple(rows: int = 40, **options: Any) -> Any:
    table = {
        "x": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(rows * 3.0, dtype="f4")), 3),
        "y": pa.array(range(rows)),
    }
    return hf(table).with_format("torch", **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Subset(_simple().shuffle(seed=4), [3, 1, 39, 1]),
        lambda: ConcatDataset([_simple(), _simple(7).shuffle(seed=1)]),
        lambda: StackDataset(_simple().select([4, 9, 4]), Subset(_simple(), [5, 6, 7])),
        lambda: datasets.concatenate_datasets([_simple(), _simple(9)]).with_format("torch"),
    ],
)
def test_parts_of_other_data_sets(make: Any) -> None:
    made = make()
    _gathered({"batch_size": 4}, made)
    assert_parity(made, batch_size=4, shuffle=True)


def test_a_file_is_gathered_from_its_mapping(tmp_path: Path) -> None:
    _simple(2500).save_to_disk(tmp_path / "saved", num_shards=2)
    made = datasets.load_from_disk(tmp_path / "saved").with_format("torch")
    mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [
        tuple(int(end, 16) for end in line[0].split("-")) for line in mapped if ".arrow" in line[-1]
    ]
    for column in columns_of(find_arrays(made)):
        assert len(column.segments) > 1
        for segment in column.segments:
            assert any(begin <= segment.address < end for begin, end in ranges)
    assert_parity(made, batch_size=512, shuffle=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on(workers: int) -> None:
    options = {"batch_size": 4, "shuffle": True, "num_workers": workers}
    made = _simple().shuffle(seed=2)
    seed_all(5)
    whole = list(DataLoader(made, **options))
    seed_all(5)
    first = vramkit.DataLoader(made, **options)
    iterator = iter(first)
    batches = [next(iterator) for _ in range(3)]
    state = copy.deepcopy(first.state_dict())
    second = vramkit.DataLoader(made, **options)
    second.load_state_dict(state)
    assert_same(batches + list(second), whole)
    assert second.stats().path == "arrays"


def test_a_format_that_changes_counts_from_the_next_epoch() -> None:
    made = _simple()
    loader = vramkit.DataLoader(made, batch_size=20)
    assert list(next(iter(loader))) == ["x", "y"]
    made.set_format("torch", ["y"])
    assert list(next(iter(loader))) == ["y"]
    made.set_format("torch", dtype=torch.float64)
    assert next(iter(loader))["y"].dtype == torch.float64
    assert loader.stats().path == "inline"


@pytest.mark.parametrize("indices", [[3, -1, 2], [0, 40], [0, -41]])
@pytest.mark.parametrize("ordered", [False, True])
def test_indices_are_the_data_sets_matter(indices: list[int], ordered: bool) -> None:
    made = _simple().shuffle(seed=1) if ordered else _simple()
    _gathered({"batch_size": 4}, made)
    assert_parity(made, batch_size=4, sampler=lambda: indices)


def test_the_data_set_makes_the_batches_without_a_batch_size() -> None:
    assert_parity(_simple(), batch_size=None, shuffle=True)


WORDS = pa.array(["a", "b", "c"])
INTS = pa.array([1, 2, 3])
RAGGED = pa.array([[1, 2], [3], [4, 5]])


@pytest.mark.parametrize(
    ("columns", "options", "reason"),
    [
        ({"x": INTS}, {"type": None}, "in the format None makes its samples"),
        ({"x": WORDS}, {}, "'x' has Arrow's type string; only integers"),
        ({"x": pa.array([True, False, True])}, {}, "'x' has Arrow's type bool"),
        ({"x": pa.array([[1, 2], None, [3, 4]])}, {}, "'x' has nulls"),
        ({"x": pa.array([1.5, None, 2.5])}, {}, "'x' has nulls"),
        ({"x": pa.array([[1, 2], [3, None], [4, 5]])}, {}, "'x' has nulls"),
        ({"x": RAGGED}, {}, "the lists of column 'x' have different lengths"),
        ({"x": pa.array([[], [], []], pa.list_(pa.int64()))}, {}, "'x' have no elements"),
        ({"x": pa.array([{"a": 1}] * 3)}, {}, "Arrow's type struct<a: int64>"),
        ({"x": INTS.cast(pa.timestamp("s"))}, {}, "Arrow's type timestamp"),
        ({"x": INTS.cast(pa.uint16())}, {"dtype": None}, "Arrow's type uint16"),
        ({"x": INTS.cast(pa.int32())}, {}, "(torch.int32, ()) and delivered as (torch.int64, ())"),
        ({"x": INTS.cast(pa.float64())}, {}, "dtype=None) delivers every column as it is stored"),
        ({"x": INTS.cast(pa.int32())}, {"type": "numpy"}, "delivered as (torch.int64, ())"),
        ({"x": INTS.cast(pa.float64())}, {"type": "numpy"}, "delivered as (torch.float32, ())"),
        ({"x": INTS}, {"dtype": torch.float32, "requires_grad": True}, "not delivered as a plain"),
        ({"x": INTS, "y": WORDS}, {"columns": ["x"], "output_all_columns": True}, "Python objects"),
        ({"x": INTS[:0]}, {}, "the Hugging Face dataset is empty"),
    ],
)
def test_what_is_not_gathered_says_why(columns: Any, options: Any, reason: str) -> None:
    made = hf(columns).with_format(**({"type": "torch"} | options))
    loader = vramkit.DataLoader(made)
    iter(loader)
    assert reason in loader.stats().reason
    assert loader.stats().path == "inline"
    assert_parity(made, batch_size=2)


def test_parts_with_lists_of_different_lengths_are_not_gathered() -> None:
    made = hf({"x": pa.chunked_array([[[1, 2]], [[3]]])}).with_format("torch")
    loader = vramkit.DataLoader(made)
    iter(loader)
    assert "have different lengths" in loader.stats().reason
    assert_parity(made, batch_size=1)


def test_columns_of_parts_in_another_order_are_not_gathered() -> None:
    made = ConcatDataset([_simple(), _simple().select_columns(["y", "x"])])
    loader = vramkit.DataLoader(made)
    iter(loader)
    assert "the keys' order" in loader.stats().reason
    assert_parity(made, batch_size=30)


def test_a_transform_is_called() -> None:
    made = _simple().with_transform(lambda batch: {"z": [each + 1 for each in batch["y"]]})
    (batch,) = vramkit.DataLoader(made, batch_size=40)
    assert torch.equal(batch["z"], torch.arange(1, 41))


def test_a_decoded_column_is_decoded() -> None:
    features = datasets.Features({"x": datasets.Value("int64"), "image": datasets.Image()})
    images = [np.full((2, 2, 3), each, np.uint8) for each in range(3)]
    made = datasets.Dataset.from_dict({"x": [1, 2, 3], "image": images}, features=features)
    loader = vramkit.DataLoader(made.with_format("torch"))
    iter(loader)
    assert loader.stats().reason == "samples of column 'image' are decoded (Image)"
    _gathered({}, made.with_format("torch", ["x"]))


def test_a_subclass_is_asked() -> None:
    class Doubling(datasets.Dataset):  # type: ignore[misc, name-defined]
        def __getitems__(self, keys: list[int]) -> list[Any]:
            return [{"y": 2 * each["y"]} for each in super().__getitems__(keys)]

    made = Doubling(pa.table({"y": INTS})).with_format("torch")
    loader = vramkit.DataLoader(made, batch_size=3)
    (batch,) = loader
    assert batch["y"].tolist() == [2, 4, 6]
    assert "Doubling is not known to be arrays" in loader.stats().reason


def test_it_is_known_only_where_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _simple()
    monkeypatch.delitem(sys.modules, "datasets.arrow_dataset")
    loader = vramkit.DataLoader(made)
    iter(loader)
    assert "Dataset is not known to be arrays" in loader.stats().reason


def test_the_document_says_what_happens() -> None:
    examples = [each for path in DOCUMENTS for each in python_blocks(path, needs="datasets")]
    assert examples
    for example in examples:
        exec(compile(example, "example", "exec"), {})
