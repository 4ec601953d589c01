"""How synthetic images are judged: fidelity and utility, from image files only.

Nothing here is differentially private, and nothing here may be an input of training: real images are read to judge what
a run has already released. The package imports neither privacy code nor methods, so it cannot favor a method.
"""
