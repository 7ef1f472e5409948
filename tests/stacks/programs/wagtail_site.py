"""Wagtail: revisions of a page and of a snippet with a version are published, and compared."""

from tests.stacks import program

program.setup(
    "wagtail.users",
    "wagtail.images",
    "wagtail.documents",
    "wagtail.search",
    "wagtail.admin",
    "wagtail",
    "modelcluster",
    "taggit",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.admin",
    "tests.stacks.pages",
    WAGTAIL_SITE_NAME="stacks",
    WAGTAILADMIN_BASE_URL="http://localhost",
    ROOT_URLCONF="tests.stacks.pages.urls",
    STATIC_URL="/static/",
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
)

from django.core.checks import run_checks  # noqa: E402
from wagtail.models import Page, Revision  # noqa: E402

from django_dblock import StaleObject  # noqa: E402
from tests.stacks.pages.models import Advert, Article  # noqa: E402


def stale(write):
    """Whether it ends with a conflict."""
    try:
        write()
    except StaleObject:
        return True
    return False


root = Page.objects.get(depth=1)
page = root.add_child(instance=Article(title="First", slug="first", body="one"))
draft = Article.objects.get(pk=page.pk)
draft.body = "two"
first = draft.save_revision()
Article.objects.filter(pk=page.pk).update(body="meanwhile")
seen_before = stale(first.publish)  # the revision still holds the page as it was read for it
first = Revision.objects.get(pk=first.pk)
first.publish()
published = Article.objects.get(pk=page.pk).body
again = Article.objects.get(pk=page.pk)
again.body = "three"
again.save_revision().publish()
Revision.objects.get(pk=first.pk).publish()  # back to the older revision
reverted = Article.objects.get(pk=page.pk)

advert = Advert.objects.create(text="old")
advert.text = "new"
revision = advert.save_revision()
revision.publish()
made = Advert.objects.get(pk=advert.pk).latest_revision.as_object()
Advert.objects.filter(pk=advert.pk).update(text="theirs")

program.report(
    checks=[each.id for each in run_checks() if each.id.startswith("dblock.E02")],
    in_revision="version" in first.content,
    published=published,
    reverted=reverted.body,
    specific=type(Page.objects.get(pk=page.pk).specific).__name__,
    snippet=Advert.objects.get(pk=advert.pk).text,
    stale=[seen_before, stale(made.save)],
    deleted=Article.objects.get(pk=page.pk).delete()[0] > 0,
)
