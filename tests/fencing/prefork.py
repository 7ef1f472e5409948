"""A WSGI application that holds leases, one taken before its workers are forked."""

import os

import django
from django.db import connections

django.setup()
connections["default"].settings_dict["NAME"] = os.environ["TEST_DATABASE"]

from django_dblock import fenced_lock  # noqa: E402

block = fenced_lock("master", ttl=3)
block.__enter__()
connections.close_all()


def start():
    own = fenced_lock("worker", os.getpid(), ttl=3)
    own.__enter__()
    connections.close_all()


os.register_at_fork(after_in_child=start)


def application(_environ, start_response):
    start_response("200 OK", [])
    return []
