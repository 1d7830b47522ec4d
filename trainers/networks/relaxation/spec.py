"""What the configs of networks that answer relaxation times have in common."""


class RelaxationSpec:
    """They see two or three images of any times, judge the noise by these, and answer within bounds.

    Attributes:
        shortest, longest: bounds of relaxation times [s].
    """

    __slots__ = ()
    shortest: float
    longest: float

    @property
    def any_length(self) -> bool:
        """Whether one network serves series of every length: it sees two or three images, of any times."""
        return True

    @property
    def needs_sigma(self) -> bool:
        """Whether the noise level is an input."""
        return False

    def check_bounds(self) -> None:
        """Raises: ValueError if the bounds do not rise, or look like milliseconds."""
        if not self.shortest < self.longest:
            raise ValueError(f"shortest must be below longest, got {self.shortest:g} and {self.longest:g} s")
        if self.longest > 20:
            raise ValueError(f"longest is in seconds, got {self.longest:g}; divide by 1000 if these are milliseconds")
