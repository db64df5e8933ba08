"""Files that change under a running process: what is seen, and what is kept."""

import os
import threading
import time

import pytest

from services.runtime.reloadable_file import InvalidFile, ReloadableFile


class Number:
    """A file that must hold a number; counts how often it was read."""

    def __init__(self, path, text="1"):
        self.path, self.reads = path, 0
        path.write_text(text)

    def load(self):
        self.reads += 1
        try:
            return [int(self.path.read_text())]
        except (OSError, ValueError):
            raise InvalidFile(f"{self.path}: no number") from None

    def watch(self):
        return ReloadableFile("numbers", [self.path], self.load)


@pytest.fixture
def number(tmp_path):
    return Number(tmp_path / "number")


def test_the_same_object_until_the_files_say_something_else(number):
    watched = number.watch()
    first = watched.current()
    assert first == [1] and watched.current() is first
    number.path.write_text("1")  # written, but the same
    assert watched.current() is first and number.reads == 1
    number.path.write_text("2")
    assert watched.current() == [2]


def test_it_tells_when_what_it_gives_is_of_before(number):
    watched = number.watch()
    assert watched.stale() is False
    number.path.write_text("no number")
    assert watched.stale() is True and watched.current() == [1]  # asked before the value was
    number.path.unlink()
    assert watched.stale() is True
    number.path.write_text("1")  # as it was
    assert watched.stale() is False
    number.path.write_text("2")
    assert watched.stale() is False and watched.current() == [2]


def test_writes_within_one_tick_of_the_files_clock_are_seen(number):
    watched = number.watch()
    for value in range(1000):
        number.path.write_text(f"{value % 10}")  # same size, same inode; often the same time stamps
        assert watched.current() == [value % 10]


def test_a_file_that_is_replaced_with_the_same_dates_is_seen(number, tmp_path):
    watched = number.watch()
    stat = number.path.stat()
    fresh = tmp_path / "fresh"
    fresh.write_text("7")
    os.utime(fresh, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    fresh.replace(number.path)
    assert watched.current() == [7]


def test_a_folder_behind_a_link_is_seen_as_kubernetes_swaps_it(tmp_path):
    for name, text in (("first", "1"), ("second", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "number").write_text(text)
    (tmp_path / "data").symlink_to("first")
    (tmp_path / "number").symlink_to("data/number")
    number = Number.__new__(Number)
    number.path, number.reads = tmp_path / "number", 0
    watched = number.watch()
    assert watched.current() == [1]
    (tmp_path / "new").symlink_to("second")
    (tmp_path / "new").replace(tmp_path / "data")
    assert watched.current() == [2]


def test_what_is_wrong_leaves_the_old_and_is_said_once(number, caplog):
    watched = number.watch()
    for write in (lambda: number.path.write_text(""), lambda: number.path.write_text("x"), number.path.unlink):
        write()
        for _ in range(3):
            assert watched.current() == [1]
    assert len(caplog.records) == 3 and all("the old ones stay in use" in record.message for record in caplog.records)
    number.path.write_text("2")
    assert watched.current() == [2]


def test_the_start_needs_them_good(number):
    number.path.write_text("x")
    with pytest.raises(InvalidFile, match="no number"):
        number.watch()


def test_files_that_change_while_they_are_read_are_read_again(number):
    watched = number.watch()
    number.path.write_text("2")
    load, number_load = number.load, []

    def torn():
        value = load()
        if not number_load:
            number_load.append(1)
            number.path.write_text("3")
        return value

    watched._load = torn
    assert watched.current() == [1]  # 2 was never whole
    assert watched.current() == [3]


@pytest.mark.parametrize("ahead_s", [0, 86_400])
def test_settled_files_are_not_read_again(number, monkeypatch, ahead_s):
    os.utime(number.path, (0, time.time() + ahead_s))
    watched = number.watch()
    later = time.time() + 10
    monkeypatch.setattr("services.runtime.reloadable_file.time.time", lambda: later)
    watched.current()
    read = []
    monkeypatch.setattr(watched, "_read", lambda: read.append(1))
    watched.current()
    assert not read


def test_threads_agree(number):
    watched, seen = number.watch(), []
    number.path.write_text("5")
    threads = [threading.Thread(target=lambda: seen.append(watched.current())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [[5]] * 8 and len(set(map(id, seen))) == 1 and number.reads == 2
