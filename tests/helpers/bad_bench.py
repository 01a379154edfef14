"""What the tables of bad inputs work on: a folder of one's own, good things to spoil, and commands that must refuse."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import tiny_market

from kronos_qlib.cli import main

ONE = "SH600001"
Change = Callable[[pd.DataFrame], pd.DataFrame]


@dataclass(frozen=True)
class Bench:
    """What the commands work on: a folder of their own, a good store and a good checkpoint."""

    folder: Path
    store: Path
    checkpoint: Path

    @property
    def out(self) -> Path:
        """Where a command is told to write."""
        return self.folder / "out"

    def bars(self, change: Change = lambda frame: frame, name: str = "bars.csv") -> Path:
        """Write the last 120 bars of one stock, after a change."""
        path = self.folder / name
        changed = change(one_stock())
        if name.endswith(".parquet"):
            changed.to_parquet(path)
        else:
            changed.to_csv(path, index=False)
        return path

    def text(self, content: str, name: str = "bars.csv") -> Path:
        path = self.folder / name
        path.write_text(content, encoding="utf-8")
        return path

    def network(self, change: Callable[[Path], None]) -> Path:
        """Copy the checkpoint and damage it; ``change`` gets the model's folder."""
        copy = self.folder / "checkpoint"
        for source in self.checkpoint.rglob("*"):
            target = copy / source.relative_to(self.checkpoint)
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
        change(copy / "model")
        return copy


def one_stock() -> pd.DataFrame:
    bars = tiny_market.bars()
    return bars[bars["instrument"] == ONE].tail(120).reset_index(drop=True)


def put(column: str, value: object, row: int = 60) -> Change:
    """Put a value into one bar."""

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        values = frame[column].astype(object)
        values.iloc[row] = value
        return frame.assign(**{column: values})

    return change


def file_as_folder(bench: Bench) -> Path:
    bench.out.write_text("a file, not a folder")
    return bench.out


def ingest(file: Path, bench: Bench, *more: object) -> list[object]:
    return ["ingest", file, "--out", bench.out, *more]


def forecast(file: Path, bench: Bench, *more: object, checkpoint: Path | None = None) -> list[object]:
    where = ["--checkpoint", checkpoint or bench.checkpoint, "--out", bench.out]
    return ["forecast", file, "--paths", 2, "--horizon", 3, *where, *more]


def signal(bench: Bench, *more: object, store: Path | None = None) -> list[object]:
    given = ["--store", store or bench.store, "--checkpoint", bench.checkpoint, "--paths", 2, "--horizon", 3]
    return ["signal", *given, "--out", bench.out / "scores.csv", *more]


Case = tuple[Callable[[Bench], list[object]], str]


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refuse(arguments: list[object], message: str, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command that must fail with this message and change nothing."""
    before = listing(bench.folder)
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr().err
    assert stop.value.code == 2, said
    assert "Traceback" not in said
    assert re.search(message, said), said
    assert listing(bench.folder) == before
    assert not bench.out.is_dir() or any(bench.out.iterdir()), "an empty folder was left behind"
