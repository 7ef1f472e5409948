"""Errors for programs."""

from django.http import JsonResponse


def problem(status: int, title: str, detail: str) -> JsonResponse:
    """Return an error in the form of RFC 9457."""
    return JsonResponse(
        {"title": title, "status": status, "detail": detail},
        status=status,
        content_type="application/problem+json",
    )
