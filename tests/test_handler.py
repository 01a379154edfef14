"""KlineHandler: members only for Qlib, full history for windows, point in time."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_market
from qlib.contrib.data.handler import Alpha158
from qlib.data.dataset.handler import DataHandlerLP
from qlib.data.dataset.loader import QlibDataLoader
from tiny_market import LISTED, LONG_HALT, NEVER_A_MEMBER, NEVER_BACK, UNIVERSE, start_qlib, write_tiny_store

from kronos_qlib.handler import LABEL, KlineHandler
from kronos_qlib.market.calendars import get_calendar
from kronos_qlib.market.fields import BAR_FIELDS
from kronos_qlib.market.store import write_store

START, END = "2020-07-01", "2020-12-31"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_store(tmp_path_factory.mktemp("handler") / "store")


@pytest.fixture
def handler(store: Path) -> KlineHandler:
    start_qlib(store)
    return KlineHandler(UNIVERSE, START, END)


def adjusted(code: str) -> pd.DataFrame:
    """Bars of one code in the store's units, indexed by day."""
    bars = tiny_market.bars()
    bars = bars[bars["instrument"] == code].set_index("datetime")
    prices = bars[["open", "high", "low", "close"]].mul(bars["factor"], axis=0)
    return prices.assign(volume=bars["volume"] / bars["factor"], amount=bars["amount"])


def sessions() -> pd.DatetimeIndex:
    return pd.DatetimeIndex(sorted(tiny_market.bars()["datetime"].unique()))


def expected_members() -> set[tuple[pd.Timestamp, str]]:
    days = sessions()
    days = days[(days >= START) & (days <= END)]
    return {
        (day, span.instrument)
        for span in tiny_market.members().itertuples()
        for day in days
        if span.start <= day <= span.end
    }


def test_data_and_labels_hold_each_member_session_and_nothing_else(handler: KlineHandler) -> None:
    for frame in (handler.data, handler.fetch(col_set="label"), handler.fetch(col_set="feature")):
        assert set(frame.index) == expected_members()
        assert frame.index.names == ["datetime", "instrument"]
        assert frame.index.is_monotonic_increasing
        assert frame.index.is_unique


def test_features_are_the_adjusted_bars(handler: KlineHandler) -> None:
    got = handler.data["feature"].xs("SH600005", level="instrument")
    want = adjusted("SH600005").reindex(got.index)
    np.testing.assert_allclose(got.to_numpy(), want[list(BAR_FIELDS)].to_numpy(), rtol=1e-6)
    assert list(got.columns) == [f"${field}" for field in BAR_FIELDS]


def test_label_is_the_return_from_the_next_close_to_the_one_after(handler: KlineHandler) -> None:
    close = adjusted("SH600005")["close"].reindex(sessions())
    want = (close.shift(-2) / close.shift(-1) - 1).loc[START:END]
    got = handler.data[("label", "LABEL0")].xs("SH600005", level="instrument")
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    assert got.iloc[-2:].isna().all()
    assert got.iloc[:-2].notna().sum() > 100


def test_labels_are_those_of_qlib_wherever_qlib_has_a_row(handler: KlineHandler) -> None:
    assert Alpha158.get_label_config(None) == LABEL
    theirs = QlibDataLoader({"label": LABEL}).load(UNIVERSE, START, END)
    ours = handler.data[["label"]]
    assert theirs.index.isin(ours.index).all()
    pd.testing.assert_frame_equal(ours.reindex(theirs.index), theirs, check_index_type=False)
    assert ours.drop(theirs.index).isna().all(axis=None)


def test_a_suspended_member_keeps_its_row(handler: KlineHandler) -> None:
    halted = handler.data.xs(LONG_HALT[0], level="instrument").loc[LONG_HALT[1] : LONG_HALT[2]]
    assert len(halted) == 30
    assert halted["feature"].isna().all(axis=None)


def test_whether_a_stock_ever_trades_again_does_not_show(handler: KlineHandler) -> None:
    """Qlib's own loader drops rows after a code's last bar, which tells on day t that no bar will come."""
    rows = handler.data.xs(NEVER_BACK[0], level="instrument").loc[NEVER_BACK[1] :]
    assert len(rows) == (sessions() >= NEVER_BACK[1]).sum() > 20
    assert rows.isna().all(axis=None)


def test_panel_holds_full_history_of_every_member_and_of_no_other(handler: KlineHandler) -> None:
    panel = handler.panel
    assert set(panel.instruments) == set(tiny_market.members()["instrument"])
    assert NEVER_A_MEMBER not in panel.instruments
    for code in ("SH600002", "SH600003", "SH600004", LISTED[0]):
        bars = adjusted(code)
        rows = panel.rows_at(code, bars.index)
        assert (np.diff(rows) == 1).all()
        assert (panel.timestamps[rows] == bars.index.to_numpy()).all()
        np.testing.assert_allclose(panel.values[rows], bars[list(BAR_FIELDS)], rtol=1e-6)


def test_panel_ends_with_the_handler_and_may_begin_later(store: Path) -> None:
    start_qlib(store)
    panel = KlineHandler(UNIVERSE, START, "2020-10-30", history_start="2020-01-02").panel
    assert panel.timestamps.max() == np.datetime64("2020-10-30")
    assert panel.timestamps.min() == np.datetime64("2020-01-02")


def test_pickle_is_small_and_loads_bars_again(handler: KlineHandler) -> None:
    before = handler.panel
    blob = pickle.dumps(handler)
    assert len(blob) < 10_000
    back = pickle.loads(blob)
    assert np.array_equal(back.panel.values, before.values)
    assert back.members().equals(handler.members())
    back.setup_data(init_type=DataHandlerLP.IT_LS)
    pd.testing.assert_frame_equal(back.data, handler.data)


def test_config_moves_the_range_of_rows_and_bars(handler: KlineHandler) -> None:
    assert handler.panel.timestamps.max() == np.datetime64("2020-12-31")
    handler.config(start_time="2020-03-02", end_time="2020-05-29")
    handler.setup_data()
    days = handler.data.index.get_level_values("datetime")
    assert (days.min(), days.max()) == (pd.Timestamp("2020-03-02"), pd.Timestamp("2020-05-29"))
    assert handler.panel.timestamps.max() == np.datetime64("2020-05-29")


def test_processors_run_as_in_qlib(store: Path) -> None:
    start_qlib(store)
    handler = KlineHandler(
        UNIVERSE, START, END, fit_start_time=START, fit_end_time="2020-09-30",
        infer_processors=[{"class": "RobustZScoreNorm", "kwargs": {"fields_group": "feature"}}],
        learn_processors=[{"class": "DropnaLabel"}],
    )  # fmt: skip
    learn = handler.fetch(data_key=DataHandlerLP.DK_L, col_set="label")
    assert len(learn) == handler.data["label"].notna().sum().item() < len(handler.data)
    assert not handler.fetch(col_set="feature").equals(handler.data["feature"])


def test_other_features_do_not_change_the_panel(store: Path, handler: KlineHandler) -> None:
    other = KlineHandler(UNIVERSE, START, END, feature=[["Ref($close, 5)/$close - 1"], ["REVERSAL5"]])
    assert list(other.data["feature"].columns) == ["REVERSAL5"]
    assert np.array_equal(other.panel.values, handler.panel.values)


def test_the_same_expression_may_be_feature_and_label(store: Path) -> None:
    start_qlib(store)
    handler = KlineHandler(UNIVERSE, START, END, feature=["$close", "$open"], label=["$close"])
    both = handler.data
    assert both.columns.to_list() == [("feature", "$close"), ("feature", "$open"), ("label", "$close")]
    assert both[("feature", "$close")].equals(both[("label", "$close")].rename(("feature", "$close")))


def test_codes_instead_of_a_market_are_members_on_every_session(store: Path) -> None:
    start_qlib(store)
    handler = KlineHandler([NEVER_A_MEMBER, "SH600002"], START, END)
    assert len(handler.data) == 2 * ((sessions() >= START) & (sessions() <= END)).sum()
    assert set(handler.panel.instruments) == {NEVER_A_MEMBER, "SH600002"}


def test_future_sessions_come_from_the_exchange_after_the_last_day(handler: KlineHandler) -> None:
    after = handler.trading_calendar.future(pd.Timestamp("2020-12-31"), 3)
    assert list(after) == list(pd.to_datetime(["2021-01-04", "2021-01-05", "2021-01-06"]))


def test_a_store_that_is_not_ours_uses_its_own_future_calendar(tmp_path: Path) -> None:
    store = write_tiny_store(tmp_path / "store")
    (store / "kronos_store.json").unlink()
    future = store / "calendars" / "day_future.txt"
    known = future.read_text().splitlines()
    # a session that no exchange has shows where the stamps come from
    at = known.index("2021-01-04")
    future.write_text("\n".join([*known[:at], "2021-01-02", *known[at:]]) + "\n")
    start_qlib(store)
    handler = KlineHandler(UNIVERSE, START, END)
    assert list(handler.trading_calendar.future(pd.Timestamp("2020-12-31"), 2)) == list(
        pd.to_datetime(["2021-01-02", "2021-01-04"])
    )
    named = KlineHandler(UNIVERSE, START, END, calendar="XSHG")
    assert named.trading_calendar.future(pd.Timestamp("2020-12-31"), 1)[0] == pd.Timestamp("2021-01-04")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"instrument": UNIVERSE}, "did you mean 'instruments'"),
        ({"start": START}, "did you mean 'start_time'"),
        ({"instruments": "csi301"}, "no market 'csi301'.*csi300"),
        ({"start_time": "2030-01-01", "end_time": "2030-02-01"}, "sessions run from 2019-09-02"),
        ({"start_time": "2020-12-31", "end_time": "2020-01-01"}, "No session"),
        ({"instruments": ["SH999999"]}, "no bars of the 1 codes"),
        ({"calendar": "XSHX"}, "expected '24/7' or "),
    ],
)
def test_user_errors_are_value_errors(store: Path, settings: dict[str, object], message: str) -> None:
    start_qlib(store)
    with pytest.raises(ValueError, match=message):
        _ = KlineHandler(**{"instruments": UNIVERSE, "start_time": START, "end_time": END, **settings}).trading_calendar


@pytest.mark.slow
def test_csi300_of_thirteen_years_is_ready_in_a_minute_and_four_gigabytes(shared_file, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import subprocess
    import sys

    from kronos_qlib.market.members import read_members
    from kronos_qlib.market.store import write_store

    members = read_members(shared_file("market/csi300_members.txt"))
    write_store(
        pd.read_parquet(shared_file("market/ashare_daily.parquet")), tmp_path / "s", members={UNIVERSE: members}
    )
    code = (
        "import qlib, resource, time, sys; from kronos_qlib.handler import KlineHandler\n"
        "if __name__ == '__main__':\n"
        "    qlib.init(provider_uri=sys.argv[1], region='cn', logging_level=40); t = time.monotonic()\n"
        "    h = KlineHandler('csi300', '2008-01-01', '2020-08-01'); n = len(h.panel)\n"
        "    print(len(h.data), n, time.monotonic() - t, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)\n"
    )
    script = tmp_path / "ready.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "s")], capture_output=True, text=True, check=True
    )
    rows, bars, seconds, gigabytes = map(float, done.stdout.split()[-4:])
    assert rows > 900_000
    assert bars > 1_800_000
    assert seconds < 60
    assert gigabytes < 4


@pytest.mark.filterwarnings("ignore:load calendar error")
def test_a_store_without_amounts_follows_the_panels_rule(tmp_path: Path) -> None:
    """Qlib's public data has no $amount; the panel then uses volume × mean price, and the column is NaN in the data."""
    store = write_tiny_store(tmp_path / "store")
    for file in store.glob("features/*/amount.day.bin"):
        file.unlink()
    start_qlib(store)
    handler = KlineHandler(UNIVERSE, START, END)
    values = handler.panel.values.astype(np.float64)
    np.testing.assert_allclose(values[:, 5], values[:, :4].mean(axis=1) * values[:, 4], rtol=1e-6)
    assert handler.data[("feature", "$amount")].isna().all()
    assert handler.data[("feature", "$close")].notna().mean() > 0.8


def quarter_hours(days: list[str], codes: list[str]) -> pd.DataFrame:
    """Flat 15-minute bars in the vendor format, stamped at their end."""
    day = get_calendar("XSHG", freq="15min")
    stamps = day.between(pd.Timestamp(days[0]), pd.Timestamp(days[-1]) + pd.Timedelta(hours=23))
    frame = pd.MultiIndex.from_product([codes, stamps], names=["instrument", "datetime"]).to_frame(index=False)
    price = 10 + 0.01 * (np.arange(len(frame)) % 50)
    prices = dict.fromkeys(("open", "high", "low", "close"), price)
    return frame.assign(**prices, volume=100.0, amount=100.0 * price, factor=1.0)


def test_intraday_members_keep_the_whole_of_their_last_day(tmp_path: Path) -> None:
    frame = quarter_hours(["2025-01-02", "2025-01-10"], ["SH600000", "SH600001"])
    spans = pd.DataFrame(
        {"instrument": ["SH600000", "SH600001"], "start": "2025-01-02", "end": ["2025-01-10", "2025-01-06"]}
    )
    write_store(frame, tmp_path / "store", members={UNIVERSE: spans}, freq="15min")
    start_qlib(tmp_path / "store")
    handler = KlineHandler(UNIVERSE, "2025-01-03", "2025-01-10", freq="15min")
    stamps = handler.data.xs("SH600001", level=1).index
    assert (stamps.min(), stamps.max()) == (pd.Timestamp("2025-01-03 09:45"), pd.Timestamp("2025-01-06 15:00"))
    assert len(stamps) == 2 * 16
    assert handler.data.index.get_level_values(0).max() == pd.Timestamp("2025-01-10 15:00")
    assert handler.panel.timestamps.max() == np.datetime64("2025-01-10T15:00")
    after = handler.trading_calendar.future(pd.Timestamp("2025-01-10 14:45"), 2)
    assert list(after) == [pd.Timestamp("2025-01-10 15:00"), pd.Timestamp("2025-01-13 09:45")]
