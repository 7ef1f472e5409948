import pytest
from django.test import Client, RequestFactory
from django_dblock import IdempotencyKey, idempotent, run_once
from tests.app import idempotent_views as views
from tests.app.models import Counter

pytestmark = pytest.mark.django_db(transaction=True)


def post(view, how="201", key='"k"', body=b"{}", **headers):
    request = RequestFactory().post(
        f"/x/{how}/",
        body,
        content_type="application/json",
        headers={"Idempotency-Key": key, **headers},
    )
    return view(request, how)


def test_first_and_replay(statements):
    with statements() as sent:
        first = post(views.default)
    for q in sent:
        print(q["sql"][:200])
    n = len(sent)
    with statements() as sent2:
        again = post(views.default)
    print(n, len(sent2), [q["sql"][:60] for q in sent2])
    assert again.content == first.content
    assert again.headers["Idempotent-Replayed"] == "true"
    assert Counter.objects.get().value == 1
    assert post(views.default, body=b"{1}").status_code == 422
    print(first.headers, again.headers, IdempotencyKey.objects.values())


@pytest.mark.parametrize(
    "how",
    [
        "http404",
        "crash",
        "stream",
        "large",
        "nothing",
        "redirect",
        "swallowed-409",
        "set-rollback",
        "nested",
        "500",
        "408",
        "422",
        "bell",
    ],
)
def test_other(how):
    for _ in range(2):
        try:
            r = post(views.default, how)
            print(how, r.status_code, dict(r.headers), r.content[:50])
        except Exception as e:
            print(how, repr(e)[:200])
        print(list(Counter.objects.values_list("value", flat=True)), IdempotencyKey.objects.count())


def test_once():
    calls = []
    assert run_once("a", 1, work=lambda: calls.append(1) or {"x": (1, 2)}) == {"x": [1, 2]}
    assert run_once("a", 1, work=lambda: calls.append(1)) == {"x": [1, 2]}

    def work(h):
        with h.step("s") as s:
            s.result = {"n": 1}
        return h.token

    assert run_once("b", 1, work=work, mode="lease") == 1
    assert run_once("b", 1, work=work, mode="lease") == 1

    def bad(h):
        assert h.run_step("s", lambda: calls.append(2) or 5) == 5
        if h.token == 1:
            raise RuntimeError
        return h.token

    with pytest.raises(RuntimeError):
        run_once("c", 1, work=bad, mode="lease")
    print(IdempotencyKey.objects.order_by("-id").values()[0])
    assert run_once("c", 1, work=bad, mode="lease") == 2
    assert calls == [1, 2]
