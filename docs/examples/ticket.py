"""Mints tickets with PyJWT and cryptography."""

import json
import time
import uuid

import jwt


def open_key(path):
    """Reads the key that `termgw ticket keygen` wrote."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def ticket_for(jwk, person, workspace):
    """Called when the platform knows who asks, and that this person may open
    this workspace: the gateway takes the ticket's word for both."""
    now = int(time.time())
    claims = {
        "iss": "https://platform.example",
        "aud": "termgw",
        "sub": person,
        "jti": str(uuid.uuid4()),
        "iat": now,
        "exp": now + 60,
        "workspace_id": workspace,
    }
    header = {"typ": "termgw-ticket+jwt", "kid": jwk["kid"]}
    return jwt.encode(claims, jwt.PyJWK(jwk).key, algorithm=jwk["alg"], headers=header)
