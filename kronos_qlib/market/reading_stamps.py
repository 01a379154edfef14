"""Stamps of a vendor's file as naive wall-clock times of one zone."""

from __future__ import annotations

import pandas as pd

# A time of day, then Z or an offset: "2024-01-02 09:30:00+08:00".
OFFSET = r"\d\d:\d\d\S*?\s?(Z|[+-]\d\d:?\d\d)$"


def read_stamps(column: pd.Series, where: str) -> pd.Series:
    """Parse a column of stamps.

    Parameters
    ----------
    column : Series (R,)
        Datetimes, dates or text in ISO 8601 or ``YYYYMMDD`` form. Missing entries stay missing.
    where : str
        Name of the file, for messages.

    Returns
    -------
    Series (R,) of datetime64[ns]
        Naive when the text names no zone. Text with different offsets comes back in UTC with
        ``attrs["offsets"]`` naming them.

    Raises
    ------
    ValueError
        Numbers, text that is no stamp, and a mixture of stamps with and without a zone.
    """
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return column.dt.as_unit("ns")
    if pd.api.types.is_numeric_dtype(column.dtype):
        raise ValueError(
            f"{where}: column 'datetime' holds numbers ({column.dtype}, first {column.iloc[0]}); expected"
            " dates or times. Convert epoch numbers with pandas.to_datetime(..., unit=...) before"
        )
    text = column.astype("string").str.strip()
    offsets = text.str.extract(OFFSET, expand=False).where(text.notna())
    with_zone = offsets.notna()
    if with_zone.any() and not with_zone[text.notna()].all():
        naive = text[text.notna() & ~with_zone].iloc[0]
        raise ValueError(
            f"{where}: mixed time zones: {int(with_zone.sum())} stamps name a zone (first"
            f" {text[with_zone].iloc[0]!r}) and others do not (first {naive!r}); write all in one zone"
        )
    named = sorted(set(offsets.dropna()))
    stamps = _parse(text, where, utc=len(named) > 1)
    stamps.attrs["offsets"] = named
    return stamps


def to_wall_clock(stamps: pd.Series, timezone: str | None, where: str) -> pd.Series:
    """Bring stamps to the wall clock of ``timezone``, without a zone. Naive stamps are there already.

    Raises
    ------
    ValueError
        Stamps with a zone when no ``timezone`` was asked for, or a zone that does not exist.
    """
    if stamps.dt.tz is None:
        return stamps
    offsets = stamps.attrs.get("offsets", [])
    if timezone is None:
        found = f"the time zone {stamps.dt.tz}"
        if len(offsets) > 1:
            found = f"mixed time zones ({', '.join(offsets)})"
        raise ValueError(
            f"{where}: column 'datetime' has {found}; bars are stamped with the exchange's wall clock. Name"
            " it, for example timezone='Asia/Shanghai', and the stamps are converted"
        )
    try:
        return stamps.dt.tz_convert(timezone).dt.tz_localize(None)
    except (KeyError, ValueError) as error:
        raise ValueError(f"unknown time zone {timezone!r}; expected one such as 'Asia/Shanghai'") from error


def _parse(text: pd.Series, where: str, *, utc: bool) -> pd.Series:
    stamps = pd.to_datetime(text, format="ISO8601", errors="coerce", utc=utc)
    wrong = stamps.isna() & text.notna()
    if wrong.any():
        raise ValueError(
            f"{where}: {int(wrong.sum())} of {len(text)} stamps cannot be read, first {text[wrong].iloc[0]!r}"
            f" in data row {int(wrong.to_numpy().argmax()) + 1}; expected ISO 8601: 2024-01-02 or"
            " 2024-01-02 09:30:00"
        )
    return stamps.dt.as_unit("ns")
