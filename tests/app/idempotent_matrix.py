"""Each kind of view with ``@idempotent``, each at its own address."""

from hashlib import sha256

from asgiref.sync import sync_to_async
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import include, path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt
from rest_framework import exceptions, serializers, throttling, viewsets
from rest_framework.authentication import BaseAuthentication
from rest_framework.decorators import action, api_view, authentication_classes
from rest_framework.parsers import FileUploadParser, FormParser, JSONParser, MultiPartParser
from rest_framework.permissions import BasePermission, IsAuthenticated
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter
from rest_framework.views import APIView

from django_dblock import IdempotencyKeyReused, idempotent, run_once
from django_dblock.exceptions import IdempotencyInProgress, UnstorableResponse
from tests.app.idempotent_views import add_one, client
from tests.app.models import Counter

DURING = []
"""Called inside a view, after its effect: what happens while the request is in flight."""


def effect() -> int:
    value = add_one()
    for each in DURING:
        each()
    return value


def answer() -> HttpResponse:
    return JsonResponse({"value": effect()}, status=201)


# Django's own views.


@idempotent(scope=client)
def function(request):
    return answer()


@idempotent(scope=client, mode="lease")
def function_lease(request):
    return answer()


class Direct(View):
    @idempotent(scope=client)
    def post(self, request):
        return answer()

    def get(self, request):
        return HttpResponse(b"got")


class OnMethod(View):
    @method_decorator(idempotent(scope=client))
    def post(self, request):
        return answer()


@method_decorator(idempotent(scope=client), name="post")
class ByName(View):
    def post(self, request):
        return answer()


@method_decorator(idempotent(scope=client), name="dispatch")
class OnDispatch(View):
    """Nothing decides here who may come in, so it may stand around everything."""

    def post(self, request):
        return answer()


@method_decorator(idempotent, name="post")
class OfAnybody(View):
    def post(self, request):
        return answer()


class OfAnybodyOnMethod(View):
    @method_decorator([csrf_exempt, idempotent])
    def post(self, request):
        return answer()


class OfAnybodyInherited(OfAnybodyOnMethod):
    """It has the method of its parent."""


class DirectLease(View):
    @idempotent(scope=client, mode="lease")
    def post(self, request):
        return answer()


@idempotent(scope=client, mode="lease")
async def async_function(request):
    return await sync_to_async(answer)()


class AsyncDirect(View):
    @idempotent(scope=client, mode="lease")
    async def post(self, request):
        return await sync_to_async(answer)()


class AsyncOnMethod(View):
    @method_decorator(idempotent(scope=client, mode="lease"))
    async def post(self, request):
        return await sync_to_async(answer)()


@method_decorator(idempotent(scope=client, mode="lease"), name="dispatch")
class AsyncOnDispatch(View):
    async def post(self, request):
        return await sync_to_async(answer)()


class AsyncAtomic(View):
    """Wrong; method_decorator can't tell before the first call."""

    @method_decorator(idempotent(scope=client))
    async def post(self, request):
        return await sync_to_async(answer)()


@idempotent(mode="lease")
async def async_of_user(request):
    return await sync_to_async(answer)()


async def async_client(request):
    return client(request)


@idempotent(scope=async_client, mode="lease")
async def async_scope(request):
    return await sync_to_async(answer)()


@login_required
@idempotent
def of_user(request):
    return answer()


@idempotent
def of_anybody(request):
    return answer()


def account(request):
    return sha256(request.headers["Authorization"].encode()).hexdigest()


@csrf_exempt
@idempotent(scope=account)
def payment_intents(request):
    """As Stripe's own address, seen by its client."""
    amount = int(request.POST["amount"])
    if amount < 0:
        return JsonResponse({"error": {"message": "negative"}}, status=400)
    return JsonResponse({"id": f"pi_{effect()}", "object": "payment_intent", "amount": amount})


# Django REST framework.


class Token(BaseAuthentication):
    """``Authorization: Token <name of the user>``."""

    def authenticate(self, request):
        kind, _, name = request.headers.get("Authorization", "").partition(" ")
        if kind != "Token":
            return None
        user = User.objects.filter(username=name).first()
        if user is None:
            raise exceptions.AuthenticationFailed
        return user, None

    def authenticate_header(self, request):
        return "Token"


class MayPay(BasePermission):
    """Asked anew each time: the name says it."""

    def has_permission(self, request, view):
        return User.objects.filter(pk=request.user.pk, is_staff=True).exists()


class ReadsData(BasePermission):
    """Looks into the body before the view does, as many do."""

    def has_permission(self, request, view):
        return request.data is not None or True


class Never(throttling.BaseThrottle):
    def allow_request(self, request, view):
        return False

    def wait(self):
        return 7


@api_view(["POST"])
@authentication_classes([Token])
@idempotent
def api_function(request):
    return Response({"value": effect()}, status=201)


@api_view(["POST"])
@authentication_classes([Token])
@idempotent(mode="lease")
def api_function_lease(request):
    return Response({"value": effect()}, status=201)


class Api(APIView):
    authentication_classes = (Token,)


class ApiDirect(Api):
    @idempotent
    def post(self, request):
        return Response({"value": effect()}, status=201)


class ApiOnMethod(Api):
    @method_decorator(idempotent)
    def post(self, request):
        return Response({"value": effect()}, status=201)


@method_decorator(idempotent, name="post")
class ApiByName(Api):
    def post(self, request):
        return Response({"value": effect()}, status=201)


class Tea(viewsets.ViewSet):
    authentication_classes = (Token,)

    @action(detail=False, methods=["post"])
    @idempotent
    def brew(self, request):
        return Response({"value": effect()}, status=201)


class CounterSerializer(serializers.ModelSerializer):
    class Meta:
        model = Counter
        fields = ("name", "value")


class Counters(viewsets.ModelViewSet):
    authentication_classes = (Token,)
    queryset = Counter.objects.order_by("pk")
    serializer_class = CounterSerializer

    @idempotent
    def create(self, request, *args, **kwargs):
        effect()
        return super().create(request, *args, **kwargs)


class Text(BaseRenderer):
    media_type = "text/plain"
    format = "txt"

    def render(self, data, accepted_media_type=None, renderer_context=None):
        return repr(data).encode()


class Fragile(JSONRenderer):
    def render(self, data, accepted_media_type=None, renderer_context=None):
        if data == {"render": "fails"}:
            raise RuntimeError("rendering failed")
        return super().render(data, accepted_media_type, renderer_context)


def _raises(error):
    def raising(request):
        raise error

    return raising


def _once(error):
    def work():
        raise error

    return lambda request: run_once("x", work=work)


HOW = {
    "fails-on-rendering": lambda request: Response({"render": "fails"}),
    "validation": _raises(exceptions.ValidationError({"amount": ["too small"]})),
    "not-found": _raises(exceptions.NotFound()),
    "not-authenticated": _raises(exceptions.NotAuthenticated()),
    "denied": _raises(exceptions.PermissionDenied()),
    "throttled": _raises(exceptions.Throttled(wait=3)),
    "unstorable": _raises(UnstorableResponse("not twice")),
    "too-much": _raises(exceptions.ValidationError("x" * 1024 * 1024)),
    "http404": _raises(Http404()),
    "server": _raises(exceptions.APIException()),
    "crash": _raises(RuntimeError("crash")),
    "stream": lambda request: StreamingHttpResponse([b"x"]),
    "plain": lambda request: HttpResponse(b"plain", status=201),
    "returned-422": lambda request: Response({"no": "thing"}, status=422),
    "data": lambda request: Response(sorted(request.data)),
    "once-in-progress": _once(IdempotencyInProgress("busy", retry_after=4)),
    "once-reused": _once(IdempotencyKeyReused("reused")),
}


class Does(Api):
    """What the address says."""

    parser_classes = (JSONParser, FormParser, MultiPartParser)
    renderer_classes = (Fragile, Text)

    @idempotent
    def post(self, request, how):
        effect()
        return HOW[how](request)

    @idempotent
    def patch(self, request, how):
        effect()
        return HOW[how](request)


class DoesAfterReading(Does):
    permission_classes = (ReadsData,)


class Uploads(Api):
    """The whole body is one file."""

    parser_classes = (FileUploadParser,)

    @idempotent(methods=("POST", "PUT"))
    def post(self, request):
        effect()
        with request.data["file"] as file:
            return Response(
                {"name": file.name, "sha256": sha256(file.read()).hexdigest()}, status=201
            )

    put = post


class UploadsAfterReading(Uploads):
    permission_classes = (ReadsData,)


class Keeps5xx(Api):
    @idempotent(store_5xx=True)
    def post(self, request, how):
        effect()
        return HOW[how](request)


class Completes(Api):
    @idempotent(mode="lease")
    def post(self, request):
        with request.idempotency.guard():
            return request.idempotency.complete(Response({"value": effect()}, status=201))


class Staff(Api):
    permission_classes = (IsAuthenticated, MayPay)

    @idempotent
    def post(self, request):
        return Response({"value": effect()}, status=201)


class Throttled(Api):
    throttle_classes = (Never,)

    @idempotent
    def post(self, request):
        return Response({"value": effect()}, status=201)


class Unprotected(APIView):
    """It has no decorator: run_once() in it ends as it ends."""

    def post(self, request, how):
        return HOW[how](request)


def unprotected(request: HttpRequest, how: str) -> HttpResponse:
    return HOW[how](request)


router = SimpleRouter()
router.register("tea", Tea, basename="tea")
router.register("counters", Counters)

urlpatterns = [
    path("function/", function),
    path("function-lease/", function_lease),
    path("direct/", Direct.as_view()),
    path("on-method/", OnMethod.as_view()),
    path("by-name/", ByName.as_view()),
    path("on-dispatch/", OnDispatch.as_view()),
    path("direct-lease/", DirectLease.as_view()),
    path("async-function/", async_function),
    path("async-direct/", AsyncDirect.as_view()),
    path("async-on-method/", AsyncOnMethod.as_view()),
    path("async-on-dispatch/", AsyncOnDispatch.as_view()),
    path("async-atomic/", AsyncAtomic.as_view()),
    path("async-of-user/", async_of_user),
    path("async-scope/", async_scope),
    path("of-user/", of_user),
    path("of-anybody/", of_anybody),
    path("class-of-anybody/", OfAnybody.as_view()),
    path("", include([path("inherited/", OfAnybodyInherited.as_view())])),
    path("v1/payment_intents", payment_intents),
    path("api-function/", api_function),
    path("api-function-lease/", api_function_lease),
    path("api-direct/", ApiDirect.as_view()),
    path("api-on-method/", ApiOnMethod.as_view()),
    path("api-by-name/", ApiByName.as_view()),
    path("does/<str:how>/", Does.as_view()),
    path("does-after-reading/<str:how>/", DoesAfterReading.as_view()),
    path("uploads/", Uploads.as_view()),
    path("uploads-after-reading/", UploadsAfterReading.as_view()),
    path("keeps-5xx/<str:how>/", Keeps5xx.as_view()),
    path("completes/", Completes.as_view()),
    path("staff/", Staff.as_view()),
    path("throttled/", Throttled.as_view()),
    path("unprotected/<str:how>/", Unprotected.as_view()),
    path("unprotected-plain/<str:how>/", unprotected),
    path("", include(router.urls)),
]
