"""Attacks on the door: lower bounds of epsilon, measured, to stand below the upper bounds that accounting proves."""
