from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.errors import ConfigurationError
from brokerkit.url import HIDDEN, BrokerUrl, is_secret, redact

SECRET = "s3cr3t-wörd"


def test_a_password_may_hold_raw_signs() -> None:
    url = BrokerUrl.parse("amqp://user:p@ss:w%rd@h1,h2:5673/vhost?queue_type=classic")

    assert (url.scheme, url.user, url.password) == ("amqp", "user", "p@ss:w%rd")
    assert url.hosts == (("h1", None), ("h2", 5673))
    assert (url.path, dict(url.query)) == ("vhost", {"queue_type": "classic"})


def test_the_url_of_system_e_parses() -> None:
    url = BrokerUrl.parse("amqp://user:p@ss@127.0.0.1:5672/")

    assert (url.user, url.password, url.hosts, url.vhost) == ("user", "p@ss", (("127.0.0.1", 5672),), "/")


@pytest.mark.parametrize("path", ["", "/", "/%2F", "/%2f", "//"])
def test_every_spelling_of_the_root_virtual_host_is_a_slash(path: str) -> None:
    assert BrokerUrl.parse(f"amqp://h{path}").vhost == "/"
    assert BrokerUrl.parse(f"amqp://h{path}?heartbeat=3").vhost == "/"


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("rocketmq://ns1:9876;ns2:9876", (("ns1", 9876), ("ns2", 9876))),
        ("rocketmq://ns1:9876,ns2", (("ns1", 9876), ("ns2", None))),
        ("AMQP://[::1]:5672,[fe80::1%25eth0]/v", (("::1", 5672), ("fe80::1%eth0", None))),
        ("amqp://", ()),
        (" amqp://h\n", (("h", None),)),
    ],
)
def test_hosts_are_kept_in_their_order(text: str, hosts: tuple[tuple[str, int | None], ...]) -> None:
    assert BrokerUrl.parse(text).hosts == hosts


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("sqlite:///relative.db", "relative.db"),
        ("sqlite:////var/lib/absolute.db", "/var/lib/absolute.db"),
        ("sqlite:///with%20blank@home/x.db?durability=normal", "with blank@home/x.db"),
        ("sqlite://", ""),
        ("memory://name", "name"),
        ("memory://", ""),
    ],
)
def test_local_urls_have_a_path_and_no_hosts(text: str, path: str) -> None:
    url = BrokerUrl.parse(text)

    assert (url.path, url.hosts, url.user) == (path, (), None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"amqp://user:{SECRET}@h:port/v", "the port of host 1"),
        (f"amqp://user:{SECRET}@h1,h2:0", "the port of host 2"),
        (f"amqp://user:{SECRET}@h:65536", "from 1 to 65535"),
        (f"amqp://user:{SECRET}@h1,,h2", "host 2 is empty"),
        (f"amqp://user:{SECRET}@::1/v", "IPv6"),
        (f"amqp://user:{SECRET}@[::1/v", "IPv6"),
        (f"amqp://user:{SECRET}@[h]:1/v", "not an IPv6 address"),
        (f"amqp://user:{SECRET}@a b/v", "no host name has"),
        (f"amqp://user:{SECRET}@h/v?heartbeat", "name=value"),
        (f"amqp://user:{SECRET}@h/v?a=1&a=2", "'a' is given twice"),
        (f"amqp://user:{SECRET}@h/%FF", "not UTF-8"),
        (f"amqp://user:{SECRET}/x@h/v", "%2F"),
        (f"amqp://user:x?{SECRET}@h/v", "%3F"),
        (f"amqp://user:{SECRET}", "the port of host 1"),
        (f"amqp://h/v?password={SECRET}&x", "name=value"),
        (f"user:{SECRET}@h", "scheme"),
        (SECRET, "scheme"),
        ("", "scheme"),
        ("sqlite://file.db", "three or four slashes"),
        ("sqlite:///a%00b", "NUL"),
    ],
)
def test_a_malformed_url_is_explained_without_its_password(text: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        BrokerUrl.parse(text)

    assert problem in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="must be a str, not bytes"):
        BrokerUrl.parse(b"amqp://h")  # type: ignore[arg-type]


def test_str_and_repr_hide_what_is_secret_and_reveal_does_not() -> None:
    url = BrokerUrl.parse(f"amqp://user:{SECRET}@h/v?client_secret={SECRET}&heartbeat=3")

    for shown in (str(url), repr(url), f"{url}", str([url])):
        assert SECRET not in shown
        assert f"user:{HIDDEN}@h/v" in shown
        assert "heartbeat=3" in shown
    assert BrokerUrl.parse(url.reveal()) == url
    assert pickle.loads(pickle.dumps(url)) == url


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no url: a@b", "no url: a@b"),
        ("amqp://h1,h2:5672/v", "amqp://h1,h2:5672/v"),
        ("amqp://user@h/v", "amqp://user@h/v"),
        ("cannot reach amqp://u:p@ss@h/v, mail a@b", "cannot reach amqp://u:***@h/v, mail a@b"),
        ("amqp://u:p/?#@h and amqp://v:q@i", "amqp://u:***@h and amqp://v:***@i"),
        ("amqp://:p@h", "amqp://:***@h"),
        ("amqp://u:two words@h/v", "amqp://u:***@h/v"),
        ("see http://h:80/x or ask a@b", "see http://h:80/x or ask a@b"),
        ("amqp://h/v?secret_key=p&x=1", "amqp://h/v?secret_key=***&x=1"),
        ("amqp://h/v?x=1&pass=p", "amqp://h/v?x=1&pass=***"),
    ],
)
def test_redact_hides_the_passwords_of_urls_in_any_text(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_secret_keys_are_recognised_by_their_name() -> None:
    secret = [
        "password",
        "PASSWORD",
        "secret_key",
        "accessKey",
        "access_key",
        "security_token",
        "api_key",
        "passwd",
        "pass",
    ]
    open_ = ["user", "host", "passive", "key", "routing_key", "path", "topic"]

    assert [name for name in secret if not is_secret(name)] == []
    assert [name for name in open_ if is_secret(name)] == []


# --- properties -----------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
odd = st.text("@:/?#%[],;&=+ \\\"'<>|^~ä\n\t\0" + "aZ9", max_size=20)
names = st.from_regex(r"[a-z0-9_-]+(\.[a-z0-9]+)*", fullmatch=True)
hosts = st.tuples(names | st.ip_addresses().map(str), st.none() | st.integers(1, 65535))


@st.composite
def urls(draw: st.DrawFn) -> BrokerUrl:
    user = draw(st.none() | texts | odd)
    return BrokerUrl(
        scheme=draw(st.sampled_from(["amqp", "amqps", "rocketmq", "x+y"])),
        user=user,
        password=None if user is None else draw(st.none() | texts | odd),
        hosts=tuple(draw(st.lists(hosts, min_size=1, max_size=3))),
        path=draw(texts | odd),
        query=draw(st.dictionaries((texts | odd).filter(bool), texts | odd, max_size=3)),
    )


@given(urls())
def test_a_revealed_url_parses_to_itself(url: BrokerUrl) -> None:
    assert BrokerUrl.parse(url.reveal()) == url


@given(st.sampled_from(["sqlite", "memory"]), (texts | odd).filter(lambda path: "\0" not in path))
def test_a_revealed_local_url_parses_to_itself(scheme: str, path: str) -> None:
    url = BrokerUrl(scheme=scheme, path=path)

    assert BrokerUrl.parse(url.reveal()) == url


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/?%"), min_size=1, max_size=20))
def test_any_raw_password_without_slash_and_question_mark_is_understood(password: str) -> None:
    assert BrokerUrl.parse(f"amqp://user:{password}@host/v").password == password


@given(odd, odd, st.sampled_from(["amqp", "rocketmq", "sqlite", "x"]))
def test_no_text_makes_the_parser_fail_otherwise_or_tell_a_password(before: str, after: str, scheme: str) -> None:
    text = f"{scheme}://{before}user:{SECRET}{after}@host"
    try:
        url = BrokerUrl.parse(text)
    except ConfigurationError as exc:
        assert SECRET not in str(exc)
    else:
        # Without an authority there is no password: what stands behind sqlite:// is a file.
        assert url.scheme == "sqlite" or SECRET not in str(url)


@given(st.text(max_size=60))
def test_any_text_parses_or_is_refused(text: str) -> None:
    for candidate in (text, f"amqp://{text}", f"sqlite:///{text}"):
        try:
            BrokerUrl.parse(candidate)
        except ConfigurationError:
            pass
