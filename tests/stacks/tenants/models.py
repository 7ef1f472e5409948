"""The models that django-tenants asks for."""

from django.db import models
from django_tenants.models import DomainMixin, TenantMixin


class Client(TenantMixin):
    """A tenant; its schema is made when it is saved."""

    name = models.CharField(max_length=100)
    auto_create_schema = True

    class Meta:
        app_label = "tenants"


class Domain(DomainMixin):
    """A host name of a tenant."""

    class Meta:
        app_label = "tenants"
