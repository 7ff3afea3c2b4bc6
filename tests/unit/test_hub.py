"""Whatever the Hub's libraries raise becomes one line with a remedy."""

import pytest
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

from mftcoder.errors import DataError, ModelError
from mftcoder.hub import hub_errors, is_reachable

FAILURES = {
    "a missing package": (ImportError("no", name="datasets"), "; a download from the Hub needs the package datasets: pip install"),
    "a name that is no id": (HFValidationError("bad"), ", and it is not the id of a Hub repository (owner/name)"),
    "offline mode": (OfflineModeIsEnabled("offline"), ", and the Hub does not answer"),
    "anything else": (RuntimeError("two\nlines"), ", and the download from the Hub failed: two lines"),
}  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_of_the_hub_is_one_line_with_advice(failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mftcoder.hub.is_reachable", lambda: True)
    error, text = FAILURES[failure]
    with pytest.raises(ModelError) as caught, hub_errors("a/b: no such folder", advice="Give one", kind=ModelError):
        raise error
    assert str(caught.value).startswith(f"a/b: no such folder{text}")
    assert str(caught.value).endswith(". Give one") and "\n" not in str(caught.value)


def test_an_error_of_the_http_client_without_a_connection_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mftcoder.hub.is_reachable", lambda: False)
    with pytest.raises(ModelError, match="and the Hub does not answer"), hub_errors("a", advice="b", kind=ModelError):
        raise RuntimeError("[Errno -2] Name or service not known")


def test_an_error_of_ours_passes_unchanged() -> None:
    with pytest.raises(DataError, match=r"^x\.jsonl: is empty$"), hub_errors("a", advice="b", kind=ModelError):
        raise DataError("x.jsonl: is empty")


def test_a_hub_that_is_switched_off_is_not_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not is_reachable()
