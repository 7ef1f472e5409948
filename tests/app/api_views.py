"""Views of versioned rows with Django REST framework."""

from rest_framework import generics, permissions, serializers, viewsets
from rest_framework.decorators import action
from rest_framework.renderers import BrowsableAPIRenderer, JSONRenderer
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter
from rest_framework.views import APIView

from django_dblock.contrib.rest_framework import VersionedViewMixin
from tests.app.http_views import trouble
from tests.app.models import Counter, Invoice, InvoiceLine, Product, Setting


class ProductSerializer(serializers.ModelSerializer):
    class Meta:
        model = Product
        fields = ("id", "name", "stock")


class SettingSerializer(serializers.ModelSerializer):
    class Meta:
        model = Setting
        fields = ("id", "name", "value")


class LineSerializer(serializers.ModelSerializer):
    id = serializers.IntegerField()

    class Meta:
        model = InvoiceLine
        fields = ("id", "quantity")


class InvoiceSerializer(serializers.ModelSerializer):
    """Saves several rows, the one that is bound at last."""

    lines = LineSerializer(many=True)

    class Meta:
        model = Invoice
        fields = ("id", "customer", "lines")

    def update(self, instance, validated_data):
        for line in validated_data.pop("lines"):
            InvoiceLine.objects.filter(pk=line["id"]).update(quantity=line["quantity"])
        return super().update(instance, validated_data)


class Products(VersionedViewMixin, viewsets.ModelViewSet):
    queryset = Product.objects.order_by("pk")
    serializer_class = ProductSerializer
    renderer_classes = (JSONRenderer, BrowsableAPIRenderer)

    @action(detail=True, methods=["post"])
    def restock(self, request, pk):
        product = self.get_object()
        product.stock += 10
        product.save()
        return Response(self.get_serializer(product).data)

    @action(detail=True, methods=["post"], if_match_required=False)
    def rename(self, request, pk):
        product = self.get_object()
        product.name = request.data["name"]
        product.save()
        return Response({"name": product.name})

    @action(detail=True)
    def history(self, request, pk):
        self.get_object()
        return Response(["made"])

    @action(detail=False, methods=["post"])
    def forget(self, request):
        return Response({"forgotten": True})

    @action(detail=True, methods=["post"])
    def by_hand(self, request, pk):
        product = Product.objects.get(pk=pk)
        request.if_match.bind(product)
        product.save_cas()
        return Response({})

    @action(detail=True)
    def check(self, request, pk):
        serializer = self.get_serializer(self.get_object(), data={"stock": "many"})
        serializer.is_valid(raise_exception=True)

    @action(detail=False)
    def preview(self, request):
        return Response(self.get_serializer(Product(name="not saved")).data)

    @action(detail=False)
    def tagged(self, request):
        product = Product.objects.first()
        return Response(self.get_serializer(product).data, headers={"ETag": '"own"'})


class OfSomebody(permissions.BasePermission):
    """Looks at the object before the view does, as many do."""

    def has_permission(self, request, view):
        return not view.kwargs or view.get_object().name != "theirs"


class Guarded(VersionedViewMixin, viewsets.ModelViewSet):
    queryset = Product.objects.all()
    serializer_class = ProductSerializer
    permission_classes = (OfSomebody,)
    renderer_classes = (JSONRenderer, BrowsableAPIRenderer)

    def etag_variant(self):
        return f"mine-{super().etag_variant()}"


class ReadOnly(VersionedViewMixin, viewsets.ReadOnlyModelViewSet):
    queryset = Product.objects.all()
    serializer_class = ProductSerializer


class Deferred(ReadOnly):
    queryset = Product.objects.defer("version")


class Settings(VersionedViewMixin, viewsets.ModelViewSet):
    queryset = Setting.objects.all()
    serializer_class = SettingSerializer
    if_match_required = False


class Invoices(VersionedViewMixin, viewsets.ModelViewSet):
    queryset = Invoice.objects.all()
    serializer_class = InvoiceSerializer
    etag_covers_nested = True


class ProductList(VersionedViewMixin, generics.ListCreateAPIView):
    queryset = Product.objects.all()
    serializer_class = ProductSerializer


class ProductDetail(VersionedViewMixin, generics.RetrieveUpdateDestroyAPIView):
    queryset = Product.objects.all()
    serializer_class = ProductSerializer


class PlainDetail(generics.RetrieveUpdateDestroyAPIView):
    """Without the mixin, for counting statements."""

    queryset = Product.objects.all()
    serializer_class = ProductSerializer


class Fails(APIView):
    """Without the mixin: only the exception handler."""

    def post(self, request, name):
        Counter.objects.create(name=name)
        raise trouble(name)


router = SimpleRouter()
router.register("products", Products)
router.register("guarded", Guarded, basename="guarded")
router.register("read-only", ReadOnly, basename="read-only")
router.register("deferred", Deferred, basename="deferred")
router.register("settings", Settings)
router.register("invoices", Invoices)
