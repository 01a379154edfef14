"""What a tokenizer keeps and what it loses: errors by column and kind of bar, codebook use, clipping, coarse tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kronos_qlib.kronos import KronosTokenizer
from kronos_qlib.kronos.normalise import CLIP
from kronos_qlib.kronos.token_statistics import perplexity
from kronos_qlib.market.events import Event
from kronos_qlib.market.fields import BAR_FIELDS

BAR_TYPES = ("all", "normal", "limit", "gap", "resumption")
RECONSTRUCTIONS = ("coarse", "full")
MAX_JOINT_BITS = 22  # above it a histogram of joint tokens would take over 32 MB
_CLOSE = BAR_FIELDS.index("close")


def bar_types(events: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """Sort bars by their event bits: at a price limit, after a gap, resumed, normal (none of these); may overlap."""
    limit = (events & (Event.LIMIT_UP | Event.LIMIT_DOWN)) != 0
    gap, resumed = (events & Event.GAP) != 0, (events & Event.RESUMED) != 0
    everything = np.ones(events.shape, dtype=bool)
    return {"all": everything, "normal": ~(limit | gap | resumed), "limit": limit, "gap": gap, "resumption": resumed}


class ErrorSums:
    """Sums of squared and absolute errors by column, for one set of bars."""

    def __init__(self) -> None:
        self.bars = 0
        self.squared = {kind: np.zeros(len(BAR_FIELDS)) for kind in RECONSTRUCTIONS}
        self.absolute = {kind: np.zeros(len(BAR_FIELDS)) for kind in RECONSTRUCTIONS}
        self.clipped = np.zeros(len(BAR_FIELDS), dtype=np.int64)
        self.clipped_bars = 0

    def add(self, x: NDArray[np.float64], errors: dict[str, NDArray[np.float64]]) -> None:
        """Add bars ``x`` (n, 6) and their errors (n, 6)."""
        self.bars += len(x)
        clipped = np.abs(x) >= CLIP
        self.clipped += clipped.sum(axis=0)
        self.clipped_bars += int(clipped.any(axis=1).sum())
        for kind, error in errors.items():
            self.squared[kind] += (error**2).sum(axis=0)
            self.absolute[kind] += np.abs(error).sum(axis=0)

    def figures(self) -> dict[str, Any]:
        """MSE and MAE of each reconstruction, over all columns and by column; None without bars."""
        if self.bars == 0:
            return {"bars": 0}
        result: dict[str, Any] = {
            "bars": self.bars,
            "clipped_bars": self.clipped_bars / self.bars,
            "clipped_values": _by_field(self.clipped / self.bars),
        }
        for kind in RECONSTRUCTIONS:
            mse, mae = self.squared[kind] / self.bars, self.absolute[kind] / self.bars
            result[kind] = {
                "mse": float(mse.mean()),
                "mae": float(mae.mean()),
                "mse_by_column": _by_field(mse),
                "mae_by_column": _by_field(mae),
            }
        return result


class TokenizerReporter:
    """Gather a report batch by batch; memory does not grow.

    Parameters
    ----------
    tokenizer : KronosTokenizer
        In eval mode.
    lookback : int
        Bars of a window that its scaling was taken from; the ones after it are reported apart.

    Raises
    ------
    ValueError : a tokenizer in training mode.
    """

    def __init__(self, tokenizer: KronosTokenizer, lookback: int) -> None:
        if tokenizer.training:
            raise ValueError("the tokenizer is in training mode, where dropout is active; call tokenizer.eval() first")
        self.tokenizer, self.lookback = tokenizer, lookback
        config = tokenizer.config
        joint_bits = config.s1_bits + config.s2_bits
        self.s1, self.s2 = (np.zeros(2**bits, dtype=np.int64) for bits in (config.s1_bits, config.s2_bits))
        self.joint = np.zeros(2**joint_bits, dtype=np.int64) if joint_bits <= MAX_JOINT_BITS else None
        self.types = {name: ErrorSums() for name in BAR_TYPES}
        self.places = {"context": ErrorSums(), "after": ErrorSums()}
        # by s1 id: what it decodes to, what the bars were, and the square of their closes
        self.decoded, self.actual = (np.zeros((2**config.s1_bits, len(BAR_FIELDS))) for _ in range(2))
        self.close_squared = np.zeros(2**config.s1_bits)
        self.windows = 0

    @torch.inference_mode()
    def add(self, x: Tensor, events: NDArray[np.int64] | None = None) -> None:
        """Add windows.

        Parameters
        ----------
        x : tensor (B, T, 6)
            Normalised by the first ``lookback`` bars and clipped.
        events : int64 (B, T), optional
            Bits of ``market.events.Event``; without them kinds of bars are not told apart.
        """
        (coarse, full), _, s1, s2 = self.tokenizer(x.to(next(self.tokenizer.parameters()).device))
        bars, *decoded = (_rows(part) for part in (x, coarse, full))
        errors = {kind: part - bars for kind, part in zip(RECONSTRUCTIONS, decoded, strict=True)}
        kinds = {"all": np.ones(len(bars), dtype=bool)} if events is None else bar_types(events.reshape(-1))
        for name, chosen in kinds.items():
            self.types[name].add(bars[chosen], {kind: error[chosen] for kind, error in errors.items()})
        inside = np.tile(np.arange(x.shape[1]) < self.lookback, len(x))
        for name, chosen in (("context", inside), ("after", ~inside)):
            self.places[name].add(bars[chosen], {kind: error[chosen] for kind, error in errors.items()})
        self._count(s1.reshape(-1).cpu().numpy(), s2.reshape(-1).cpu().numpy(), bars, decoded[0])
        self.windows += len(x)

    def _count(
        self, s1: NDArray[np.int64], s2: NDArray[np.int64], bars: NDArray[np.float64], coarse: NDArray[np.float64]
    ) -> None:
        for counts, ids in ((self.s1, s1), (self.s2, s2)):
            counts += np.bincount(ids, minlength=len(counts))
        if self.joint is not None:
            self.joint += np.bincount(s1 * len(self.s2) + s2, minlength=len(self.joint))
        np.add.at(self.decoded, s1, coarse)
        np.add.at(self.actual, s1, bars)
        np.add.at(self.close_squared, s1, bars[:, _CLOSE] ** 2)

    def result(self) -> dict[str, Any]:
        """Return the report, plain JSON types.

        Returns
        -------
        dict
            ``bar_types`` and ``positions`` (context, and the bars after it): MSE and MAE in z units against the clipped
            bars, coarse (s1 alone) and full, over all columns and by column, and how often values and bars are clipped.
            ``codebook``: ids in use, their share, perplexity, of s1, s2 and both joined. ``coarse_tokens``: for each
            s1 id in use how many bars have it, the mean bar it decodes to, the mean of the bars themselves, and the
            standard deviation of their closes.

        Raises
        ------
        ValueError : no window was added.
        """
        if self.windows == 0:
            raise ValueError("no window was added: there is nothing to report")
        return {
            "windows": self.windows,
            "lookback": self.lookback,
            "bar_types": {name: sums.figures() for name, sums in self.types.items()},
            "positions": {name: sums.figures() for name, sums in self.places.items()},
            "codebook": {
                "s1": _codebook(self.s1),
                "s2": _codebook(self.s2),
                "joint": None if self.joint is None else _codebook(self.joint),
            },
            "coarse_tokens": self._coarse_tokens(),
        }

    def _coarse_tokens(self) -> list[dict[str, Any]]:
        rows = []
        for token in np.flatnonzero(self.s1):
            count = int(self.s1[token])
            decoded, actual = self.decoded[token] / count, self.actual[token] / count
            variance = max(0.0, self.close_squared[token] / count - actual[_CLOSE] ** 2)
            rows.append(
                {
                    "id": int(token),
                    "bars": count,
                    "decoded": _by_field(decoded),
                    "actual": _by_field(actual),
                    "close_spread": float(np.sqrt(variance)),
                }
            )
        return rows


def report_tokenizer(
    tokenizer: KronosTokenizer, batches: Iterable[tuple[Tensor, NDArray[np.int64] | None]], *, lookback: int
) -> dict[str, Any]:
    """Report on windows; parameters and result as in :class:`TokenizerReporter`.

    Parameters
    ----------
    batches : iterable of (x (B, T, 6), events (B, T) or None)
    """
    reporter = TokenizerReporter(tokenizer, lookback)
    for x, events in batches:
        reporter.add(x, events)
    return reporter.result()


def coarse_arrays(report: dict[str, Any]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return a report's coarse tokens as arrays: bars of each s1 id (V,), and the mean bar it decodes to (V, 6)."""
    counts = np.zeros(report["codebook"]["s1"]["ids"], dtype=np.int64)
    decoded = np.zeros((len(counts), len(BAR_FIELDS)))
    for row in report["coarse_tokens"]:
        counts[row["id"]] = row["bars"]
        decoded[row["id"]] = [row["decoded"][name] for name in BAR_FIELDS]
    return counts, decoded


def _codebook(counts: NDArray[np.int64]) -> dict[str, float | int]:
    used = int((counts > 0).sum())
    return {
        "ids": len(counts), "used": used, "share_used": used / len(counts), "perplexity": perplexity(counts),
    }  # fmt: skip


def _rows(part: Tensor) -> NDArray[np.float64]:
    return part.reshape(-1, part.shape[-1]).double().cpu().numpy()


def _by_field(values: NDArray[np.floating]) -> dict[str, float]:
    return dict(zip(BAR_FIELDS, values.tolist(), strict=True))
