"""Numbers as the project writes them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np


def number(value: float, digits: int) -> str:
    """A number without the zero before the point; a dash where there is none."""
    if math.isnan(value):
        return "–"
    return re.sub(r"^(-?)0\.", r"\1.", f"{value:.{digits}f}")


def percent(values: Sequence[float]) -> str:
    """The mean of shares in percent; a dash where there is none."""
    mean = float(np.mean(values))
    return "–" if math.isnan(mean) else f"{100 * mean:.1f} %"
