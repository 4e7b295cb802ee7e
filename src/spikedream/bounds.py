"""What the numbers among a part's settings may be."""


def check_bounds(part: object, **bounds: tuple[float | None, float | None]) -> None:
    """Raises ValueError unless each named field of `part` lies between its bounds, both included; None means unbounded. A field
    that holds several numbers is checked number by number, and must hold at least one."""
    for name, (low, high) in bounds.items():
        value = getattr(part, name)
        numbers = value if isinstance(value, tuple) else (value,)
        right = bool(numbers) and all((low is None or x >= low) and (high is None or x <= high) for x in numbers)
        if not right:
            wanted = f"at least {low:g}" if high is None else f"at most {high:g}" if low is None else f"from {low:g} to {high:g}"
            raise ValueError(f"{name} is {list(value) if isinstance(value, tuple) else value}; it must be {wanted}")
