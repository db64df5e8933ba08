from services.watermark.company import company


def test_everybody_goes_along_while_there_is_room():
    assert company(10, [], 100) == []
    assert company(10, [30, 10, 20], 70) == [1, 2, 0]


def test_who_brings_little_goes_first_and_the_oldest_always():
    assert company(60, [50, 5, 40, 5], 100) == [1, 3]
    assert company(500, [1, 2], 100) == []
    assert company(0, [0, 0], 100) == [0, 1]


def test_among_equals_the_older_go_first():
    assert company(10, [10] * 20, 100) == list(range(9))
