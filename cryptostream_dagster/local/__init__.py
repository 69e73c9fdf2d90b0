"""The local stack: what runs on one machine instead of a Kafka cluster, a Postgres server and an exchange."""
