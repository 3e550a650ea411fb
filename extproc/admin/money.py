"""Write money: billionths of a unit as exact decimals, never as floating-point numbers."""

from typing import Final

PLACES: Final = 9  # of a unit of money: billionths


def price_text(billionths: int, places: int = PLACES) -> str:
    """Return a price as an exact decimal with so many places; with more if it has more that are not 0."""
    sign, (whole, rest) = "-" if billionths < 0 else "", divmod(abs(billionths), 10**PLACES)
    decimals = f"{rest:0{PLACES}}".rstrip("0")
    return f"{sign}{whole}.{decimals:0<{places}}"
