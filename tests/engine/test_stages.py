"""What bounds and measures the stages, and what is said of them."""

import asyncio
from types import SimpleNamespace

import pytest

from engine import stages
from engine.stages import Budget, NoRoom, Stage, StageTime
from tests.harness import in_virtual_time


def test_rate_and_busy_share():
    stage = StageTime("fetch", 1200, 6.0)
    assert (stage.rate, stage.busy_share(8.0), stage.busy_share(5.0)) == (200, 0.75, 1)
    assert StageTime("fetch", 1200, 0.0).rate == 0


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 30))


def test_a_budget_is_never_overdrawn_and_everyone_gets_their_turn():
    async def main():
        budget, held, most, order = Budget(10), 0, 0, []

        async def take(number, amount):
            nonlocal held, most
            async with budget.hold(amount):
                order.append(number)
                held += min(amount, 10)
                most = max(most, held)
                await asyncio.sleep(0.001)
                held -= min(amount, 10)

        amounts = [3, 4, 9, 1, 10, 25, 2, 0, 7, 5]
        await asyncio.gather(*(take(*pair) for pair in enumerate(amounts)))
        return most, order

    most, order = run(main())
    assert most == 10
    assert order == list(range(10))


def test_a_strict_budget_refuses_what_never_fits():
    async def main():
        async with Budget(10, strict=True).hold(11):
            pass

    with pytest.raises(NoRoom):
        run(main())


def test_a_stage_lets_so_many_in_at_once_and_counts_them(monkeypatch):
    async def main():
        clock = SimpleNamespace(perf_counter=asyncio.get_running_loop().time)
        monkeypatch.setattr(stages, "time", clock)
        stage, inside, most = Stage("fetch", 3), 0, 0

        async def visit(fail):
            nonlocal inside, most
            async with stage.slot():
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(1)
                inside -= 1
                if fail:
                    raise ValueError

        await asyncio.gather(*(visit(n == 5) for n in range(9)), return_exceptions=True)
        return most, stage.time()

    most, time = in_virtual_time(main())
    assert most == 3
    assert time == StageTime("fetch", 8, 3.0)
