"""Pages that edit rows with a version: the admin, class-based views and functions."""

from django import forms
from django.contrib import admin
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.generic import DeleteView, UpdateView

from django_dblock import (
    StaleObject,
    VersionedAdmin,
    VersionedDeleteMixin,
    VersionedModelForm,
    VersionedUpdateMixin,
    form_conflict_response,
)
from tests.app.models import Box, Plain, Product, Setting, Shelf, Tag


class BoxInline(admin.TabularInline):
    model = Box
    extra = 0


class TagInline(admin.TabularInline):
    """Without a version."""

    model = Shelf.tags.through
    extra = 0


@admin.register(Shelf)
class ShelfAdmin(VersionedAdmin):
    list_display = ("name", "room", "open")
    list_editable = ("room", "open")
    inlines = (BoxInline, TagInline)
    actions = ("close",)
    save_as = True

    @admin.action(description="Close")
    def close(self, request, queryset):
        for shelf in queryset:
            shelf.open = False
            shelf.save()


class SettingForm(forms.ModelForm):
    """Of a project that knows nothing of versions."""

    class Meta:
        model = Setting
        fields = ("name", "value")


@admin.register(Setting)
class SettingAdmin(VersionedAdmin):
    form = SettingForm
    list_display = ("name", "value")
    list_editable = ("value",)

    def get_changelist_form(self, request, **kwargs):
        return SettingForm


@admin.register(Product)
class ProductAdmin(VersionedAdmin):
    fieldsets = ()


@admin.register(Plain)
class PlainAdmin(VersionedAdmin):
    """Nothing here has a version."""

    list_display = ("pk", "name")
    list_editable = ("name",)


@admin.register(Box)
class BoxAdmin(admin.ModelAdmin):
    """Django's own: what it edits is not guarded."""

    list_display = ("label", "items")
    list_editable = ("items",)


admin.site.register(Tag)


class ShelfUpdate(VersionedUpdateMixin, UpdateView):
    model = Shelf
    fields = ("name", "room", "width", "note", "main", "tags", "plan")
    template_name = "app/form.html"
    success_url = "/done/"


class ShelfDelete(VersionedDeleteMixin, DeleteView):
    model = Shelf
    template_name = "app/form.html"
    success_url = "/done/"


class ShelfForm(VersionedModelForm):
    class Meta:
        model = Shelf
        fields = ("name", "note")


BoxFormSet = forms.inlineformset_factory(
    Shelf, Box, form=VersionedModelForm, fields=("label", "items"), extra=1
)


def edit_shelf(request: HttpRequest, pk: int) -> HttpResponse:
    form = ShelfForm(request.POST or None, instance=get_object_or_404(Shelf, pk=pk))
    if form.is_valid():
        try:
            form.save()
        except StaleObject as error:
            return form_conflict_response(request, form, error)
        return redirect("/done/")
    return render(request, "app/form.html", {"form": form})


def edit_boxes(request: HttpRequest, pk: int) -> HttpResponse:
    formset = BoxFormSet(request.POST or None, instance=get_object_or_404(Shelf, pk=pk))
    if formset.is_valid():
        try:
            with transaction.atomic():
                formset.save()
        except StaleObject as error:
            return form_conflict_response(request, formset, error)
        return redirect("/done/")
    return render(request, "app/form.html", {"form": formset})


class PlainForm(forms.ModelForm):
    class Meta:
        model = Plain
        fields = ("name",)


def edit_plain(request: HttpRequest, pk: int) -> HttpResponse:
    """The negative twin: nothing compares what was shown with what is there."""
    form = PlainForm(request.POST or None, instance=get_object_or_404(Plain, pk=pk))
    if form.is_valid():
        form.save()
        return redirect("/done/")
    return render(request, "app/form.html", {"form": form})
