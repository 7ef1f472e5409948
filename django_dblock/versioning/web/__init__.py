"""Versions on the web: forms, views, the admin, ETag and If-Match."""
