"""How far a handler's label looks ahead, read from its expression by Qlib's own parser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qlib.data.base import Expression
from qlib.data.data import ExpressionD
from qlib.utils.mod import get_callable_kwargs

from kronos_qlib.handler import LABEL, KlineHandler

HELP = "give the handler a label, or set horizon in the rolling block"


def label_horizon(handler: Mapping[str, Any]) -> int:
    """Return how many sessions after a date its label reads: 2 for ``Ref($close, -2)/Ref($close, -1) - 1``.

    Parameters
    ----------
    handler : its configuration. The label is what ``kwargs`` set, else the loader's, else the class's default.

    Raises
    ------
    ValueError : no label is found, or one does not parse.
    """
    return max(expression_horizon(text) for text in label_expressions(handler))


def expression_horizon(text: str) -> int:
    """Return how many sessions after a date an expression reads there; 0 for one of the past."""
    try:
        expression = ExpressionD.get_expression_instance(text)
    except (NameError, SyntaxError, TypeError) as error:
        raise ValueError(f"rolling: the label {text!r} is no Qlib expression ({error}); {HELP}") from error
    ahead = expression.get_extended_window_size()[1] if isinstance(expression, Expression) else 0
    if not math.isfinite(ahead):
        raise ValueError(f"rolling: the label {text!r} reads bars without an end; {HELP}")
    return max(int(ahead), 0)


def label_expressions(handler: Mapping[str, Any]) -> list[str]:
    """Return the expressions of a handler's label."""
    settings = dict(handler.get("kwargs") or {})
    label = settings.get("label") or _loader_label(settings.get("data_loader"))
    return _expressions(label if label else _default_label(handler))


def _loader_label(loader: Any) -> Any:
    if not isinstance(loader, Mapping):
        return None
    config = (loader.get("kwargs") or {}).get("config")
    return config.get("label") if isinstance(config, Mapping) else None


def _default_label(handler: Mapping[str, Any]) -> Any:
    made, _ = get_callable_kwargs(dict(handler))
    if isinstance(made, type) and issubclass(made, KlineHandler):
        return LABEL
    if isinstance(made, type) and hasattr(made, "get_label_config"):
        # Qlib's handlers state their default in a method that uses nothing of the instance
        return made.get_label_config(object.__new__(made))
    raise ValueError(f"rolling: no label is known of handler {handler.get('class')!r}; {HELP}")


def _expressions(label: Any) -> list[str]:
    if isinstance(label, str):
        return [label]
    listed = list(label)
    if len(listed) == 2 and all(isinstance(part, list | tuple) for part in listed):
        listed = list(listed[0])  # (expressions, names)
    if not listed or not all(isinstance(part, str) for part in listed):
        raise ValueError(f"rolling: expected a label such as ['Ref($close, -2)/Ref($close, -1) - 1'], got {label!r}")
    return listed
