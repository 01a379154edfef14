"""Qlib's MLP runs on the installed torch, with its own scheduler."""

from __future__ import annotations

from torch.optim.lr_scheduler import ReduceLROnPlateau

from kronos_qlib.comparison.networks import build_mlp


def test_the_mlp_has_qlibs_scheduler() -> None:
    model = build_mlp(lr=0.002, optimizer="adam", GPU=-1, seed=3, pt_model_kwargs={"input_dim": 4})
    assert isinstance(model.scheduler, ReduceLROnPlateau)
    assert (model.scheduler.factor, model.scheduler.patience, model.scheduler.min_lrs) == (0.5, 10, [1e-5])
    assert model.get_lr() == 0.002
