"""The lock monitor: a page of all locks, holders and waiters, with buttons to end a holder.

- ``formatting`` formats times and foreign texts; ``wait_queues`` computes the queues;
  ``graph_layout`` lays out boxes and lines; ``graph_svg`` draws the queues with that layout. None
  of these queries a database or uses a request.
- ``page`` reads the rows, and sorts and limits them; ``views`` has the page, and the pages that end
  a lease or a backend; ``admin`` registers the pages with the admin.
"""
