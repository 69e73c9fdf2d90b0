# The same Parquet as a table, the folders' names as columns; for those who would rather ask in SQL. Off by default.

resource "google_bigquery_dataset" "this" {
  count = var.bigquery ? 1 : 0

  dataset_id = "cryptostream"
  location   = var.region
  # A table that is a view of a bucket: nothing is in it.
  delete_contents_on_destroy = true

  depends_on = [google_project_service.this]
}

locals {
  bigquery_table = templatefile("${path.module}/orderbook.bigquery.sql", {
    table  = "${var.project}.cryptostream.orderbook"
    root   = "gs://${local.parquet_bucket}/${local.prefix}"
    levels = range(1, tonumber(lookup(var.settings, "DEPTH", "15")) + 1)
  })
}

# A statement, not google_bigquery_table: the files have a column `ticker` as their folders do, which BigQuery refuses
# unless the columns are named one by one, and the table's resource takes no columns of Parquet.
resource "google_bigquery_job" "orderbook" {
  count = var.bigquery ? 1 : 0

  # A job runs once: another statement is another job.
  job_id   = "cryptostream-orderbook-${substr(sha256(local.bigquery_table), 0, 16)}"
  location = google_bigquery_dataset.this[0].location

  query {
    query          = local.bigquery_table
    use_legacy_sql = false
    # A statement that makes a table has no table to write its result to.
    create_disposition = ""
    write_disposition  = ""
  }
}
