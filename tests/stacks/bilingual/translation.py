"""What django-modeltranslation translates."""

from modeltranslation.translator import TranslationOptions, register

from tests.stacks.bilingual.models import Poster


@register(Poster)
class PosterOptions(TranslationOptions):
    """The title."""

    fields = ("title",)
