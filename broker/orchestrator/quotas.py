"""Quotas: what one key may use in a window, in total and of each plugin.

Rules this file keeps: a quota belongs to the CURVE key, whatever connections it has; 0 means no
quota; a window is fixed and its bounds are told, so that its use can be counted again from the
ledger; times are wall time in us, without its steps.

It leaves refusals and events to `broker.orchestrator.gate`. Source: specification section 4,
layer 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from schemas.policy import PluginQuotas, Quotas

SECOND_US = 1_000_000
WINDOWS_MAX = 100_000
"""Windows kept at most; those that are over go first, and a key without calls has none."""


class Exceeded(NamedTuple):
    """A quota that is used up, and the window it counts in; `retry_after_ms` is its end."""

    quota: str
    used: int
    allowed: int
    window_begin_us: int
    window_end_us: int
    retry_after_ms: int
    plugin: str | None = None


Subject = tuple[str, str]
"""For what a call counts: a key, or what a key uses of one plugin."""


class Counted(NamedTuple):
    """For what one call was counted when it began, and in what window its use will be."""

    subjects: tuple[Subject, ...]
    window_us: int


NOTHING_COUNTED: Final = Counted((), 0)


@dataclass(slots=True)
class _Window:
    """What was used since `begin_us`."""

    begin_us: int
    calls: int = 0
    cpu_ms: int = 0
    output_bytes: int = 0


@dataclass(slots=True)
class _Open:
    """What is open now."""

    in_flight: int = 0
    queued: int = 0


class QuotaBook:
    """What every key has used; a subject is a key, or a key and a plugin."""

    def __init__(self) -> None:
        """Begin with nothing used."""
        self._seconds: dict[Subject, _Window] = {}
        self._windows: dict[Subject, _Window] = {}
        self._open: dict[Subject, _Open] = {}
        self._quotas: Quotas | None = None
        self._bounds: dict[str, PluginQuotas | None] = {}

    def exceeded(
        self, quotas: Quotas, key_id: str, plugin: str, now_us: int
    ) -> Exceeded | None:
        """Give the first quota that one more call would exceed, or None."""
        found = self._of((key_id, ""), quotas, quotas.window_ms, now_us)
        if found is None:
            bounds = self._bounds_of(quotas, plugin)
            if bounds is not None:
                found = self._of((key_id, plugin), bounds, quotas.window_ms, now_us)
                return found and found._replace(plugin=plugin)
        return found

    def began(self, quotas: Quotas, key_id: str, plugin: str, now_us: int) -> Counted:
        """Count a call that was accepted and waits; what it counts for is told back at its end."""
        subjects: tuple[Subject, ...] = ((key_id, ""),)
        if self._bounds_of(quotas, plugin) is not None:
            subjects += ((key_id, plugin),)
        for subject in subjects:
            opened = self._open.get(subject)
            if opened is None:
                opened = self._open[subject] = _Open()
            opened.in_flight += 1
            opened.queued += 1
            self._current(self._seconds, subject, SECOND_US, now_us).calls += 1
        return Counted(subjects, quotas.window_ms * 1000)

    def waits(self, counted: Counted, change: int) -> None:
        """Count a call that waits no more, -1, or waits again, 1."""
        for subject in counted.subjects:
            opened = self._open.get(subject)
            if opened is not None:
                opened.queued += change

    def left(
        self, counted: Counted, now_us: int, *, queued: bool, cpu_ms: int, output_bytes: int
    ) -> None:
        """Count a call that ended, and what it used."""
        for subject in counted.subjects:
            opened = self._open.get(subject)
            if opened is not None:
                opened.in_flight -= 1
                opened.queued -= queued
                if opened.in_flight == 0:
                    del self._open[subject]
            if cpu_ms or output_bytes:
                window = self._current(self._windows, subject, counted.window_us, now_us)
                window.cpu_ms += cpu_ms
                window.output_bytes += output_bytes

    def weight_of(self, quotas: Quotas, plugin: str) -> int:
        """Give how large a share of the free places a plugin may take."""
        bounds = self._bounds_of(quotas, plugin)
        return quotas.weight if bounds is None else bounds.weight

    def _bounds_of(self, quotas: Quotas, plugin: str) -> PluginQuotas | None:
        """Give what one key may use of a plugin, by the first glob that matches, if there is one.

        Asked for every call, and there may be hundreds of globs: the answer is kept for as long as
        the same quotas are in force. They never change; another policy has others.
        """
        if quotas is not self._quotas:
            self._quotas = quotas
            self._bounds.clear()
        if plugin not in self._bounds:
            self._bounds[plugin] = next(
                (one for glob, one in quotas.plugins.items() if fnmatchcase(plugin, glob)), None
            )
        return self._bounds[plugin]

    def _of(
        self, subject: Subject, bounds: Quotas | PluginQuotas, window_ms: int, now_us: int
    ) -> Exceeded | None:
        opened = self._open.get(subject)
        if opened is not None:
            in_flight_max, queued_max = bounds.in_flight_max, bounds.queued_max
            if in_flight_max and opened.in_flight >= in_flight_max:
                return Exceeded(
                    "in_flight", opened.in_flight, in_flight_max, now_us, now_us, 100)
            if queued_max and opened.queued >= queued_max:
                return Exceeded("queued", opened.queued, queued_max, now_us, now_us, 100)
        if bounds.calls_per_second_max:
            second = self._current(self._seconds, subject, SECOND_US, now_us)
            if second.calls >= bounds.calls_per_second_max:
                return _exceeded("calls_per_second", second.calls, bounds.calls_per_second_max,
                                 second, SECOND_US, now_us)
        span_us = window_ms * 1000
        if bounds.cpu_ms_per_window_max or bounds.output_bytes_per_window_max:
            window = self._current(self._windows, subject, span_us, now_us)
            for quota, used, allowed in (
                ("cpu_ms", window.cpu_ms, bounds.cpu_ms_per_window_max),
                ("output_bytes", window.output_bytes, bounds.output_bytes_per_window_max),
            ):
                if allowed and used >= allowed:
                    return _exceeded(quota, used, allowed, window, span_us, now_us)
        return None

    def _current(
        self, windows: dict[Subject, _Window], subject: Subject, span_us: int,
        now_us: int,
    ) -> _Window:
        """Give the window that is running, a new one when the last is over."""
        window = windows.get(subject)
        if window is None or not 0 <= now_us - window.begin_us < span_us:
            if len(windows) >= WINDOWS_MAX:
                for old in [one for one, kept in windows.items()
                            if now_us - kept.begin_us >= span_us] or [next(iter(windows))]:
                    del windows[old]
            window = windows[subject] = _Window(now_us)
        return window


def _exceeded(
    quota: str, used: int, allowed: int, window: _Window, span_us: int, now_us: int
) -> Exceeded:
    end_us = window.begin_us + span_us
    return Exceeded(quota, used, allowed, window.begin_us, end_us, (end_us - now_us) // 1000 + 1)
