"""What the workloads write."""

from django.db import models

from django_dblock import FencedModel, VersionedModel


class Number(models.Model):
    """Read, added to in Python, and written back."""

    name = models.CharField(max_length=80, unique=True)
    value = models.IntegerField(default=0)


class FencedNumber(FencedModel):
    """The same, written by ``save_fenced``."""

    name = models.CharField(max_length=80, unique=True)
    value = models.IntegerField(default=0)


class VersionedNumber(VersionedModel):
    """The same, written by ``save_cas``."""

    name = models.CharField(max_length=80, unique=True)
    value = models.IntegerField(default=0)


class Entry(models.Model):
    """The journal: one row in the transaction of each write, so what was committed is known.

    ``operation`` is the history's id of it; ids grow in the order of commits of one name, because
    they are drawn while its row is locked.
    """

    operation = models.CharField(max_length=40)
    name = models.CharField(max_length=80)
    change = models.IntegerField()
    left = models.IntegerField()
    token = models.BigIntegerField(default=0)


class Lease(models.Model):
    """The lock table of the peer "a plain row with a ttl"."""

    name = models.CharField(max_length=80, primary_key=True)
    owner = models.CharField(max_length=40)
    expires_at = models.DateTimeField()


class Answered(models.Model):
    """The table of the peer "look whether it was done, then do it"."""

    key = models.CharField(max_length=80)
    answer = models.CharField(max_length=200)


class Charge(models.Model):
    """The acquirer's books: what was charged, and under which key of the merchant's."""

    key = models.CharField(max_length=80, unique=True)
    name = models.CharField(max_length=80)


MODELS = [Number, FencedNumber, VersionedNumber, Entry, Lease, Answered, Charge]
