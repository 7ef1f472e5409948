"""Views of the tests' site."""

urlpatterns: list = []
