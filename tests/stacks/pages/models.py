"""A page and a snippet of Wagtail, both with a version."""

from typing import ClassVar

from django.db import models
from wagtail.models import BasePageManager, DraftStateMixin, Page, PageQuerySet, RevisionMixin

from django_dblock import VersionedManager, VersionedModel, VersionedQuerySet
from django_dblock.contrib.wagtail import VersionedRevisionMixin


class ArticleQuerySet(VersionedQuerySet, PageQuerySet):
    """Both: bumps the version, and knows the tree."""


class Article(VersionedRevisionMixin, VersionedModel, Page):
    """A page."""

    body = models.TextField(blank=True)
    objects: ClassVar = BasePageManager.from_queryset(ArticleQuerySet)()


class Advert(VersionedRevisionMixin, VersionedModel, DraftStateMixin, RevisionMixin):
    """A snippet."""

    text = models.CharField(max_length=40)
    objects: ClassVar = VersionedManager()
