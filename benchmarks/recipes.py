r"""Variants of a pretraining recipe, trained short and examined on valid: which shape and schedule deserve a long run.

    python benchmarks/recipes.py workflows/recipes/pretrain_ashare_2000_2007.yaml --corpus CORPUS --store STORE --out OUT \
        --tokenizer-from CHECKPOINT --steps 400 --set model.d_model=96,192 --set model.n_layers=2,6 \
        --variant "wide: model.d_model=192, model.ff_dim=512" --every 10 --threads 1

The base recipe is a row; ``--set`` adds one row a value, one setting at a time around the base; ``--variant`` adds one
row with several settings. ``tokenizer.s1_bits`` and ``s2_bits`` change the model's as well. Losses compare where the
tokens are the same: ``--tokenizer-from`` gives all variants one tokenizer (that of an earlier row: its folder in OUT),
except those that change ``tokenizer`` or ``tokenizer_training``, which train their own, as all do without it.
``--set predictor_training.seed=1,2`` says how much of a difference is the seed's.

CORPUS is the folder that ``kronos-qlib pretrain --corpus`` made. Each variant is pretrained in ``OUT/NAME-KEY``, where
a killed run goes on, and examined as ``kronos-qlib examine`` does it: on the universe's members and the recipe's valid
span, short of its last sessions, so that no label reads a bar beyond it. KEY is a hash of recipe and bars, so that a
changed variant runs again and a finished row does not. Two of these commands may run beside each other: each takes the
variants that the other has not begun. Prints a markdown table, and one JSON line last.
"""  # noqa: E501

from __future__ import annotations

import argparse
import csv
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recipe_variants import Trial, plan_trials, read_variants, shorten
from torch import Tensor

from kronos_qlib.cli_train import show_log
from kronos_qlib.comparison.run import current_commit
from kronos_qlib.evaluation.null_maximum import expected_null_maximum
from kronos_qlib.examine import LONGEST_LABEL, ExamineConfig, examine, open_store, plain
from kronos_qlib.forecast.devices import pick_device
from kronos_qlib.forecast.forecaster import KronosForecaster
from kronos_qlib.forecast.reduction import CheckpointSource
from kronos_qlib.forecast.store_lock import try_lock, wait_for_lock
from kronos_qlib.forecast.token_quality import cut_windows, draw_window_ends, token_quality
from kronos_qlib.handler import load_panel, member_spans, sessions_between
from kronos_qlib.kronos import Kronos, KronosTokenizer, SamplingConfig, load_tokenizer
from kronos_qlib.market.swap import whole_file
from kronos_qlib.market.windows import WindowPolicy
from kronos_qlib.sweep import fingerprint_of, write_json
from kronos_qlib.training.corpus import Corpus
from kronos_qlib.training.distributed import Processes
from kronos_qlib.training.objectives import PredictorObjective
from kronos_qlib.training.pretrain import pretrain
from kronos_qlib.training.recipe import PredictorTraining, PretrainRecipe, load_recipe
from kronos_qlib.training.recipe_windows import Windows
from kronos_qlib.training.stream import TrainingBatch
from kronos_qlib.training.trainer import train

FORMAT = 1  # raised when the same settings would give other figures
HORIZON, TOKEN_WINDOWS, RECONSTRUCTED = 10, 768, 512
SAMPLING = SamplingConfig(n_paths=10, top_p=1.0, scheme="stratified", order="close")
SHOWN = (("one_day", "expected_return"), ("one_day", "first_step"), ("ten_day", "expected_return"))
FIGURES = ("rank_ic", "rank_ic_error", "rank_ic_t", "after_reversal", "after_reversal_t", "after_all", "after_all_t")
TEXT = ("variant", "changes", "recipe", "examined", "tokenizer", "bits", "commit")  # the other columns are numbers
TIMED, WARM = 7, 2


def plan_examination(args: argparse.Namespace, recipe: PretrainRecipe) -> tuple[ExamineConfig, str]:
    """What every row is examined on (the checkpoint is filled in later), and its hash."""
    store = open_store(args.store)
    sessions = sessions_between(str(recipe.valid.start), str(recipe.valid.end), str(store["freq"]))
    after = max(HORIZON, LONGEST_LABEL)
    if len(sessions) <= after:
        raise ValueError(
            f"valid has {len(sessions)} sessions in {args.store}; expected more than the {after} of a label"
        )
    start, end = f"{sessions[0]:%Y-%m-%d}", f"{sessions[-1 - after]:%Y-%m-%d}"
    sampling = SAMPLING.model_copy(update={"n_paths": args.n_paths})
    # the token figures are those of member_tokens, so examine itself needs no windows for them
    config = ExamineConfig(
        CheckpointSource(""), args.store, args.universe, start, end, args.every, HORIZON, sampling, 1, 1
    )
    content = {
        "format": FORMAT, "store": store.get("fingerprint") or str(args.store), "universe": args.universe,
        "start": start, "end": end, "every": args.every, "horizon": HORIZON, "sampling": sampling.to_dict(),
        "tokens": args.token_windows,
    }  # fmt: skip
    return config, fingerprint_of(content)


def member_tokens(forecaster: KronosForecaster, config: ExamineConfig, n_windows: int) -> dict[str, Any]:
    """Losses and reconstruction on random windows of the span's members alone, of bars that lie in the span."""
    store = open_store(config.store)
    freq, jump = str(store["freq"]), WindowPolicy.max_jump if store["region"] == "cn" else None
    policy = WindowPolicy.up_to(forecaster.lookback, max_jump=jump)
    members = member_spans(config.universe, sessions_between(config.start, config.end, freq), freq)
    panel = load_panel(sorted(members), None, config.end, freq)
    ends = draw_window_ends(
        panel, config.start, config.end, lookback=forecaster.lookback, horizon=config.horizon, n_windows=n_windows,
        seed=config.seed, policy=policy,
    )  # fmt: skip
    x, stamps, clipped = cut_windows(panel, ends, forecaster.lookback + config.horizon + 1, forecaster.lookback)
    return token_quality(
        forecaster.model, forecaster.tokenizer, x, stamps, context=forecaster.lookback,
        n_reconstructed=min(RECONSTRUCTED, n_windows), clipped_share=clipped,
    ).to_dict()  # fmt: skip


class ClockedObjective(PredictorObjective):
    """Notes the processor time at which each step begins."""

    moments: list[float]

    def prepare(self, batch: TrainingBatch, device: torch.device) -> tuple[Tensor, ...]:
        self.moments.append(time.process_time())
        return super().prepare(batch, device)


def seconds_a_step(recipe: PretrainRecipe, corpus: Corpus, tokenizer: KronosTokenizer, device: torch.device) -> float:
    """Median CPU seconds of a training step of the predictor, on a few steps apart: a resumed run has no clock."""
    steps = {
        "steps": TIMED + WARM + 1,
        "warmup": 0,
        "patience": None,
        "save_every": None,
        "valid_every": TIMED + WARM + 1,
    }
    config = PredictorTraining(**recipe.predictor_training.to_dict() | steps)
    objective = ClockedObjective(tokenizer, context_weight=config.context_weight, dtype=config.dtype)
    objective.moments = []
    stream = Windows.of(recipe, corpus).stream(config)
    with tempfile.TemporaryDirectory() as folder:
        train(
            Kronos(recipe.model_shape()), objective, stream, lambda network: {"forecast": 0.0}, config, Path(folder),
            name="clock", distributed=Processes(device=device),
        )  # fmt: skip
    return statistics.median(np.diff(objective.moments)[WARM:].tolist())


def run_trial(trial: Trial, config: ExamineConfig, corpus: Corpus, args: argparse.Namespace) -> dict[str, Any]:
    """Train, or finish what was begun, then measure; all figures go to ``examination.json`` in the folder."""
    device = pick_device(args.device)
    card = pretrain(
        trial.recipe, corpus, trial.folder, command="benchmarks/recipes.py", processes=Processes(device=device)
    )
    config = replace(config, source=CheckpointSource(str(trial.folder), device=args.device))
    forecaster = config.source.load()
    found = examine(config, jobs=args.jobs, progress=False)
    found["tokens"] = member_tokens(forecaster, config, args.token_windows)
    write_json(trial.folder / "examination.json", found)
    step = seconds_a_step(trial.recipe, corpus, load_tokenizer(trial.folder), device)
    return figures_of(plain(found), card["valid_figures"]["predictor"]) | {
        "steps": trial.recipe.predictor_training.steps, "cpu_seconds_a_step": step, "threads": args.threads,
    }  # fmt: skip


def figures_of(found: Mapping[str, Any], chosen: Mapping[str, float]) -> dict[str, Any]:
    """The columns of a row from an examination, and from the validation figures of the weights that were kept."""
    of, tokens = found["checkpoint"], found["tokens"]
    loss = {"s1_after": tokens["s1_after"]["mean"], "s2_after": tokens["s2_after"]["mean"]}
    row: dict[str, Any] = {
        "parameters": of["parameters"]["model"], "tokenizer_parameters": of["parameters"]["tokenizer"],
        "bits": f"{of['bits'][0]} + {of['bits'][1]}", "tokenizer": of["fingerprint"].split("-")[1][:8], **loss,
        "loss_after": sum(loss.values()), "bits_per_bar_after": tokens["bits_per_bar_after"]["mean"],
        "bits_per_bar_after_error": tokens["bits_per_bar_after"]["standard_error"], "mse": tokens["mse"]["mean"],
        "s1_codes": tokens["s1_codes"], "s2_codes": tokens["s2_codes"], "best_step": chosen["step"],
        "training_valid_loss": chosen["valid_forecast"], "dates": found["settings"]["n_dates"],
        "windows": found["settings"]["n_windows"],
    }  # fmt: skip
    signals = {(line["label"], line["signal"]): line for line in found["signals"]}
    for label, signal in SHOWN:
        row |= {f"{label}.{signal}.{name}": signals[label, signal].get(name) for name in FIGURES}
    (fifth,) = (line for line in found["calibration"] if line["step"] == 5)
    return row | {"crps_skill_5": fifth.get("crps_skill")}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a results file, numbers as such and None where there is none; no rows where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: text if name in TEXT else _read_number(text) for name, text in row.items()}
                for row in csv.DictReader(file)]  # fmt: skip


def _read_number(text: str) -> float | int | None:
    if not text:
        return None
    value = float(text)
    return int(value) if value.is_integer() and "." not in text else value


def add_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row in place of one with its keys, if any; another process may add its own meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wait_for_lock(path.with_name(f".{path.name}.lock")):
        rows: list[Mapping[str, Any]] = [old for old in read_rows(path) if row_keys(old) != row_keys(row)]
        rows.append({name: float(f"{v:.6g}") if isinstance(v, float) else v for name, v in row.items()})
        names = list(dict.fromkeys(name for one in rows for name in one))
        with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows(rows)


def row_keys(row: Mapping[str, Any]) -> tuple[str, str]:
    """What a row is the result of."""
    return row["recipe"], row["examined"]


def find_rows(path: Path, trials: Sequence[Trial], examined: str) -> list[dict[str, Any]]:
    """Finished rows of these trials in their order, each once."""
    known = {row_keys(row): row for row in read_rows(path)}
    wanted = dict.fromkeys((trial.key, examined) for trial in trials)
    return [known[keys] for keys in wanted if keys in known]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of the main figures; a Rank IC has its t in brackets."""
    head = ["variant", "parameters", "tokenizer", "s1", "s2", "sum", "bits per bar", "MSE", "codes", "best step",
            "CPU s a step"]  # fmt: skip
    for label, signal in SHOWN:
        what = f"{label.replace('_', '-')} {signal.replace('_', ' ')}"
        head += [f"{what}: Rank IC (t)", "after reversal (t)", "after all six (t)"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        bits = f"{_shown(row['bits_per_bar_after'], 3)} ± {_shown(row['bits_per_bar_after_error'], 3)}"
        cells = [
            row["variant"], f"{row['parameters']:,}", row["tokenizer"], _shown(row["s1_after"]),
            _shown(row["s2_after"]), _shown(row["loss_after"]), bits, _shown(row["mse"], 5),
            f"{row['s1_codes']}, {row['s2_codes']}",
            f"{row['best_step']} of {row['steps']}", _shown(row["cpu_seconds_a_step"], 3),
        ]  # fmt: skip
        for label, signal in SHOWN:
            of = f"{label}.{signal}."
            cells += [f"{_shown(row[of + name])} ({_shown(row[f'{of}{name}_t'], 1)})"
                      for name in ("rank_ic", "after_reversal", "after_all")]  # fmt: skip
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _shown(value: float | None, digits: int = 4) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def read_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="YAML file of the base")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the variants' checkpoints")
    parser.add_argument("--results", type=Path, help="CSV of the rows; OUT/recipes.csv if not given")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=V,V", help="one variant for each value")
    parser.add_argument("--variant", action="append", default=[], metavar="'NAME: KEY=V, KEY=V'", help="one variant")
    parser.add_argument("--tokenizer-from", help="checkpoint whose tokenizer all take that do not change theirs")
    parser.add_argument("--steps", type=int, help="of the predictor; the recipe's if not given")
    parser.add_argument("--tokenizer-steps", type=int, help="of the tokenizer; the recipe's if not given")
    parser.add_argument("--universe", default="csi300")
    parser.add_argument("--every", type=int, default=10, help="examine every so many sessions")
    parser.add_argument("--n-paths", type=int, default=SAMPLING.n_paths)
    parser.add_argument("--token-windows", type=int, default=TOKEN_WINDOWS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="processes of the examination")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    args.results = args.results or args.out / "recipes.csv"
    return args


def main() -> None:
    """Run the variants that have no row yet, and print all of them."""
    args = read_arguments()
    torch.set_num_threads(args.threads)
    show_log(True)
    corpus = Corpus.open(args.corpus)
    base = shorten(load_recipe(args.recipe), args.steps, args.tokenizer_steps)
    variants = read_variants(args.set, args.variant)
    trials = plan_trials(base, variants, corpus.fingerprint, args.out, args.tokenizer_from)
    config, examined = plan_examination(args, base)
    left: dict[str, str] = {}
    for trial in trials:
        name = trial.variant.name
        with try_lock(args.out / ".locks" / trial.key) as held:
            if find_rows(args.results, [trial], examined):
                continue
            if not held:
                left[name] = "another process is at it"
                continue
            try:
                row = run_trial(trial, config, corpus, args)
            except ValueError as error:  # a rate at which the loss breaks must not end the night's run
                left[name] = str(error)
                continue
        keys = {"recipe": trial.key, "examined": examined, "commit": current_commit()}
        add_row(args.results, {"variant": name, "changes": json.dumps(trial.variant.changes), **row, **keys})
    rows = find_rows(args.results, trials, examined)
    print(f"valid, {config.start} to {config.end}, every {config.every} sessions, members of {config.universe}; nats "
          "and bits of the bars after the context, and they compare where the tokenizer is the same\n")  # fmt: skip
    print(markdown(rows) + "\n")
    tried = len({row["recipe"] for row in read_rows(args.results)})
    if tried:
        print(f"{tried} variants tried on these dates: the best t of so many worthless ones is about "
              f"{expected_null_maximum(tried):.1f}")  # fmt: skip
    for name, reason in left.items():
        print(f"no row: {name}: {reason}")
    versions = {"torch": torch.__version__, "python": platform.python_version(), "threads": args.threads}
    print(json.dumps({"versions": versions, "rows": rows, "no_row": left}))


if __name__ == "__main__":
    main()
