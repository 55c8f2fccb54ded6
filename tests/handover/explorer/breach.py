"""A law broken in the explored world."""


class Breach(AssertionError):
    """Says which law, and by which step; an assertion of the shipped machines that fails counts as one too."""

    def __init__(self, law: str, label: tuple = ()) -> None:
        super().__init__(law)
        self.label = label


def require(holds: bool, law: str) -> None:
    """Raise `Breach` unless the law holds."""
    if not holds:
        raise Breach(law)
