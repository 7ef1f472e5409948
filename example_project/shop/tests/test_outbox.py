"""Mails are written with their orders, and each is recorded once."""

from io import StringIO

from django.core.management import call_command
from django.test import TransactionTestCase, override_settings

from shop.models import Mail, MailRecord
from shop.outbox import BUCKETS
from shop.purchase import SoldOut, buy
from shop.tests.helpers import product


def drain(**options: object) -> str:
    said = StringIO()
    call_command("drain_outbox", until_empty=True, stdout=said, **options)
    return said.getvalue()


class Draining(TransactionTestCase):
    def setUp(self) -> None:
        product(stock=3)

    def test_an_order_writes_its_mail_and_a_refused_one_writes_none(self) -> None:
        order = buy("bell", 2, "Ada")
        with self.assertRaisesMessage(SoldOut, "Only 1"):
            buy("bell", 2, "Bob")
        mail = Mail.objects.get()
        assert mail.order == order
        assert 0 <= mail.bucket < BUCKETS

    def test_each_mail_is_sent_and_recorded_once(self) -> None:
        for _ in range(3):
            buy("bell", 1, "Ada")
        assert drain(name="ann") == "ann has recorded 3 mails.\n"
        assert drain(name="bob") == "bob has recorded 0 mails.\n"
        assert MailRecord.objects.filter(worker="ann").count() == 3

    @override_settings(SHOP_PARTITIONS=False)
    def test_without_partitions_a_worker_alone_sends_all_of_them_as_well(self) -> None:
        """What differs is what happens to a worker that was frozen: the demo shows it."""
        for _ in range(3):
            buy("bell", 1, "Ada")
        assert drain(name="ann") == "ann has recorded 3 mails.\n"
