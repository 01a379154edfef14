"""Reading membership spans."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from kronos_qlib.market.members import check_spans, read_members


def test_spans_are_read_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "members.txt"
    path.write_text(
        "SH600000\t2010-01-04\t2012-06-30\nSZ000001\t2011-01-01\t2011-01-01\nSH600000\t2013-01-01\t2015-01-01\n"
    )
    spans = read_members(path)
    assert spans["instrument"].tolist() == ["SH600000", "SZ000001", "SH600000"]
    assert spans["start"].tolist() == [
        pd.Timestamp("2010-01-04"),
        pd.Timestamp("2011-01-01"),
        pd.Timestamp("2013-01-01"),
    ]
    assert spans["end"].iloc[0] == pd.Timestamp("2012-06-30")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("SH600000 2010-01-04 2012-06-30\n", "line 1 .* expected code<TAB>first day<TAB>last day"),
        ("SH600000\t2010-01-04\t2012-06-30\n\nSZ000001\t2010-01-04\n", "line 3 "),
        ("SH600000\t2010-01-04\tforever\n", "line 1 .*forever.* no dates"),
        ("SH600000\t2010-01-04\t2009-01-01\n", "1 spans .* end before they start, first SH600000 2010-01-04"),
        ("A\t2010-01-04\t2010-03-01\nA\t2010-03-01\t2010-04-01\n", "1 spans .* overlap .* first A 2010-03-01"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "members.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_members(path)


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.txt cannot be read"):
        read_members(tmp_path / "nowhere.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match="cannot be read"):
        read_members(tmp_path / "binary.txt")


def test_a_frame_needs_its_columns() -> None:
    with pytest.raises(ValueError, match=r"lack \['end'\]"):
        check_spans(pd.DataFrame({"instrument": ["A"], "start": ["2010-01-01"]}), "csi300")


def test_the_real_members_file(shared_file) -> None:
    spans = read_members(shared_file("market/csi300_members.txt"))
    assert (len(spans), spans["instrument"].nunique()) == (1206, 939)
    day = pd.Timestamp("2017-06-30")
    assert 298 <= ((spans["start"] <= day) & (spans["end"] >= day)).sum() <= 300
