"""What all sources of factors share."""

from __future__ import annotations

from typing import Any

from kronos_qlib.forecast.forecaster import KronosForecaster
from kronos_qlib.kronos.normalise import CLIP
from kronos_qlib.market.windows import WindowPolicy

# Raised when the way from bars to network inputs changes (normalisation, clipping, stamps, keys of the randomness).
PREPROCESSING_VERSION = 1


def window_policy(forecaster: KronosForecaster, policy: WindowPolicy | None) -> WindowPolicy:
    """Return the policy, or the default one with the forecaster's lookback."""
    if policy is None:
        return WindowPolicy.up_to(forecaster.lookback)
    return policy


def describe_forecaster(forecaster: KronosForecaster, policy: WindowPolicy) -> dict[str, Any]:
    """Return what determines a network's answers besides the bars: weights, preprocessing, windows, kernels."""
    return {
        "weights": forecaster.fingerprint,
        "preprocessing": {"version": PREPROCESSING_VERSION, "clip": CLIP},
        "window_policy": policy.to_dict(),
        "max_context": forecaster.max_context,
        "dtype": forecaster.dtype,
        "device": forecaster.device.type,
    }
