"""Keys as hypothesis makes them, and one UUID."""

from datetime import datetime
from uuid import UUID

from hypothesis import strategies as st

ONE = UUID("00112233-4455-6677-8899-aabbccddeeff")

texts = st.text(st.characters(codec=None) | st.sampled_from("\x00%'\"\udc80\ud83d"), max_size=6)

scalars = (
    texts
    | st.integers()
    | st.booleans()
    | st.binary(max_size=6)
    | st.uuids()
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.dates()
    | st.datetimes()
    | st.datetimes(
        timezones=st.timezones(), min_value=datetime(1900, 1, 1), max_value=datetime(2200, 1, 1)
    )
)

parts = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)

keys = st.lists(parts, min_size=1, max_size=4).map(tuple)
