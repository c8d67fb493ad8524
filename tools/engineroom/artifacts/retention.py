"""Retention: which of the backups of a name are kept."""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Retention:
    """How many backups are kept. A backup is kept where any of the rules keeps it; no rule at all keeps every one.

    As ``--keep-…`` of restic and borg have it: "daily 7" keeps the newest backup of each of the 7 last days *that
    have one*, so that a machine that was off for a month loses nothing.
    """

    last: int = 0
    daily: int = 0
    weekly: int = 0

    def kept(self, times: Iterable[datetime]) -> set[datetime]:
        """Of these times (UTC), those that are kept; the newest always is, whatever the rules."""
        newest_first = sorted(set(times), reverse=True)
        if not newest_first or not (self.last or self.daily or self.weekly):
            return set(newest_first)
        kept = {newest_first[0], *newest_first[: self.last]}
        kept |= _newest_of_each(newest_first, self.daily, lambda time: time.date())
        # ISO weeks begin on Monday; their year goes with them, so that week 1 of two years are two weeks.
        kept |= _newest_of_each(newest_first, self.weekly, lambda time: time.isocalendar()[:2])
        return kept


def _newest_of_each(newest_first: list[datetime], count: int, period: Callable[[datetime], Hashable]) -> set[datetime]:
    newest: dict[Hashable, datetime] = {}
    for time in newest_first:
        newest.setdefault(period(time), time)
    return set(list(newest.values())[:count])
