import numpy as np

from lexiseg.data.package_splits import segments_of
from lexiseg.data.packages import LabelledPhoto


def test_segments_of_a_labelled_photo() -> None:
    labels = np.array([[0, 0, 1, 1], [2, 2, 255, 1]], np.uint8)
    regions = np.array([[0, 0, 1, 2], [3, 3, 0, 2]], np.uint8)
    photo = LabelledPhoto("a", np.zeros((2, 4, 3), np.uint8), labels, regions)
    by_class = segments_of(photo, 255, [])
    assert by_class.ids.tolist() == [[1, 1, 2, 2], [3, 3, 0, 2]] and by_class.classes == {1: 0, 2: 1, 3: 2}
    apart = segments_of(photo, 255, [[1, 1, 0], [2, 1, 0], [3, 2, 1]])
    assert apart.ids.tolist() == [[1, 1, 4, 5], [0, 0, 0, 5]] and apart.classes == {1: 0, 4: 1, 5: 1}


def test_more_classes_than_eight_bits_hold() -> None:
    labels = np.array([[300, 300, 65535, 12]], np.uint16)
    regions = np.array([[1, 1, 0, 0]], np.uint8)
    found = segments_of(LabelledPhoto("a", np.zeros((1, 4, 3), np.uint8), labels, regions), 65535, [[1, 300, 0]])
    assert found.classes == {13: 12, 302: 300} and found.ids.tolist() == [[302, 302, 0, 13]]
