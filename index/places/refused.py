"""What an object store answers where it refuses or fails, as a sentence: what is wrong, where, and what to do.

A failure of obstore is one text: the request with its URL, the status, and the body of the answer. What a store means stands in
the body. The URL and the key are the user's own words, and say nothing of the failure.
"""

from __future__ import annotations

import errno
import re
from typing import NamedTuple

from index.errors import ClearanceError, InputError, RunStopped
from index.places.disk import CONTINUE

_NO_BUCKET = re.compile("NoSuchBucket|ContainerNotFound|bucket does not exist")
_KEYLESS = re.compile(r"credential|169\.254\.|metadata\.google|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken", re.I)
_AWAY = re.compile("error sending request|connect|dns|timed out|timeout|reset|broken pipe", re.I)
_ARCHIVED = ("InvalidObjectState", "BlobArchived")
_GONE = "the object store does not answer"
_REGION = re.compile("Received redirect|PermanentRedirect|IllegalLocationConstraint")
# Where the user's words stand in a text of obstore. The addresses of a machine's own credentials (link-local) are not theirs.
_OWN = re.compile(
    r"""https?://(?!169\.254\.|metadata\.google)\S+ | (?:for\ path|at\ location)\ .*?(?=:\ |\ not\ found|\ already\ exists)
    | \bpath:\ "(?:[^"\\]|\\.)*" | <(Key|Resource|BucketName|Endpoint)>.*?</\1>""",
    re.X | re.S,
)


class Answer(NamedTuple):
    """What a failure says.

    Attributes:
        status: of HTTP; 0: no answer came.
        code, message: of the body; empty where it has none.
        text: all of it, without the user's own words. more: what the library adds of its causes, without them too.
        line: all of it in one line, without what may hold a secret.
    """

    status: int
    code: str
    message: str
    text: str
    more: str
    line: str

    @classmethod
    def of(cls, error: Exception) -> Answer:
        """Read the text of an exception of obstore."""
        text, _, more = str(error).partition("Debug source")
        status = re.search(r"status code: (\d{3})", text)
        code, message = (re.search(rf"<{name}>(.*?)</{name}>", text, re.S) for name in ("Code", "Message"))
        return cls(
            status=int(status[1]) if status else 0,
            code=one_line(code[1]) if code else "",
            message=one_line(message[1]) if message else "",
            text=_OWN.sub("", text),
            more=_OWN.sub("", more),
            line=one_line(text),
        )

    @property
    def said(self) -> str:
        """Code and message of the store, else the whole line."""
        return f"{self.code}: {self.message}".removesuffix(": ") if self.code else self.line

    @property
    def no_bucket(self) -> bool:
        return bool(_NO_BUCKET.search(self.text))

    @property
    def away(self) -> bool:
        """Whether the store may answer in a moment. Two of the 5xx stay: it cannot do that, and it is full."""
        if self.status:
            return self.status in (408, 429) or (self.status >= 500 and self.status not in (501, 507))
        return bool(_AWAY.search(self.text + self.more)) and not _REGION.search(self.text)


def sentence(error: Exception, root: str, key: str, *, writing: bool) -> ClearanceError:
    """The sentence for a request that failed.

    Args:
        error: of obstore. root: scheme and bucket. key: of the object, or of the folder that was listed.
        writing: whether it was to change something.

    Returns:
        :class:`index.errors.RunStopped` for a write, :class:`index.errors.InputError` for a read. Where it may be over in a
        moment its cause is an OSError that says so; the library's own may hold a secret.
    """
    found = Answer.of(error)
    what, fix = _words(found, error, root, then=f", {CONTINUE}" if writing else ", then try again")
    where = root if found.no_bucket else f"{root}/{key}".rstrip("/")
    made: ClearanceError = (RunStopped if writing else InputError)(what, where=where, fix=fix)
    if what == _GONE:
        made.__cause__ = TimeoutError(errno.ETIMEDOUT, "away")
    elif found.status == 409 and found.code not in _ARCHIVED:
        made.__cause__ = BlockingIOError(errno.EAGAIN, "in conflict")
    return made


def _words(found: Answer, error: Exception, root: str, *, then: str) -> tuple[str, str]:
    from obstore import exceptions as known

    said = f" ({found.said})" if found.code else ""
    if found.no_bucket or isinstance(error, known.NotFoundError | FileNotFoundError):
        return "there is no such bucket", "Make it, or check its name and the endpoint"
    if isinstance(error, known.NotSupportedError | NotImplementedError):
        return "this kind of place cannot be written to", "Name a place such as s3://BUCKET/FOLDER"
    if found.away:
        return _GONE, f"Check the network and the endpoint in the environment{then}"
    malformed = found.code == "AuthorizationHeaderMalformed" and "region" in found.message
    if root.startswith("s3") and (malformed or found.status == 301 or _REGION.search(found.text)):
        fix = f"Set AWS_REGION to the region of the bucket, or AWS_ENDPOINT_URL to its server{then}"
        return f"the bucket is in another region{said}", fix
    if found.code == "RequestTimeTooSkewed":
        return f"the clock of this machine is wrong{said}", f"Set the clock{then}"
    if found.code in _ARCHIVED:
        return f"the object is archived{said}", f"Restore it on the object store to a class that can be read{then}"
    if isinstance(error, known.UnauthenticatedError) or _KEYLESS.search(found.text):
        return "there are no credentials that the object store accepts", _credentials(root)
    if isinstance(error, known.PermissionDeniedError) or found.status == 403:
        fix = "Give these credentials the right to list, read, write and delete there, or name another place"
        return f"the object store denies access{said}", fix
    if found.status == 400 and not found.code:  # to a question for an object's head a store answers without a word
        return f"the object store failed ({found.line})", f"Check the region and the credentials in the environment{then}"
    return f"the object store failed ({found.said})", f"Look at the object store{then}"


def _credentials(root: str) -> str:
    names = {
        "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION",
        "gs": "GOOGLE_APPLICATION_CREDENTIALS",
        "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    }
    return f"Set {names.get(root.partition(':')[0], 'the credentials')} in the environment"


def one_line(text: str) -> str:
    """An error of a library in one line, without what may hold a secret."""
    line = re.sub(r"\s+", " ", text.partition("Debug source")[0]).strip()
    line = re.sub(r"//[^/@\s]*@", "//", re.sub(r"(?<!<)\?[^\s\"')]*", "", line))
    return line[:300]
