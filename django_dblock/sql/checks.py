"""The statements of the system checks."""

# What kind of server this is.
SERVER = "SELECT version(), pg_is_in_recovery(), current_setting('default_transaction_isolation')"
