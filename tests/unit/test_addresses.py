"""Email addresses as routing compares them."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ses_mail import addresses

# Whatever a notification may hold as a recipient: printable text.
PRINTABLE = st.text(st.characters().filter(str.isprintable), max_size=40)
NO_SPACE = st.text(
    st.characters().filter(lambda c: c.isprintable() and not c.isspace()), max_size=40
)
LOCAL = st.text(
    string.ascii_letters + string.digits + ".-_!#$%&'*/=?^`{|}~", min_size=1, max_size=20
)
LABEL = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,10}[a-zA-Z0-9])?", fullmatch=True)
DOMAIN = st.lists(LABEL, min_size=2, max_size=4).map(".".join)
ADDRESS = st.builds("{}@{}".format, LOCAL, DOMAIN)


@pytest.mark.parametrize(
    ("address", "canonical"),
    [
        ("User@Example.COM", "user@example.com"),
        ("  user@example.com\n", "user@example.com"),
        ("user@example.com.", "user@example.com"),
        ('"a@b"@Example.com', '"a@b"@example.com'),
        ('"A+B"@example.com', '"a+b"@example.com'),
        ("info@Bücher.example", "info@xn--bcher-kva.example"),
        ("info@XN--BCHER-KVA.example", "info@xn--bcher-kva.example"),
        ("info@bu\u0308cher.example", "info@xn--bcher-kva.example"),
        ("info@straße.example", "info@xn--strae-oqa.example"),
        ("info@bücher。example", "info@xn--bcher-kva.example"),
        ("info@bücher.example。", "info@xn--bcher-kva.example"),
        ("Ünal@example.com", "ünal@example.com"),
        ("a@ü\u2028.example", "a@ü\u2028.example"),
        ("a@[192.0.2.1]", "a@[192.0.2.1]"),
        ("Postmaster", "postmaster"),
        ("user@", "user@"),
        ("user@.", "user@."),
        ("@example.com", "@example.com"),
        ("", ""),
    ],
)
def test_canonical(address: str, canonical: str) -> None:
    assert addresses.canonical(address) == canonical


@pytest.mark.parametrize(
    ("address", "untagged"),
    [
        ("user+tag@example.com", "user@example.com"),
        ("user+a+b@example.com", "user@example.com"),
        ("user+@example.com", "user@example.com"),
        ("user@example.com", "user@example.com"),
        ("+tag@example.com", "+tag@example.com"),  # nothing would be left
        ('"a+b"@example.com', '"a+b"@example.com'),  # a quoted local part has no tag
        ("user@ex+ample.com", "user@ex+ample.com"),
        ("postmaster+x", "postmaster"),
    ],
)
def test_without_tag(address: str, untagged: str) -> None:
    assert addresses.without_tag(address) == untagged


@pytest.mark.parametrize(
    ("target", "mailbox"),
    [
        ("Anna+work@Gmail.com", "anna@gmail.com"),
        (" anna@gmail.com ", "anna@gmail.com"),
        ("anna@Bücher.example", "anna@xn--bcher-kva.example"),
    ],
)
def test_mailbox(target: str, mailbox: str) -> None:
    assert addresses.mailbox(target) == mailbox


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("user@example.com", True),
        ("user+tag@sub.example.com", True),
        ("ünal@bücher.example", True),
        ('"a b@c"@example.com', True),
        ("o'brien@example.com", True),
        ("user@example.com.", True),
        ("", False),
        ("user", False),
        ("user@", False),
        ("@example.com", False),
        ("user@localhost", False),
        ("user@.com.", False),
        ("us er@example.com", False),
        ("user@exam ple.com", False),
        ("a@b@example.com", False),
        ('"@example.com', False),
        ('""@example.com', False),
        ("<user@example.com>", False),
        ("Anna <user@example.com>", False),
        ("a@x.com,b@y.com", False),
        ("user@*.com", False),
        ("user\x00@example.com", False),
        ("user@example.com\r\nBcc: x@y.z", False),
        ("x" * 308 + "@example.com", True),
        ("x" * 309 + "@example.com", False),
    ],
)
def test_is_address(text: str, valid: bool) -> None:
    assert addresses.is_address(text) is valid


@pytest.mark.parametrize(
    ("recipient", "patterns"),
    [
        (
            "User+Tag@Example.com",
            ["user+tag@example.com", "user@example.com", "*@example.com", "*"],
        ),
        ("user@example.com", ["user@example.com", "*@example.com", "*"]),
        ('"a@b+c"@example.com', ['"a@b+c"@example.com', "*@example.com", "*"]),
        ("info@bücher.example", ["info@xn--bcher-kva.example", "*@xn--bcher-kva.example", "*"]),
        ("postmaster", ["postmaster", "*"]),
        ("*@example.com", ["*@example.com", "*"]),
    ],
)
def test_patterns(recipient: str, patterns: list[str]) -> None:
    assert addresses.patterns(recipient) == patterns


@given(st.one_of(st.builds("{}@{}".format, PRINTABLE, NO_SPACE), NO_SPACE, ADDRESS))
def test_canonical_form_is_stable(address: str) -> None:
    canonical = addresses.canonical(address)
    assert addresses.canonical(canonical) == canonical
    assert addresses.mailbox(addresses.mailbox(address)) == addresses.mailbox(address)


@given(ADDRESS)
def test_case_never_matters(address: str) -> None:
    assert addresses.canonical(address.upper()) == addresses.canonical(address.lower())
    assert addresses.patterns(address.upper()) == addresses.patterns(address)


@given(LOCAL, DOMAIN, st.text(string.ascii_lowercase + "+.", max_size=10))
def test_any_tag_leads_to_the_same_mailbox(local: str, domain: str, tag: str) -> None:
    assert addresses.mailbox(f"{local}+{tag}@{domain}") == addresses.mailbox(f"{local}@{domain}")
    assert addresses.canonical(f"{local}@{domain}") in addresses.patterns(f"{local}+{tag}@{domain}")


@given(ADDRESS)
def test_what_looks_like_an_address_is_one(address: str) -> None:
    assert addresses.is_address(address)
    assert addresses.is_address(addresses.mailbox(address))


@given(st.text())
def test_nothing_raises(text: str) -> None:
    assert addresses.patterns(text)[-1] == "*"
    assert isinstance(addresses.is_address(text), bool)
    assert len(set(addresses.patterns(text))) == len(addresses.patterns(text)) <= 4
