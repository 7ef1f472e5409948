from django.urls import path, re_path

from shop import api, api_payments, api_products, paying, staff, views

app_name = "shop"
urlpatterns = [
    path("", views.products, name="products"),
    path("products/<slug:sku>/", views.product, name="product"),
    path("products/<slug:sku>/buy/", views.buy_now, name="buy"),
    path("products/<slug:sku>/basket/", views.add_to_basket, name="add"),
    path("basket/", views.basket, name="basket"),
    path("basket/<int:line>/remove/", views.remove_from_basket, name="remove"),
    path("checkout/", views.checkout, name="checkout"),
    path("orders/<uuid:reference>/", paying.order, name="order"),
    path("orders/<uuid:reference>/pay/", paying.pay_order, name="pay"),
    path("stock/", staff.stock, name="stock"),
    path("stock/<slug:sku>/", staff.edit_stock, name="edit-stock"),
    path("settlements/", staff.settlements, name="settlements"),
    path("api/purchases/", api.purchases, name="api-purchases"),
    path("api/products/<slug:sku>/", api_products.product, name="api-product"),
    path("api/orders/<uuid:reference>/payments/", api_payments.payments, name="api-payments"),
    path("api/openapi.json", api.description, name="api-description"),
    re_path("^api/", api.nowhere),
    path("health/", api.health, name="health"),
]
