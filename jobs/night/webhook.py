"""Telling a webhook of a night. Its URL is a secret as a whole: such URLs often carry their token."""

from typing import Any

from pydantic import SecretStr

from index.night_summary import headline

SECONDS = 10.0


def post(url: SecretStr, summary: dict[str, Any], page: str) -> str:
    """POST a summary as JSON, `text` being one line for people; return what came of it.

    Never raises: a night does not fail because nobody could be told. The URL is in no message.
    """
    import httpx2

    body = {"text": f"{headline(summary)}\n{page}", "page": page, "summary": summary}
    try:
        answer = httpx2.post(url.get_secret_value(), json=body, timeout=SECONDS, follow_redirects=False)
    except Exception as error:  # whatever it is, even a URL that is none
        return f"not delivered ({type(error).__name__})"
    return "delivered" if answer.is_success else f"not delivered (status {answer.status_code})"
