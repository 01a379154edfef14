"""Long runs without a terminal: training and forecasting say in Qlib's log how far they are."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from qlib.config import C
from qlib.log import get_module_logger

from kronos_qlib import model_log
from kronos_qlib.model_log import TRAINING, ForecastLines, training_lines
from kronos_qlib.training.progress import Progress


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def set_level(monkeypatch: pytest.MonkeyPatch, level: int) -> None:
    """What ``qlib.init(logging_level=…)`` sets for loggers that are there and for those to come."""
    monkeypatch.setitem(C._config, "logging_level", level)
    get_module_logger("kronos_qlib.model", level)


@pytest.fixture
def qlib_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    kept, before = Kept(), C.logging_level
    set_level(monkeypatch, logging.INFO)
    # Qlib hands on what its modules say to the handlers of this one
    logging.getLogger("qlib").addHandler(kept)
    yield kept
    logging.getLogger("qlib").removeHandler(kept)
    set_level(monkeypatch, before)


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)


def validate_once() -> None:
    with Progress("predictor", 10, 0, silent=False) as progress:
        progress.step(640)
        progress.validated({"forecast": 4.0}, {"forecast": 3.9}, "forecast", best=True)


def test_a_validation_is_a_line_of_qlibs_log(qlib_log: Kept) -> None:
    with training_lines():
        validate_once()
    (line,) = qlib_log.lines
    assert line.startswith("predictor step 1 of 10")
    assert line.endswith("train 4.0000, valid 3.9000 forecast (best)")


def test_a_quiet_qlib_stays_quiet(qlib_log: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    set_level(monkeypatch, logging.ERROR)
    with training_lines():
        validate_once()
    assert qlib_log.lines == []


def test_the_training_log_is_as_before_after_it(qlib_log: Kept) -> None:
    lines = logging.getLogger(TRAINING)
    before = (lines.level, lines.propagate, list(lines.handlers))
    with pytest.raises(RuntimeError, match="stop"), training_lines():
        raise RuntimeError("stop")
    assert (lines.level, lines.propagate, list(lines.handlers)) == before
    validate_once()
    assert qlib_log.lines == []


def test_a_program_that_shows_the_lines_itself_keeps_them(qlib_log: Kept) -> None:
    own, lines = Kept(), logging.getLogger(TRAINING)
    lines.addHandler(own)
    lines.setLevel(logging.INFO)
    try:
        with training_lines():
            validate_once()
    finally:
        lines.removeHandler(own)
        lines.setLevel(logging.NOTSET)
    assert len(own.lines) == 1
    assert qlib_log.lines == []


def test_a_forecast_says_once_a_minute_how_far_it_is(qlib_log: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(model_log.time, "monotonic", lambda: now[0])
    lines = ForecastLines(1_000)
    for second in range(1, 131):
        now[0] = float(second)
        lines.add(2)
    assert qlib_log.lines == [
        "120 of 1,000 windows forecast, 7 min left", "240 of 1,000 windows forecast, 6 min left",
    ]  # fmt: skip


def test_a_terminal_has_its_bar_alone(qlib_log: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    now = [0.0]
    monkeypatch.setattr(model_log.time, "monotonic", lambda: now[0])
    lines = ForecastLines(10)
    now[0] = 100.0
    lines.add(5)
    assert qlib_log.lines == []
