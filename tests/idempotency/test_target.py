"""The fingerprint has the host, and its version: neither host nor deployment mixes up requests."""

import pytest
from django.http import HttpResponse
from django.test import RequestFactory

from django_dblock import IdempotencyKey, idempotent
from django_dblock.idempotency import fingerprint
from tests.app.idempotent_views import add_one, client
from tests.idempotency.calling import effects, problem
from tests.idempotency.leasing import Died, expire, unable_to_give_up

MODES = pytest.mark.parametrize("mode", ["atomic", "lease"])


def post(view, host="acme.example", *, secure=False, **more):
    headers = {"Idempotency-Key": "k", "Host": host}
    return view(RequestFactory().post("/pay/", secure=secure, headers=headers, **more))


def paying(**options):
    @idempotent(scope=client, **options)
    def pay(request):
        return HttpResponse(f"payment {add_one()}")

    return pay


@MODES
@pytest.mark.django_db(transaction=True)
def test_same_key_on_another_host_is_another_request(mode):
    pay = paying(mode=mode)
    assert post(pay).content == b"payment 1"
    assert problem(post(pay, "globex.example")) == (422, "key_reused")
    assert post(pay).content == b"payment 1"
    assert effects() == 1


@pytest.mark.parametrize(
    ("one", "other", "secure"),
    [
        ("acme.example", "ACME.example", False),
        ("acme.example", "acme.example:80", False),
        ("acme.example", "acme.example:443", True),
        ("[::1]", "[::1]:80", False),
    ],
)
def test_equivalent_hosts_are_the_same_request(one, other, secure):
    """RFC 9110, 4.2.3: the host ignores case, and the default port may be left out."""
    sent = [
        RequestFactory().post("/pay/", secure=secure, headers={"Host": host})
        for host in (one, other)
    ]
    assert len(set(map(fingerprint.of_request, sent))) == 1


@pytest.mark.parametrize("other", ["acme.example:8080", "acme.example:443", "www.acme.example"])
def test_other_hosts_are_other_requests(other):
    sent = [
        RequestFactory().post("/pay/", headers={"Host": host}) for host in ("acme.example", other)
    ]
    assert len(set(map(fingerprint.of_request, sent))) == 2


def test_host_behind_a_proxy_is_the_forwarded_one(settings):
    settings.USE_X_FORWARDED_HOST = True
    sent = [
        RequestFactory().post(
            "/pay/", headers={"Host": "10.0.0.7", "X-Forwarded-Host": f"{tenant}.example"}
        )
        for tenant in ("acme", "globex")
    ]
    assert len(set(map(fingerprint.of_request, sent))) == 2


def test_disallowed_host_is_left_to_django(settings):
    settings.ALLOWED_HOSTS = ["acme.example"]
    request = RequestFactory().post("/pay/", headers={"Host": "evil.example"})
    assert fingerprint.of_request(request)


@MODES
@pytest.mark.parametrize("stored", [fingerprint.VERSION - 1, fingerprint.VERSION + 1])
@pytest.mark.django_db(transaction=True)
def test_retry_across_a_deployment_gets_the_first_response(mode, stored):
    """The other release, older or newer, has stored a fingerprint that can't be compared."""
    pay = paying(mode=mode)
    post(pay)
    IdempotencyKey.objects.update(fingerprint_version=stored, fingerprint=bytes(32))
    assert post(pay).content == b"payment 1"
    assert effects() == 1


@pytest.mark.django_db(transaction=True)
def test_request_abandoned_by_an_older_release_is_taken_over():
    def die(request):
        raise Died

    dying = idempotent(scope=client, mode="lease")(die)
    with unable_to_give_up(), pytest.raises(Died):
        post(dying)
    expire()
    IdempotencyKey.objects.update(fingerprint_version=1, fingerprint=bytes(32))
    pay = paying(mode="lease")
    assert post(pay).content == b"payment 1"
    assert IdempotencyKey.objects.get().fingerprint_version == fingerprint.VERSION
