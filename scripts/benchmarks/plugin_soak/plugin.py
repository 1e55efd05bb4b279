"""One method for each way in which a call can end."""

from __future__ import annotations

import msgspec

from sandbox_worker.sdk import CannotAnswer, Context, TextPayload, method


class Length(msgspec.Struct, forbid_unknown_fields=True):
    """How long a text is."""

    characters: int


@method(deterministic=True, idempotent=True)
def measure(context: Context, text: TextPayload) -> Length:
    """Answer."""
    context.progress(0.5, "half")
    return Length(len(text.text))


@method(idempotent=True)
def echo(_context: Context, text: TextPayload) -> TextPayload:
    """Answer with the input."""
    return text


@method()
def refuse(_context: Context, text: TextPayload) -> TextPayload:
    """Have no answer, as a plugin may."""
    raise CannotAnswer(f"{len(text.text)} characters are not enough")


@method()
def fail(_context: Context, text: TextPayload) -> TextPayload:
    """Make a mistake."""
    return TextPayload(text.text + 1)  # type: ignore[operator]  # The mistake.


@method()
def crash(_context: Context, text: TextPayload) -> TextPayload:
    """Break the interpreter: code that takes constants which it does not have."""
    constants = (lambda: [1.5, "a", b"b", 2.5, 3.5]).__code__.replace(co_consts=())
    return TextPayload(f"{text.text}{eval(constants)}")


@method()
def flood(_context: Context, text: TextPayload) -> TextPayload:
    """Answer with more than the manifest allows."""
    return TextPayload(text.text[:1] * 100_000)


@method()
def grow(_context: Context, text: TextPayload) -> TextPayload:
    """Take more memory than the manifest allows."""
    return TextPayload(str(len(bytearray(1 << 30)) + len(text.text)))


@method()
def spin(context: Context, text: TextPayload) -> TextPayload:
    """Say that it runs, and never answer."""
    context.progress(0.1, "spinning")
    while True:
        text = TextPayload(text.text)
