"""Parsers under hostile input: they answer, or raise what they document, and nothing else.

The strategies are built from the pieces that the grammars are made of; plain random text, which
the modules' own tests use, seldom gets past the first character.
"""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ses_mail import addresses, bounce_policy, clock, credentials, headers, notification, routing
from ses_mail.bounce_policy import Received
from ses_mail.errors import GmailTokenError, InvalidNotificationError, InvalidRoutingRuleError

fuzz = settings(max_examples=200)

NASTY = st.sampled_from(
    [
        "",
        "\x00",
        "\r",
        "\n",
        "\r\n",
        '"',
        "\\",
        "\ud800",
        "\ufffe",
        "\u202e",
        "İ",
        "ß",
        "xn--a",
        "。",
    ]
)
TEXT = st.one_of(st.text(max_size=20), NASTY)
ADDRESS = st.one_of(
    TEXT,
    st.builds("{}@{}".format, TEXT, TEXT),
    st.builds('"{}"@{}'.format, TEXT, st.sampled_from(["x.example", "ü.example", "xn--.example"])),
    st.builds("{0}@{1}.{1}".format, st.text('a+"@ \\', max_size=8), TEXT),
    st.emails(),
)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)

# -- headers ---------------------------------------------------------------------------------------

LINE_END = st.sampled_from([b"\r\n", b"\n", b"\r", b"\r\r\n", b"\n\r", b"\x0b", b"\x85", b""])
NAMES = (
    "Auto-Submitted", "List-Id", "Precedence", "Content-Type", "From", "Received", "X", "", ">From",
)  # fmt: skip
VALUES = (
    "auto-replied", "no", "no;", "(a) no", "bulk", "Bulk (x)", "multipart/report",
    "=?utf-8?b?/w==?=", "a@x.example",
    "A <a@x.example>, b@y.example", "(((", '"', "<", "a: b: c;", "\\", "@", "",
)  # fmt: skip
LINE = st.one_of(
    st.binary(max_size=30),
    st.builds(
        lambda fold, name, colon, value: fold + name + colon + value,
        st.sampled_from([b"", b" ", b"\t"]),
        st.sampled_from(NAMES).map(str.encode),
        st.sampled_from([b": ", b":", b" :", b"\t:\t", b""]),
        st.one_of(st.sampled_from(VALUES).map(str.encode), st.binary(max_size=20)),
    ),
)
EMAIL = st.lists(st.tuples(LINE, LINE_END), max_size=12).map(
    lambda lines: b"".join(line + end for line, end in lines)
)


@fuzz
@given(EMAIL)
def test_headers_of_any_email(email: bytes) -> None:
    block = headers.block_of(email)
    assert email.startswith(block)
    fields = headers.parse(block)
    for name, value in fields:
        assert name
        assert name == name.lower()
        value.encode("latin-1")
        assert not set("\r\n") & set(value)
    assert 0 <= headers.received_count(fields) <= len(fields)


@fuzz
@given(EMAIL, st.sampled_from([b"\r\n", b"\n", b"\r\r\n"]))
def test_no_line_before_hides_a_header(before: bytes, end: bytes) -> None:
    """A guard's header is seen whatever stands before it in the same block."""
    start = headers.block_of(before)
    if not start or headers.block_of(start + end + b"Auto-Submitted: x") != (
        start + end + b"Auto-Submitted: x"
    ):
        return  # with the line end, the block is over
    fields = headers.parse(start + end + b"Auto-Submitted: auto-replied")
    assert fields[-1] == ("auto-submitted", "auto-replied")


# -- bounce policy ---------------------------------------------------------------------------------

STATUS = st.sampled_from(["PASS", "FAIL", "GRAY", "PROCESSING_FAILED", "DISABLED", "", "\x00"])
VERDICTS = st.fixed_dictionaries(
    {},
    optional={
        name: st.one_of(st.just({}), st.fixed_dictionaries({"status": STATUS}))
        for name in notification.VERDICTS
    },
)
REASONS = {reason for reason, _ in bounce_policy._GUARDS} | {"harmless"}


@fuzz
@given(
    st.one_of(ADDRESS, st.just("a@x.example")),
    VERDICTS,
    st.lists(ADDRESS, min_size=1, max_size=3),
    st.one_of(st.none(), st.floats(allow_nan=False)),
    EMAIL,
)
def test_bounce_of_any_email_is_decided(
    source: str, verdicts: dict[str, Any], recipients: list[str], age: float | None, email: bytes
) -> None:
    fields = headers.parse(headers.block_of(email))
    received = Received(
        source=source,
        receipt={**verdicts, "recipients": recipients},
        received_at=None if age is None else clock.now() - age,
        fields=fields,
        our_domains=["example.com"],
    )
    verdict = bounce_policy.decide(received)
    assert verdict.reason in REASONS
    assert verdict.bounce is (verdict.reason == "harmless")
    if verdict.bounce:
        # What must hold of every bounce, said once more without the policy's own code.
        assert "@" in source
        assert verdicts.get("virusVerdict", {}).get("status") != "FAIL"
        assert "PASS" in [
            verdicts.get(name, {}).get("status") for name in ("spfVerdict", "dmarcVerdict")
        ]
        if verdicts.get("spfVerdict", {}).get("status") != "PASS":
            (author,) = headers.values(fields, "from")
            assert source.strip().lower() in author.lower(), "nobody but the author"


# -- notifications ---------------------------------------------------------------------------------

MAIL = st.fixed_dictionaries(
    {"messageId": st.one_of(st.just("o3vr"), st.just("AMAZON_SES_SETUP_NOTIFICATION"), JSON)},
    optional={"source": st.one_of(ADDRESS, JSON), "timestamp": st.one_of(TEXT, JSON)},
)
RECIPIENTS = st.one_of(st.lists(st.one_of(ADDRESS, JSON), max_size=3), JSON)
RECEIPT = st.fixed_dictionaries(
    {
        "recipients": st.one_of(st.just(["a@x.example"]), RECIPIENTS),
        "action": st.one_of(
            JSON,
            st.fixed_dictionaries(
                {"bucketName": st.one_of(TEXT, JSON), "objectKey": st.one_of(TEXT, JSON)},
                optional={"type": st.one_of(st.just("S3"), JSON)},
            ),
        ),
    },
    optional={"dmarcPolicy": JSON, "spamVerdict": JSON, "timestamp": JSON},
)
REDRIVE = st.one_of(
    JSON,
    st.fixed_dictionaries(
        {},
        optional={
            "attempt": st.one_of(st.integers(-1, 10**7), JSON),
            "recipients": st.one_of(st.just(["A@X.EXAMPLE"]), RECIPIENTS),
            "ignoreVerdicts": JSON,
            "force": st.one_of(TEXT, JSON),
            "more": JSON,
        },
    ),
)
NOTIFICATION = st.fixed_dictionaries(
    {"mail": MAIL, "receipt": RECEIPT},
    optional={"redrive": REDRIVE, "notificationType": st.sampled_from(["Received", "Bounce", 7])},
)


def _wrapped(value: Any, layers: list[str]) -> Any:
    for layer in layers:
        if layer == "text":
            value = json.dumps(value)
        elif layer == "sns":
            value = {"Type": "Notification", "Message": value}
        else:
            value = {"original": value, "failure": {}}
    return value


@fuzz
@given(NOTIFICATION, st.lists(st.sampled_from(["text", "sns", "parked"]), max_size=12))
@example({"mail": {}, "receipt": {}}, ["text"] * 12)
def test_any_notification_is_parsed_or_refused(value: Any, layers: list[str]) -> None:
    try:
        email = notification.parse(_wrapped(value, layers))
    except InvalidNotificationError:
        return
    if not email.is_setup:
        again = notification.parse(email.execution_input())
        assert again.execution_input() == email.execution_input()
        assert again.execution_names() == email.execution_names()
        assert all(len(name) <= 80 for name in email.execution_names())
        assert email.same_delivery(again.execution_input())


# -- routing ---------------------------------------------------------------------------------------

# The table's items as boto3's deserializer gives them: sets are sets, numbers are no int.
RECIPIENT = ADDRESS.filter(lambda text: bool(text) and text.isprintable())  # as the starter lets in
ATTRIBUTE = st.one_of(JSON, st.decimals(), st.binary(max_size=5), st.sets(TEXT, max_size=3))
RULE = st.fixed_dictionaries(
    {},
    optional={
        "action": st.one_of(st.sampled_from([*routing.ACTIONS, "park", "Store"]), ATTRIBUTE),
        "target": st.one_of(
            ADDRESS, st.lists(ADDRESS, max_size=3), st.sets(ADDRESS, max_size=3), ATTRIBUTE
        ),
        "enabled": st.one_of(st.booleans(), ATTRIBUTE),
    },
)


@fuzz
@given(TEXT, RULE)
def test_any_rule_is_parsed_or_refused(pattern: str, item: dict[str, Any]) -> None:
    try:
        rule = routing.parse_rule(pattern, item)
    except InvalidRoutingRuleError:
        return
    if rule is None:
        assert item["enabled"] is False
    else:
        assert rule.action in routing.ACTIONS
        assert bool(rule.targets) is (rule.action == routing.FORWARD)
        assert len(set(rule.targets)) == len(rule.targets)


@fuzz
@given(
    st.lists(RECIPIENT, min_size=1, max_size=4), st.lists(RULE, min_size=1, max_size=4), st.data()
)
def test_everyone_is_decided_and_served(
    recipients: list[str], items: list[dict[str, Any]], data: st.DataObject
) -> None:
    patterns = sorted({p for r in recipients for p in addresses.patterns(r)})
    matched = data.draw(st.sets(st.sampled_from(patterns)))
    rules = {pattern: data.draw(st.sampled_from(items)) for pattern in sorted(matched)}
    decisions = [routing.decide(recipient, rules) for recipient in recipients]
    deliveries = routing.group(decisions)
    assert {r for d in deliveries for r in d.recipients} == set(recipients)
    for delivery in deliveries:
        state = delivery.as_state()
        assert (delivery.action == routing.PARK) is ("failure" in state)


# -- credentials -----------------------------------------------------------------------------------

PEM = "-----BEGIN {0}-----\n{1}\n-----END {0}-----\n"
KEY = st.one_of(
    JSON,
    st.builds(
        PEM.format,
        st.sampled_from(["PRIVATE KEY", "RSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "CERTIFICATE"]),
        st.one_of(TEXT, st.just("AAAA"), st.just("MC4CAQAwBQYDK2VwBCIEIA" + "A" * 43)),
    ),
)
CREDENTIALS = st.one_of(
    TEXT,
    JSON.map(json.dumps),
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.one_of(st.sampled_from(["authorized_user", "service_account"]), JSON),
            "refresh_token": st.one_of(TEXT, JSON),
            "client_id": st.one_of(TEXT, JSON),
            "client_secret": st.one_of(TEXT, JSON),
        },
    ).map(json.dumps),
    st.fixed_dictionaries(
        {
            "type": st.just("service_account"),
            "private_key": KEY,
            "client_email": st.one_of(TEXT, JSON),
            "token_uri": st.one_of(st.just("https://oauth2.googleapis.com/token"), JSON),
        },
        optional={"private_key_id": JSON, "universe_domain": JSON, "trust_boundary": JSON},
    ).map(json.dumps),
)


@fuzz
@given(CREDENTIALS)
@example("[" * 8000)
@example('{"a":' * 4000)
@example("\ufeff{}")
@example("9" * 5000)
def test_any_parameter_gives_credentials_or_is_malformed(value: str) -> None:
    try:
        google = credentials.google_credentials("/p", value, "anna@example.com")
    except GmailTokenError as raised:
        error = raised
    else:
        assert google is not None
        return
    assert error.code == "malformed_credentials"
    assert "parameter /p" in str(error)


@pytest.mark.parametrize("value", ['{"refresh_token": "s3cret-1", "x": "s3cret-2"', '"s3cret-1"'])
def test_malformed_credentials_are_not_quoted(value: str) -> None:
    with pytest.raises(GmailTokenError) as raised:
        credentials.google_credentials("/p", value, "anna@example.com")
    assert "s3cret" not in repr(raised.value)
    assert raised.value.__cause__ is None
