"""Learning rates are chosen on held-out training images: every fifth of each label, and no validation image."""

from collections import Counter

from benchmarks.finetune import hold_out
from stages.data.manifest import Manifest, Row


def test_every_fifth_training_image_of_each_label_is_held_out():
    rows = [Row(f"{label}_{number}", "train", "x.png", label=label) for number in range(11) for label in (0, 1)]
    rows += [Row(f"val_{number}", "val", "x.png", label=0) for number in range(4)]
    held_out = hold_out(Manifest(tuple(rows), "pictures", ("a", "b"), ("cat", "dog")))
    assert Counter((row.split, row.label) for row in held_out.rows) == {
        ("train", 0): 9, ("train", 1): 9, ("val", 0): 2, ("val", 1): 2,
    }  # fmt: skip
    assert {row.image_id for row in held_out.split("val")} == {"0_4", "0_9", "1_4", "1_9"}
