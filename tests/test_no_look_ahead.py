"""No look-ahead, proved from store to score: whatever follows t, each score dated t or earlier is bit-identical."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_market
from tiny_market import LONG_HALT, NEVER_BACK, SHORT_HALT, UNIVERSE, start_qlib, write_tiny_checkpoint

from kronos_qlib.dataset import KlineDataset
from kronos_qlib.handler import KlineHandler
from kronos_qlib.market.members import read_members
from kronos_qlib.market.store import write_store
from kronos_qlib.model import KronosModel

# Inside halts on purpose: there a file that ends at t ends earlier for a suspended stock.
CUTS = ["2020-07-20", "2020-08-05", "2020-08-25", "2020-12-15"]
REAL_CODES = [
    "SH600000", "SH600031", "SH600519", "SH601318", "SH601360", "SZ000001", "SZ000651", "SZ002415", "SZ300750",
    "SZ000166", "SH600170", "SH000300",
]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("look") / "tiny", lookback=40)


@pytest.fixture(scope="module")
def real(shared_file: Callable[[str], Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    bars = pd.read_parquet(
        shared_file("market/ashare_daily.parquet"),
        filters=[("instrument", "in", REAL_CODES), ("datetime", ">=", pd.Timestamp("2020-01-01"))],
    )
    members = read_members(shared_file("market/csi300_members.txt"))
    return bars.assign(instrument=bars["instrument"].astype(str)), members


def score(bars: pd.DataFrame, members: pd.DataFrame, place: Path, checkpoint: Path, start: str) -> pd.Series:
    """Write a store and score it the way ``qrun`` does; the handler asks for more days than a cut store has."""
    write_store(bars, place, members={UNIVERSE: members})
    start_qlib(place)
    dataset = KlineDataset(KlineHandler(UNIVERSE, start, "2020-12-31"), {"test": (start, "2020-12-31")})
    model = KronosModel(model=str(checkpoint), horizon=2, sampling={"n_paths": 2}, device="cpu")
    return model.predict(dataset)


def altered(bars: pd.DataFrame, cut: str) -> pd.DataFrame:
    """Change every bar after ``cut``: other prices, volumes and factors, and a tenth of the bars gone."""
    rng = np.random.default_rng(5)
    after = (bars["datetime"] > cut).to_numpy()
    numbers = [name for name in bars.columns if name not in ("instrument", "datetime")]
    changed = bars.astype(dict.fromkeys(numbers, np.float64))
    changed.loc[after, ["open", "high", "low", "close"]] *= np.exp(rng.normal(0, 0.1, after.sum()))[:, None]
    changed.loc[after, ["volume", "amount"]] *= rng.uniform(0.1, 9, after.sum())[:, None]
    changed.loc[after, "factor"] *= 1.1  # less than the jump that would begin a new window
    return changed[~(after & (rng.random(len(bars)) < 0.1))].reset_index(drop=True)


def removed(bars: pd.DataFrame, cut: str) -> pd.DataFrame:
    return bars[bars["datetime"] <= cut].reset_index(drop=True)


def assert_same_until(cut: str, changed: pd.Series, original: pd.Series) -> None:
    before, expected = changed.loc[:cut], original.loc[:cut]
    assert len(expected)
    assert before.index.equals(expected.index)
    assert np.array_equal(before.to_numpy().view(np.uint64), expected.to_numpy().view(np.uint64))


@pytest.fixture(scope="module")
def synthetic_scores(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.Series:
    place = tmp_path_factory.mktemp("look") / "whole"
    return score(tiny_market.bars(), tiny_market.members(), place, checkpoint, "2020-07-15")


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("change", [altered, removed])
def test_synthetic_market(
    synthetic_scores: pd.Series,
    checkpoint: Path,
    tmp_path: Path,
    change: Callable[[pd.DataFrame, str], pd.DataFrame],
    cut: str,
) -> None:
    bars = change(tiny_market.bars(), cut)
    scores = score(bars, tiny_market.members(), tmp_path / "store", checkpoint, "2020-07-15")
    assert_same_until(cut, scores, synthetic_scores)
    if change is altered:
        later = scores.reindex(synthetic_scores.index).loc[cut:].dropna()
        assert (later != synthetic_scores[later.index]).mean() > 0.5  # the change would have shown


def test_the_cuts_fall_into_halts(synthetic_scores: pd.Series) -> None:
    """Carried scores are among those compared, for a stock whose bars end before the cut."""
    assert SHORT_HALT[1] <= CUTS[1] <= SHORT_HALT[2]
    assert LONG_HALT[1] <= CUTS[2] <= LONG_HALT[2]
    assert NEVER_BACK[1] <= CUTS[3]
    for cut, code in [(CUTS[1], SHORT_HALT[0]), (CUTS[2], LONG_HALT[0]), (CUTS[3], NEVER_BACK[0])]:
        assert np.isfinite(synthetic_scores[cut, code])


def test_the_bars_of_the_day_itself_do_count(synthetic_scores: pd.Series, checkpoint: Path, tmp_path: Path) -> None:
    """The proof would hold for a constant, too: a change at t must show at t."""
    bars = tiny_market.bars().copy()
    last = bars["datetime"] == "2020-12-31"
    bars.loc[last, ["open", "high", "low", "close"]] *= 1.03
    scores = score(bars, tiny_market.members(), tmp_path / "store", checkpoint, "2020-12-30")
    traded = scores.loc["2020-12-31"].dropna()
    traded = traded.drop(NEVER_BACK[0], errors="ignore")
    assert (traded != synthetic_scores.loc["2020-12-31"][traded.index]).all()
    assert scores.loc["2020-12-30"].equals(synthetic_scores.loc["2020-12-30"])


@pytest.mark.parametrize("change", [altered, removed])
def test_real_market(
    real: tuple[pd.DataFrame, pd.DataFrame],
    checkpoint: Path,
    tmp_path: Path,
    change: Callable[[pd.DataFrame, str], pd.DataFrame],
) -> None:
    bars, members = real
    cut = "2020-09-15"
    original = score(bars, members, tmp_path / "whole", checkpoint, "2020-08-03")
    changed = score(change(bars, cut), members, tmp_path / "changed", checkpoint, "2020-08-03")
    assert original.loc[:cut].notna().sum() > 200
    assert_same_until(cut, changed, original)
