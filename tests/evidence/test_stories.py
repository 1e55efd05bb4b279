"""A story has every event of its request, in words, with times that add up."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from broker.evidence.stories import durations, find_story, timeline
from schemas.events import Event, InvalidEvent, InvokeRefuse
from tests.evidence.stories import OMEGA, Story, changed, put, request, right, said, write


def silent(_done: int, _total: int) -> None:
    """Hear nothing of how far it is."""


def names(story: Story, events: list[Event]) -> list[str]:
    """Give the names of a story's events."""
    return [list(story)[event.seq] for event in events]


def test_a_story_is_told_with_its_durations(tmp_path):
    """All events of one request and no other, each with its time, and how long it waited."""
    told: list[tuple[int, int]] = []
    directory = str(write(right(), tmp_path, {"run 1": 2000, "answer 1": 5000}))
    events = find_story(directory, request(1), lambda *counts: told.append(counts))
    assert names(right(), events) == [
        "asks 1", "accept 1", "run 1", "progress", "progressed", "answer 1", "end 1", "result 1"
    ]
    moments = timeline(events)
    assert moments[0].after_us == moments[0].since_us == 0
    assert sum(moment.since_us for moment in moments) == moments[-1].after_us
    took = durations(moments)
    assert (took.queued_us, took.worker_us, took.total_us) == (9000, 8000, 20000)
    assert told[-1][0] == told[-1][1] > 0
    words = [moment.words for moment in moments]
    assert words[1] == "word-count@1.2.0 count, text of 7 bytes, within 1000 ms"
    assert words[2] == "run for worker 11111111, call 1 as primary"
    assert words[6] == "result, json of 9 bytes"


def test_a_second_run_is_told_and_is_no_time_of_the_first(tmp_path):
    """What a worker took is up to its answer, not up to the one that it is compared with."""
    story = changed(put(
        right(), "answer 1", again=msgspec.structs.replace(right()["run 1"], call=9,
                                                           purpose="replica"),
        answers=said("call_result", 9, 1)), "end 1", replica="agreed")
    moments = timeline(find_story(
        str(write(story, tmp_path, {"answers": 5000})), request(1), silent))

    assert durations(moments).worker_us == 3000
    assert [moments[place].words for place in (6, 8)] == [
        "run for worker 11111111, call 9 as replica",
        "result, json of 9 bytes, the second run agreed",
    ]


def test_what_was_cancelled_or_refused_has_no_other_times(tmp_path):
    """A call that no worker answered has no time of a worker; a refusal says its code and place."""
    story = put(right(), "cancelled", refuses=InvokeRefuse(
        request_id=request(4), peer=OMEGA, code="draining", where="$.plugin"))
    directory = str(write(story, tmp_path, {}))
    moments = timeline(find_story(directory, request(3), silent))
    took = durations(moments)
    assert (took.queued_us, took.worker_us) == (1000, None)
    assert moments[-2].words == "cancelled: cancelled, it was dispatched"
    moments = timeline(find_story(directory, request(4), silent))
    assert [moment.words for moment in moments] == ["draining at $.plugin"]
    assert find_story(directory, request(9), silent) == []
    assert durations([]).total_us == 0


def test_a_pipeline_has_its_steps_in_its_story(tmp_path):
    """What a step did is told too, because its acceptance names the pipeline."""
    story = changed(right(), "accept 2", pipeline=request(1), step="second")
    directory = str(write(story, tmp_path, {}))
    found = names(story, find_story(directory, request(1), silent))
    assert {"asks 1", "result 1", "accept 2", "run 2", "answer 2", "end 2"} <= set(found)
    assert "asks 3" not in found
    words = [moment.words for moment in timeline(find_story(directory, request(1), silent))]
    assert any(one.endswith("step second") for one in words)


def test_times_go_on_by_the_wall_clock_after_the_machine_began_anew(tmp_path):
    """A monotonic clock that begins again makes no time negative."""
    directory = str(write(right(), tmp_path, {"answer 1": -900_000}))
    moments = timeline(find_story(directory, request(1), silent))
    assert all(moment.since_us >= 0 for moment in moments)


def test_a_line_that_is_no_event_is_an_error(tmp_path):
    """A story is not told from damaged lines."""
    path: Path = next((write(right(), tmp_path, {}) / "segments").iterdir())
    path.write_bytes(path.read_bytes().replace(b'"bytes":200', b'"bytes":201', 30))
    with pytest.raises(InvalidEvent):
        find_story(str(tmp_path / "ledger"), request(1), silent)
