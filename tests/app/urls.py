"""Views of the tests' site."""

from django.contrib import admin
from django.urls import include, path

from tests.app import api_views, http_views, versioned_site, views

urlpatterns = [
    path("hit/", views.hit),
    path("decorated/<str:name>/", views.decorated),
    path("class/<str:name>/", views.Hit.as_view()),
    path("fails/<str:name>/", http_views.fails),
    path("fails-async/<str:name>/", http_views.fails_async),
    path("fails-conditionally/<str:name>/", http_views.fails_conditionally),
    path("http/plain/<int:pk>/", http_views.plain),
    path("http/unguarded/<int:pk>/", http_views.unguarded),
    path("http/check-then-act/<int:pk>/", http_views.check_then_act),
    path("http/optional/<int:pk>/", http_views.optional),
    path("http/blind/<int:pk>/", http_views.blind),
    path("http/put/<int:pk>/", http_views.put),
    path("http/create-only/<int:pk>/", http_views.create_only),
    path("http/create-async/<int:pk>/", http_views.create_async),
    path("http/find-or-make/<int:pk>/", http_views.find_or_make),
    path("http/async/<int:pk>/", http_views.plain_async),
    path("http/forgets/<int:pk>/", http_views.forgets),
    path("http/forgets-async/<int:pk>/", http_views.forgets_async),
    path("http/refuses/<int:pk>/", http_views.refuses),
    path("http/returns-nothing/<int:pk>/", http_views.returns_nothing),
    path("http/class/<int:pk>/", http_views.Edit.as_view()),
    path("http/dispatch/<int:pk>/", http_views.EditAll.as_view()),
    path("http/async-class/<int:pk>/", http_views.AsyncEdit.as_view()),
    path("http/async-dispatch/<int:pk>/", http_views.AsyncEditAll.as_view()),
    path("http/invoice/<int:pk>/", http_views.invoice),
    path("http/two-instances/<int:pk>/", http_views.two_instances),
    path("http/other-row/<int:pk>/", http_views.other_row),
    path("http/setting/<int:pk>/", http_views.setting),
    path("http/caught/<int:pk>/", http_views.caught),
    path("api/", include(api_views.router.urls)),
    path("api/list/", api_views.ProductList.as_view()),
    path("api/detail/<int:pk>/", api_views.ProductDetail.as_view()),
    path("api/plain/<int:pk>/", api_views.PlainDetail.as_view()),
    path("api/fails/<str:name>/", api_views.Fails.as_view()),
    path("admin/", admin.site.urls),
    path("shelf/<int:pk>/", versioned_site.ShelfUpdate.as_view()),
    path("shelf/<int:pk>/delete/", versioned_site.ShelfDelete.as_view()),
    path("shelf/<int:pk>/function/", versioned_site.edit_shelf),
    path("shelf/<int:pk>/boxes/", versioned_site.edit_boxes),
    path("plain/<int:pk>/", versioned_site.edit_plain),
]
