"""How well a checkpoint knows the market's tokens: cross-entropy of the next token, and what the tokenizer loses."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kronos_qlib.kronos import Kronos, KronosTokenizer
from kronos_qlib.kronos.normalise import CLIP, normalise
from kronos_qlib.kronos.token_statistics import perplexity
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.stamps import time_stamps
from kronos_qlib.market.windows import WindowPolicy, window_lengths

BATCH = 64


@dataclass(frozen=True)
class Estimate:
    """A mean over windows and its standard error, windows taken as independent (overlapping ones are not)."""

    mean: float
    standard_error: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Estimate:
        """Mean of per-window values (n,), with the sample spread over sqrt(n); NaN spread for one window."""
        spread = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
        return cls(float(values.mean()), spread)


@dataclass(frozen=True)
class TokenQuality:
    """Figures of random windows.

    Attributes
    ----------
    s1, s2 : cross-entropy in nats, s2 given the true s1, mean over all positions that predict a bar.
    s1_after, s2_after : the same over bars after the first ``context`` ones, which the normalisation has not seen.
    bits_per_bar, bits_per_bar_after : of the joint token: (s1 + s2) / ln 2.
    mse, mae : full reconstruction against the normalised, clipped bars. coarse_mse, coarse_mae : from s1 alone.
    s1_codes, s2_codes : different ids that occur; s1_perplexity, s2_perplexity : exp of the entropy of their use.
    clipped_share : of the bars' values that lie outside the clip.
    n_windows, n_reconstructed, n_bars : windows for the losses, windows and bars for the reconstruction.
    """

    s1: Estimate
    s2: Estimate
    s1_after: Estimate
    s2_after: Estimate
    bits_per_bar: Estimate
    bits_per_bar_after: Estimate
    mse: Estimate
    mae: Estimate
    coarse_mse: Estimate
    coarse_mae: Estimate
    s1_codes: int
    s2_codes: int
    s1_perplexity: float
    s2_perplexity: float
    clipped_share: float
    n_windows: int
    n_reconstructed: int
    n_bars: int

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain numbers."""
        return asdict(self)


def draw_window_ends(
    panel: BarPanel,
    start: Any,
    end: Any,
    *,
    lookback: int,
    horizon: int,
    n_windows: int,
    seed: int,
    policy: WindowPolicy,
) -> NDArray[np.int64]:
    """Draw last bars of windows of lookback + horizon + 1 bars, without repetition.

    Parameters
    ----------
    panel : bars of all instruments to draw from.
    start, end : the last ``horizon + 1`` bars are dated between them, both included; the context may reach back.
    policy : its gap and jump rules hold within the window; its lengths do not count.

    Returns
    -------
    int64 (n,) ascending panel rows; all there are where these are fewer than ``n_windows``.

    Raises
    ------
    ValueError : no window fits.
    """
    length = lookback + horizon + 1
    whole = policy.of_length(length)
    rows = np.arange(len(panel), dtype=np.int64)
    rows = rows[window_lengths(panel, rows, whole) > 0]
    first, last = np.datetime64(start), np.datetime64(end) + np.timedelta64(1, "D")
    rows = rows[(panel.timestamps[rows - horizon] >= first) & (panel.timestamps[rows] < last)]
    if not len(rows):
        raise ValueError(
            f"no window of {length} bars has its last {horizon + 1} bars between {start} and {end}; "
            "choose a longer span or a shorter lookback"
        )
    chosen = np.random.default_rng(seed).choice(len(rows), size=min(n_windows, len(rows)), replace=False)
    return np.sort(rows[chosen])


def cut_windows(
    panel: BarPanel, ends: NDArray[np.int64], length: int, context: int
) -> tuple[NDArray[np.float32], NDArray[np.int64], float]:
    """Normalise windows by their first ``context`` bars alone.

    Returns
    -------
    x, stamps, clipped : float32 (n, length, 6) clipped z values, int64 (n, length, 5), share of values beyond the clip.
    """
    index = ends[:, None] + np.arange(1 - length, 1)
    z, _, _ = normalise(panel.values[index], np.inf, context=context)
    stamps = time_stamps(panel.calendar)[panel.session[index]]
    return np.clip(z, -CLIP, CLIP), stamps, float((np.abs(z) > CLIP).mean())


@torch.inference_mode()
def token_quality(
    model: Kronos,
    tokenizer: KronosTokenizer,
    x: NDArray[np.float32],
    stamps: NDArray[np.int64],
    *,
    context: int,
    n_reconstructed: int | None = None,
    clipped_share: float = float("nan"),
) -> TokenQuality:
    """Measure losses on all windows and reconstruction on ``n_reconstructed`` of them, spread evenly (None: all).

    Parameters
    ----------
    x, stamps : (n, T, 6) normalised and clipped bars, (n, T, 5).
    context : bars at the start that the normalisation has seen.

    Raises
    ------
    ValueError : no bar after the context.
    """
    n, length = x.shape[:2]
    if not 1 <= context < length:
        raise ValueError(f"found context={context} in windows of {length} bars; expected 1 to {length - 1}")
    device = next(model.parameters()).device
    count = n if n_reconstructed is None else min(n_reconstructed, n)
    kept = np.zeros(n, dtype=bool)
    kept[np.linspace(0, n - 1, count).round().astype(int)] = True
    losses, errors, ids = [], [], []
    for begin in range(0, n, BATCH):
        part = slice(begin, begin + BATCH)
        bars = torch.from_numpy(x[part]).to(device)
        (coarse, full), _, s1, s2 = tokenizer(bars)
        losses.append(_losses(model, s1, s2, torch.from_numpy(stamps[part]).to(device)))
        chosen = torch.from_numpy(kept[part]).to(device)
        errors.append(torch.stack(_errors(bars[chosen], full[chosen]) + _errors(bars[chosen], coarse[chosen]), dim=1))
        ids.append(torch.stack((s1[chosen], s2[chosen])).flatten(1))
    loss = torch.cat(losses).double().cpu().numpy()
    error = torch.cat(errors).double().cpu().numpy()
    used = torch.cat(ids, dim=1).cpu().numpy()
    every, after = loss.mean(axis=1), loss[:, context - 1 :].mean(axis=1)
    bits, bits_after = every.sum(axis=1) / np.log(2), after.sum(axis=1) / np.log(2)
    codes = [np.unique(half, return_counts=True)[1] for half in used]
    per_window = {
        "s1": every[:, 0],
        "s2": every[:, 1],
        "s1_after": after[:, 0],
        "s2_after": after[:, 1],
        "bits_per_bar": bits,
        "bits_per_bar_after": bits_after,
        **dict(zip(("mse", "mae", "coarse_mse", "coarse_mae"), error.T, strict=True)),
    }
    return TokenQuality(
        **{name: Estimate.of(values) for name, values in per_window.items()},
        s1_codes=len(codes[0]),
        s2_codes=len(codes[1]),
        s1_perplexity=perplexity(codes[0]),
        s2_perplexity=perplexity(codes[1]),
        clipped_share=clipped_share,
        n_windows=n,
        n_reconstructed=len(error),
        n_bars=used.shape[1],
    )


def _losses(model: Kronos, s1: Tensor, s2: Tensor, stamps: Tensor) -> Tensor:
    """Cross-entropy of both halves at each position, (B, T - 1, 2); position t is that of bar t + 1."""
    targets = s1[:, 1:], s2[:, 1:]
    logits = model(s1[:, :-1], s2[:, :-1], stamps[:, :-1], targets[0])
    pairs = zip(logits, targets, strict=True)
    return torch.stack(
        [F.cross_entropy(one.float().transpose(1, 2), to, reduction="none") for one, to in pairs], dim=-1
    )


def _errors(bars: Tensor, decoded: Tensor) -> list[Tensor]:
    difference = decoded.float() - bars
    return [(difference**2).mean(dim=(1, 2)), difference.abs().mean(dim=(1, 2))]
