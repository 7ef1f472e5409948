"""Locks, leases, optimistic writes and idempotency for Django, on PostgreSQL alone.

Four ideas, and what each guarantees:

``with advisory_lock("inventory", sku):``
    One transaction at a time in the block, per key, in the whole database. It ends at commit or
    rollback, also when the process or its machine dies. See :mod:`django_dblock.advisory`.

``product.save_cas()``
    The row is written only if nobody wrote it since it was read; else :class:`StaleObject`. It
    ends at once. See :mod:`django_dblock.versioning`.

``with fenced_lock("nightly-sync", ttl=30) as lock:``
    One holder at a time across transactions and processes, for long work; a stale holder's
    *writes* are refused. It ends with a release, or expires by the database's clock. See
    :mod:`django_dblock.fencing`.

``@idempotent``, ``run_once("invoice", order, work=…)``
    A repeated request has its effects in the database once, and gets the first response again; both
    commit together. It ends with the retention, 24 hours by default. What is called outside is
    called at least once. See :mod:`django_dblock.idempotency`.

Semaphores, read-write locks, elections, partitions, latches and jobs that run once in each period
are made of these: see :mod:`django_dblock.coordination`.

Every public name can be imported from here; it is loaded at first use, so that importing the
package touches neither the settings nor the app registry.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from django_dblock.advisory.lock import HeldLock as HeldLock
    from django_dblock.advisory.lock import HeldLocks as HeldLocks
    from django_dblock.advisory.lock import advisory_lock as advisory_lock
    from django_dblock.advisory.lock import advisory_locks as advisory_locks
    from django_dblock.advisory.lock import try_advisory_lock as try_advisory_lock
    from django_dblock.advisory.operations import (
        terminate_backend as terminate_backend,
    )
    from django_dblock.advisory.rows import alocked as alocked
    from django_dblock.advisory.rows import lock_rows as lock_rows
    from django_dblock.advisory.rows import lock_table as lock_table
    from django_dblock.coordination.latch import latch as latch
    from django_dblock.coordination.latch import purge_latches as purge_latches
    from django_dblock.coordination.leadership import Leader as Leader
    from django_dblock.coordination.leadership import Term as Term
    from django_dblock.coordination.leadership import leader as leader
    from django_dblock.coordination.leadership import leadership as leadership
    from django_dblock.coordination.once_per import AsyncOncePer as AsyncOncePer
    from django_dblock.coordination.once_per import OncePer as OncePer
    from django_dblock.coordination.once_per import Period as Period
    from django_dblock.coordination.once_per import PeriodRun as PeriodRun
    from django_dblock.coordination.once_per import missed as missed
    from django_dblock.coordination.once_per import once_per as once_per
    from django_dblock.coordination.partitions import Partition as Partition
    from django_dblock.coordination.partitions import Share as Share
    from django_dblock.coordination.partitions import partition_of as partition_of
    from django_dblock.coordination.partitions import partitions as partitions
    from django_dblock.coordination.rwlock import ReadLease as ReadLease
    from django_dblock.coordination.rwlock import WriteLease as WriteLease
    from django_dblock.coordination.rwlock import fenced_rwlock as fenced_rwlock
    from django_dblock.coordination.semaphore import HeldPermit as HeldPermit
    from django_dblock.coordination.semaphore import Permit as Permit
    from django_dblock.coordination.semaphore import advisory_semaphore as advisory_semaphore
    from django_dblock.coordination.semaphore import fenced_semaphore as fenced_semaphore
    from django_dblock.core.namespace import namespace as namespace
    from django_dblock.exceptions import DamagedAnswer as DamagedAnswer
    from django_dblock.exceptions import DblockError as DblockError
    from django_dblock.exceptions import IdempotencyAbandoned as IdempotencyAbandoned
    from django_dblock.exceptions import IdempotencyError as IdempotencyError
    from django_dblock.exceptions import IdempotencyInProgress as IdempotencyInProgress
    from django_dblock.exceptions import IdempotencyKeyInvalid as IdempotencyKeyInvalid
    from django_dblock.exceptions import IdempotencyKeyMissing as IdempotencyKeyMissing
    from django_dblock.exceptions import IdempotencyKeyReused as IdempotencyKeyReused
    from django_dblock.exceptions import IdempotencyLeaseLost as IdempotencyLeaseLost
    from django_dblock.exceptions import IdempotencyNotReplicated as IdempotencyNotReplicated
    from django_dblock.exceptions import LockDeadlock as LockDeadlock
    from django_dblock.exceptions import LockError as LockError
    from django_dblock.exceptions import LockLost as LockLost
    from django_dblock.exceptions import LockTableFull as LockTableFull
    from django_dblock.exceptions import LockTimeout as LockTimeout
    from django_dblock.exceptions import MissingVersion as MissingVersion
    from django_dblock.exceptions import NotReplicated as NotReplicated
    from django_dblock.exceptions import OpenTransaction as OpenTransaction
    from django_dblock.exceptions import RetryInTransaction as RetryInTransaction
    from django_dblock.exceptions import SelfDeadlock as SelfDeadlock
    from django_dblock.exceptions import StaleFence as StaleFence
    from django_dblock.exceptions import StaleObject as StaleObject
    from django_dblock.exceptions import StaleObjects as StaleObjects
    from django_dblock.exceptions import StandbyDatabase as StandbyDatabase
    from django_dblock.exceptions import TerminationRefused as TerminationRefused
    from django_dblock.exceptions import TooManyIdempotencyKeys as TooManyIdempotencyKeys
    from django_dblock.exceptions import UnsafeIsolation as UnsafeIsolation
    from django_dblock.exceptions import UnstorableResponse as UnstorableResponse
    from django_dblock.exceptions import UnsupportedDatabase as UnsupportedDatabase
    from django_dblock.fencing.lease import Lease as Lease
    from django_dblock.fencing.lock import fenced_lock as fenced_lock
    from django_dblock.fencing.model import FencedModel as FencedModel
    from django_dblock.fencing.model import FencedQuerySet as FencedQuerySet
    from django_dblock.fencing.operations import force_release as force_release
    from django_dblock.fencing.operations import (
        purge_fenced_locks as purge_fenced_locks,
    )
    from django_dblock.idempotency.decorator import IdempotentRequest as IdempotentRequest
    from django_dblock.idempotency.decorator import idempotent as idempotent
    from django_dblock.idempotency.operations import (
        purge_idempotency_keys as purge_idempotency_keys,
    )
    from django_dblock.idempotency.operations import (
        resolve_idempotency_key as resolve_idempotency_key,
    )
    from django_dblock.idempotency.run_once import arun_once as arun_once
    from django_dblock.idempotency.run_once import run_once as run_once
    from django_dblock.models import FencedLock as FencedLock
    from django_dblock.models import IdempotencyKey as IdempotencyKey
    from django_dblock.versioning.bypass import bypass_versions as bypass_versions
    from django_dblock.versioning.field import VersionField as VersionField
    from django_dblock.versioning.model import VersionedModel as VersionedModel
    from django_dblock.versioning.queryset import VersionedManager as VersionedManager
    from django_dblock.versioning.queryset import VersionedQuerySet as VersionedQuerySet
    from django_dblock.versioning.retry import retry_on_conflict as retry_on_conflict
    from django_dblock.versioning.web.admin import VersionedAdmin as VersionedAdmin
    from django_dblock.versioning.web.diff import UNKNOWN as UNKNOWN
    from django_dblock.versioning.web.diff import ConflictDiff as ConflictDiff
    from django_dblock.versioning.web.diff import FieldDiff as FieldDiff
    from django_dblock.versioning.web.diff import conflict_diff as conflict_diff
    from django_dblock.versioning.web.etag import etag as etag
    from django_dblock.versioning.web.forms import (
        VersionedDeleteForm as VersionedDeleteForm,
    )
    from django_dblock.versioning.web.forms import (
        VersionedFormMixin as VersionedFormMixin,
    )
    from django_dblock.versioning.web.forms import (
        VersionedModelForm as VersionedModelForm,
    )
    from django_dblock.versioning.web.http import if_match as if_match
    from django_dblock.versioning.web.http import set_etag as set_etag
    from django_dblock.versioning.web.preconditions import (
        PreconditionFailed as PreconditionFailed,
    )
    from django_dblock.versioning.web.views import (
        VersionedDeleteMixin as VersionedDeleteMixin,
    )
    from django_dblock.versioning.web.views import (
        VersionedUpdateMixin as VersionedUpdateMixin,
    )
    from django_dblock.versioning.web.views import (
        form_conflict_response as form_conflict_response,
    )

__version__ = "0.1.0"

_HOME = {
    "HeldLock": "advisory.lock",
    "HeldLocks": "advisory.lock",
    "advisory_lock": "advisory.lock",
    "advisory_locks": "advisory.lock",
    "try_advisory_lock": "advisory.lock",
    "alocked": "advisory.rows",
    "lock_rows": "advisory.rows",
    "lock_table": "advisory.rows",
    "namespace": "core.namespace",
    "latch": "coordination.latch",
    "purge_latches": "coordination.latch",
    "Leader": "coordination.leadership",
    "Term": "coordination.leadership",
    "leader": "coordination.leadership",
    "leadership": "coordination.leadership",
    "AsyncOncePer": "coordination.once_per",
    "OncePer": "coordination.once_per",
    "Period": "coordination.once_per",
    "PeriodRun": "coordination.once_per",
    "missed": "coordination.once_per",
    "once_per": "coordination.once_per",
    "Partition": "coordination.partitions",
    "Share": "coordination.partitions",
    "partition_of": "coordination.partitions",
    "partitions": "coordination.partitions",
    "ReadLease": "coordination.rwlock",
    "WriteLease": "coordination.rwlock",
    "fenced_rwlock": "coordination.rwlock",
    "HeldPermit": "coordination.semaphore",
    "Permit": "coordination.semaphore",
    "advisory_semaphore": "coordination.semaphore",
    "fenced_semaphore": "coordination.semaphore",
    "DamagedAnswer": "exceptions",
    "DblockError": "exceptions",
    "IdempotencyAbandoned": "exceptions",
    "IdempotencyError": "exceptions",
    "IdempotencyInProgress": "exceptions",
    "IdempotencyKeyInvalid": "exceptions",
    "IdempotencyKeyMissing": "exceptions",
    "IdempotencyKeyReused": "exceptions",
    "IdempotencyLeaseLost": "exceptions",
    "IdempotencyNotReplicated": "exceptions",
    "TooManyIdempotencyKeys": "exceptions",
    "UnstorableResponse": "exceptions",
    "LockDeadlock": "exceptions",
    "LockError": "exceptions",
    "LockLost": "exceptions",
    "LockTableFull": "exceptions",
    "LockTimeout": "exceptions",
    "MissingVersion": "exceptions",
    "NotReplicated": "exceptions",
    "OpenTransaction": "exceptions",
    "RetryInTransaction": "exceptions",
    "SelfDeadlock": "exceptions",
    "StaleFence": "exceptions",
    "StaleObject": "exceptions",
    "StaleObjects": "exceptions",
    "StandbyDatabase": "exceptions",
    "TerminationRefused": "exceptions",
    "UnsafeIsolation": "exceptions",
    "UnsupportedDatabase": "exceptions",
    "Lease": "fencing.lease",
    "fenced_lock": "fencing.lock",
    "FencedModel": "fencing.model",
    "force_release": "fencing.operations",
    "purge_fenced_locks": "fencing.operations",
    "FencedQuerySet": "fencing.model",
    "IdempotentRequest": "idempotency.decorator",
    "idempotent": "idempotency.decorator",
    "run_once": "idempotency.run_once",
    "arun_once": "idempotency.run_once",
    "purge_idempotency_keys": "idempotency.operations",
    "resolve_idempotency_key": "idempotency.operations",
    "FencedLock": "models",
    "IdempotencyKey": "models",
    "terminate_backend": "advisory.operations",
    "VersionedAdmin": "versioning.web.admin",
    "bypass_versions": "versioning.bypass",
    "VersionedDeleteForm": "versioning.web.forms",
    "VersionField": "versioning.field",
    "VersionedFormMixin": "versioning.web.forms",
    "VersionedModelForm": "versioning.web.forms",
    "if_match": "versioning.web.http",
    "set_etag": "versioning.web.http",
    "VersionedManager": "versioning.queryset",
    "VersionedModel": "versioning.model",
    "FieldDiff": "versioning.web.diff",
    "ConflictDiff": "versioning.web.diff",
    "UNKNOWN": "versioning.web.diff",
    "conflict_diff": "versioning.web.diff",
    "PreconditionFailed": "versioning.web.preconditions",
    "VersionedQuerySet": "versioning.queryset",
    "retry_on_conflict": "versioning.retry",
    "etag": "versioning.web.etag",
    "VersionedDeleteMixin": "versioning.web.views",
    "VersionedUpdateMixin": "versioning.web.views",
    "form_conflict_response": "versioning.web.views",
}

__all__ = [  # noqa: PLE0604 - the names are strings, read from the table above
    "__version__",
    *_HOME,
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
