"""DBLOCK_NAMESPACE as a string, a callable and a dotted path; the block ``namespace()``."""

import asyncio
import threading

import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured

from django_dblock import advisory_lock, fenced_lock, namespace
from django_dblock.conf import conf
from tests.helpers.locks import number

TENANT = "acme"
NOTHING = None


def current():
    return TENANT


def not_a_name():
    return 7


class TestSetting:
    def test_callable_is_asked_at_each_use(self, settings):
        names = iter(["acme", "globex"])
        settings.DBLOCK_NAMESPACE = lambda: next(names)
        assert (conf.namespace, conf.namespace) == ("acme", "globex")

    def test_dotted_path_of_a_callable_is_called(self, settings):
        settings.DBLOCK_NAMESPACE = f"{__name__}.current"
        assert conf.namespace == "acme"

    @pytest.mark.parametrize(
        "value", ["acme.example.com", "shop-1.eu", "v1.2", ".", "nowhere_at_all.x"]
    )
    def test_other_strings_with_dots_are_names(self, settings, value):
        settings.DBLOCK_NAMESPACE = value
        assert conf.namespace == value

    @pytest.mark.parametrize(
        "value", [f"{__name__}.curent", f"{__name__}.NOTHING", "tests.nowhere.x"]
    )
    def test_path_to_no_callable_is_refused(self, settings, value):
        settings.DBLOCK_NAMESPACE = value
        with pytest.raises(ImproperlyConfigured, match="DBLOCK_NAMESPACE"):
            _ = conf.namespace

    @pytest.mark.parametrize("value", ["x" * 101, "a\0b", "\udc80"])
    def test_unstorable_name_is_refused(self, settings, value):
        settings.DBLOCK_NAMESPACE = value
        with pytest.raises(ImproperlyConfigured, match="DBLOCK_NAMESPACE: A namespace"):
            _ = conf.namespace
        settings.DBLOCK_NAMESPACE = lambda: value
        with pytest.raises(ImproperlyConfigured, match="The callable of DBLOCK_NAMESPACE: A name"):
            _ = conf.namespace

    def test_callable_that_returns_no_string_is_refused(self, settings):
        settings.DBLOCK_NAMESPACE = not_a_name
        with pytest.raises(ImproperlyConfigured, match="must be a string, not 7"):
            _ = conf.namespace

    def test_errors_of_the_callable_are_passed_on(self, settings):
        settings.DBLOCK_NAMESPACE = lambda: 1 / 0
        with pytest.raises(ZeroDivisionError):
            _ = conf.namespace

    def test_has_namespaces_is_true_if_keys_are_separated(self, settings):
        assert not conf.has_namespaces
        with namespace("acme"):
            assert conf.has_namespaces
        settings.DBLOCK_NAMESPACE = "shop"
        assert conf.has_namespaces
        settings.DBLOCK_NAMESPACE = current
        assert conf.has_namespaces


class TestBlock:
    def test_block_overrides_the_setting(self, settings):
        settings.DBLOCK_NAMESPACE = "shop"
        with namespace("acme"):
            assert conf.namespace == "acme"
            with namespace(""):
                assert conf.namespace == ""
            assert conf.namespace == "acme"
        assert conf.namespace == "shop"

    def test_block_ends_when_its_body_raises(self):
        with pytest.raises(ZeroDivisionError), namespace("acme"):
            _ = 1 / 0
        assert conf.namespace == ""

    def test_one_object_can_be_entered_repeatedly(self):
        acme = namespace("acme")
        with acme, namespace("globex"), acme:
            assert conf.namespace == "acme"
        assert conf.namespace == ""

    @pytest.mark.parametrize("name", ["x" * 101, "a\0b", "\udc80"])
    def test_impossible_name_is_refused(self, name):
        with pytest.raises(ValueError, match="A namespace"):
            namespace(name)

    @pytest.mark.parametrize("name", [None, 1, b"acme"])
    def test_other_type_is_refused(self, name):
        with pytest.raises(TypeError, match="must be a string"):
            namespace(name)

    def test_each_task_has_its_namespace(self):
        async def work(name, both):
            with namespace(name):
                await both.wait()
                return conf.namespace, await sync_to_async(lambda: conf.namespace)()

        async def main():
            both = asyncio.Barrier(2)
            return await asyncio.gather(work("acme", both), work("globex", both))

        assert asyncio.run(main()) == [("acme", "acme"), ("globex", "globex")]
        assert conf.namespace == ""

    def test_new_thread_begins_with_the_setting(self):
        seen = []
        with namespace("acme"):
            thread = threading.Thread(target=lambda: seen.append(conf.namespace))
            thread.start()
            thread.join()
        assert seen == [""]


@pytest.mark.django_db(transaction=True)
class TestLocks:
    def test_advisory_locks_of_two_tenants_do_not_meet(self, settings, rival):
        rival.execute("BEGIN")
        rival.execute("SELECT pg_advisory_xact_lock(%s)", [number("invoices")])
        with namespace("acme"), advisory_lock("invoices", timeout=0) as held:
            assert held.key_id != number("invoices")

    def test_lock_uses_the_namespace_of_its_entry(self):
        lock = advisory_lock("invoices")
        with namespace("acme"), lock as acme:
            pass
        with namespace("globex"), lock as globex:
            pass
        assert acme.key_id != globex.key_id

    def test_leases_of_two_tenants_do_not_meet(self):
        with namespace("acme"), fenced_lock("invoices", ttl=30):
            with namespace("globex"), fenced_lock("invoices", ttl=30, timeout=0):
                pass

    def test_lease_outlives_the_namespace_block(self):
        with namespace("acme"):
            lock = fenced_lock("invoices", ttl=30)
            lease = lock.__enter__()
        lease.renew()
        lock.__exit__(None, None, None)
        with namespace("acme"), fenced_lock("invoices", ttl=30, timeout=0):
            pass
