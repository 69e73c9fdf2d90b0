"""A store on Google Cloud Storage: one bucket and a prefix in it.

Belongs here: the requests, what their answers mean, and how long one may take. A writer and a reader cause
objects.insert, objects.get and objects.list and nothing else, so those permissions are all that they need;
the bucket itself is never looked at. Does not belong here: when to try a write again, which is the writer's
own decision (`consumer/sink.py` counts, waits, and gives up when the process ends). Reads are harmless, so
they are tried again here, for some seconds.

Credentials are the machine's own (Application Default Credentials). With `STORAGE_EMULATOR_HOST` set, it is
that server which is asked, without credentials.

Import this module late: Google's library takes its time to load.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import google.auth
from crc32c import crc32c
from google.api_core import exceptions as answers
from google.auth.credentials import AnonymousCredentials, Credentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.auth.transport.requests import AuthorizedSession
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY
from requests import RequestException
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError

from ingest_services.errors import UserError
from ingest_services.lake.store import ObjectExists, ObjectMissing, require_path

# To connect, and again for each silence of the server. A data object is some 100 kB.
TIMEOUT_S = 10.0
AGAIN_FOR_S = 8.0
# 16 uploads at once, and a commit or a claim of every partition; more than this many connections work, too,
# but are not kept.
CONNECTIONS = 64

# The right that Google misses, by its name, when an upload would replace an object.
REPLACING = "storage.objects.delete"
SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
# Narrower than what Google allows: these characters mean themselves in every library's URLs.
_URL = re.compile(r"gs://(?P<bucket>[a-z0-9][a-z0-9._-]{1,220}[a-z0-9])(?:/(?P<prefix>[A-Za-z0-9._=/-]*))?")
_FAILURES = (
    answers.GoogleAPIError,
    GoogleAuthError,
    InvalidResponse,
    DataCorruption,
    RequestException,
    HTTPError,
    ConnectionError,
)


class GcsStore:
    """A store in a bucket; safe to use from many threads.

    Args:
        client: Google's client.
        session: What it sends its requests with.
        bucket: Name of the bucket.
        prefix: What the store's objects have before their path, without a slash at its end; may be empty.
    """

    def __init__(self, client: storage.Client, session: AuthorizedSession, bucket: str, prefix: str) -> None:
        self.url = f"gs://{bucket}/{prefix}".rstrip("/")
        self._client = client
        self._session = session
        self._bucket = client.bucket(bucket)  # asks the service nothing
        self._root = f"{prefix}/" if prefix else ""
        self._again = DEFAULT_RETRY.with_delay(initial=0.1, maximum=2.0).with_timeout(AGAIN_FOR_S)

    def create(self, path: str, data: bytes) -> None:
        """See `ObjectStore.create`."""
        try:
            self._upload(path, data, {"ifGenerationMatch": "0"})
        except answers.PreconditionFailed as error:
            raise ObjectExists(path) from error
        except PermissionError as error:
            # A writer may not replace. Google does not say which it looks at first, that or the precondition.
            if REPLACING in str(error) and next(self.list(path), None) == path:
                raise ObjectExists(path) from error
            raise

    def get(self, path: str) -> bytes:
        """See `ObjectStore.get`."""
        with self._failing(path):
            try:
                content: bytes = self._locate(path).download_as_bytes(
                    raw_download=True, checksum="crc32c", timeout=TIMEOUT_S, retry=self._again
                )
            except answers.NotFound as error:
                raise ObjectMissing(path) from error
        return content

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        """See `ObjectStore.list`; one request a thousand objects."""
        # The service sorts by UTF-8 bytes, which is the order of Python's strings.
        with self._failing(prefix):
            found = self._client.list_blobs(
                self._bucket,
                prefix=self._root + prefix,
                start_offset=self._root + start_after,
                fields="items(name),nextPageToken",
                timeout=TIMEOUT_S,
                retry=self._again,
            )
            for blob in found:
                path = blob.name.removeprefix(self._root)
                # The offset itself is listed, too.
                if path != start_after:
                    yield path

    def replace(self, path: str, data: bytes) -> None:
        """See `ObjectStore.replace`. Google takes one a second of one name; a claim is made once a minute."""
        self._upload(path, data, {})

    def delete(self, path: str) -> None:
        """See `DeletableStore.delete`."""
        with self._failing(path), suppress(answers.NotFound):
            self._locate(path).delete(timeout=TIMEOUT_S, retry=self._again)

    def _upload(self, path: str, data: bytes, condition: Mapping[str, str]) -> None:
        # One request, however large. The library takes two for more than 8 MiB, and deletes the object if a
        # checksum does not agree, which a writer must not be able to do.
        checksum = base64.b64encode(crc32c(data).to_bytes(4, "big")).decode()
        blob = self._locate(path)
        # The service refuses what did not arrive as it was sent.
        metadata = json.dumps({"name": blob.name, "crc32c": checksum}).encode()
        boundary = secrets.token_hex(16).encode()
        body = b"".join(
            (
                b"--%s\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n" % boundary,
                metadata,
                b"\r\n--%s\r\nContent-Type: application/octet-stream\r\n\r\n" % boundary,
                data,
                b"\r\n--%s--\r\n" % boundary,
            )
        )
        with self._failing(path):
            response = self._session.post(
                f"{self._client.api_endpoint}/upload/storage/v1{self._bucket.path}/o",
                params={"uploadType": "multipart", "fields": "crc32c", **condition},
                data=body,
                headers={"Content-Type": f"multipart/related; boundary={boundary.decode()}"},
                timeout=TIMEOUT_S,
            )
            if not response.ok:
                raise answers.from_http_response(response)  # type: ignore[no-untyped-call]
            stored = response.json().get("crc32c")
        if stored != checksum:
            raise OSError(f"{self.url}/{path}: stored with crc32c {stored}, sent was {checksum}")

    def _locate(self, path: str) -> storage.Blob:
        require_path(path)
        return self._bucket.blob(self._root + path)

    @contextmanager
    def _failing(self, path: str) -> Iterator[None]:
        """Turn what may go wrong on the way into OSError, and a refusal into PermissionError."""
        try:
            yield
        except answers.PreconditionFailed:
            raise
        except (answers.Unauthorized, answers.Forbidden) as error:
            raise PermissionError(f"{self.url}/{path}: {_line(error)}") from error
        except _FAILURES as error:
            raise OSError(f"{self.url}/{path}: {_line(error)}") from error


def create_bucket(url: str) -> bool:
    """Create the bucket that a URL names, unless it is there: private, and with uniform access.

    Args:
        url: `gs://bucket` or `gs://bucket/prefix`.

    Returns:
        Whether it was created.

    Raises:
        UserError: If the URL is none, this account may not use the bucket, or the service refuses.
    """
    name, _ = _split(url)
    client, _ = _connect(url)
    bucket = client.bucket(name)
    # Looked for first: who may use a bucket need not be one who may create any, nor know a project.
    try:
        next(iter(client.list_blobs(bucket, max_results=1, timeout=TIMEOUT_S)), None)
    except answers.NotFound:
        pass
    except answers.Forbidden as error:
        raise UserError(
            f"{url}: this account may not look into the bucket {name} ({_line(error)}); give it the "
            "roles of docs/commit-chain.md, or, if the name is somebody else's (all of Google's customers "
            "share them), name another"
        ) from error
    except _FAILURES as error:
        raise UserError(f"{url}: the bucket {name} cannot be looked into: {_line(error)}") from error
    else:
        return False
    bucket.iam_configuration.uniform_bucket_level_access_enabled = True
    bucket.iam_configuration.public_access_prevention = "enforced"
    try:
        client.create_bucket(bucket, timeout=TIMEOUT_S)
    except answers.Conflict:  # somebody was quicker
        return False
    except _FAILURES as error:
        raise UserError(
            f"{url}: there is no bucket {name}, and it cannot be created ({_line(error)}); "
            f"create it: gcloud storage buckets create gs://{name} --location=…"
        ) from error
    return True


def open_gcs(url: str) -> GcsStore:
    """Open the store at `gs://bucket/prefix`, and see that its objects can be listed.

    Raises:
        UserError: If the URL is none, there are no credentials, no bucket or no permission, or the service
            cannot be reached.
    """
    bucket, prefix = _split(url)
    client, session = _connect(url)
    store = GcsStore(client, session, bucket, prefix)
    try:
        next(store.list("lake.json"), None)
    except OSError as error:
        cause = error.__cause__
        if isinstance(cause, answers.NotFound):
            problem = f"there is no bucket {bucket}; create it, or name another"
        elif isinstance(cause, answers.Forbidden | answers.Unauthorized):
            problem = (
                f"this account may not list the bucket's objects ({_line(cause)}); "
                "docs/commit-chain.md says which roles it needs"
            )
        elif isinstance(cause, GoogleAuthError):
            problem = f"Google's credentials cannot be used: {_line(cause)}"
        else:
            problem = f"the store cannot be reached: {_line(cause or error)}"
        raise UserError(f"RAW_URL={url}: {problem}") from error
    return store


def _connect(url: str) -> tuple[storage.Client, AuthorizedSession]:
    # The library would look at the bucket itself in the background, at every answer "not found" again.
    os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
    try:
        if os.environ.get("STORAGE_EMULATOR_HOST"):
            credentials: Credentials = AnonymousCredentials()  # type: ignore[no-untyped-call]
            project: str | None = "local"
        else:
            credentials, project = google.auth.default(scopes=[SCOPE])
        session = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
        for scheme in ("https://", "http://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=CONNECTIONS))
        # Only the creation of a bucket needs a project.
        return storage.Client(project=project, credentials=credentials, _http=session), session
    except DefaultCredentialsError as error:
        raise UserError(
            f"RAW_URL={url}: no Google credentials were found ({_line(error)}); attach a service account "
            "to the machine, or run: gcloud auth application-default login"
        ) from error
    except (GoogleAuthError, ValueError) as error:
        raise UserError(f"RAW_URL={url}: Google's credentials cannot be used: {_line(error)}") from error


def _split(url: str) -> tuple[str, str]:
    parts = _URL.fullmatch(url)
    if parts is not None:
        prefix = (parts["prefix"] or "").rstrip("/")
        try:
            require_path(prefix or "root")
        except ValueError:
            pass
        else:
            return parts["bucket"], prefix
    raise UserError(
        f"RAW_URL={url}: must be gs://bucket or gs://bucket/prefix; "
        "a prefix is made of letters, digits and . _ = - /, and no part of it begins with a dot"
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
