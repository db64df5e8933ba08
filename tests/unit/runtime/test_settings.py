from dataclasses import dataclass

import pytest

from services.runtime.settings import SettingError, as_dict, read, setting


@dataclass(frozen=True)
class Some:
    slots: int = setting("CSM_SLOTS", 8, "slots", min=1, max=64)
    wait_s: float = setting("CSM_WAIT_S", 0.5, "wait", min=0)
    key: str | None = setting("CSM_KEY", None, "key", secret=True)
    loud: bool = setting("CSM_LOUD", False, "loud")
    form: str = setting("CSM_FORM", "json", "form", choices=("json", "text"))


def test_defaults_environment_and_overrides():
    assert read(Some, {}) == Some()
    some = read(Some, {"CSM_SLOTS": "3", "CSM_WAIT_S": "1e-2", "CSM_LOUD": "true", "CSM_KEY": "k"}, slots=5)
    assert some == Some(slots=5, wait_s=0.01, key="k", loud=True)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("CSM_SLOTS", "many", "CSM_SLOTS='many': not a int"),
        ("CSM_SLOTS", "0", "at least 1"),
        ("CSM_SLOTS", "65", "at most 64"),
        ("CSM_WAIT_S", "nan", "at least 0"),
        ("CSM_LOUD", "maybe", "CSM_LOUD"),
        ("CSM_FORM", "xml", "one of json, text"),
    ],
)
def test_a_bad_value_names_variable_and_limit(variable, value, says):
    with pytest.raises(SettingError, match=says) as caught:
        read(Some, {variable: value})
    assert variable in str(caught.value)


def test_secrets_are_never_described():
    assert "hidden" not in str(as_dict(read(Some, {"CSM_KEY": "hidden"})))
