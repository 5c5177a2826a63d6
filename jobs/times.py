"""Times as people write them."""

from datetime import UTC, datetime

from infra.errors import BadSetting


def epoch_ms(flag: str, text: str | None) -> int | None:
    """Milliseconds since the epoch of an ISO 8601 time. Raises BadSetting."""
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadSetting(
            f"{flag} {text!r} is not an ISO 8601 time", remedy="e.g. 2026-11-22T18:30"
        ) from error
    return int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)
