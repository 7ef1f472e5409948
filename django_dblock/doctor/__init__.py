"""What is wrong with a live database, for locks: facts are gathered, then each is examined.

``gather`` asks, and is the only one to; ``facts`` is what it brings; an examination is a function
from the facts to findings, and ``examine`` calls them all. Nothing here changes anything.
"""
