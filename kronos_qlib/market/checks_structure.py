"""Checks of a frame's form: columns, types, time zone, keys, duplicates, order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from kronos_qlib.market.fields import BAR_FIELDS, PRICE_FIELDS
from kronos_qlib.market.report import CheckResult, plain_rows

REQUIRED_COLUMNS = ("instrument", "datetime", *PRICE_FIELDS)
OPTIONAL_COLUMNS = {
    "volume": "volume counts as 0",
    "amount": "amount is derived from volume and price",
    "factor": "prices count as unadjusted (factor 1)",
}


def form_checks(frame: pd.DataFrame) -> list[CheckResult]:
    """Columns, dtypes and time zone. While one of them has an error, nothing else can be checked."""
    return [_columns(frame), _optional_columns(frame), _dtypes(frame), _time_zone(frame)]


def key_checks(frame: pd.DataFrame, max_examples: int) -> list[CheckResult]:
    """Missing keys, duplicates and order of a frame whose form is right."""
    keyless = missing_keys(frame)
    rows = plain_rows({"row": int(row)} for row in np.flatnonzero(keyless)[:max_examples])
    text = "bars without instrument or datetime"
    result = [CheckResult("missing_keys", "error", int(keyless.sum()), rows, text)]
    keyed = frame.loc[~keyless, ["instrument", "datetime"]]
    doubled = keyed.duplicated().to_numpy()
    examples = _key_examples(keyed[doubled].head(max_examples))
    text = "bars whose instrument and datetime occurred before"
    result.append(CheckResult("duplicates", "error", int(doubled.sum()), examples, text))
    return [*result, _order(keyed, max_examples)]


def missing_keys(frame: pd.DataFrame) -> np.ndarray:
    """True where instrument or datetime is missing, bool (R,)."""
    return (frame["instrument"].isna() | frame["datetime"].isna()).to_numpy()


def _columns(frame: pd.DataFrame) -> CheckResult:
    absent = [name for name in REQUIRED_COLUMNS if name not in frame]
    doubled = sorted({str(name) for name in frame.columns[frame.columns.duplicated()]})
    message = f"required: {', '.join(REQUIRED_COLUMNS)}"
    if absent:
        message = f"missing {absent}; found {list(map(str, frame.columns))}"
    if doubled:
        message += f"; columns that occur twice: {doubled}"
    return CheckResult("columns", "error", len(absent) + len(doubled), [], message)


def _optional_columns(frame: pd.DataFrame) -> CheckResult:
    absent = {name: effect for name, effect in OPTIONAL_COLUMNS.items() if name not in frame}
    message = "; ".join(f"no {name}: {effect}" for name, effect in absent.items())
    return CheckResult("optional_columns", "info", len(absent), [], message)


def _dtypes(frame: pd.DataFrame) -> CheckResult:
    frame = frame.loc[:, ~frame.columns.duplicated()]
    wrong = [
        {"column": name, "dtype": str(frame[name].dtype), "expected": "number"}
        for name in (*BAR_FIELDS, "factor")
        if name in frame and not _is_number(frame[name].dtype)
    ]
    if "datetime" in frame and not pd.api.types.is_datetime64_any_dtype(frame["datetime"].dtype):
        wrong.append({"column": "datetime", "dtype": str(frame["datetime"].dtype), "expected": "datetime64"})
    if "instrument" in frame and pd.api.types.is_numeric_dtype(frame["instrument"].dtype):
        wrong.append({"column": "instrument", "dtype": str(frame["instrument"].dtype), "expected": "text"})
    return CheckResult("dtypes", "error", len(wrong), wrong, "columns of the wrong type")


def _key_examples(keyed: pd.DataFrame) -> list[dict[str, Any]]:
    pairs = zip(keyed["instrument"], keyed["datetime"], strict=True)
    return plain_rows({"instrument": str(name), "datetime": stamp} for name, stamp in pairs)


def _is_number(dtype: Any) -> bool:
    return pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype)


def _time_zone(frame: pd.DataFrame) -> CheckResult:
    zone = frame["datetime"].dtype if "datetime" in frame and "datetime" not in _doubled(frame) else None
    aware = isinstance(zone, pd.DatetimeTZDtype)
    message = "stamps are the exchange's wall clock, without a zone"
    if aware:
        message = f"stamps have a zone ({zone}); convert them to the exchange's wall clock, without a zone"
    return CheckResult("time_zone", "error", len(frame) if aware else 0, [], message)


def _doubled(frame: pd.DataFrame) -> set[object]:
    return set(frame.columns[frame.columns.duplicated()])


def _order(keyed: pd.DataFrame, max_examples: int) -> CheckResult:
    codes, _ = pd.factorize(keyed["instrument"], sort=True)
    stamps = keyed["datetime"].to_numpy()
    step = np.diff(codes)
    back = (step < 0) | ((step == 0) & (stamps[1:] < stamps[:-1]))
    rows = np.flatnonzero(back)[:max_examples] + 1
    examples = _key_examples(keyed.iloc[rows])
    message = "bars that stand before an earlier one (order: instrument, datetime); a repair sorts them"
    return CheckResult("order", "warning", int(back.sum()), examples, message)
