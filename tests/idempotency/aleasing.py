"""Async views in lease mode, asked from outside a loop."""

from asgiref.sync import async_to_sync
from django.test import AsyncRequestFactory

from django_dblock import idempotent
from tests.app.idempotent_views import client


def leased(work, **options):
    async def view(request):
        return await work(request)

    return idempotent(**{"scope": client, "mode": "lease", **options})(view)


def request(key='"key"', method="POST", user=None):
    headers = {} if key is None else {"Idempotency-Key": key}
    made = AsyncRequestFactory().generic(method, "/x/", b"{}", "application/json", headers=headers)
    if user is not None:

        async def auser():
            return user

        made.auser = auser
    return made


def post(view, **more):
    return async_to_sync(view)(request(**more))
