"""A model for the programs of this folder."""
