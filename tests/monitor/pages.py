"""Read the pages of the monitor as a person does."""

import re

from tests.monitor.conftest import PAGE


def html(answer, status=200):
    assert answer.status_code == status, answer.content.decode()[:2000]
    return answer.content.decode()


def shown(client, **query):
    return html(client.get(PAGE, query))


def words(page):
    """What a person reads."""
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())
