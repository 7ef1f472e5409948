"""The rounds, in the order they are played.

A round has a ``title`` and a ``guard`` (what is switched off and on), and two methods,
``unguarded(stage, attempt)`` and ``guarded(stage)``, which return an :class:`~shop.demo.play.Run`.
"""

from shop.demo.rounds.advisory import LastItems
from shop.demo.rounds.fenced import ThreeWorkers
from shop.demo.rounds.idempotent import Payments
from shop.demo.rounds.outbox import Outbox
from shop.demo.rounds.versioned import ManyEditors

ROUNDS = (LastItems(), ManyEditors(), ThreeWorkers(), Payments(), Outbox())
