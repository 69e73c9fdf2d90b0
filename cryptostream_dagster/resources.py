"""The one resource: the platform as the settings describe it. Connections are opened when they are used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from cryptostream_dagster.settings import PipelineSettings
from ingest_services.errors import UserError
from ingest_services.lake.layout import read_lake
from ingest_services.lake.store import ObjectStore
from ingest_services.lake.stores import open_store

if TYPE_CHECKING:
    import psycopg


class Platform:
    """The lake and the warehouse.

    Args:
        settings: Where they are.
    """

    def __init__(self, settings: PipelineSettings) -> None:
        self.settings = settings
        self._schema_is_there = False

    @cached_property
    def store(self) -> ObjectStore:
        """The raw lake's store.

        Raises:
            UserError: If RAW_URL is of no use.
        """
        return open_store(self.settings.raw_url)

    @property
    def has_lake(self) -> bool:
        """Whether anything was ever written to the lake.

        Raises:
            UserError: If it is another source's lake than the settings say.
        """
        identity = read_lake(self.store)
        if identity is None:
            return False
        settings = self.settings
        if (identity.source, identity.time_zone) != (settings.source, settings.market_time_zone):
            raise UserError(
                f"{self.store.url} holds data of source {identity.source} in {identity.time_zone}; the "
                f"settings say SOURCE={settings.source} and MARKET_TIME_ZONE={settings.market_time_zone}"
            )
        return True

    def require_lake(self) -> ObjectStore:
        """Return the lake's store.

        Raises:
            UserError: If there is no lake, or it is another source's.
        """
        if not self.has_lake:
            raise UserError(
                f"there is no raw lake at RAW_URL={self.settings.raw_url} yet: "
                "`cryptostream consume` makes it"
            )
        return self.store

    @contextmanager
    def connect(self) -> Iterator[psycopg.Connection]:
        """Connect to the warehouse, its schema up to date, partitions made ahead, its data of our source.

        Raises:
            UserError: If it cannot be reached, or belongs to another source.
        """
        # Both take their time to import, and loading the definitions needs neither.
        from cryptostream_dagster.warehouse.connection import connect
        from cryptostream_dagster.warehouse.schema import claim_database, make_partitions_ahead, migrate

        with connect(self.settings) as connection:
            if not self._schema_is_there:
                migrate(connection)
                claim_database(connection, self.settings.source, self.settings.market_time_zone)
                make_partitions_ahead(connection, self.settings.zone)
                self._schema_is_there = True
            yield connection
