"""``kronos-qlib benchmark``: the honest table, run, compared and written into the README."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from kronos_qlib.comparison.methods import Method
    from kronos_qlib.comparison.rows import Row
    from kronos_qlib.comparison.run import RunConfig

STEPS = ("list", "run", "compare", "importance", "probability", "render")


def benchmark(
    step: str = typer.Argument("run", help="list, run, compare, importance, probability or render."),
    store: Path | None = typer.Option(None, envvar="KRONOS_STORE", help="Folder of a Qlib store with a fingerprint."),
    results: Path = typer.Option(Path("benchmarks/results"), help="Folder of the CSV files."),
    state: Path = typer.Option(
        Path("output/benchmark"),
        envvar="KRONOS_BENCHMARK_STATE",
        help="Folder of scores, fits and expressions, outside git; fits are pickles, so it must be yours alone.",
    ),
    segment: str = typer.Option("valid", help="valid or test; test needs the method's row on valid first."),
    methods: str = typer.Option("", help="Names, separated by commas; all without any."),
    registry: list[Path] = typer.Option([], help="YAML files with further methods; may be repeated."),
    given: list[str] = typer.Option(
        [], "--set", help="Value of a registry's placeholder, such as CHECKPOINT=folder; may be repeated."
    ),
    seeds: str = typer.Option("", help="Seeds, separated by commas, instead of each method's own."),
    named: str = typer.Option("", help="compare: methods to set against all others, by name, separated by commas."),
    threads: int = typer.Option(2, min=1, help="Threads of a learner."),
    budget_scale: float = typer.Option(1.0, help="Factor on every method's time budget."),
    paths: int = typer.Option(64, min=4, help="probability: paths of each window of the checkpoint."),
    scheme: str = typer.Option("independent", help="probability: independent, antithetic, stratified or sobol."),
    order: str = typer.Option("token", help="probability: token or close."),
    dtype: str = typer.Option("float32", help="probability: float32 or bfloat16."),
    jobs: int = typer.Option(1, min=1, help="probability: processes; the figures do not depend on it."),
    readme: Path = typer.Option(Path("README.md"), help="render: the file whose table is written."),
    every: int = typer.Option(1, min=1, help="probability: use every so many sessions."),
    tried: int | None = typer.Option(None, help="compare: variants tried in all; the registry's counts if not given."),
) -> None:
    """Run methods on one store, split, label and costs; one row a run; statistics; the README's table.

    \b
    list         which methods there are, with their time budgets
    run          run methods; a finished row is not repeated
    compare      paired block-bootstrap differences, Romano–Wolf, costs, years, groups
    importance   gain of LightGBM's kept fits by column and group (Alpha158, Kronos factors)
    probability  CRPS, coverage and PIT of a checkpoint, raw and recalibrated on valid, beside HistVol20 and GARCH-t;
                 killed at any moment, the same command goes on
    render       write the table and its figures into the README, between its markers
    Examples:
      kronos-qlib benchmark list
      kronos-qlib benchmark run --store STORE --methods reversal_5,linear_alpha158
      kronos-qlib benchmark compare --segment valid --named kronos_zero_shot
      kronos-qlib benchmark importance --methods lightgbm_alpha158_kronos
      kronos-qlib benchmark probability --segment valid --set CHECKPOINT=bundled:ashare --every 5 --jobs 2
    """
    from kronos_qlib.comparison.methods import REGISTRY, choose, read_methods
    from kronos_qlib.kronos.config import check_keys

    check_keys([step], STEPS, "benchmark")
    known = read_methods([REGISTRY, *[path.expanduser() for path in registry]])
    chosen = choose(known, _split(methods))
    if step == "list":
        _list(chosen)
    elif step == "run":
        _run(_config(store, results, state, given, seeds, threads, budget_scale), segment, chosen, known)
    elif step == "compare":
        from kronos_qlib.comparison.statistics import compare

        for line in compare(results, state, segment, chosen, _split(named), n_tried=tried):
            typer.echo(line)
    elif step == "importance":
        from kronos_qlib.comparison.importance import importance

        for line in importance(results, state, segment, known, _split(methods)):
            typer.echo(line)
    elif step == "probability":
        from kronos_qlib.comparison.probability import SAMPLING, judge_probability
        from kronos_qlib.kronos import SamplingConfig

        config = _config(store, results, state, given, seeds, threads, budget_scale)
        sampling = SamplingConfig(**SAMPLING.to_dict() | {"n_paths": paths, "scheme": scheme, "order": order})
        for line in judge_probability(config, segment, every=every, sampling=sampling, dtype=dtype, jobs=jobs):
            typer.echo(line)
    else:
        from kronos_qlib.comparison.render import render

        for path in render(results, readme, known):
            typer.echo(f"wrote {path}")


def _config(
    store: Path | None, results: Path, state: Path, given: list[str], seeds: str, threads: int, budget_scale: float
) -> RunConfig:
    from kronos_qlib.comparison.run import RunConfig

    if store is None:
        raise ValueError("no store; give --store FOLDER or set KRONOS_STORE")
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"found --set {text!r}; expected NAME=VALUE, such as CHECKPOINT=folder")
        place = Path(value).expanduser()
        values[name] = str(place.resolve()) if place.exists() else value
    chosen = tuple(int(seed) for seed in _split(seeds)) or None
    return RunConfig(
        store.expanduser(), results / "alpha.csv", state.expanduser(), given=values, threads=threads,
        budget_scale=budget_scale, seeds=chosen,
    )  # fmt: skip


def _list(chosen: list[Method]) -> None:
    for method in chosen:
        seeds = f"{len(method.seeds)} seeds" if method.seeded else "1 run"
        why = f"  not run: {method.not_run}" if method.not_run else ""
        needs = f"  needs --set {', '.join(method.placeholders())}" if method.placeholders() else ""
        typer.echo(f"{method.name:26} {method.family:10} {seeds:8} {method.budget:7.0f} s  {method.title}{needs}{why}")


def _run(config: RunConfig, segment: str, chosen: list[Method], known: dict[str, Method]) -> None:
    from kronos_qlib.comparison.run import run_methods, write_description

    if segment == "test":
        typer.echo("note: test is read once for each row; name what is reported on valid first")

    def report(row: Row, finished: bool) -> None:
        typer.echo(describe(row) + "  (done before)" * finished)

    run_methods(config, segment, chosen, known, report)
    write_description(config.results.with_name("configurations.json"), config, chosen)


def describe(row: Row) -> str:
    """One line about a row."""
    head = f"{row.method:26} seed {row.seed}  "
    if row.status != "done":
        return f"{head}not run: {row.reason}"
    return (
        f"{head}Rank IC {row.rank_ic:+.4f} (t {row.rank_ic_t:+.1f})  IC {row.ic:+.4f}  net {row.net_excess_return:+.1%}"
        f"  IR {row.information_ratio:+.2f}  coverage {row.coverage:.1%}  {row.seconds:.0f} s"
    )


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
