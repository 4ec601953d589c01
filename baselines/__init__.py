"""The rivals: one file per method; files with a leading underscore are shared code."""
