"""The lock monitor: what is held, who waits behind whom, since when, and a way to end it.

- ``words`` puts times and other people's texts into a form for people; ``waits`` finds the queues;
  ``graph`` lays out boxes and lines; ``picture`` draws the queues with it; ``page`` sorts and caps
  what is shown. None of these asks a database or knows of a request.
- ``read`` asks; ``views`` shows; ``release`` and ``terminate`` end something, ``written``
  writes that down; ``admin`` hooks them into the admin.
"""
