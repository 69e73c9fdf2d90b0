"""`python -m ingest_services` is the console script `cryptostream`."""

from ingest_services.cli import main

main()
