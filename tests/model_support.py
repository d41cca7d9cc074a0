"""How the state machines of the suite are run."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test


def run_machine(machine: type[RuleBasedStateMachine], *, examples: int, steps: int, same: bool) -> None:
    """Run a state machine.

    :param same: whether the examples are the same each time, until the text of the class changes.
    """
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=same,
        print_blob=not same,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=chosen)
