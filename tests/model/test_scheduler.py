"""Who steps next, and how many can be spoken at once."""

from __future__ import annotations

import random

import pytest

from higgs_voice.model.scheduler import JobView, Pace, Scheduler


def test_who_has_least_buffered_steps_first_and_the_rest_wait() -> None:
    jobs = [JobView("rich", 0, False, 2.0), JobView("new", 3, False, -1.0), JobView("poor", 1, False, 0.1)]
    assert Scheduler(max_batch=2).plan(jobs, background=False).step == ("new", "poor")


def test_who_is_far_ahead_of_its_consumer_is_paused() -> None:
    jobs = [JobView("ahead", 0, False, 1.0, 10.0), JobView("taken", 1, False, 9.0, 0.0)]
    assert Scheduler(run_ahead_s=10.0).plan(jobs, background=False).step == ("taken",)


def test_background_work_waits_for_everybody() -> None:
    plan = Scheduler(comfortable_s=0.25).plan
    assert plan([JobView("calm", 0, False, 0.3)], background=True).background
    assert not plan([JobView("calm", 0, False, 0.3), JobView("hungry", 1, False, 0.2)], background=True).background
    assert not plan([JobView("reading", 0, True)], background=True).background
    assert not plan([JobView("begins", 0, False, 2.0, unheard=True)], background=True).background


def test_a_prefill_waits_for_who_is_about_to_run_dry_but_not_for_long() -> None:
    scheduler = Scheduler(scarce_s=0.12, scarce_ticks=None, patience=3)
    for buffered, waits in ((-1.0, False), (-0.05, True), (0.08, True), (0.2, False)):
        plan = scheduler.plan([JobView("plays", 0, False, buffered), JobView("new", 1, True)], background=True)
        assert plan.step == ("plays",)
        assert (plan.prefill, plan.put_off) == (((), ("new",)) if waits else (("new",), ()))
    plan = scheduler.plan([JobView("plays", 0, False, 0.08), JobView("new", 1, True, put_off=3)], background=True)
    assert (plan.prefill, plan.put_off) == (("new",), ())


def test_who_comes_later_does_not_wait_anew_for_all() -> None:
    """With many streams one of them is always about to run dry. If each newcomer's prefill were put off by itself, one would be prefilled
    every `patience` ticks, and those with longer prompts never."""
    scheduler = Scheduler(scarce_ticks=None, patience=8)
    plays = JobView("plays", 0, False, 0.05)
    long = JobView("long", 1, True, put_off=8, rows_left=107)
    short = JobView("short", 2, True, put_off=0, rows_left=44)
    plan = scheduler.plan([plays, long, short], background=False)
    assert (plan.prefill, plan.put_off) == (("short", "long"), ())
    both = [short, JobView("other", 3, True, rows_left=90)]
    assert scheduler.plan([plays, *both], background=False).put_off == ("short", "other")
    on_cpu = Scheduler(scarce_ticks=None, patience=8, ample_s=1.0)  # a prefill takes more than a step there
    assert on_cpu.plan([plays, long, short], background=False).put_off == ("short",)


def test_of_those_passed_over_whoever_was_most_often_comes_first() -> None:
    """Or a long prompt would wait for as long as short ones keep coming, each of which is overdue by then too."""
    long = JobView("long", 0, True, rows_left=900, passed_over=20)
    short = JobView("short", 1, True, rows_left=44, passed_over=9)
    fresh = JobView("fresh", 2, True, rows_left=40)
    assert Scheduler(patience=8).plan([fresh, short, long], background=False).prefill == ("long", "short", "fresh")


def test_who_can_wait_does_not_use_up_the_patience_of_others() -> None:
    plan = Scheduler(scarce_ticks=None, unhurried_s=1.0).plan
    plays, unheard = JobView("plays", 0, False, 0.05), JobView("unheard", 1, False, -1.0, unheard=True)
    goes_on, begins = JobView("goes on", 2, True, 3.0, put_off=8), JobView("begins", 3, True, -4.0)
    assert plan([plays, unheard, goes_on, begins], background=False).put_off == ("begins",)


@pytest.mark.parametrize(("tick_s", "waits"), [(0.0, False), (0.005, False), (0.02, True)])
def test_who_is_about_to_run_dry_is_told_by_what_a_tick_takes(tick_s: float, waits: bool) -> None:
    jobs = [JobView("plays", 0, False, 0.05), JobView("new", 1, True)]
    assert Scheduler(scarce_ticks=4.0).plan(jobs, background=False, tick_s=tick_s).put_off == (
        ("new",) if waits else ()
    )


def test_who_still_has_sound_to_play_is_prefilled_after_those_who_have_none() -> None:
    plan = Scheduler(unhurried_s=1.0).plan
    goes_on, begins = JobView("goes on", 0, True, 3.0, rows_left=10), JobView("begins", 1, True, -4.0, rows_left=90)
    assert plan([goes_on, begins], background=False).prefill == ("begins", "goes on")
    assert plan([goes_on, JobView("less left", 1, True, 2.0, rows_left=90)], background=False).prefill == (
        "less left",
        "goes on",
    )
    soon = JobView("soon", 0, True, 0.9, rows_left=10)
    assert plan([soon, begins], background=False).prefill == ("soon", "begins")
    assert plan([goes_on, soon, begins], background=False).prefill == ("soon", "begins", "goes on")


def test_and_not_while_somebody_waits_for_a_first_sound() -> None:
    plan = Scheduler(unhurried_s=1.0).plan
    unheard, goes_on = JobView("unheard", 0, False, -1.0, unheard=True), JobView("goes on", 1, True, 3.0)
    waits = plan([unheard, goes_on], background=True)
    assert (waits.step, waits.prefill, waits.put_off, waits.background) == (("unheard",), (), (), False)
    soon = JobView("soon", 1, True, 0.9)
    assert plan([unheard, soon], background=True).prefill == ("soon",)
    assert plan([unheard, goes_on, soon], background=True).prefill == ("soon",)  # nor does it come along
    assert plan([JobView("plays", 0, False, 0.5), goes_on], background=True).prefill == ("goes on",)
    assert Scheduler(ample_s=1.0).plan([unheard, goes_on], background=True).prefill == ("goes on",)


def test_nobody_waits_for_a_longer_prompt_than_its_own() -> None:
    plan = Scheduler().plan
    long, short = JobView("long", 0, True, rows_left=4000), JobView("short", 1, True, rows_left=60)
    assert plan([long, short], background=False).prefill == ("short", "long")
    as_long = JobView("as long", 1, True, rows_left=4000)
    assert plan([as_long, short, long], background=False).prefill == ("short", "long", "as long")
    passed = JobView("long", 0, True, rows_left=4000, passed_over=8)
    assert plan([passed, short], background=False).prefill == ("long", "short")
    speaks = JobView("speaks", 1, True, 3.0, rows_left=10)
    assert Scheduler(ample_s=1.0).plan([long, speaks], background=False).prefill == ("long", "speaks")


def test_who_has_ample_sound_lets_the_others_go_ahead() -> None:
    rich, fair = JobView("rich", 0, False, 1.5), JobView("fair", 1, False, 0.6)
    plan = Scheduler(comfortable_s=0.25, ample_s=1.0).plan
    assert plan([rich, fair], background=True).step == ("fair", "rich")
    for other in (JobView("begins", 2, False, -1.0), JobView("short", 2, False, 0.2)):
        assert plan([rich, fair, other], background=True).step == (other.key, "fair")
        assert Scheduler(comfortable_s=0.25).plan([rich, fair, other], background=True).step == (
            other.key,
            "fair",
            "rich",
        )
    reads = plan([rich, JobView("reads", 2, True, -1.0)], background=True)
    assert (reads.step, reads.prefill, reads.idle) == ((), ("reads",), False)
    reads = plan([JobView("rich", 0, True, 3.0), JobView("reads", 2, True, -1.0)], background=True)
    assert reads.prefill == ("reads", "rich")


def test_nobody_lets_those_go_ahead_who_do_not_take_their_sound() -> None:
    rich = JobView("rich", 0, False, 1.5)
    for waiting, step in ((0.9, ("left",)), (3.0, ("left", "rich"))):
        jobs = [rich, JobView("left", 1, False, -30.0, waiting)]
        assert Scheduler(comfortable_s=0.25, ample_s=1.0).plan(jobs, background=False).step == step


def paced(cost: dict[int, float], ticks: int = 200) -> Pace:
    pace, rng = Pace(), random.Random(1)
    for _ in range(ticks):
        streams = rng.choice(list(cost))
        pace.observe(streams, cost[streams] * rng.uniform(0.8, 1.2))
    return pace


def test_the_cost_of_a_tick_is_a_line() -> None:
    pace = paced({1: 0.010, 2: 0.012, 4: 0.016})
    assert pace.tick_s(8) == pytest.approx(0.024, rel=0.1)
    # 25 ticks a second, a tenth to spare: 36 ms are 14 streams.
    assert pace.capacity(max_batch=64) == pytest.approx(14.0, rel=0.15)


def test_streams_beyond_a_batch_take_turns() -> None:
    pace = paced({1: 0.002, 16: 0.006})
    assert pace.capacity(max_batch=16) == pytest.approx(16 * 0.036 / 0.006, rel=0.1)


def test_with_one_stream_seen_the_cost_is_in_proportion() -> None:
    assert paced({1: 0.012}).capacity(max_batch=16) == pytest.approx(3.0, rel=0.05)


def test_an_engine_that_cannot_keep_up_has_less_than_one() -> None:
    assert paced({1: 0.072, 2: 0.100}).capacity(max_batch=16) == pytest.approx(0.5, rel=0.1)


def test_prefills_alone_count_with_the_next_step() -> None:
    pace = Pace()
    for _ in range(100):
        pace.observe(0, 0.006)
        pace.observe(1, 0.006)
    assert pace.capacity(max_batch=16) == pytest.approx(3.0, rel=0.01)


def test_what_was_long_ago_is_forgotten() -> None:
    pace = paced({1: 0.036}, ticks=500)
    for _ in range(4 * Pace.memory):
        pace.observe(1, 0.009)
    assert pace.capacity(max_batch=16) == pytest.approx(4.0, rel=0.1)


def test_nothing_is_said_before_enough_was_seen() -> None:
    assert paced({1: 0.01}, ticks=49).capacity(max_batch=16) is None
