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
4. Whatever changes the row in another way bumps the version as well: ``QuerySet.update()``,
   ``bulk_update()``, a fixture loaded over it. So a form that was opened before notices.
5. A version that was written in a transaction that was rolled back never was. The instance knows
   (:mod:`~django_dblock.versioning.rollback`), and refuses rather than to compare with a number
   that another writer may have reached by now.

6. Whose version it is counts as well: an instance whose primary key was changed carries the
   version of another row, and is refused; so is one that ``bulk_create(ignore_conflicts=True)``
   passed over.

Not guarded: a row deleted and created again with the same primary key starts at 1 again; writes
that go past Django (SQL, triggers) bump nothing; ``QuerySet.delete()`` and ``delete()`` compare
nothing (``delete_cas()`` does).

The modules: ``model`` (what users subclass), ``field``, ``guarded`` (the seam to Django's save),
``attempt`` (one save), ``tables`` (a save in several), ``conflict`` (zero rows: what happened),
``fate`` (rolled back?), ``origin`` (what was read), ``queryset``, ``manager``, ``bulk``,
``delete``, ``touch``, ``web.diff`` (mine, theirs, original), ``retry``, ``bypass``, ``checks``, and
for the browser ``token``, ``forms``, ``http``, ``admin``.
"""
