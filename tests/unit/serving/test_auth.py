import base64

import pytest
from starlette.requests import Request

from serving.auth import Keys, presented_key, require
from serving.web import Problem


def request(**headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Request({"type": "http", "headers": raw})


def test_each_of_several_keys_is_accepted_and_blanks_around_them_are_not_part_of_them():
    keys = Keys(" one, two ,", "HEADRACE_READ_KEYS")
    assert [keys.accepts(key) for key in ("one", "two", "three", "", " one")] == [True, True, False, False, False]


@pytest.mark.parametrize("nothing", ["", " ", ",", " , "])
def test_with_no_key_configured_no_request_is_let_in(nothing: str):
    keys = Keys(nothing, "HEADRACE_READ_KEYS")
    assert [keys.accepts(key) for key in ("", " ", ",", "anything")] == [False, False, False, False]


def test_a_key_is_read_from_bearer_from_its_own_header_and_from_the_password_of_basic():
    basic = base64.b64encode(b"anyone:k:1").decode()
    assert presented_key(request(authorization="Bearer k1").headers) == "k1"
    assert presented_key(request(authorization="bearer  k1 ").headers) == "k1"
    assert presented_key(request(x_api_key="k1").headers) == "k1"
    assert presented_key(request(authorization=f"Basic {basic}").headers) == "k:1"


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic", "Basic ???", "Basic eA==", "Digest x"])
def test_a_header_without_a_key_presents_none(value: str):
    assert presented_key(request(authorization=value).headers) is None


def test_a_refusal_names_the_setting_and_the_header_but_never_the_key():
    check = require(Keys("right", "HEADRACE_EVENT_KEYS"))
    with pytest.raises(Problem) as refused:
        check(request(authorization="Bearer wröng"))
    assert refused.value.status == 401
    assert "HEADRACE_EVENT_KEYS" in refused.value.remedy
    assert "X-API-Key" in refused.value.remedy
    assert b"wr" not in refused.value.response().body.replace(b"wrong", b"")
    assert b"right" not in refused.value.response().body


def test_the_accepted_key_passes_and_keys_do_not_show_in_their_representation():
    keys = Keys("right", "HEADRACE_EVENT_KEYS")
    require(keys)(request(x_api_key="right"))
    assert repr(keys) == "Keys(1 from HEADRACE_EVENT_KEYS)"


def test_a_key_beyond_ascii_is_matched_by_its_bytes_and_by_nothing_else() -> None:
    keys = Keys("пароль", "HEADRACE_EVENT_KEYS")
    assert keys.accepts("пароль".encode().decode("latin-1"))  # as a header arrives
    assert not keys.accepts("??????")
