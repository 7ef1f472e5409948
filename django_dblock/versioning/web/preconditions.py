"""``request.if_match``: the precondition of a request, bound to the write."""

from typing import TYPE_CHECKING, Any, Literal

from asgiref.sync import sync_to_async
from django.db import IntegrityError, router, transaction
from django.http import HttpRequest

from django_dblock.exceptions import DblockError, StaleObject
from django_dblock.signals import stale_object
from django_dblock.versioning.web import etag

if TYPE_CHECKING:
    from django_dblock.versioning.model import VersionedModel

Kind = Literal["none", "tags", "any", "absent"]
"""No precondition; ``If-Match`` with tags; ``If-Match: *``; ``If-None-Match: *``."""


class PreconditionFailed(DblockError):
    """A request's ``If-Match`` or ``If-None-Match`` does not hold. Nothing was written.

    If the client names an older version than the row has, :class:`StaleObject` is raised instead.

    Attributes:
        instance: the object that was to be written.
        model: the label of the instance's model, ``shop.Product``.
        pk: the instance's primary key.
        expected: the version of this row that the client named; None if it named none.
        actual: the version that was read; None if there is no row.
        absent: whether the client demands that there is no row (``If-None-Match: *``).
    """

    def __init__(
        self, *, instance: Any, expected: int | None, actual: int | None, absent: bool = False
    ) -> None:
        model, pk = instance._meta.label, instance.pk
        row = f"{model} {pk!r}"
        if absent:
            why = (
                f"the row exists already, with version {actual}, and the client sent "
                f"If-None-Match: *. To change the row, read it and send its ETag in If-Match"
            )
        elif actual is None:
            why = (
                "the client sent If-Match, and the object to be written was not read, so there is "
                "no such row. To create one, send If-None-Match: *"
            )
        elif expected is None:
            why = (
                "If-Match names no version of the row: its tags are those of other rows, or were "
                "made with another SECRET_KEY. Read the row again and send that response's ETag"
            )
        else:
            why = (
                f"the client saw version {expected}, and this request has read version {actual}, "
                f"which is older. Read the row from the primary before writing it"
            )
        super().__init__(f"{row} was not written: {why}.")
        self.instance = instance
        self.model = model
        self.pk = pk
        self.expected = expected
        self.actual = actual
        self.absent = absent


class IfMatch:
    """The precondition of one request; true in a boolean context if the client sent one.

    The precondition applies to the instances that are passed to ``bind()``, ``expected()`` or
    ``insert()``. No method compares before the write: the write itself compares.

    Attributes:
        kind: see :data:`Kind`.
        used: whether the view has used the precondition, or has called ``waive()``.
    """

    def __init__(self, kind: Kind, named: frozenset[tuple[int, str]] = frozenset()) -> None:
        self.kind = kind
        self.used = False
        self._named = named
        self._rows: dict[str, VersionedModel] = {}

    def __bool__(self) -> bool:
        return self.kind != "none"

    @classmethod
    def of(cls, request: HttpRequest) -> "IfMatch":
        """Read the headers of a request.

        Raises:
            MalformedTags: ``If-Match`` is not a list of entity tags; or the request also has
                ``If-None-Match: *``, and both can't hold.
        """
        header, absent = request.headers.get("If-Match"), _absent(request)
        if header is None:
            return cls("absent" if absent else "none")
        if absent:
            raise etag.MalformedTags(header)
        if header.strip() == "*":
            return cls("any")
        return cls("tags", frozenset(etag.named(header)))

    def bind(self, instance: "VersionedModel") -> None:
        """Compare every later write of this instance with the version that the client saw.

        Guarantees: the instance's ``save()``, ``save_cas()`` and ``delete_cas()`` name that version
        in the statement, also with ``cas_on_save = False`` and inside a form or a serializer. With
        ``If-Match: *`` the statement names the version that this request has read. Nothing is sent.

        Does not guarantee anything about ``delete()``, ``QuerySet.update()``, and other instances
        of the same row. If the client sent no precondition, nothing changes.

        Raises:
            StaleObject: the instance has a newer version than the client saw.
            PreconditionFailed: the client names no version of this row; or it names a newer version
                than was read (from a replica that lags); or the instance was not read, so that
                there is no such row; or the client sent ``If-None-Match: *``, and the row exists.
            MissingVersion: the instance carries no version.
        """
        self._use(instance)
        if not self:
            return
        if instance._state.adding and self.kind != "absent":
            raise PreconditionFailed(instance=instance, expected=None, actual=None)
        instance.expect_version(self.expected(instance))

    def expected(self, instance: "VersionedModel") -> int:
        """Return the version for ``save_cas(expected=…)`` and ``delete_cas(expected=…)``.

        The version holds for one write. The instance may be made by hand, ``Product(pk=pk)``,
        without reading the row: then only the UPDATE finds out whether the row has the version. If
        the client sent no precondition, the result is the version that the instance was read with.

        Raises:
            StaleObject: the instance has a newer version than the client saw.
            PreconditionFailed: the client names no version of this row, or a newer version than was
                read; or it sent ``If-Match: *`` and the instance was not read; or it sent
                ``If-None-Match: *``.
            MissingVersion: the instance carries no version, and the client named none.
        """
        self._use(instance)
        if self.kind == "tags":
            return self._seen(instance)
        if self.kind == "any" and instance._state.adding:
            raise PreconditionFailed(instance=instance, expected=None, actual=None)
        version = etag.carried(instance)
        if self.kind == "absent":
            raise PreconditionFailed(instance=instance, expected=None, actual=version, absent=True)
        return version

    def insert(self, instance: "VersionedModel", *, using: str | None = None) -> None:
        """Save a new row, for a PUT that creates: with ``If-None-Match: *`` only if there is none.

        The INSERT itself checks that, in a savepoint; a refused INSERT costs one more statement.

        Raises:
            PreconditionFailed: the row exists and the client sent ``If-None-Match: *``; or the
                client sent ``If-Match``, and there is no row.
            IntegrityError: another constraint refused the row.
        """
        self._use(instance)
        if self.kind in ("tags", "any"):
            raise PreconditionFailed(instance=instance, expected=None, actual=None)
        using = using or router.db_for_write(type(instance), instance=instance)
        try:
            with transaction.atomic(using=using):
                instance.save(force_insert=True, using=using)
        except IntegrityError as error:
            actual = self and _version_there(instance, using)
            if not actual:
                raise
            raise PreconditionFailed(
                instance=instance, expected=None, actual=actual, absent=True
            ) from error

    async def ainsert(self, instance: "VersionedModel", *, using: str | None = None) -> None:
        """Save a new row from async code, as :meth:`insert` does."""
        await sync_to_async(self.insert)(instance, using=using)

    def waive(self) -> None:
        """Declare that this request writes nothing, so that the precondition may stay unused."""
        self.used = True

    def row(self) -> "VersionedModel | None":
        """Return the instance that the view has used; None if there is none or several."""
        return next(iter(self._rows.values())) if len(self._rows) == 1 else None

    def current_tag(
        self, error: "StaleObject | PreconditionFailed", variant: str = ""
    ) -> str | None:
        """Return the row's present tag; None if the row was deleted, or its version is not known.

        The tag is returned only for a row that the view has used; the client named no other row.
        """
        instance, actual = error.instance, error.actual
        digest = etag.digest(instance)
        bound = self._rows.get(digest)
        if bound is None or actual is None or (error.expected or 0) > actual:
            return None
        if bound is not instance and bound.__dict__.get(bound._version_field.attname) == actual:
            return None  # this request wrote the version, which is rolled back
        return etag.tag(actual, digest, variant)

    def _use(self, instance: "VersionedModel") -> None:
        self.used = True
        self._rows[etag.digest(instance)] = instance

    def _seen(self, instance: "VersionedModel") -> int:
        expected = etag.newest(instance, self._named)
        actual = None if instance._state.adding else etag.carried(instance)
        if expected is None or (actual is not None and expected > actual):
            raise PreconditionFailed(instance=instance, expected=expected, actual=actual)
        if actual is not None and expected < actual:
            using = instance._state.db or ""
            error = StaleObject(instance=instance, expected=expected, actual=actual, using=using)
            stale_object.send_robust(type(instance), error=error)
            raise error
        return expected


def conditional(request: HttpRequest) -> bool:
    """Return whether the request has a precondition, well-formed or not."""
    return "If-Match" in request.headers or _absent(request)


def _absent(request: HttpRequest) -> bool:
    return request.headers.get("If-None-Match", "").strip() == "*"


def _version_there(instance: "VersionedModel", using: str) -> int | None:
    field = instance._version_field
    rows: Any = field.model._base_manager.using(using).filter(pk=instance._version_pk)
    version: int | None = rows.values_list(field.attname, flat=True).first()
    return version
