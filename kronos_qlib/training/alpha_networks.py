"""The two ways to train an alpha head: on hidden states kept from a frozen trunk, or with the trunk's last layers."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kronos_qlib.kronos import Kronos, KronosTokenizer, normalise
from kronos_qlib.kronos.engine import TokenizerEngine
from kronos_qlib.kronos.generate import DTYPES
from kronos_qlib.kronos.inputs import check_match
from kronos_qlib.kronos.plan import windows_per_chunk
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.stamps import time_stamps
from kronos_qlib.market.windows import iter_windows, window_lengths
from kronos_qlib.training.alpha_features import BATCH_WINDOWS, FeatureSettings, map_chunks, pool
from kronos_qlib.training.alpha_head import AlphaHead, HeadTraining

Positions = npt.NDArray[np.int64]


class FrozenNetwork(nn.Module):
    """A head on a table of features.

    Parameters
    ----------
    head : AlphaHead
    features : float32 (n, n_features), may be memory-mapped.
    """

    def __init__(self, head: AlphaHead, features: npt.NDArray[np.float32]) -> None:
        super().__init__()
        self.head, self.features = head, features

    def forward(self, positions: Positions) -> Tensor:
        """Raw outputs (n_heads, n) of some rows of the table."""
        return self.head(torch.from_numpy(np.asarray(self.features[positions])).to(self.head.feature_center.device))

    def groups(self, training: HeadTraining) -> list[dict[str, object]]:
        """Parameters and rates for an optimiser."""
        return [_group(self.head, training.rate, training.weight_decay)]


class TunedNetwork(nn.Module):
    """A head on a trunk whose last layers (and last norm) learn; the layers before them and the tokenizer do not.

    Parameters
    ----------
    head : AlphaHead
    model, tokenizer : the model is copied, the given one stays as it is.
    panel, rows : bars, and the last bar of each window of the table (``window_lengths`` must be above 0).
    settings : FeatureSettings
    unfreeze : layers that learn, 1 to all.
    """

    def __init__(
        self,
        head: AlphaHead,
        model: Kronos,
        tokenizer: KronosTokenizer,
        panel: BarPanel,
        rows: Positions,
        settings: FeatureSettings,
        unfreeze: int,
    ) -> None:
        super().__init__()
        check_match(model, tokenizer)
        layers = model.config.n_layers
        if not 1 <= unfreeze <= layers:
            raise ValueError(
                f"unfreeze is {unfreeze}, the trunk has {layers} layers; give 1 to {layers}, or 0 for none"
            )
        self.head, self.settings, self.unfreeze = head, settings, unfreeze
        self.trunk = copy.deepcopy(model).requires_grad_(False)
        tuned_parameters = tuned_names(model, unfreeze)
        for name, parameter in self.trunk.named_parameters():
            parameter.requires_grad_(name in tuned_parameters)
        self.rows, self.session = np.asarray(rows, dtype=np.int64), panel.session
        self.calendar_stamps = time_stamps(panel.calendar)
        self.lengths = np.minimum(window_lengths(panel, self.rows, settings.policy), settings.max_context)
        if (self.lengths == 0).any():
            raise ValueError(f"{int((self.lengths == 0).sum())} of {len(rows)} rows have no window; leave them out")
        self.tokens = encode_windows(tokenizer, panel, self.rows, settings, model)

    def train(self, mode: bool = True) -> TunedNetwork:
        """Dropout acts in what learns only."""
        super().train(mode)
        self.trunk.eval()
        for block in self.trunk.transformer[-self.unfreeze :]:
            block.train(mode)
        return self

    def forward(self, positions: Positions) -> Tensor:
        """Raw outputs (n_heads, n) of some windows of the table; windows of one length go together."""
        lengths = self.lengths[positions]
        features: list[Tensor] = []
        places = []
        for length in np.unique(lengths):
            chosen = np.flatnonzero(lengths == length)
            places.append(chosen)
            features.append(self._features(positions[chosen], int(length)))
        back = torch.from_numpy(np.argsort(np.concatenate(places))).to(features[0].device)
        return self.head(torch.cat(features)[back])

    def _features(self, positions: Positions, length: int) -> Tensor:
        device = self.head.feature_center.device
        ids = torch.from_numpy(self.tokens[positions, -length:].astype(np.int64)).to(device)
        sessions = self.session[self.rows[positions][:, None] + np.arange(1 - length, 1)]
        stamps = torch.from_numpy(self.calendar_stamps[sessions]).to(device)
        trunk = self.trunk
        lowered = self.settings.dtype != "float32"
        with torch.autocast(device.type, dtype=torch.bfloat16) if lowered else nullcontext():
            with torch.no_grad():
                x = trunk.embedding(ids[..., 0], ids[..., 1]) + trunk.time_emb(stamps)
                for block in trunk.transformer[: -self.unfreeze]:
                    x = block(x)
            for block in trunk.transformer[-self.unfreeze :]:
                x = block(x)
            return pool(trunk.norm(x)[:, -self.settings.pooled_bars :])

    def groups(self, training: HeadTraining) -> list[dict[str, object]]:
        """Parameters and rates for an optimiser: the trunk has a smaller one."""
        return [
            _group(self.head, training.rate, training.weight_decay),
            _group(self.trunk, training.trunk_rate, training.weight_decay),
        ]


def tuned_names(model: Kronos, unfreeze: int) -> list[str]:
    """Names of the trunk's parameters that learn when its last ``unfreeze`` layers do."""
    if unfreeze == 0:
        return []
    first = model.config.n_layers - unfreeze
    tuned = ("norm.", *(f"transformer.{layer}." for layer in range(first, model.config.n_layers)))
    return [name for name, _ in model.named_parameters() if name.startswith(tuned)]


def encode_windows(
    tokenizer: KronosTokenizer, panel: BarPanel, rows: Positions, settings: FeatureSettings, model: Kronos
) -> npt.NDArray[np.int32]:
    """Ids of each row's window, int32 (n, longest, 2), at the right end where a window is shorter; 0 before it."""
    lengths = np.minimum(window_lengths(panel, rows, settings.policy), settings.max_context)
    out = np.zeros((len(rows), int(lengths.max(initial=0)), 2), dtype=np.int32)
    device = next(tokenizer.parameters()).device
    with torch.inference_mode():
        engine = TokenizerEngine(tokenizer, DTYPES[settings.dtype])
    for batch in iter_windows(panel, rows, settings.policy, BATCH_WINDOWS):
        bars = torch.from_numpy(normalise(batch.values)[0]).to(device)

        def run(chosen: Tensor, bars: Tensor = bars) -> Tensor:
            return torch.stack(engine.encode(bars[chosen]), dim=-1)[:, -settings.max_context :]

        size = windows_per_chunk(model.config, bars.shape[1], 1, 1, device.type)
        ids = map_chunks(run, len(bars), size, device)
        out[batch.positions, -ids.shape[1] :] = ids
    return out


def _group(module: nn.Module, rate: float, weight_decay: float) -> dict[str, object]:
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return {"params": learning, "lr": rate, "weight_decay": weight_decay}
