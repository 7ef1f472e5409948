"""Every error of the package, under one base. Each carries its data and says what to do next."""

from django_dblock.exceptions.base import DblockError as DblockError
from django_dblock.exceptions.base import LockError as LockError
from django_dblock.exceptions.coordination import SelfDeadlock as SelfDeadlock
from django_dblock.exceptions.idempotency import DamagedAnswer as DamagedAnswer
from django_dblock.exceptions.idempotency import IdempotencyAbandoned as IdempotencyAbandoned
from django_dblock.exceptions.idempotency import IdempotencyError as IdempotencyError
from django_dblock.exceptions.idempotency import IdempotencyInProgress as IdempotencyInProgress
from django_dblock.exceptions.idempotency import IdempotencyKeyInvalid as IdempotencyKeyInvalid
from django_dblock.exceptions.idempotency import IdempotencyKeyMissing as IdempotencyKeyMissing
from django_dblock.exceptions.idempotency import IdempotencyKeyReused as IdempotencyKeyReused
from django_dblock.exceptions.idempotency import IdempotencyLeaseLost as IdempotencyLeaseLost
from django_dblock.exceptions.idempotency import (
    IdempotencyNotReplicated as IdempotencyNotReplicated,
)
from django_dblock.exceptions.idempotency import TooManyIdempotencyKeys as TooManyIdempotencyKeys
from django_dblock.exceptions.idempotency import UnstorableResponse as UnstorableResponse
from django_dblock.exceptions.leases import LockLost as LockLost
from django_dblock.exceptions.leases import NotReplicated as NotReplicated
from django_dblock.exceptions.leases import OpenTransaction as OpenTransaction
from django_dblock.exceptions.leases import StaleFence as StaleFence
from django_dblock.exceptions.locks import LockDeadlock as LockDeadlock
from django_dblock.exceptions.locks import LockTableFull as LockTableFull
from django_dblock.exceptions.locks import LockTimeout as LockTimeout
from django_dblock.exceptions.locks import StandbyDatabase as StandbyDatabase
from django_dblock.exceptions.locks import TerminationRefused as TerminationRefused
from django_dblock.exceptions.locks import UnsafeIsolation as UnsafeIsolation
from django_dblock.exceptions.locks import UnsupportedDatabase as UnsupportedDatabase
from django_dblock.exceptions.versions import MissingVersion as MissingVersion
from django_dblock.exceptions.versions import RetryInTransaction as RetryInTransaction
from django_dblock.exceptions.versions import StaleObject as StaleObject
from django_dblock.exceptions.versions import StaleObjects as StaleObjects

for _error in list(vars().values()):
    if isinstance(_error, type):
        _error.__module__ = __name__  # tracebacks and pickles name what users import
del _error
