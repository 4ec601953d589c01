"""How synthetic images are judged: fidelity and utility, from image files only.

Nothing here is differentially private and nothing here may be an input of training: real images are read to judge
what a run has already released. Imports neither privacy nor a method, so a judge cannot favor one.
"""
