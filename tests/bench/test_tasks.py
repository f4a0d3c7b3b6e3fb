"""Tasks in this process and in several: the same results, and the same errors."""

import os

import pytest

from sage.bench.tasks import Processes, tasks
from sage.errors import SettingsError


def make():
    return {"made in": os.getpid(), "sum": 0}


def add(made, number):
    made["sum"] += number
    return number, made["sum"], made["made in"]


def refuse(made, why):
    raise SettingsError(why)


@pytest.mark.parametrize("processes", [1, 2])
def test_every_task_is_done_once_where_its_thing_was_made(processes):
    with tasks(make, processes) as pool:
        waiting, found = {pool.submit(add, number) for number in range(4)}, []
        while waiting:
            waiting.remove(task := pool.next(waiting))
            found.append(pool.result(task))
        assert sorted(number for number, _, _ in found) == [0, 1, 2, 3]
        places = {place for _, _, place in found}
        assert places == {os.getpid()} if processes == 1 else os.getpid() not in places
        # What was made is kept: each process's last sum is that of its own numbers.
        assert sum(max(s for _, s, place in found if place == here) for here in places) == 6
        with pytest.raises(SettingsError, match="too few"):
            pool.result(pool.submit(refuse, "too few"))


def test_each_task_alone_finds_what_no_other_has_touched():
    with Processes(make, 2, alone=True) as pool:
        found = [pool.result(task) for task in [pool.submit(add, 5) for _ in range(3)]]
    assert [s for _, s, _ in found] == [5, 5, 5] and len({place for _, _, place in found}) == 3
