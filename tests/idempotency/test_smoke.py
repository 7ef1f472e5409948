import pytest

from django_dblock import IdempotencyKey, run_once

pytestmark = pytest.mark.django_db(transaction=True)


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
