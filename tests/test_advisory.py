import pytest

from django_dblock import advisory_lock


@pytest.mark.django_db(transaction=True)
def test_x(rival, statements, pooler, standby):
    with statements() as sent, advisory_lock("a"):
        pass
    for q in sent:
        print(q)
    assert len(sent) == 3
