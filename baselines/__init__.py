"""The rivals: one file per method; a leading underscore marks what is shared and is not a method."""
