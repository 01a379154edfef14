"""Bad inputs as a user gives them on the command line and in YAML: a clear error or a documented repair, no debris.

Every row runs a whole command. It must end with exit code 2 and one message on stderr that says what was found, and
it must leave nothing behind, neither where it was told to write nor beside that. (The market layer's own table of
unreadable files is in ``tests/market/test_bad_market_files.py``; situations rather than files, such as a full disk,
are in ``tests/test_bad_situations.py``.)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_market
import torch
from bad_bench import Bench, Case, Change, file_as_folder, forecast, ingest, put, refuse, signal
from safetensors.torch import load_file, save_file

from kronos_qlib import SamplingConfig
from kronos_qlib.cli import main
from kronos_qlib.dataset import KlineDataset
from kronos_qlib.handler import KlineHandler
from kronos_qlib.market.store import store_metadata
from kronos_qlib.model import KronosModel


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("good")
    store = tiny_market.write_tiny_store(folder / "store")
    return store, tiny_market.write_tiny_checkpoint(folder / "checkpoint", lookback=60, max_context=128)


@pytest.fixture
def bench(tmp_path: Path, good: tuple[Path, Path]) -> Bench:
    return Bench(tmp_path, *good)


def swap_high_low(frame: pd.DataFrame) -> pd.DataFrame:
    bad = frame.index == 60
    return frame.assign(high=frame["high"].where(~bad, frame["low"]), low=frame["low"].where(~bad, frame["high"]))


def repeat_a_bar(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame.iloc[[60]]], ignore_index=True)


def mix_zones(frame: pd.DataFrame) -> pd.DataFrame:
    stamps = frame["datetime"].dt.strftime("%Y-%m-%dT00:00:00+08:00")
    return frame.assign(datetime=stamps.where(frame.index != 60, "2020-09-30T00:00:00Z"))


def noon(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(datetime=frame["datetime"] + pd.Timedelta("12h"))


def truncated(bench: Bench) -> Path:
    path = bench.bars(name="bars.parquet")
    path.write_bytes(path.read_bytes()[:2000])
    return path


def foreign_folder(bench: Bench) -> Path:
    bench.out.mkdir()
    (bench.out / "thesis.txt").write_text("not to be replaced")
    return bench.out


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("head.proj_s1.weight")
    save_file(tensors, folder / "model.safetensors")


def change_tensor(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors[name] = make(tensors["head.proj_s1.weight"]).contiguous()
        save_file(tensors, folder / "model.safetensors")

    return change


def change_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


BAD_FILES: dict[str, Case] = {
    "no such file": (lambda b: ingest(b.folder / "no.csv", b), "no.csv: no such file"),
    "empty file": (lambda b: ingest(b.text(""), b), "the file is empty"),
    "no bars": (lambda b: ingest(b.bars(lambda f: f.head(0)), b), "no row"),
    "truncated parquet": (lambda b: ingest(truncated(b), b), "not a whole parquet file"),
    "missing column": (lambda b: ingest(b.bars(lambda f: f.drop(columns="close")), b), r"\['close'\] are missing"),
    "strings in prices": (lambda b: ingest(b.bars(put("close", "halted")), b), "'halted'"),
    "mixed zones": (lambda b: ingest(b.bars(mix_zones), b), "mixed time zones"),
    "duplicates": (lambda b: ingest(b.bars(repeat_a_bar), b), "duplicate"),
    "daily bars stamped at noon": (lambda b: ingest(b.bars(noon), b), "stamped within the day"),
    "wrong frequency": (lambda b: ingest(b.bars(), b, "--freq", "15min"), "expected steps of 15 minutes"),
    "unknown frequency": (lambda b: ingest(b.bars(), b, "--freq", "fortnight"), "fortnight"),
    "wrong calendar": (lambda b: ingest(b.bars(), b, "--calendar", "XNYS"), "no session of the calendar"),
    "unknown calendar": (lambda b: ingest(b.bars(), b, "--calendar", "XSGH"), "XSHG"),
    "unknown region": (lambda b: ingest(b.bars(), b, "--region", "mars"), "'mars'"),
    "unknown repair": (lambda b: ingest(b.bars(), b, "--repair", "defualt"), "Did you mean 'default'"),
    "repair that reads ahead": (
        lambda b: ingest(b.bars(put("close", None)), b, "--repair", "interpolate"),
        "from later bars",
    ),
    "members without a name": (lambda b: ingest(b.bars(), b, "--members", "m.txt"), "takes a pair"),
    "members file missing": (lambda b: ingest(b.bars(), b, "--members", "a=no.txt"), "no.txt"),
    "members file of another kind": (
        lambda b: ingest(b.bars(), b, "--members", f"a={b.text('SH600001,2020', 'm.txt')}"),
        "line 1",
    ),
    "store is a file": (lambda b: ingest(b.bars(), b, "--out", file_as_folder(b)), "is a file: expected a folder"),
    "store below a file": (lambda b: ingest(b.bars(), b, "--out", file_as_folder(b) / "store"), "cannot be written"),
    "store is someone's folder": (
        lambda b: ingest(b.bars(), b, "--out", foreign_folder(b)),
        "was not written by kronos_qlib",
    ),
}
BAD_FORECASTS: dict[str, Case] = {
    "unknown instrument": (lambda b: forecast(b.bars(), b, "--instrument", "SH699999"), "no instrument 'SH699999'"),
    "one bar": (lambda b: forecast(b.bars(lambda f: f.head(1)), b), "1 bars"),
    "context shorter than min_bars": (lambda b: forecast(b.bars(lambda f: f.head(20)), b), "20 bars.*min_bars"),
    "NaN": (lambda b: forecast(b.bars(put("close", None, row=100)), b), "NaN or infinite"),
    "infinity": (lambda b: forecast(b.bars(put("volume", np.inf, row=100)), b), "NaN or infinite"),
    "high below low": (lambda b: forecast(b.bars(lambda f: swap_high_low(f).tail(70)), b), "high below the low"),
    "duplicates": (lambda b: forecast(b.bars(repeat_a_bar), b), "occurs twice"),
    "a day before the first bar": (lambda b: forecast(b.bars(), b, "--until", "1999-01-01"), "no bar up to"),
    "a day that is none": (lambda b: forecast(b.bars(), b, "--until", "soon"), "found 'soon'"),
    "unknown calendar": (lambda b: forecast(b.bars(), b, "--calendar", "XSGH"), "XSHG"),
    "no horizon": (lambda b: forecast(b.bars(), b, "--horizon", 0), "--horizon"),
    "horizon beyond the context": (lambda b: forecast(b.bars(), b, "--horizon", 128), "max_context=128"),
    "temperature below zero": (lambda b: forecast(b.bars(), b, "--temperature", -1), "temperature: .*found -1"),
    "top_p above one": (lambda b: forecast(b.bars(), b, "--top-p", 1.5), "top_p: .*found 1.5"),
    "unknown device": (lambda b: forecast(b.bars(), b, "--device", "abacus"), "'abacus'"),
    "output is a file": (
        lambda b: forecast(b.bars(), b, "--out", file_as_folder(b)),
        "is a file; --out needs a folder",
    ),
}
BAD_CHECKPOINTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing tensor": (drop_tensor, r"missing tensors: head\.proj_s1\.weight"),
    "extra tensor": (change_tensor("head.extra", torch.clone), r"unexpected tensors: head\.extra"),
    "wrong shape": (change_tensor("head.proj_s1.weight", lambda w: w[1:]), r"has shape \(15, 32\)"),
    "NaN weights": (change_tensor("head.proj_s1.weight", lambda w: w * float("nan")), "NaN or infinite weights"),
    "truncated weights": (cut_weights, "not a readable safetensors file"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
    "config with a typo": (change_config(n_layer=1), "n_layers"),
    "config that is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "not readable JSON"),
    "heads that do not divide": (change_config(n_heads=5), "n_heads"),
}
BAD_SIGNALS: dict[str, Case] = {
    "no store": (lambda b: signal(b, store=b.folder), "no Qlib store"),
    "unknown universe": (lambda b: signal(b, "--universe", "csi3000"), "no market 'csi3000'"),
    "a holiday": (lambda b: signal(b, "--date", "2020-10-01"), "no session"),
    "a day that is none": (lambda b: signal(b, "--date", "yesterday-ish"), "found 'yesterday-ish'"),
    "unknown signal": (lambda b: signal(b, "--signal", "expected_retrun"), "Did you mean 'expected_return'"),
    "no checkpoint": (lambda b: signal(b, "--checkpoint", b.folder / "nowhere"), "no checkpoint folder"),
    "hub id without a revision": (lambda b: signal(b, "--checkpoint", "owner/name"), "revision"),
    "output below a file": (lambda b: signal(b, "--out", file_as_folder(b) / "s.csv"), "is a file; --out needs"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_ingest_refuses(case: str, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = BAD_FILES[case]
    refuse(make(bench), message, bench, capsys)


@pytest.mark.parametrize("case", BAD_FORECASTS)
def test_forecast_refuses(case: str, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = BAD_FORECASTS[case]
    refuse(make(bench), message, bench, capsys)


@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
def test_a_damaged_checkpoint_is_refused(case: str, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    damage, message = BAD_CHECKPOINTS[case]
    refuse(forecast(bench.bars(), bench, checkpoint=bench.network(damage)), message, bench, capsys)


@pytest.mark.parametrize("case", BAD_SIGNALS)
def test_signal_refuses(case: str, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = BAD_SIGNALS[case]
    refuse(make(bench), message, bench, capsys)


@pytest.mark.parametrize(
    ("change", "repair", "counted"),
    [
        (put("close", None), "default", 1),
        (put("close", np.inf), "default", 1),
        (put("close", -3.0), "default", 1),
        (swap_high_low, "default", 1),
        (put("volume", None), "original", 1),
        (put("volume", -5.0), "default", 1),
        (repeat_a_bar, "forward_fill", 1),
    ],
)
def test_a_documented_repair_is_made_and_counted(
    change: Change, repair: str, counted: int, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in ingest(bench.bars(change), bench, "--repair", repair)])
    assert not stop.value.code, capsys.readouterr().err
    repairs = json.loads((bench.out / "ingest_report.json").read_text())["repair"]
    assert sum(repairs["counts"].values()) >= counted
    assert store_metadata(bench.out)["rows"] in (119, 120)


def test_an_ingest_that_fails_leaves_the_old_store(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in ingest(bench.bars(), bench)])
    assert not stop.value.code
    refuse(ingest(bench.bars(repeat_a_bar, "worse.csv"), bench), "duplicate", bench, capsys)
    assert store_metadata(bench.out)["rows"] == 120


@pytest.mark.parametrize(
    ("make", "nearest"),
    [
        (lambda: SamplingConfig(temprature=0.5), "temperature"),
        (lambda: KronosModel(model="x", horizn=5), "horizon"),
        (lambda: KronosModel(model="x", sampling={"n_path": 5}), "n_paths"),
        (lambda: KronosModel(model="x", signal="expected"), "expected_return"),
        (lambda: KlineHandler(instrument="csi300"), "instruments"),
        (lambda: KlineDataset(handler={}, segment={}), "segments"),
    ],
)
def test_a_typo_in_a_configuration_is_a_value_error_that_names_the_right_key(
    make: Callable[[], object], nearest: str
) -> None:
    with pytest.raises(ValueError, match=nearest):
        make()
