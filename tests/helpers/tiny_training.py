"""A pretraining of seconds, and a script that runs it: ``python tiny_training.py OUT [RECIPE.yaml …]``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from kronos_qlib.market.panel import BarPanel
from kronos_qlib.training.corpus import Corpus
from kronos_qlib.training.distributed import processes_from_environment
from kronos_qlib.training.pretrain import pretrain
from kronos_qlib.training.recipe import PretrainRecipe, load_recipe

BITS = {"s1_bits": 3, "s2_bits": 3}
SHAPE = {**BITS, "d_model": 16, "n_heads": 2, "ff_dim": 24}
TOKENIZER = {**SHAPE, "n_enc_layers": 2, "n_dec_layers": 2, "group_size": 3}
MODEL = {**SHAPE, "n_layers": 1, "dependency_rotary": "unrotated"}
TRAINING = {"steps": 24, "batch_size": 8, "rate": 3e-3, "warmup": 3, "valid_every": 8, "valid_windows": 64}


def tiny_recipe(**changes: Any) -> PretrainRecipe:
    """A recipe of two tiny networks; ``tokenizer_training__steps=3`` changes a nested setting, None removes one."""
    values: dict[str, Any] = {
        "name": "tiny",
        "universe": "random walks",
        "lookback": 12,
        "horizon": 4,
        "forecast_horizon": 4,
        "train": {"start": "2010-01-01", "end": "2010-08-31"},
        "valid": {"start": "2010-09-01", "end": "2010-12-31"},
        "tokenizer": dict(TOKENIZER),
        "tokenizer_training": dict(TRAINING),
        "model": dict(MODEL),
        "predictor_training": dict(TRAINING),
        "weights_dtype": "float32",
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        place = values
        for part in path:
            place = place[part]
        place[last] = value
    return PretrainRecipe(**{key: value for key, value in values.items() if value is not None})


def tiny_frame() -> pd.DataFrame:
    """Three random walks over the sessions of 2010."""
    days = pd.bdate_range("2010-01-01", "2010-12-31")
    random = np.random.default_rng(7)
    frames = []
    for name in ("A", "B", "C"):
        close = 10 * np.exp(np.cumsum(random.normal(0, 0.02, len(days))))
        opened = close * np.exp(random.normal(0, 0.01, len(days)))
        volume = random.lognormal(10, 0.5, len(days))
        bars = {"open": opened, "high": np.maximum(opened, close), "low": np.minimum(opened, close), "close": close}
        frames.append(pd.DataFrame({"datetime": days, "instrument": name, **bars, "volume": volume}))
    frame = pd.concat(frames, ignore_index=True)
    return frame.assign(amount=frame["volume"] * frame["close"])


def tiny_panel() -> BarPanel:
    """The random walks as a panel."""
    return BarPanel.from_frame(tiny_frame(), calendar=pd.bdate_range("2010-01-01", "2010-12-31"))


def tiny_corpus(folder: Path, recipe: PretrainRecipe | None = None) -> Corpus:
    """The random walks as a corpus."""
    return Corpus.from_panels(folder, {"walks": tiny_panel()}, (recipe or tiny_recipe()).policy())


def write_recipe(recipe: PretrainRecipe, path: Path) -> Path:
    """Write a recipe as YAML."""
    content = {key: value for key, value in recipe.to_dict().items() if value is not None}
    path.write_text(yaml.safe_dump(content))
    return path


def main() -> None:
    """Train each recipe in a folder of its own below OUT; the corpus lies in OUT/corpus already."""
    out, *recipes = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    with processes_from_environment() as processes:
        for path in recipes:
            pretrain(load_recipe(path), Corpus.open(out / "corpus"), out / path.stem, processes=processes)


if __name__ == "__main__":
    main()
