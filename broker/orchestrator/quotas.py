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
from typing import NamedTuple

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


class _Subject(NamedTuple):
    """For what a call counts: a key, or what a key uses of one plugin."""

    name: tuple[str, str]
    plugin: str | None
    bounds: Quotas | PluginQuotas


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
        self._seconds: dict[tuple[str, str], _Window] = {}
        self._windows: dict[tuple[str, str], _Window] = {}
        self._open: dict[tuple[str, str], _Open] = {}

    def exceeded(
        self, quotas: Quotas, key_id: str, plugin: str, now_us: int
    ) -> Exceeded | None:
        """Give the first quota that one more call would exceed, or None."""
        for subject, of_plugin, bounds in self._subjects(quotas, key_id, plugin):
            found = self._of(subject, bounds, quotas.window_ms, now_us)
            if found is not None:
                return found._replace(plugin=of_plugin)
        return None

    def began(self, quotas: Quotas, key_id: str, plugin: str, now_us: int) -> None:
        """Count a call that was accepted and waits."""
        for subject, _, _ in self._subjects(quotas, key_id, plugin):
            opened = self._open.setdefault(subject, _Open())
            opened.in_flight += 1
            opened.queued += 1
            self._current(self._seconds, subject, SECOND_US, now_us).calls += 1

    def waits(self, quotas: Quotas, key_id: str, plugin: str, change: int) -> None:
        """Count a call that waits no more, -1, or waits again, 1."""
        for subject, _, _ in self._subjects(quotas, key_id, plugin):
            if subject in self._open:
                self._open[subject].queued += change

    def left(
        self, quotas: Quotas, key_id: str, plugin: str, now_us: int, *, queued: bool,
        cpu_ms: int, output_bytes: int,
    ) -> None:
        """Count a call that ended, and what it used."""
        for subject, _, _ in self._subjects(quotas, key_id, plugin):
            opened = self._open.get(subject)
            if opened is not None:
                opened.in_flight -= 1
                opened.queued -= queued
                if opened.in_flight == 0:
                    del self._open[subject]
            if cpu_ms or output_bytes:
                window = self._current(
                    self._windows, subject, quotas.window_ms * 1000, now_us
                )
                window.cpu_ms += cpu_ms
                window.output_bytes += output_bytes

    def _subjects(self, quotas: Quotas, key_id: str, plugin: str) -> tuple[_Subject, ...]:
        """Give what a call counts for: its key, and its key's use of a plugin with quotas."""
        total = _Subject((key_id, ""), None, quotas)
        for glob, bounds in quotas.plugins.items():
            if fnmatchcase(plugin, glob):
                return total, _Subject((key_id, plugin), plugin, bounds)
        return (total,)

    def _of(
        self, subject: tuple[str, str], bounds: Quotas | PluginQuotas, window_ms: int, now_us: int
    ) -> Exceeded | None:
        opened = self._open.get(subject, _Open())
        for quota, used, allowed in (
            ("in_flight", opened.in_flight, bounds.in_flight_max),
            ("queued", opened.queued, bounds.queued_max),
        ):
            if allowed and used >= allowed:
                return Exceeded(quota, used, allowed, now_us, now_us, 100)
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
        self, windows: dict[tuple[str, str], _Window], subject: tuple[str, str], span_us: int,
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
