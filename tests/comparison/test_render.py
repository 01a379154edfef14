"""The README's table says what the rows say, and the committed rows can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from table_rows import NOT_RUN, ROW

from kronos_qlib.comparison.methods import Method, read_methods
from kronos_qlib.comparison.render import END, START, render, replace_table, table_in, table_text
from kronos_qlib.comparison.render_pairs import read_pairs
from kronos_qlib.comparison.render_probability import probability_text, read_probabilities
from kronos_qlib.comparison.rows import Row, read_rows, write_rows

VALID = ("valid", "done")
ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "alpha.csv"
METHODS = {"linear": Method("linear", "Linear, Alpha158", "baseline", "column", column="x")}


def test_a_line_by_hand() -> None:
    text = table_text([ROW], METHODS)
    assert "| Linear, Alpha158 | .0500 [.0282, .0718] | .0400 | .350 | 7.0 % | 1.00 | -10.0 % | 19.0 % | 1 |" in text


def test_seeds_are_one_line_with_their_spread() -> None:
    text = table_text([ROW, replace(ROW, seed=1, rank_ic=0.07)], METHODS)
    assert "| 2 (± .0141) |" in text
    assert text.count("Linear, Alpha158") == 1


def test_named_pairs_stand_below_their_segment(tmp_path: Path) -> None:
    pair = {"variants_tried": 20, "measure": "rank_ic", "method": "best", "rival": "linear", "difference": 0.004,
            "lower": -0.001, "upper": 0.009, "p_value": 0.1, "adjusted_p_value": 0.4, "block_length": 2.0,
            "n_days": 488}  # fmt: skip
    sure = pair | {"method": "second", "adjusted_p_value": 0.049}
    itself = pair | {"rival": "second", "difference": -0.001}
    net = pair | {"measure": "net", "difference": 0.021, "lower": -0.01, "upper": 0.05, "adjusted_p_value": 1.0}
    pd.DataFrame([pair, sure, itself, net]).to_csv(tmp_path / "comparisons_valid.csv", index=False)
    text = table_text([ROW], METHODS, read_pairs(tmp_path))
    assert "20 variants tried on valid. A: best; B: second." in text
    first, second = "| second | -.0010 [-.0010, .0090] |  |", "| Linear, Alpha158 | .0040 [-.0010, .0090] | **.0040 ["
    assert text.index("| Rank IC above | A | B |\n|---|---|---|") < text.index(first) < text.index(second)
    assert "| net excess return a year above | A | B |" in text
    assert "| Linear, Alpha158 | 2.1 % [-1.0 %, 5.0 %] |  |" in text
    assert "paired" not in table_text([ROW], METHODS)


def test_flags_and_what_was_not_run_are_said() -> None:
    flagged = [replace(ROW, trained_on_segment="yes", stopped_on_segment="yes"), NOT_RUN]
    text = table_text(flagged, METHODS)
    assert "Linear, Alpha158 † §" in text
    assert "† weights were trained on dates of this segment." in text
    assert "Not run: slow (too slow)." in text
    assert "‡" in table_text([replace(ROW, trained_on_segment="unknown")], METHODS)


def test_test_comes_before_valid_and_better_before_worse() -> None:
    rows = [ROW, replace(ROW, segment="test"), replace(ROW, method="best", segment="test", rank_ic=0.1)]
    text = table_text(rows, METHODS)
    assert text.index("test, 2017") < text.index("| best") < text.index("| Linear") < text.index("valid, 2015")


def test_valid_and_the_pairs_are_folded_and_methods_without_a_row_are_named() -> None:
    methods = METHODS | {"gru": Method("gru", "GRU, Alpha158", "baseline", "column", column="x")}
    text = table_text([ROW, replace(ROW, segment="test")], methods)
    assert text.index("| Linear") < text.index("<details>") < text.rindex("| Linear")
    assert text.count("<details>") == text.count("</details>") == 1
    assert text.endswith("No row yet: GRU, Alpha158.")
    assert "No row yet" not in table_text([ROW], METHODS)
    methods["gru"] = replace(methods["gru"], no_row="four hours")
    assert table_text([ROW], methods).endswith("No row yet: GRU, Alpha158 (four hours).")


def test_the_table_goes_between_its_markers(tmp_path: Path) -> None:
    write_rows(tmp_path / "alpha.csv", [ROW])
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{START}\nold\n{END}\nafter\n", encoding="utf-8")
    written = render(tmp_path, readme, METHODS)
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert table_in(text) == table_text([ROW], METHODS)
    assert written[1].read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="markers"):
        replace_table("nothing", "table", readme)
    with pytest.raises(ValueError, match="no rows"):
        render(tmp_path / "empty", readme, METHODS)


def answers_for(row: Row, known: Mapping[str, Method]) -> str:
    """The weights that a row is of; scores made elsewhere, and means of them, are other files for each segment."""
    made_of = known[row.method].made_of or (row.method,)
    return "" if known[made_of[0]].kind == "scores" else row.checkpoint


def probabilities(part: str = "all") -> pd.DataFrame:
    """What judge_probability writes, as far as it is shown: two methods, all steps together and one by one."""
    rows = []
    for method, skill in (("histvol20", 0.0), ("kronos", -0.0125)):
        for step in range(6):
            rows.append(
                {"part": part, "method": method, "group": "all", "step": step, "windows": 1234, "days": 49, "every": 5,
                 "n_paths": 64, "scheme": "independent", "dtype": "bfloat16", "crps": 0.02, "skill": skill,
                 "skill_lower": -0.03, "skill_upper": 0.005, "skill_garch": np.nan, "recalibrated_90": 0.91,
                 **{f"coverage_{level}": level / 100 for level in (50, 80, 90)}, **{f"pit_{k}": 0.1 for k in range(10)}}
            )  # fmt: skip
    return pd.DataFrame(rows)


def test_probabilities_are_shown_and_drawn(tmp_path: Path) -> None:
    table = pd.concat([probabilities().assign(crps=9.0), probabilities("second_half")], ignore_index=True)
    text = probability_text(table, "valid")
    (kronos,) = [line for line in text.splitlines() if line.startswith("| Kronos, paths")]
    cells = [cell.strip() for cell in kronos.split("|")][2:-1]
    assert cells == ["2.000", "-1.25 % [-3.00, +0.50]", "–", "50.0 %", "80.0 %", "90.0 %", "90.0 %, 90.0 %", "91.0 %"]
    assert "1,234 windows on 49 dates, every 5th session; 64 independent paths in bfloat16." in text
    assert "49 dates, every session;" in probability_text(table.assign(every=1), "valid")
    assert "49 dates, every 2nd session;" in probability_text(table.assign(every=2), "valid")
    write_rows(tmp_path / "alpha.csv", [replace(ROW, segment="test"), ROW])
    table.to_csv(tmp_path / "probability_valid.csv", index=False)
    readme = tmp_path / "README.md"
    readme.write_text(f"{START}\n{END}\n", encoding="utf-8")
    written = render(tmp_path, readme, METHODS)
    assert table_in(readme.read_text(encoding="utf-8")).count("distributions of the next 5 closes") == 1
    assert [path.name for path in written[1:]] == ["probability_valid.png", "alpha_test.png", "alpha_valid.png"]
    assert written[1].read_bytes()[:4] == b"\x89PNG"


@pytest.mark.skipif(not RESULTS.is_file(), reason="no rows have been committed yet")
def test_the_committed_rows_can_be_and_say_what_made_them() -> None:
    rows = read_rows(RESULTS)
    assert len({row.data for row in rows if row.status == "done"}) == 1, "rows of different stores in one table"
    known = read_methods()
    for row in rows:
        assert row.method in known, f"{row.method} is in no registry"
        assert known[row.method].family == row.family
        assert row.commit != "unknown"
        if row.family == "kronos" and row.status == "done":
            assert row.checkpoint, f"{row.method} does not say which weights it used"
    # test is read only of what was seen on valid with the same configuration and weights
    valid = {(r.method, r.seed, r.configuration, answers_for(r, known)) for r in rows if (r.segment, r.status) == VALID}
    for row in rows:
        if row.segment == "test" and row.status == "done":
            assert (row.method, row.seed, row.configuration, answers_for(row, known)) in valid, row.method


@pytest.mark.skipif(START not in (ROOT / "README.md").read_text(encoding="utf-8"), reason="the README has no table yet")
def test_the_readme_and_the_rows_agree() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert table_in(readme) == table_text(
        read_rows(RESULTS), read_methods(), read_pairs(RESULTS.parent), read_probabilities(RESULTS.parent)
    )
