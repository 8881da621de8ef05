import pytest

from manytune.data.row_limit import limited
from manytune.data.templates import Example, Segment
from manytune.errors import DataError

ROWS = [Example((Segment("user", str(row)),), "x", "rows.jsonl", row) for row in range(1, 101)]


def test_fewer_rows_are_among_more_rows_in_their_order_and_not_the_first_ones():
    few, more = limited(ROWS, 10), limited(ROWS, 40)
    assert len(few) == 10 and {row.row for row in few} < {row.row for row in more}
    assert [row.row for row in more] == sorted(row.row for row in more)
    assert max(row.row for row in few) > 50
    assert limited(ROWS, None) == tuple(ROWS) == limited(ROWS, 100)


def test_more_rows_than_there_are_are_refused():
    with pytest.raises(DataError, match="asks for 101 training rows, and there are 100"):
        limited(ROWS, 101)
