"""Tables on a terminal."""

from rich.table import Table


def new_table(*columns: str, title: str = "", fold: bool = False) -> Table:
    """A plain table.

    Args:
        columns: their heads, as far as they are known.
        title: above it, at the left.
        fold: break what is too wide instead of shortening it.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left", title_style="bold")
    table.title = title or None
    for column in columns:
        table.add_column(column, overflow="fold" if fold else "ellipsis")
    return table
