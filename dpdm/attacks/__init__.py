"""Attacks on the door: measured lower bounds of epsilon, to compare with the upper bounds that accounting proves."""
