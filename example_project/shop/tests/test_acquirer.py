"""The acquirer by itself, as a process of its own, asked over HTTP."""

from shop.tests.acquirers import WithAcquirer


class TheAcquirer(WithAcquirer):
    def test_one_key_is_one_charge(self) -> None:
        body = {"amount": 100, "currency": "EUR", "reference": "one-key"}
        first = self.ask("POST", "/charges", body, **{"Idempotency-Key": "k1"})
        again = self.ask("POST", "/charges", body, **{"Idempotency-Key": "k1"})
        assert (first[0], again[0]) == (201, 200)
        assert first[1] == again[1]
        assert len(self.charges("one-key")) == 1

    def test_a_key_is_not_for_two_different_charges(self) -> None:
        body = {"amount": 100, "currency": "EUR", "reference": "two"}
        self.ask("POST", "/charges", body, **{"Idempotency-Key": "k2"})
        status, _ = self.ask("POST", "/charges", body | {"amount": 1}, **{"Idempotency-Key": "k2"})
        assert status == 422

    def test_without_a_key_each_request_is_a_charge(self) -> None:
        body = {"amount": 100, "currency": "EUR", "reference": "no-key"}
        assert {self.ask("POST", "/charges", body)[0] for _ in range(2)} == {201}
        assert len(self.charges("no-key")) == 2

    def test_nonsense_is_refused(self) -> None:
        for body in (None, [], {}, {"amount": "1", "currency": "EUR", "reference": "x"}):
            assert self.ask("POST", "/charges", body)[0] == 400
        assert self.ask("GET", "/nowhere")[0] == 404
        assert self.ask("POST", "/nowhere")[0] == 404
        assert self.ask("GET", "/health") == (200, {"status": "ok"})
