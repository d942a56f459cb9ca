"""Settings of every run; the fixtures are in `fixtures/`, by subject."""

import os

from hypothesis import settings

# Powertools reads these once, when `observe` is first imported.
os.environ["POWERTOOLS_METRICS_NAMESPACE"] = "SESMail/test"
os.environ["POWERTOOLS_SERVICE_NAME"] = "tests"

pytest_plugins = [
    f"tests.fixtures.{subject}"
    for subject in ("schedule", "clock", "ses", "aws", "google", "lambda_")
]

# Time is nothing that a test asserts, and a run of the gate means the same for everybody; to search
# on, `pytest --hypothesis-profile=search`.
settings.register_profile("search", deadline=None, max_examples=3000)
settings.register_profile("ses-mail", deadline=None, derandomize=True)
settings.load_profile("ses-mail")
