import pytest

from manytune.evaluation.report.axes import linear, logarithmic, short


def test_axes_hold_their_ends_and_label_powers():
    axis = logarithmic(1e4, 1e8)
    assert [tick.label for tick in axis.ticks] == ["10k", "100k", "1M", "10M", "100M"]
    assert 0 < axis.at(1e4) < axis.at(1e6) < axis.at(1e8) < 100
    assert linear(0.0, 1.0, about=4).at(5.0) == 100.0
    assert [short(value) for value in (7, 950, 999.9999, 12_300, 1.35e8)] == [
        *("7", "950", "1k", "12.3k", "135M")
    ]


def test_one_size_alone_has_an_axis():
    axis = logarithmic(500.0, 500.0)
    assert axis.at(500.0) == pytest.approx(50.0)
