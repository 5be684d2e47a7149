"""Configurations: base documents every field; the others are base.get_config() plus their differences."""
