"""What the pages of measurements hold between their marks."""


def headings(page: str, place: str) -> list[str]:
    """Return the column headings of the table that stands in a place of a page."""
    table = page.split(f"<!-- begin {place} -->")[1].split(f"<!-- end {place} -->")[0].strip()
    return [heading.strip() for heading in table.splitlines()[0].strip("|").split("|")]
