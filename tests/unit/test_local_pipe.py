"""Which messages of a batch a Pipe gives back."""

import pytest

from local.pipe import failed_items


@pytest.mark.parametrize(
    ("payload", "is_error", "failed"),
    [
        ("null", False, set()),
        ("{}", False, set()),
        ('{"batchItemFailures": []}', False, set()),
        ('{"batchItemFailures": null}', False, set()),
        ('{"batchItemFailures": [{"itemIdentifier": "a"}]}', False, {"a"}),
        ('{"batchItemFailures": [{"itemIdentifier": "c"}]}', False, {"a", "b"}),  # not in the batch
        ('{"batchItemFailures": [{"itemIdentifier": ""}]}', False, {"a", "b"}),
        ('{"batchItemFailures": [{"id": "a"}]}', False, {"a", "b"}),
        ('{"batchItemFailures": ["a"]}', False, {"a", "b"}),
        ('"text"', False, {"a", "b"}),
        ('{"errorType": "X"}', True, {"a", "b"}),
    ],
)
def test_failed_items(payload, is_error, failed):
    assert failed_items(payload, is_error, {"a", "b"}) == failed
