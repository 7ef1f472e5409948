"""Models for forms and the admin: every kind of field that a form shows in a way of its own."""

from django.db import models

from django_dblock import VersionedManager, VersionedModel, VersionedQuerySet


class Tag(models.Model):
    name = models.CharField(max_length=40)

    def __str__(self):
        return self.name


class Shelf(VersionedModel):
    """Choices, dates, booleans, files, long text, JSON, relations, what may be empty."""

    class Room(models.TextChoices):
        CELLAR = "c", "The cellar"
        ATTIC = "a", "The <attic>"

    name = models.CharField(max_length=80)
    room = models.CharField(max_length=1, choices=Room.choices, default=Room.CELLAR)
    built = models.DateField(null=True, blank=True)
    checked = models.DateTimeField(null=True, blank=True)
    width = models.DecimalField(max_digits=9, decimal_places=2, default=0)
    open = models.BooleanField(default=True)
    plan = models.FileField(upload_to="plans", blank=True)
    note = models.TextField(blank=True)
    extra = models.JSONField(default=dict, blank=True)
    main = models.ForeignKey(Tag, models.SET_NULL, null=True, blank=True, related_name="main_of")
    tags = models.ManyToManyField(Tag, blank=True, related_name="shelves")
    secret = models.CharField(max_length=80, blank=True)

    class Meta:
        verbose_name_plural = "shelves"
        ordering = ("pk",)

    def __str__(self):
        return self.name


class Box(VersionedModel):
    """A row of an inline formset."""

    shelf = models.ForeignKey(Shelf, models.CASCADE, related_name="boxes")
    label = models.CharField(max_length=40)
    items = models.IntegerField(default=0)

    class Meta:
        verbose_name_plural = "boxes"
        ordering = ("pk",)

    def __str__(self):
        return self.label


class Member(VersionedModel):
    """Somebody whose visits are counted; nobody edits these fields."""

    unversioned = {"views", "seen", "last_shelf"}  # noqa: RUF012 - as users write it
    name = models.CharField(max_length=40)
    views = models.IntegerField(default=0)
    seen = models.DateTimeField(null=True)
    last_shelf = models.ForeignKey(Shelf, models.SET_NULL, null=True)


class Tree(models.Model):
    """Its delete() is told apart from Django's by what it is given, as treebeard's is."""

    given = None

    class Meta:
        abstract = True

    def delete(self, *args, **kwargs):
        Branch.given = args, kwargs
        return super().delete(*args, **kwargs)


class Branch(VersionedModel, Tree):
    pass


class BilingualQuerySet(VersionedQuerySet):
    """It writes another column as well, as django-modeltranslation's does."""

    def _update(self, values, *args):
        given = {field.name: value for field, _, value in values}
        others = []
        if "name" in given and "name_de" not in given:
            others = [(self.model._meta.get_field("name_de"), None, given["name"])]
        return super()._update([*values, *others], *args)


class Bilingual(VersionedModel):
    name = models.CharField(max_length=40)
    name_de = models.CharField(max_length=40)
    objects = VersionedManager.from_queryset(BilingualQuerySet)()
