"""Rows that refuse a stale holder's writes."""

import pytest
from django.db import DatabaseError, NotSupportedError, connections, transaction

from django_dblock import FencedLock, LockLost, StaleFence, fenced_lock, signals
from tests.app.models import Account, Cabinet, Safe, Savings, Vault
from tests.fencing.helpers import NAME, expire

pytestmark = pytest.mark.server

beside = pytest.mark.django_db(transaction=True)
elsewhere = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@pytest.fixture
def lock(db):
    with fenced_lock(NAME, ttl=30) as held:
        yield held


def newer(lock):
    """The lease of the next holder, for the test of those who come late."""
    FencedLock.objects.update(token=lock.token + 1)


def back(lock):
    FencedLock.objects.update(token=lock.token)
    lock.trust._reason = None


@beside
class TestBesideTheLockTable:
    def test_save_is_guarded_and_stamped(self, lock, statements):
        account = Account.objects.create(name="a")
        account.balance = 5
        with statements() as sent:
            account.save_fenced(lock)
        kinds = [query["sql"].split()[0].rstrip(";") for query in sent]
        assert kinds == ["BEGIN", "BEGIN", "UPDATE", "COMMIT"]
        assert "FOR KEY SHARE" in sent[1]["sql"]
        found = Account.objects.get()
        assert (found.balance, found.fence_token) == (5, lock.token)
        assert account.fence_token == lock.token

    def test_new_row_is_guarded_and_stamped(self, lock):
        Account(name="a", balance=5).save_fenced(lock)
        assert Account.objects.get().fence_token == lock.token

    def test_update_fields_keeps_the_fence_column(self, lock):
        account = Account.objects.create(name="a")
        account.name, account.balance = "b", 5
        account.save_fenced(lock, update_fields=["balance"])
        found = Account.objects.get()
        assert (found.name, found.balance, found.fence_token) == ("a", 5, lock.token)

    def test_inherited_child_is_stamped_and_refused_if_stale(self, lock):
        savings = Savings.objects.create(name="a")
        savings.balance, savings.rate = 5, 2
        savings.save_fenced(lock)
        found = Savings.objects.get()
        assert (found.balance, found.rate, found.fence_token) == (5, 2, lock.token)
        Account.objects.update(fence_token=lock.token + 1)
        savings.rate = 3
        with pytest.raises(StaleFence):
            savings.save_fenced(lock)
        assert Savings.objects.get().rate == 2

    def test_stale_holder_is_refused_and_object_unchanged(self, lock):
        account = Account.objects.create(name="a")
        newer(lock)
        account.balance = 5
        with pytest.raises(StaleFence, match="because the lock is lost") as caught:
            account.save_fenced(lock)
        error = caught.value
        assert isinstance(error, LockLost)
        assert (error.model, error.pk, error.token) == ("app.account", account.pk, lock.token)
        assert account.fence_token == 0
        assert Account.objects.get().balance == 0
        back(lock)

    def test_lost_lease_sends_no_statement(self, lock, statements):
        account = Account.objects.create(name="a")
        lock.trust.lose("as the test wants it")
        with statements() as sent, pytest.raises(StaleFence):
            account.save_fenced(lock)
        assert len(sent) == 0
        back(lock)

    def test_newer_fence_column_refuses_the_write(self, lock):
        """A row with a greater token is refused even under a guard: tokens of another key, say."""
        account = Account.objects.create(name="a", fence_token=lock.token + 1)
        account.balance = 5
        with pytest.raises(StaleFence, match="a newer holder has written it"):
            account.save_fenced(lock)
        assert Account.objects.get().balance == 0
        lock.check()

    def test_refusal_leaves_the_surrounding_transaction_usable(self, lock):
        account = Account.objects.create(name="a", fence_token=lock.token + 1)
        with transaction.atomic():
            with pytest.raises(StaleFence):
                account.save_fenced(lock)
            with pytest.raises(StaleFence):
                Account.objects.fenced(lock).update(balance=1)
            Account.objects.create(name="after")
        assert Account.objects.count() == 2

    def test_deleted_row_is_refused(self, lock):
        account = Account.objects.create(name="a")
        Account.objects.all().delete()
        with pytest.raises(StaleFence, match="or it was deleted"):
            account.save_fenced(lock)

    def test_plain_save_leaves_the_fence_alone(self, lock):
        """So somebody who read the row before can't lower it."""
        account = Account.objects.create(name="a")
        Account.objects.fenced(lock).update(balance=5)
        account.name = "b"
        account.save()
        found = Account.objects.get()
        assert (found.name, found.fence_token) == ("b", lock.token)

    def test_update_and_delete_are_guarded(self, lock):
        Account.objects.create(name="a")
        Account.objects.create(name="b")
        assert Account.objects.filter(name="a").fenced(lock).update(balance=5) == 1
        assert Account.objects.fenced(lock).filter(name="c").update(balance=5) == 0
        assert Account.objects.get(name="a").fence_token == lock.token
        assert Account.objects.get(name="b").fence_token == 0
        assert Account.objects.fenced(lock).filter(name="b").delete()[0] == 1
        assert Account.objects.update(balance=1) == 1, "without a fence as ever"
        assert Account.objects.all().delete()[0] == 1

    def test_stale_row_refuses_the_whole_update(self, lock):
        Account.objects.create(name="a")
        Account.objects.create(name="b", fence_token=lock.token + 1)
        with pytest.raises(StaleFence, match="some of the rows") as caught:
            Account.objects.fenced(lock).update(balance=5)
        assert caught.value.pk is None
        with pytest.raises(StaleFence):
            Account.objects.fenced(lock).delete()
        assert set(Account.objects.values_list("balance")) == {(0,)}
        assert Account.objects.count() == 2

    def test_reading_claims_nothing(self, lock, statements):
        """The guard keeps stale writers out, so nothing has to be claimed."""
        Account.objects.create(name="a")
        with statements() as sent:
            assert Account.objects.fenced(lock).get().fence_token == 0
            assert len(list(Account.objects.fenced(lock).iterator())) == 1
        assert len(sent) == 2

    def test_refusal_sends_a_signal(self, lock):
        heard = []

        def hear(signal, sender, **data):
            heard.append((sender, data))

        account = Account.objects.create(name="a", fence_token=lock.token + 1)
        signals.stale_write_refused.connect(hear)
        try:
            with pytest.raises(StaleFence):
                account.save_fenced(lock)
        finally:
            signals.stale_write_refused.disconnect(hear)
        [(sender, data)] = heard
        assert sender is Account
        assert data["pk"] == account.pk
        assert (data["model"], data["kind"]) == ("app.account", "fenced")
        assert (data["token"], data["keys"]) == (lock.token, ((NAME,),))

    def test_other_database_errors_propagate_unstamped(self, lock):
        Account.objects.create(name="a")
        account = Account(name="a")
        with pytest.raises(DatabaseError, match="duplicate key"):
            account.save_fenced(lock)
        assert account.fence_token == 0


@elsewhere
class TestInAnotherDatabase:
    """No guard reaches there: the first access under a lock claims the rows."""

    def test_reading_claims_the_rows(self, lock, statements):
        Account.objects.using("other").create(name="a", balance=1)
        with statements("other") as sent:
            account = Account.objects.using("other").fenced(lock).get(name="a")
        assert [query["sql"].split()[0] for query in sent] == [
            "BEGIN", "SELECT", "UPDATE", "COMMIT",
        ]  # fmt: skip
        assert "FOR UPDATE" in sent[1]["sql"]
        assert account.fence_token == lock.token
        account.balance = 2
        account.save_fenced(lock)
        assert Account.objects.using("other").get().balance == 2

    def test_object_read_outside_the_lock_is_refused(self, lock):
        Account.objects.using("other").create(name="a")
        account = Account.objects.using("other").get()
        with pytest.raises(StaleFence, match="not read under this lock"):
            account.save_fenced(lock)

    def test_new_row_is_stamped(self, lock):
        Account(name="a").save_fenced(lock, using="other")
        assert Account.objects.using("other").get().fence_token == lock.token

    def test_stale_holder_is_refused_after_the_claim(self, observer):
        """Also between the newer holder's reading and its writing."""
        rows = Account.objects.using("other")
        rows.create(name="a", balance=100)
        with pytest.raises(LockLost), fenced_lock(NAME, ttl=30, heartbeat=False) as old:
            by_old = rows.fenced(old).get()
            expire(observer)
            with fenced_lock(NAME, ttl=30) as new:
                by_new = rows.fenced(new).get()
                by_old.balance += 10
                with pytest.raises(StaleFence, match="a newer holder has written it"):
                    by_old.save_fenced(old)
                with pytest.raises(StaleFence):
                    rows.fenced(old).update(balance=1)
                with pytest.raises(StaleFence):
                    list(rows.fenced(old))
                by_new.balance += 1
                by_new.save_fenced(new)
        assert rows.get().balance == 101

    def test_update_and_delete_claim_the_rows(self, lock):
        rows = Account.objects.using("other")
        rows.create(name="a")
        assert rows.fenced(lock).update(balance=5) == 1
        assert rows.get().fence_token == lock.token
        assert rows.fenced(lock).delete()[0] == 1

    def test_unsupported_querysets_cannot_claim(self, lock):
        rows = Account.objects.using("other").fenced(lock)
        with pytest.raises(NotSupportedError, match=r"^iterator\(\)"):
            rows.iterator()
        with pytest.raises(NotSupportedError, match=r"values\(\)"):
            list(rows.values("name"))

    def test_lost_lock_claims_nothing(self, lock):
        Account.objects.using("other").create(name="a")
        lock.trust.lose("as the test wants it")
        with pytest.raises(StaleFence):
            list(Account.objects.using("other").fenced(lock))
        assert Account.objects.using("other").get().fence_token == 0
        back(lock)

    def test_evaluated_queryset_is_not_claimed_again(self, lock, statements):
        Account.objects.using("other").create(name="a")
        rows = Account.objects.using("other").fenced(lock)
        list(rows)
        with statements("other") as sent:
            list(rows)
        assert len(sent) == 0
        connections["other"].close()


@elsewhere
@pytest.mark.parametrize("alias", ["default", "other"])
class TestSaveOfSeveralTables:
    """A row in several tables, in the database of the lock table and in another one."""

    @pytest.mark.parametrize("model", [Savings, Safe, Vault])
    def test_deleted_row_is_not_inserted_again(self, model, alias, lock):
        """The first table that a save writes has no token if the fence is in a child's table."""
        model.objects.using(alias).create()
        found = model.objects.using(alias).fenced(lock).get()
        model.objects.using(alias).all().delete()
        with pytest.raises(StaleFence, match="or it was deleted"):
            found.save_fenced(lock, using=alias)
        assert not model.objects.using(alias).exists()
        assert not Cabinet.objects.using(alias).exists()

    @pytest.mark.parametrize("model", [Account, Savings, Safe, Vault])
    def test_new_row_with_a_key_is_inserted(self, model, alias, lock):
        model(pk=7, balance=5).save_fenced(lock, using=alias)
        found = model.objects.using(alias).get()
        assert (found.pk, found.balance, found.fence_token) == (7, 5, lock.token)

    def test_new_child_of_a_newer_parent_is_refused(self, alias, lock):
        """The row of the parent is there already, so it is written under the fence."""
        Account.objects.using(alias).create(pk=7, balance=1, fence_token=lock.token + 1)
        with pytest.raises(StaleFence, match="a newer holder"):
            Savings(pk=7, balance=5).save_fenced(lock, using=alias)
        assert Account.objects.using(alias).get().balance == 1
        assert not Savings.objects.using(alias).exists()

    def test_new_child_of_a_claimed_parent_is_inserted(self, alias, lock):
        Account.objects.using(alias).create(pk=7)
        Account.objects.using(alias).fenced(lock).get()
        Savings(pk=7, balance=5).save_fenced(lock, using=alias)
        assert Savings.objects.using(alias).get().balance == 5
