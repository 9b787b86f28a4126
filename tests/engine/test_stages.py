"""What bounds and measures the stages, and what is said of them."""

import asyncio

import pytest

from engine.stages import Budget, NoRoom, Stage, StageTime, limiting_stage


def test_rate_and_busy_share():
    stage = StageTime("fetch", 1200, 6.0)
    assert (stage.rate, stage.busy_share(8.0), stage.busy_share(5.0)) == (200, 0.75, 1)
    assert StageTime("fetch", 1200, 0.0).rate == 0


@pytest.mark.parametrize(
    ("busy", "stage", "advice"),
    [
        ({"fetch": 9, "models": 2}, "fetch", "Run closer to the bucket."),
        ({"fetch": 2, "models": 9}, "models", "A GPU (or a faster one), or several with"),
        ({"decode": 8}, "decode", "Try --decode_workers 8 on a machine"),
        ({"thumbnails": 9}, "thumbnails", "Run closer to the index bucket."),
    ],
)
def test_the_limiting_stage_is_named(busy, stage, advice):
    times = [StageTime(name, 10, seconds) for name, seconds in busy.items()]
    found = limiting_stage(times, 10, decode_workers=4)
    assert found.stage == stage and found.advice.startswith(advice)


@pytest.mark.parametrize("busy", [{}, {"fetch": 6.9}])
def test_no_advice_without_a_limiting_stage(busy):
    assert limiting_stage([StageTime(name, 10, s) for name, s in busy.items()], 10, 4) is None


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


def test_a_stage_lets_so_many_in_at_once_and_counts_them():
    async def main():
        stage, inside, most = Stage("fetch", 3), 0, 0

        async def visit(fail):
            nonlocal inside, most
            async with stage.slot():
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.01)
                inside -= 1
                if fail:
                    raise ValueError

        await asyncio.gather(*(visit(n == 5) for n in range(9)), return_exceptions=True)
        return most, stage.time()

    most, time = run(main())
    assert most == 3
    assert (time.name, time.images) == ("fetch", 8)
    assert 0.03 <= time.busy_s < 0.3
