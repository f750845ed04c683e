"""Test that signals are raised once, deferred on request, and never lost."""

import os
import signal
import sys
import time

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


def test_a_signal_that_python_drops_is_raised_at_the_end_and_not_printed(capsys):
    class Dying:
        def __del__(self):  # Python ignores exceptions raised here
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    reached, hook = [], sys.unraisablehook
    with pytest.raises(signals.Stopped), signals.installed():
        Dying()
        reached.append("the end")
    assert reached and sys.unraisablehook is hook
    assert capsys.readouterr().err == ""


def test_what_else_python_drops_is_printed(monkeypatch):
    class Faulty:
        def __del__(self):
            raise ZeroDivisionError

    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", lambda u: dropped.append(u.exc_type))
    with signals.installed():
        Faulty()
    assert dropped == [ZeroDivisionError]
