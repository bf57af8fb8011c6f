"""Holds estimates against what an H100 measured: ``python -m benchmarks.estimate [MODEL ...]``.

Reads the measured peaks from ``truth-h100.jsonl`` in ``--truth`` (by default ``../shared/estimate``
beside the checkout) and prints a Markdown table; with ``--record`` the predicted and the measured
bytes are appended to the results, too. Needs timm and transformers 5.17.0: the measured one, since
another version's models may run other operators.

``--peers`` prints what other estimators say of the same steps. ``--own`` needs a GPU instead: it
runs the models of ``own.py`` on it and compares these, after the workspaces of their convolutions
were measured (``vramkit calibrate``). ``--others`` does the same with the models of ``others.py``,
each in processes of its own; it also needs torchvision, peft and torch_geometric, and names what it
skips. ``--parallel`` needs at least two GPUs: it runs the steps of ``parallel.py`` with a rank on
each, after NCCL was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks._shared.harness import Recorder, Row, Setting, summarize
from benchmarks._shared.provenance import gpu_provenance

ROOT = Path(__file__).resolve().parents[2]
_COLUMNS = ("requested", "allocated", "reserved", "device")


def read_truth(folder: Path) -> dict[str, dict[str, int]]:
    """Return the measured bytes of each model, by column."""
    found = {}
    for line in (folder / "truth-h100.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        found[record["model"]] = {
            "parameters": record["params"],
            "requested": record["peak_requested"],
            "allocated": record["peak_allocated"],
            "reserved": record["peak_reserved"],
            "device": record["device_used"],
        }
    return found


def measure(
    name: str, truth: dict[str, int], recorder: Recorder | None
) -> tuple[str, dict[str, float]]:
    """Estimate one model; returns its row and the errors in percent."""
    from benchmarks.estimate.models import MODELS
    from vramkit.estimate import estimate

    begin = time.perf_counter()
    found = estimate(step=MODELS[name].make_step)
    seconds = time.perf_counter() - begin
    assert found.parameters == truth["parameters"], f"{name} is another model here"
    predicted = {
        "requested": found.peak_requested_bytes,
        "allocated": found.peak_allocated_bytes,
        "reserved": found.reserved_bytes["native"],
        "device": found.device_bytes,
    }
    if recorder is not None:
        _record(recorder, name, predicted, truth)
    errors = {key: 100 * (predicted[key] / truth[key] - 1) for key in _COLUMNS}
    cells = (f"{predicted[key]:,} / {truth[key]:,}" for key in ("allocated", "reserved"))
    percent = (f"{errors[key]:+.3f}" for key in _COLUMNS)
    assumed = "yes" if found.trace.assumed_bytes else ""
    row = f"| {name} | {' | '.join(cells)} | {' | '.join(percent)} | {assumed} | {seconds:.1f} |"
    return row, errors


def _record(
    recorder: Recorder, name: str, predicted: dict[str, int], truth: dict[str, int]
) -> None:
    for key in _COLUMNS:
        own, measured = (summarize([float(sizes[key])]) for sizes in (predicted, truth))
        row = Row("estimate", name, f"{key}_bytes", "B", own, {}, "measured on an H100", measured)
        recorder.add(row)


def compare_peers(
    names: list[str], truth: dict[str, dict[str, int]], recorder: Recorder | None
) -> int:
    """Print the errors of the allocated bytes of each estimator that is installed."""
    from benchmarks.estimate.models import MODELS
    from benchmarks.estimate.peers import ask, installed

    peers = installed()
    print(
        f"| model | {' | '.join(f'{name} %' for name in peers)} |\n|---"
        + "|---:" * len(peers)
        + "|"
    )
    for name in names or MODELS:
        measured = truth[name]["allocated"]
        cells = []
        for peer, asked in peers.items():
            said = ask(asked, MODELS[name])
            exact = isinstance(said, int)
            cells.append(f"{100 * (said / measured - 1):+.1f}" if exact else str(said or ""))
            if recorder is not None and exact:
                theirs, own = summarize([float(said)]), summarize([float(measured)])
                case = f"{name}, measured on an H100"
                recorder.add(Row("estimate", case, "allocated_bytes", "B", own, {}, peer, theirs))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return 0


def compare_own(names: list[str], *, record: bool, commit: str | None) -> int:
    """Compare the models of ``own.py`` on this machine's GPU; returns 75 where there is none."""
    from benchmarks.estimate import own_run

    return _compare_calibrated("own", own_run.compare, names, record=record, commit=commit)


def compare_others(names: list[str], *, record: bool, commit: str | None) -> int:
    """Compare the models of ``others.py`` on this machine's GPU; returns 75 without one."""
    from benchmarks.estimate import others_run

    return _compare_calibrated("others", others_run.compare, names, record=record, commit=commit)


def _compare_calibrated(
    kind: str,
    compare: Callable[[Path, list[str]], Iterable[dict[str, Any]]],
    names: list[str],
    *,
    record: bool,
    commit: str | None,
) -> int:
    import torch

    if not torch.cuda.is_available():
        print("no CUDA device: nothing to compare with")
        return 75
    recorder = _gpu_recorder(record, commit)
    _print_calibrated_header()
    with tempfile.TemporaryDirectory(prefix="vramkit-") as folder:
        for each in compare(Path(folder), names):
            if "skipped" in each:
                print(f"| {each['model']} | {each['skipped']} | | | |", flush=True)
                continue
            settings = {"guess": each["guess"]} if "guess" in each else {}
            _report_calibrated(kind, each, recorder, settings)
    return 0


def _gpu_recorder(record: bool, commit: str | None) -> Recorder | None:
    if not record:
        return None
    return Recorder(record=True, allow_dirty=False, origin=gpu_provenance(commit))


def _print_calibrated_header() -> None:
    from benchmarks.estimate import own_run

    percent = (*(f"{key} %" for key in own_run.COLUMNS), "allocated %, not calibrated")
    print(f"| model | {' | '.join(percent)} |\n|---" + "|---:" * len(percent) + "|", flush=True)


def _report_calibrated(
    kind: str, found: dict[str, Any], recorder: Recorder | None, settings: dict[str, Setting]
) -> None:
    """Print the errors of one model and add its rows: calibrated and not, beside the measured."""
    from benchmarks.estimate import own_run

    errors = [own_run.error(found, key) for key in own_run.COLUMNS]
    errors.append(own_run.error(found, "allocated", "predicted"))
    cells = " | ".join(f"{value:+.3f}" for value in errors)
    print(f"| {found['model']} | {cells} |", flush=True)
    if recorder is None:
        return
    for part in ("calibrated", "predicted"):
        for key in own_run.COLUMNS:
            own, measured = (summarize([float(found[each][key])]) for each in (part, "measured"))
            row = (own, {"calibrated": part == "calibrated", **settings}, "measured", measured)
            recorder.add(Row("estimate", f"{kind} {found['model']}", f"{key}_bytes", "B", *row))


def compare_parallel(names: list[str], *, record: bool, commit: str | None) -> int:
    """Compare the steps of ``parallel.py``; returns 75 where there are not two GPUs."""
    import torch

    from benchmarks.estimate import parallel_run

    ranks = torch.cuda.device_count()
    if ranks < 2:
        print(f"{ranks} CUDA devices: two are needed")
        return 75
    recorder = _gpu_recorder(record, commit)
    print(f"| step of {ranks} ranks | {' | '.join(f'{key} %' for key in parallel_run.COLUMNS)} |")
    print("|---" + "|---:" * len(parallel_run.COLUMNS) + "|")
    with tempfile.TemporaryDirectory(prefix="vramkit-") as folder:
        for each in parallel_run.compare(Path(folder), ranks, names):
            _report_parallel(each, ranks, recorder)
    return 0


def _report_parallel(found: dict[str, Any], ranks: int, recorder: Recorder | None) -> None:
    cells = []
    for key in _COLUMNS:
        own, measured = (float(found[part][key]) for part in ("predicted", "measured"))
        cells.append(f"{100 * (own / measured - 1):+.3f}")
        if recorder is not None:
            name, sizes = f"parallel {found['step']}", (summarize([own]), summarize([measured]))
            row = (sizes[0], {"ranks": ranks}, "measured", sizes[1])
            recorder.add(Row("estimate", name, f"{key}_bytes", "B", *row))
    print(f"| {found['step']} | {' | '.join(cells)} |", flush=True)


def main() -> int:
    """Print the table; returns 75 where there is nothing to compare with."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--record", action="store_true", help="append the rows to results/")
    parser.add_argument("--truth", type=Path, default=ROOT.parent / "shared" / "estimate")
    parser.add_argument("--peers", action="store_true", help="ask other estimators instead")
    parser.add_argument("--own", action="store_true", help="run the models of own.py on a GPU")
    parser.add_argument("--others", action="store_true", help="run the models of others.py")
    parser.add_argument(
        "--parallel", action="store_true", help="run the steps of parallel.py on all GPUs"
    )
    parser.add_argument("--commit", help="label of the commit, where there is no repository")
    arguments = parser.parse_args()
    on_gpus = {
        compare_own: arguments.own,
        compare_others: arguments.others,
        compare_parallel: arguments.parallel,
    }
    for compare, chosen in on_gpus.items():
        if chosen:
            return compare(arguments.models, record=arguments.record, commit=arguments.commit)
    if not (arguments.truth / "truth-h100.jsonl").is_file():
        print(f"no truth-h100.jsonl in {arguments.truth}: nothing to compare with")
        return 75
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore")
    from benchmarks.estimate.models import MODELS, import_torchvision

    import_torchvision()
    truth = read_truth(arguments.truth)
    recorder = Recorder(record=True, allow_dirty=False) if arguments.record else None
    if arguments.peers:
        return compare_peers(arguments.models, truth, recorder)
    columns = ("model", "allocated: predicted / measured", "reserved: predicted / measured")
    percent = (*(f"{key} %" for key in _COLUMNS), "formula", "s")
    print(f"| {' | '.join((*columns, *percent))} |")
    print("|---" + "|---:" * (len(columns) + len(percent) - 1) + "|", flush=True)
    every: list[dict[str, float]] = []
    for name in arguments.models or MODELS:
        row, errors = measure(name, truth[name], recorder)
        every.append(errors)
        print(row, flush=True)
    for key in _COLUMNS:
        sizes = sorted(abs(errors[key]) for errors in every)
        print(f"{key}: median {sizes[len(sizes) // 2]:.3f} %, worst {sizes[-1]:.3f} %")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
