"""Attempts on valid, many and cheap: which factors, labels and learners are worth a row of the table.

    python benchmarks/attempts.py --store STORE --factors FACTORS --state FOLDER --every 5 --results benchmarks/results/attempts.csv

Learners see every n-th session of 2008 to 2013 and stop early on 2014, so that the scores of 2015 and 2016 are out of
sample; test is never read. Each variant is a row: Rank IC with its t, the paired difference to Alpha158 alone with a
block-bootstrap interval, and the Rank IC that reversal, volatility, size and beta do not have. A finished row is not
repeated, and rows of other factors stay as they are. The last lines give what the best of so many null variants would
reach by luck, and the rows as JSON.

FACTORS is what ``kronos-qlib factors build --embedding last --fit-end 2014-12-31`` wrote. The table of all columns is
kept in STATE as parquet.
"""  # noqa: E501

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import logging
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import lightgbm
import numpy as np
import pandas as pd
import sklearn.linear_model
from attempt_variants import VARIANTS, Variant
from qlib.data import D

from kronos_qlib.alpha.components import fit_components
from kronos_qlib.alpha.factors import FACTORS
from kronos_qlib.comparison.bench import Bench
from kronos_qlib.comparison.run import current_commit
from kronos_qlib.comparison.scores import blend, standardise
from kronos_qlib.comparison.task import Protocol
from kronos_qlib.evaluation.attribution import neutralise
from kronos_qlib.evaluation.bootstrap import paired_bootstrap
from kronos_qlib.evaluation.ic import daily_rank_ic, ic_summary
from kronos_qlib.evaluation.null_maximum import expected_null_maximum
from kronos_qlib.forecast.store_catalog import fingerprints
from kronos_qlib.forecast.token_factors import TOKEN_FACTORS
from kronos_qlib.handler import KronosAlpha
from kronos_qlib.market.calendars import on_every
from kronos_qlib.training.alpha_data import HeadData
from kronos_qlib.training.alpha_head import HeadTraining
from kronos_qlib.training.alpha_networks import FrozenNetwork
from kronos_qlib.training.alpha_training import new_head, train_head

STOP = ("2014-01-01", "2014-12-31")  # early stopping, inside train
LABELS = {"day1": "Ref($close, -2)/Ref($close, -1) - 1", "day5": "Ref($close, -6)/Ref($close, -1) - 1",
          "day10": "Ref($close, -11)/Ref($close, -1) - 1"}  # fmt: skip
PURGE = 11  # sessions between what is fitted and what stops it
COMPONENTS = 16
REFERENCES = ("reversal_5", "reversal_20", "mean_reversion", "volatility", "size", "beta")
# Qlib's published parameters of LightGBM on Alpha158; the regularisation is scaled with the rows, see lightgbm_scores
PARAMETERS = {"objective": "mse", "colsample_bytree": 0.8879, "learning_rate": 0.2, "subsample": 0.8789,
              "max_depth": 8, "num_leaves": 210, "verbosity": -1, "deterministic": True}  # fmt: skip
LAMBDA_1, LAMBDA_2, PUBLISHED_ROWS = 205.6999, 580.9768, 510_000
SMALL = {"max_depth": 6, "num_leaves": 32, "learning_rate": 0.05}
CHOSEN = ("expected_return", "execution_return", "terminal_return", "dispersion", "probability_up", "surprise",
          "entropy_s1")  # fmt: skip
SEEDS = (0, 1, 2)


def read_table(args: argparse.Namespace) -> pd.DataFrame:
    """All columns and labels: sessions of train that are learned from, all of valid; kept as parquet."""
    kept = args.state / f"table_every{args.every}.parquet"
    if kept.is_file():
        return pd.read_parquet(kept)
    protocol = Protocol()
    handler = KronosAlpha(
        protocol.universe, protocol.train[0], protocol.valid[1], fit_start_time=protocol.train[0],
        fit_end_time=protocol.train[1], factors=args.factors, columns=["*"], alpha158=True, align="procrustes",
        may_miss="dates", allow_in_sample=args.allow_in_sample, label=[list(LABELS.values()), list(LABELS)],
        horizon=PURGE, infer_processors=[], learn_processors=[],
    )  # fmt: skip
    frame = handler.fetch(col_set=handler.CS_RAW)
    days = pd.DatetimeIndex(frame.index.get_level_values("datetime"))
    kept_days = on_every(days, pd.DatetimeIndex(D.calendar(freq="day")), args.every)
    frame = frame[(days > protocol.train[1]) | kept_days].astype(np.float32)
    frame.columns = ["|".join(map(str, column)) for column in frame.columns]
    args.state.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(kept)
    return frame


class Attempts:
    """Columns, rows and scores of all variants."""

    def __init__(self, frame: pd.DataFrame, bench: Bench, threads: int, state: Path) -> None:
        self.frame, self.bench, self.threads, self.state = frame, bench, threads, state
        self.days = pd.DatetimeIndex(frame.index.get_level_values("datetime"))
        sessions = pd.DatetimeIndex(D.calendar(freq="day"))
        last = sessions[sessions.searchsorted(pd.Timestamp(STOP[0])) - PURGE - 1]
        self.fitted = self.days <= last
        self.stops = (self.days >= STOP[0]) & (
            self.days <= sessions[sessions.searchsorted(pd.Timestamp(STOP[1])) - PURGE]
        )
        self.valid = self.days > Protocol().train[1]
        names = [column.rpartition("|")[2] for column in frame.columns]
        at = dict(zip(names, frame.columns, strict=True))
        embedding = sorted(name for name in names if name.startswith("emb_"))
        components = fit_components(frame.loc[self.fitted, [at[name] for name in embedding]].to_numpy(), COMPONENTS)
        pca = components.apply(frame[[at[name] for name in embedding]].to_numpy())
        self.groups = {
            "path": frame[[at[name] for name in names if name in FACTORS]],
            "token": frame[[at[name] for name in names if name in TOKEN_FACTORS]],
            "chosen": frame[[at[name] for name in CHOSEN if name in at]],
            "pca": pd.DataFrame(pca, frame.index, [f"pca_{i:02d}" for i in range(COMPONENTS)]),
        }
        self.groups["embedding"] = frame[[at[name] for name in embedding]]
        ours = {*embedding, *FACTORS, *TOKEN_FACTORS, *LABELS}
        self.groups["alpha158"] = frame[[at[name] for name in names if name not in ours]]
        self.labels = {name: standardise(frame[at[name]]) for name in LABELS}
        # as Qlib's CSRankNorm
        for name in LABELS:
            ranks = frame[at[name]].groupby(level="datetime").rank(pct=True)
            self.labels[name.replace("day", "rank")] = (ranks - 0.5) * 3.46
        self.groups["composite"] = self.composite(frame[at["day1"]])

    def composite(self, label: pd.Series) -> pd.DataFrame:
        """Ranks of the path and token factors, each weighted by its mean Rank IC on the fitted rows: one column."""
        factors = pd.concat([self.groups["path"], self.groups["token"]], axis=1)
        ranks = (factors.groupby(level="datetime").rank(pct=True) - 0.5).fillna(0.0)
        target = label[self.fitted]
        weights = np.array([daily_rank_ic(ranks.loc[self.fitted, name], target).mean() for name in ranks])
        return pd.DataFrame({"composite": ranks.to_numpy() @ np.nan_to_num(weights)}, self.frame.index)

    def columns(self, variant: Variant) -> np.ndarray:
        """Columns of a variant, float32 (rows, n)."""
        parts = []
        for name in variant.columns:
            part = self.groups[name]
            if variant.smooth > 1 and name != "alpha158":
                groups = part.groupby(level="instrument", group_keys=False)
                part = groups.rolling(variant.smooth, min_periods=1).mean().droplevel(0).reindex(part.index)
            if variant.ranked is True or (variant.ranked == "ours" and name != "alpha158"):
                part = part.groupby(level="datetime").rank(pct=True) - 0.5
            parts.append(part.to_numpy(dtype=np.float32))
        return np.concatenate(parts, axis=1)

    def scores(self, name: str) -> pd.Series:
        """Scores of a variant on all rows, learned once and kept."""
        kept = self.state / f"{name}.parquet"
        if kept.is_file():
            return pd.read_parquet(kept)["score"]
        variant = VARIANTS[name]
        if variant.blend:
            score = blend([self.scores(other) for other in variant.blend])
        else:
            base = self.scores(variant.residual) if variant.residual else 0.0
            target = (self.labels[variant.label] - base).to_numpy(dtype=np.float32)
            learned = self.learn(variant, self.columns(variant), target)
            score = pd.Series(learned, self.frame.index) + base
        score.rename("score").to_frame().to_parquet(kept)
        return score

    def learn(self, variant: Variant, columns: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Scores of all rows by the variant's learner."""
        if variant.learner.startswith("ic"):
            hidden = int(variant.learner.removeprefix("ic") or 0)
            return ic_scores(columns, pd.Series(target, self.frame.index), self.fitted, self.stops, hidden=hidden)
        learn: Callable[..., np.ndarray] = ridge_scores if variant.learner == "ridge" else lightgbm_scores
        own = SMALL if variant.learner == "small" else {}
        return learn(columns, target, self.fitted, self.stops, threads=self.threads, **own)


def lightgbm_scores(
    columns: np.ndarray, target: np.ndarray, fitted: np.ndarray, stops: np.ndarray, *, threads: int, **own: float
) -> np.ndarray:
    """Mean of several seeds' scores; regularisation in proportion to the rows, as Qlib's on all of them."""
    known = np.isfinite(target)
    share = float((fitted & known).sum()) / PUBLISHED_ROWS
    total = np.zeros(len(target))
    for seed in SEEDS:
        given = PARAMETERS | {"lambda_l1": LAMBDA_1 * share, "lambda_l2": LAMBDA_2 * share} | own
        learn = lightgbm.Dataset(columns[fitted & known], target[fitted & known])
        stop = lightgbm.Dataset(columns[stops & known], target[stops & known], reference=learn)
        model = lightgbm.train(
            given | {"num_threads": threads, "seed": seed}, learn, 1000, valid_sets=[stop],
            callbacks=[lightgbm.early_stopping(50, verbose=False)],
        )  # fmt: skip
        total += model.predict(columns, num_threads=threads)
    return total / len(SEEDS)


def ridge_scores(
    columns: np.ndarray, target: np.ndarray, fitted: np.ndarray, stops: np.ndarray, *, threads: int
) -> np.ndarray:
    """Ridge regression; the penalty with the smallest squared error on the rows that stop the others."""
    columns = np.nan_to_num(columns)
    known = np.isfinite(target)
    best: tuple[float, np.ndarray] | None = None
    for penalty in (1e1, 1e2, 1e3, 1e4, 1e5):
        model = sklearn.linear_model.Ridge(alpha=penalty).fit(columns[fitted & known], target[fitted & known])
        error = float(np.square(model.predict(columns[stops & known]) - target[stops & known]).mean())
        if best is None or error < best[0]:
            best = error, model.predict(columns)
    assert best is not None
    return best[1]


def ic_scores(
    columns: np.ndarray, label: pd.Series, fitted: np.ndarray, stops: np.ndarray, *, hidden: int
) -> np.ndarray:
    """Mean of three alpha heads' scores, trained on the IC within each date; the epoch by the Rank IC that stops."""
    columns = np.nan_to_num(columns)
    training = HeadTraining(hidden=hidden, n_heads=len(SEEDS))
    place = np.arange(len(label))
    train, valid = (
        HeadData.build(label[rows], place[rows], name=name) for name, rows in (("train", fitted), ("stop", stops))
    )
    head = new_head(training, columns.shape[1])
    head.fit_features(columns[train.position])
    train_head(FrozenNetwork(head, columns), train, valid, training)
    return head.eval().score(columns)


def judge(attempts: Attempts, name: str, base: pd.Series | None) -> tuple[dict[str, object], pd.Series]:
    """Figures of a variant on valid, and its daily Rank IC."""
    bench = attempts.bench
    score = bench.lay_out(attempts.scores(name)[attempts.valid])[bench.judged]
    label = bench.label[bench.judged]
    daily = daily_rank_ic(score, label)
    rank_ic = ic_summary(daily)
    references = bench.columns.loc[bench.judged.to_numpy(), list(REFERENCES)]
    own = ic_summary(daily_rank_ic(neutralise(score, references), label))
    row: dict[str, object] = {
        "variant": name, "days": len(daily), "rank_ic": round(rank_ic.mean, 5), "t": round(rank_ic.newey_west_t, 2),
        "without_references": round(own.mean, 5), "without_references_t": round(own.newey_west_t, 2),
    }  # fmt: skip
    if base is not None:
        difference = paired_bootstrap(daily, base)
        row |= {"difference": round(difference.estimate, 5), "lower": round(difference.lower, 5),
                "upper": round(difference.upper, 5), "p": round(difference.p_value, 4)}  # fmt: skip
    return row, daily


def main() -> None:
    """Run the attempts that have no row yet, and print all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--factors", type=Path, required=True)
    parser.add_argument("--state", type=Path, default=Path("output/attempts"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/attempts.csv"))
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--allow-in-sample", action="store_true", help="a control: weights that have seen train")
    parser.add_argument("--only", default="", help="variants, separated by commas; all without any")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    bench = Bench(Protocol(), args.store, "valid")  # also points Qlib at the store
    factors = factors_key(args.factors)
    args.state /= factors
    attempts = Attempts(read_table(args), bench, args.threads, args.state)
    rows = read_rows(args.results)
    others = [row for row in rows if row["factors"] != factors]
    known = {row["variant"]: row for row in rows if row["factors"] == factors}
    wanted = [name for name in args.only.split(",") if name] or list(VARIANTS)
    daily = {"alpha158": judge(attempts, "alpha158", None)[1]}
    for name in wanted:
        begin = time.perf_counter()
        if name not in known:
            variant = VARIANTS[name]
            if variant.rival not in daily:
                daily[variant.rival] = judge(attempts, variant.rival, None)[1]
            row, _ = judge(attempts, name, None if name == variant.rival else daily[variant.rival])
            about = {key: value for key, value in asdict(variant).items() if value != getattr(Variant(), key)}
            made = {"factors": factors, "every": args.every, "commit": current_commit(), "what": json.dumps(about)}
            known[name] = row | made
            write_rows(args.results, [*others, *known.values()])
        print(f"{time.perf_counter() - begin:6.1f} s  {known[name]}", flush=True)
    table = pd.DataFrame(known.values()).sort_values("rank_ic", ascending=False, key=lambda c: c.astype(float))
    print(table.drop(columns=["commit", "what"]).to_string(index=False))
    base = daily["alpha158"]
    error = float(base.std() / np.sqrt(len(base)))
    print(f"the best of {len(known)} null variants gains about {expected_null_maximum(len(known)) * error:.4f}, "
          f"with errors as large as the base's own ({error:.4f}); paired differences have smaller ones")  # fmt: skip
    versions = {"lightgbm": lightgbm.__version__, "python": platform.python_version(), "threads": args.threads}
    print(json.dumps({"versions": versions, "rows": list(known.values())}))


def factors_key(store: Path) -> str:
    """What the factors come from, their weights and settings, not how many rows there are."""
    return hashlib.blake2b("\n".join(fingerprints(store)).encode(), digest_size=6).hexdigest()


def read_rows(path: Path) -> list[dict[str, object]]:
    """Rows of a results file, none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [dict(row) for row in csv.DictReader(file)]


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    """Write all rows again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
