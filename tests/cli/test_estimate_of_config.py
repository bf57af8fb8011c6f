"""``vramkit estimate --config``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vramkit.cli import main


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(capsys.readouterr().out)
    return loaded


def test_serving_fits_or_not(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["estimate", "--config", "llama-3.1-8b", "--context", "4096"]
    assert main(command) == 0
    assert "llama-3.1-8b on h100: serving, one GPU\n" in capsys.readouterr().out
    assert main([*command, "--target", "t4"]) == 1
    assert "does not fit into 13.8 GiB, 95 % of 14.6 GiB" in capsys.readouterr().out
    assert main([*command, "--budget", "16GiB"]) == 1
    assert "does not fit into 16.0 GiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "status", "text", "batch"),
    [
        ([], 1, "does not fit into 20.9 GiB, 95 % of 22.0 GiB\n", 3),
        (["--utilisation", "1"], 0, "fits into 22.0 GiB\n", 4),
        (["--budget", "22GiB"], 0, "fits into 22.0 GiB\n", 4),
        (["--budget", "l4"], 1, "does not fit into 20.9 GiB, 95 % of 22.0 GiB\n", 3),
        (
            ["--budget", "22GiB", "--utilisation", "0.9"],
            1,
            "does not fit into 19.8 GiB, 90 % of 22.0 GiB\n",
            2,
        ),
    ],
)
def test_the_status_agrees_with_the_answers(
    options: list[str], status: int, text: str, batch: int, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["estimate", "--config", "llama-3.1-8b", "--target", "l4", "--batch", "4"]
    assert main([*command, *options]) == status
    out = capsys.readouterr().out
    assert text in out
    assert f"largest batch at context 8,192: {batch} sequences in " in out


def test_training_with_everything(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--mode", "train", "--zero", "2", "--tensor", "4", "--data", "8", "--expert", "8"]
    options += ["--no-flash", "--recompute", "selective", "--advice", "--parameters"]
    assert main(["estimate", "--config", "qwen3-30b-a3b", *options]) == 0
    text = capsys.readouterr().out
    assert "qwen3-30b-a3b: parameters\n" in text
    assert "training, each rank, 32 GPUs" in text
    assert "ZeRO 2 over 8" in text
    assert "What would save memory:\n" in text
    assert "cost: about a third more compute" in text


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["estimate", "--config", "gpt-oss-20b", "--json", "--advice"]
    assert main([*command, "--budget", "12GiB"]) == 1
    found = printed(capsys)
    assert found["fits"] is False
    assert found["parameters"]["total"] == 20_914_757_184
    assert found["advice"][0]["fits"] is True
    assert found["options"]["weights"] == "checkpoint"


def _small(folder: Path) -> str:
    small = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128}
    small |= {"num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
    path = folder / "config.json"
    path.write_text(json.dumps(small), encoding="utf-8")
    return str(path)


def test_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--config", _small(tmp_path), "--mode", "train"]) == 0
    assert "trainable parameters: 45,248" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--target", "l4"], "The model fits into 20.9 GiB, 95 % of 22.0 GiB."),
        (["--budget", "22GiB"], "The model fits into 22.0 GiB."),
        (["--budget", "22GiB", "--mode", "train", "--policy", "bf16"], "fits into 22.0 GiB."),
    ],
)
def test_a_trace_may_use_the_same_part(
    options: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", minversion="5.17")
    size = ["--sequence"] if "train" in options else ["--context"]
    command = ["estimate", "--config", _small(tmp_path), "--trace", "--steps", "1", *size, "64"]
    assert main([*command, *options]) == 0
    assert text in capsys.readouterr().out


def test_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--list"]) == 0
    assert "kimi-k2                        Kimi K2\n" in capsys.readouterr().out
    assert main(["estimate", "--list", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) >= 30


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "nothing to estimate: give FILE:FUNCTION"),
        (["--mode", "train"], "give --config FILE or --config NAME"),
        (["train.py:make", "--zero", "0"], "--zero cannot be used with a step (train.py:make)"),
        (["--config", "phi-4", "--steps", "2"], "--steps can only be used with a step or with"),
        (["--trace", "--mode", "train"], "--trace needs --config"),
        (
            ["--config", "phi-4", "--trace", "--tensor", "8"],
            "a trace is of one GPU, got a layout of 8",
        ),
        (["--config", "lama-3.1-8b"], "did you mean"),
        (["--config", "phi-4", "--zero", "1"], "--zero cannot be used with --mode serve"),
        (["--config", "phi-4", "--packed"], "--packed cannot be used with --mode serve"),
        (
            ["--config", "phi-4", "--mode", "train", "--batch", "2", "--keep-windows"],
            "--batch, --keep-windows cannot be used with --mode train",
        ),
        (["--config", "phi-4", "--batch", "x"], "argument --batch: invalid int value: 'x'"),
        (["--config", "phi-4", "--budget", "24G"], "the unit 'G' is ambiguous"),
    ],
)
def test_bad_usage(options: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", *options]) == 2
    assert text in capsys.readouterr().err


def test_other_commands_do_without_its_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(parser: object) -> None:
        raise AssertionError("loaded for another command")

    monkeypatch.setattr("vramkit.estimate.config._command.add_arguments", refuse)
    assert main(["demo", "--help"]) == 0
    assert main(["--help"]) == 0
    assert "of a step or of a large model" in capsys.readouterr().out
