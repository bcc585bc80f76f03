"""What a phone provider asks over HTTP before it sends a call's sound: is it really the provider, and what it is answered.

Pure functions; the web server is phone_bot.py's. Each provider's scheme is written from its public documentation:

    twilio   X-Twilio-Signature: base64 HMAC-SHA1 by the auth token of the URL, then every form field's name and value, sorted
    plivo    X-Plivo-Signature-V3: base64 HMAC-SHA256 by the auth token of the URL with sorted query, ".", the form fields
             as with Twilio, ".", and X-Plivo-Signature-V3-Nonce; several signatures may stand in it, with commas
    telnyx   telnyx-signature-ed25519: base64 Ed25519, by the account's key, of telnyx-timestamp, "|", and the body
    exotel   signs nothing: the answer URL carries a secret of ours
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl, urlsplit, urlunsplit
from xml.sax.saxutils import escape, quoteattr

Fields = Sequence[tuple[str, str]]
"""Form fields as they came: a name may come twice."""
MOST_SKEW_S = 300.0
"""A signed time further than this from ours is not believed: the request may be an old one, sent again."""


# Signatures


def twilio_signature(token: str, url: str, fields: Fields = ()) -> str:
    """What Twilio puts into X-Twilio-Signature; `url` as Twilio has it, query included."""
    # A name that comes twice is signed with each of its values once, sorted.
    signed = url + "".join(name + value for name, value in sorted(set(fields)))
    return _hmac(token, signed, "sha1")


def plivo_signature(token: str, url: str, nonce: str, fields: Fields = (), *, method: str = "POST") -> str:
    """What Plivo puts into X-Plivo-Signature-V3."""
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    signed = urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
    form: list[tuple[str, str]] = []
    if method.upper() == "GET":
        query += [field for field in fields if field not in query]
    else:
        form = sorted(fields)
    sorted_query = "&".join(f"{name}={value}" for name, value in sorted(query))
    if sorted_query or form:
        signed += "?" + sorted_query
    if sorted_query and form:
        signed += "."
    signed += "".join(name + value for name, value in form)
    return _hmac(token, f"{signed}.{nonce}", "sha256")


def _hmac(key: str, text: str, digest: str) -> str:
    return base64.b64encode(hmac.new(key.encode(), text.encode(), digest).digest()).decode()


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def signed_by_twilio(token: str, headers: Mapping[str, str], url: str, fields: Fields) -> bool:
    return _same(twilio_signature(token, url, fields), headers.get("x-twilio-signature", ""))


def signed_by_plivo(token: str, headers: Mapping[str, str], url: str, fields: Fields, method: str) -> bool:
    nonce = headers.get("x-plivo-signature-v3-nonce", "")
    wanted = plivo_signature(token, url, nonce, fields, method=method)
    given = headers.get("x-plivo-signature-v3", "").split(",")
    return bool(nonce) and any(_same(wanted, one.strip()) for one in given)


def signed_by_telnyx(public_key: str, headers: Mapping[str, str], body: bytes, *, now: float | None = None) -> bool:
    """`public_key` as the portal shows it, base64. Errors: `ValueError` for what is no such key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public_key, validate=True))
    stamp = headers.get("telnyx-timestamp", "")
    try:
        if abs((time.time() if now is None else now) - float(stamp)) > MOST_SKEW_S:
            return False
        signature = base64.b64decode(headers.get("telnyx-signature-ed25519", ""), validate=True)
        key.verify(signature, stamp.encode() + b"|" + body)
    except (InvalidSignature, ValueError, binascii.Error):
        return False
    return True


# A pass for the websocket: only who was given a signed answer may open one


def stream_pass(secret: str, provider: str, *, now: float | None = None, valid_s: float = 120.0) -> str:
    """A path element for the media stream's URL: when it ends, and our signature. (A query would be lost: Twilio drops it.)"""
    until = str(int((time.time() if now is None else now) + valid_s))
    return f"{until}.{_pass_signature(secret, provider, until)}"


def is_stream_pass(secret: str, provider: str, given: str, *, now: float | None = None) -> bool:
    until, _, signature = given.partition(".")
    if not until.isdecimal() or not _same(_pass_signature(secret, provider, until), signature):
        return False
    return int(until) >= (time.time() if now is None else now)


def _pass_signature(secret: str, provider: str, until: str) -> str:
    return hmac.new(secret.encode(), f"{provider}|{until}".encode(), hashlib.sha256).hexdigest()


# Answers


def answer(provider: str, stream_url: str, parameters: Mapping[str, str] | None = None) -> tuple[str, str]:
    """What makes the provider stream a call to `stream_url`, both ways: the body and its content type.

    parameters: come back in the stream's start message (Twilio, Telnyx).
    """
    xml = "application/xml"
    given = "".join(
        f"<Parameter name={quoteattr(name)} value={quoteattr(value)} />" for name, value in (parameters or {}).items()
    )
    url = quoteattr(stream_url)
    if provider == "twilio":
        return _xml(f"<Connect><Stream url={url}>{given}</Stream></Connect>"), xml
    if provider == "telnyx":
        way = 'track="inbound_track" codec="PCMU" bidirectionalMode="rtp" bidirectionalCodec="PCMU"'
        return _xml(f"<Connect><Stream url={url} {way}>{given}</Stream></Connect>"), xml
    if provider == "plivo":
        way = 'bidirectional="true" keepCallAlive="true" contentType="audio/x-mulaw;rate=8000"'
        return _xml(f"<Stream {way}>{escape(stream_url)}</Stream>"), xml
    return json.dumps({"url": stream_url}), "application/json"


def busy(provider: str) -> tuple[str, str, int]:
    """The answer when there is no room for another call: the body, its content type and the status."""
    if provider in ("twilio", "telnyx"):
        return _xml('<Reject reason="busy" />'), "application/xml", 200
    if provider == "plivo":
        return _xml('<Hangup reason="busy" />'), "application/xml", 200
    return json.dumps({"error": "busy"}), "application/json", 503


def _xml(inside: str) -> str:
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<Response>{inside}</Response>'
