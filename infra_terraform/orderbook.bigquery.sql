CREATE OR REPLACE EXTERNAL TABLE `${table}` (
  `market` STRING,
  `exchange_time` TIMESTAMP,
  `received_time` TIMESTAMP,
  `stream_type` STRING,
  `level` FLOAT64,
  `total_ask_size` FLOAT64,
  `total_bid_size` FLOAT64,
%{ for level in levels ~}
  `ask_price${level}` FLOAT64,
  `ask_size${level}` FLOAT64,
  `bid_price${level}` FLOAT64,
  `bid_size${level}` FLOAT64,
%{ endfor ~}
  `connection` STRING,
  `partition` INT64,
  `offset` INT64
)
WITH PARTITION COLUMNS (
  `ticker` STRING,
  `year` INT64,
  `month` INT64,
  `day` INT64,
  `hour` INT64
)
OPTIONS (
  format = 'PARQUET',
  uris = ['${root}/ticker=*'],
  hive_partition_uri_prefix = '${root}',
  require_hive_partition_filter = TRUE
)
