from django.urls import path

from shop import api, api_products, staff, views

app_name = "shop"
urlpatterns = [
    path("", views.products, name="products"),
    path("products/<slug:sku>/", views.product, name="product"),
    path("products/<slug:sku>/buy/", views.buy_now, name="buy"),
    path("products/<slug:sku>/basket/", views.add_to_basket, name="add"),
    path("basket/", views.basket, name="basket"),
    path("basket/<int:line>/remove/", views.remove_from_basket, name="remove"),
    path("checkout/", views.checkout, name="checkout"),
    path("orders/<uuid:reference>/", views.order, name="order"),
    path("orders/<uuid:reference>/pay/", views.pay_order, name="pay"),
    path("stock/", staff.stock, name="stock"),
    path("stock/<slug:sku>/", staff.edit_stock, name="edit-stock"),
    path("settlements/", staff.settlements, name="settlements"),
    path("api/purchases/", api.purchases, name="api-purchases"),
    path("api/products/<slug:sku>/", api_products.product, name="api-product"),
    path("health/", api.health, name="health"),
]
