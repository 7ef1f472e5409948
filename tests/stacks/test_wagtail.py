"""Wagtail: pages and snippets with a version are published, reverted and deleted."""


def test_revisions_are_published_and_compared(run_program):
    found = run_program("wagtail_site", needs=["wagtail"])
    assert found == {
        "checks": [],
        "in_revision": False,
        "published": "two",
        "reverted": "two",
        "specific": "Article",
        "snippet": "theirs",
        "stale": [True, True],
        "deleted": True,
    }
