"""Integrations of other packages; each module needs its package."""
