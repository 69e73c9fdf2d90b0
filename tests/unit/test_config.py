"""producer.conf and consumer.conf: every mistake is one line that names file, section, key and value."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest_services import config
from ingest_services.errors import UserError
from ingest_services.settings import IngestSettings, load_settings

PRODUCER = "[upbit_producer1]\ntopic_name=orderbook\npartition_number=0\ntickers=BTC,ETH\n"
CONSUMER = "[gcs_consumer1]\ntopic_name=orderbook\npartition_number=0\ngroup_name=gcs_consumer\n"


def producers(tmp_path: Path, text: str) -> list[config.ProducerSection]:
    path = tmp_path / "producer.conf"
    path.write_text(text)
    return config.read_producers(path)


def consumers(tmp_path: Path, text: str) -> list[config.ConsumerSection]:
    path = tmp_path / "consumer.conf"
    path.write_text(text)
    return config.read_consumers(path)


def test_the_packaged_files_fit_each_other() -> None:
    settings = IngestSettings(_env_file=None)
    partitions = config.partitions_of(config.read_producers(settings.producer_conf))
    config.require_consumers(
        partitions, config.read_consumers(settings.consumer_conf), settings.consumer_conf
    )
    assert partitions == {"orderbook": 3}


def test_a_ticker_means_its_krw_market_and_other_quotes_keep_their_code(tmp_path: Path) -> None:
    (section,) = producers(tmp_path, PRODUCER.replace("BTC,ETH", "BTC, USDT-ETH"))
    assert section.markets == ("KRW-BTC", "USDT-ETH")


def test_all_krw_leaves_the_markets_to_the_exchange(tmp_path: Path) -> None:
    (section,) = producers(tmp_path, PRODUCER.replace("BTC,ETH", "ALL-KRW"))
    assert (section.markets, section.all_of) == ((), "KRW")


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("tickers=BTC,ETH", "tickers=BTC,KRW-BTC", r"\[upbit_producer1\] tickers: KRW-BTC is named twice"),
        ("tickers=BTC,ETH", "tickers=BTC,,ETH", r"\[upbit_producer1\] tickers: number 2 is empty"),
        ("tickers=BTC,ETH", "tickers=BTC,ETH,", r"\[upbit_producer1\] tickers: number 3 is empty"),
        ("tickers=BTC,ETH", "tickers=,", r"\[upbit_producer1\] tickers: number 1 is empty"),
        ("tickers=BTC,ETH", "tickers=", r"\[upbit_producer1\] tickers: missing"),
        ("tickers=BTC,ETH", "tickers=BTC ; the big one", r"'BTC ; the big one' is neither a ticker"),
        ("tickers=BTC,ETH", "tickers=BTC\n ETH", r"'BTC\\nETH' is neither a ticker"),
        ("tickers=BTC,ETH", "tickers=all-krw", r"tickers=all-krw: must be one of ALL-KRW"),
        ("tickers=BTC,ETH", "tickers=ALL-KRW,BTC", r"tickers: ALL-KRW stands alone"),
        ("tickers=BTC,ETH", "tickers=USDT-BTC, ALL-KRW", r"tickers: ALL-KRW stands alone"),
        ("tickers=BTC,ETH", "tickers=ALL-KRW,ALL-BTC", r"tickers: ALL-KRW stands alone"),
        ("tickers=BTC,ETH", "tickers=BTC\ntickers=ETH", r"option 'tickers' in section .* already exists"),
        ("tickers=BTC,ETH", "tickers", r"contains parsing errors"),
        ("partition_number=0", "partition_number=abc", r"partition_number=abc: must be a number"),
        ("partition_number=0", "partition_number=0\n 1", r"partition_number=0 1: must be a number"),
        ("partition_number=0", "partition_number=1.0", r"partition_number=1\.0: must be a number"),
        ("partition_number=0", "partition_number=" + "9" * 5000, r"partition_number=9+: must be a number"),
        ("partition_number=0", "partition_number=٣", r"partition_number=٣: must be a number"),
        ("topic_name=orderbook", "topic_name=order book", r"topic_name=order book: is no name of a topic"),
        ("topic_name=orderbook", "topic_name=..", r"topic_name=\.\.: is no name of a topic"),
        ("topic_name=orderbook", "topic_name=" + "t" * 250, r"is no name of a topic"),
        ("tickers=BTC,ETH", "tickers=btc", r"'btc' is neither a ticker"),
        ("tickers=BTC,ETH", "tickers=../x", r"'../x' is neither a ticker"),
        ("tickers=BTC,ETH", "tickers=ALL-EUR", r"tickers=ALL-EUR: must be one of ALL-KRW"),
        ("tickers=BTC,ETH", "", r"\[upbit_producer1\] tickers: missing"),
        ("partition_number=0", "partition_number=-1", r"partition_number=-1: must be a number from 0"),
        ("partition_number=0", "partition_number=two", r"partition_number=two: must be a number"),
        ("partition_number=0", "partition_number=1000", r"partition_number=1000: must be a number"),
        ("topic_name=orderbook", "topic=orderbook", r"\[upbit_producer1\] topic: unknown key"),
        ("[upbit_producer1]", "", r"File contains no section headers"),
        (PRODUCER, "", r"producer\.conf: no section"),
        (PRODUCER, PRODUCER + PRODUCER, r"section 'upbit_producer1' already exists"),
        (
            PRODUCER,
            PRODUCER + PRODUCER.replace("producer1", "producer2").replace("BTC,ETH", "KRW-ETH"),
            r"\[upbit_producer2\] tickers: KRW-ETH is in \[upbit_producer1\] already",
        ),
        (
            PRODUCER,
            PRODUCER + PRODUCER.replace("producer1", "producer2").replace("BTC,ETH", "ALL-KRW"),
            r"\[upbit_producer1\] tickers: KRW-BTC is in \[upbit_producer2\] already",
        ),
    ],
)
def test_a_mistake_in_producer_conf_is_one_line(tmp_path: Path, before: str, after: str, line: str) -> None:
    with pytest.raises(UserError, match=line) as error:
        producers(tmp_path, PRODUCER.replace(before, after))
    assert "producer.conf" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe[\x00u\x00p\x00", b"\x00\x01\x02", "folder"])
def test_a_file_that_is_none_is_one_line(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "producer.conf"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.mkdir()
    with pytest.raises(UserError, match=r"producer\.conf: ") as error:
        config.read_producers(path)
    assert "\n" not in str(error.value)


def test_what_editors_of_windows_write_is_read(tmp_path: Path) -> None:
    path = tmp_path / "producer.conf"
    path.write_bytes(b"\xef\xbb\xbf" + PRODUCER.replace("\n", "\r\n").encode())
    (section,) = config.read_producers(path)
    assert (section.topic, section.markets) == ("orderbook", ("KRW-BTC", "KRW-ETH"))


def test_a_section_may_name_more_markets_than_the_exchange_has(tmp_path: Path) -> None:
    # 855 codes in one request were tried; there is no known limit, and we set none.
    tickers = [f"T{number}" for number in range(900)]
    (section,) = producers(tmp_path, PRODUCER.replace("BTC,ETH", ",\n ".join(tickers)))
    assert section.markets == tuple(f"KRW-{ticker}" for ticker in tickers)


def test_partitions_without_a_hole(tmp_path: Path) -> None:
    second = PRODUCER.replace("producer1", "producer2").replace("BTC,ETH", "XRP").replace("=0", "=2")
    with pytest.raises(UserError, match="partition_number 1 is named by no section"):
        config.partitions_of(producers(tmp_path, PRODUCER + second))


@pytest.mark.parametrize(
    ("text", "count", "line"),
    [
        (CONSUMER, 2, "partition 1 of topic orderbook has no consumer section"),
        (CONSUMER.replace("=0", "=3"), 1, "topic orderbook has partitions 0 to 0"),
        (CONSUMER.replace("orderbook", "trades"), 1, "topic_name=trades: no producer writes this topic"),
    ],
)
def test_every_partition_has_exactly_one_reader(tmp_path: Path, text: str, count: int, line: str) -> None:
    with pytest.raises(UserError, match=line):
        config.require_consumers({"orderbook": count}, consumers(tmp_path, text), tmp_path / "consumer.conf")


def test_two_sections_never_read_one_partition(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\[gcs_consumer1\] reads it already"):
        consumers(tmp_path, CONSUMER + CONSUMER.replace("consumer1", "consumer2"))


def test_sections_are_chosen_by_name_or_all(tmp_path: Path) -> None:
    path = tmp_path / "producer.conf"
    sections = producers(tmp_path, PRODUCER)
    assert config.select(path, sections, [], everything=True) == sections
    assert config.select(path, sections, ["upbit_producer1"] * 2, everything=False) == sections
    with pytest.raises(UserError, match=r"no section \[upbit_producer9\]; it has upbit_producer1"):
        config.select(path, sections, ["upbit_producer9"], everything=False)
    for names, everything in (([], False), (["upbit_producer1"], True)):
        with pytest.raises(UserError, match="name one or more sections"):
            config.select(path, sections, names, everything=everything)


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("LATENESS_S", "soon", r"setting LATENESS_S='soon' \(environment or .env\): .*number"),
        ("DEPTH", "7", r"setting DEPTH=7"),
        ("MARKET_TIME_ZONE", "Mars/Base", r"setting MARKET_TIME_ZONE='Mars/Base'.*not a time zone"),
        ("SOURCE", "binance", r"setting SOURCE='binance'"),
        ("KAFKA_BOOTSTRAP", "", r"setting KAFKA_BOOTSTRAP='' .*is not host:port"),
        ("KAFKA_BOOTSTRAP", "kafka1", r"'kafka1' is not host:port"),
        ("KAFKA_BOOTSTRAP", "kafka1:notaport", r"'kafka1:notaport' is not host:port"),
        ("KAFKA_BOOTSTRAP", "kafka1:0", r"'kafka1:0' is not host:port"),
        ("KAFKA_BOOTSTRAP", "kafka1:65536", r"'kafka1:65536' is not host:port"),
        ("KAFKA_BOOTSTRAP", "kafka1:9092,", r"'' is not host:port"),
        ("KAFKA_BOOTSTRAP", "PLAINTEXT://kafka1:9092", r"'PLAINTEXT://kafka1:9092' is not host:port"),
        ("UPBIT_WS_URL", "api.upbit.com", r"setting UPBIT_WS_URL='api.upbit.com' .*a URL like wss://host"),
        ("UPBIT_WS_URL", "https://api.upbit.com", r"setting UPBIT_WS_URL=.*a URL like wss://host"),
        ("UPBIT_WS_URL", "wss://", r"setting UPBIT_WS_URL='wss://' .*a URL like"),
        ("UPBIT_WS_URL", "ws://127.0.0.1:0/", r"setting UPBIT_WS_URL=.*has port 0"),
        ("UPBIT_WS_URL", "ws://127.0.0.1:99999/", r"setting UPBIT_WS_URL=.*[Pp]ort"),
        ("UPBIT_WS_URL", "ws://[::1", r"setting UPBIT_WS_URL="),
        ("UPBIT_REST_URL", "wss://api.upbit.com", r"setting UPBIT_REST_URL=.*a URL like https://host"),
        ("UPBIT_REST_URL", "http://a b", r"setting UPBIT_REST_URL=.*a URL like https://host"),
        ("SPOOL_DIR", "", r"setting SPOOL_DIR='' .*is empty"),
        ("SPOOL_MAX_MB", "0", r"setting SPOOL_MAX_MB='0' .*greater than or equal to 1"),
        ("PRODUCER_CONF", "", r"setting PRODUCER_CONF='' .*is empty"),
    ],
)
def test_a_malformed_setting_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(f"{name}={value}\n")
    with pytest.raises(UserError, match=line):
        load_settings(IngestSettings)


@pytest.mark.parametrize("servers", ["kafka1:9092", "10.0.0.1:9092, kafka-2.internal:9093", "[::1]:9092"])
def test_brokers_are_addresses_with_ports(servers: str) -> None:
    assert IngestSettings(_env_file=None, kafka_bootstrap=servers).kafka_bootstrap == servers


def test_an_env_file_that_is_no_text_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes(b"DEPTH=\xff\xfe")
    with pytest.raises(UserError, match=r"\.env: is not UTF-8 text"):
        load_settings(IngestSettings)


def test_the_environment_wins_over_the_env_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("DEPTH=5\nLATENESS_S=1\n")
    monkeypatch.setenv("DEPTH", "30")
    settings = load_settings(IngestSettings)
    assert (settings.depth, settings.lateness_s) == (30, 1.0)
