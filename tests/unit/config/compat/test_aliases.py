"""The table of other trainers' names: every suggestion is a field that exists."""

from mftcoder.config.compat.aliases import ALIASES, all_fields, suggest


def test_every_alias_leads_to_a_field_or_section_that_exists() -> None:
    known = {*all_fields(), "tasks"}
    assert {target for target in ALIASES.values() if target not in known} == set()


def test_a_name_that_is_right_in_another_section_is_sent_there() -> None:
    assert suggest(("model", "learning_rate"), {}) == " Did you mean 'train.learning_rate'?"
    assert suggest(("tasks", 0, "max_length"), {}) == " Did you mean 'data.max_length'?"


def test_all_fields_are_dotted_paths() -> None:
    fields = all_fields()
    assert {"model.dtype", "tasks.<name>.weight", "output_dir", "data.role_markers", "balancer.tau"} <= set(fields)
    assert len(fields) == len(set(fields))
