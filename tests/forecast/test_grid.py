"""Grids: multiplied out in order, joined, and refused with the nearest key."""

from __future__ import annotations

from pathlib import Path

import pytest

from kronos_qlib.forecast.grid import Setting, describe_differences, expand_grid, parse_assignments, read_grid
from kronos_qlib.kronos import SamplingConfig


def test_lists_are_multiplied_out_and_the_last_key_runs_fastest() -> None:
    settings = expand_grid({"temperature": [0.8, 1.0], "n_paths": [2, 4], "horizon": 5})
    assert [(s.sampling.temperature, s.sampling.n_paths, s.horizon) for s in settings] == [
        (0.8, 2, 5), (0.8, 4, 5), (1.0, 2, 5), (1.0, 4, 5),
    ]  # fmt: skip
    assert settings[0].sampling.top_p == SamplingConfig().top_p


def test_grids_join_and_equal_settings_count_once(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text("- temperature: [0.8, 1.0]\n- {scheme: stratified, order: close}\n- temperature: 1.0\n")
    settings = read_grid(path)
    assert settings == [
        Setting(10, SamplingConfig(temperature=0.8)),
        Setting(10, SamplingConfig()),
        Setting(10, SamplingConfig(scheme="stratified", order="close")),
    ]


def test_texts_are_read_as_yaml() -> None:
    grid = parse_assignments(["temperature=0.8, 1", "s2_top_p=null,1.0", "scheme=sobol"])
    assert grid == {"temperature": [0.8, 1], "s2_top_p": [None, 1.0], "scheme": ["sobol"]}
    assert len(expand_grid(grid)) == 4


def test_settings_are_named_by_what_differs() -> None:
    names = describe_differences(expand_grid({"temperature": [0.8, 1.0], "n_paths": 3}))
    assert names == ["temperature=0.8", "temperature=1.0"]
    assert describe_differences(expand_grid({"n_paths": 3})) == ["the only setting"]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"temprature": [1.0]}, "did you mean 'temperature'"),
        ({"horizons": 10}, "did you mean 'horizon'"),
        ({"temperature": []}, "has no value"),
        ({"horizon": 0}, "horizon must be a whole number"),
        ({"top_p": 2.0}, "top_p"),
        (3, "must map keys to values"),
        ([], "must map keys to values"),
    ],
)
def test_bad_grids_are_refused(grid: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand_grid(grid)


@pytest.mark.parametrize("texts", [["temperature"], ["temperature="], ["n_paths=1", "n_paths=2"], ["n_paths=[1"]])
def test_bad_texts_are_refused(texts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"expected a key|given twice|not readable"):
        parse_assignments(texts)
