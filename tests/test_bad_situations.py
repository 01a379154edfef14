"""Bad situations: bars from the future, a full disk, settings no machine can follow, histories with a break.

The second half of the table of bad inputs (the first is ``tests/test_bad_inputs.py``): each row is a clear error that
leaves nothing behind, or a repair that the documentation names, compared with the same input repaired by hand.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_market
import torch
from bad_bench import Bench, Case, Change, forecast, ingest, listing, one_stock, refuse, signal
from tiny_network import tiny_networks, windows

from kronos_qlib import KronosForecaster, SamplingConfig
from kronos_qlib.cli import main
from kronos_qlib.dataset import KlineDataset
from kronos_qlib.handler import KlineHandler
from kronos_qlib.kronos import Kronos, generate
from kronos_qlib.market.contract import check_bars
from kronos_qlib.market.store import store_metadata
from kronos_qlib.model import KronosModel

TOMORROW_AND_MORE = pd.Timestamp.now().normalize() + pd.Timedelta(days=400)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("good")
    store = tiny_market.write_tiny_store(folder / "store")
    return store, tiny_market.write_tiny_checkpoint(folder / "checkpoint", lookback=60, max_context=128)


@pytest.fixture
def bench(tmp_path: Path, good: tuple[Path, Path]) -> Bench:
    return Bench(tmp_path, *good)


def run(arguments: list[object]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert not stop.value.code


def from_the_future(frame: pd.DataFrame) -> pd.DataFrame:
    """The last two bars carry stamps of next year."""
    stamps = frame["datetime"].where(frame.index < 118, TOMORROW_AND_MORE + pd.to_timedelta(frame.index, "D"))
    return frame.assign(datetime=stamps)


def halted(before_end: int) -> Change:
    """All bars but the last ones are a year older: more than 60 trading days pass without a bar."""

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        old = frame.index < len(frame) - before_end
        return frame.assign(datetime=frame["datetime"].where(~old, frame["datetime"] - pd.Timedelta(weeks=52)))

    return change


def doubled(before_end: int) -> Change:
    """Prices double between two bars, which no price limit allows."""

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        late = frame.index >= len(frame) - before_end
        prices = ["open", "high", "low", "close"]
        return frame.assign(**{name: frame[name].where(~late, frame[name] * 2) for name in prices})

    return change


def damaged_store(bench: Bench, **changes: object) -> Path:
    """A store whose metadata was changed; only what is read before the error is there."""
    (bench.folder / "calendars").mkdir()
    known = store_metadata(bench.store) | changes
    bench.text(json.dumps(known), "kronos_store.json")
    return bench.folder


def cut_metadata(bench: Bench) -> Path:
    (bench.folder / "calendars").mkdir()
    bench.text((bench.store / "kronos_store.json").read_text()[:50], "kronos_store.json")
    return bench.folder


REFUSED: dict[str, Case] = {
    "ingest: bars from the future": (lambda b: ingest(b.bars(from_the_future), b), "future_bars: 2 "),
    "ingest: a name that leaves the store": (
        lambda b: ingest(b.bars(lambda f: f.assign(instrument="../../x")), b), "cannot name a folder",
    ),
    "ingest: two spellings of a code": (
        lambda b: ingest(b.bars(lambda f: pd.concat([f, f.assign(instrument="sh600001")])), b), "differ only by case",
    ),
    "ingest: no factor above zero": (
        lambda b: ingest(b.bars(lambda f: f.assign(factor=0.0)), b), "nothing was written",
    ),
    "ingest: universe named all": (
        lambda b: ingest(b.bars(), b, "--members", f"all={b.text('SH600001	2020-01-01	2020-12-31', 'm.txt')}"),
        "found universe name 'all'",
    ),
    "ingest: a universe of other codes": (
        lambda b: ingest(b.bars(), b, "--members", f"a={b.text('SZ000099	2020-01-01	2020-12-31', 'm.txt')}"),
        "no code of universe 'a' has bars",
    ),
    "forecast: bars from the future": (lambda b: forecast(b.bars(from_the_future), b), "2 bars of SH600001 lie in the"),
    "forecast: no path": (lambda b: forecast(b.bars(), b, "--paths", 0), "--paths"),
    "forecast: seed below zero": (lambda b: forecast(b.bars(), b, "--seed", -1), "seed: .*found -1"),
    "forecast: temperature that is none": (lambda b: forecast(b.bars(), b, "--temperature", "nan"), "temperature: "),
    "forecast: top_p of nothing": (lambda b: forecast(b.bars(), b, "--top-p", 0), "top_p: .*found 0"),
    "forecast: one bar of context": (lambda b: forecast(b.bars(), b, "--lookback", 1), "--lookback"),
    "forecast: a device that is not there": (lambda b: forecast(b.bars(), b, "--device", "cuda:99"), "not available"),
    "forecast: little is left after a halt": (lambda b: forecast(b.bars(halted(20)), b), "found 20 bars.*min_bars"),
    "forecast: little is left after a jump": (lambda b: forecast(b.bars(doubled(20)), b), "found 20 bars.*min_bars"),
    "signal: no path": (lambda b: signal(b, "--paths", 0), "--paths"),
    "signal: no horizon": (lambda b: signal(b, "--horizon", 0), "--horizon"),
    "signal: a day to come": (lambda b: signal(b, "--date", f"{TOMORROW_AND_MORE:%Y-%m-%d}"), "is no session of"),
    "signal: a device that is not there": (lambda b: signal(b, "--device", "cuda:99"), "not available"),
    "signal: horizon beyond the context": (lambda b: signal(b, "--horizon", 128), "must be below .* 128"),
    "signal: metadata cut short": (lambda b: signal(b, store=cut_metadata(b)), "kronos_store.json cannot be read"),
    "signal: a store of another version": (lambda b: signal(b, store=damaged_store(b, version=9)), "has version 9"),
    "signal: several universes": (
        lambda b: signal(b, store=damaged_store(b, universes={"one": {}, "two": {}})), "universes one, two; name one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_command_refuses(case: str, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = REFUSED[case]
    refuse(make(bench), message, bench, capsys)


def frame_of_one() -> pd.DataFrame:
    return one_stock().set_index("datetime").drop(columns=["instrument", "factor"])


def small_forecaster(**options: object) -> KronosForecaster:
    networks = tiny_networks()
    return KronosForecaster(networks.model, networks.tokenizer, lookback=40, max_context=64, **options)


def drawn(**options: object) -> object:
    networks = tiny_networks()
    sampling = SamplingConfig(n_paths=2)
    return generate(networks.model, networks.tokenizer, *windows(2, 8, 3), sampling, **{"max_context": 16, **options})


def in_training_mode() -> object:
    networks = tiny_networks()
    model = Kronos(networks.model.config).train()
    return generate(model, networks.tokenizer, *windows(1, 8, 3), SamplingConfig())


WRONG_IN_PYTHON: dict[str, tuple[Callable[[], object], str]] = {
    "no path": (lambda: SamplingConfig(n_paths=0), "n_paths"),
    "half a path": (lambda: SamplingConfig(n_paths=1.5), "n_paths"),
    "true for a number": (lambda: SamplingConfig(top_k=True), "top_k is True"),
    "temperature below zero": (lambda: SamplingConfig(temperature=-0.1), "temperature"),
    "s2 temperature below zero": (lambda: SamplingConfig(s2_temperature=-1), "s2_temperature"),
    "infinite temperature": (lambda: SamplingConfig(temperature=float("inf")), "temperature"),
    "top_k below zero": (lambda: SamplingConfig(top_k=-1), "top_k"),
    "unknown scheme": (lambda: SamplingConfig(scheme="lucky"), "scheme"),
    "dtype without support, forecaster": (lambda: small_forecaster(dtype="float16"), "'float16' .*bfloat16"),
    "dtype that is no name": (lambda: small_forecaster(dtype=torch.float32), "dtype torch.float32"),
    "dtype without support, generator": (lambda: drawn(dtype="int8"), "dtype 'int8' is not known"),
    "device that is none": (lambda: small_forecaster(device="abacus"), "'abacus'"),
    "device that is not there": (lambda: small_forecaster(device="cuda:99"), "not available"),
    "context that holds no step": (lambda: drawn(max_context=3), "horizon 3 must be below max_context 3"),
    "keys of another number": (lambda: drawn(keys=np.arange(5, dtype=np.uint64)), "keys have shape"),
    "training mode": (in_training_mode, "training mode"),
    "unsorted": (lambda: small_forecaster().forecast_frame(frame_of_one().iloc[::-1], 3), "strictly ascending"),
    "numbers as text": (
        lambda: small_forecaster().forecast_frame(frame_of_one().astype({"close": str}), 3), "expected numbers",
    ),
    "stamps as numbers": (
        lambda: small_forecaster().forecast_frame(frame_of_one().reset_index(drop=True), 3), "expected a DatetimeIndex",
    ),
    "no calendar to be seen": (
        lambda: small_forecaster().forecast_frame(frame_of_one(), 3, instrument="AAPL"), "which market",
    ),
    "the wrong calendar": (
        lambda: small_forecaster().forecast_frame(frame_of_one().loc[:"2020-11-26"], 3, calendar="XNYS"), "no stamp of",
    ),
    "half a horizon": (lambda: small_forecaster().forecast_frame(frame_of_one(), 1.5), "horizon=1.5"),
    "another kind of handler": (
        lambda: KlineDataset({"class": "dict", "module_path": "builtins"}, {"test": ("2020", "2021")}), "got dict",
    ),
    "a segment backwards": (
        lambda: KlineDataset(KlineHandler, {"test": ("2020-12-31", "2020-01-01")}), "before it starts",
    ),
    "carry below zero": (lambda: KlineDataset(KlineHandler, {"test": ("2020", "2021")}, carry=-1), "carry"),
    "a window shorter than its least": (
        lambda: KlineDataset(KlineHandler, {"test": ("2020", "2021")}, lookback=20), "min_bars=30, lookback=20",
    ),
    "no checkpoint": (lambda: KronosModel(), "no checkpoint"),
    "horizon of nothing": (lambda: KronosModel(model="x", horizon=0), "horizon must be"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_IN_PYTHON)
def test_python_says_what_is_wrong(case: str) -> None:
    make, message = WRONG_IN_PYTHON[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_model_and_dataset_must_ask_for_one_lookback(bench: Bench) -> None:
    tiny_market.start_qlib(bench.store)
    handler = KlineHandler(start_time="2020-12-01", end_time="2020-12-31")
    dataset = KlineDataset(handler, {"test": ("2020-12-30", "2020-12-31")}, lookback=50)
    with pytest.raises(ValueError, match="lookback 60, its dataset cuts windows of 50"):
        KronosModel(model=str(bench.checkpoint), lookback=60).fit(dataset)


def test_only_stamps_after_now_are_in_the_future(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = one_stock().tail(3)
    for now, late in (("2020-12-31 00:00", 0), ("2020-12-30 09:00", 1), ("2020-12-28 09:00", 3)):
        clock = np.datetime64(now, "ns")
        monkeypatch.setattr("kronos_qlib.market.checks_time.latest_stamp", lambda clock=clock: clock)
        assert check_bars(bars)["future_bars"].count == late


@pytest.mark.parametrize(
    ("change", "by_hand"),
    [
        (halted(60), lambda frame: frame.tail(60)),
        (doubled(50), lambda frame: doubled(50)(frame).tail(50)),
        (lambda frame: frame.sample(frac=1, random_state=0), lambda frame: frame),
    ],
    ids=["a halt of a year", "prices that double", "unsorted"],
)
def test_a_forecast_leaves_out_what_no_window_may_span(
    change: Change, by_hand: Change, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    run(forecast(bench.bars(change), bench, "--instrument", "SH600001"))
    said = capsys.readouterr().out
    found = (bench.out / "quantiles.csv").read_text()
    run(forecast(bench.bars(by_hand, "by_hand.csv"), bench, "--instrument", "SH600001"))
    assert (bench.out / "quantiles.csv").read_text() == found
    expected = len(one_stock()) - len(by_hand(one_stock()))
    assert (f"{expected} bars before" in said) == (expected > 0)
    assert "are left out" not in capsys.readouterr().out


def test_unsorted_bars_are_reported_and_stored_in_order(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    run(ingest(bench.bars(), bench))
    sorted_store = store_metadata(bench.out)
    run(ingest(bench.bars(lambda frame: frame.sample(frac=1, random_state=0), "mixed.csv"), bench))
    assert store_metadata(bench.out)["fingerprint"] == sorted_store["fingerprint"]
    assert "warning order" in capsys.readouterr().out


class FullDisk:
    """A writer that runs out of space after a number of calls, as the system says it: an error without a file name."""

    def __init__(self, writer: Callable[..., object], calls_before: int) -> None:
        self.writer, self.left = writer, calls_before

    def __get__(self, instance: object, owner: type) -> Callable[..., object]:
        return lambda *args, **kwargs: self(instance, *args, **kwargs)

    def __call__(self, *args: object, **kwargs: object) -> object:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.writer(*args, **kwargs)


FULL_DISKS: dict[str, tuple[Callable[[Bench], list[object]], object, str, int]] = {
    "ingest: features": (lambda b: ingest(b.bars(), b), Path, "write_bytes", 3),
    "ingest: metadata": (lambda b: ingest(b.bars(), b), Path, "write_text", 1),
    "ingest: only the disk's cache took it": (lambda b: ingest(b.bars(), b), os, "fsync", 2),
    "ingest: the report": (lambda b: ingest(b.bars(), b, "--report", b.folder / "r.json"), Path, "write_text", 0),
    "forecast: paths": (lambda b: forecast(b.bars(), b), pd.DataFrame, "to_parquet", 0),
    "forecast: the picture": (lambda b: forecast(b.bars(), b), "matplotlib.figure.Figure", "savefig", 0),
    "signal: scores": (lambda b: signal(b, "--top", 0), pd.DataFrame, "to_csv", 0),
}


@pytest.mark.parametrize("before", [False, True], ids=["nothing there", "an older result there"])
@pytest.mark.parametrize("case", FULL_DISKS)
def test_a_full_disk_is_an_error_that_leaves_all_as_it_was(
    case: str, before: bool, bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, owner, name, calls = FULL_DISKS[case]
    arguments = make(bench)
    if before:
        run(arguments)
        assert any(bench.out.iterdir())
    target = pytest.importorskip("matplotlib.figure").Figure if isinstance(owner, str) else owner
    full = FullDisk(getattr(target, name), calls)
    monkeypatch.setattr(target, name, full)
    refuse(arguments, "No space left on device", bench, capsys)
    assert full.left < 0
    monkeypatch.undo()
    run(arguments)  # and with space again it works
    assert listing(bench.out)


def test_a_full_disk_names_the_place(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, owner, name in (
        (ingest(bench.bars(), bench), Path, "write_bytes"),
        (forecast(bench.bars(), bench), pd.DataFrame, "to_parquet"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, FullDisk(getattr(owner, name), 0))
            patch.setenv("KRONOS_TRACEBACK", "1")
            with pytest.raises(OSError, match=f"{bench.out} cannot be written: .*No space left") as caught:
                main([str(argument) for argument in arguments])
            assert caught.value.errno == errno.ENOSPC
