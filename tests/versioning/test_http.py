"""ETag and If-Match for views: the precondition is in the UPDATE, or the answer is 412."""

import json
import pickle

import pytest
from asgiref.sync import async_to_sync
from django.db import connection
from django.http import HttpResponse
from django.test import AsyncClient, Client, RequestFactory
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase

from django_dblock import (
    MissingVersion,
    PreconditionFailed,
    StaleObject,
    etag,
    set_etag,
    signals,
)
from django_dblock.versioning.field import MAX_VERSION
from django_dblock.versioning.web.etag import MalformedTags, digest, named
from django_dblock.versioning.web.preconditions import IfMatch
from tests.app.http_views import plain
from tests.app.models import (
    Code,
    Coded,
    Gadget,
    Invoice,
    InvoiceLine,
    Place,
    Product,
    ProductProxy,
    Setting,
)
from tests.versioning.writing import all_at_once, send

pytestmark = [pytest.mark.django_db, pytest.mark.loss]


def somebody_else_writes(product):
    Product.objects.filter(pk=product.pk).update(stock=99)


@pytest.fixture
def product():
    return Product.objects.create(name="tea", stock=1)


def stock(product):
    return Product.objects.values_list("stock", flat=True).get(pk=product.pk)


class TestEtag:
    def test_tag_is_strong_and_begins_with_the_version(self, product):
        assert etag(product) == f'"1-{digest(product)}"'
        product.save()
        assert etag(product).startswith('"2-')

    def test_tag_distinguishes_rows_without_showing_the_key(self):
        product, other = (Product.objects.create(id=pk, name="") for pk in (424242, 424243))
        setting = Setting.objects.create(id=424242, name="")
        assert len({etag(each) for each in (product, other, setting)}) == 3
        assert "424242" not in etag(product)

    def test_tag_depends_on_the_secret_key(self, product, settings):
        before = etag(product)
        settings.SECRET_KEY = "another"
        assert etag(product) != before

    def test_proxy_and_child_share_their_rows_tag(self):
        gadget = Gadget.objects.create(name="kettle")
        row = Product.objects.get(pk=gadget.pk)
        assert etag(gadget) == etag(row) == etag(ProductProxy.objects.get(pk=gadget.pk))

    def test_text_key_has_the_same_tag(self):
        product = Product.objects.create(name="")
        invoice = Invoice.objects.create()
        assert digest(Product(pk=str(product.pk))) == digest(product)
        assert digest(Invoice(pk=str(invoice.pk).upper())) == digest(invoice)

    def test_composite_keys_are_not_run_together(self):
        assert digest(Place(row="1", number=23)) != digest(Place(row="12", number=3))

    def test_variant_makes_another_tag(self, product):
        assert etag(product, "json") == f'"1-{digest(product)}-json"'
        for wrong in ("a,b", 'a"b', "a b", "ä", "a\n"):
            with pytest.raises(ValueError, match="has other characters"):
                etag(product, wrong)

    def test_object_without_version_has_no_tag(self, product):
        with pytest.raises(MissingVersion):
            etag(Product.objects.defer("version").get())
        with pytest.raises(MissingVersion):
            etag(Product(pk=1))

    def test_set_etag_returns_the_response(self, product):
        response = HttpResponse()
        assert set_etag(response, product, "html") is response
        assert response["ETag"] == etag(product, "html")

    def test_tag_needs_no_statement(self, product, statements):
        with statements() as sent:
            etag(product)
        assert len(sent) == 0


class TestParsing:
    """RFC 9110, 13.1.1 and 5.6.1; what Django's parse_etags would drop in silence is refused."""

    @pytest.mark.parametrize(
        ("header", "versions"),
        [
            ('"7-0123456789abcdef"', {7}),
            ('W/"7-0123456789abcdef"', {7}),
            ('"7-0123456789abcdef-gzip"', {7}),
            ('"7-0123456789abcdef--gzip"', {7}),
            ('"7-0123456789abcdef;gzip"', {7}),
            ('"7-0123456789abcdef-json-br"', {7}),
            ('"7-0123456789abcdef", "8-0123456789abcdef"', {7, 8}),
            (' ,, "7-0123456789abcdef"\t,, W/"xyz", ', {7}),
            ('"a,b", "7-0123456789abcdef"', {7}),  # a comma may stand in a tag
            ('"", "ä"', set()),
            ('"7-0123456789abcde"', set()),
            ('"7-0123456789abcdef0"', set()),
            ('"7-0123456789ABCDEF"', set()),
            ('"07-0123456789abcdef"', set()),
            ('"-7-0123456789abcdef"', set()),
            ('"²-0123456789abcdef"', set()),
            ('"0-0123456789abcdef"', {0}),
            (f'"{MAX_VERSION}-0123456789abcdef"', {MAX_VERSION}),
            (f'"{MAX_VERSION + 1}-0123456789abcdef"', set()),
            ('"9999999999999999999-0123456789abcdef"', set()),
            ('"*"', set()),
        ],
    )
    def test_lists_are_parsed(self, header, versions):
        assert {version for version, _ in named(header)} == versions

    @pytest.mark.parametrize(
        "header",
        [
            "",
            ",",
            "7-0123456789abcdef",
            '"7-0123456789abcdef',
            '7-0123456789abcdef"',
            'w/"7-0123456789abcdef"',
            'W/ "7-0123456789abcdef"',
            '"7-0123456789abcdef", x',
            '"7-0123456789abcdef" "8-0123456789abcdef"',
            '"x, "7-0123456789abcdef", y"',
            '*, "7-0123456789abcdef"',
            '"7-0123456789abcdef"-gzip',
            '"a b"',
            '"a\x7f"',
            '"7-0123456789abcdef"\n',
        ],
    )
    def test_malformed_headers_are_refused(self, header):
        with pytest.raises(MalformedTags):
            named(header)

    def test_parsing_is_linear(self):
        """A pattern that looks back would not come to an end here."""
        with pytest.raises(MalformedTags):
            named(", " * 100_000 + "x")
        assert named('"1-0123456789abcdef",' * 20_000 + " ") == {(1, "0123456789abcdef")}


class TestView:
    def test_write_with_the_read_tag_returns_the_next(self, product):
        tag = Client().get(f"/http/plain/{product.pk}/")["ETag"]
        response = send("plain", product, tag)
        assert (response.status_code, stock(product)) == (200, 7)
        product.refresh_from_db()
        assert response["ETag"] == etag(product) == f'"2-{digest(product)}"'
        assert send("plain", product, response["ETag"], stock=8).status_code == 200

    def test_conflict_is_412_with_the_present_tag(self, product):
        somebody_else_writes(product)
        response = send("plain", product, etag(product))
        assert (response.status_code, stock(product)) == (412, 99)
        assert response["Content-Type"] == "application/problem+json"
        assert response["ETag"] == etag(Product.objects.get())
        assert response["Cache-Control"] == "no-store"
        assert response["Vary"] == "Accept"
        problem = json.loads(response.content)
        assert "changed this since" in problem.pop("detail")
        assert problem == {
            "type": "about:blank",
            "title": "Precondition Failed",
            "status": 412,
            "code": "changed",
        }

    def test_deleted_row_has_no_tag(self, product):
        product.delete()
        product.pk = 1
        assert send("blind", product, f'"1-{digest(product)}"').status_code == 412
        response = send("blind", product, f'"1-{digest(product)}"')
        assert "ETag" not in response
        assert response.json()["code"] == "deleted"

    def test_browser_gets_a_page(self, product):
        somebody_else_writes(product)
        response = Client().put(
            f"/http/plain/{product.pk}/",
            "{}",
            headers={"If-Match": etag(product), "Accept": "text/html,*/*;q=0.8"},
        )
        assert response.status_code == 412
        assert response["Content-Type"] == "text/html; charset=utf-8"
        assert response["ETag"] == etag(Product.objects.get())
        assert b"<h1>Precondition Failed</h1>" in response.content

    def test_missing_header_is_428_before_the_view(self, product, statements):
        with statements() as sent:
            response = send("plain", product)
        assert (response.status_code, len(sent)) == (428, 0)
        assert response.json()["code"] == "precondition_required"

    def test_if_unmodified_since_is_ignored(self, product):
        response = Client().put(
            f"/http/plain/{product.pk}/",
            "{}",
            headers={"If-Unmodified-Since": "Wed, 21 Oct 2099 07:28:00 GMT"},
        )
        assert response.status_code == 428

    @pytest.mark.parametrize("header", ["x", "", '"a" "b"', '*, "a"'])
    def test_malformed_header_is_400(self, header, product):
        response = send("plain", product, header)
        assert (response.status_code, stock(product)) == (400, 1)
        assert response.json()["code"] == "malformed_if_match"

    def test_both_preconditions_at_once_are_400(self, product):
        response = Client().put(
            f"/http/plain/{product.pk}/", "{}", headers={"If-Match": "*", "If-None-Match": "*"}
        )
        assert response.status_code == 400

    def test_safe_methods_ignore_preconditions(self, product):
        for method in ("get", "head"):
            for header in ({}, {"If-Match": "malformed"}, {"If-Match": '"other"'}):
                response = getattr(Client(), method)(f"/http/plain/{product.pk}/", headers=header)
                assert response.status_code == 200

    def test_tag_of_another_row_is_412(self, product):
        other = Product.objects.create(name="coffee")
        response = send("plain", product, etag(other))
        assert (response.status_code, stock(product)) == (412, 1)
        assert response["ETag"] == etag(product)

    def test_newest_tag_of_a_list_counts(self, product):
        old = etag(product)
        product.save()
        both = f'{old}, "other", {etag(product)}'
        assert send("plain", product, both).status_code == 200
        assert send("plain", product, both).status_code == 412

    def test_if_match_star_needs_an_existing_row(self, product):
        assert send("plain", product, "*").status_code == 200
        assert send("find-or-make", 10**6, "*").status_code == 412
        assert send("blind", product, "*").status_code == 412
        assert not Product.objects.filter(pk=10**6).exists()

    @pytest.mark.django_db(transaction=True)
    def test_if_match_star_detects_a_concurrent_write(self, product):
        """The version that the request has read is in its UPDATE."""
        request = RequestFactory().put("/", headers={"If-Match": "*"})
        mine = Setting.objects.create(name="a")
        IfMatch.of(request).bind(mine)
        Setting.objects.update(value="theirs")
        with pytest.raises(StaleObject):
            mine.save()

    def test_list_of_foreign_tags_is_412(self, product):
        assert send("plain", product, '"a", W/"b"').status_code == 412

    def test_tag_of_a_fallback_secret_is_accepted(self, product, settings):
        tag = etag(product)
        settings.SECRET_KEY, old = "new", settings.SECRET_KEY
        assert send("plain", product, tag).status_code == 412
        settings.SECRET_KEY_FALLBACKS = ["older", old]
        assert send("plain", product, tag).status_code == 200

    def test_delete_is_compared(self, product):
        tag = etag(product)
        somebody_else_writes(product)
        assert send("plain", product, tag, "delete").status_code == 412
        response = send("plain", product, etag(Product.objects.get()), "delete")
        assert response.status_code == 204
        assert "ETag" not in response
        assert not Product.objects.exists()

    def test_last_write_wins_model_is_compared(self):
        setting = Setting.objects.create(name="a")
        tag = etag(setting)
        Setting.objects.update(value="theirs")
        assert send("setting", setting, tag, value="mine").status_code == 412
        assert Setting.objects.get().value == "theirs"
        response = send("setting", setting, etag(Setting.objects.get()), value="mine")
        assert response.status_code == 200
        assert response["ETag"] == etag(Setting.objects.get())

    def test_class_based_view_compares(self, product):
        for path in ("class", "dispatch"):
            tag = Client().get(f"/http/class/{product.pk}/")["ETag"]
            response = send(path, product, tag)
            assert response.status_code == 200
            assert response["ETag"] == etag(
                Product.objects.get(), "class" if path == "class" else ""
            )
            again = send(path, product, tag)
            assert again.status_code == 412
            assert again["ETag"] == response["ETag"]
            assert send(path, product).status_code == 428

    def test_optional_precondition_is_honoured(self, product):
        tag = etag(product)
        assert send("optional", product, tag).status_code == 200
        assert send("optional", product, tag).status_code == 412
        response = send("optional", product)
        assert response.status_code == 200
        assert response["ETag"] == etag(Product.objects.get())

    def test_unread_row_is_compared_by_the_update(self, product, statements):
        tag = etag(product)
        with statements() as sent:
            response = send("blind", product, tag)
        assert (response.status_code, len(sent), stock(product)) == (200, 1, 7)
        assert response["ETag"].startswith('"2-')
        assert send("blind", product, tag).status_code == 412

    def test_other_errors_propagate(self, product):
        with pytest.raises(LookupError, match="secret"):
            Client().post("/fails-conditionally/other/")
        with pytest.raises(Exception, match="the server said so"):
            Client().post("/fails-conditionally/cancelled/")

    def test_conflict_without_a_precondition_is_409(self):
        assert Client().post("/fails-conditionally/changed/").status_code == 409
        assert Client().post("/fails-conditionally/several/").status_code == 409

    @pytest.mark.parametrize("name", ["serialization", "deadlock"])
    def test_serialization_failure_is_409(self, name):
        """REPEATABLE READ: PostgreSQL refuses the losing UPDATE by itself."""
        response = Client().post(f"/fails-conditionally/{name}/", headers={"If-Match": '"a"'})
        assert response.status_code == 409
        assert response["Retry-After"] == "1"

    def test_view_that_returns_nothing_gets_djangos_error(self, product):
        with pytest.raises(ValueError, match="didn't return an HttpResponse"):
            send("returns-nothing", product)


@pytest.mark.parametrize("model", [Product, Code, Coded])
def test_insert_over_an_existing_row_is_refused(model):
    """Coded has its version in the table of its second parent, under another key than its own."""
    key = {"pk": 7} if model is Product else {"code": "x"}
    there = model.objects.create(**key)
    request = RequestFactory().put("/", headers={"If-None-Match": "*"})
    with pytest.raises(PreconditionFailed) as caught:
        IfMatch.of(request).insert(model(**key))
    assert (caught.value.absent, caught.value.actual) == (True, there.version)


class TestForgotten:
    def test_unused_precondition_is_an_error(self, product):
        """The trap: the client believes that it is guarded, and it is not."""
        for path in (f"forgets/{product.pk}/", f"forgets/{product.pk}/?redirect"):
            with pytest.raises(RuntimeError, match=r"if_match\.bind\(instance\) before writing"):
                Client().put(f"/http/{path}", "{}", headers={"If-Match": etag(product)})
        with pytest.raises(RuntimeError, match="forgets_async responded with 200"):
            Client().put("/http/forgets-async/1/", "{}", headers={"If-Match": '"a"'})

    @pytest.mark.django_db(transaction=True)
    def test_unused_precondition_rolls_back(self, product, atomic_requests):
        with pytest.raises(RuntimeError):
            send("forgets", product, etag(product))
        assert stock(product) == 1

    def test_refusal_or_waiver_is_no_error(self, product):
        assert send("refuses", product, '"a"').status_code == 422
        path = f"/http/refuses/{product.pk}/?waive"
        response = Client().put(path, headers={"If-Match": '"a"'})
        assert response.status_code == 200
        assert "ETag" not in response


@pytest.fixture
def atomic_requests():
    connection.settings_dict["ATOMIC_REQUESTS"] = True
    yield
    connection.settings_dict["ATOMIC_REQUESTS"] = False


class TestTransactions:
    @pytest.mark.django_db(transaction=True)
    def test_conflict_rolls_back_earlier_writes(self, atomic_requests):
        """The trap: a 412 that is returned, and not raised, would have committed the first row."""
        line = InvoiceLine.objects.create(invoice=Invoice.objects.create())
        tag = etag(line.invoice)
        line.invoice.save()
        assert send("invoice", line, tag).status_code == 412
        line.refresh_from_db()
        assert line.quantity == 1
        assert send("invoice", line, etag(line.invoice)).status_code == 200
        line.refresh_from_db()
        assert line.quantity == 2

    def test_testcase_transaction_stays_usable(self, product, atomic_requests):
        """A view that is called without the wrapper of ATOMIC_REQUESTS."""
        request = RequestFactory().put("/", headers={"If-Match": '"a"'})
        assert plain(request, pk=product.pk).status_code == 412
        assert Product.objects.count() == 1

    @pytest.mark.django_db(transaction=True)
    def test_rolled_back_tag_is_not_sent(self, product):
        """Somebody else may reach that version, and the tag would then be good for it."""
        response = send("two-instances", product, etag(product))
        assert response.status_code == 412
        assert "ETag" not in response
        assert etag(Product.objects.get()) == etag(product)
        response = send("caught", product, etag(product))
        assert response.status_code == 200
        assert "ETag" not in response

    def test_tag_of_another_row_is_not_sent(self, product):
        Setting.objects.create(name="a")
        response = send("other-row", product, etag(product))
        assert response.status_code == 412
        assert "ETag" not in response


class TestCreating:
    def test_if_none_match_star_only_creates(self, product):
        def put(path, pk, stock):
            return Client().put(
                f"/http/{path}/{pk}/",
                json.dumps({"stock": stock}),
                headers={"If-None-Match": "*"},
            )

        for pk, path in [(1000, "put"), (1001, "create-only"), (1002, "create-async")]:
            made = put(path, pk, 5)
            assert made.status_code == 201
            assert made["ETag"] == etag(Product.objects.get(pk=pk))
            again = put(path, pk, 6)
            assert again.status_code == 412
            assert again.json()["code"] == "already_there"
            assert again["ETag"] == made["ETag"]
            assert Product.objects.get(pk=pk).stock == 5

    def test_if_match_never_creates(self):
        assert send("put", 1000, '"a"').status_code == 412
        assert send("put", 1000, "*").status_code == 412
        assert send("find-or-make", 1000, '"a"').status_code == 412
        assert not Product.objects.exists()

    def test_deleted_row_is_not_recreated(self, product):
        """The trap: its old tag, and a view that makes what it does not find."""
        tag = etag(product)
        Product.objects.filter(pk=product.pk).delete()
        for path in ("find-or-make", "put", "blind"):
            assert send(path, product, tag).status_code == 412
        assert not Product.objects.exists()

    def test_other_constraint_errors_propagate(self):
        Setting.objects.create(name="taken")
        condition = IfMatch.of(RequestFactory().put("/", headers={"If-None-Match": "*"}))
        with pytest.raises(Exception, match="unique") as caught:
            condition.insert(Setting(name="taken"))
        assert not isinstance(caught.value, PreconditionFailed)
        with pytest.raises(PreconditionFailed, match="the row exists already, with version 1"):
            condition.insert(Setting(pk=Setting.objects.get().pk, name="other"))
        with pytest.raises(Exception, match="unique"):
            IfMatch("none").insert(Setting(pk=Setting.objects.get().pk, name="other"))

    def test_unread_row_cannot_be_bound(self):
        condition = IfMatch.of(RequestFactory().put("/", headers={"If-None-Match": "*"}))
        with pytest.raises(MissingVersion):
            condition.bind(Product(pk=1))


class TestReplica:
    def test_lagging_replica_does_not_overwrite_the_primary(self, product):
        """The trap: the client saw 2, the replica gave 1; the UPDATE alone would match."""
        behind = Product.objects.get()
        product.save()
        condition = IfMatch.of(RequestFactory().put("/", headers={"If-Match": etag(product)}))
        with pytest.raises(PreconditionFailed, match="has read version 1, which is older") as error:
            condition.bind(behind)
        assert (error.value.expected, error.value.actual) == (2, 1)
        assert condition.current_tag(error.value) is None


@pytest.mark.parametrize(
    ("expected", "actual", "absent", "why"),
    [
        (None, 3, True, "the row exists already, with version 3"),
        (None, None, False, "there is no such row"),
        (None, 3, False, "names no version of the row"),
        (4, 3, False, "saw version 4, and this request has read version 3"),
    ],
)
def test_error_is_explicit_and_picklable(expected, actual, absent, why):
    error = PreconditionFailed(
        instance=Product(pk=7), expected=expected, actual=actual, absent=absent
    )
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert str(error).startswith("app.Product 7 was not written: ")
    assert why in str(error)
    assert (copy.model, copy.pk, copy.expected) == ("app.Product", 7, expected)
    assert (copy.actual, copy.absent, copy.instance) == (actual, absent, Product(pk=7))


def test_early_conflict_sends_a_signal_but_no_statement(product, statements):
    told = []
    signals.stale_object.connect(receiver := lambda sender, error, **more: told.append(error))
    try:
        condition = IfMatch.of(RequestFactory().put("/", headers={"If-Match": etag(product)}))
        product.save()
        with statements() as sent, pytest.raises(StaleObject) as caught:
            condition.expected(product)
    finally:
        signals.stale_object.disconnect(receiver)
    assert told == [caught.value]
    assert (caught.value.expected, caught.value.actual, caught.value.using) == (1, 2, "default")
    assert len(sent) == 0


def test_expected_defaults_to_the_read_version(product):
    assert IfMatch("none").expected(product) == 1
    IfMatch("none").bind(Product.objects.defer("version").get())


def test_view_adds_no_statement(product, statements):
    """One SELECT and one UPDATE, also under If-Match; a conflict that is seen early: one SELECT."""
    old = etag(product)
    for path, fresh, count in (("unguarded", True, 2), ("plain", True, 2), ("plain", False, 1)):
        tag = etag(Product.objects.get()) if fresh else old
        with statements() as sent:
            send(path, product, tag)
        assert len(sent) == count, [each["sql"] for each in sent]


class TestAsync:
    def put(self, path, product, tag, **headers):
        async def run():
            return await AsyncClient().put(
                f"/http/{path}/{product.pk}/",
                '{"stock": 7}',
                headers={**({"If-Match": tag} if tag else {}), **headers},
            )

        return async_to_sync(run)()

    @pytest.mark.parametrize("path", ["async", "async-class", "async-dispatch"])
    def test_async_view_compares(self, path, product):
        tag = etag(product)
        response = self.put(path, product, tag)
        assert (response.status_code, stock(product)) == (200, 7)
        assert response["ETag"] == etag(Product.objects.get())
        again = self.put(path, product, tag)
        assert again.status_code == 412
        assert again["ETag"] == response["ETag"]
        assert self.put(path, product, None).status_code == 428
        assert self.put(path, product, "malformed").status_code == 400

    def test_views_run_under_the_other_protocol(self, product):
        tag = etag(product)
        assert send("async", product, tag).status_code == 200
        assert self.put("plain", product, tag).status_code == 412
        assert self.put("plain", product, etag(Product.objects.get())).status_code == 200


# Real processes.


@pytest.mark.django_db(transaction=True)
@pytest.mark.processes
def test_one_of_many_equal_tags_writes(product, rival, observer):
    """All have passed every look there is; only the UPDATE can tell them apart."""
    answers = all_at_once("plain", product, rival, observer)
    assert sorted(status for status, _ in answers) == [200, 412, 412, 412]
    now = Product.objects.get()
    assert {tag for _, tag in answers} == {etag(now)}  # weakened by nobody here
    assert now.version == 2


@pytest.mark.django_db(transaction=True)
@pytest.mark.processes
def test_negative_twin_check_then_write_loses_updates(product, rival, observer):
    """The negative twin: the check is right, and all but one of the writes are lost."""
    answers = all_at_once("check-then-act", product, rival, observer)
    assert [status for status, _ in answers] == [200, 200, 200, 200]
    assert Product.objects.get().version == 5


# Anything in the header.

TAGS = st.one_of(
    st.text(max_size=20),
    st.builds(
        '{}"{}{}-{}{}"'.format,
        st.sampled_from(["", "W/", "w/"]),
        st.sampled_from(["", "-", "0"]),
        st.integers(0, 2**70),
        st.sampled_from(["0123456789abcdef", "OURS", "", "x"]),
        st.sampled_from(["", "-gzip", ";gzip", "-", ",", '"']),
    ),
)


class TestFuzz(TestCase):
    @given(header=st.lists(TAGS, max_size=4).map(", ".join), mine=st.booleans(), star=st.booleans())
    def test_only_a_valid_tag_writes(self, header, mine, star):
        product = Product.objects.create(name="tea")
        header = header.replace("OURS", digest(product) if mine else "OURS")
        request = {"If-Match": header}
        if star:
            request["If-None-Match"] = "*"
        for path in ("plain", "blind"):
            response = Client().put(f"/http/{path}/{product.pk}/", '{"stock": 7}', headers=request)
            assert response.status_code in {200, 400, 412}
            product.refresh_from_db()
            if product.version == 2:
                assert response.status_code == 200
                assert header.strip() == "*" or f'"1-{digest(product)}' in header
                Product.objects.filter(pk=product.pk).delete()
                product = Product.objects.create(pk=product.pk, name="tea")
            else:
                assert response.status_code != 200
                assert product.stock == 0

    @given(accept=st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=255)))
    def test_any_accept_header_gets_a_response(self, accept):
        response = Client().put("/http/plain/1/", "{}", headers={"Accept": accept})
        assert response.status_code == 428
