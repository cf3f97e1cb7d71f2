"""Why a request is not answered: one code and one status for each reason, and words for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reason:
    """A kind of refusal."""

    status: int
    meaning: str
    """For the documentation."""


REASONS: dict[str, Reason] = {
    "broken_request": Reason(400, "the body is not what its type says: damaged JSON, multipart or base64"),
    "wrong_key": Reason(401, "the API key is missing or wrong"),
    "not_found": Reason(404, "there is no such address"),
    "wrong_method": Reason(405, "the address is there, but not for this method"),
    "too_slow": Reason(408, "the request did not arrive within the time limit"),
    "too_many_bytes": Reason(413, "the photo, the vocabulary file or the whole request is larger than allowed"),
    "too_many_pixels": Reason(413, "the photo has more pixels than allowed, or does not fit into memory"),
    "wrong_type": Reason(415, "neither multipart/form-data nor application/json"),
    "wrong_field": Reason(422, "a field is missing, unknown, or has a value that is not possible"),
    "wrong_photo": Reason(422, "the photo cannot be read"),
    "wrong_words": Reason(422, "the words cannot be used"),
    "too_many_words": Reason(422, "more words than allowed"),
    "busy": Reason(429, "all places are taken; Retry-After says after how many seconds to come again"),
    "own_mistake": Reason(500, "a mistake of the server; its log has more under the X-Request-ID of the answer"),
    "closing": Reason(503, "the server is being stopped and takes nothing new"),
    "too_late": Reason(504, "the answer was not ready within the time limit"),
}
"""Code -> what it means."""

CLIENT_LEFT = 499
"""The status in logs and metrics of a request whose client closed the connection: nobody is there to see it."""


class Refusal(Exception):
    """A request that is not answered. The message is one line: what is wrong with which input, and what to do."""

    def __init__(self, code: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = " ".join(message.split())
        self.retry_after = retry_after
        """Seconds."""

    @property
    def status(self) -> int:
        return REASONS[self.code].status

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer."""
        if self.code == "wrong_key":
            return {"WWW-Authenticate": "Bearer"}
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}

    def body(self) -> dict[str, Any]:
        """The answer, ready for JSON."""
        return {"error": {"code": self.code, "message": self.message}}


class ClientLeftError(Exception):
    """The client closed the connection before it had its answer."""
