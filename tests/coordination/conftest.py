"""After each test no lease may be renewed any more."""

from tests.fencing.conftest import _no_heartbeat_is_left  # noqa: F401 - a fixture
