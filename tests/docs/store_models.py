"""The models of the small store that the pages speak of."""

from django.db import models


class Product(models.Model):
    sku = models.CharField(max_length=40, unique=True)
    stock = models.IntegerField(default=0)


class Order(models.Model):
    product = models.ForeignKey(Product, on_delete=models.CASCADE)
    quantity = models.IntegerField(default=1)


class Account(models.Model):
    balance = models.IntegerField(default=0)


class Booking(models.Model):
    room = models.CharField(max_length=40)
    starts = models.DateTimeField()
    ends = models.DateTimeField()
