from services.watermark.batch_policy import select_batch


def test_everybody_goes_along_while_there_is_room():
    assert select_batch(10, [], 100) == []
    assert select_batch(10, [30, 10, 20], 70) == [0, 1, 2]


def test_the_most_urgent_go_along_and_the_first_always():
    assert select_batch(60, [30, 5, 40, 5], 100) == [0, 1, 3]
    assert select_batch(500, [1, 2], 100) == []
    assert select_batch(0, [0, 0], 100) == [0, 1]


def test_there_is_no_room_beyond_the_most():
    assert select_batch(10, [10] * 20, 100) == list(range(9))
