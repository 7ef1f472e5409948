"""Random histories of one row: no save loses a write that its instance has not seen.

Several instances of the row are read, changed, copied and saved, between nested transactions that
commit or roll back, updates without an instance, and writes of a rival. Beside each instance the
test keeps what the instance has seen of the row.
"""

import copy
import itertools
import pickle
import random

import psycopg
import pytest
from django.db import transaction

from django_dblock import StaleObject, StaleObjects, run_once
from django_dblock.versioning import rollback
from tests.app.models import Gadget, Product, ProductProxy, Special

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]

FIELDS = {
    Product: ["name", "stock"],
    ProductProxy: ["name", "stock"],
    Gadget: ["name", "stock", "watts"],
    Special: ["name", "note"],
}
DEEPEST, OPERATIONS, INSTANCES = 4, 60, 5
NEVER = object()


class Undo(Exception):
    pass


class Seen:
    """An instance, and the values of the row that it knows."""

    def __init__(self, instance, values):
        self.instance, self.values = instance, values


class Block:
    """An open transaction or savepoint, and what its rollback makes of each instance."""

    def __init__(self, seen):
        self.wrote = False
        self.before = {each: dict(each.values) for each in seen}


class History:
    def __init__(self, seed, model, rival):
        self.random, self.model, self.rival = random.Random(seed), model, rival
        self.fields, self.numbers = FIELDS[model], itertools.count(1000)
        self.seed, self.blocks, self.seen = seed, [], []
        self.saved = self.refused = 0
        self.pk = model.objects.create(**{name: self.new(name) for name in self.fields}).pk
        self.get()

    def new(self, name):
        number = next(self.numbers)
        return number if name in {"stock", "watts"} else str(number)

    def row(self):
        return self.model.objects.filter(pk=self.pk).values(*self.fields).get()

    def wrote(self):
        if self.blocks:
            self.blocks[-1].wrote = True

    def keep(self, instance, of=None):
        seen = Seen(instance, {})
        self.seen = [*self.seen[1 - INSTANCES :], seen]
        if of is None:
            self.has_read(seen)
            return
        seen.values = dict(of.values)
        for block in self.blocks:
            block.before[seen] = dict(block.before[of])

    def has_read(self, seen):
        """What was read after a write of the same block is undone with it, and was never there."""
        seen.values = {name: getattr(seen.instance, name) for name in self.fields}
        for depth, block in enumerate(self.blocks):
            undone = any(inner.wrote for inner in self.blocks[depth:])
            block.before[seen] = dict.fromkeys(self.fields, NEVER) if undone else dict(seen.values)

    # The operations

    def get(self):
        self.keep(self.model.objects.get(pk=self.pk))

    def refresh(self):
        seen = self.random.choice(self.seen)
        seen.instance.refresh_from_db()
        self.has_read(seen)

    def copy(self):
        of = self.random.choice(self.seen)
        how = self.random.choice(
            [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
        )
        self.keep(how(of.instance), of)

    def change(self):
        name = self.random.choice(self.fields)
        setattr(self.random.choice(self.seen).instance, name, self.new(name))

    def save(self):
        self.write(lambda instance: instance.save(), self.fields)

    def save_cas(self):
        self.write(lambda instance: instance.save_cas(), self.fields)

    def save_one(self):
        name = self.random.choice(self.fields)
        self.write(lambda instance: instance.save(update_fields=[name]), [name])

    def touch(self):
        self.write(lambda instance: instance.touch_version(), [])

    def save_many(self):
        name, rows = self.random.choice(self.fields), self.model.objects
        self.write(
            lambda instance: rows.bulk_save_cas([instance], [name], on_conflict="raise"), [name]
        )

    def update(self):
        name = self.random.choice(self.fields)
        rows = self.model.objects.filter(pk=self.pk)
        if self.random.random() < 0.5:
            rows = self.model.objects.filter(pk__gt=0)
        rows.update(**{name: self.new(name)})
        self.wrote()

    def update_many(self):
        name, instance = self.random.choice(self.fields), self.model.objects.get(pk=self.pk)
        setattr(instance, name, self.new(name))
        self.model.objects.bulk_update([instance], [name])
        self.wrote()

    def overtake(self):
        """Write as a rival, unless an open transaction has the row."""
        name = self.random.choice(self.fields)
        table, versions = (
            (field.model._meta.db_table, field.model._meta.pk.column)
            for field in (self.model._meta.get_field(name), self.model._version_field)
        )
        try:
            with self.rival.transaction():
                lock = "SELECT FROM {} WHERE {} = %s FOR UPDATE NOWAIT".format(*versions)
                self.rival.execute(lock, [self.pk])
                bump = "UPDATE {} SET version = version + 1 WHERE {} = %s".format(*versions)
                self.rival.execute(bump, [self.pk])
                write = f"UPDATE {table[0]} SET {name} = %s WHERE {table[1]} = %s"
                self.rival.execute(write, [self.new(name), self.pk])
        except psycopg.errors.LockNotAvailable:
            assert self.blocks

    def block(self):
        if len(self.blocks) == DEEPEST:
            return
        block, undo = Block(self.seen), self.random.random() < 0.5

        def work():
            self.blocks.append(block)
            try:
                self.run(self.random.randint(1, 6))
            finally:
                self.blocks.pop()
            if undo:
                raise Undo

        try:
            if self.random.random() < 0.5:
                run_once(self.model._meta.label, self.seed, next(self.numbers), work=work)
            else:
                with transaction.atomic(savepoint=undo or self.random.random() < 0.5):
                    work()
        except Undo:
            for seen in self.seen:
                seen.values = block.before[seen]
        else:
            if block.wrote:
                self.wrote()

    def write(self, save, names):
        seen = self.random.choice(self.seen)
        instance, before = seen.instance, self.row()
        rollback.forget_rolled_back(instance)  # as the save does; then what it took is given back
        mine = {name: getattr(instance, name) for name in self.fields}
        try:
            save(instance)
        except (StaleObject, StaleObjects):
            self.refused += 1
            assert self.row() == before
            return
        self.saved += 1
        self.wrote()
        after = self.row()
        for name in self.fields:
            changed = mine[name] != seen.values[name]
            assert after[name] == before[name] or before[name] == seen.values[name], "lost"
            assert after[name] == mine[name] or name not in names or not changed, "dropped"
            if getattr(instance, name) == after[name]:
                seen.values[name] = after[name]

    def run(self, operations):
        usual = [self.change, self.save, self.block, self.get]
        rare = [self.save_cas, self.save_one, self.save_many, self.touch, self.refresh, self.copy]
        rare += [self.update, self.update, self.update_many, self.overtake]
        for _ in range(operations):
            self.random.choice(2 * usual + rare)()


@pytest.mark.parametrize("model", FIELDS, ids=lambda model: model.__name__)
def test_no_write_is_lost(model, rival):
    histories = [History(seed, model, rival) for seed in range(25)]
    for history in histories:
        try:
            history.run(OPERATIONS)
        except Exception as error:
            error.add_note(f"seed {history.seed}")
            raise
    assert sum(history.saved for history in histories) > 100
    assert sum(history.refused for history in histories) > 100
