"""Numbers as the project writes them."""

from __future__ import annotations

import math
import re


def number(value: float, digits: int) -> str:
    """A number without the zero before the point; a dash where there is none."""
    if math.isnan(value):
        return "–"
    return re.sub(r"^(-?)0\.", r"\1.", f"{value:.{digits}f}")


def percent(value: float) -> str:
    """A share in percent; a dash where there is none."""
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"
