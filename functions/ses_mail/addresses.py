"""Email addresses as routing compares them, and the patterns that may match one."""

import idna


def split(address: str) -> tuple[str, str]:
    """(local part, domain), split at the last `@`: a quoted local part may hold others.

    The domain is empty if there is no `@` (RFC 5321 §4.1.2 allows a bare `<postmaster>`).
    """
    local, at, domain = address.rpartition("@")
    return (local, domain) if at else (address, "")


def domain_to_ascii(domain: str) -> str:
    """Lower-cased A-label form (RFC 5891); a domain that IDNA refuses is only lower-cased."""
    lowered = domain.lower().rstrip(".")
    if lowered.isascii():
        return lowered
    try:
        # UTS 46 maps other full stops to `.`, one at the end too.
        return idna.encode(lowered, uts46=True).decode("ascii").rstrip(".")
    except idna.IDNAError:
        return lowered


def canonical(address: str) -> str:
    """The form in which addresses are compared and stored in routing keys."""
    stripped = address.strip()
    local, domain = split(stripped)
    ascii_domain = domain_to_ascii(domain)
    return f"{local.lower()}@{ascii_domain}" if ascii_domain else stripped.lower()


def without_tag(address: str) -> str:
    """The address with its local part cut at the first `+`.

    A quoted local part has no tag, and one that begins with `+` would have nothing left.
    """
    local, _ = split(address)
    base = local.partition("+")[0]
    if local.startswith('"') or not base:
        return address
    return base + address[len(local) :]


def mailbox(target: str) -> str:
    """The Gmail mailbox that a rule's target stands for: canonical and without its tag."""
    return without_tag(canonical(target))


def is_address(text: str) -> bool:
    """Whether the text could be delivered to: `local@domain` without spaces or controls outside
    a quoted local part."""
    local, domain = split(text)
    if not local or not domain or not text.isprintable() or len(text) > 320:
        return False
    quoted = len(local) > 2 and local[0] == local[-1] == '"'
    if not quoted and any(c in local for c in ' @"<>(),;:\\[]'):
        return False
    return "." in domain.strip(".") and not any(c in domain for c in ' "<>(),;:\\@*')


def patterns(recipient: str) -> list[str]:
    """Routing patterns in the order in which they are looked up, without repetition.

    exact → normalized (without +tag) → domain wildcard → global wildcard.
    """
    exact = canonical(recipient)
    domain = split(exact)[1]
    candidates = [exact, without_tag(exact), *([f"*@{domain}"] if domain else []), "*"]
    return list(dict.fromkeys(candidates))
