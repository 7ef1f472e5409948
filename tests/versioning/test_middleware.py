"""ConflictMiddleware: a conflict is a response in the format and language of the client."""

import logging
import re

import pytest
from asgiref.sync import async_to_sync
from django.db import connection
from django.template.loader import render_to_string
from django.test import AsyncClient, Client, modify_settings
from django.utils import translation

from django_dblock import DblockError
from tests.app.models import Counter
from tests.versioning.answers import STATUSES

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _middleware():
    path = "django_dblock.middleware.ConflictMiddleware"
    with modify_settings(MIDDLEWARE={"append": path}):
        yield


def post(name, **headers):
    return Client().post(f"/fails/{name}/", headers=headers)


def post_async(name, path="fails-async"):
    async def run():
        return await AsyncClient().post(f"/{path}/{name}/")

    return async_to_sync(run)()


@pytest.mark.parametrize(("name", "status", "code", "retry_after"), STATUSES)
@pytest.mark.parametrize("send", [post, post_async, lambda name: post_async(name, "fails")])
def test_each_error_has_its_status(name, status, code, retry_after, send):
    response = send(name)
    assert response.status_code == status
    assert response.get("Retry-After") == retry_after
    assert response["Content-Type"] == "application/problem+json"
    assert response["Cache-Control"] == "no-store"
    assert (response.json()["status"], response.json()["code"]) == (status, code)


@pytest.mark.parametrize("name", ["changed", "deleted", "several"])
def test_with_a_precondition_a_stale_row_is_412(name):
    assert post(name, **{"If-Match": '"1-0123456789abcdef"'}).status_code == 412
    assert post(name, **{"If-None-Match": "*"}).status_code == 412
    assert post(name, **{"If-None-Match": '"a"'}).status_code == 409


@pytest.mark.parametrize("status", [409, 423, 503])
def test_locked_status_can_be_set(status, settings):
    settings.DBLOCK_LOCKED_STATUS = status
    assert post("timeout").status_code == status


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"),
        ("text/html", "text/html"),
        ("*/*", "application/problem+json"),
        ("application/json", "application/problem+json"),
        ("application/json, text/html", "application/problem+json"),
        ("text/html;q=0.1, application/problem+json", "application/problem+json"),
        ("image/png", "application/problem+json"),
        ("", "application/problem+json"),
    ],
)
def test_response_format_follows_accept(accept, form):
    response = post("timeout", Accept=accept)
    assert response["Content-Type"].split(";")[0] == form
    assert response["Vary"] == "Accept"


def test_page_passes_a_strict_csp():
    page = post("changed", Accept="text/html").content.decode()
    assert '<html lang="en-us" dir="ltr">' in page
    assert "<h1>Conflict</h1>" in page
    assert not re.search(r"<script|<style|<link|<img|\son\w+=|\sstyle=|src=|href=", page)


def test_page_has_language_and_direction():
    with translation.override("ar"):
        assert 'lang="ar" dir="rtl"' in post("changed", Accept="text/html").content.decode()
    with translation.override(None):
        assert '<html dir="ltr">' in post("changed", Accept="text/html").content.decode()


def test_project_can_replace_the_page(settings):
    page = "{{ problem.status }} {{ problem.code }}"
    settings.TEMPLATES = [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {
                "loaders": [
                    ("django.template.loaders.locmem.Loader", {"django_dblock/problem.html": page})
                ]
            },
        }
    ]
    assert post("timeout", Accept="text/html").content == b"423 locked"


def test_project_without_templates_gets_json(settings):
    settings.TEMPLATES = []
    response = post("timeout", Accept="text/html")
    assert response["Content-Type"] == "application/problem+json"


SITE = """<!doctype html><title>{% block title %}Our shop{% endblock %}</title>
<nav>Our shop</nav>{% block content %}{% endblock %}"""


@pytest.mark.parametrize("page", ["problem", "conflict"])
def test_pages_extend_the_sites_base_template(settings, page):
    """One template of one line is enough for both."""
    ours = {"base.html": SITE, "django_dblock/base.html": '{% extends "base.html" %}'}
    settings.TEMPLATES = [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {
                "loaders": [
                    ("django.template.loaders.locmem.Loader", ours),
                    "django.template.loaders.app_directories.Loader",
                ]
            },
        }
    ]
    if page == "problem":
        text = post("timeout", Accept="text/html").content.decode()
        assert "<title>Locked</title>" in text
        assert "Try again." in text
    else:
        context = {"title": "Changed", "sent": [("Name", "mine")], "message": "Look again."}
        text = render_to_string("django_dblock/conflict.html", context)
        assert "<title>Changed</title>" in text
        assert "<dd>mine</dd>" in text
    assert "<nav>Our shop</nav>" in text
    assert text.count("<title>") == 1


@pytest.mark.parametrize("accept", ["text/html", "application/json"])
@pytest.mark.parametrize("name", [name for name, *_ in STATUSES])
def test_response_shows_neither_key_nor_row(name, accept):
    content = post(name, Accept=accept).content.decode()
    for secret in ("secret", "4711", "Product", "default", "version"):
        assert secret not in content


def test_log_message_has_no_values(caplog):
    with caplog.at_level(logging.INFO, "django_dblock"):
        Client().post("/fails/timeout/?token=secret")
    [record] = [each for each in caplog.records if each.name == "django_dblock.middleware"]
    assert record.getMessage() == "POST /fails/timeout/ responded with 423: LockTimeout"
    assert record.levelno == logging.INFO
    assert (record.status_code, record.request.path) == (423, "/fails/timeout/")
    assert isinstance(record.error, DblockError)


def test_log_message_is_one_line(rf, caplog):
    from django_dblock.middleware import ConflictMiddleware
    from tests.app.http_views import trouble

    with caplog.at_level(logging.INFO, "django_dblock"):
        request = rf.get("/a%0Ab/")
        ConflictMiddleware(lambda request: None).process_exception(request, trouble("timeout"))
    assert "\n" not in caplog.messages[0]


@pytest.mark.parametrize("name", ["other", "cancelled"])
def test_other_errors_propagate(name):
    with pytest.raises(Exception, match=r"secret|the server said so"):
        post(name)
    with pytest.raises(Exception, match=r"secret|the server said so"):
        post_async(name)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("path", ["fails", "fails-conditionally"])
def test_atomic_requests_is_rolled_back(path):
    """In the middleware by Django, in the decorator's own answers by the decorator."""
    connection.settings_dict["ATOMIC_REQUESTS"] = True
    try:
        for name, *_ in STATUSES:
            assert Client().post(f"/{path}/{name}/").status_code in {409, 423}
    finally:
        connection.settings_dict["ATOMIC_REQUESTS"] = False
    assert not Counter.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_negative_twin_without_a_transaction_writes_stay(transactional_db):
    """The negative twin of the test above."""
    Client().post("/fails/changed/")
    assert Counter.objects.exists()
