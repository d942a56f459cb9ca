"""A stack in which something that has to happen would be refused does not start."""

import copy
import shutil
from pathlib import Path

import pytest

from local.access import Access, NotAllowedError
from local.cloud import Cloud

ROOT = Path(__file__).parents[2]


# Before the other tests: a process has room for one cloud.
@pytest.mark.parametrize(
    ("file", "policy", "refusal"),
    [
        ("template.yaml", "EmailBucketPolicy", "ses may not s3:PutObject"),
        ("monitoring.yaml", "AlarmTopicPolicy", "cloudwatch may not sns:Publish"),
    ],
)
def test_the_cloud_does_not_start(tmp_path, file, policy, refusal):
    for name in ("template.yaml", "monitoring.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("functions", "layers", "runbooks", "statemachines"):
        (tmp_path / name).symlink_to(ROOT / name)
    head, _, tail = (tmp_path / file).read_text().partition(f"\n  {policy}:\n")
    (tmp_path / file).write_text(
        f"{head}\n  {policy}:\n" + tail.replace("Effect: Allow", "Effect: Deny", 1)
    )
    with pytest.raises(NotAllowedError, match=refusal), Cloud(tmp_path):
        pass


@pytest.fixture(scope="module")
def stack():
    with Cloud() as cloud:
        yield cloud.stack


def of(name):
    """Where the statements of a resource are."""
    if name.startswith("trust:"):
        return name.removeprefix("trust:"), ("AssumeRolePolicyDocument", "Statement")
    if name.endswith("Role"):
        return name, ("Policies", 0, "PolicyDocument", "Statement")
    return name, ("PolicyDocument", "Statement")


@pytest.mark.parametrize(
    ("policy", "index", "refusal"),
    [
        ("EmailBucketPolicy", 0, r"ses may not s3:PutObject on .*/emails/AMAZON_SES_SETUP"),
        ("ProcessingTopicPolicy", 0, "ses may not sns:Publish on .*:ses-email-processing-test"),
        ("InputQueuePolicy", 0, "sns may not sqs:SendMessage on .*:ses-email-input-test"),
        ("InputDlqPolicy", 0, "sns may not sqs:SendMessage on .*:ses-email-input-dlq-test"),
        ("PipeRole", 0, "PipeRole may not sqs:ReceiveMessage on .*:ses-email-input-test"),
        ("PipeRole", 1, "PipeRole may not lambda:InvokeFunction on .*:ses-mail-starter-test"),
        ("PipeRole", 2, "PipeRole may not logs:CreateLogStream on .*/ses-email-router:log-"),
        ("ProcessEmailRole", 3, r"ProcessEmailRole may not xray:PutTraceSegments on \*"),
        ("ProcessEmailRole", 4, r"ProcessEmailRole may not logs:CreateLogDelivery on \*"),
        ("FetcherRole", 2, "FetcherRole may not logs:CreateLogStream on .*-fetcher-test:"),
        ("FetcherRole", 3, r"FetcherRole may not xray:PutTraceSegments on \*"),
        ("trust:FetcherRole", 0, "lambda may not sts:AssumeRole on .*FetcherRole"),
        ("trust:PipeRole", 0, "pipes may not sts:AssumeRole on .*PipeRole"),
        ("trust:ProcessEmailRole", 0, "states may not sts:AssumeRole on .*ProcessEmailRole"),
        ("trust:DlqRedriveRole", 0, "ssm may not sts:AssumeRole on .*DlqRedriveRole"),
    ],
)
@pytest.mark.parametrize("change", ["Deny", "removed"])
def test_what_would_be_refused_stops_the_start(stack, policy, index, refusal, change):
    changed = copy.copy(stack)
    changed.resources = copy.deepcopy(stack.resources)
    name, path = of(policy)
    statements = changed.resources[name]["Properties"]
    for step in path:
        statements = statements[step]
    if change == "removed":
        del statements[index]
    else:
        statements[index]["Effect"] = "Deny"
    with pytest.raises(NotAllowedError, match=refusal):
        Access(changed).check()


@pytest.mark.parametrize(
    "permission", ["SweeperFunctionHourly", "TokenMonitorFunctionTokenChanged"]
)
def test_a_rule_needs_the_permission_of_its_function(stack, permission):
    changed = copy.copy(stack)
    changed.resources = dict(stack.resources)
    del changed.resources[f"{permission}Permission"]
    with pytest.raises(NotAllowedError, match=f"events may not lambda:Invoke.*{permission}"):
        Access(changed).check()


def test_the_stack_as_it_is_is_allowed_everything_that_has_to_happen(stack):
    Access(stack).check()
