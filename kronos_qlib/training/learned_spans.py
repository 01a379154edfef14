"""Which dates weights have learned, and which years between them they have not.

Fine-tuning may learn later bars than its parent and leave years out between: cross-fitting asks for those years.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable

Days = tuple[datetime.date, datetime.date]
ONE = datetime.timedelta(days=1)


def learned(first: datetime.date, last: datetime.date, held_out: Iterable[Days]) -> list[Days]:
    """Return the spans, ends included, that are left of ``first`` to ``last`` without the held-out ones."""
    before, after = (datetime.date.min, first - ONE), (last + ONE, datetime.date.max)
    return gaps([before, *held_out, after])


def gaps(spans: Iterable[Days]) -> list[Days]:
    """Return the spans, ends included, that lie between the given ones; those may overlap and come in any order."""
    found, reached = [], None
    for begin, end in sorted(spans):
        if reached is not None and begin > reached + ONE:
            found.append((reached + ONE, begin - ONE))
        reached = end if reached is None else max(reached, end)
    return found
