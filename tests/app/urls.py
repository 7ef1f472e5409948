"""Views of the tests' site."""

from django.contrib import admin
from django.urls import path

from tests.app import versioned_site, views

urlpatterns = [
    path("hit/", views.hit),
    path("decorated/<str:name>/", views.decorated),
    path("class/<str:name>/", views.Hit.as_view()),
    path("admin/", admin.site.urls),
    path("shelf/<int:pk>/", versioned_site.ShelfUpdate.as_view()),
    path("shelf/<int:pk>/delete/", versioned_site.ShelfDelete.as_view()),
    path("shelf/<int:pk>/function/", versioned_site.edit_shelf),
    path("shelf/<int:pk>/boxes/", versioned_site.edit_boxes),
    path("plain/<int:pk>/", versioned_site.edit_plain),
]
