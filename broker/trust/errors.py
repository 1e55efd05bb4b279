"""The one error of the trust layer: a refusal with its code, place and remedy.

It leaves to the caller whether a refusal becomes a reply, an event, a problem in a list or an exit
code.
"""

from __future__ import annotations

from schemas.refusals import RefusalCode


class TrustRefused(ValueError):
    """Bytes, a document or a policy line that is not accepted."""

    def __init__(
        self, code: RefusalCode, sentence: str, *, where: str = "", hint: str = ""
    ) -> None:
        """Remember which rule was broken, where, and what would make it right.

        Args:
            code: the refusal code.
            sentence: what was found and what is expected, for a person.
            where: path of the place, such as `$.limits.cpu_ms` or the name of a bundle file.
            hint: what to do; empty when the code's own page says it all.
        """
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence
        self.where = where
        self.hint = hint


def printable(text: str, characters_max: int = 120) -> str:
    """Keep foreign words out of terminals' hands: printable ASCII, shortened."""
    shown = "".join(c if " " <= c <= "~" else "?" for c in text[: characters_max + 1])
    return shown if len(shown) <= characters_max else shown[: characters_max - 3] + "..."
