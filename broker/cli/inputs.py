"""The forms that an input can be given in on the command line, and the payload made of them.

Rules this file keeps: an input has exactly one form; what no gateway takes is said before it is
sent, with the file or option it came from.

It leaves what a method takes to the gateway.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, cast

import click

from broker.cli.ends import FAILURE, USAGE, CommandError
from broker.cli.options import FunctionT, session

if TYPE_CHECKING:
    from broker.client_session import PayloadLike
    from schemas.payloads import MediaType, Payload, TextMediaType

INPUT_FORMS: Final = ("text", "json_text", "file", "artifact", "dataset")
"""The options of which exactly one gives the input."""
_INPUT_OPTIONS = (
    click.option("--text", metavar="T", help="A text."),
    click.option("--json", "json_text", metavar="J", help="A JSON document."),
    click.option("--file", metavar="F", help="A file of text, or JSON if its name ends in .json; - "
                 "is stdin."),
    click.option("--artifact", metavar="ID", help="A reference to an artifact: a file of the "
                 "home's artifacts/, or with --sha256 and --size any."),
    click.option("--sha256", metavar="HEX", help="The artifact's digest."),
    click.option("--size", type=click.IntRange(min=0), metavar="BYTES",
                 help="The artifact's size."),
    click.option("--dataset", metavar="ID",
                 help="A reference to a dataset of OMEGA's; needs --keys."),
    click.option("--keys", metavar="K,…", help="The dataset's keys, with commas between them."),
    click.option("--media-type", help="Of --text, --file or --artifact."),
)


def input_options(function: FunctionT) -> FunctionT:
    """Add the forms that an input can be given in; `given_payload` reads them."""
    for option in reversed(_INPUT_OPTIONS):
        function = option(function)
    return function


def given_payload(given: Mapping[str, str | int | None]) -> PayloadLike:
    """Make the input from exactly one of its forms."""
    import msgspec

    from schemas.payloads import BinaryRefPayload, DatasetSlicePayload, MediaType, TextPayload

    forms = [form for form in INPUT_FORMS if given[form] is not None]
    if len(forms) != 1:
        raise click.UsageError(
            "give the input as exactly one of --text, --json, --file, --artifact and --dataset"
        )
    form, value = forms[0], str(given[forms[0]])
    media_type = given["media_type"]
    if media_type is not None:
        try:
            msgspec.convert(media_type, MediaType)
        except msgspec.ValidationError:
            raise click.BadParameter(f"{media_type!r} is not one of the media types",
                                     param_hint="--media-type") from None
    if form == "json_text":
        return json_payload(value.encode(), "--json")
    if form == "file":
        return file_payload(value, media_type)
    if form == "text":
        return TextPayload(value, cast("TextMediaType", media_type or "text/plain"))
    if form == "dataset":
        _need(given, "dataset", "keys")
        return DatasetSlicePayload(value, tuple(str(given["keys"]).split(",")))
    kind = cast("MediaType", media_type or "application/octet-stream")
    if given["sha256"] is None and given["size"] is None:
        return stored_artifact(value, kind)
    _need(given, "artifact", "sha256", "size")
    return BinaryRefPayload(value, str(given["sha256"]), int(given["size"] or 0), kind)


def whole_payload(given: Mapping[str, str | int | None], schema: str | None) -> Payload:
    """Make the input as it travels, with the JSON Schema that a document names."""
    import msgspec

    from broker.client_session import as_payload
    from schemas.payloads import JSONPayload

    payload = as_payload(given_payload(given))
    if schema is not None and isinstance(payload, JSONPayload):
        payload = msgspec.structs.replace(payload, schema=schema)
    return payload


def stored_artifact(artifact_id: str, media_type: MediaType) -> Payload:
    """Make the reference to a file of the artifact store of a home that is here."""
    import msgspec

    from broker.store import artifact_reference

    store = os.path.join(session().home_path(), "artifacts")
    try:
        return artifact_reference(store, artifact_id, media_type)
    except msgspec.ValidationError as error:
        raise click.BadParameter(f"{error}", param_hint="--artifact") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CommandError(
            USAGE, f"{store}/{artifact_id}: {reason}",
            "put the file there, or say --sha256 and --size of one that another home has",
        ) from None


def _need(given: Mapping[str, str | int | None], form: str, *names: str) -> None:
    missing = [f"--{name.replace('_', '-')}" for name in names if given[name] is None]
    if missing:
        raise click.UsageError(f"--{form} needs {', '.join(missing)}")


def json_payload(data: bytes, where: str) -> PayloadLike:
    """Read a JSON document; `where` says to a person which one it was."""
    import msgspec

    try:
        value: PayloadLike = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise CommandError(USAGE, f"{where}: is not JSON: {error}") from None
    return value if not isinstance(value, str) else _json_string(value)


def _json_string(value: str) -> Payload:
    from schemas.canonical import canonical_bytes
    from schemas.payloads import JSONPayload

    return JSONPayload(canonical_bytes(value))


def file_payload(path: str, media_type: str | int | None) -> PayloadLike:
    """Read a file as text or JSON; a size that no gateway takes is said before it is sent."""
    from schemas.names import JSON_BYTES_MAX, TEXT_BYTES_MAX
    from schemas.payloads import TextPayload

    data = _bytes(path, TEXT_BYTES_MAX)
    is_json = media_type == "application/json" or (media_type is None and path.endswith(".json"))
    if is_json:
        if len(data) > JSON_BYTES_MAX:
            raise CommandError(FAILURE, f"{path}: is longer than {JSON_BYTES_MAX} bytes of JSON")
        return json_payload(data, path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CommandError(
            USAGE, f"{path}: is not UTF-8 text at byte {error.start}",
            "hand bytes over as a reference, with --artifact",
        ) from None
    return TextPayload(text, cast("TextMediaType", media_type or "text/plain"))


def _bytes(path: str, bytes_max: int) -> bytes:
    if path == "-":
        data = sys.stdin.buffer.read(bytes_max + 1)
    else:
        with open(os.path.expanduser(path), "rb") as file:
            data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise CommandError(FAILURE, f"{path}: is longer than {bytes_max} bytes",
                           "a payload by value has at most that size")
    return data
