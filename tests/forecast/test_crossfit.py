"""Which weights a row gets, by a table of dates; whatever leaks is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from small_panel import bars, make_panel

from kronos_qlib.forecast.crossfit import LEFT_OUT, RowSpans, SeenBars, choose_weights, may_answer, row_spans
from kronos_qlib.market.calendars import get_calendar
from kronos_qlib.market.windows import WindowPolicy

EARLY = SeenBars.from_card({"train_start": "2000-01-04", "cutoff": "2010-07-30"}, "early")
LATE = SeenBars.from_card({"train_start": "2011-01-17", "cutoff": "2014-12-31"}, "late")
WHOLE = SeenBars.from_card({"train_start": "2000-01-04", "cutoff": "2014-12-31"}, "whole")
ALL = (WHOLE, LATE, EARLY)
FIT_END = "2014-12-31"


def span(date: str, back: int = 130, ahead: int = 14) -> RowSpans:
    """A window of about 90 sessions and a label of about 10, as days."""
    day = np.array([date], dtype="datetime64[D]")
    return RowSpans(day, day - back, day + ahead)


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        # rows that a learner is fitted on: weights that saw neither window nor label
        ("2008-01-02", "late"),
        # its window begins with the early weights' last bar, the next one's the day after: then the past is preferred
        ("2010-12-07", "late"),
        ("2010-12-08", "early"),
        ("2012-06-01", "early"),
        ("2014-12-31", "early"),
        # rows after them: the latest cutoff, then the longer training, though the window reaches back behind it
        ("2015-01-05", "whole"),
        ("2020-08-03", "whole"),
    ],
)
def test_the_table_of_dates(date: str, expected: str) -> None:
    for candidates in (ALL, ALL[::-1]):
        choice = choose_weights(candidates, span(date), fit_end=FIT_END)
        assert choice.weights().tolist() == [expected]
        assert not choice.in_sample.any()


def test_purge_is_exact_to_the_day() -> None:
    only = (EARLY,)
    # window from 2010-07-31 is clean, from 2010-07-30 leaks
    assert choose_weights(only, span("2010-12-08"), fit_end=FIT_END).weights()[0] == "early"
    with pytest.raises(ValueError, match="1 of 1 rows, dated 2010-12-07 to 2010-12-07"):
        choose_weights(only, span("2010-12-07"), fit_end=FIT_END)
    only = (LATE,)
    assert choose_weights(only, span("2011-01-02"), fit_end=FIT_END).weights()[0] == "late"
    with pytest.raises(ValueError, match="late: 2011-01-17 to 2014-12-31"):
        choose_weights(only, span("2011-01-03"), fit_end=FIT_END)


def test_without_a_fit_only_the_past_counts() -> None:
    assert choose_weights(ALL, span("2015-01-01"), fit_end=None).weights()[0] == "whole"
    assert choose_weights(ALL, span("2010-07-31"), fit_end=None).weights()[0] == "early"
    # the late weights saw nothing of it, but were trained after it
    with pytest.raises(ValueError, match="allow_in_sample: true"):
        choose_weights(ALL, span("2009-01-05"), fit_end=None)


def test_in_sample_is_allowed_on_demand_and_marked() -> None:
    spans = RowSpans(
        *(
            np.concatenate([getattr(span("2012-01-04"), k), getattr(span("2016-01-04"), k)])
            for k in ("date", "first", "last")
        )
    )
    choice = choose_weights((WHOLE,), spans, fit_end=FIT_END, allow_in_sample=True)
    assert choice.weights().tolist() == ["whole", "whole"]
    assert choice.in_sample.tolist() == [True, False]
    choice = choose_weights((WHOLE,), spans, fit_end=FIT_END, leave_out=True)
    assert choice.chosen.tolist() == [LEFT_OUT, 0]
    assert choice.weights().tolist() == ["", "whole"]
    with pytest.raises(ValueError, match="one of them at most"):
        choose_weights((WHOLE,), spans, fit_end=FIT_END, leave_out=True, allow_in_sample=True)
    with pytest.raises(ValueError, match="no weights to choose from"):
        choose_weights((), spans, fit_end=FIT_END)


def test_held_out_years_inside_the_training_are_not_seen() -> None:
    card = {"train_start": "2000-01-04", "cutoff": "2014-12-31", "held_out": [["2008-01-01", "2010-12-31"]]}
    held = SeenBars.from_card(card, "held")
    assert choose_weights((held,), span("2009-01-05"), fit_end=FIT_END).weights()[0] == "held"
    for date in ("2008-03-03", "2010-12-20", "2012-01-04"):
        with pytest.raises(ValueError, match="would get factors"):
            choose_weights((held,), span(date), fit_end=FIT_END)


@pytest.mark.parametrize("names", [("whole", "held"), ("held", "whole")])
def test_weights_with_held_out_years_are_second_to_those_trained_on_all(names: tuple[str, str]) -> None:
    dates = {"train_start": "2000-01-04", "cutoff": "2014-12-31"}
    whole, held = names  # the fingerprints, in both orders of the alphabet
    candidates = (
        SeenBars.from_card(dates | {"held_out": [["2008-01-01", "2010-12-31"]]}, held),
        SeenBars.from_card(dates, whole),
    )
    assert choose_weights(candidates, span("2016-01-04"), fit_end=FIT_END).weights()[0] == whole
    assert choose_weights(candidates, span("2009-01-05"), fit_end=FIT_END).weights()[0] == held


def test_a_learner_is_not_fitted_on_what_the_weights_were_chosen_by() -> None:
    card = {"train_start": "2000-01-04", "cutoff": "2010-07-30", "valid_start": "2012-01-01", "valid_end": "2012-12-31"}
    chosen = SeenBars.from_card(card, "chosen")
    assert choose_weights((chosen,), span("2014-01-06"), fit_end=FIT_END).weights()[0] == "chosen"
    with pytest.raises(ValueError, match="would get factors"):
        choose_weights((chosen,), span("2012-06-01"), fit_end=FIT_END)
    assert choose_weights((chosen,), span("2012-06-01"), fit_end=None).weights()[0] == "chosen"


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"name": "x", "cutoff": "2014-12-31"}, "card of x gives train_start=None"),
        ({"train_start": "2014-12-31", "cutoff": "2000-01-01"}, "expected the first before"),
        ({"train_start": "2000-01-04", "cutoff": "2014-12-31", "held_out": [["2008-01-01"]]}, "expected two dates"),
        ({"train_start": "soon", "cutoff": "2014-12-31"}, "expected a date"),
    ],
)
def test_cards_that_do_not_say(card: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SeenBars.from_card(card, "f")


def test_row_spans_reach_from_the_windows_first_bar_to_the_labels_last() -> None:
    frame = bars(30)
    panel = make_panel({"SH600000": frame.drop(frame.index[20]), "SH600001": frame})
    row = panel.locate("SH600000", [frame.index[25]])
    policy = WindowPolicy(lookback=10, min_bars=5)
    calendar = get_calendar("XSHG")
    found = row_spans(panel, row, policy=policy, horizon=3, calendar=calendar)
    # ten traded bars: one day is missing, so eleven sessions
    assert pd.Timestamp(found.first[0]) == frame.index[15]
    assert pd.Timestamp(found.date[0]) == frame.index[25]
    assert pd.Timestamp(found.last[0]) == frame.index[28]
    block = row_spans(panel, row, policy=policy, horizon=3, calendar=calendar, block=5)
    assert pd.Timestamp(block.first[0]) == frame.index[11]
    end = row_spans(panel, panel.offsets[1:2] - 1, policy=policy, horizon=2, calendar=calendar)
    assert str(end.last[0]) == "2020-02-04"  # past the last bar, by the calendar
    carried = row_spans(panel, row, policy=policy, horizon=3, calendar=calendar, used=frame.index[[26]].to_numpy())
    assert (carried.date, carried.first) == (found.date, found.first)  # the bar's
    assert pd.Timestamp(carried.last[0]) == frame.index[29]  # the day's
    begun = SeenBars.from_card({"train_start": f"{frame.index[29]:%Y-%m-%d}", "cutoff": "2020-12-31"}, "begun")
    assert may_answer(begun, found, "2020-12-31").tolist() == [True]
    assert may_answer(begun, carried, "2020-12-31").tolist() == [False]
    with pytest.raises(ValueError, match="1 rows used before their bar"):
        row_spans(panel, row, policy=policy, horizon=3, calendar=calendar, used=frame.index[[24]].to_numpy())
    with pytest.raises(ValueError, match="at least 1 bar"):
        row_spans(panel, row, policy=policy, horizon=0, calendar=calendar)
    with pytest.raises(ValueError, match="rows of -1"):
        row_spans(panel, np.array([-1]), policy=policy, horizon=1, calendar=calendar)
