"""The API does what ``/api/openapi.json`` says, whatever it is sent; Schemathesis sends it."""

from collections.abc import Callable
from typing import Any

from django.contrib.auth import get_user_model
from django.test import Client, TransactionTestCase, tag
from shop_site.wsgi import application

from shop.models import Order, Payment, Product
from shop.tests.absent import absent
from shop.tests.acquirers import AsksAcquirer
from shop.tests.helpers import product

try:
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_headers_conformance,
        response_schema_conformance,
        status_code_conformance,
    )
except ImportError as error:
    raise absent("schemathesis is not installed") from error

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
AS_DESCRIBED, NOT_AS_DESCRIBED = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
TOKEN = "0123456789abcdef" * 2

# The same examples each time: what is found here is found on every machine.
known = settings(
    max_examples=20,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@tag("api")
class Description(AsksAcquirer, TransactionTestCase):
    """Each operation, with what is described and with what is not."""

    def setUp(self) -> None:
        product("bell", stock=100_000)

    def sent(
        self,
        method: str,
        path: str,
        mode: GenerationMode = AS_DESCRIBED,
        prepare: Callable[[Any], object] = lambda _: None,
    ) -> set[int]:
        """Send examples of an operation and check each answer; return the statuses of them all.

        Args:
            prepare: changes an example before it is sent.
        """
        schema = schemathesis.openapi.from_wsgi("/api/openapi.json", application)
        statuses = set()

        @known
        @given(case=schema[path][method].as_strategy(mode))
        def send(case: Any) -> None:
            prepare(case)
            response = case.call()
            statuses.add(response.status_code)
            case.validate_response(response, checks=CHECKS)

        send()
        return statuses

    def test_what_takes_nothing_just_answers(self) -> None:
        for path in ("/health/", "/api/openapi.json"):
            assert self.sent("get", path) == {200}

    def test_purchases(self) -> None:
        def of_what_there_is(case: Any) -> None:
            case.body["sku"] = "bell"

        path = "/api/purchases/"
        assert self.sent("post", path) == {404}
        assert 201 in self.sent("post", path, prepare=of_what_there_is)
        assert 400 in self.sent("post", path, NOT_AS_DESCRIBED)

    def test_payments(self) -> None:
        def of_an_order(case: Any) -> None:
            order = Order.objects.create(buyer="Ada", total="24.68")
            case.path_parameters["reference"] = str(order.reference)

        def right(case: Any) -> None:
            of_an_order(case)
            case.body["amount"] = "24.68"

        def of_one_order(case: Any) -> None:
            case.path_parameters["reference"] = str(Order.objects.first().reference)
            case.body["amount"] = "24.68"

        path = "/api/orders/{reference}/payments/"
        assert self.sent("post", path) == {404}
        assert self.sent("post", path, prepare=of_an_order) == {409}
        assert self.sent("post", path, prepare=right) == {201}
        paid = Payment.objects.count()
        assert {201, 409, 422} >= self.sent("post", path, prepare=of_one_order) >= {409}
        assert Payment.objects.count() == paid
        assert 400 in self.sent("post", path, NOT_AS_DESCRIBED, of_an_order)
        assert 404 in self.sent("post", path, NOT_AS_DESCRIBED)

    def test_reading_a_product(self) -> None:
        def one_there_is(case: Any) -> None:
            case.path_parameters["sku"] = "bell"

        path = "/api/products/{sku}/"
        assert self.sent("get", path) == {404}
        assert 200 in self.sent("get", path, prepare=one_there_is)
        assert 404 in self.sent("get", path, NOT_AS_DESCRIBED)

    def test_changing_a_product(self) -> None:
        client = Client()
        client.force_login(get_user_model().objects.create_superuser("clerk"))
        session = client.cookies["sessionid"].value

        def by_staff(case: Any) -> None:
            case.path_parameters["sku"] = "bell"
            case.headers["X-CSRFToken"] = TOKEN
            case.cookies = {"sessionid": session, "csrftoken": TOKEN}

        def of_what_was_read(case: Any) -> None:
            by_staff(case)
            case.headers["If-Match"] = self.client.get("/api/products/bell/")["ETag"]

        path = "/api/products/{sku}/"
        for method in ("put", "patch"):
            before = Product.objects.get().version
            assert self.sent(method, path) == {403}
            assert 412 in self.sent(method, path, prepare=by_staff)
            assert 200 in self.sent(method, path, prepare=of_what_was_read)
            assert Product.objects.get().version > before
            assert 400 in self.sent(method, path, NOT_AS_DESCRIBED, of_what_was_read)
            assert 428 in self.sent(method, path, NOT_AS_DESCRIBED, by_staff)
