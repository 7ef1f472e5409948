"""Forms and views of versioned rows, seen by mypy --strict; read by the type checker only."""

from typing import Any, assert_type

from django.views.generic import DeleteView, UpdateView

from django_dblock import (
    VersionedDeleteForm,
    VersionedDeleteMixin,
    VersionedModel,
    VersionedModelForm,
    VersionedUpdateMixin,
)


class Product(VersionedModel):
    """A row with a page."""

    class Meta:
        app_label = "shop"


class EditForm(VersionedModelForm):
    """A form of the project's own."""

    class Meta:
        model = Product
        fields = ("version",)


class DeleteForm(VersionedDeleteForm):
    """A form of the project's own, for the question before a row is deleted."""


class Edit(VersionedUpdateMixin, UpdateView[Product, EditForm]):
    model = Product
    form_class = EditForm


class EditUntyped(VersionedUpdateMixin, UpdateView[Any, Any]):
    form_class = EditForm


class Delete(VersionedDeleteMixin, DeleteView[Product, DeleteForm]):
    model = Product
    form_class = DeleteForm


def views() -> None:
    assert_type(EditForm().is_valid(), bool)
    Edit.as_view()
    Delete.as_view()
