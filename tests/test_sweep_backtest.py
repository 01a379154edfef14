"""A backtest of the same scores is the same in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tiny_market import write_tiny_store

BACKTEST = """
import sys
import numpy as np, pandas as pd, qlib
from qlib.data import D
from kronos_qlib.sweep_backtest import BacktestConfig, Backtester
store = sys.argv[1]
qlib.init(provider_uri=store, region="cn", kernels=1, logging_level=40)
codes = sorted(D.list_instruments(D.instruments("all"), as_list=True))
days = pd.DatetimeIndex(D.calendar(freq="day"))[-60:]
score = pd.Series(
    np.random.default_rng(0).normal(size=len(days) * len(codes)),
    index=pd.MultiIndex.from_product([days, codes], names=["datetime", "instrument"]),
)
# most scores are missing: several held stocks a day have none, and which of them is sold is a matter of order
score = score[np.random.default_rng(1).random(len(score)) < 0.4]
config = BacktestConfig.of_workflow(topk=4, n_drop=2, benchmark=codes[0])
print(Backtester(config, codes, days[0], days[-1]).run(score))
"""


def backtest(store: Path, hash_seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", BACKTEST, str(store)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_order_of_sets_does_not_move_a_backtest(tmp_path: Path) -> None:
    store = write_tiny_store(tmp_path / "store")
    assert len({backtest(store, seed) for seed in ("1", "2", "3")}) == 1
