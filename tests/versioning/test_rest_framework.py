"""Django REST framework: ETag on what is read, If-Match bound to what is written."""

from contextlib import ExitStack

import pytest
from django.db import connection
from django.test.utils import override_settings
from rest_framework.generics import RetrieveUpdateAPIView
from rest_framework.test import APIClient, APIRequestFactory
from rest_framework.views import exception_handler

from django_dblock import MissingVersion, etag
from django_dblock.contrib import rest_framework
from django_dblock.contrib.rest_framework import VersionedViewMixin
from tests.app import api_views
from tests.app.models import Counter, Invoice, InvoiceLine, Product, Setting
from tests.helpers.processes import process
from tests.versioning.answers import STATUSES
from tests.versioning.writing import all_at_once, until_locked_out

pytestmark = pytest.mark.django_db

HANDLER = "django_dblock.contrib.rest_framework.exception_handler"


@pytest.fixture
def product():
    return Product.objects.create(name="tea", stock=1)


@pytest.fixture(params=["framework's handler", "our handler"])
def handler(request):
    """Both: the mixin needs no setting."""
    with override_settings(
        REST_FRAMEWORK={"EXCEPTION_HANDLER": HANDLER} if request.param == "our handler" else {}
    ):
        yield


@pytest.fixture
def our_handler():
    with override_settings(REST_FRAMEWORK={"EXCEPTION_HANDLER": HANDLER}):
        yield


def call(method, path, tag=None, data=None, **headers):
    headers = headers if tag is None else {"If-Match": tag, **headers}
    return getattr(APIClient(), method)(f"/api/{path}/", data, format="json", headers=headers)


def now(variant="json"):
    return etag(Product.objects.get(), variant)


DATA = {"name": "tea", "stock": 7}


@pytest.mark.usefixtures("handler")
class TestViewsAndViewsets:
    @pytest.fixture(params=["products/{}", "detail/{}"])
    def path(self, request, product):
        return request.param.format(product.pk)

    def test_retrieve_carries_the_tag(self, path):
        assert call("get", path)["ETag"] == now()
        assert call("head", path)["ETag"] == now()

    @pytest.mark.parametrize("method", ["put", "patch"])
    def test_write_with_the_read_tag_returns_the_next(self, path, method):
        tag = call("get", path)["ETag"]
        response = call(method, path, tag, DATA)
        assert response.status_code == 200
        assert response["ETag"] == now()
        assert Product.objects.get().version == 2

    @pytest.mark.parametrize("method", ["put", "patch", "delete"])
    def test_conflict_is_412_with_the_present_tag(self, path, method):
        tag = call("get", path)["ETag"]
        Product.objects.update(stock=99)
        response = call(method, path, tag, DATA)
        assert response.status_code == 412
        assert response["ETag"] == now()
        assert "changed this since" in response.data["detail"]
        assert Product.objects.get().stock == 99

    @pytest.mark.parametrize("method", ["put", "patch", "delete"])
    def test_missing_header_is_428(self, path, method):
        assert call(method, path, None, DATA).status_code == 428
        assert Product.objects.get().version == 1

    @pytest.mark.parametrize("method", ["put", "patch", "delete", "post"])
    def test_malformed_header_is_400(self, path, method):
        response = call(method, path, "malformed", DATA)
        assert response.status_code == 400
        assert Product.objects.get().version == 1

    @pytest.mark.parametrize("method", ["put", "patch", "delete"])
    def test_foreign_tag_is_412(self, path, method):
        other = Product(pk=10**6)
        other._state.adding = False
        assert call(method, path, etag(other), DATA).status_code == 412
        response = call(method, path, None, DATA, **{"If-None-Match": "*"})
        assert response.status_code == 412
        assert Product.objects.get().version == 1

    def test_delete_is_compared(self, path):
        assert call("delete", path, now()).status_code == 204
        assert not Product.objects.exists()

    def test_tag_weakened_by_compression_still_matches(self, path):
        assert call("put", path, f"W/{now()}", DATA).status_code == 200
        assert call("put", path, now()[:-1] + '-gzip"', DATA).status_code == 200

    def test_invalid_data_is_400_and_has_no_tag(self, path):
        response = call("put", path, now(), {"stock": "many"})
        assert response.status_code == 400
        assert "ETag" not in response

    def test_missing_row_is_404(self, path):
        missing = f"{path.partition('/')[0]}/1000000"
        assert call("put", missing, '"a"', DATA).status_code == 404


@pytest.mark.usefixtures("handler")
class TestCreate:
    @pytest.mark.parametrize("path", ["products", "list"])
    def test_create_returns_the_tag(self, path):
        response = call("post", path, None, DATA)
        assert response.status_code == 201
        assert response["ETag"] == now()

    @pytest.mark.parametrize("path", ["products", "list"])
    def test_if_match_never_creates(self, path):
        for tag in ("*", '"a"'):
            assert call("post", path, tag, DATA).status_code == 412
        assert not Product.objects.exists()
        assert call("post", path, None, DATA, **{"If-None-Match": "*"}).status_code == 201

    def test_list_has_no_tag(self, product):
        response = call("get", "products")
        assert response.status_code == 200
        assert "ETag" not in response


def test_read_only_viewset_does_not_become_writable(product):
    """The trap: a mixin with an update() of its own makes the router route it."""
    assert call("get", f"read-only/{product.pk}")["ETag"] == now()
    for method, path in (("post", "read-only"), ("put", f"read-only/{product.pk}")):
        assert call(method, path, now(), DATA).status_code == 405


def test_each_representation_has_its_tag(product, settings):
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "rest_framework"]
    path = f"products/{product.pk}"
    page = call("get", path, Accept="text/html")
    assert page["Content-Type"].startswith("text/html")
    assert page["ETag"] == now("api")
    assert call("get", path)["ETag"] == now("json")
    assert call("put", path, page["ETag"], DATA).status_code == 200  # of one row all the same


def test_other_formats_than_json_get_the_same_members(product, settings, our_handler):
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "rest_framework"]
    response = call("put", f"products/{product.pk}", None, DATA, Accept="text/html")
    assert response.status_code == 428
    assert response["Content-Type"].startswith("text/html")
    assert b"precondition_required" in response.content


class TestPermissions:
    """The trap: a permission that gets the object before the view has read the header."""

    def test_permission_class_may_read_the_object_first(self, product):
        path = f"guarded/{product.pk}"
        tag = call("get", path)["ETag"]
        assert tag == now("mine-json")
        assert call("put", path, "malformed", DATA).status_code == 400
        assert call("put", path, None, DATA).status_code == 428
        assert call("put", path, tag, DATA).status_code == 200
        assert call("put", path, tag, DATA).status_code == 412
        refused = call("put", path, now(), {"name": "theirs", "stock": 1})
        assert call("put", path, refused["ETag"], DATA).status_code == 403

    def test_framework_refusal_needs_no_precondition(self, product):
        for tag in (None, now(), "malformed"):
            assert call("put", "guarded/0", tag, DATA).status_code == 404
            response = call("put", f"guarded/{product.pk}", tag, DATA, Accept="image/png")
            assert response.status_code == 406

    def test_browsable_api_tries_other_methods(self, product, settings):
        settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "rest_framework"]
        response = call("get", f"guarded/{product.pk}", Accept="text/html")
        assert response.status_code == 200
        assert response["ETag"] == now("mine-api")


class TestActions:
    def test_get_object_binds(self, product):
        tag = now()
        response = call("post", f"products/{product.pk}/restock", tag)
        assert response.status_code == 200
        assert response["ETag"] == now()
        assert call("post", f"products/{product.pk}/restock", tag).status_code == 412
        assert call("post", f"products/{product.pk}/restock").status_code == 428
        assert Product.objects.get().stock == 11

    def test_optional_precondition_is_honoured(self, product):
        tag = now()
        path = f"products/{product.pk}/rename"
        assert call("post", path, None, {"name": "coffee"}).status_code == 200
        assert call("post", path, tag, {"name": "milk"}).status_code == 412
        assert Product.objects.get().name == "coffee"

    def test_action_reading_other_objects_has_no_tag(self, product):
        for path in (f"products/{product.pk}/history", "products/preview"):
            assert "ETag" not in call("get", path)
        refused = call("get", f"products/{product.pk}/check")
        assert refused.status_code == 400
        assert "ETag" not in refused
        assert call("get", "products/tagged")["ETag"] == '"own"'

    def test_action_can_bind_explicitly(self, product):
        path = f"products/{product.pk}/by_hand"
        tag = now()
        assert call("post", path, tag).status_code == 200
        assert call("post", path, tag).status_code == 412

    def test_action_that_ignores_the_precondition_is_an_error(self, product):
        assert call("post", "products/forget").status_code == 200
        with pytest.raises(RuntimeError, match="Products responded to POST with 200 without"):
            call("post", "products/forget", '"a"')


def test_deferred_version_is_not_silently_left_out(product):
    with pytest.raises(MissingVersion):
        call("get", f"deferred/{product.pk}")


class Only(VersionedViewMixin, RetrieveUpdateAPIView):
    """Of the user's own object: no queryset, and a get_object() of its own."""

    serializer_class = api_views.ProductSerializer

    def get_object(self):
        product = Product.objects.get()
        self.request.if_match.bind(product)
        return product


def test_view_without_a_queryset_can_bind_by_itself(product):
    def put(tag):
        request = APIRequestFactory().put("/", DATA, format="json", headers={"If-Match": tag})
        return Only.as_view()(request)

    tag = now()
    response = put(tag)
    assert (response.status_code, response["ETag"]) == (200, now())
    assert put(tag).status_code == 412


class TestLastWriteWins:
    """cas_on_save = False, and if_match_required = False."""

    @pytest.fixture
    def path(self):
        return f"settings/{Setting.objects.create(name='a').pk}"

    def test_if_match_is_compared(self, path):
        tag = call("get", path)["ETag"]
        response = call("patch", path, tag, {"value": "first"})
        assert response.status_code == 200
        assert response["ETag"] == etag(Setting.objects.get(), "json")
        assert call("patch", path, tag, {"value": "second"}).status_code == 412
        assert Setting.objects.get().value == "first"

    def test_write_without_header_returns_no_tag(self, path):
        response = call("patch", path, None, {"value": "first"})
        assert response.status_code == 200
        assert "ETag" not in response
        assert call("delete", path).status_code == 204


@pytest.mark.django_db(transaction=True)
def test_nested_serializer_is_all_or_nothing():
    """The trap: the rows saved before the one that conflicts stay, behind a 412."""
    line = InvoiceLine.objects.create(invoice=Invoice.objects.create())
    path = f"invoices/{line.invoice_id}"
    data = {"customer": "Ann", "lines": [{"id": line.pk, "quantity": 5}]}
    Invoice.objects.extra(where=["true"]).update(customer="Bob")
    tag = etag(Invoice.objects.get())
    real = Invoice._do_update

    def too_late(self, *args, **more):
        """Somebody else is faster, after everything has been looked at."""
        connection.cursor().execute("UPDATE app_invoice SET version = version + 1")
        return real(self, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Invoice, "_do_update", too_late)
        assert call("put", path, tag, data).status_code == 412
    line.refresh_from_db()
    assert (line.quantity, Invoice.objects.get().customer) == (1, "Bob")
    assert call("put", path, tag, data).status_code == 200
    line.refresh_from_db()
    assert (line.quantity, Invoice.objects.get().customer) == (5, "Ann")


def test_mixin_adds_no_select(product, statements):
    """And one UPDATE; the transaction is the framework's own ATOMIC_REQUESTS, for one view."""
    tag = now()
    with statements() as plain:
        call("put", f"plain/{product.pk}", None, DATA)
    product.refresh_from_db()
    tag = now()
    with statements() as bound:
        call("put", f"detail/{product.pk}", tag, DATA)
    verbs = [
        [each["sql"].split()[0] for each in sent if "SAVEPOINT" not in each["sql"]]
        for sent in (plain, bound)
    ]
    assert verbs == [["SELECT", "UPDATE"], ["SELECT", "UPDATE"]]
    with statements() as deleted:
        call("delete", f"detail/{product.pk}", now())
    assert "DELETE" in [each["sql"].split()[0] for each in deleted]


def own_handler(error, context):
    """A project's own, that asks what was behind."""
    response = exception_handler(error, context)
    response.data = {"reason": type(error.__cause__).__name__}
    return response


class TestHandler:
    def test_projects_handler_sees_the_cause(self, product):
        """Through the mixin; the framework's own handler would know no StaleObject."""
        tag = now()
        product.save()
        path = f"{__name__}.own_handler"
        with override_settings(REST_FRAMEWORK={"EXCEPTION_HANDLER": path}):
            response = call("put", f"products/{product.pk}", tag, DATA)
        assert (response.status_code, response.json()) == (412, {"reason": "StaleObject"})
        assert response["ETag"] == now()

    @pytest.mark.usefixtures("our_handler")
    @pytest.mark.parametrize(("name", "status", "code", "retry_after"), STATUSES)
    def test_package_errors_become_responses(self, name, status, code, retry_after):
        response = call("post", f"fails/{name}")
        assert response.status_code == status
        assert response.get("Retry-After") == retry_after
        assert response["Content-Type"] == "application/problem+json"
        assert response.json()["code"] == code
        assert "secret" not in response.content.decode()

    @pytest.mark.usefixtures("our_handler")
    def test_with_a_precondition_a_stale_row_is_412(self):
        assert call("post", "fails/changed", '"a"').status_code == 412

    @pytest.mark.usefixtures("our_handler")
    def test_other_errors_are_left_to_the_framework(self):
        with pytest.raises(LookupError):
            call("post", "fails/other")
        assert call("get", "products/1").json() == {"detail": "No Product matches the given query."}

    @pytest.mark.django_db(transaction=True)
    @pytest.mark.usefixtures("our_handler")
    def test_atomic_requests_is_rolled_back(self):
        connection.settings_dict["ATOMIC_REQUESTS"] = True
        try:
            for name, *_ in STATUSES:
                assert call("post", f"fails/{name}").status_code in {409, 423}
        finally:
            connection.settings_dict["ATOMIC_REQUESTS"] = False
        assert not Counter.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.processes
def test_one_of_many_equal_tags_writes(product, rival, observer):
    answers = all_at_once("detail", product, rival, observer, room="api")
    assert sorted(status for status, _ in answers) == [200, 412, 412, 412]
    assert {tag for _, tag in answers} == {now()}


def delete_once(_channel, path, tag):
    return call("delete", path, tag).status_code


@pytest.mark.django_db(transaction=True)
@pytest.mark.processes
@pytest.mark.parametrize("room", ["products", "detail"])
def test_delete_is_bound_to_the_statement(product, rival, observer, room):
    """Somebody else writes after the row has been read and found to be the one."""
    with ExitStack() as stack:
        with rival.transaction():
            rival.execute("UPDATE app_product SET stock = 99, version = version + 1")
            client = stack.enter_context(process(delete_once, f"{room}/{product.pk}", now()))
            until_locked_out(observer, "%FOR UPDATE%", 1)
        assert client.receive() == 412
    assert Product.objects.get().stock == 99


@pytest.mark.django_db(transaction=True)
@pytest.mark.processes
def test_negative_twin_view_without_the_mixin_ignores_tags(product, rival, observer):
    """The negative twin: the tags are not looked at; what save() itself notices is a server error.

    cas_on_save makes the losers fail here; the mixin makes them answer.
    """
    with pytest.raises(Exception, match="so it was changed since it was read"):
        all_at_once("plain", product, rival, observer, room="api")


def test_nested_serializer_warns_once(monkeypatch):
    monkeypatch.setattr(rest_framework, "_warned", set())
    monkeypatch.setattr(api_views.Invoices, "etag_covers_nested", False)
    invoice = Invoice.objects.create(customer="a")
    with pytest.warns(RuntimeWarning, match=r"nests others \(lines\)") as caught:
        call("get", f"invoices/{invoice.pk}")
    assert len(caught) == 1
    call("get", f"invoices/{invoice.pk}")  # a second warning would be an error of this test
