"""The report says what the runs say."""

import numpy as np
import pytest

from stages.report.figures import class_colours
from stages.report.overlays import overlay
from stages.report.segmentation import CLAIMS, Head, head_label, table
from stages.report.tables import Table
from stages.runs import Run


def head(name, miou):
    metrics = {"miou": miou, "miou_low": miou - 1, "miou_high": miou + 1}
    return Head(head_label(name), Run("segmentation", name, f"train_head@{name}", {}, metrics), metrics)


def test_table_1_has_the_reports_rows_in_its_order_and_two_decimals():
    heads = [head("mine", 1.0), head("transformer_shared_qk", 20.004), head("linear", 12.345), head("transformer", 60)]
    made = table(heads)
    assert made.columns[:2] == ("Head", "Validation mIoU")
    assert made.rows == (
        ("Linear", "12.35", "11.35 to 13.35", "45.48", "-33.13"),
        ("Transformer", "60.00", "59.00 to 61.00", "63.33", "-3.33"),
        ("Transformer with shared Q-K", "20.00", "19.00 to 21.00", "62.44", "-42.44"),
        ("mine", "1.00", "0.00 to 2.00", "-", "-"),
    )


def test_table_as_markdown_csv_and_text(tmp_path):
    made = Table("Said", ("Head", "a|b"), (("one", "1.00"), ("three", "10.00")))
    assert made.markdown().splitlines()[2:4] == ["| Head | a\\|b |", "| --- | ---: |"]
    assert made.plain().splitlines()[1:] == ["Head     a|b", "one     1.00", "three  10.00"]
    made.write_csv(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "Head,a|b\none,1.00\nthree,10.00\n"


def test_overlay_paints_neither_void_nor_background():
    pixels = np.full((6, 6, 3), 0.5)
    mask = np.zeros((6, 6), np.uint8)
    mask[1:5, 1:5], mask[0, 0] = 1, 255
    painted = overlay(pixels, mask, ("background", "star"))
    assert np.allclose(painted[mask != 1], 0.5)
    assert np.allclose(painted[1, 1], class_colours(("background", "star"))["star"])  # the region's line
    assert not np.allclose(painted[2, 2], 0.5)


def test_overlay_paints_class_0_where_it_is_no_background():
    painted = overlay(np.full((4, 4, 3), 0.5), np.zeros((4, 4), np.uint8), ("sky", "road"))
    assert not np.allclose(painted, 0.5)


@pytest.mark.parametrize("count", [2, 21, 60])
def test_no_two_classes_share_a_colour(count):
    colours = class_colours(tuple(f"class {index}" for index in range(count)))
    assert len({tuple(np.round(colour, 3)) for colour in colours.values()}) == count + 1


def test_claims_are_about_heads_that_the_report_has():
    assert all(head(name, 1.0).reported is not None for _, first, second, _ in CLAIMS for name in (first, second))
