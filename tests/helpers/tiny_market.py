"""A small market in a Qlib store, and a small network with random weights: tests of the Qlib side run the true way."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from kronos_qlib.kronos import Kronos, KronosTokenizer, ModelConfig, TokenizerConfig, save_model, save_tokenizer
from kronos_qlib.market.store import write_store
from kronos_qlib.market.synthetic import SyntheticConfig, make_market

FIRST, LAST = "2019-09-02", "2020-12-31"
UNIVERSE = "csi300"
SHORT_HALT = ("SH600001", "2020-08-03", "2020-08-07")  # 5 sessions: carried
LONG_HALT = ("SZ000001", "2020-08-03", "2020-09-11")  # 30 sessions: carried for 20, then no score
VERY_LONG_HALT = ("SZ000002", "2020-04-01", "2020-07-31")  # more than 60 sessions: a new segment begins
NEVER_BACK = ("SZ000003", "2020-12-01", LAST)  # does not trade again in this market
NEVER_A_MEMBER = "SH600007"
MEMBERS = [
    ("SH600001", FIRST, LAST),
    ("SH600002", "2020-07-15", LAST),  # enters late, with history
    ("SH600003", FIRST, "2020-07-31"),  # leaves and comes back
    ("SH600003", "2020-11-02", LAST),
    ("SH600004", FIRST, "2020-09-30"),  # leaves for good
    ("SH600005", FIRST, LAST),
    ("SZ000001", FIRST, LAST),
    ("SZ000002", FIRST, LAST),
    ("SZ000003", FIRST, LAST),
    ("SZ000004", "2020-12-10", LAST),  # lists during its membership, see LISTED
]
LISTED = ("SZ000004", "2020-12-15")


def members() -> pd.DataFrame:
    """Membership spans, both days included."""
    spans = pd.DataFrame(MEMBERS, columns=["instrument", "start", "end"])
    return spans.assign(start=pd.to_datetime(spans["start"]), end=pd.to_datetime(spans["end"]))


@cache
def bars() -> pd.DataFrame:
    """Bars in the vendor format, with the halts above; index SH000300 included. Do not change in place."""
    config = SyntheticConfig(
        seed=3, n_instruments=14, n_members=8, n_sectors=2, start=FIRST, end=LAST, suspension_rate=0.0,
        listed_at_start=1.0,
    )  # fmt: skip
    frame = make_market(config).bars
    keep = ~((frame["instrument"] == LISTED[0]) & (frame["datetime"] < LISTED[1]))
    for code, first, last in (SHORT_HALT, LONG_HALT, VERY_LONG_HALT, NEVER_BACK):
        keep &= ~((frame["instrument"] == code) & frame["datetime"].between(first, last))
    return frame[keep].reset_index(drop=True)


def write_tiny_store(folder: Path, frame: pd.DataFrame | None = None, **options: Any) -> Path:
    """Write the market, or a changed one, as a Qlib store."""
    write_store(bars() if frame is None else frame, folder, members={UNIVERSE: members()}, **options)
    return folder


def write_tiny_checkpoint(folder: Path, seed: int = 0, **card: Any) -> Path:
    """Save a network with random weights: ``model/``, ``tokenizer/`` and, when facts are given, ``card.json``."""
    torch.manual_seed(seed)
    shared = {"s1_bits": 4, "s2_bits": 4, "d_model": 32, "n_heads": 2, "ff_dim": 32}
    save_tokenizer(
        KronosTokenizer(TokenizerConfig(**shared, n_enc_layers=2, n_dec_layers=2, group_size=4)), folder / "tokenizer"
    )
    save_model(Kronos(ModelConfig(**shared, n_layers=1)), folder / "model")
    if card:
        (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
    return folder


def start_qlib(store: Path, runs: Path | None = None) -> None:
    """Point Qlib at a store, one process, caches cleared; ``runs``: folder for a sqlite tracking store."""
    import qlib

    settings: dict[str, Any] = {}
    if runs is not None:
        settings["exp_manager"] = {
            "class": "MLflowExpManager",
            "module_path": "qlib.workflow.expm",
            "kwargs": {"uri": f"sqlite:///{runs / 'mlruns.db'}", "default_exp_name": "Experiment"},
        }
    qlib.init(provider_uri=str(store), region="cn", kernels=1, logging_level=40, **settings)
