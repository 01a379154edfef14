"""Qlib's handler of Kronos factors, to be used like Alpha158; import it as ``kronos_qlib.handler.KronosAlpha``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlib.contrib.data.handler import _DEFAULT_LEARN_PROCESSORS, check_transform_proc
from qlib.contrib.data.loader import Alpha158DL
from qlib.data.dataset.handler import DataHandlerLP
from qlib.data.dataset.loader import DataLoader, NestedDataLoader, QlibDataLoader

from kronos_qlib.handler import LABEL, MemberLoader
from kronos_qlib.kronos.config import check_keys
from kronos_qlib.loader import HORIZON, KronosFactorLoader
from kronos_qlib.rolling_horizon import label_horizon

ALPHA_KEYS = (
    "instruments", "start_time", "end_time", "freq", "factors", "columns", "alpha158", "label", "infer_processors",
    "learn_processors", "shared_processors", "process_type", "fit_start_time", "fit_end_time", "filter_pipe", "sources",
    "allow_in_sample", "align", "may_miss", "carry", "horizon", "drop_raw", "init_data", "fetch_orig",
)  # fmt: skip


class KronosAlpha(DataHandlerLP):
    """Kronos factors and labels of a market's members, with Alpha158's fields beside them if asked for.

    One row for every (session, member), as in :class:`kronos_qlib.handler.KlineHandler`; Alpha158 lacks only sessions
    before a member's first and after its last bar, which have no label. On a session without trading the factors are
    those of the last traded bar, at most ``carry`` trading days old, Alpha158's fields are NaN, as in Qlib.

    Parameters
    ----------
    instruments, start_time, end_time, freq, infer_processors, learn_processors, shared_processors, process_type,
    fit_start_time, fit_end_time, filter_pipe, drop_raw, init_data, fetch_orig
        As for Qlib's Alpha158, with its defaults: no processor for inference; ``DropnaLabel`` and ``CSZScoreNorm`` of
        the label for learning. ``fit_end_time`` is also the date up to which rows must come from weights that never
        saw them, so it must be the end of the training segment.
    factors : path
        Folder that ``kronos-qlib factors build`` wrote.
    columns : list of str, optional
        As in :class:`kronos_qlib.loader.KronosFactorLoader`. An empty list: no Kronos factors, then ``alpha158`` must
        be true: Alpha158 alone on the same rows.
    alpha158 : bool
        Add the 158 fields of Qlib's Alpha158.
    label : optional
        Qlib's ``[expressions, names]``; None: ``Ref($close, -2)/Ref($close, -1) - 1``.
    sources, allow_in_sample, align, may_miss, carry
        As in :class:`kronos_qlib.loader.KronosFactorLoader`.
    horizon : int, optional
        Bars after a row that its label reaches, by which training rows are purged; not fewer than ``label`` reads.
        None: as in the loader, with a label given at least what it reads.

    Raises
    ------
    ValueError : unknown key, no columns at all, a horizon shorter than the label's, and what the loader refuses.
    """

    def __init__(
        self,
        instruments: str | dict[str, Any] | Sequence[str] = "csi300",
        start_time: Any = None,
        end_time: Any = None,
        freq: str = "day",
        factors: str | Path = "",
        columns: Sequence[str] | None = None,
        alpha158: bool = False,
        label: Any = None,
        infer_processors: Sequence[Any] = (),
        learn_processors: Sequence[Any] = tuple(_DEFAULT_LEARN_PROCESSORS),
        shared_processors: Sequence[Any] = (),
        process_type: str = DataHandlerLP.PTYPE_A,
        fit_start_time: Any = None,
        fit_end_time: Any = None,
        filter_pipe: list[Any] | None = None,
        sources: Sequence[str] | None = None,
        allow_in_sample: bool = False,
        align: str | None = None,
        may_miss: str = "rows",
        carry: int = 20,
        horizon: int | None = None,
        drop_raw: bool = False,
        init_data: bool = True,
        fetch_orig: bool = True,
        **unknown: Any,
    ) -> None:
        check_keys(unknown, ALPHA_KEYS, "KronosAlpha")
        # the rows are the first loader's; the others are joined to them
        loaders: list[DataLoader] = [MemberLoader({"label": label or LABEL}, filter_pipe, freq)]
        if alpha158:
            fields = {"feature": Alpha158DL.get_feature_config()}
            loaders.append(QlibDataLoader(fields, filter_pipe=filter_pipe, freq=freq))
        if columns is None or len(columns):
            loaders.append(
                KronosFactorLoader(
                    factors,
                    columns,
                    sources=sources,
                    fit_end_time=fit_end_time,
                    allow_in_sample=allow_in_sample,
                    align=align,
                    may_miss=may_miss,
                    carry=carry,
                    horizon=_purged(label, horizon),
                    freq=freq,
                    filter_pipe=filter_pipe,
                )
            )
        if len(loaders) == 1:
            raise ValueError("KronosAlpha: no columns and no alpha158 leave no feature; ask for one of them")
        super().__init__(
            instruments=instruments,
            start_time=start_time,
            end_time=end_time,
            data_loader=NestedDataLoader(loaders),
            infer_processors=check_transform_proc(infer_processors, fit_start_time, fit_end_time),
            learn_processors=check_transform_proc(learn_processors, fit_start_time, fit_end_time),
            shared_processors=check_transform_proc(shared_processors, fit_start_time, fit_end_time),
            process_type=process_type,
            drop_raw=drop_raw,
            init_data=init_data,
            fetch_orig=fetch_orig,
        )

    def get_label_config(self) -> Any:
        """Return the default label, as Qlib's handlers do; a rolling run reads from it how far it looks ahead."""
        return LABEL

    @property
    def factor_loader(self) -> KronosFactorLoader | None:
        """Return the loader of the factors: ``coverage``, ``alignment``, ``notes``; None without factors."""
        found = self.data_loader.data_loader_l[-1]
        return found if isinstance(found, KronosFactorLoader) else None


def _purged(label: Any, horizon: int | None) -> int | None:
    """Return how far training rows keep away from what the weights have seen: never less than the label reads."""
    if label is None and horizon is None:
        return None
    reach = label_horizon({"kwargs": {"label": label or LABEL}})
    if horizon is None:
        return max(reach, HORIZON)
    if horizon < reach:
        raise ValueError(
            f"KronosAlpha: horizon is {horizon}, but the label reads {reach} bars ahead; leave it out, or say {reach}"
        )
    return horizon
