"""The measurements that are done: a file that grows by a line each, where a later run goes on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks._shared.provenance import Provenance
from benchmarks.pool_cuda.spec import (
    POOL,
    Group,
    Measurement,
    Result,
)


class State:
    """What is done. Lines of the pool at another commit do not count; those of peers do."""

    def __init__(self, path: Path, *, commit: str | None = None) -> None:
        """Read the file, if there is one; ``commit`` None takes the pool at any commit."""
        self._path = path
        self._records: dict[str, Mapping[str, Any]] = {}
        self.origins: dict[str, Provenance] = {}
        self.dropped = 0
        self._run = ""
        for line in _whole_lines(path):
            self._take(json.loads(line), commit)

    def _take(self, record: Mapping[str, Any], commit: str | None) -> None:
        if "origin" in record:
            self.origins[record["run"]] = Provenance(**record["origin"])
            return
        label = self.origins[record["run"]].label
        if record["spec"]["allocator"] == POOL and commit not in (None, label):
            self.dropped += 1
            return
        self._records[record["key"]] = record

    def begin_run(self, origin: Provenance) -> None:
        """Begin to add: what follows was measured by one run of the benchmark."""
        self._run = datetime.now(UTC).isoformat()
        self.origins[self._run] = origin
        self._append({"run": self._run, "origin": asdict(origin)})

    def latest_origin(self, commit: str | None) -> Provenance | None:
        """Return where the last run was made, or the last one at ``commit``; None without one."""
        runs = [run for run, origin in self.origins.items() if commit in (None, origin.label)]
        return self.origins[max(runs)] if runs else None

    def add(self, measurement: Measurement, result: Result, wall_s: float) -> None:
        """Note a result, in the file too."""
        record = {
            "run": self._run,
            "key": measurement.key,
            "spec": measurement.spec.as_json(),
            "wall_s": round(wall_s, 3),
            "result": result,
        }
        self._append(record)
        self._records[measurement.key] = record

    def _append(self, record: Mapping[str, object]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def result(self, key: str) -> Result | None:
        """Return the result of a measurement; None when it is not done."""
        record = self._records.get(key)
        return None if record is None else record["result"]

    def complete(self, group: Group) -> bool:
        """Tell whether one run made all of a group."""
        runs = {self._records.get(each.key, {}).get("run") for each in group}
        return len(runs) == 1 and None not in runs

    def together(self, keys: list[str]) -> list[Result] | None:
        """Return the results of a group; None unless one run made all of them."""
        records = [self._records.get(key) for key in keys]
        if any(record is None for record in records):
            return None
        if len({record["run"] for record in records if record}) > 1:
            return None
        return [record["result"] for record in records if record]

    def loop_pages(self) -> set[int | None]:
        """Return the page sizes of the pools in which loops ran."""
        specs = [record["spec"] for record in self._records.values()]
        return {
            spec["page_bytes"]
            for spec in specs
            if (spec["kind"], spec["allocator"]) == ("loop", POOL)
        }

    def expected_s(self, measurement: Measurement, unknown_s: float) -> float:
        """Guess how long a measurement takes: as long as the longest of its kind took."""
        spec = measurement.spec
        like = [
            float(record["wall_s"])
            for record in self._records.values()
            if (record["spec"]["kind"], record["spec"]["loop"]) == (spec.kind, spec.loop)
        ]
        return max(like, default=unknown_s)

    def forget_failures(self) -> int:
        """Let crashed measurements be made again; returns how many."""
        crashed = [key for key, record in self._records.items() if "crash" in record["result"]]
        for key in crashed:
            del self._records[key]
        return len(crashed)


def _whole_lines(path: Path) -> list[str]:
    """Read the file, and cut off a last line that a run which was killed left unfinished."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    lines = _whole_lines_of(text)
    whole = "".join(f"{line}\n" for line in lines)
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return lines


def _whole_lines_of(text: str) -> list[str]:
    return text[: text.rfind("\n") + 1].splitlines()


def continue_from(earlier: Sequence[Path], path: Path) -> None:
    """Begin a new state file with what earlier ones hold; of each measurement the latest counts.

    Raises:
        FileNotFoundError: there is no earlier file.
        FileExistsError: the state file holds something already.
    """
    if not earlier:
        return
    if path.exists():
        raise FileExistsError(f"{path} is there already: leave --resume out to go on with it")
    lines = {line: None for each in earlier for line in _whole_lines_of(each.read_text("utf-8"))}
    path.parent.mkdir(parents=True, exist_ok=True)
    by_run = sorted(lines, key=lambda line: str(json.loads(line)["run"]))
    path.write_text("".join(f"{line}\n" for line in by_run), encoding="utf-8")
