"""Admin themes, the project's base template, and nested inlines."""

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.http import HttpRequest
from django.template import engines
from django.test import Client, RequestFactory

from django_dblock.versioning.web import admin_forms
from django_dblock.versioning.web.admin_forms import AdminFormMixin, versioned_inline
from tests.app.models import Box, Product, Shelf, Tag
from tests.app.versioned_site import ShelfAdmin
from tests.versioning.pages import Page

pytestmark = pytest.mark.django_db

LIST = "/admin/app/shelf/"


@pytest.fixture
def browser():
    client = Client()
    client.force_login(User.objects.create_superuser("mine"))
    return client


@pytest.fixture
def shelf(settings, tmp_path):
    settings.MEDIA_ROOT = tmp_path
    shelf = Shelf.objects.create(name="one")
    Box.objects.create(shelf=shelf, label="red", items=1)
    return shelf


def token(page, name="version_token"):
    [value] = [value for field, value in page.fields if field == name]
    return value


# Tokens are renewed only for conflicts that were rendered.


def test_token_is_renewed_where_the_conflict_is_shown(browser, shelf):
    url = f"{LIST}{shelf.pk}/change/"
    page = Page(browser.get(url))
    Shelf.objects.update(name="theirs")
    again = Page(browser.post(url, page.sent(name="mine")))
    assert "dblock-conflict-fields" in again.text
    assert token(again) != token(page)
    assert browser.post(url, again.sent(name="mine")).status_code == 302
    assert Shelf.objects.get().name == "mine"


def test_token_is_kept_where_a_theme_does_not_show_the_conflict(browser, shelf, monkeypatch):
    monkeypatch.setattr(ShelfAdmin, "change_form_template", "app/bare_change_form.html")
    url = f"{LIST}{shelf.pk}/change/"
    page = Page(browser.get(url))
    Shelf.objects.update(name="theirs")
    again = page
    for _ in range(2):
        response = browser.post(url, again.sent(name="mine"))
        assert response.status_code == 409
        again = Page(response)
        assert "dblock-conflict-fields" not in again.text
        assert token(again) == token(page)
        assert "Somebody else has changed this meanwhile" in again.text
    assert Shelf.objects.get().name == "theirs"


def test_token_of_an_inline_is_kept_as_well(browser, shelf, monkeypatch):
    monkeypatch.setattr(ShelfAdmin, "change_form_template", "app/bare_change_form.html")
    url, name = f"{LIST}{shelf.pk}/change/", "boxes-0-version_token"
    page = Page(browser.get(url))
    Box.objects.update(label="theirs")
    response = browser.post(url, page.sent(**{"boxes-0-label": "mine"}))
    assert response.status_code == 409
    assert name in dict(Page(response).fields)
    assert dict(Page(response).fields)[name] == dict(page.fields)[name]
    assert Box.objects.get().label == "theirs"


@pytest.mark.parametrize("change", ["form", "list"])
def test_conflict_is_also_a_message(browser, shelf, change):
    url = f"{LIST}{shelf.pk}/change/" if change == "form" else LIST
    field = "name" if change == "form" else "form-0-room"
    page = Page(browser.get(url))
    Shelf.objects.update(note="theirs")
    sent = page.sent(**{field: "a"}, _save="Save")
    response = browser.post(url, sent)
    assert response.status_code == 409
    assert "so nothing was saved" in response.content.decode()


def test_custom_page_without_the_diff_keeps_the_token(shelf, rf_post):
    form, response = rf_post(shelf, template="app/form_without_conflict.html")
    old, new = form._tokens
    assert new.encode() not in response.content
    assert old.encode() in response.content


def test_custom_page_that_shows_the_diff_renews_the_token(shelf, rf_post):
    form, response = rf_post(shelf, template="app/form_with_diff.html")
    _, new = form._tokens
    assert new.encode() in response.content


@pytest.fixture
def rf_post():
    from django_dblock import StaleObject, form_conflict_response
    from tests.app.versioned_site import ShelfForm

    templates = {
        "app/form_without_conflict.html": "{{ form.version_token }}",
        "app/form_with_diff.html": "{{ form.version_token }}"
        "{% for field in form.conflict.fields.values %}{{ field.theirs }}{% endfor %}",
    }

    def post(shelf, template):
        shown = ShelfForm(instance=Shelf.objects.get(pk=shelf.pk))
        sent = {"name": "mine", "note": "", "version_token": shown["version_token"].value()}
        Shelf.objects.update(name="theirs")
        request = RequestFactory().post("/", sent)
        form = ShelfForm(request.POST, instance=Shelf.objects.get(pk=shelf.pk))
        with pytest.raises(StaleObject) as caught:
            form.save()
        assert not form.conflict_was_shown
        response = form_conflict_response(request, form, caught.value)
        response.template_name = engines["django"].from_string(templates[template])
        return form, response.render()

    return post


# The token stands beside an input, not in a row of its own.


def test_token_has_no_row_and_no_label(browser, shelf):
    page = Page(browser.get(f"{LIST}{shelf.pk}/change/"))
    assert [name for name, _ in page.fields].count("version_token") == 1
    assert "ersion token" not in page.text
    assert "field-version_token" not in page.text


def test_form_with_only_radio_buttons_has_the_token(browser, shelf, monkeypatch):
    """Nothing to edit but radio buttons, which a theme may render one by one."""
    monkeypatch.setattr(ShelfAdmin, "fields", ["room"], raising=False)
    monkeypatch.setattr(ShelfAdmin, "radio_fields", {"room": admin.VERTICAL})
    page = Page(browser.get(f"{LIST}{shelf.pk}/change/"))
    assert [name for name, _ in page.fields].count("version_token") == 1


def test_form_with_a_read_only_first_field_has_the_token(browser, shelf, monkeypatch):
    monkeypatch.setattr(ShelfAdmin, "readonly_fields", ["name"])
    monkeypatch.setattr(ShelfAdmin, "fields", ["name", "note"], raising=False)
    page = Page(browser.get(f"{LIST}{shelf.pk}/change/"))
    assert [name for name, _ in page.fields].count("version_token") == 1


# One statement for all rows of a list, not one for each.


def test_list_conflicts_read_no_row_again(browser, shelf, statements, monkeypatch):
    monkeypatch.setattr(ShelfAdmin, "list_display", ("name", "main", "room", "open"))
    monkeypatch.setattr(ShelfAdmin, "list_select_related", ("main",))
    for name in "abcd":
        Shelf.objects.create(name=name, main=Tag.objects.create(name=name))

    def conflict(rows):
        page = Page(browser.get(LIST))
        for row in rows:
            Shelf.objects.filter(pk=row.pk).update(note="theirs")
        changes = {f"form-{at}-room": "a" for at in range(5)}
        with statements() as sent:
            response = browser.post(LIST, page.sent(**changes, _save="Save"))
        assert response.status_code == 409
        assert response.content.count(b"dblock-conflict-fields") == len(rows)
        return [query["sql"] for query in sent.captured_queries if "FROM" in query["sql"]]

    rows = list(Shelf.objects.order_by("pk"))
    assert len(conflict(rows[:1])) == len(conflict(rows))


def test_row_with_unknown_values_is_read_again(browser, shelf, monkeypatch):
    monkeypatch.setattr(admin_forms, "original", lambda instance: {})
    url = f"{LIST}{shelf.pk}/change/"
    page = Page(browser.get(url))
    Shelf.objects.update(name="theirs")
    assert "theirs" in browser.post(url, page.sent(name="mine")).content.decode()


# Inlines of inlines, as django-nested-admin and unfold have them.


def test_nested_inlines_get_versioned_forms():
    class Inner(admin.TabularInline):
        model = Product.lines.rel.related_model
        fk_name = "product"

    class Outer(admin.StackedInline):
        model = Box
        inlines = (Inner,)

    site, request = admin.site, HttpRequest()
    outer = versioned_inline(Outer(Shelf, site))
    assert versioned_inline(outer) is outer
    assert isinstance(outer, Outer)
    [inner] = outer.inlines
    assert issubclass(inner, Inner)
    assert versioned_inline(inner) is inner
    request.user = User(is_superuser=True, is_active=True)
    for inline in (outer, inner(Product, site)):
        formset = inline.get_formset(request)
        assert issubclass(formset.form, AdminFormMixin)
    assert Outer.inlines == (Inner,)


# The project's frame.


def test_conflict_page_extends_the_sites_base_template(settings, tmp_path, shelf, client):
    (tmp_path / "django_dblock").mkdir()
    frame = "<nav>the site</nav>{% block content %}{% endblock %}"
    (tmp_path / "django_dblock" / "base.html").write_text(frame)
    [options] = settings.TEMPLATES
    settings.TEMPLATES = [{**options, "DIRS": [str(tmp_path)]}]
    page = Page(client.get(f"/shelf/{shelf.pk}/"))
    Shelf.objects.update(name="theirs")
    content = client.post(f"/shelf/{shelf.pk}/", page.sent(name="mine")).content.decode()
    assert "<nav>the site</nav>" in content
    assert "dblock-conflict-fields" in content
