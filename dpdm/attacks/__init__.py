"""Attacks on the door: lower bounds of epsilon, measured, to compare with the upper bounds that accounting proves."""
