"""Every raw SQL statement of the package, whole and named. No other module holds any."""
