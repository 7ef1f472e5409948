"""Well-known decorators that are wrong, kept as negative twins. They know their keys by our table.

Each is for a function view, ``view(request, how)``.
"""

import pickle
from functools import wraps

from django.db import IntegrityError, connection, transaction
from django.http import HttpResponse
from django.utils import timezone

from django_dblock import IdempotencyKey
from tests.idempotency import rows

SCOPE = "everybody"


def _key(request):
    return request.headers["Idempotency-Key"]


def _known(request):
    return IdempotencyKey.objects.filter(scope=SCOPE, key=_key(request)).first()


def _keep(request, response):
    found = rows.values(
        _key(request), SCOPE, status_code=response.status_code, body=response.content
    )
    IdempotencyKey.objects.bulk_create([IdempotencyKey(**found)], ignore_conflicts=True)


def _replay(row):
    headers = {"Idempotent-Replayed": "true", "Content-Type": "application/json"}
    return HttpResponse(bytes(row.body), status=row.status_code, headers=headers)


def check_then_act(view):
    """Look, run, record: nothing keeps two from looking at once. Knows keys, and no clients."""

    @wraps(view)
    def protected(request, how):
        if row := _known(request):
            return _replay(row)
        response = view(request, how)
        _keep(request, response)
        return response

    return protected


def released_lock(view):
    """A lock around the look, which is gone before the view runs."""

    @wraps(view)
    def protected(request, how):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_xact_lock(hashtext(%s))", [_key(request)])
            if cursor.fetchone() == (False,):
                return HttpResponse(status=409)
            if row := _known(request):
                return _replay(row)
        response = view(request, how)
        _keep(request, response)
        return response

    return protected


def claim_without_token(view):
    """A claim that ends after a while, and whoever comes to the end writes."""

    @wraps(view)
    def protected(request, how):
        now = timezone.now()
        row = _known(request)
        if row and row.completed_at:
            return _replay(row)
        if row and row.locked_until > now:
            return HttpResponse(status=409)
        if row is None:
            row = rows.unfinished(_key(request), SCOPE)
        IdempotencyKey.objects.filter(pk=row.pk).update(locked_until=now + rows.HOUR)
        response = view(request, how)
        IdempotencyKey.objects.filter(pk=row.pk).update(
            status_code=response.status_code, body=response.content, completed_at=timezone.now()
        )
        return response

    return protected


def claim_for_ever(view):
    """A claim that only its own run ends."""

    @wraps(view)
    def protected(request, how):
        if row := _known(request):
            return _replay(row) if row.completed_at else HttpResponse(status=409)
        row = rows.unfinished(_key(request), SCOPE)
        response = view(request, how)
        IdempotencyKey.objects.filter(pk=row.pk).update(
            status_code=response.status_code, body=response.content, completed_at=timezone.now()
        )
        return response

    return protected


def pickled(view):
    """The whole response, as Python brings it back."""

    @wraps(view)
    def protected(request, how):
        if row := _known(request):
            return pickle.loads(bytes(row.body))
        response = view(request, how)
        rows.make(_key(request), SCOPE, body=pickle.dumps(response))
        return response

    return protected


def answers_409(view):
    """A repeat is a conflict, whatever the first answer was, which nobody may have heard."""

    @wraps(view)
    def protected(request, how):
        if _known(request):
            return HttpResponse(status=409)
        response = view(request, how)
        _keep(request, response)
        return response

    return protected


def catches_integrity_error(view):
    """Run, record, and see too late that another was faster: the transaction is over by then."""

    @wraps(view)
    def protected(request, how):
        with transaction.atomic():
            if row := _known(request):
                return _replay(row)
            response = view(request, how)
            try:
                rows.make(_key(request), SCOPE, body=response.content)
            except IntegrityError:
                return _replay(_known(request))
            return response

    return protected


def on_conflict(view):
    """The row itself as the lock: who comes second waits in the index."""

    @wraps(view)
    def protected(request, how):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO django_dblock_idempotencykey (scope, key, fingerprint,"
                " fingerprint_version, method, path, headers, body_kind, token, owner, steps,"
                " created_at) VALUES (%s, %s, '', 1, '', '', '{}', 'plain', 1, '', '{}', now())"
                " ON CONFLICT DO NOTHING RETURNING id",
                [SCOPE, _key(request)],
            )
            if cursor.fetchone() is None:
                return HttpResponse(status=409)
            return view(request, how)

    return protected
