"""Signals: noted, deferred, raised once."""

import os
import signal

import pytest

from jaxlab.cli import signals

NUMBERS = (signal.SIGINT, signal.SIGTERM)


def test_a_signal_that_is_ignored_stays_so_after_another():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(signals.Stopped), signals.installed():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
                assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_is_put_off_to_the_end_of_the_outer_block():
    reached = []
    with pytest.raises(signals.Stopped), signals.installed(), signals.deferred():
        with signals.deferred() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop()
        reached.append("the end of the outer block")
    assert reached


def test_a_signal_stops_one_block_and_lets_those_after_it_finish():
    with signals.installed():
        with pytest.raises(signals.Stopped), signals.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
        with signals.deferred():
            pass


def test_signals_are_the_callers_again_afterwards():
    before = [signal.getsignal(number) for number in NUMBERS]
    with pytest.raises(signals.Stopped), signals.installed():
        os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in NUMBERS] == before
