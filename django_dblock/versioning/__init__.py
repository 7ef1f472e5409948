"""Optimistic locking: a row is written only if nobody wrote it since it was read.

The protocol, in one page:

1. Every row has a version, a whole number that starts at 1 and only grows. An instance carries the
   version it was read with.
2. A write names that version and the next one in one statement: ``UPDATE … SET …, version = 8
   WHERE id = … AND version = 7``. PostgreSQL locks the row, looks at the condition again on the
   newest row, and then writes; so of two writers with version 7, one writes and the other finds
   zero rows. There is no moment between the look and the write.
3. Zero rows mean :class:`~django_dblock.StaleObject`: nothing was written, the instance still
   carries its old version (saving it again conflicts again), the transaction is usable.
4. ``QuerySet.update()``, ``bulk_update()`` and a fixture loaded over a row bump its version as
   well. So a form that was opened before notices.
5. A version that was written in a transaction that was rolled back never existed. The instance
   gets back the version that it carried before (:mod:`~django_dblock.versioning.rollback`),
   because another writer may have reached the same number by now.
6. An instance whose primary key was changed carries the version of another row, and is refused;
   so is an instance that ``bulk_create(ignore_conflicts=True)`` passed over.
7. What the open transaction has itself written past an instance is merged, as far as that can be
   proven by counting (:mod:`~django_dblock.versioning.own_writes`).

Not guarded:

- A row that is deleted and created again with the same primary key starts at 1 again.
- After a restore, or a failover that lost commits, a row reaches version numbers a second time.
- Writes without Django (SQL, triggers) bump no version.
- ``QuerySet.delete()`` and ``delete()`` compare nothing; ``delete_cas()`` does.
- Fields that a model names in ``unversioned``.

The modules: ``model`` (what users subclass), ``save`` (one save and the seam to Django),
``rollback`` (versions of a rolled-back transaction), ``own_writes`` (updates past an instance),
``loaded_state`` (the original of a conflict), ``field``, ``queryset``, ``bulk``, ``retry``,
``bypass``, and ``web`` for forms, pages, HTTP and the admin.
"""
