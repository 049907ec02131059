"""Which of several ways to take a step is the fastest: contenders that take the seconds of a clock."""

import pytest

from fastmlp.backends import contest
from fastmlp.backends.contest import Contender, fastest
from fastmlp.backends.session import Ahead


class Clock:
    """Seconds that contenders spend."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def contender(self, *seconds):
        """Return a contender of which a step takes so long, the last of them from then on."""
        left = list(seconds)

        def take(steps):
            one = left.pop(0) if len(left) > 1 else left[0]
            self.now += steps * one
            return steps * one

        return Contender(seconds, take)


@pytest.fixture
def clock():
    return Clock()


def test_the_fastest_by_more_than_noise_is_taken(clock):
    ruled, slow, noise, fast = (clock.contender(s) for s in (1e-3, 2e-3, 0.98e-3, 0.9e-3))
    assert fastest(ruled, iter([slow, noise, fast]), Ahead(10_000), clock) is fast
    assert len(noise.seconds) > 1 and len(slow.seconds) == 0  # hopeless after the sample that warms caches


def test_who_is_far_behind_is_found_out_in_few_steps(clock):
    """Sixteen threads of a tiny step may take a hundred times as long as one: a whole sample would be a second."""
    ruled, slow, slower = clock.contender(1e-5), clock.contender(1e-3), clock.contender(1e-2)
    fastest(ruled, iter([]), Ahead(10**6), clock)
    alone = clock.now
    assert fastest(ruled, iter([slow, slower]), Ahead(10**6), clock) is ruled
    assert clock.now - 2 * alone < 0.15 and not slow.seconds and not slower.seconds


def test_a_trial_ends_where_ways_take_longer_than_was_thought(clock):
    others = [clock.contender(*[0.9e-3] * 3, 5e-3) for _ in range(100)]
    fastest(clock.contender(1e-3), iter(others), Ahead(5000), clock)
    assert clock.now < contest.MOST_SECONDS


def test_where_nothing_is_faster_the_rule_stands(clock):
    ruled, noise = clock.contender(1e-3), clock.contender(0.98e-3)
    assert fastest(ruled, iter([noise]), Ahead(10_000), clock) is ruled


def test_who_is_not_faster_in_each_pair_of_samples_is_not_taken(clock):
    now_and_then = clock.contender(*[0.9e-3] * 3, 1.01e-3, 0.9e-3)
    ruled = clock.contender(1e-3)
    assert fastest(ruled, iter([now_and_then]), Ahead(10_000), clock) is ruled


@pytest.mark.parametrize("who", ["ruled", "winner"])
def test_on_a_busy_machine_nothing_is_decided(clock, who):
    ruled = clock.contender(*[1e-3] * 7, 1.4e-3) if who == "ruled" else clock.contender(2e-3)  # 6 do not count
    other = clock.contender(8e-4) if who == "ruled" else clock.contender(*[1e-3] * 4, 1.6e-3)  # 3 do not
    assert fastest(ruled, iter([other]), Ahead(10_000), clock) is None


@pytest.mark.parametrize("who", ["ruled", "winner"])
def test_what_is_far_faster_is_taken_on_a_busy_machine_too(clock, who):
    """As a GPU is beside many threads of which now and then one waits for its core."""
    ruled = clock.contender(*[1e-3] * 7, 1.4e-3) if who == "ruled" else clock.contender(2e-3)
    other = clock.contender(7e-4) if who == "ruled" else clock.contender(*[1e-3] * 4, 1.5e-3)
    assert fastest(ruled, iter([other]), Ahead(10_000), clock) is other


@pytest.mark.parametrize(
    ("step", "steps", "tried", "most"),
    [
        (1e-3, 10, 0.0, 0.0),  # a fifth of 10 ms is less than two contenders take
        (1e-3, 500, 0.0, 0.0),
        (1e-3, 2000, 0.0, 0.4),  # a fifth of the run
        (1e-3, 5000, 0.0, 0.5),
        (1e-3, 100_000, 0.0, 2.0),  # the fiftieth part of a long run
        (0.1, 20, 0.0, 0.0),
        (0.1, 500, 0.0, 0.0),
        (0.1, 1000, 0.0, 2.0),
        (1e-3, 5000, 0.2, 0.3),  # what another trial of the run has left
        (1e-3, 5000, 0.49, 0.0),
    ],
)
def test_a_trial_takes_no_longer_than_the_run_is_worth(clock, step, steps, tried, most):
    ruled = clock.contender(step)
    others = (clock.contender(step) for _ in range(1000))
    found = fastest(ruled, others, Ahead(steps, tried), clock)
    assert (found is None) == (most == 0)
    assert clock.now <= (most or 2 * step + 0.03 * bool(tried))  # how long steps take has to be known first
    assert most == 0 or clock.now > 0.5 * most  # and it uses what it may


@pytest.mark.parametrize(("seconds", "most"), [(0.1, 0.0), (2.0, 0.4), (100.0, 2.0)])
def test_a_trial_goes_by_the_time_that_a_run_may_take(clock, seconds, most):
    """Of a million epochs with a limit, it is the limit that tells how long the run is."""
    others = iter([clock.contender(0.9e-3) for _ in range(1000)])
    found = fastest(clock.contender(1e-3), others, Ahead(10**9, 0.0, seconds), clock)
    assert (found is None) == (most == 0.0)
    assert 0.5 * most < clock.now < max(most, 0.05)


def test_what_a_device_needs_before_its_first_steps_is_neither_counted_nor_judged(clock):
    """Its driver starts, graphs are captured, and it becomes as fast as it can."""
    ruled, device = clock.contender(1e-3), clock.contender(5.0, 0.2, 0.1, 5e-4)
    device.starts = True
    slow, other = clock.contender(9e-4), clock.contender(4e-4)
    assert fastest(ruled, iter([slow, device, other]), Ahead(5000), clock) is other
    assert device.started > 5.0 and max(device.seconds) == 5e-4
    assert clock.now - device.started < contest.MOST_SECONDS
    # the same of a contender that is not known to start is over at once
    ruled, device = clock.contender(1e-3), clock.contender(5.0, 0.2, 0.1, 5e-4)
    assert fastest(ruled, iter([device]), Ahead(5000), clock) is ruled and not device.started


@pytest.mark.parametrize(("here", "there"), [(2e-6, 3e-4), (3e-4, 3e-2), (1e-3, 0.1)])
def test_a_device_that_is_slower_by_far_is_not_waited_for(clock, here, there):
    """Its start takes what it takes; but no more steps than tell that."""
    ruled, device = clock.contender(here), clock.contender(5.0, there)
    device.starts = True
    fastest(ruled, iter([]), Ahead(10**9), clock)
    alone = clock.now
    assert fastest(ruled, iter([device]), Ahead(10**9), clock) is ruled
    assert 5.0 < device.started < 5.0 + max(0.2, 3 * there)
    assert clock.now - 2 * alone - device.started < 0.4  # less than a trial may take


def test_the_start_of_a_device_is_not_counted_where_it_fails(clock):
    def fails(steps):
        clock.now += 3.0
        raise contest.NoStepsError

    device = Contender("device", fails, starts=True)
    with pytest.raises(contest.NoStepsError):
        fastest(clock.contender(1e-3), iter([device]), Ahead(10_000), clock)
    assert device.started == 3.0
