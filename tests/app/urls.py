"""Views of the tests' site."""

from django.urls import path

from tests.app import views

urlpatterns = [
    path("hit/", views.hit),
    path("decorated/<str:name>/", views.decorated),
    path("class/<str:name>/", views.Hit.as_view()),
]
