"""A mutation over HTTP, and the documented ``keep=``, for the tests of GraphQL packages."""

import json

from asgiref.sync import async_to_sync

PAY = "mutation Pay($amount: Int!) { pay(amount: $amount) }"


def without_errors(response):
    """Tell whether a GraphQL response has no errors; its status is 200 either way."""
    results = json.loads(response.content)
    batch = results if isinstance(results, list) else [results]
    return not any("errors" in result for result in batch)


def post(client, place, amount, *, key="k"):
    """Send the mutation."""
    body = json.dumps({"query": PAY, "variables": {"amount": amount}})
    response = client.post(
        place, body, content_type="application/json", headers={"Idempotency-Key": key}
    )
    return async_to_sync(_wait)(response) if hasattr(response, "__await__") else response


async def _wait(response):
    return await response


def replayed(response):
    """Whether the response is a stored one."""
    return response.headers.get("Idempotent-Replayed") == "true"
