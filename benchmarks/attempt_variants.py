"""What ``attempts.py`` tries: columns, what they are turned into, what is learned, by what."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One attempt: columns, what they are turned into, what is learned, by what.

    Attributes
    ----------
    columns : groups: ``alpha158``, ``path``, ``token``, ``pca``, ``embedding``, ``chosen``; ``composite``: one column,
    the ranks of all path and token factors weighted by their mean Rank IC on the fitted rows. label : of ``LABELS``.
    learner : ``lightgbm``, ``small`` (shallower, slower trees), ``ridge``, ``ic`` (linear, trained on the IC of whole
    dates), ``ic32`` (the same with a hidden layer of 32). ranked : columns as ranks within the date;
    ``ours``: the Kronos columns alone, whose levels differ between the weights of the folds.
    blend : names of variants whose z-scored scores are averaged instead of learning. residual : learn what that
    variant's scores leave of the label, and add it to them. smooth : mean of so many sessions of the Kronos columns.
    rival : variant that it is compared with.
    """

    columns: tuple[str, ...] = ()
    label: str = "day1"
    learner: str = "lightgbm"
    ranked: bool | str = False
    blend: tuple[str, ...] = ()
    residual: str = ""
    smooth: int = 1
    rival: str = "alpha158"


def _linear(columns: tuple[str, ...], label: str = "rank1", rival: str = "linear") -> Variant:
    """Ridge on ranks of the columns and of the label within each date."""
    return Variant(columns, label=label, learner="ridge", ranked=True, rival=rival)


KRONOS = ("path", "token")
VARIANTS: dict[str, Variant] = {
    "alpha158": Variant(("alpha158",)),
    "path": Variant(("path",)),
    "token": Variant(("token",)),
    "pca": Variant(("pca",)),
    "kronos": Variant(KRONOS),
    "kronos_pca": Variant((*KRONOS, "pca")),
    "alpha158+path": Variant(("alpha158", "path")),
    "alpha158+token": Variant(("alpha158", "token")),
    "alpha158+pca": Variant(("alpha158", "pca")),
    "alpha158+kronos": Variant(("alpha158", *KRONOS)),
    "alpha158+kronos_pca": Variant(("alpha158", *KRONOS, "pca")),
    "alpha158+chosen": Variant(("alpha158", "chosen")),
    "alpha158_small": Variant(("alpha158",), learner="small"),
    "kronos_small": Variant(KRONOS, learner="small"),
    "kronos_pca_small": Variant((*KRONOS, "pca"), learner="small"),
    "alpha158+kronos_small": Variant(("alpha158", *KRONOS), learner="small"),
    "alpha158_ranked": Variant(("alpha158",), ranked=True),
    "kronos_ranked": Variant(KRONOS, ranked=True),
    "alpha158+kronos_ranked": Variant(("alpha158", *KRONOS), ranked=True),
    "alpha158_day5": Variant(("alpha158",), label="day5"),
    "kronos_day5": Variant(KRONOS, label="day5"),
    "alpha158+kronos_day5": Variant(("alpha158", *KRONOS), label="day5", rival="alpha158_day5"),
    "alpha158_day10": Variant(("alpha158",), label="day10"),
    "alpha158+kronos_day10": Variant(("alpha158", *KRONOS), label="day10", rival="alpha158_day10"),
    "kronos_smooth5": Variant(KRONOS, smooth=5),
    "alpha158_ridge": Variant(("alpha158",), learner="ridge", ranked=True),
    "kronos_ridge": Variant(KRONOS, learner="ridge", ranked=True),
    "kronos_pca_ridge": Variant((*KRONOS, "pca"), learner="ridge", ranked=True),
    "alpha158+kronos_pca_ridge": Variant(("alpha158", *KRONOS, "pca"), learner="ridge", ranked=True),
    "blend": Variant(blend=("alpha158", "kronos")),
    "blend_small": Variant(blend=("alpha158_small", "kronos_pca_small")),
    "blend_ridge": Variant(blend=("alpha158_small", "kronos_pca_ridge")),
    "residual": Variant((*KRONOS, "pca"), residual="alpha158"),
    "alpha158+path_ours": Variant(("alpha158", "path"), ranked="ours"),
    "alpha158+token_ours": Variant(("alpha158", "token"), ranked="ours"),
    "alpha158+pca_ours": Variant(("alpha158", "pca"), ranked="ours"),
    "alpha158+kronos_pca_ours": Variant(("alpha158", *KRONOS, "pca"), ranked="ours"),
    "kronos_pca_ranked": Variant((*KRONOS, "pca"), ranked=True),
    "embedding_ridge": Variant(("embedding",), learner="ridge", ranked=True),
    "alpha158+embedding_ridge": Variant(("alpha158", "embedding"), learner="ridge", ranked=True),
    "kronos_embedding_ridge": Variant((*KRONOS, "embedding"), learner="ridge", ranked=True),
    "blend_embedding": Variant(blend=("alpha158", "embedding_ridge")),
    "composite": Variant(("composite",), learner="ridge", ranked=True),
    "alpha158+composite": Variant(("alpha158", "composite")),
    "alpha158+composite_small": Variant(("alpha158", "composite"), learner="small"),
    "blend_composite": Variant(blend=("alpha158", "composite")),
    "blend_composite_small": Variant(blend=("alpha158_small", "composite")),
    "blend_three": Variant(blend=("alpha158", "alpha158_small", "composite")),
    "alpha158_rank_label": Variant(("alpha158",), label="rank1"),
    "alpha158+kronos_rank_label": Variant(
        ("alpha158", *KRONOS), label="rank1", ranked="ours", rival="alpha158_rank_label"
    ),
    "linear": Variant(("alpha158",), label="rank1", learner="ridge", ranked=True),
    "linear_kronos": Variant(KRONOS, label="rank1", learner="ridge", ranked=True, rival="linear"),
    "linear+path": _linear(("alpha158", "path")),
    "linear+token": _linear(("alpha158", "token")),
    "linear+kronos": _linear(("alpha158", *KRONOS)),
    "linear+pca": _linear(("alpha158", "pca")),
    "linear+embedding": _linear(("alpha158", "embedding")),
    "linear+chosen": _linear(("alpha158", "chosen")),
    "linear_day5": _linear(("alpha158",), "rank5", "linear"),
    "linear+kronos_day5": _linear(("alpha158", *KRONOS), "rank5", "linear_day5"),
    "linear+path_day5": _linear(("alpha158", "path"), "rank5", "linear_day5"),
    "linear_day10": _linear(("alpha158",), "rank10", "linear"),
    "linear+kronos_day10": _linear(("alpha158", *KRONOS), "rank10", "linear_day10"),
    "linear+pca_day5": _linear(("alpha158", "pca"), "rank5", "linear_day5"),
    "linear+embedding_day5": _linear(("alpha158", "embedding"), "rank5", "linear_day5"),
    "linear+composite_day5": _linear(("alpha158", "composite"), "rank5", "linear_day5"),
    "linear+path_pca_day5": _linear(("alpha158", "path", "pca"), "rank5", "linear_day5"),
    "linear+path_embedding_day5": _linear(("alpha158", "path", "embedding"), "rank5", "linear_day5"),
    "linear_blend_pca_day5": Variant(blend=("linear", "linear+pca_day5"), rival="linear_blend_days"),
    "linear_blend_embedding_day5": Variant(blend=("linear", "linear+embedding_day5"), rival="linear_blend_days"),
    "linear_blend_path_day5": Variant(blend=("linear", "linear+path_day5"), rival="linear_blend_days"),
    "linear_blend_path_pca_day5": Variant(blend=("linear", "linear+path_pca_day5"), rival="linear_blend_days"),
    "linear_blend_days": Variant(blend=("linear", "linear_day5"), rival="linear"),
    "linear+path_blend_days": Variant(blend=("linear+path", "linear+path_day5"), rival="linear_blend_days"),
    "ic32_alpha158_day5": Variant(("alpha158",), label="rank5", learner="ic32", ranked=True, rival="linear_day5"),
    "ic32_alpha158+path_day5": Variant(
        ("alpha158", "path"), label="rank5", learner="ic32", ranked=True, rival="ic32_alpha158_day5"
    ),
    "linear+path_day5_blend_ic32": Variant(blend=("linear+path_day5", "ic32_embedding"), rival="linear_day5"),
    "linear+composite": _linear(("alpha158", "composite")),
    "linear_blend_composite": Variant(blend=("linear", "composite"), rival="linear"),
    "linear_blend_kronos": Variant(blend=("linear", "linear_kronos"), rival="linear"),
    "ic_embedding": Variant(("embedding",), learner="ic", ranked=True, rival="linear"),
    "ic32_embedding": Variant(("embedding",), learner="ic32", ranked=True, rival="linear"),
    "ic32_kronos_embedding": Variant((*KRONOS, "embedding"), learner="ic32", ranked=True, rival="linear"),
    "ic32_alpha158": Variant(("alpha158",), learner="ic32", ranked=True, rival="linear"),
    "ic32_alpha158+kronos": Variant(("alpha158", *KRONOS), learner="ic32", ranked=True, rival="ic32_alpha158"),
    "ic32_alpha158+embedding": Variant(("alpha158", "embedding"), learner="ic32", ranked=True, rival="ic32_alpha158"),
    "linear_blend_embedding": Variant(blend=("linear", "embedding_ridge"), rival="linear"),
    "linear_blend_ic": Variant(blend=("linear", "ic_embedding"), rival="linear"),
    "linear_blend_ic32": Variant(blend=("linear", "ic32_embedding"), rival="linear"),
    "ic32_blend": Variant(blend=("ic32_alpha158", "ic32_embedding"), rival="ic32_alpha158"),
    "blend_ours": Variant(blend=("alpha158", "alpha158+kronos_pca_ours")),
}
