"""The request grammar, as the exchange reads it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_services.upbit.request import (
    ERROR_NAMES,
    ListRequest,
    RequestError,
    SubscriptionRequest,
    TypeRequest,
    parse_request,
    split_code,
    subscription_request,
)

BOOKS = {"type": "orderbook", "codes": ["KRW-BTC"]}


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        ("hello", "WRONG_FORMAT"),
        ({"ticket": "t"}, "WRONG_FORMAT"),
        ([], "WRONG_FORMAT"),
        (["ticket"], "WRONG_FORMAT"),
        ([BOOKS], "NO_TICKET"),
        ([{"ticket": ""}, BOOKS], "NO_TICKET"),
        ([{"ticket": "t"}], "NO_TYPE"),
        ([{"ticket": "t"}, {"codes": ["KRW-BTC"]}], "NO_TYPE"),
        ([{"ticket": "t"}, {"type": "orderbook"}], "NO_CODES"),
        ([{"ticket": "t"}, BOOKS, {"type": "orderbook"}], "NO_CODES"),
        ([{"ticket": "t"}, {"type": "orderbook", "codes": []}], "INVALID_PARAM"),
        ([{"ticket": "t"}, {"type": "orderbook", "codes": "KRW-BTC"}], "INVALID_PARAM"),
        ([{"ticket": "t"}, {"type": "orderbook", "codes": [1]}], "INVALID_PARAM"),
        ([{"ticket": "t"}, {"type": "books", "codes": ["KRW-BTC"]}], "INVALID_PARAM"),
        ([{"ticket": "t"}, BOOKS, {"format": "CSV"}], "INVALID_PARAM"),
        ([{"ticket": "t"}, {"method": "UNSUBSCRIBE"}], "INVALID_PARAM"),
        ([{"ticket": "t"}, {"type": "myOrder"}], "INVALID_AUTH"),
    ],
)
def test_each_mistake_has_its_name(request_: object, name: str) -> None:
    text = request_ if isinstance(request_, str) else json.dumps(request_)
    with pytest.raises(RequestError) as caught:
        parse_request(text)
    assert caught.value.name == name


def test_what_the_producer_builds_is_understood() -> None:
    assert parse_request(subscription_request("t", ["KRW-BTC", "KRW-ETH"], 15)) == SubscriptionRequest(
        "t", (TypeRequest("orderbook", ("KRW-BTC.15", "KRW-ETH.15"), 0, False, False),), "SIMPLE"
    )


def test_format_is_default_unless_it_says_otherwise() -> None:
    parsed = parse_request(json.dumps([{"ticket": "t"}, BOOKS | {"is_only_realtime": True}]))
    assert isinstance(parsed, SubscriptionRequest)
    assert parsed.format == "DEFAULT"
    assert parsed.types[0].only_realtime
    # Only the snake_case spelling counts.
    parsed = parse_request(json.dumps([{"ticket": "t"}, BOOKS | {"isOnlySnapshot": True}]))
    assert isinstance(parsed, SubscriptionRequest)
    assert not parsed.types[0].only_snapshot


def test_the_list_of_subscriptions_can_be_asked_for() -> None:
    text = json.dumps([{"ticket": "t"}, {"method": "LIST_SUBSCRIPTIONS"}, {"format": "SIMPLE"}])
    assert parse_request(text) == ListRequest("t", "SIMPLE")


@pytest.mark.parametrize(
    ("code", "depth"),
    [
        ("KRW-BTC", 30),
        ("KRW-BTC.1", 1),
        ("KRW-BTC.5", 5),
        ("KRW-BTC.15", 15),
        ("KRW-BTC.30", 30),
        ("KRW-BTC.10", 30),
        ("KRW-BTC.05", 30),
        ("KRW-BTC.", 30),
        ("KRW-BTC.5.5", 30),
        ("KRW-BTC.abc", 30),
    ],
)
def test_any_other_suffix_means_30(code: str, depth: int) -> None:
    assert split_code(code) == ("KRW-BTC", depth)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["ticket", "type", "codes", "format", "method", "level", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(json_values | st.lists(json_values, max_size=4))
def test_no_request_can_do_worse_than_an_error(request_: object) -> None:
    name = None
    try:
        parse_request(json.dumps(request_))
    except RequestError as error:
        name = error.name
    assert name is None or name in ERROR_NAMES
