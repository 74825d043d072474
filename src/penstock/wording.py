"""Words that several commands say."""

def number_of(count: int, what: str) -> str:
    """
    >>> number_of(1, "row"), number_of(2_000, "row")
    ('1 row', '2,000 rows')
    """
    return f"{count:,} {what}" + ("" if count == 1 else "s")
