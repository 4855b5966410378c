"""What the tests store: what the contract stores."""

from memstate_langgraph.testing.models import (
    Note as Note,
    Preference as Preference,
    Rule as Rule,
    note as note,
    preference as preference,
    register as register,
)
