"""Stored responses: what is stored and replayed."""

import pytest
from cryptography import fernet
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpResponse

from django_dblock.exceptions import UnstorableResponse
from django_dblock.idempotency.stored_response import StoredResponse
from tests.helpers.ciphers import Turned

CIPHER = Turned()


def kept(answer, *, store_body=True):
    found = answer.parameters(store_body=store_body)
    body = found["body"]
    return found, (found["status_code"], found["headers"], body, found["body_kind"])


def test_every_byte_round_trips():
    answer = StoredResponse(201, {"Location": "/ü/"}, bytes(range(256)))
    assert StoredResponse.read(*kept(answer)[1]) == answer


def test_encrypted_body_round_trips(settings):
    settings.DBLOCK_IDEMPOTENCY_CIPHER = f"{__name__}.CIPHER"
    answer = StoredResponse(201, {}, b"secret")
    found, stored = kept(answer)
    assert found["body_kind"] == "encrypted"
    assert found["body"] == b"~terces"
    assert StoredResponse.read(*stored) == answer


def test_fernet_keys_can_rotate(settings):
    old, new = (fernet.Fernet(fernet.Fernet.generate_key()) for _ in range(2))
    settings.DBLOCK_IDEMPOTENCY_CIPHER = fernet.MultiFernet([old])
    answer = StoredResponse(201, {}, b"secret")
    found, stored = kept(answer)
    assert b"secret" not in found["body"]
    settings.DBLOCK_IDEMPOTENCY_CIPHER = fernet.MultiFernet([new, old])
    assert StoredResponse.read(*stored) == answer


def test_missing_cipher_error_names_the_setting(settings):
    settings.DBLOCK_IDEMPOTENCY_CIPHER = CIPHER
    _, stored = kept(StoredResponse(201, {}, b"secret"))
    settings.DBLOCK_IDEMPOTENCY_CIPHER = None
    with pytest.raises(ImproperlyConfigured, match="DBLOCK_IDEMPOTENCY_CIPHER is not set"):
        StoredResponse.read(*stored)


def test_dropped_body_is_not_stored(settings):
    settings.DBLOCK_IDEMPOTENCY_CIPHER = CIPHER
    settings.DBLOCK_IDEMPOTENCY_MAX_BODY = 0
    found, stored = kept(StoredResponse(201, {}, b"secret"), store_body=False)
    assert (found["body"], found["body_kind"]) == (b"", "dropped")
    assert StoredResponse.read(*stored) == StoredResponse(201, {}, b"", dropped=True)


def test_body_of_max_length_is_stored(settings):
    settings.DBLOCK_IDEMPOTENCY_MAX_BODY = 10
    kept(StoredResponse(200, {}, b"x" * 10))
    with pytest.raises(UnstorableResponse, match=r"11 bytes .* allows 10"):
        kept(StoredResponse(200, {}, b"x" * 11))


@pytest.mark.parametrize("character", ["\0", "\x07", "\n", "\r", "\x7f", "\ud800"], ids=ascii)
def test_unsendable_header_is_refused(character):
    with pytest.raises(UnstorableResponse, match="header Link has a character"):
        kept(StoredResponse(200, {"Link": f"a{character}b"}, b""))


@pytest.mark.parametrize("value", ["a\tb", "a\xa0b", "caf\xe9", "\x85", ""], ids=ascii)
def test_valid_header_is_stored_unchanged(value):
    """RFC 9110, 5.5: a tab, and bytes above ASCII, which Django takes for latin-1."""
    answer = StoredResponse(200, {"Link": value}, b"")
    assert StoredResponse.read(*kept(answer)[1]) == answer
    assert HttpResponse(headers=answer.headers).headers["Link"] == value


@pytest.mark.parametrize(
    ("status", "headers", "kind"),
    [
        ("200", '{"Set-Cookie": "session=stolen"}', "plain"),
        ("200", '{"set-cookie": "session=stolen"}', "plain"),
        ("200", '{"Location": "/\\r\\nSet-Cookie: session=stolen"}', "plain"),
        ("200", '{"Location\\r\\nSet-Cookie": "session=stolen"}', "plain"),
        ("200", '{"Location": ["/"]}', "plain"),
        ("200", '["Location"]', "plain"),
        ("200", "{}", "gob"),
        ("99", "{}", "plain"),
        ("600", "{}", "plain"),
    ],
)
def test_malformed_row_is_refused(status, headers, kind):
    with pytest.raises(ValueError, match=r"not headers that are ever stored|status \d+"):
        StoredResponse.read(status, headers, b"", kind)
