"""The namespace of all keys: what keeps tenants, or projects in one database, apart."""

from types import TracebackType

from django_dblock.conf import check_namespace, namespaces


class namespace:  # noqa: N801 - context managers are lower-case nouns
    """Use a namespace for all keys of a block, whatever ``DBLOCK_NAMESPACE`` says.

    For scripts, shells and jobs that work for one tenant after the other, where no request says
    whose turn it is::

        for tenant in tenants:
            with namespace(tenant.schema_name):
                run_once("invoices", month, work=send_invoices)

    Guaranteed, for what starts inside the block: advisory locks, leases, idempotency records and
    derived keys of the namespace never meet those of another namespace. A lock, lease or claim
    keeps the namespace in which it was taken until it is released, also where it outlives the
    block.

    Not guaranteed: that a thread started inside the block is in the namespace. Tasks of asyncio and
    ``asgiref.sync.sync_to_async`` inherit it (it is a context variable); a new thread begins with
    the setting.

    One object can be entered repeatedly, nested, and by several threads and tasks. It is not a
    decorator: set the namespace inside the function.

    Args:
        name: the namespace, at most 100 characters; "" is the namespace of a project without one.

    Raises:
        TypeError: the name is not a str.
        ValueError: the name is too long, or contains NUL or a lone surrogate.
    """

    def __init__(self, name: str) -> None:
        check_namespace(name)
        self._name = name

    def __enter__(self) -> None:
        namespaces.set((*namespaces.get(), self._name))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        namespaces.set(namespaces.get()[:-1])
