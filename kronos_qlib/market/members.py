"""Who belonged to a universe, and when: Qlib's instruments files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

SPAN_COLUMNS = ("instrument", "start", "end")


def read_members(path: str | Path) -> pd.DataFrame:
    """Read a Qlib instruments file: code, first day, last day, separated by tabs, one span a line.

    A code may have several spans (it left and came back). Nothing is clipped or merged.

    Returns
    -------
    DataFrame
        ``instrument`` (str), ``start``, ``end`` (Timestamps, both days included), in the order of the file.

    Raises
    ------
    ValueError
        The file is missing, empty or not of this form; the first bad line is shown.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the members file {path} cannot be read: {error}") from error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise ValueError(f"the members file {path} is empty: expected lines of code<TAB>first day<TAB>last day")
    rows = [_row(path, number, line) for number, line in lines]
    spans = pd.DataFrame(rows, columns=list(SPAN_COLUMNS))
    for column in ("start", "end"):
        spans[column] = _days(path, spans[column], lines)
    return check_spans(spans, str(path))


def check_spans(spans: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the three span columns of a frame, checked.

    Parameters
    ----------
    spans : DataFrame
        ``instrument``, ``start``, ``end``; both ends included.
    name : str
        What to call it in an error.

    Raises
    ------
    ValueError
        A column is missing, a span ends before it starts, or two spans of one code overlap.
    """
    missing = [column for column in SPAN_COLUMNS if column not in spans.columns]
    if missing:
        found = list(map(str, spans.columns))
        raise ValueError(f"the spans of {name} lack {missing}: found {found}, expected {list(SPAN_COLUMNS)}")
    checked = spans.loc[:, list(SPAN_COLUMNS)].reset_index(drop=True)
    checked = checked.assign(
        instrument=checked["instrument"].astype(str),
        start=pd.to_datetime(checked["start"]),
        end=pd.to_datetime(checked["end"]),
    )
    reversed_ = checked[~(checked["start"] <= checked["end"])]
    if len(reversed_):
        raise ValueError(f"{len(reversed_)} spans of {name} end before they start, first {_show(reversed_)}")
    ordered = checked.sort_values(["instrument", "start"], kind="stable")
    before = ordered.groupby("instrument", sort=False)["end"].shift()
    overlapping = ordered[ordered["start"] <= before]
    if len(overlapping):
        raise ValueError(
            f"{len(overlapping)} spans of {name} overlap an earlier span of their code, first {_show(overlapping)}: "
            "merge them, or correct their days"
        )
    return checked


def _show(spans: pd.DataFrame) -> str:
    first = spans.iloc[0]
    return f"{first['instrument']} {first['start']:%Y-%m-%d} to {first['end']:%Y-%m-%d}"


def _row(path: Path, number: int, line: str) -> list[str]:
    parts = [part.strip() for part in line.split("\t")]
    if len(parts) < 3 or not all(parts[:3]):
        raise ValueError(
            f"line {number} of the members file {path} is {line[:80]!r}: expected code<TAB>first day<TAB>last day"
        )
    return parts[:3]


def _days(path: Path, column: pd.Series, lines: list[tuple[int, str]]) -> pd.Series:
    days = pd.to_datetime(column, errors="coerce", format="ISO8601")
    if days.isna().any():
        number, line = lines[int(days.isna().to_numpy().argmax())]
        raise ValueError(
            f"line {number} of the members file {path} is {line[:80]!r}: its days are no dates like 2015-01-31"
        )
    return days
