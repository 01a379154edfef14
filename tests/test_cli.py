"""The command line as its users meet it: help, exit codes, messages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from kronos_qlib import __version__
from kronos_qlib.cli import app, main
from kronos_qlib.cli_market import parse_pairs

# typer names a command after its function
COMMANDS = {command.callback.__name__.replace("_", "-") for command in app.registered_commands if command.callback}


def run(*arguments: object) -> int:
    """Run the command line in this process and return its exit code."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def bars(days: int = 40) -> pd.DataFrame:
    """Two quiet stocks on Shanghai's first sessions of 2020."""
    dates = pd.bdate_range("2020-02-03", periods=days)  # no holiday on weekdays until April
    frames = []
    for code, base in (("SH600000", 10.0), ("SZ000001", 15.0)):
        close = [base + 0.05 * (i % 3) for i in range(days)]
        frame = pd.DataFrame({"instrument": code, "datetime": dates, "open": close, "close": close})
        frames.append(frame.assign(high=frame["close"] + 0.02, low=frame["close"] - 0.02, volume=1e6 + frame.index))
    joined = pd.concat(frames, ignore_index=True)
    return joined.assign(amount=joined["volume"] * joined["close"], factor=1.0)


def test_help_names_every_command_and_each_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)
    assert {"quickstart", "check", "ingest", "forecast", "signal", "doctor", "export", "tokenizer-report"} <= COMMANDS
    for command in COMMANDS:
        assert run(command, "--help") == 0
        assert f"kronos-qlib {command}" in capsys.readouterr().out.split("Examples:")[1]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == f"kronos-qlib {__version__}"


def test_without_a_command_it_explains_itself_and_exits_2() -> None:
    assert run() == 2


def test_a_user_error_is_a_message_on_stderr_and_exit_2() -> None:
    """In a process of its own, so that the streams and the exit code are what a shell sees."""
    command = [sys.executable, "-m", "kronos_qlib.cli", "check", "no_such_file.parquet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: no_such_file.parquet: no such file")
    assert "Traceback" not in done.stderr


def test_a_traceback_is_there_for_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRONOS_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no such file"):
        main(["check", "no_such_file.parquet"])


def test_check_passes_good_bars_and_fails_bad_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.parquet", tmp_path / "bad.csv"
    bars().to_parquet(good)
    bars().assign(high=lambda frame: frame["low"] - 1.0).to_csv(bad, index=False)
    assert run("check", good) == 0
    assert "no errors" in capsys.readouterr().out
    assert run("check", bad) == 1
    assert "error" in capsys.readouterr().out


def test_check_prints_and_saves_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, saved = tmp_path / "bars.parquet", tmp_path / "reports" / "report.json"
    bars().assign(volume=-1.0).to_parquet(file)
    assert run("check", file, "--json", "--report", saved) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(saved.read_text())
    assert printed["has_errors"] is True
    counts = {check["name"]: check["count"] for check in printed["checks"]}
    assert 80 in counts.values()  # every bar's negative volume was counted


def test_check_reads_a_vendor_s_own_column_names(tmp_path: Path) -> None:
    file = tmp_path / "vendor.csv"
    one = bars().query("instrument == 'SH600000'").drop(columns="instrument").rename(columns={"close": "px_last"})
    one.to_csv(file, index=False)
    assert run("check", file) == 2
    assert run("check", file, "--column", "px_last=close", "--instrument", "SH600000") == 0


@pytest.mark.parametrize("text", ["csi300", "=file", "csi300="])
def test_pairs_that_are_none_are_named(text: str) -> None:
    with pytest.raises(ValueError, match=f"found '{text}'"):
        parse_pairs([text], "--members", "csi300=members.txt")


def test_pairs_keep_the_rest_of_the_value() -> None:
    assert parse_pairs(["a=b=c"], "--members", "x=y") == {"a": "b=c"}
