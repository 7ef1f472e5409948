"""The wait-for graph: queues, the blockers at their front, and the drawing."""

from django_dblock.monitor import graph_svg as picture
from django_dblock.monitor.graph_svg import doing, draw
from django_dblock.monitor.wait_queues import blockers, queues
from tests.monitor.rows import lease, lock, wanted


def drawn(locks, leases=()):
    return draw(queues(locks, leases))


def titles(found, kind=None):
    return [shape.title for shape in found.shapes if kind in (None, shape.kind)]


class TestQueues:
    def test_lock_without_waiters_has_no_queue(self):
        assert queues([lock(1), lock(2, "b")], [lease()]) == []

    def test_queue_has_holders_and_ordered_waiters(self):
        [queue] = queues([lock(1), wanted(2, waiting=9), wanted(3, waiting=5)], [])
        assert [party.pid for party in queue.holders] == [1]
        assert [party.pid for party in queue.waiters] == [2, 3]
        assert (queue.name, queue.kind, queue.longest) == ("a", "advisory", 9)

    def test_longest_wait_comes_first_then_most_waiters(self):
        locks = [
            lock(1, "short"), wanted(2, "short", waiting=1),
            lock(3, "long"), wanted(4, "long", waiting=60),
        ]  # fmt: skip
        found = queues(locks, [lease("one", waiting=("x",)), lease("two", waiting=("x", "y"))])
        assert [queue.name for queue in found] == ["long", "short", "two", "one"]

    def test_one_and_two_part_locks_differ(self):
        locks = [lock(1, number=5), wanted(2, number=5, key_id=None, name=None)]
        [queue] = queues(locks, [])
        assert queue.holders == ()
        assert queue.name == "(1, 5)"

    def test_any_labelled_session_names_the_lock(self):
        locks = [lock(1, None, number=5), wanted(2, "inventory:sku-1", number=5)]
        assert queues(locks, [])[0].name == "inventory:sku-1"

    def test_unlabelled_lock_is_named_by_number(self):
        assert queues([lock(1, None, number=5), wanted(2, None, number=5)], [])[0].name == "5"

    def test_bidi_characters_in_names_are_escaped(self):
        [queue] = queues([], [lease("evil\u202egnp", waiting=("\x1bx",))])
        assert queue.name == "evil\\u202egnp"
        assert queue.waiters[0].name == "\\x1bx"

    def test_delayed_lease_has_no_release_button(self):
        [held, kept] = queues(
            [], [lease("a", waiting=("x",)), lease("b", waiting=("x",), state="delayed")]
        )
        assert [queue.holders[0].lease for queue in (held, kept)] == ["0:a", ""]

    def test_permits_of_a_semaphore_share_a_queue(self):
        permits = [
            lease("api~semaphore", owner="w-0", waiting=("x", "y")),
            lease("api~semaphore", owner="w-1", slot=1, waiting=()),
        ]
        [queue] = queues([], permits)
        assert (queue.name, queue.role, queue.shared) == ("api", "permit", True)
        assert [holder.name for holder in queue.holders] == ["w-0", "w-1"]
        assert [waiter.name for waiter in queue.waiters] == ["x", "y"]
        assert [root.keeps for root in blockers([queue])] == [2, 2]
        [shape] = [s for s in draw([queue]).shapes if s.kind == "lock"]
        assert (shape.title, shape.detail) == ("api", "permit · 2 waiting")


class TestBlockers:
    def test_blocker_is_the_end_of_every_wait(self):
        locks = [
            lock(1, "a"), wanted(2, "a"), lock(2, "b"), wanted(3, "b"), lock(3, "c"),
            wanted(4, "c"), lock(9, "z"), wanted(8, "z"),
        ]  # fmt: skip
        found = blockers(queues(locks, []))
        assert [(each.party.pid, each.keeps) for each in found] == [(1, 3), (9, 1)]

    def test_each_shared_holder_is_a_blocker(self):
        locks = [lock(1, shared=True), lock(2, shared=True), wanted(3)]
        assert [each.party.pid for each in blockers(queues(locks, []))] == [1, 2]

    def test_backend_with_two_locks_is_named_once(self):
        locks = [lock(1, "a"), lock(1, "b"), wanted(2, "a"), wanted(3, "b")]
        [found] = blockers(queues(locks, []))
        assert found.keeps == 2

    def test_cycle_has_no_blocker(self):
        locks = [lock(1, "a"), lock(2, "b"), wanted(1, "b"), wanted(2, "a")]
        assert blockers(queues(locks, [])) == []

    def test_lease_holder_is_a_blocker(self):
        [found] = blockers(queues([], [lease(waiting=("x", "y"))]))
        assert (found.party.name, found.keeps) == ("web-1:1:Main", 2)


class TestDraw:
    def test_no_queue_is_no_picture(self):
        found = drawn([])
        assert found.shapes == ()

    def test_holder_lock_and_waiters_are_drawn(self):
        found = drawn([lock(1), wanted(2, waiting=125)])
        assert [(shape.kind, shape.title, shape.detail) for shape in found.shapes] == [
            ("holder", "1  shop", "idle in transaction, 1.0 s"),
            ("lock", "a", "exclusive · 1 waiting"),
            ("waiter", "2  shop", "waits for 2 min 5 s"),
        ]
        assert [(arrow.waits, arrow.cycle) for arrow in found.arrows] == [
            (False, False), (True, False),
        ]  # fmt: skip

    def test_arrows_point_from_waiter_to_holder(self):
        found = drawn([lock(1), wanted(2)])
        holder, middle, _ = found.shapes
        assert found.arrows[0].head.startswith(f"M{holder.x + holder.width:.1f} ")
        assert found.arrows[1].head.startswith(f"M{middle.x + middle.width:.1f} ")
        assert all("l9 " in arrow.head for arrow in found.arrows)

    def test_waiter_that_holds_a_lock_joins_two_queues(self):
        found = drawn([lock(1, "a"), wanted(2, "a"), lock(2, "b"), wanted(3, "b")])
        assert titles(found, "waiter") == ["2  shop", "3  shop"]
        assert [shape.x for shape in found.shapes] == sorted(shape.x for shape in found.shapes)

    def test_cycle_is_drawn(self):
        found = drawn([lock(1, "a"), lock(2, "b"), wanted(1, "b"), wanted(2, "a")])
        assert found.cycles == 1
        [turned] = [arrow for arrow in found.arrows if arrow.cycle]
        assert "l-9 " in turned.head

    def test_many_waiters_become_one_box(self):
        found = drawn([lock(1), *[wanted(pid) for pid in range(2, 302)]])
        assert len(titles(found, "waiter")) == picture.MOST_WAITERS
        assert titles(found, "more") == ["and 295 more wait"]

    def test_single_extra_waiter_is_drawn(self):
        found = drawn([lock(1), *[wanted(pid) for pid in range(2, 8)]])
        assert len(titles(found, "waiter")) == 6
        assert titles(found, "more") == []

    def test_joining_waiters_are_always_drawn(self):
        others = [wanted(pid) for pid in range(2, 50)]
        found = drawn([lock(1), *others, lock(49, "b"), wanted(99, "b")])
        assert "49  shop" in titles(found, "waiter")
        assert titles(found, "more") == ["and 42 more wait"]

    def test_many_holders_become_one_box(self):
        found = drawn([*[lock(pid, shared=True) for pid in range(1, 101)], wanted(999)])
        assert len(titles(found, "holder")) == picture.MOST_HOLDERS
        assert titles(found, "more") == ["and 97 more hold it"]
        assert titles(found, "lock") == ["a"]

    def test_number_of_drawn_queues_is_bounded(self):
        locks = []
        for number in range(50):
            locks += [lock(number + 1, f"k{number}"), wanted(number + 1000, f"k{number}")]
        found = drawn(locks)
        assert len(titles(found, "lock")) == picture.MOST_QUEUES
        assert found.left_out == 50 - picture.MOST_QUEUES

    def test_picture_stays_small(self):
        """Twelve queues of hundreds each."""
        locks = []
        for number in range(12):
            locks.append(lock(number + 1, f"k{number}"))
            locks += [wanted(1000 * (number + 1) + each, f"k{number}") for each in range(300)]
        assert len(drawn(locks).shapes) == 12 * (1 + 1 + picture.MOST_WAITERS + 1)

    def test_long_names_are_cut_with_a_full_tooltip(self):
        name = "inventory:" + "x" * 100
        shape = next(s for s in drawn([lock(1, name), wanted(2, name)]).shapes if s.kind == "lock")
        assert 40 < len(shape.title) < len(name), "cut, but not more than the page needs"
        assert shape.whole.startswith(name)

    def test_prepared_transaction_is_drawn(self):
        found = drawn(
            [lock(None, application_name=None, state=None, transaction_age=None), wanted(2)]
        )
        assert (found.shapes[0].title, found.shapes[0].detail) == ("prepared transaction", "")

    def test_prepared_transactions_stay_separate(self):
        locks = [lock(None, "a"), wanted(2, "a"), lock(None, "b"), wanted(3, "b")]
        assert len(titles(drawn(locks), "holder")) == 2

    def test_lease_is_drawn(self):
        found = drawn([], [lease(waiting=("x",))])
        assert [(shape.title, shape.detail) for shape in found.shapes] == [
            ("web-1:1:Main", "holds the lease, 1 min 0 s"),
            ("nightly", "lease · 1 waiting"),
            ("x", "waits in turn"),
        ]

    def test_hidden_session_is_marked(self):
        [queue] = queues([lock(1, hidden=True, state=None), wanted(2)], [])
        assert doing(queue.holders[0]) == "hidden"


class TestRoom:
    """Names are cut only as far as the page needs: there may be free space beside a box."""

    def test_short_chain_shows_names_whole(self):
        name = "inventory:warehouse-vienna:sku-0001"
        program = "gunicorn: worker [shop.wsgi]"
        locks = [
            lock(1, name, application_name=program), wanted(2, name, application_name=program)
        ]  # fmt: skip
        assert {name, f"1  {program}"} <= {shape.title for shape in drawn(locks).shapes}

    def test_long_chain_fits_the_page(self):
        long = "x" * 60
        locks = [lock(1, f"{long}0")]
        for number in range(2):
            locks += [
                wanted(number + 2, f"{long}{number}"), lock(number + 2, f"{long}{number + 1}")
            ]  # fmt: skip
        locks.append(wanted(9, f"{long}2"))
        assert drawn(locks[:2]).width <= picture.ROOM
        widths = {shape.width for shape in drawn(locks).shapes if shape.kind == "lock"}
        assert widths == {168}, "as narrow as ever, and the sheet scrolls"
