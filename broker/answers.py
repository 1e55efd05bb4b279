"""What the ledger says to those who ask: receipts, heads, proofs and the stories of requests.

Rules this file keeps: it tells of committed events only; a read that fails is a refusal to the one
who asked, and told as such once, because the evidence may be damaged while the writing goes on. It
writes nothing and leaves sending to `broker.gateway`, proofs to `broker.ledger`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from broker.effects import Evidence
from broker.folded import Folded, Story
from broker.ledger.commit import Appended, Ledger
from broker.ledger.errors import (
    LedgerRefused,
    PositionArchived,
    PositionUnknown,
    SizeUnsigned,
    TilesDamaged,
)
from schemas.events import EVENT_TYPES, EventFields, InvokeAccept, InvokeEnd, LedgerOpen
from schemas.messages import Consistency, Head, Proof, Receipt, Refusal, Reply, RequestStory
from schemas.refusals import REFUSALS, RefusalCode

STORIES_MAX: Final = 20_000
STORY_EVENTS_MAX: Final = 62
UNREADABLE: Final = "ledger_unreadable"

_DAMAGED: Final = (LedgerRefused, TilesDamaged, OSError)
_ALWAYS_TOLD: Final = {InvokeAccept, InvokeEnd}
_REQUESTS_NAMED: Final = {
    kind: tuple(name for name in ("request_id", "pipeline") if name in kind.__struct_fields__)
    for kind in EVENT_TYPES.values()
    if "request_id" in kind.__struct_fields__
}
"""By what fields an event says of which requests' stories it is."""


class Answers:
    """Reads of one ledger for clients."""

    def __init__(self, ledger: Ledger, unreadable: Callable[[], None]) -> None:
        """Read this ledger; `unreadable` is called whenever that fails."""
        self._ledger = ledger
        self._unreadable = unreadable
        self._archived_to = ""
        self._stories: OrderedDict[str, Story] = OrderedDict()
        self._consistency: tuple[int, int, tuple[str, ...]] = (0, 0, ())

    def stories(self) -> list[Story]:
        """Give where the events of recent requests lie, to be written down."""
        return [*self._stories.values()]

    def take_up(self, folded: Folded) -> None:
        """Begin with what was written down."""
        self._archived_to = folded.archived_to
        self._stories.update((story.request_id, story) for story in folded.stories)

    def remember(self, fields: EventFields, seq: int) -> None:
        """Keep the positions of recent requests' events, the first and the last of many.

        How a pipeline's steps began is a part of its story too; the rest of a step's is its own.
        """
        places = _REQUESTS_NAMED.get(type(fields))
        if places is None:
            if isinstance(fields, LedgerOpen) and fields.archived_to is not None:
                self._archived_to = fields.archived_to
            return
        for place in places:
            request_id = getattr(fields, place)
            if request_id is None:
                continue
            story = self._stories.get(request_id) or self._begun(request_id)
            if type(fields) in _ALWAYS_TOLD:
                story.always += (seq,)
                continue
            others = story.others = (*story.others, seq)
            if len(others) > STORY_EVENTS_MAX:
                middle = STORY_EVENTS_MAX // 2
                story.others = others[:middle] + others[middle + 1 :]

    def _begun(self, request_id: str) -> Story:
        """Begin a story; the oldest makes room for it."""
        story = self._stories[request_id] = Story(request_id)
        if len(self._stories) > STORIES_MAX:
            self._stories.popitem(last=False)
        return story

    def receipt(self, appended: Appended, known_size: int | None) -> Receipt:
        """Point at an event; add the newest checkpoint when the client knows another size.

        A client that knows more than the newest checkpoint knows another history: it is told too.
        """
        ledger = self._ledger
        if known_size is None or ledger.head_size == known_size or not self._prove(known_size):
            return Receipt(
                log_id=ledger.log_id, seq=appended.seq, event_hash=appended.event_hash
            )
        return Receipt(
            log_id=ledger.log_id, seq=appended.seq, event_hash=appended.event_hash,
            checkpoint=ledger.head, consistency=self._consistency[2],
        )

    def _prove(self, known_size: int) -> bool:
        """Have the proof from a client's size to the newest checkpoint at hand, if there is one."""
        ledger = self._ledger
        if self._consistency[:2] != (known_size, ledger.head_size):
            try:
                provable = 0 < known_size < ledger.head_size
                hashes = ledger.prove_consistency(known_size) if provable else []
            except _DAMAGED:
                self._unreadable()
                return False
            self._consistency = (
                known_size, ledger.head_size, tuple(entry.hex() for entry in hashes)
            )
        return True

    def evidence(self, effect: Evidence) -> Reply:
        """Answer one read."""
        try:
            return self._shown(effect, self._read(effect))
        except PositionArchived:
            return refusal(
                effect.request_id, RefusalCode.EVENTS_ARCHIVED,
                f"those before event {self._ledger.first_seq} were moved to {self._archived_to}",
            )
        except SizeUnsigned as error:
            newest = f"{error}; the newest is over {self._ledger.head_size}"
            return refusal(effect.request_id, RefusalCode.SIZE_UNKNOWN, newest)
        except PositionUnknown as error:
            return refusal(
                effect.request_id,
                RefusalCode.SEQ_UNKNOWN if effect.query == "prove" else RefusalCode.SIZE_UNKNOWN,
                str(error),
            )
        except _DAMAGED:
            self._unreadable()
            return refusal(effect.request_id, RefusalCode.LEDGER_DAMAGED)

    def _read(self, effect: Evidence) -> Reply:
        ledger, ask = self._ledger, effect.request_id
        if effect.query in ("head", "prove") and effect.size is None:
            self._cover(ledger.committed if effect.query == "head" else effect.number + 1)
        if effect.query == "head":
            return Head(request_id=ask, checkpoint=ledger.head, verifier_key=ledger.verifier_key)
        if effect.query == "prove":
            hashes = ledger.prove(effect.number, effect.size)
            return Proof(
                request_id=ask, seq=effect.number, checkpoint=ledger.note(effect.size),
                line=self._line(effect.number), hashes=tuple(entry.hex() for entry in hashes),
            )
        if effect.query == "prove_consistency":
            path = ledger.prove_consistency(effect.number, effect.size)
            return Consistency(
                request_id=ask, old_size=effect.number, checkpoint=ledger.note(effect.size),
                hashes=tuple(entry.hex() for entry in path),
            )
        story = self._stories.get(effect.target)
        if story is None:
            return refusal(ask, RefusalCode.REQUEST_UNKNOWN)
        seqs = sorted(story.always + story.others)
        return RequestStory(
            request_id=ask, target=effect.target,
            lines=tuple(self._line(seq) for seq in seqs if seq < ledger.committed),
        )

    def _shown(self, effect: Evidence, reply: Reply) -> Reply:
        """Give an answer only if its checkpoint can be shown to continue what the client knows."""
        known = effect.known_size
        checked = effect.query != "show_request" and known not in (None, self._ledger.head_size)
        if checked and known is not None and not self._prove(known):
            return refusal(effect.request_id, RefusalCode.LEDGER_DAMAGED)
        return reply

    def _cover(self, size: int) -> None:
        """Sign what is committed, if the newest checkpoint does not reach what is asked for."""
        if self._ledger.head_size < size <= self._ledger.committed:
            self._ledger.checkpoint()

    def _line(self, seq: int) -> str:
        return self._ledger.line(seq).decode("utf-8", "replace").rstrip("\n")


def refusal(request_id: str | None, code: RefusalCode, sentence: str = "") -> Refusal:
    """Make a refusal with the words of its page."""
    info = REFUSALS[code]
    return Refusal(
        request_id=request_id, code=code, hint=info.remedy,
        message=f"{info.title}: {sentence}" if sentence else f"{info.title}. {info.reason}",
    )
