"""Google Cloud Storage: listing, access, credentials."""

import asyncio
import json

import google.auth.credentials
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.auth.credentials import TokenState
from google.auth.exceptions import TransportError

import gcs
from common.errors import StorageError
from common.names import GsPath
from gcs import ListedObject
from storage.session import Session
from tests.harness import listing, with_objects
from tests.stand_in import Answer, StandIn


@pytest.fixture(autouse=True)
def no_cached_credentials():
    gcs.credentials.cache_clear()
    yield
    gcs.credentials.cache_clear()


@pytest.mark.parametrize(
    ("host", "address"),
    [
        *((h, "http://h:9") for h in ("h:9", "http://h:9", "http://h:9/")),
        (None, "https://storage.googleapis.com"),
    ],
)
def test_the_public_address_follows_the_emulator(monkeypatch, host, address):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", host or "")
    assert gcs.public_address("b", "a b/ü#?.jpg") == f"{address}/b/a%20b/%C3%BC%23%3F.jpg"


@pytest.mark.parametrize(
    "host",
    [
        *("ftp://x", "http://", "http://h:port", "http://h:99999", "http://h/path", "a b", "\x1b"),
        *("http://h:9?token=s3cret", "http://bob:s3cret@h:9", "bob:s3cret@h"),
    ],
)
def test_a_wrong_emulator_host_is_refused_with_the_form(monkeypatch, host):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", host)
    with pytest.raises(StorageError) as caught:
        gcs.make_client()
    assert caught.value.message.isprintable() and "s3cret" not in caught.value.message
    assert "is not an address: write it as http://HOST:PORT, or unset it" in caught.value.message


@pytest.fixture
def no_credentials(monkeypatch, tmp_path):
    """A home without Google credentials, on a machine that is none of Google's."""
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "APPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    # google-auth would ask Google where these credentials may be used.
    boundary = google.auth.credentials.CredentialsWithRegionalAccessBoundary
    monkeypatch.setattr(boundary, "_maybe_start_regional_access_boundary_refresh", lambda *_: None)


@pytest.fixture(scope="session")
def private_key():
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.fixture
def tokens(no_credentials, monkeypatch, tmp_path, private_key):
    """A token server, and a key file that points to it; tokens live for `life_s` seconds."""

    def rule(asked):
        if server.life_s is None:
            return Answer(400, b'{"error": "invalid_grant"}', {"Content-Type": "application/json"})
        number = len(server.asked)
        token = {"access_token": f"token-{number}", "expires_in": server.life_s}
        return Answer(200, json.dumps(token).encode(), {"Content-Type": "application/json"})

    with StandIn(None, rule) as server:
        server.life_s = 3600
        key = {
            "type": "service_account",
            "client_email": "robot@project.iam.gserviceaccount.com",
            "private_key": private_key,
            "private_key_id": "1",
            "token_uri": f"{server.url}/token",
        }
        path = tmp_path / "key.json"
        path.write_text(json.dumps(key))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
        yield server


DIRECTORY = object()


@pytest.mark.parametrize(
    "content", [None, DIRECTORY, "no JSON", "{}", '{"type": "service_account"}']
)
def test_a_wrong_key_file_is_named(no_credentials, monkeypatch, tmp_path, content):
    path = tmp_path / "key.json"
    if content is DIRECTORY:
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    with pytest.raises(StorageError, match=r"credentials are in .*key\.json: run `gcloud"):
        gcs.make_client()


def test_a_token_is_fetched_once_for_both_libraries(tokens, monkeypatch):
    with StandIn(None, lambda asked: Answer(200, b"{}")) as storage:
        client = gcs.make_client()
        client._connection.API_BASE_URL = storage.url
        assert list(gcs.list_pages(client, GsPath("bucket", ""), "name")) == [[]]
        assert {o.headers["authorization"][:13] for o in storage.asked} == {"Bearer token-"}
    assert b"jwt-bearer" in tokens.asked[0].body
    assert tokens_of(1) == [client._credentials.token]
    assert len(tokens.asked) == 1


def tokens_of(requests):
    """The tokens of so many requests at once."""

    async def get():
        session = Session(1)
        return await asyncio.gather(*(session.token() for _ in range(requests)))

    return asyncio.run(get())


def test_a_token_is_renewed_once_and_when_it_is_about_to_expire(tokens):
    assert set(tokens_of(20)) == {"token-1"}
    gcs.credentials().token = None
    tokens.life_s = 200  # google-auth renews 225 s before the end
    assert tokens_of(2) == ["token-2", "token-3"]


def test_renewing_a_token_survives_a_lost_network(monkeypatch, serve):
    class Credentials:
        token, token_state, renewals = "old", TokenState.INVALID, 0

        def refresh(self, request):
            self.renewals += 1
            if self.renewals < 3:
                raise TransportError("no route to host")
            self.token, self.token_state = "new", TokenState.FRESH

    credentials = Credentials()
    monkeypatch.setattr(gcs, "credentials", lambda: credentials)
    storage = serve(lambda asked: Answer(200, b"{}"))
    monkeypatch.setattr(gcs, "emulator_host", lambda: None)
    monkeypatch.setattr(gcs, "api_address", lambda: storage.url)
    assert listing("bucket") == []
    assert {asked.headers["authorization"] for asked in storage.asked} == {"Bearer new"}


def test_refused_credentials_are_one_sentence(tokens):
    tokens.life_s = None
    with pytest.raises(StorageError, match=r"Google refused the credentials; run `gcloud auth"):
        with_objects("fetch", "bucket", ListedObject("a.jpg", 1, 1, 1))
