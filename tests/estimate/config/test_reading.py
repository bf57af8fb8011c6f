"""Reading configurations, and refusing what is not known."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vramkit.errors import ArgumentTypeError, InvalidArgumentError, MissingExtraError
from vramkit.estimate.config import count_parameters, read_model

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


def test_a_file_a_folder_and_a_dict_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SMALL), encoding="utf-8")
    totals = {count_parameters(read_model(each)).total for each in (path, str(tmp_path), SMALL)}
    assert len(totals) == 1


def test_names_with_an_organisation_are_found() -> None:
    assert read_model("Qwen/Qwen2.5-7B") == read_model("qwen2.5-7b")


@pytest.mark.parametrize("path", ["/models/qwen2.5-7b", "./qwen2.5-7b", "../models/qwen2.5-7b"])
def test_a_path_that_is_not_there_is_no_name_of_the_catalogue(path: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"there is no file or folder {path!r}"):
        read_model(path, hub=False)


def test_kinds_of_layers() -> None:
    assert read_model("gemma-3-27b").kinds() == {"GQA, window 1,024": 52, "GQA": 10}
    assert read_model("gpt-oss-20b").kinds() == {"GQA, window 128": 12, "GQA": 12}
    assert read_model("qwen3-next-80b-a3b").kinds() == {"linear": 36, "GQA": 12}
    assert read_model("deepseek-v3.2-exp").kinds() == {"MLA, sparse": 61}
    assert read_model("llama-4-scout").kinds() == {"GQA, window 8,192": 36, "GQA": 12}
    assert read_model("gemma-3-1b").kinds() == {"MQA, window 512": 22, "MQA": 4}


def test_windows_of_qwen_begin_after_the_first_layers() -> None:
    config = {**SMALL, "model_type": "qwen2", "num_hidden_layers": 4}
    assert read_model({**config, "sliding_window": 32}).kinds() == {"GQA": 4}
    config |= {"use_sliding_window": True, "sliding_window": 32}
    assert read_model({**config, "max_window_layers": 3}).kinds() == {"GQA": 3, "GQA, window 32": 1}
    [note] = read_model(config).notes
    assert note == "max_window_layers is not in the configuration: 28, as in transformers' class."


def test_what_googles_configuration_leaves_out_is_noted() -> None:
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "sliding_window": 1024,
    }
    model = read_model({"model_type": "gemma3", "text_config": text})
    whole = count_parameters(read_model("gemma-3-4b"))
    assert count_parameters(model).total == whole.total - whole.parts["vision"]
    assert "head_dim is not in the text_config: 256, as in transformers' class." in model.notes


def test_images_are_counted_and_what_is_not_is_said() -> None:
    [note] = read_model("llama-4-scout").notes
    assert "weights of the image encoder are counted" in note


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model_type": "rwkv7"}, r"models of type 'rwkv7' cannot be read, because .* known are"),
        ({"model_type": None}, "has no 'model_type'; is this the config.json"),
        ({"hidden_size": None}, "the configuration has no 'hidden_size', without which"),
        ({"hidden_size": "64"}, "'hidden_size' must be a positive integer, got '64'"),
        ({"hidden_size": True}, "'hidden_size' must be a positive integer, got True"),
        ({"vocab_size": 0}, "'vocab_size' must be a positive integer, got 0"),
        ({"num_hidden_layers": 10**6}, "'num_hidden_layers' must be at most 2,000"),
        (
            {"model_type": "gpt2", "n_embd": 4, "n_head": 2, "n_positions": 8, "n_layer": 10**9},
            "'n_layer' must be at most 2,000",
        ),
        ({"num_attention_heads": 3}, "3 heads cannot share 2 heads of keys and values"),
        ({"num_attention_heads": 6}, "hidden_size 64 is not divisible by 6 heads; give head_dim"),
        ({"attention_bias": 1}, "'attention_bias' must be true or false, got 1"),
        ({"torch_dtype": 16}, "'torch_dtype' must be a text, got 16"),
        ({"quantization_config": []}, r"'quantization_config' must be an object, got \[\]"),
        (
            {"model_type": "gpt_oss", "sliding_window": 8, "layer_types": ["full_attention"]},
            "'layer_types' has 1 entries for 2 layers",
        ),
        (
            {"model_type": "gpt_oss", "sliding_window": 8, "layer_types": ["full_attention", "x"]},
            "'layer_types' must be a list of known kinds of attention, got 'x'",
        ),
        ({"model_type": "qwen3_moe", "num_experts": 4}, "has no 'num_experts_per_tok'"),
        ({"model_type": "llama4"}, "has no 'text_config'"),
    ],
)
def test_what_cannot_be_read_is_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        read_model({**SMALL, "moe_intermediate_size": 8, **change})


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "config.json is not valid JSON"),
        ("[" * 100_000, "config.json is not valid JSON"),
        ("[]", "holds a list, not a JSON object"),
    ],
)
def test_files_that_are_no_configuration(content: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InvalidArgumentError, match=text):
        read_model(path)


def test_unknown_names_are_refused_with_near_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"did you mean .*llama-3.1-8b"):
        read_model("lama-3.1-8b")
    with pytest.raises(InvalidArgumentError, match=r"has no config.json"):
        read_model(tmp_path)
    number: Any = 7
    with pytest.raises(ArgumentTypeError, match="got int"):
        read_model(number)


def test_the_hub_is_asked_only_if_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vramkit\[hub\]'"):
        read_model("nobody/nothing-1b")
    with pytest.raises(InvalidArgumentError, match="is neither a config"):
        read_model("nobody/nothing-1b", hub=False)


def test_a_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def download(name: str, file: str) -> str:
        asked.append((name, file))
        if name == "nobody/offline":
            raise ConnectionError("no route to the hub")
        path = tmp_path / file
        path.write_text(json.dumps(SMALL), encoding="utf-8")
        return str(path)

    hub = ModuleType("huggingface_hub")
    monkeypatch.setattr(hub, "hf_hub_download", download, raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert read_model("nobody/small").name == "nobody/small"
    assert asked == [("nobody/small", "config.json")]
    with pytest.raises(InvalidArgumentError, match=r"could not be fetched .*\(ConnectionError\)"):
        read_model("nobody/offline")
