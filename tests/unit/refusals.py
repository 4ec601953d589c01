"""What a refusal of the command line looks like."""


def refused(result: tuple[int, str, str], *named: str) -> None:
    """One sentence on stderr that has these words, and exit status 2."""
    code, _, stderr = result
    assert code == 2
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert all(word in stderr for word in named), stderr
