"""One short message to a webhook that understands Slack's `{"text": …}`. A dead webhook costs a moment."""

from __future__ import annotations

import urllib.error
import urllib.request
from http.client import HTTPException

import orjson
from pydantic import SecretStr

TIMEOUT_S = 5.0
_CHARACTERS = 1000


def post(url: SecretStr, text: str) -> str | None:
    """Send a message, once: whoever watches is told of the next thing anyway.

    Args:
        url: Where to; it is a secret, for whoever knows it can post there.
        text: What to say; cut after a thousand characters.

    Returns:
        Why it was not taken, without the URL; None if it was.
    """
    request = urllib.request.Request(  # noqa: S310 - a setting, which begins with http
        url.get_secret_value(),
        data=orjson.dumps({"text": text[:_CHARACTERS]}),
        headers={"Content-Type": "application/json"},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):  # noqa: S310
            return None
    except urllib.error.HTTPError as error:
        error.close()
        return f"the webhook answered {error.code}"
    except (OSError, HTTPException, ValueError) as error:
        # The text of an error may hold the URL; its kind and the system's own words do not.
        reason = getattr(error, "reason", error)
        return f"the webhook did not answer ({getattr(reason, 'strerror', None) or type(reason).__name__})"
