"""Addresses of the site."""

from django.contrib import admin
from django.contrib.staticfiles.views import serve
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    # One style sheet and the admin's files, straight from the apps: no build step and no further
    # package, also with DEBUG off. A site with visitors puts a web server in front instead.
    path("static/<path:path>", serve, {"insecure": True}),
    path("", include("shop.urls")),
]
